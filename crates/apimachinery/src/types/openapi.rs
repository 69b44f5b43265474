//! Types as OpenAPI schemas, for clients that ask what fields a built-in kind has.

use crate::tree::{Map, Value, json};

use super::{ListKind, MapType, Node, ObjectType, Scalar, TypeId, Types};

const QUANTITY: &str = "io.k8s.apimachinery.pkg.api.resource.Quantity";
const INT_OR_STRING: &str = "io.k8s.apimachinery.pkg.util.intstr.IntOrString";

/// The schemas that those of types refer to, by name.
pub fn shared() -> [(&'static str, Value); 2] {
    [
        (QUANTITY, json!({"oneOf": [{"type": "string"}, {"type": "number"}]})),
        (
            INT_OR_STRING,
            json!({"oneOf": [{"type": "integer"}, {"type": "string"}], "format": "int-or-string"}),
        ),
    ]
}

impl ObjectType {
    /// The schema of this type, without descriptions. Types that contain themselves are cut where they repeat;
    /// quantities and the like are references to [`shared`].
    pub fn to_openapi(&self) -> Value {
        schema(&self.types, self.root, &mut Vec::new())
    }
}

fn schema(types: &Types, id: TypeId, path: &mut Vec<TypeId>) -> Value {
    if path.contains(&id) {
        return json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
    }
    path.push(id);
    let schema = match types.node(id) {
        Node::Scalar(scalar) => of_scalar(*scalar),
        Node::Any => json!({"x-kubernetes-preserve-unknown-fields": true}),
        Node::List(list) => {
            let mut out = json!({"type": "array", "items": schema(types, list.item, path)});
            match &list.kind {
                ListKind::Atomic => out["x-kubernetes-list-type"] = "atomic".into(),
                ListKind::Set => out["x-kubernetes-list-type"] = "set".into(),
                ListKind::Map(keys) => {
                    out["x-kubernetes-list-type"] = "map".into();
                    out["x-kubernetes-list-map-keys"] = keys.iter().map(|(key, _)| key.clone()).collect();
                }
            }
            out
        }
        Node::Map(map) => of_map(types, map, path),
    };
    path.pop();
    schema
}

fn of_map(types: &Types, map: &MapType, path: &mut Vec<TypeId>) -> Value {
    let mut out = json!({"type": "object"});
    if !map.fields.is_empty() {
        let mut properties = Map::new();
        for (name, field) in &map.fields {
            let mut property = schema(types, field.ty, path);
            if let Some(key) = &field.merge_key {
                property["x-kubernetes-patch-strategy"] = "merge".into();
                if !key.is_empty() {
                    property["x-kubernetes-patch-merge-key"] = key.as_str().into();
                }
            }
            properties.insert(name.into(), property);
        }
        out["properties"] = properties.into();
    }
    if let Some(extra) = map.extra {
        out["additionalProperties"] = schema(types, extra, path);
    }
    if map.atomic {
        out["x-kubernetes-map-type"] = "atomic".into();
    }
    out
}

fn of_scalar(scalar: Scalar) -> Value {
    match scalar {
        Scalar::String => json!({"type": "string"}),
        Scalar::Integer => json!({"type": "integer"}),
        Scalar::Number => json!({"type": "number"}),
        Scalar::Boolean => json!({"type": "boolean"}),
        Scalar::Time => json!({"type": "string", "format": "date-time"}),
        // By their names, which kubectl shows.
        Scalar::Quantity => json!({"$ref": format!("#/components/schemas/{QUANTITY}")}),
        Scalar::IntOrString => json!({"$ref": format!("#/components/schemas/{INT_OR_STRING}")}),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_has_its_fields_and_merge_keys() {
        let pod = ObjectType::builtin("v1", "Pod").unwrap().to_openapi();
        let containers = &pod["properties"]["spec"]["properties"]["containers"];
        assert_eq!(containers["x-kubernetes-list-map-keys"], json!(["name"]));
        assert_eq!(containers["x-kubernetes-patch-merge-key"], "name");
        let container = &containers["items"]["properties"];
        assert_eq!(container["image"], json!({"type": "string"}));
        let limit = container["resources"]["properties"]["limits"]["additionalProperties"]["$ref"].as_str();
        let name = limit.and_then(|reference| reference.strip_prefix("#/components/schemas/"));
        assert!(shared().iter().any(|(shared, _)| Some(*shared) == name), "{limit:?}");
    }

    #[test]
    fn types_that_contain_themselves_end() {
        let definition = ObjectType::builtin("apiextensions.k8s.io/v1", "CustomResourceDefinition").unwrap();
        assert!(definition.to_openapi().to_string().len() < 1 << 20);
    }
}
