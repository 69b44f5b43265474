//! CEL rules of schemas: `x-kubernetes-validations`.

use crate::tree::Value;

use super::{Kind, List, Node, child, item_key, old_items};
use crate::cel::{CelError, Program, Typed, Variables};
use crate::{FieldError, FieldErrorKind};

/// More errors than this are not collected.
const MAX_ERRORS: usize = 100;
/// Steps that all rules may take together for one object, by the upper bounds of the programs.
const BUDGET: u64 = 50_000_000;
/// Longest message that a `messageExpression` may give, in bytes.
const MESSAGE_MAX: usize = 5 * 1024;

/// One rule.
#[derive(Debug)]
pub(super) struct Rule {
    program: Program,
    /// compares with `oldSelf`
    transition: bool,
    optional_old_self: bool,
    message: Option<String>,
    message_program: Option<Program>,
    reason: FieldErrorKind,
    /// appended to the path of the node
    field_path: String,
}

impl Rule {
    pub fn compile(rule: &Value, field: &str) -> Result<Self, FieldError> {
        let text = |key: &str| rule[key].as_str().filter(|text| !text.trim().is_empty());
        let compile = |key: &str, source: &str| {
            Program::compile(source)
                .map_err(|error| FieldError::invalid(child(field, key), source, error.to_string()))
        };
        let Some(source) = text("rule") else {
            return Err(FieldError::required(child(field, "rule"), "rule is not specified"));
        };
        let program = compile("rule", source)?;
        let reason = match text("reason") {
            None | Some("FieldValueInvalid") => FieldErrorKind::Invalid,
            Some("FieldValueForbidden") => FieldErrorKind::Forbidden,
            Some("FieldValueRequired") => FieldErrorKind::Required,
            Some("FieldValueDuplicate") => FieldErrorKind::Duplicate,
            Some(other) => {
                let known =
                    ["FieldValueInvalid", "FieldValueForbidden", "FieldValueRequired", "FieldValueDuplicate"];
                return Err(FieldError::not_supported(child(field, "reason"), other, &known));
            }
        };
        Ok(Self {
            transition: program.uses("oldSelf"),
            program,
            optional_old_self: rule["optionalOldSelf"] == true,
            message: text("message").map(str::to_owned),
            message_program: text("messageExpression")
                .map(|s| compile("messageExpression", s))
                .transpose()?,
            reason,
            field_path: text("fieldPath").unwrap_or_default().to_owned(),
        })
    }

    /// Whether the rule says anything about a value that was not there before, or is as it was.
    fn applies(&self, value: &Value, old: Option<&Value>) -> bool {
        match old {
            None => !self.transition || self.optional_old_self,
            Some(old) => self.transition || old != value,
        }
    }
}

pub(super) fn evaluate(root: &Node, object: &Value, old: Option<&Value>) -> Vec<FieldError> {
    let mut walk = Walk { variables: Variables::default(), errors: Vec::new(), spent: 0 };
    walk.node(root, object, old, "");
    walk.errors
}

struct Walk {
    variables: Variables,
    errors: Vec<FieldError>,
    spent: u64,
}

impl Walk {
    fn node(&mut self, node: &Node, value: &Value, old: Option<&Value>, path: &str) {
        if value.is_null() || self.errors.len() >= MAX_ERRORS {
            return;
        }
        if node.rules.iter().any(|rule| rule.applies(value, old)) {
            self.rules(node, value, old, path);
        }
        match value {
            Value::Object(fields) => {
                for (name, value) in fields {
                    if let Some(property) = node.field(name) {
                        self.node(property, value, old.and_then(|old| old.get(name)), &child(path, name));
                    }
                }
            }
            Value::Array(items) => {
                let Some(of) = &node.items else { return };
                let old = old_items(node, old);
                for (index, item) in items.iter().enumerate() {
                    let before = match &node.list {
                        List::Map(keys) => old.get(&item_key(keys, item)).copied(),
                        List::Atomic | List::Set => None,
                    };
                    self.node(of, item, before, &format!("{path}[{index}]"));
                }
            }
            _ => {}
        }
    }

    fn rules(&mut self, node: &Node, value: &Value, old: Option<&Value>, path: &str) {
        self.variables.bind_typed("self", value, node);
        for rule in node.rules.iter().filter(|rule| rule.applies(value, old)) {
            if rule.transition {
                match old {
                    old if rule.optional_old_self => self.variables.bind_optional("oldSelf", old, node),
                    Some(old) => self.variables.bind_typed("oldSelf", old, node),
                    None => continue,
                }
            }
            self.spent = self.spent.saturating_add(rule.program.cost(&self.variables));
            if self.spent > BUDGET {
                let detail = "call cost exceeds limit for rules of this object";
                self.errors.push(FieldError::invalid(path, kind_name(node), detail));
                return;
            }
            match rule.program.evaluate_bool(&self.variables) {
                Ok(true) => {}
                Ok(false) => self.failed(rule, node, path),
                Err(error) => {
                    let said = rule.message.as_deref().unwrap_or(rule.program.source());
                    let detail = match error {
                        CelError::Evaluate(why) if why == "no such overload" => format!(
                            "'{why}': call arguments did not match a supported operator, function or macro signature for rule: {said}"
                        ),
                        other => format!("{other} evaluating rule: {said}"),
                    };
                    self.errors.push(FieldError::invalid(path, kind_name(node), detail));
                }
            }
        }
    }

    fn failed(&mut self, rule: &Rule, node: &Node, path: &str) {
        let computed =
            rule.message_program.as_ref().and_then(|program| program.evaluate(&self.variables).ok());
        let computed = computed.as_ref().and_then(Value::as_str).map(str::trim);
        let usable = |text: &&str| !text.is_empty() && text.len() <= MESSAGE_MAX && !text.contains('\n');
        let message = computed
            .filter(usable)
            .or(rule.message.as_deref())
            .map_or_else(|| format!("failed rule: {}", rule.program.source()), str::to_owned);
        let field = format!("{path}{}", rule.field_path);
        let field = field.trim_start_matches('.');
        let field = if field.is_empty() { "<nil>" } else { field };
        let detail = if rule.reason == FieldErrorKind::Duplicate { String::new() } else { message };
        self.errors.push(FieldError::new(rule.reason, field, kind_name(node), detail));
    }
}

fn kind_name(node: &Node) -> &'static str {
    node.kind.map_or("", Kind::name)
}

impl Typed for Node {
    fn property(&self, name: &str) -> Option<(&Self, bool)> {
        let listed = self.properties.contains_key(name);
        self.field(name).map(|node| (node, listed))
    }

    fn item(&self) -> Option<&Self> {
        self.items.as_deref()
    }

    fn format(&self) -> Option<&str> {
        self.constraints.format.as_deref()
    }

    fn is_float(&self) -> bool {
        self.kind == Some(Kind::Number)
    }
}
