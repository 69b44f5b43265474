//! The OpenAPI 3.1 document, made from the table of routes.

use axum::Json;
use serde_json::{Map, Value, json};

use super::routes::{ROUTES, Route};
use crate::error::KINDS;

/// `GET /openapi.json`
pub(super) async fn serve() -> Json<Value> {
    Json(openapi())
}

/// The document.
pub fn openapi() -> Value {
    let mut paths: Map<String, Value> = Map::new();
    for route in &ROUTES {
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
    let kind = if route.name == "watchVms" { "text/event-stream" } else { "application/json" };
    let mut responses = json!({"default": {"description": "It was not done",
        "content": {"application/problem+json": {"schema": reference("Problem")}}}});
    let answer =
        json!({"description": "It is done, or was taken", "content": {kind: {"schema": reference(schema)}}});
    responses[status.to_string()] = answer.clone();
    if status == 202 && route.name != "createVm" {
        // dryRun, and wait where there is one
        responses["200"] = answer;
    }
    let mut parameters: Vec<Value> = route
        .path
        .split('/')
        .filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'))
        .map(|name| {
            let longest = if name == "namespace" { 63 } else { 253 };
            json!({"name": name, "in": "path", "required": true,
                "schema": {"type": "string", "minLength": 1, "maxLength": longest}})
        })
        .collect();
    let text = |name: &str| json!({"name": name, "in": "query", "schema": {"type": "string"}});
    let flag = |name: &str| json!({"name": name, "in": "query", "schema": {"type": "boolean"}});
    match route.name {
        "capabilities" | "usage" => parameters.extend([text("namespace"), flag("allNamespaces")]),
        "watchVms" => parameters.extend([text("namespace"), flag("allNamespaces"), text("labelSelector")]),
        _ => {}
    }
    let mut operation = json!({"operationId": route.name, "summary": route.summary, "responses": responses});
    if !parameters.is_empty() {
        operation["parameters"] = parameters.into();
    }
    if route.open {
        operation["security"] = json!([{}]);
    }
    if let Some(body) = route.body {
        let required = matches!(body, "Any" | "RestoreRequest" | "CloneRequest" | "JobFile" | "JobCancel");
        operation["requestBody"] =
            json!({"required": required, "content": {"application/json": {"schema": reference(body)}}});
    }
    operation
}

fn object(required: &[&str], properties: Value) -> Value {
    let mut schema = json!({"type": "object", "required": required});
    schema["properties"] = properties;
    schema
}

/// A body: nothing but what is named is taken.
fn body(required: &[&str], properties: Value) -> Value {
    let mut schema = object(required, properties);
    schema["additionalProperties"] = false.into();
    schema
}

fn schemas() -> Value {
    let text = || json!({"type": "string"});
    let flag = || json!({"type": "boolean"});
    let count = || json!({"type": "integer", "minimum": 0});
    let texts = || json!({"type": "array", "items": {"type": "string"}});
    let list = |of: &str| {
        object(
            &["items"],
            json!({"items": {"type": "array", "items": {"$ref": format!("#/components/schemas/{of}")}}}),
        )
    };
    let objects = || json!({"type": "array", "items": {"type": "object"}});
    let waiting = |more: &[(&str, Value)]| {
        let mut properties = json!({"dryRun": flag(), "wait": flag(),
            "timeoutSeconds": {"type": "integer", "minimum": 0, "maximum": 300, "default": 60}});
        for (name, schema) in more {
            properties[*name] = schema.clone();
        }
        body(&[], properties)
    };
    let codes: Vec<&str> = KINDS.iter().map(|kind| kind.code()).collect();
    let vm = json!({"namespace": text(), "name": text(), "status": text(), "runStrategy": text(), "ready": flag(),
        "node": text(), "addresses": texts(), "vcpus": count(), "memoryBytes": count(), "migratable": flag(),
        "agentConnected": flag(), "guestOs": text(), "created": text(), "notes": texts()});
    let mut detail = vm.clone();
    for (name, schema) in [
        ("uid", text()),
        ("instancetype", text()),
        ("preference", text()),
        ("launcher", text()),
        ("disks", objects()),
        ("interfaces", objects()),
        ("conditions", objects()),
        ("migrationBlockers", objects()),
        ("events", objects()),
    ] {
        detail[name] = schema;
    }
    let of_vm = [
        "namespace",
        "name",
        "status",
        "runStrategy",
        "ready",
        "addresses",
        "agentConnected",
        "created",
        "notes",
    ];
    json!({
        "Problem": object(&["type", "code", "title", "status", "detail", "remedy"], json!({"type": text(),
            "code": {"type": "string", "enum": codes}, "title": text(), "status": {"type": "integer"},
            "detail": text(), "remedy": text()})),
        "Health": object(&["status"], json!({"status": text()})),
        "Status": object(&["program", "started", "kubernetes", "namespace"],
            json!({"program": text(), "started": text(), "kubernetes": text(), "namespace": text()})),
        "Capabilities": object(&["kubernetes", "gates", "apis", "storage", "nodes", "permissions", "missing"],
            json!({"kubernetes": text(), "kubevirt": {"type": "object"}, "gates": objects(), "apis": objects(),
                "cdi": text(), "storage": objects(), "nodes": objects(), "permissions": objects(),
                "missing": texts()})),
        "Usage": object(&["namespace", "name", "pod", "cpuMilli", "memoryBytes", "measured", "window", "source"],
            json!({"namespace": text(), "name": text(), "pod": text(), "cpuMilli": count(), "memoryBytes": count(),
                "measured": text(), "window": text(), "source": text()})),
        "UsageList": list("Usage"),
        "Vm": object(&of_vm, vm),
        "VmList": list("Vm"),
        "VmDetail": object(&of_vm, detail),
        "Change": object(&["type", "vm"], json!({"type": {"type": "string", "enum": ["updated", "removed"]},
            "vm": {"$ref": "#/components/schemas/Vm"}})),
        "ListRequest": body(&[], json!({"namespace": text(), "allNamespaces": flag(), "labelSelector": text(),
            "name": text(), "status": texts(), "node": text(),
            "sortBy": {"type": "string", "enum": ["name", "status", "node", "age", "cpu", "memory"]}})),
        "Done": object(&["namespace", "name", "operation", "dryRun"],
            json!({"namespace": text(), "name": text(), "operation": text(), "dryRun": flag()})),
        "OrderRequest": waiting(&[]),
        "StartRequest": waiting(&[("paused", flag())]),
        "StopRequest": waiting(&[("gracePeriodSeconds", json!({"type": "integer", "minimum": 0, "maximum": u32::MAX}))]),
        "RestartRequest": waiting(&[("force", flag())]),
        "MigrateRequest": waiting(&[("node", text())]),
        "Migration": object(&["namespace", "name", "vm", "phase", "created"], json!({"namespace": text(),
            "name": text(), "vm": text(), "phase": text(), "source": text(), "target": text(), "failure": text(),
            "created": text()})),
        "SnapshotRequest": waiting(&[("name", text())]),
        "Snapshot": object(&["namespace", "name", "vm", "phase", "ready", "included", "excluded", "indications", "created"],
            json!({"namespace": text(), "name": text(), "vm": text(), "phase": text(), "ready": flag(),
                "included": texts(), "excluded": texts(), "indications": texts(), "error": text(), "created": text()})),
        "SnapshotList": list("Snapshot"),
        "RestoreRequest": body(&["snapshot"], json!({"snapshot": text(), "stop": flag(), "dryRun": flag()})),
        "CloneRequest": body(&["target"], json!({"target": text(), "dryRun": flag()})),
        "Underway": object(&["namespace", "name", "vm"], json!({"namespace": text(), "name": text(), "vm": text()})),
        "DeleteRequest": body(&[], json!({"dryRun": flag(),
            "disks": {"type": "string", "enum": ["with-vm", "keep", "all"], "default": "with-vm"}})),
        "JobFile": json!({"oneOf": [{"$ref": "#/components/schemas/JobRequest"},
            {"type": "array", "minItems": 1, "maxItems": 500, "items": {"$ref": "#/components/schemas/JobRequest"}},
            {"type": "object", "required": ["jobs"], "additionalProperties": false, "properties": {"jobs":
                {"type": "array", "minItems": 1, "maxItems": 500,
                    "items": {"$ref": "#/components/schemas/JobRequest"}}}}]}),
        "JobRequest": object(&["output_dir"], json!({"vm_path": text(), "output_dir": text(), "provider": text(),
            "format": {"type": "string", "enum": ["raw", "qcow2", "vmdk", "ova", "ovf"]}, "name": text(),
            "metadata": {"type": "object"}, "options": {"type": "object"}})),
        "Submitted": object(&["job_ids", "accepted", "rejected", "errors", "timestamp"], json!({"job_ids": texts(),
            "accepted": count(), "rejected": count(), "errors": objects(), "timestamp": text()})),
        "JobQuery": body(&[], json!({"job_ids": texts(), "status": texts(), "namespace": text(), "all": flag(),
            "limit": count()})),
        "Job": object(&["id", "namespace", "name", "status", "source", "destination", "format", "progress", "exports",
            "created"], json!({"id": text(), "namespace": text(), "name": text(),
            "status": {"type": "string",
                "enum": ["pending", "running", "completed", "failed", "cancelled", "scheduled"]},
            "source": {"type": "object"}, "destination": {"type": "object"}, "format": text(), "schedule": text(),
            "progress": {"type": "object"}, "exports": {"type": "object"}, "message": text(), "created": text(),
            "completed": text(), "next": text()})),
        "JobList": object(&["jobs", "total"], json!({"total": count(),
            "jobs": {"type": "array", "items": {"$ref": "#/components/schemas/Job"}}})),
        "JobCancel": body(&["job_ids"], json!({"job_ids": texts()})),
        "Cancelled": object(&["cancelled", "errors"], json!({"cancelled": texts(), "errors": objects()})),
        "JobProgress": object(&["id", "status", "progress", "exports"], json!({"id": text(), "status": text(),
            "progress": {"type": "object"}, "exports": {"type": "object"}})),
        "JobLogs": object(&["id", "logs"], json!({"id": text(), "logs": objects()})),
        "DeletePlan": object(&["uid", "resourceVersion", "orphan", "disks"],
            json!({"uid": text(), "resourceVersion": text(), "orphan": flag(), "disks": objects()})),
    })
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
    fn every_reference_leads_somewhere() {
        let document = openapi();
        let text = document.to_string();
        for reference in text.split("\"$ref\":\"").skip(1) {
            let (pointer, _) = reference.split_once('"').unwrap();
            assert!(document.pointer(pointer.trim_start_matches('#')).is_some(), "{pointer}");
        }
        let names: std::collections::BTreeSet<&str> = ROUTES.iter().map(|route| route.name).collect();
        assert_eq!(names.len(), ROUTES.len());
    }
}
