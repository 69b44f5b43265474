//! `/openapi/v3`: enough of each group's document for kubectl to know what the server can do with
//! its objects (`explain`, client-side validation, server-side field validation).

use std::collections::HashMap;
use std::sync::PoisonError;

use apimachinery::Status;
use bytes::Bytes;
use serde_json::{Map, Value, json};

use super::reply::{self, Reply};
use super::{Api, unknown};
use crate::registry::{Kind, Kinds, join};

impl Api {
    /// The index, or the document of one group and version.
    ///
    /// # Errors
    /// 404
    pub fn openapi(&self, path: &str) -> Result<Reply, Status> {
        let kinds = self.registry.kinds();
        let path = path.strip_prefix("/openapi/v3").unwrap_or_default().trim_matches('/');
        if path.is_empty() {
            return Ok(reply::json(200, &index(&kinds)));
        }
        let (group, version) = match path.split('/').collect::<Vec<_>>().as_slice() {
            ["api", version] => (String::new(), (*version).to_owned()),
            ["apis", group, version] => ((*group).to_owned(), (*version).to_owned()),
            _ => return Err(unknown()),
        };
        let of_group: Vec<_> =
            kinds.iter().filter(|kind| kind.group == group && kind.version == version).collect();
        if of_group.is_empty() {
            return Err(unknown());
        }
        let mut documents = self.documents.lock().unwrap_or_else(PoisonError::into_inner);
        let document = documents.of(path, kinds.generation, || document(&of_group).to_string().into());
        Ok(reply::json_bytes(200, document))
    }
}

/// Documents that have been asked for; they change only when kinds come or go.
#[derive(Debug, Default)]
pub struct Documents {
    generation: u64,
    by_path: HashMap<String, Bytes>,
}

impl Documents {
    /// A document of the kinds of a generation; made when it is asked for first.
    pub(super) fn of(&mut self, path: &str, generation: u64, make: impl FnOnce() -> Bytes) -> Bytes {
        if self.generation != generation {
            *self = Self { generation, by_path: HashMap::new() };
        }
        self.by_path.entry(path.to_owned()).or_insert_with(make).clone()
    }
}

fn index(kinds: &Kinds) -> Value {
    let mut paths = Map::new();
    for kind in kinds.iter() {
        let path = if kind.group.is_empty() {
            format!("api/{}", kind.version)
        } else {
            format!("apis/{}/{}", kind.group, kind.version)
        };
        let url = format!("/openapi/v3/{path}?hash={:016X}", kinds.generation);
        paths.insert(path, json!({"serverRelativeURL": url}));
    }
    json!({"paths": paths})
}

pub(super) fn document(kinds: &[&std::sync::Arc<Kind>]) -> Value {
    let mut paths = Map::new();
    let mut schemas = Map::new();
    for kind in kinds {
        let name = schema_name(kind);
        schemas.insert(name.clone(), schema(kind));
        let root = if kind.group.is_empty() {
            format!("/api/{}", kind.version)
        } else {
            format!("/apis/{}", join(&kind.group, &kind.version))
        };
        let scope = if kind.namespaced { "/namespaces/{namespace}" } else { "" };
        let base = format!("{root}{scope}/{}", kind.plural);
        let writes = kind.verbs.names();
        let mut collection = Map::new();
        collection.insert("get".into(), operation(kind, "list", &name, &[]));
        collection.insert(
            "post".into(),
            operation(kind, "post", &name, &["dryRun", "fieldManager", "fieldValidation"]),
        );
        paths.insert(base.clone(), collection.into());
        if writes.contains(&"patch") {
            let mut one = Map::new();
            one.insert("get".into(), operation(kind, "get", &name, &[]));
            let parameters = ["dryRun", "fieldManager", "fieldValidation"];
            one.insert("put".into(), operation(kind, "put", &name, &parameters));
            one.insert(
                "patch".into(),
                operation(kind, "patch", &name, &["dryRun", "fieldManager", "fieldValidation", "force"]),
            );
            one.insert(
                "delete".into(),
                operation(kind, "delete", &name, &["dryRun", "gracePeriodSeconds", "propagationPolicy"]),
            );
            paths.insert(format!("{base}/{{name}}"), one.into());
        }
    }
    json!({"openapi": "3.0.0", "info": {"title": "Kubernetes", "version": "v1.36.2"}, "paths": paths,
        "components": {"schemas": schemas}})
}

/// `io.k8s.api.core.v1.Pod`, `io.kubevirt.v1.VirtualMachine`
fn schema_name(kind: &Kind) -> String {
    let group = if kind.group.is_empty() { "core" } else { kind.group.as_str() };
    let reversed: Vec<&str> = group.split('.').rev().collect();
    if kind.definition().is_some() {
        return format!("{}.{}.{}", reversed.join("."), kind.version, kind.kind);
    }
    let short = group.split('.').next().unwrap_or_default();
    format!("io.k8s.api.{short}.{}.{}", kind.version, kind.kind)
}

fn gvk(kind: &Kind) -> Value {
    json!({"group": kind.group, "version": kind.version, "kind": kind.kind})
}

fn schema(kind: &Kind) -> Value {
    let mut schema = kind.definition().map_or_else(
        || kind.object_type.to_openapi(),
        |definition| with_metadata((*definition.openapi).clone()),
    );
    if !schema.is_object() {
        schema = json!({"type": "object"});
    }
    schema["x-kubernetes-group-version-kind"] = json!([gvk(kind)]);
    schema
}

/// What every custom object has, whether its schema says so or not.
fn with_metadata(mut schema: Value) -> Value {
    if let Some(schema) = schema.as_object_mut() {
        let properties = schema.entry("properties").or_insert_with(|| json!({}));
        properties["apiVersion"] = json!({"type": "string"});
        properties["kind"] = json!({"type": "string"});
        if properties["metadata"].is_null() {
            properties["metadata"] = json!({"type": "object"});
        }
    }
    schema
}

fn operation(kind: &Kind, action: &str, schema: &str, parameters: &[&str]) -> Value {
    let content = json!({"application/json": {"schema": {"$ref": format!("#/components/schemas/{schema}")}}});
    let parameters: Vec<Value> = parameters
        .iter()
        .map(|name| json!({"name": name, "in": "query", "schema": {"type": "string", "uniqueItems": true}}))
        .collect();
    let mut out = json!({
        "operationId": format!("{action}{}{}", kind.version, kind.kind),
        "x-kubernetes-action": action,
        "x-kubernetes-group-version-kind": gvk(kind),
        "parameters": parameters,
        "responses": {"200": {"description": "OK", "content": content}},
    });
    if matches!(action, "post" | "put" | "patch") {
        out["requestBody"] = json!({"content": content, "required": true});
    }
    out
}
