//! Decoding into a Go struct and encoding again, as the API server does with every object of a built-in kind.

use crate::tree::{Map, Value};

use super::{MapType, Node, Scalar, TypeId, Types};
use crate::quantity;

/// What Go's decoder says (`resource.ErrFormatWrong`).
const NO_QUANTITY: &str =
    "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'";

/// More unknown fields than this are not listed.
const MAX_UNKNOWN: usize = 100;

/// The value of a type with nothing set.
pub(super) fn empty(types: &Types, id: TypeId) -> Value {
    match types.node(id) {
        Node::Map(map) if !map.fields.is_empty() => absent(types, map, &Map::new()).collect(),
        Node::Scalar(Scalar::String) => "".into(),
        Node::Scalar(Scalar::Integer | Scalar::Number | Scalar::IntOrString) => 0.into(),
        Node::Scalar(Scalar::Boolean) => false.into(),
        Node::Scalar(Scalar::Quantity) => "0".into(),
        Node::Scalar(Scalar::Time) | Node::Any | Node::List(_) | Node::Map(_) => Value::Null,
    }
}

/// What is always written and is not there, with nothing set.
fn absent<'a>(types: &'a Types, map: &'a MapType, there: &'a Map) -> impl Iterator<Item = (&'a str, Value)> {
    let absent = map.fields.iter().filter(|(name, field)| field.always && !there.contains_key(name));
    absent.map(|(name, field)| (name.as_str(), empty(types, field.ty)))
}

pub(super) fn normalize(types: &Types, root: TypeId, object: &mut Value) -> Result<Vec<String>, String> {
    let mut walk = Walk { types, unknown: Vec::new() };
    if let Some(normal) = walk.value(root, object, &Path::Root)? {
        *object = normal;
    }
    walk.unknown.sort();
    Ok(walk.unknown)
}

/// The way from the root to a value; written out only where there is something to say about it.
enum Path<'a> {
    Root,
    Field(&'a Path<'a>, &'a str),
    Item(&'a Path<'a>, usize),
}

impl std::fmt::Display for Path<'_> {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Root => Ok(()),
            Self::Field(Self::Root, name) => out.write_str(name),
            Self::Field(parent, name) => write!(out, "{parent}.{name}"),
            Self::Item(parent, index) => write!(out, "{parent}[{index}]"),
        }
    }
}

struct Walk<'a> {
    types: &'a Types,
    unknown: Vec<String>,
}

impl Walk<'_> {
    /// What a value becomes; `None`: it stays as it is, and shared with whoever shares it.
    fn value(&mut self, id: TypeId, value: &Value, path: &Path<'_>) -> Result<Option<Value>, String> {
        let types = self.types;
        match (types.node(id), value) {
            (Node::Any, _) | (_, Value::Null) => Ok(None),
            (Node::Scalar(Scalar::Quantity), value) if fits(Scalar::Quantity, value) => {
                let canonical = quantity::canonical(value).ok_or(NO_QUANTITY)?;
                Ok((*value != canonical.as_str()).then(|| canonical.into()))
            }
            (Node::Scalar(scalar), value) if fits(*scalar, value) => Ok(None),
            (Node::List(list), Value::Array(items)) => {
                let changed =
                    items.changed(|index, item| self.value(list.item, item, &Path::Item(path, index)))?;
                Ok(changed.map(Value::Array))
            }
            (Node::Map(map), Value::Object(fields)) => Ok(self.map(map, fields, path)?.map(Value::Object)),
            (node, value) => Err(format!(
                "json: cannot unmarshal {} into Go struct field {path} of type {}",
                json_type(value),
                go_type(node)
            )),
        }
    }

    fn map(&mut self, map: &MapType, fields: &Map, path: &Path<'_>) -> Result<Option<Map>, String> {
        let mut changes = Vec::new();
        for (name, value) in fields {
            let here = Path::Field(path, name);
            let Some(ty) = map.field(name) else {
                if self.unknown.len() < MAX_UNKNOWN {
                    self.unknown.push(here.to_string());
                }
                changes.push((name.as_str(), None));
                continue;
            };
            let field = map.fields.get(name.as_str());
            let mut changed = self.value(ty, value, &here)?;
            if value.is_null() && field.is_some_and(|field| field.always) {
                // a struct or scalar that is always written
                changed = Some(empty(self.types, ty));
            }
            let now = changed.as_ref().unwrap_or(value);
            let stays = field.is_none_or(|field| field.always || (field.pointer && !now.is_null()))
                || !is_empty(self.types.node(ty), now);
            if !stays || changed.is_some() {
                changes.push((name, changed.filter(|_| stays)));
            }
        }
        let mut absent = absent(self.types, map, fields).peekable();
        let mut out = fields.changed(changes);
        if absent.peek().is_some() {
            out.get_or_insert_with(|| fields.clone()).extend(absent);
        }
        Ok(out)
    }
}

fn is_empty(node: &Node, value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(bool) => !bool,
        Value::Number(number) => number.as_f64() == Some(0.0) && !matches!(node, Node::Any),
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(fields) => fields.is_empty(),
    }
}

fn fits(scalar: Scalar, value: &Value) -> bool {
    match scalar {
        Scalar::String | Scalar::Time => value.is_string(),
        Scalar::Integer => value.is_i64() || value.is_u64(),
        Scalar::Number => value.is_number(),
        Scalar::Boolean => value.is_boolean(),
        Scalar::Quantity | Scalar::IntOrString => value.is_string() || value.is_number(),
    }
}

fn json_type(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

fn go_type(node: &Node) -> &'static str {
    match node {
        Node::Scalar(Scalar::Integer) => "int64",
        Node::Scalar(Scalar::Number) => "float64",
        Node::Scalar(Scalar::Boolean) => "bool",
        Node::Scalar(_) => "string",
        Node::List(_) => "[]interface {}",
        Node::Any | Node::Map(_) => "map[string]interface {}",
    }
}
