//! Types from the structural schemas of CRDs.

use std::sync::Arc;

use crate::tree::Value;

use super::{Field, ListKind, ListType, MapType, Node, ObjectType, Scalar, TypeId, Types, table};
use crate::depth::MAX_DEPTH;

/// The type of a custom kind. `null`: everything but the metadata is deduced.
pub(super) fn object_type(schema: &Value) -> ObjectType {
    let (mut types, metadata) = table::metadata();
    let node = if schema.is_object() { convert(&mut types, schema, MAX_DEPTH) } else { Node::Any };
    let mut map = match node {
        Node::Map(map) => map,
        _ => MapType { extra: Some(types.add(Node::Any)), ..MapType::default() },
    };
    map.atomic = false;
    for (name, ty) in
        [("metadata", metadata), ("apiVersion", scalar(&mut types)), ("kind", scalar(&mut types))]
    {
        map.fields.insert(name.into(), field(ty));
    }
    let root = types.add(Node::Map(map));
    ObjectType { types: Arc::new(types), root, builtin: false }
}

fn scalar(types: &mut Types) -> TypeId {
    types.add(Node::Scalar(Scalar::String))
}

fn field(ty: TypeId) -> Field {
    Field { ty, always: false, pointer: false, merge_key: None }
}

fn convert(types: &mut Types, schema: &Value, depth: usize) -> Node {
    let Some(deeper) = depth.checked_sub(1) else { return Node::Any };
    let flag = |name: &str| schema[name] == true;
    if flag("x-kubernetes-int-or-string") {
        return Node::Scalar(Scalar::IntOrString);
    }
    if flag("x-kubernetes-embedded-resource") && schema["properties"].is_null() {
        return Node::Any;
    }
    match schema["type"].as_str() {
        Some("array") => {
            let item = convert(types, &schema["items"], deeper);
            let item = types.add(item);
            Node::List(ListType { item, kind: list_kind(schema) })
        }
        Some("object") => {
            let mut map =
                MapType { atomic: schema["x-kubernetes-map-type"] == "atomic", ..MapType::default() };
            for (name, property) in schema["properties"].as_object().into_iter().flatten() {
                let node = convert(types, property, deeper);
                let ty = types.add(node);
                map.fields.insert(name.to_string(), field(ty));
            }
            let extra = match &schema["additionalProperties"] {
                Value::Object(_) => Some(convert(types, &schema["additionalProperties"], deeper)),
                Value::Bool(true) => Some(Node::Any),
                _ if flag("x-kubernetes-preserve-unknown-fields") || map.fields.is_empty() => Some(Node::Any),
                _ => None,
            };
            map.extra = extra.map(|node| types.add(node));
            Node::Map(map)
        }
        Some("string") => Node::Scalar(Scalar::String),
        Some("integer") => Node::Scalar(Scalar::Integer),
        Some("number") => Node::Scalar(Scalar::Number),
        Some("boolean") => Node::Scalar(Scalar::Boolean),
        _ => Node::Any,
    }
}

fn list_kind(schema: &Value) -> ListKind {
    match schema["x-kubernetes-list-type"].as_str() {
        Some("set") => ListKind::Set,
        Some("map") => {
            let defaults = &schema["items"]["properties"];
            let keys = schema["x-kubernetes-list-map-keys"].as_array().into_iter().flatten();
            let key = |key: &str| (key.to_owned(), defaults[key]["default"].as_str().map(str::to_owned));
            ListKind::Map(keys.filter_map(Value::as_str).map(key).collect())
        }
        _ => ListKind::Atomic,
    }
}
