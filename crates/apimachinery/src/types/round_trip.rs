//! Decoding into a Go struct and encoding again, as the API server does with every object of a built-in kind.

use serde_json::{Map, Value};

use super::{MapType, Node, Scalar, TypeId, Types};

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

fn fill(types: &Types, map: &MapType, fields: &mut Map<String, Value>) {
    for (name, field) in &map.fields {
        if field.always && !fields.contains_key(name) {
            fields.insert(name.clone(), empty(types, field.ty));
        }
    }
}

pub(super) fn normalize(types: &Types, root: TypeId, object: &mut Value) -> Result<Vec<String>, String> {
    let mut walk = Walk { types, unknown: Vec::new(), path: Vec::new() };
    walk.value(root, object)?;
    walk.unknown.sort();
    Ok(walk.unknown)
}

struct Walk<'a> {
    types: &'a Types,
    unknown: Vec<String>,
    /// `.name` and `[0]` from the root
    path: Vec<String>,
}

impl Walk<'_> {
    fn value(&mut self, id: TypeId, value: &mut Value) -> Result<(), String> {
        let types = self.types;
        match (types.node(id), value) {
            (Node::Any, _) | (_, Value::Null) => Ok(()),
            (Node::Scalar(scalar), value) if fits(*scalar, value) => Ok(()),
            (Node::List(list), Value::Array(items)) => {
                for (index, item) in items.iter_mut().enumerate() {
                    self.path.push(format!("[{index}]"));
                    self.value(list.item, item)?;
                    self.path.pop();
                }
                Ok(())
            }
            (Node::Map(map), Value::Object(fields)) => self.map(map, fields),
            (node, value) => Err(format!(
                "json: cannot unmarshal {} into Go struct field {} of type {}",
                json_type(value),
                self.path.concat().trim_start_matches('.'),
                go_type(node)
            )),
        }
    }

    fn map(&mut self, map: &MapType, fields: &mut Map<String, Value>) -> Result<(), String> {
        let names: Vec<String> = fields.keys().cloned().collect();
        for name in names {
            let Some(ty) = map.field(&name) else {
                fields.remove(&name);
                if self.unknown.len() < MAX_UNKNOWN {
                    self.unknown
                        .push(format!("{}.{name}", self.path.concat()).trim_start_matches('.').to_owned());
                }
                continue;
            };
            let Some(value) = fields.get_mut(&name) else { continue };
            self.path.push(format!(".{name}"));
            self.value(ty, value)?;
            self.path.pop();
            let field = map.fields.get(&name);
            let keep = field.is_none_or(|field| field.always || (field.pointer && !value.is_null()));
            if !keep && is_empty(self.types.node(ty), value) {
                fields.remove(&name);
            }
        }
        fill(self.types, map, fields);
        for (name, field) in &map.fields {
            // null where a struct or scalar is always written
            if let Some(value) = fields.get_mut(name).filter(|value| value.is_null() && field.always) {
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
