//! The schemas of objects, of their lists, and of what goes over the wire beside them.

use apimachinery::tree::{Map, Value, json};
use apimachinery::{ObjectType, shared_schemas};

use crate::registry::{Kind, Subresource, join};

const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1";

/// `#/components/schemas/…` of something in `meta.k8s.io`.
pub(super) fn of_meta(kind: &str) -> Value {
    reference(&format!("{META}.{kind}"))
}

/// `#/components/schemas/…`
pub(super) fn reference(name: &str) -> Value {
    json!({"$ref": format!("#/components/schemas/{name}")})
}

/// What the operations of every group speak of.
pub(super) fn of_every_group() -> Map {
    let text = json!({"type": "string"});
    let whole = json!({"type": "integer", "format": "int64"});
    let texts = json!({"type": "array", "items": text});
    let preconditions = json!({"type": "object", "properties": {"resourceVersion": text, "uid": text}});
    let options = json!({"type": "object", "properties": {"apiVersion": text, "kind": text, "dryRun": texts,
        "gracePeriodSeconds": whole, "orphanDependents": {"type": "boolean"}, "preconditions": preconditions,
        "propagationPolicy": text}});
    let list_meta = json!({"type": "object", "properties": {"continue": text, "remainingItemCount": whole,
        "resourceVersion": text, "selfLink": text}});
    let cause = json!({"type": "object", "properties": {"field": text, "message": text, "reason": text}});
    let details = json!({"type": "object", "properties": {"causes": {"type": "array", "items": cause}, "group": text,
        "kind": text, "name": text, "retryAfterSeconds": {"type": "integer", "format": "int32"}, "uid": text}});
    let status = json!({"type": "object", "properties": {"apiVersion": text, "kind": text, "metadata": list_meta,
        "code": {"type": "integer", "format": "int32"}, "details": details, "message": text, "reason": text,
        "status": text}});
    let patch = json!({"type": "object"});
    let meta = [("DeleteOptions", options), ("ListMeta", list_meta), ("Patch", patch), ("Status", status)];
    let meta = meta.into_iter().map(|(kind, schema)| (format!("{META}.{kind}"), schema));
    let shared = shared_schemas().into_iter().map(|(name, schema)| (name.to_owned(), schema));
    meta.chain(shared).collect()
}

/// The schemas of a kind, of lists of it, and of what its subresources take and give.
pub(super) fn of(kind: &Kind) -> Vec<(String, Value)> {
    let mut out = vec![(name(kind), schema(kind))];
    if kind.verbs.names().contains(&"list") {
        out.push((list_name(kind), list(kind)));
    }
    out.extend(kind.subresources.iter().filter_map(|part| {
        let (name, schema) = own(kind, part)?;
        Some((name, with_gvk(schema, &part.group, &part.version, &part.kind)))
    }));
    out
}

/// `io.k8s.api.core.v1.Pod`, `io.kubevirt.v1.VirtualMachine`
pub(super) fn name(kind: &Kind) -> String {
    if kind.definition().is_some() {
        let reversed: Vec<&str> = kind.group.split('.').rev().collect();
        return format!("{}.{}.{}", reversed.join("."), kind.version, kind.kind);
    }
    built_in_name(&kind.group, &kind.version, &kind.kind)
}

/// The name of a kind's list.
pub(super) fn list_name(kind: &Kind) -> String {
    let name = name(kind);
    let package = name.strip_suffix(&kind.kind).unwrap_or_default();
    format!("{package}{}", kind.list_kind)
}

/// What a subresource takes and gives: the object that it is a part of, a kind of its own, or bytes.
pub(super) fn of_part(kind: &Kind, part: &Subresource) -> Value {
    if (&part.group, &part.version, &part.kind) == (&kind.group, &kind.version, &kind.kind)
        && part.name != "log"
    {
        return reference(&name(kind));
    }
    own(kind, part).map_or_else(|| json!({"type": "string"}), |(name, _)| reference(&name))
}

/// Are the fields of this kind known, so that strategic merge patches of it can be computed from its schema?
pub(super) fn is_typed(kind: &Kind) -> bool {
    kind.definition().is_none() && built_in(kind).is_some()
}

fn built_in(kind: &Kind) -> Option<ObjectType> {
    ObjectType::builtin(&kind.api_version(), &kind.kind)
}

fn built_in_name(group: &str, version: &str, kind: &str) -> String {
    let package = match group {
        "" => "io.k8s.api.core",
        "apiextensions.k8s.io" => "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions",
        "apiregistration.k8s.io" => "io.k8s.kube-aggregator.pkg.apis.apiregistration",
        _ => {
            let short = group.split('.').next().unwrap_or_default();
            return format!("io.k8s.api.{short}.{version}.{kind}");
        }
    };
    format!("{package}.{version}.{kind}")
}

/// The kind of a subresource that is not its parent's.
fn own(kind: &Kind, part: &Subresource) -> Option<(String, Value)> {
    if part.kind == kind.kind {
        return None;
    }
    let ty = ObjectType::builtin(&join(&part.group, &part.version), &part.kind)?;
    Some((built_in_name(&part.group, &part.version, &part.kind), ty.to_openapi()))
}

fn schema(kind: &Kind) -> Value {
    let schema = match kind.definition() {
        Some(definition) => with_metadata((*definition.openapi).clone()),
        None => built_in(kind).as_ref().unwrap_or(&kind.object_type).to_openapi(),
    };
    with_gvk(schema, &kind.group, &kind.version, &kind.kind)
}

fn list(kind: &Kind) -> Value {
    let items = json!({"type": "array", "items": reference(&name(kind))});
    let list = json!({"type": "object", "required": ["items"], "properties": {"apiVersion": {"type": "string"},
        "kind": {"type": "string"}, "items": items, "metadata": of_meta("ListMeta")}});
    with_gvk(list, &kind.group, &kind.version, &kind.list_kind)
}

fn with_gvk(mut schema: Value, group: &str, version: &str, kind: &str) -> Value {
    if !schema.is_object() {
        schema = json!({"type": "object"});
    }
    schema["x-kubernetes-group-version-kind"] = json!([{"group": group, "version": version, "kind": kind}]);
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
