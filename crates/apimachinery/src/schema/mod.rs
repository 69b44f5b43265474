//! Structural schemas of CRDs (`openAPIV3Schema`): prune, default, validate, CEL rules
//! (`apiextensions-apiserver` `pkg/apiserver/{schema,validation}`, Kubernetes 1.36).
//!
//! A write of a custom object goes through them in this order:
//!
//! ```text
//! prune (unknown fields: dropped, warned about or refused) ─► default ─► admission ─► validate ─► rules
//! ```

mod default;
mod format;
mod parse;
mod prune;
mod rules;
mod strict;
mod validate;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use crate::tree::Value;
use regex::Regex;

use crate::FieldError;

pub use strict::{strict_error, strict_patch_error, unknown_field_warnings};

/// The schema of one version of a CRD, ready for use.
#[derive(Clone, Debug)]
pub struct Schema {
    root: Arc<Node>,
    /// whether any node has a rule: most schemas have not, and whole walks are saved
    has_rules: bool,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Kind {
    Object,
    Array,
    String,
    Integer,
    Number,
    Boolean,
}

#[derive(Debug, Default)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "flags that the schema language has, independent of each other"
)]
struct Node {
    kind: Option<Kind>,
    nullable: bool,
    int_or_string: bool,
    preserve_unknown: bool,
    embedded: bool,
    properties: BTreeMap<String, Node>,
    additional: Additional,
    items: Option<Box<Node>>,
    required: Vec<String>,
    default: Option<Value>,
    list: List,
    constraints: Constraints,
    rules: Vec<rules::Rule>,
}

#[derive(Debug, Default)]
enum Additional {
    #[default]
    No,
    Any,
    Schema(Box<Node>),
}

#[derive(Debug, Default)]
enum List {
    #[default]
    Atomic,
    Set,
    Map(Vec<String>),
}

/// What is checked of a value beside its type.
#[derive(Debug, Default)]
struct Constraints {
    allowed: Option<Vec<Value>>,
    pattern: Option<Arc<Regex>>,
    format: Option<String>,
    minimum: Option<f64>,
    exclusive_minimum: bool,
    maximum: Option<f64>,
    exclusive_maximum: bool,
    multiple_of: Option<f64>,
    min_length: Option<u64>,
    max_length: Option<u64>,
    min_items: Option<u64>,
    max_items: Option<u64>,
    unique_items: bool,
    min_properties: Option<u64>,
    max_properties: Option<u64>,
    all_of: Vec<Node>,
    any_of: Vec<Node>,
    one_of: Vec<Node>,
    not: Option<Box<Node>>,
}

impl Schema {
    /// Reads a schema; `field` is where it stands in the CRD, for errors
    /// (`spec.validation.openAPIV3Schema`).
    ///
    /// # Errors
    /// Everything that is wrong with it: types missing, patterns and rules that do not compile, too deep, too large.
    pub fn parse(schema: &Value, field: &str) -> Result<Self, Vec<FieldError>> {
        let mut parser =
            parse::Parser { patterns: HashMap::new(), errors: Vec::new(), nodes: 0, has_rules: false };
        let root = parser.root(schema, field);
        if parser.errors.is_empty() {
            Ok(Self { root: Arc::new(root), has_rules: parser.has_rules })
        } else {
            Err(parser.errors)
        }
    }

    /// Drops fields that the schema does not know. Returns their paths, sorted, at most 100
    /// (`spec.template.bogus`).
    pub fn prune(&self, object: &mut Value) -> Vec<String> {
        prune::prune(&self.root, object)
    }

    /// Fills in defaults of missing fields, and of fields that are null though they may not be; without a default
    /// those are dropped.
    pub fn default(&self, object: &mut Value) {
        default::fill(&self.root, object);
    }

    /// Checks an object; on updates against the object as it was (`old`), so that rules can compare, and what was
    /// wrong before and is not touched does not stand in the way (ratcheting). Rules are evaluated when all
    /// else is right.
    pub fn validate(&self, object: &Value, old: Option<&Value>) -> Vec<FieldError> {
        let errors = validate::validate(&self.root, object, old);
        if errors.is_empty() && self.has_rules { rules::evaluate(&self.root, object, old) } else { errors }
    }
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Object => "object",
            Self::Array => "array",
            Self::String => "string",
            Self::Integer => "integer",
            Self::Number => "number",
            Self::Boolean => "boolean",
        }
    }
}

impl Node {
    /// The schema of a field of an object; `None`: there is none.
    fn field(&self, name: &str) -> Option<&Node> {
        self.properties.get(name).or(match &self.additional {
            Additional::Schema(node) => Some(node),
            Additional::Any | Additional::No => None,
        })
    }
}

/// The old value that a list item is compared with: the one with the same keys, in lists that are maps.
fn old_items<'a>(node: &Node, old: Option<&'a Value>) -> HashMap<String, &'a Value> {
    let List::Map(keys) = &node.list else { return HashMap::new() };
    let items = old.and_then(Value::as_array).into_iter().flatten();
    items.map(|item| (item_key(keys, item), item)).collect()
}

fn item_key(keys: &[String], item: &Value) -> String {
    let parts: Vec<String> = keys.iter().map(|key| item[key].to_string()).collect();
    parts.join("\n")
}

fn child(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

#[cfg(test)]
mod tests;
