//! Defaults of the other built-in kinds that tools rely on.

use apimachinery::tree::{Value, json};

use super::super::meta::metadata;
use super::{items_mut, pod, set, set_in};

/// Fills in what the author of an object left out.
pub fn fill(group: &str, plural: &str, object: &mut Value) {
    match (group, plural) {
        ("", "pods") => pod::default(object),
        ("", "namespaces") => namespace(object),
        ("", "secrets") => secret(object),
        ("", "services") => service(object),
        ("", "persistentvolumeclaims") => claim(object),
        ("", "persistentvolumes") => {
            set_in(object, "spec", "volumeMode", json!("Filesystem"));
            set_in(object, "spec", "persistentVolumeReclaimPolicy", json!("Retain"));
        }
        ("apps", "deployments" | "replicasets" | "statefulsets") | ("", "replicationcontrollers") => {
            set_in(object, "spec", "replicas", json!(1));
            template(object);
            workload(plural, object);
        }
        ("apps", "daemonsets") => {
            template(object);
            workload(plural, object);
        }
        ("batch", "jobs") => job(object),
        ("storage.k8s.io", "storageclasses") => {
            set(object, "reclaimPolicy", json!("Delete"));
            set(object, "volumeBindingMode", json!("Immediate"));
        }
        ("rbac.authorization.k8s.io", "rolebindings" | "clusterrolebindings") => binding(object),
        (
            "admissionregistration.k8s.io",
            "mutatingwebhookconfigurations" | "validatingwebhookconfigurations",
        ) => {
            webhooks(object, plural.starts_with("mutating"));
        }
        ("admissionregistration.k8s.io", "validatingadmissionpolicies") => {
            set_in(object, "spec", "failurePolicy", json!("Fail"));
        }
        ("apiextensions.k8s.io", "customresourcedefinitions") => definition(object),
        _ => {}
    }
}

/// Defaults of a pod template.
fn template(object: &mut Value) {
    if let Some(spec) = object.pointer_mut("/spec/template/spec") {
        pod::template(spec);
    }
}

fn namespace(object: &mut Value) {
    let name = object["metadata"]["name"].clone();
    let labels = metadata(object).entry("labels").or_insert_with(|| json!({}));
    if labels.is_object() && name.is_string() {
        labels["kubernetes.io/metadata.name"] = name;
    }
}

/// What a claim is filled from has two names, which say the same (`NormalizeDataSources`); only the newer may be of
/// another namespace.
fn claim(object: &mut Value) {
    let Some(spec) = object.get_mut("spec") else { return };
    set(spec, "volumeMode", json!("Filesystem"));
    let (old, new) = (spec["dataSource"].clone(), spec["dataSourceRef"].clone());
    if new.is_null() && old.is_object() {
        spec["dataSourceRef"] = old;
    } else if old.is_null() && new.is_object() && new.get("namespace").is_none_or(Value::is_null) {
        spec["dataSource"] = new;
    }
}

fn secret(object: &mut Value) {
    use base64::Engine as _;
    set(object, "type", json!("Opaque"));
    // stringData is write-only: it ends up in data.
    let Some(text) = object.as_object_mut().and_then(|root| root.remove("stringData")) else { return };
    set(object, "data", json!({}));
    for (key, value) in text.as_object().into_iter().flatten() {
        let encoded = base64::engine::general_purpose::STANDARD.encode(value.as_str().unwrap_or_default());
        object["data"][key.as_str()] = encoded.into();
    }
}

fn service(object: &mut Value) {
    let Some(spec) = object.get_mut("spec") else { return };
    set(spec, "type", json!("ClusterIP"));
    set(spec, "sessionAffinity", json!("None"));
    if spec["type"] == "ExternalName" {
        return;
    }
    set(spec, "internalTrafficPolicy", json!("Cluster"));
    set(spec, "ipFamilies", json!(["IPv4"]));
    set(spec, "ipFamilyPolicy", json!("SingleStack"));
    if spec["type"] == "NodePort" || spec["type"] == "LoadBalancer" {
        set(spec, "externalTrafficPolicy", json!("Cluster"));
    }
    for port in items_mut(spec, "ports") {
        set(port, "protocol", json!("TCP"));
        let number = port["port"].clone();
        set(port, "targetPort", number);
    }
}

fn workload(plural: &str, object: &mut Value) {
    let Some(spec) = object.get_mut("spec") else { return };
    match plural {
        "deployments" => {
            set(spec, "strategy", json!({}));
            set_in(spec, "strategy", "type", json!("RollingUpdate"));
            if spec["strategy"]["type"] == "RollingUpdate" {
                set(
                    &mut spec["strategy"],
                    "rollingUpdate",
                    json!({"maxUnavailable": "25%", "maxSurge": "25%"}),
                );
            }
            set(spec, "revisionHistoryLimit", json!(10));
            set(spec, "progressDeadlineSeconds", json!(600));
        }
        "statefulsets" => {
            set(spec, "podManagementPolicy", json!("OrderedReady"));
            set(spec, "updateStrategy", json!({}));
            set_in(spec, "updateStrategy", "type", json!("RollingUpdate"));
            if spec["updateStrategy"]["type"] == "RollingUpdate" {
                set_in(spec, "updateStrategy", "rollingUpdate", json!({"partition": 0}));
            }
            set(
                spec,
                "persistentVolumeClaimRetentionPolicy",
                json!({"whenDeleted": "Retain", "whenScaled": "Retain"}),
            );
            set(spec, "revisionHistoryLimit", json!(10));
        }
        "daemonsets" => {
            set(spec, "updateStrategy", json!({}));
            set_in(spec, "updateStrategy", "type", json!("RollingUpdate"));
            if spec["updateStrategy"]["type"] == "RollingUpdate" {
                set_in(spec, "updateStrategy", "rollingUpdate", json!({"maxUnavailable": 1, "maxSurge": 0}));
            }
            set(spec, "revisionHistoryLimit", json!(10));
        }
        _ => {}
    }
}

fn job(object: &mut Value) {
    let Some(spec) = object.get_mut("spec") else { return };
    for (key, value) in [
        ("parallelism", json!(1)),
        ("completions", json!(1)),
        ("backoffLimit", json!(6)),
        ("completionMode", json!("NonIndexed")),
        ("suspend", json!(false)),
        ("manualSelector", json!(false)),
        ("podReplacementPolicy", json!("TerminatingOrFailed")),
    ] {
        set(spec, key, value);
    }
    if let Some(inner) = spec.pointer_mut("/template/spec") {
        pod::template(inner);
    }
}

fn binding(object: &mut Value) {
    set_in(object, "roleRef", "apiGroup", json!("rbac.authorization.k8s.io"));
    for subject in items_mut(object, "subjects") {
        let group = if subject["kind"] == "ServiceAccount" { "" } else { "rbac.authorization.k8s.io" };
        if !group.is_empty() {
            set(subject, "apiGroup", json!(group));
        }
    }
}

fn webhooks(object: &mut Value, mutating: bool) {
    for webhook in items_mut(object, "webhooks") {
        set(webhook, "failurePolicy", json!("Fail"));
        set(webhook, "matchPolicy", json!("Equivalent"));
        set(webhook, "namespaceSelector", json!({}));
        set(webhook, "objectSelector", json!({}));
        set(webhook, "timeoutSeconds", json!(10));
        if mutating {
            set(webhook, "reinvocationPolicy", json!("Never"));
        }
        if let Some(config) = webhook.get_mut("clientConfig") {
            set_in(config, "service", "port", json!(443));
        }
        for rule in items_mut(webhook, "rules") {
            set(rule, "scope", json!("*"));
        }
    }
}

fn definition(object: &mut Value) {
    let kind = object["spec"]["names"]["kind"].as_str().unwrap_or_default().to_owned();
    if let Some(names) = object.pointer_mut("/spec/names").filter(|_| !kind.is_empty()) {
        set(names, "singular", json!(kind.to_lowercase()));
        set(names, "listKind", json!(format!("{kind}List")));
    }
    set_in(object, "spec", "conversion", json!({"strategy": "None"}));
}
