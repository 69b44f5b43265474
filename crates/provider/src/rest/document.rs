//! The OpenAPI 3.1 document, made from the table of routes.

use axum::Json;
use axum::routing::get;
use serde_json::{Map, Value, json};

use super::routes::{self, Route, read};
use super::schemas::schemas;

/// What is served here.
pub(super) const ROUTES: &[Route] =
    &[Route { open: true, ..read("/openapi.json", "openapi", "This document", "Any", || get(serve)) }];

/// `GET /openapi.json`
pub(super) async fn serve() -> Json<Value> {
    Json(openapi())
}

/// The document.
pub fn openapi() -> Value {
    let mut paths: Map<String, Value> = Map::new();
    for route in routes::all() {
        let path = paths.entry(route.path).or_insert_with(|| json!({}));
        path[route.method] = operation(route);
    }
    json!({
        "openapi": "3.1.0",
        "info": {"title": "virt-steward", "version": env!("CARGO_PKG_VERSION"), "license": {"name": "Apache-2.0"},
            "description": "Operations on KubeVirt's virtual machines, under the caller's own Kubernetes identity."},
        "servers": [{"url": "http://127.0.0.1:8765", "description": "`virt-steward serve` on this machine"}],
        "security": [{"bearer": []}, {}],
        "paths": paths,
        "components": {
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer",
                "description": "A token of the cluster. Without one, a service on loopback acts as its kubeconfig says."}},
            "schemas": schemas(),
        },
    })
}

fn operation(route: &Route) -> Value {
    let reference = |schema: &str| match schema {
        "Any" => json!({"type": "object"}),
        schema => json!({"$ref": format!("#/components/schemas/{schema}")}),
    };
    let (status, schema) = route.answer;
    let mut responses = json!({"default": {"description": "It was not done",
        "content": {"application/problem+json": {"schema": reference("Problem")}}}});
    let mut answer = json!({"description": "It is done, or was taken"});
    match route.kind {
        "" => answer["description"] = "The connection is a WebSocket now".into(),
        "image/png" | "text/html" => answer["content"] = json!({route.kind: {}}),
        kind => answer["content"] = json!({kind: {"schema": reference(schema)}}),
    }
    responses[status.to_string()] = answer.clone();
    if status == 202 {
        // dryRun, and wait where there is one
        responses["200"] = answer;
    }
    let mut parameters: Vec<Value> = route
        .path
        .split('/')
        .filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'))
        .map(|name| {
            let schema = match name {
                "port" => json!({"type": "integer", "minimum": 1, "maximum": 65535}),
                "name" => json!({"type": "string", "minLength": 1, "maxLength": 253}),
                _ => json!({"type": "string", "minLength": 1, "maxLength": 63}),
            };
            let mut parameter = json!({"name": name, "in": "path", "required": true, "schema": schema});
            // what `.ci/run contract` makes, so that it gets to the VM itself
            let known = [("namespace", "default"), ("name", "web"), ("nic", "default"), ("volume", "root")];
            if let Some((_, example)) = known.iter().find(|(known, _)| *known == name) {
                parameter["example"] = (*example).into();
            }
            parameter
        })
        .collect();
    parameters.extend(
        route.query.iter().map(|(name, kind)| json!({"name": name, "in": "query", "schema": {"type": kind}})),
    );
    let mut operation = json!({"operationId": route.name, "summary": route.summary, "responses": responses});
    if !parameters.is_empty() {
        operation["parameters"] = parameters.into();
    }
    if route.open {
        operation["security"] = json!([{}]);
    }
    if let Some(body) = route.body {
        // a body that must say something is required; the others read as empty objects when they are absent
        let required = matches!(body, "Any" | "JobFile")
            || schemas().pointer(&format!("/{body}/required/0")).is_some_and(Value::is_string);
        operation["requestBody"] =
            json!({"required": required, "content": {"application/json": {"schema": reference(body)}}});
    }
    operation
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The committed document is this one. `UPDATE_OPENAPI=1 cargo test -p provider` writes it.
    #[test]
    fn the_committed_document_is_this_one() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/openapi.json");
        let now = format!("{:#}\n", openapi());
        if std::env::var_os("UPDATE_OPENAPI").is_some() {
            std::fs::write(path, &now).unwrap();
        }
        let committed = std::fs::read_to_string(path).unwrap();
        assert!(committed == now, "docs/openapi.json has drifted: UPDATE_OPENAPI=1 cargo test -p provider");
    }

    #[test]
    fn every_write_can_be_tried_first() {
        let schemas = schemas();
        for route in routes::all().filter(|route| route.writes) {
            let in_query = route.query.iter().any(|(name, _)| *name == "dryRun");
            let body = format!("/{}/properties/dryRun", route.body.unwrap_or_default());
            assert_ne!(in_query, schemas.pointer(&body).is_some(), "{}", route.path);
        }
    }

    #[test]
    fn every_reference_leads_somewhere() {
        let document = openapi();
        let text = document.to_string();
        for reference in text.split("\"$ref\":\"").skip(1) {
            let (pointer, _) = reference.split_once('"').unwrap();
            assert!(document.pointer(pointer.trim_start_matches('#')).is_some(), "{pointer}");
        }
        let names: std::collections::BTreeSet<&str> = routes::all().map(|route| route.name).collect();
        assert_eq!(names.len(), routes::all().count());
    }
}
