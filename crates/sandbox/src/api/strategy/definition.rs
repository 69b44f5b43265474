//! `CustomResourceDefinitions`: checked, and accepted in the same write that creates them.

use apimachinery::FieldError;
use apimachinery::schema::Schema;
use apimachinery::tree::{List, Value, json};

use super::super::meta::metadata;

/// Holds a definition back until its objects are gone.
pub const CLEANUP: &str = "customresourcecleanup.apiextensions.k8s.io";

/// The status of a definition whose names are taken and which is served.
pub fn accept(object: &mut Value, now: &str) {
    let condition = |kind: &str, reason: &str, message: &str| json!({"type": kind, "status": "True", "reason": reason, "message": message, "lastTransitionTime": now});
    let versions = object["spec"]["versions"].as_array().into_iter().flatten();
    let stored: Vec<Value> = versions
        .filter(|version| version["storage"] == true)
        .map(|version| version["name"].clone())
        .collect();
    object["status"] = json!({
        "acceptedNames": object["spec"]["names"],
        "conditions": [
            condition("NamesAccepted", "NoConflicts", "no conflicts found"),
            condition("Established", "InitialNamesAccepted", "the initial names have been accepted"),
        ],
        "storedVersions": stored,
    });
    let finalizers = metadata(object).entry("finalizers").or_insert_with(|| json!([]));
    if let Some(finalizers) = finalizers.as_array_mut()
        && !finalizers.iter().any(|finalizer| finalizer == CLEANUP)
    {
        finalizers.push(CLEANUP.into());
    }
}

/// What is wrong with a definition.
pub fn validate(object: &Value) -> Vec<FieldError> {
    let spec = &object["spec"];
    let mut errors = Vec::new();
    let required = [
        ("spec.group", &spec["group"]),
        ("spec.scope", &spec["scope"]),
        ("spec.names.plural", &spec["names"]["plural"]),
        ("spec.names.kind", &spec["names"]["kind"]),
    ];
    for (field, value) in required {
        if value.as_str().is_none_or(str::is_empty) {
            errors.push(FieldError::required(field, ""));
        }
    }
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let expected = format!("{}.{}", text(&spec["names"]["plural"]), text(&spec["group"]));
    if errors.is_empty() && object["metadata"]["name"] != expected.as_str() {
        let message = "must be spec.names.plural+\".\"+spec.group";
        errors.push(FieldError::invalid("metadata.name", object["metadata"]["name"].clone(), message));
    }
    let versions = spec["versions"].as_array().map(List::as_slice).unwrap_or_default();
    if versions.iter().filter(|version| version["storage"] == true).count() != 1 {
        let message = "must have exactly one version marked as storage version";
        errors.push(FieldError::invalid("spec.versions", spec["versions"].clone(), message));
    }
    for (index, version) in versions.iter().enumerate() {
        let field = format!("spec.versions[{index}].schema.openAPIV3Schema");
        if !version["schema"]["openAPIV3Schema"].is_object() {
            errors.push(FieldError::required(field, "schemas are required"));
        } else if let Err(wrong) = Schema::parse(&version["schema"]["openAPIV3Schema"], &field) {
            errors.extend(wrong);
        }
    }
    errors
}
