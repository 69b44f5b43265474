//! What is particular to single kinds when they are written.

mod capacity;
mod core;
mod defaults;
pub mod definition;
pub mod pod;
mod registration;
mod workloads;

use apimachinery::FieldError;
use apimachinery::tree::{Map, Text, Value, json};

use super::meta::metadata;
use crate::registry::Kind;

/// What holds a claim back that pods use.
pub const PVC_PROTECTION: &str = "kubernetes.io/pvc-protection";
/// What holds a volume back that a claim is bound to.
pub const PV_PROTECTION: &str = "kubernetes.io/pv-protection";

/// Built-in kinds whose `metadata.generation` counts changes of the spec.
const GENERATIONS: [&str; 18] = [
    "pods",
    "replicationcontrollers",
    "daemonsets",
    "deployments",
    "replicasets",
    "statefulsets",
    "cronjobs",
    "jobs",
    "ingresses",
    "networkpolicies",
    "poddisruptionbudgets",
    "mutatingwebhookconfigurations",
    "validatingwebhookconfigurations",
    "validatingadmissionpolicies",
    "validatingadmissionpolicybindings",
    "customresourcedefinitions",
    "priorityclasses",
    "endpointslices",
];

/// Does this kind count generations?
pub fn counts_generations(kind: &Kind) -> bool {
    kind.definition().is_some() || GENERATIONS.contains(&kind.plural.as_str())
}

/// Is the part of an object that generations count different?
pub fn spec_changed(kind: &Kind, new: &Value, current: &Value) -> bool {
    if kind.definition().is_none() {
        return new["spec"] != current["spec"] || new["webhooks"] != current["webhooks"];
    }
    let keys = |object: &Value| {
        object.as_object().map(|map| map.keys().cloned().collect::<Vec<_>>()).unwrap_or_default()
    };
    let has_status = kind.subresource("status").is_some();
    let counted = |key: &Text| key != "metadata" && (key != "status" || !has_status);
    let all = keys(new).into_iter().chain(keys(current));
    all.filter(counted).any(|key| new[key.as_str()] != current[key.as_str()])
}

/// Fills in what the author left out.
pub fn fill_defaults(kind: &Kind, object: &mut Value) {
    if kind.definition().is_none() {
        defaults::fill(&kind.group, &kind.plural, object);
    }
}

/// Decides what the client may not when an object is created.
pub fn prepare_create(kind: &Kind, object: &mut Value, now: &str) {
    // Nodes register with their status.
    if kind.subresource("status").is_some()
        && !kind.is("", "nodes")
        && let Some(root) = object.as_object_mut()
    {
        root.remove("status");
    }
    match (kind.group.as_str(), kind.plural.as_str()) {
        ("", "namespaces") => namespace(object),
        ("", "nodes") => node(object),
        ("", "pods") => {
            pod::tolerate(object);
            pod::first_status(object);
        }
        ("", "persistentvolumeclaims") => {
            object["status"] = json!({"phase": "Pending"});
            protect(object, PVC_PROTECTION);
        }
        ("", "persistentvolumes") => {
            object["status"] = json!({"phase": "Pending"});
            protect(object, PV_PROTECTION);
        }
        ("batch", "jobs") => {
            workloads::name_pods(object);
            object["status"] = json!({});
        }
        ("", "resourcequotas") => object["status"] = json!({}),
        ("", "services") => object["status"] = json!({"loadBalancer": {}}),
        ("policy", "poddisruptionbudgets") => {
            object["status"] =
                json!({"disruptionsAllowed": 0, "currentHealthy": 0, "desiredHealthy": 0, "expectedPods": 0});
        }
        ("apiextensions.k8s.io", "customresourcedefinitions") => definition::accept(object, now),
        _ => {}
    }
}

/// Claims are held back while pods use them, and volumes while claims do (admission plugin
/// `StorageObjectInUseProtection`).
fn protect(object: &mut Value, finalizer: &str) {
    let finalizers = metadata(object).entry("finalizers").or_insert_with(|| json!([]));
    let ours = json!(finalizer);
    if let Some(finalizers) = finalizers.as_array_mut().filter(|finalizers| !finalizers.contains(&ours)) {
        finalizers.push(ours);
    }
}

/// The entries of a list, if there is one.
fn items_mut<'a>(object: &'a mut Value, key: &str) -> impl Iterator<Item = &'a mut Value> {
    object.get_mut(key).and_then(Value::as_array_mut).into_iter().flatten()
}

/// Sets a field that is not there.
fn set(object: &mut Value, key: &str, value: Value) {
    if let Some(map) = object.as_object_mut()
        && map.get(key).is_none_or(Value::is_null)
    {
        map.insert(key.into(), value);
    }
}

/// Sets a field that is not there, in a part that is.
fn set_in(object: &mut Value, part: &str, key: &str, value: Value) {
    if let Some(part) = object.get_mut(part) {
        set(part, key, value);
    }
}

fn namespace(object: &mut Value) {
    object["spec"] = json!({"finalizers": ["kubernetes"]});
    object["status"] = json!({"phase": "Active"});
}

/// The node-lifecycle taint that new nodes get until a kubelet reports them ready (`TaintNodesByCondition`).
fn node(object: &mut Value) {
    let taint = json!({"key": "node.kubernetes.io/not-ready", "effect": "NoSchedule"});
    if !object["spec"].is_object() {
        object["spec"] = json!({});
    }
    let taints = &mut object["spec"]["taints"];
    match taints {
        Value::Array(taints) if !taints.contains(&taint) => taints.push(taint),
        Value::Array(_) => {}
        _ => *taints = json!([taint]),
    }
}

/// What is wrong with an object that is to be created.
pub fn validate_create(kind: &Kind, object: &Value) -> Vec<FieldError> {
    if let Some(definition) = kind.definition() {
        return definition.schema.validate(object, None);
    }
    match (kind.group.as_str(), kind.plural.as_str()) {
        ("", "pods") => pod::validate(object),
        ("", "events") => core::event(object),
        ("batch", "jobs") => workloads::job(object),
        ("apiextensions.k8s.io", "customresourcedefinitions") => definition::validate(object),
        ("admissionregistration.k8s.io", plural) => registration(plural, object),
        _ => always(kind, object),
    }
}

/// What is wrong with an object, be it new or changed.
fn always(kind: &Kind, object: &Value) -> Vec<FieldError> {
    match (kind.group.as_str(), kind.plural.as_str()) {
        ("", "configmaps") => core::config_map(object),
        ("", "secrets") => core::secret(object),
        ("", "services") => core::service(object),
        ("", "persistentvolumeclaims") => core::claim(object),
        ("", "limitranges") => core::limit_range(object),
        ("apps", plural @ ("deployments" | "replicasets" | "statefulsets" | "daemonsets")) => {
            workloads::workload(plural, object)
        }
        ("policy", "poddisruptionbudgets") => workloads::budget(object),
        ("coordination.k8s.io", "leases") => workloads::lease(object),
        ("rbac.authorization.k8s.io", "roles") => workloads::role(object, true),
        ("rbac.authorization.k8s.io", "clusterroles") => workloads::role(object, false),
        _ => Vec::new(),
    }
}

fn registration(plural: &str, object: &Value) -> Vec<FieldError> {
    match plural {
        "mutatingwebhookconfigurations" => registration::webhooks(object, true),
        "validatingwebhookconfigurations" => registration::webhooks(object, false),
        "validatingadmissionpolicies" => registration::policy(object),
        "validatingadmissionpolicybindings" => registration::binding(object),
        _ => Vec::new(),
    }
}

/// What is wrong with a change.
pub fn validate_update(kind: &Kind, subresource: &str, new: &Value, current: &Value) -> Vec<FieldError> {
    if let Some(definition) = kind.definition() {
        return definition.schema.validate(new, Some(current));
    }
    match (kind.group.as_str(), kind.plural.as_str(), subresource) {
        ("", "pods", "") => pod::validate_update(new, current),
        ("", "pods", "resize") => pod::validate_resize(new, current),
        ("", "configmaps" | "secrets", "") => {
            let mut errors = immutable_data(new, current);
            errors.extend(always(kind, new));
            errors
        }
        ("apiextensions.k8s.io", "customresourcedefinitions", "") => definition::validate(new),
        ("admissionregistration.k8s.io", plural, "") => registration(plural, new),
        ("rbac.authorization.k8s.io", "rolebindings" | "clusterrolebindings", "")
            if new["roleRef"] != current["roleRef"] =>
        {
            let to = &new["roleRef"];
            let shown = json!({"APIGroup": to["apiGroup"], "Kind": to["kind"], "Name": to["name"]});
            vec![FieldError::invalid("roleRef", shown, "cannot change roleRef")]
        }
        (_, _, "") => always(kind, new),
        _ => Vec::new(),
    }
}

fn immutable_data(new: &Value, current: &Value) -> Vec<FieldError> {
    if current["immutable"] != true {
        return Vec::new();
    }
    let message = "field is immutable when `immutable` is set";
    let changed = ["immutable", "data", "binaryData"].into_iter().filter(|key| new[*key] != current[*key]);
    changed.map(|key| FieldError::forbidden(key, message)).collect()
}

/// Keeps a write to what its path may change: the object without its status, or the status alone.
pub fn confine(kind: &Kind, subresource: &str, mut new: Value, current: &Value) -> Value {
    match subresource {
        "" => {
            if kind.subresource("status").is_some() {
                copy(&mut new, current, "status");
            }
            if kind.is("", "namespaces") {
                copy(&mut new, current, "spec");
            }
            new
        }
        "resize" => pod::confine_resize(&new, current),
        "ephemeralcontainers" => {
            let mut kept = current.clone();
            kept["spec"]["ephemeralContainers"] = new["spec"]["ephemeralContainers"].clone();
            kept
        }
        "finalize" => {
            let mut kept = current.clone();
            kept["spec"]["finalizers"] = new["spec"]["finalizers"].clone();
            kept
        }
        "status" => status_alone(kind, new, current),
        _ => new,
    }
}

fn status_alone(kind: &Kind, mut new: Value, current: &Value) -> Value {
    let built_in = kind.definition().is_none();
    let own = |key: &str| key == "status" || built_in && key == "metadata";
    // What may change is moved, not copied: it is most of the object.
    let kept = current.as_object().into_iter().flatten().filter(|(key, _)| !own(key));
    let mut kept: Map = kept.map(|(key, value)| (key.clone(), value.clone())).collect();
    let moved = new.as_object_mut().map(std::mem::take).into_iter().flatten();
    kept.extend(moved.filter(|(key, _)| own(key)));
    let mut kept = Value::Object(kept);
    if !built_in {
        return kept;
    }
    let owners = current["metadata"]["ownerReferences"].clone();
    if owners.is_null() {
        metadata(&mut kept).remove("ownerReferences");
    } else {
        metadata(&mut kept).insert("ownerReferences".into(), owners);
    }
    if kind.is("", "pods") {
        kept["status"]["qosClass"] = current["status"]["qosClass"].clone();
    }
    kept
}

fn copy(to: &mut Value, from: &Value, key: &str) {
    let Some(root) = to.as_object_mut() else { return };
    match from.get(key) {
        Some(value) => {
            root.insert(key.into(), value.clone());
        }
        None => {
            root.remove(key);
        }
    }
}
