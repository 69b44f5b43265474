use apimachinery::tree::Text;
use http::header::CONTENT_TYPE;

use super::*;
use crate::registry::{Registry, kubevirt};
use crate::sim::Release;

/// Everything that a sandbox serves.
fn kinds() -> Arc<Kinds> {
    let registry = Registry::new();
    for definition in kubevirt::definitions(Release::default()).unwrap() {
        registry.define(&definition).unwrap();
    }
    registry.kinds()
}

fn of_group(group: &str, version: &str) -> Value {
    let kinds = kinds();
    let kinds: Vec<_> = kinds.iter().filter(|kind| kind.group == group && kind.version == version).collect();
    document(&kinds)
}

pub(super) fn everything() -> Value {
    let kinds = kinds();
    document(&kinds.iter().collect::<Vec<_>>())
}

fn keys(value: &Value) -> Vec<&str> {
    value.as_object().unwrap().keys().map(Text::as_str).collect()
}

/// What kubectl does to find out about a kind: the first path whose `PATCH` is of it.
fn patch_of<'a>(document: &'a Value, gvk: &Value) -> Vec<&'a Value> {
    let items = document["paths"].as_object().unwrap().values();
    items
        .map(|item| &item["patch"])
        .filter(|patch| patch["x-kubernetes-group-version-kind"] == *gvk)
        .collect()
}

#[test]
fn every_kind_that_can_be_patched_says_which_patches_it_takes_and_that_fields_are_checked() {
    let kinds = kinds();
    let patched = kinds.iter().filter(|kind| kind.verbs.names().contains(&"patch"));
    for kind in patched {
        let document = of_group(&kind.group, &kind.version);
        let gvk = json!({"group": kind.group, "version": kind.version, "kind": kind.kind});
        let patches = patch_of(&document, &gvk);
        assert!(!patches.is_empty(), "{gvk}");
        for patch in patches {
            let media = keys(&patch["requestBody"]["content"]);
            let strategic = media.contains(&"application/strategic-merge-patch+json");
            assert_eq!(strategic, schemas::is_typed(kind), "{gvk}");
            assert!(media.contains(&"application/apply-patch+yaml"), "{gvk}");
            let names: Vec<_> =
                patch["parameters"].as_array().unwrap().iter().map(|one| &one["name"]).collect();
            assert_eq!(names, ["dryRun", "fieldManager", "fieldValidation", "force"], "{gvk}");
        }
    }
}

#[test]
fn strategic_merge_is_for_built_in_kinds() {
    let core = of_group("", "v1");
    let claim = &core["paths"]["/api/v1/namespaces/{namespace}/persistentvolumeclaims/{name}"]["patch"];
    assert_eq!(
        keys(&claim["requestBody"]["content"]),
        [
            "application/apply-patch+yaml",
            "application/json-patch+json",
            "application/merge-patch+json",
            "application/strategic-merge-patch+json"
        ]
    );
    let kubevirt = of_group("kubevirt.io", "v1");
    let vm = &kubevirt["paths"]["/apis/kubevirt.io/v1/namespaces/{namespace}/virtualmachines/{name}"];
    assert_eq!(
        keys(&vm["patch"]["requestBody"]["content"]),
        ["application/apply-patch+yaml", "application/json-patch+json", "application/merge-patch+json"]
    );
}

#[test]
fn what_is_not_served_has_no_operation() {
    let document = everything();
    let methods = |path: &str| {
        let item = document["paths"][path].as_object().unwrap_or_else(|| panic!("no {path}"));
        item.keys().map(Text::as_str).filter(|key| *key != "parameters").collect::<Vec<_>>()
    };
    assert_eq!(methods("/api/v1/pods"), ["get"]);
    assert_eq!(methods("/api/v1/namespaces/{namespace}/pods"), ["delete", "get", "post"]);
    assert_eq!(methods("/api/v1/namespaces"), ["get", "post"]);
    assert_eq!(methods("/api/v1/namespaces/{name}"), ["delete", "get", "patch", "put"]);
    assert_eq!(methods("/api/v1/namespaces/{name}/finalize"), ["put"]);
    assert_eq!(methods("/api/v1/namespaces/{namespace}/pods/{name}/log"), ["get"]);
    assert_eq!(methods("/api/v1/namespaces/{namespace}/pods/{name}/eviction"), ["post"]);
    assert_eq!(methods("/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"), ["post"]);
    assert!(document["paths"]["/apis/authorization.k8s.io/v1/selfsubjectaccessreviews/{name}"].is_null());
    let scale = &document["paths"]["/apis/apps/v1/namespaces/{namespace}/deployments/{name}/scale"]["put"];
    assert_eq!(
        scale["x-kubernetes-group-version-kind"],
        json!({"group": "autoscaling", "version": "v1", "kind": "Scale"})
    );
}

#[test]
fn operations_have_ids_of_their_own_and_every_reference_leads_somewhere() {
    let document = everything();
    let mut ids = std::collections::HashSet::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for id in item.as_object().unwrap().values().filter_map(|operation| operation["operationId"].as_str())
        {
            assert!(ids.insert(id), "{id} of {path} is there twice");
        }
    }
    assert!(ids.contains("patchCoreV1NamespacedPodEphemeralcontainers"));
    assert!(ids.contains("listKubevirtIoV1VirtualMachineForAllNamespaces"));
    let mut references = Vec::new();
    let swagger = v2::swagger(&document);
    for document in [&document, &swagger] {
        collect_references(document, &mut references);
        for reference in references.drain(..) {
            assert!(document.pointer(&reference[1..]).is_some(), "{reference} leads nowhere");
        }
    }
}

fn collect_references(value: &Value, out: &mut Vec<String>) {
    match value {
        Value::Object(fields) => {
            out.extend(fields.get("$ref").and_then(Value::as_str).map(str::to_owned));
            fields.values().for_each(|value| collect_references(value, out));
        }
        Value::Array(items) => items.iter().for_each(|value| collect_references(value, out)),
        _ => {}
    }
}

/// kube-openapi `util/proto` `ParseSchema`, by which kubectl reads a document; one schema that it cannot read fails
/// everything that kubectl checks by itself.
#[test]
fn kubectl_can_read_every_schema_of_version_2() {
    let swagger = v2::swagger(&everything());
    for (name, schema) in swagger["definitions"].as_object().unwrap() {
        readable(schema, name);
    }
}

fn readable(schema: &Value, path: &str) {
    if schema["$ref"].is_string() {
        assert!(schema["properties"].is_null() && schema["type"].is_null(), "{path}: more than a reference");
        return;
    }
    assert!(matches!(schema["type"], Value::Null | Value::String(_)), "{path}: more than one type");
    let ty = schema["type"].as_str().unwrap_or("object");
    assert!(["object", "array", "string", "number", "integer", "boolean"].contains(&ty), "{path}: {ty}");
    if ty == "array" {
        readable(&schema["items"], &format!("{path}[]"));
        assert!(schema["items"].is_object(), "{path}: an array of nothing");
    }
    for (name, field) in schema["properties"].as_object().into_iter().flatten() {
        readable(field, &format!("{path}.{name}"));
    }
    if schema["additionalProperties"].is_object() {
        assert!(schema["properties"].is_null(), "{path}: kubectl refuses what is not named");
        readable(&schema["additionalProperties"], &format!("{path}{{}}"));
    }
}

#[test]
fn the_form_of_version_2_follows_accept() {
    for (accept, want) in [
        ("", Some(JSON)),
        ("*/*", Some(JSON)),
        ("application/json", Some(JSON)),
        (PROTOBUF, Some(PROTOBUF)),
        (PROTOBUF_BEFORE, Some(PROTOBUF)),
        ("text/html, application/com.github.proto-openapi.spec.v2@v1.0+protobuf", Some(PROTOBUF)),
        (
            "application/json;q=0.5, application/com.github.proto-openapi.spec.v2.v1.0+protobuf",
            Some(PROTOBUF),
        ),
        ("text/html", None),
        ("application/com.github.proto-openapi.spec.v3@v1.0+protobuf", None),
    ] {
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, HeaderValue::from_static(accept));
        assert_eq!(accepted(&headers), want, "{accept}");
    }
}

#[test]
fn a_client_that_has_the_document_is_not_sent_it_again() {
    let document = Document { bytes: "{}".into(), etag: etag("{}") };
    let ask = |known: &str| {
        let mut headers = HeaderMap::new();
        headers.insert(IF_NONE_MATCH, HeaderValue::from_str(known).unwrap());
        answer(&headers, JSON, document.clone())
    };
    let first = ask("\"other\"");
    let header = |name| first.headers()[&name].to_str().unwrap().to_owned();
    assert_eq!(
        (first.status().as_u16(), header(CONTENT_TYPE), header(VARY)),
        (200, JSON.into(), "Accept".into())
    );
    // sha512sum of {}
    let sum = "27C74670ADB75075FAD058D5CEAF7B20C4E7786C83BAE8A32F626F9782AF34C9A33C2046EF60FD2A7878D378E29FEC851806BBD9A67878F3A9F1CDA4830763FD";
    assert_eq!(header(ETAG), format!("\"{sum}\""));
    for known in [header(ETAG), format!("\"a\", W/{}", header(ETAG)), "*".into()] {
        assert_eq!(ask(&known).status(), 304, "{known}");
    }
}
