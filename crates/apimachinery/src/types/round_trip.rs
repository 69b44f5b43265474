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
        Node::Map(map) if !map.fields.is_empty() => {
            let mut fields = Map::new();
            fill(types, map, &mut fields);
            Value::Object(fields)
        }
        Node::Scalar(Scalar::String) => "".into(),
        Node::Scalar(Scalar::Integer | Scalar::Number | Scalar::IntOrString) => 0.into(),
        Node::Scalar(Scalar::Boolean) => false.into(),
        Node::Scalar(Scalar::Quantity) => "0".into(),
        Node::Scalar(Scalar::Time) | Node::Any | Node::List(_) | Node::Map(_) => Value::Null,
    }
}

fn fill(types: &Types, map: &MapType, fields: &mut Map) {
    for (name, field) in &map.fields {
        if field.always && !fields.contains_key(name) {
            fields.insert(name.into(), empty(types, field.ty));
        }
    }
}

pub(super) fn normalize(types: &Types, root: TypeId, object: &mut Value) -> Result<Vec<String>, String> {
    let mut walk = Walk { types, unknown: Vec::new() };
    walk.value(root, object, &Path::Root)?;
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
    fn value(&mut self, id: TypeId, value: &mut Value, path: &Path<'_>) -> Result<(), String> {
        let types = self.types;
        match (types.node(id), value) {
            (Node::Any, _) | (_, Value::Null) => Ok(()),
            (Node::Scalar(Scalar::Quantity), value) if fits(Scalar::Quantity, value) => {
                let canonical = quantity::canonical(value).ok_or(NO_QUANTITY)?;
                if *value != canonical.as_str() {
                    *value = canonical.into();
                }
                Ok(())
            }
            (Node::Scalar(scalar), value) if fits(*scalar, value) => Ok(()),
            (Node::List(list), Value::Array(items)) => {
                let mut numbered = items.iter_mut().enumerate();
                numbered.try_for_each(|(index, item)| self.value(list.item, item, &Path::Item(path, index)))
            }
            (Node::Map(map), Value::Object(fields)) => self.map(map, fields, path),
            (node, value) => Err(format!(
                "json: cannot unmarshal {} into Go struct field {path} of type {}",
                json_type(value),
                go_type(node)
            )),
        }
    }

    fn map(&mut self, map: &MapType, fields: &mut Map, path: &Path<'_>) -> Result<(), String> {
        let mut wrong = None;
        fields.retain(|name, value| {
            if wrong.is_some() {
                return true;
            }
            let here = Path::Field(path, name);
            let Some(ty) = map.field(name) else {
                if self.unknown.len() < MAX_UNKNOWN {
                    self.unknown.push(here.to_string());
                }
                return false;
            };
            if let Err(why) = self.value(ty, value, &here) {
                wrong = Some(why);
                return true;
            }
            let field = map.fields.get(name.as_str());
            field.is_none_or(|field| field.always || (field.pointer && !value.is_null()))
                || !is_empty(self.types.node(ty), value)
        });
        if let Some(why) = wrong {
            return Err(why);
        }
        fill(self.types, map, fields);
        for (name, field) in map.fields.iter().filter(|(_, field)| field.always) {
            // null where a struct or scalar is always written
            if let Some(value) = fields.get_mut(name).filter(|value| value.is_null()) {
                *value = empty(self.types, field.ty);
            }
        }
        Ok(())
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
