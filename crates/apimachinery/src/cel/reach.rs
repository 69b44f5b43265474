//! What of a variable expressions can look at. A policy about two fields need not convert the rest of the object.

use std::borrow::Cow;
use std::collections::BTreeMap;

use kube_cel::cel::IdedExpr;
use kube_cel::cel::common::ast::Expr;
use serde_json::Value;

use super::cost::children;

/// The parts of a variable that some expressions name; nothing by default.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Reach {
    /// These fields, and of each so much.
    Fields(BTreeMap<String, Reach>),
    /// All of it.
    Whole,
}

impl Default for Reach {
    fn default() -> Self {
        Self::Fields(BTreeMap::new())
    }
}

impl Reach {
    /// Adds what an expression names of a variable. A variable that is used by itself, not by its fields, is
    /// looked at as a whole.
    pub(super) fn add(&mut self, tree: &IdedExpr, variable: &str) {
        let mut stack = vec![tree];
        while let Some(node) = stack.pop() {
            match path(node, variable) {
                Some(path) => self.add_path(&path),
                None => stack.extend(children(node)),
            }
        }
    }

    fn add_path(&mut self, path: &[&str]) {
        match (&mut *self, path) {
            (Self::Whole, _) => {}
            (Self::Fields(fields), [first, rest @ ..]) => {
                fields.entry((*first).to_owned()).or_default().add_path(rest);
            }
            (Self::Fields(_), []) => *self = Self::Whole,
        }
    }

    /// The parts of a value within reach. What is no object where fields are named stays as it is, so that
    /// expressions fail on it as they would on the whole value.
    pub fn of<'a>(&self, value: &'a Value) -> Cow<'a, Value> {
        match (self, value) {
            (Self::Fields(wanted), Value::Object(fields)) => {
                let part = |(name, reach): (&String, &Self)| {
                    Some((name.clone(), reach.of(fields.get(name)?).into_owned()))
                };
                Cow::Owned(Value::Object(wanted.iter().filter_map(part).collect()))
            }
            _ => Cow::Borrowed(value),
        }
    }
}

/// The fields in `variable.a.b`; `None` for any other expression.
fn path<'a>(mut node: &'a IdedExpr, variable: &str) -> Option<Vec<&'a str>> {
    let mut fields = Vec::new();
    loop {
        match &node.expr {
            Expr::Select(select) => {
                fields.push(select.field.as_str());
                node = &select.operand;
            }
            Expr::Ident(name) if name == variable => {
                fields.reverse();
                return Some(fields);
            }
            _ => return None,
        }
    }
}
