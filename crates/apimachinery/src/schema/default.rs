//! Fills in defaults, and drops what is null though it may not be and has none
//! (`PruneNonNullableNullsWithoutDefaults`).

use std::convert::Infallible;

use crate::tree::{Map, Value};

use super::Node;

pub(super) fn fill(node: &Node, value: &mut Value) {
    if let Some(filled) = filled(node, value) {
        *value = filled;
    }
}

/// What a value becomes; `None`: it stays as it is.
fn filled(node: &Node, value: &Value) -> Option<Value> {
    match value {
        Value::Object(fields) => object(node, fields).map(Value::Object),
        Value::Array(items) => {
            let of = node.items.as_ref()?;
            let Ok(changed) = items.changed(|_, item| Ok::<_, Infallible>(one(of, item)));
            changed.map(Value::Array)
        }
        _ => None,
    }
}

fn object(node: &Node, fields: &Map) -> Option<Map> {
    let mut changes = Vec::new();
    for (name, value) in fields {
        let Some(child) = node.field(name) else { continue };
        let now = one(child, value);
        let stays = child.nullable || !now.as_ref().unwrap_or(value).is_null();
        if !stays || now.is_some() {
            changes.push((name.as_str(), now.filter(|_| stays)));
        }
    }
    let missing = node.properties.iter().filter(|(name, _)| !fields.contains_key(name));
    let mut added = missing.filter_map(|(name, property)| {
        let default = property.default.as_ref()?;
        let value = filled(property, default).unwrap_or_else(|| default.clone());
        (property.nullable || !value.is_null()).then_some((name, value))
    });
    let mut out = fields.changed(changes);
    if let Some(first) = added.next() {
        out.get_or_insert_with(|| fields.clone()).extend(std::iter::once(first).chain(added));
    }
    out
}

/// A value with its default, where it is null and has one, and with those below it.
fn one(node: &Node, value: &Value) -> Option<Value> {
    let default = node.default.as_ref().filter(|_| value.is_null() && !node.nullable);
    filled(node, default.unwrap_or(value)).or_else(|| default.cloned())
}
