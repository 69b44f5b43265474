//! Fills in defaults, and drops what is null though it may not be and has none
//! (`PruneNonNullableNullsWithoutDefaults`).

use crate::tree::Value;

use super::{Additional, Node};

pub(super) fn fill(node: &Node, value: &mut Value) {
    match value {
        Value::Object(fields) => {
            for (name, property) in &node.properties {
                let Some(default) = &property.default else { continue };
                let missing = fields.get(name).is_none_or(|value| value.is_null() && !property.nullable);
                if missing {
                    fields.insert(name.into(), default.clone());
                }
            }
            if let Additional::Schema(extra) = &node.additional
                && let Some(default) = extra.default.as_ref().filter(|_| !extra.nullable)
            {
                let listed = |name: &str| node.properties.contains_key(name);
                let nulls = fields.iter_mut().filter(|(name, value)| value.is_null() && !listed(name));
                nulls.for_each(|(_, value)| *value = default.clone());
            }
            fields.retain(|name, value| {
                let Some(child) = node.field(name) else { return true };
                fill(child, value);
                child.nullable || !value.is_null()
            });
        }
        Value::Array(items) => {
            let Some(of) = &node.items else { return };
            for item in items {
                if let Some(default) = of.default.as_ref().filter(|_| item.is_null() && !of.nullable) {
                    *item = default.clone();
                }
                fill(of, item);
            }
        }
        _ => {}
    }
}
