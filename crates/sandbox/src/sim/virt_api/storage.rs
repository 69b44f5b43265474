//! virt-api's admission of snapshots, restores and clones, and of changes of VMs that one of them is busy with
//! (`pkg/storage/admitters`, `vmclone-admitter.go`, `clone-create-mutator.go`, v1.9).

use apimachinery::tree::{Value, json};

use super::validate::{Cause, INVALID, NOT_SUPPORTED, REQUIRED, refusal};
use crate::sim::cluster::ClusterConfig;
use crate::sim::json::{self, list, map, text};
use crate::sim::virt_controller::clone::needs_backend_storage;
use crate::sim::virt_controller::vm::run_strategy;

const NOT_FOUND: &str = "FieldValueNotFound";

/// What the admission of a restore looks up.
#[derive(Debug, Default)]
pub struct Lookups {
    /// The snapshot that is restored.
    pub snapshot: Option<Value>,
    /// Its content.
    pub content: Option<Value>,
    /// The VM of the target's name.
    pub target: Option<Value>,
    /// The restores of the namespace.
    pub restores: Vec<Value>,
}

pub(super) fn cause(kind: &'static str, message: impl Into<String>, field: impl Into<String>) -> Cause {
    Cause { kind, message: message.into(), field: field.into() }
}

pub(super) fn error(message: &str) -> Value {
    json!({"allowed": false, "status": {"message": message, "code": 400}})
}

pub(super) fn judged(causes: &[Cause]) -> Value {
    if causes.is_empty() {
        json!({"allowed": true})
    } else {
        json!({"allowed": false, "status": refusal(causes)})
    }
}

/// What is wrong with a reference to a VM.
fn vm_reference(reference: &Value, field: &str) -> Option<Cause> {
    match reference.get("apiGroup").and_then(Value::as_str) {
        None => Some(cause(NOT_FOUND, "missing apiGroup", format!("{field}.apiGroup"))),
        Some("kubevirt.io") if text(reference, "/kind") == "VirtualMachine" => None,
        Some("kubevirt.io") => Some(cause(INVALID, "invalid kind", format!("{field}.kind"))),
        Some(_) => Some(cause(INVALID, "invalid apiGroup", format!("{field}.apiGroup"))),
    }
}

/// A spec that was changed.
pub(super) fn changed(request: &Value) -> Vec<Cause> {
    let same = request["object"]["spec"] == request["oldObject"]["spec"];
    if same { Vec::new() } else { vec![cause(INVALID, "spec in immutable after creation", "spec")] }
}

/// Whether a snapshot may be made or changed.
pub fn snapshot(request: &Value, config: &ClusterConfig) -> Value {
    if text(request, "/operation") == "UPDATE" {
        return judged(&changed(request));
    }
    if !config.gate("Snapshot") {
        return error("snapshot feature gate not enabled");
    }
    judged(&vm_reference(&request["object"]["spec"]["source"], "spec.source").into_iter().collect::<Vec<_>>())
}

/// Whether a restore may be made or changed.
pub fn restore(request: &Value, lookups: &Lookups, config: &ClusterConfig) -> Value {
    if text(request, "/operation") == "UPDATE" {
        return judged(&changed(request));
    }
    if !config.gate("Snapshot") {
        return error("Snapshot/Restore feature gate not enabled");
    }
    let spec = &request["object"]["spec"];
    let mut causes = Vec::new();
    if let Some(wrong) = vm_reference(&spec["target"], "spec.target") {
        causes.push(wrong);
    } else {
        causes.extend(patches(list(spec, "/patches")));
        causes.extend(backend_storage(lookups));
        for (index, one) in list(spec, "/volumeRestoreOverrides").iter().enumerate() {
            let field = format!("spec.volumeRestoreOverrides[{index}]");
            if text(one, "/volumeName").is_empty() {
                causes.push(cause(REQUIRED, "must provide a volume name", format!("{field}.volumeName")));
            }
            if ["restoreName", "annotations", "labels"].iter().all(|key| one.get(*key).is_none()) {
                causes.push(cause(REQUIRED, "must provide at least one overriden field", field));
            }
        }
        for (field, known) in [
            ("volumeRestorePolicy", &["", "InPlace", "RandomizeNames", "PrefixTargetName"][..]),
            ("volumeOwnershipPolicy", &["", "Vm", "None"][..]),
        ] {
            let policy = text(spec, &format!("/{field}"));
            if !known.contains(&policy) {
                let words = if field == "volumeRestorePolicy" { "restore" } else { "ownership" };
                let message = format!("volume {words} policy \"{policy}\" doesn't exist");
                causes.push(cause(INVALID, message, format!("spec.{field}")));
            }
        }
    }
    for other in &lookups.restores {
        if other["spec"]["target"] == spec["target"]
            && other.pointer("/status/complete") != Some(&Value::Bool(true))
        {
            let message = format!("VirtualMachineRestore \"{}\" in progress", json::name(other));
            causes.push(cause(INVALID, message, "spec.target"));
        }
    }
    judged(&causes)
}

/// Patches reach labels, annotations and the spec alone.
fn patches(all: &[Value]) -> Vec<Cause> {
    let mut causes = Vec::new();
    for patch in all.iter().filter_map(Value::as_str) {
        // Split as the real one splits, values with commas and colons included.
        for pair in patch.trim_matches(|c| c == '{' || c == '}').split(',') {
            let parts: Vec<&str> = pair.split(':').collect();
            let [key, value] = parts.as_slice() else {
                let message = format!(
                    "patch format is not valid - one \":\" expected in a single key-value json patch: {pair}"
                );
                causes.push(cause(INVALID, message, "spec.patches"));
                continue;
            };
            let (key, value) = (key.trim(), value.trim());
            let reaches = ["\"/metadata/labels/", "\"/metadata/annotations/", "\"/spec/"];
            if key == "\"path\"" && reaches.iter().all(|prefix| !value.starts_with(prefix)) {
                let message = format!("patching is valid only for elements under /spec/ only: {pair}");
                causes.push(cause(INVALID, message, "spec.patches"));
            }
        }
    }
    causes
}

fn backend_storage(lookups: &Lookups) -> Option<Cause> {
    let (snapshot, content) = (lookups.snapshot.as_ref()?, lookups.content.as_ref()?);
    let source = text(snapshot, "/status/sourceUID");
    let same = lookups.target.as_ref().is_some_and(|vm| source.is_empty() || json::uid(vm) == source);
    let vm = &content["spec"]["source"]["virtualMachine"];
    (!same && needs_backend_storage(vm)).then(|| {
        let message = "Restore to a different VM is not supported when snapshotted VM has backend storage (persistent TPM or EFI)";
        cause(INVALID, message, "spec")
    })
}

/// The target of a clone that names none: `clone-SOURCE-SUFFIX`.
pub fn complete_clone(request: &Value) -> Option<Vec<Value>> {
    let spec = &request["object"]["spec"];
    if !text(spec, "/target/name").is_empty() {
        return None;
    }
    let suffix: String = text(request, "/uid").chars().filter(char::is_ascii_alphanumeric).take(5).collect();
    let name = format!("clone-{}-{suffix}", text(spec, "/source/name"));
    let mut new = spec.clone();
    if !new["target"].is_object() {
        new["target"] = json!({"apiGroup": "kubevirt.io", "kind": "VirtualMachine"});
    }
    new["target"]["name"] = name.into();
    Some(vec![json!({"op": "replace", "path": "/spec", "value": new})])
}

/// Whether a clone may be made.
pub fn clone(request: &Value, config: &ClusterConfig) -> Value {
    if text(request, "/operation") == "CREATE" && !config.gate("Snapshot") {
        return error("snapshot feature gate is not enabled");
    }
    let spec = &request["object"]["spec"];
    let mut causes = Vec::new();
    for (pointer, field) in [
        ("/annotationFilters", "spec.annotations"),
        ("/labelFilters", "spec.labels"),
        ("/template/annotationFilters", "spec.template.annotations"),
        ("/template/labelFilters", "spec.template.labels"),
    ] {
        for filter in list(spec, pointer).iter().filter_map(Value::as_str) {
            causes.extend(filter_causes(filter, field));
        }
    }
    let (source, target) = (&spec["source"], &spec["target"]);
    if !matches!(text(source, "/kind"), "VirtualMachine" | "VirtualMachineSnapshot") {
        causes.push(cause(INVALID, "Source kind is not supported", "spec.Source.Kind"));
    }
    if target.is_object() && text(target, "/kind") != "VirtualMachine" {
        causes.push(cause(INVALID, "Target kind is not supported", "spec.Target.Kind"));
    }
    for (key, message, field) in [
        ("/apiGroup", "Source's APIGroup cannot be empty", "spec.Source.APIGroup"),
        ("/kind", "Source's Kind cannot be empty", "spec.Source"),
        ("/name", "Source's name cannot be empty", "spec.Source.Name"),
    ] {
        if text(source, key).is_empty() {
            causes.push(cause(INVALID, message, field));
        }
    }
    if text(source, "/kind") == text(target, "/kind") && text(source, "/name") == text(target, "/name") {
        let message = "Target name cannot be equal to source name when both are VirtualMachines";
        causes.push(cause(INVALID, message, "spec.target.name"));
    }
    for (name, mac) in map(spec, "/newMacAddresses").into_iter().flatten() {
        let mac = mac.as_str().unwrap_or_default();
        if !mac.is_empty() && !is_mac(mac) {
            let message = format!("interface {name} has malformed MAC address ({mac}).");
            causes.push(cause(INVALID, message, format!("spec.newMacAddresses.{name}")));
        }
    }
    for (index, patch) in list(spec, "/patches").iter().filter_map(Value::as_str).enumerate() {
        if serde_json::from_str::<Value>(patch).is_err() {
            causes.push(cause(
                INVALID,
                format!("patch is not valid JSON ({patch})"),
                format!("spec.patches[{index}]"),
            ));
        }
    }
    judged(&causes)
}

fn is_mac(text: &str) -> bool {
    let parts: Vec<&str> = text.split([':', '-']).collect();
    parts.len() == 6
        && parts.iter().all(|part| part.len() == 2 && part.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

fn filter_causes(filter: &str, field: &str) -> Vec<Cause> {
    if filter.chars().count() == 1 {
        let alone =
            (filter == "!").then(|| cause(INVALID, "a negation character is not a valid filter", field));
        return alone.into_iter().collect();
    }
    let wrong = |what: &str, character: &str, rule: &str| {
        let message = format!(
            "{field} filter {filter} is invalid: cannot contain a {what} character ({character}); FilterRules: {rule}"
        );
        cause(INVALID, message, field)
    };
    let mut causes = Vec::new();
    if filter.chars().skip(1).any(|c| c == '!') {
        causes.push(wrong("negation", "!", "NegationChar can be only used at the beginning of the filter"));
    }
    let mut all_but_last = filter.chars();
    all_but_last.next_back();
    if all_but_last.any(|c| c == '*') {
        causes.push(wrong("wildcard", "*", "WildcardChar can be only at the end of the filter"));
    }
    causes
}

/// What a snapshot or a restore in progress forbids to change on a VM.
pub fn busy(request: &Value) -> Vec<Cause> {
    if text(request, "/operation") != "UPDATE" {
        return Vec::new();
    }
    let (new, old) = (&request["object"], &request["oldObject"]);
    let refused = |message: String| cause(NOT_SUPPORTED, message, "spec");
    let restore = text(new, "/status/restoreInProgress");
    if !restore.is_empty() && run_strategy(new) != run_strategy(old) {
        return vec![refused(format!("Cannot update VM runStrategy until restore \"{restore}\" completes"))];
    }
    let snapshot = text(new, "/status/snapshotInProgress");
    if snapshot.is_empty() {
        return Vec::new();
    }
    if list(new, "/spec/template/spec/volumes") != list(old, "/spec/template/spec/volumes") {
        return vec![refused(format!(
            "Cannot update vm disks or volumes until snapshot \"{snapshot}\" completes"
        ))];
    }
    if new["spec"].get("running") != old["spec"].get("running")
        || new["spec"].get("runStrategy") != old["spec"].get("runStrategy")
    {
        return vec![refused(format!(
            "Cannot update vm running state until snapshot \"{snapshot}\" completes"
        ))];
    }
    Vec::new()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> ClusterConfig {
        ClusterConfig::of(&json!({"status": {"observedKubeVirtVersion": "v1.9.0"}}))
    }

    fn message(answer: &Value) -> String {
        text(answer, "/status/message").to_owned()
    }

    #[test]
    fn snapshots_are_of_vms_and_do_not_change() {
        let create = |source: Value| json!({"operation": "CREATE", "object": {"spec": {"source": source}}});
        for (source, expected) in [
            (json!({"apiGroup": "kubevirt.io", "kind": "VirtualMachine", "name": "v"}), ""),
            (json!({"kind": "VirtualMachine"}), "missing apiGroup"),
            (json!({"apiGroup": "kubevirt.io", "kind": "Pod"}), "invalid kind"),
            (json!({"apiGroup": "apps", "kind": "VirtualMachine"}), "invalid apiGroup"),
        ] {
            assert_eq!(message(&snapshot(&create(source.clone()), &config())), expected, "{source}");
        }
        let update = json!({"operation": "UPDATE", "object": {"spec": 1}, "oldObject": {"spec": 2}});
        assert_eq!(message(&snapshot(&update, &config())), "spec in immutable after creation");
        let older = ClusterConfig::of(&json!({"status": {"observedKubeVirtVersion": "v1.8.0"}}));
        assert_eq!(message(&snapshot(&create(json!({})), &older)), "snapshot feature gate not enabled");
    }

    #[test]
    fn restores_say_what_is_wrong() {
        let target = json!({"apiGroup": "kubevirt.io", "kind": "VirtualMachine", "name": "v"});
        let ask = |extra: Value| {
            let mut spec = json!({"target": target, "virtualMachineSnapshotName": "s"});
            for (key, value) in extra.as_object().unwrap() {
                spec[key] = value.clone();
            }
            json!({"operation": "CREATE", "object": {"spec": spec}})
        };
        for (extra, expected) in [
            (json!({}), ""),
            (
                json!({"patches": [r#"{"op": "replace", "path": "/metadata/name", "value": "x"}"#]}),
                r#"patching is valid only for elements under /spec/ only:  "path": "/metadata/name""#,
            ),
            (
                json!({"patches": [r#"{"op": "add", "path": "/spec/a", "value": "1:2"}"#]}),
                r#"patch format is not valid - one ":" expected in a single key-value json patch:  "value": "1:2""#,
            ),
            (json!({"volumeRestorePolicy": "Other"}), "volume restore policy \"Other\" doesn't exist"),
            (
                json!({"volumeRestoreOverrides": [{"volumeName": "a"}]}),
                "must provide at least one overriden field",
            ),
        ] {
            assert_eq!(message(&restore(&ask(extra), &Lookups::default(), &config())), expected);
        }
        let running = Lookups {
            restores: vec![json!({"metadata": {"name": "r"}, "spec": {"target": target}})],
            ..Lookups::default()
        };
        assert_eq!(
            message(&restore(&ask(json!({})), &running, &config())),
            "VirtualMachineRestore \"r\" in progress"
        );
    }

    #[test]
    fn clones_are_completed_and_looked_at() {
        let ask = |spec: Value| json!({"operation": "CREATE", "uid": "ab-cdefg", "object": {"spec": spec}});
        let source = json!({"apiGroup": "kubevirt.io", "kind": "VirtualMachine", "name": "v"});
        let completed = complete_clone(&ask(json!({"source": source}))).unwrap();
        assert_eq!(completed[0]["value"]["target"]["name"], "clone-v-abcde");
        for (extra, expected) in [
            (json!({}), ""),
            (
                json!({"target": source}),
                "Target name cannot be equal to source name when both are VirtualMachines",
            ),
            (
                json!({"labelFilters": ["a*b"]}),
                "spec.labels filter a*b is invalid: cannot contain a wildcard character (*); FilterRules: WildcardChar can be only at the end of the filter",
            ),
            (json!({"newMacAddresses": {"n": "xyz"}}), "interface n has malformed MAC address (xyz)."),
            (json!({"patches": ["{"]}), "patch is not valid JSON ({)"),
        ] {
            let mut spec = json!({"source": source, "target": {"apiGroup": "kubevirt.io", "kind": "VirtualMachine", "name": "w"}});
            for (key, value) in extra.as_object().unwrap() {
                spec[key] = value.clone();
            }
            assert_eq!(message(&clone(&ask(spec), &config())), expected);
        }
    }

    #[test]
    fn a_busy_vm_keeps_its_volumes_and_its_strategy() {
        let vm = |status: Value, strategy: &str, volumes: Value| json!({"spec": {"runStrategy": strategy, "template": {"spec": {"volumes": volumes}}}, "status": status});
        let (snapshot, restore) = (json!({"snapshotInProgress": "s"}), json!({"restoreInProgress": "r"}));
        for (status, strategy, volumes, expected) in [
            (json!({}), "Always", json!([1]), ""),
            (
                snapshot.clone(),
                "Halted",
                json!([1]),
                "Cannot update vm disks or volumes until snapshot \"s\" completes",
            ),
            (snapshot, "Always", json!([]), "Cannot update vm running state until snapshot \"s\" completes"),
            (restore.clone(), "Halted", json!([1]), ""),
            (restore, "Always", json!([]), "Cannot update VM runStrategy until restore \"r\" completes"),
        ] {
            let request = json!({"operation": "UPDATE", "object": vm(status, strategy, volumes),
                "oldObject": vm(json!({}), "Halted", json!([]))});
            let causes = busy(&request);
            assert_eq!(causes.first().map_or("", |one| one.message.as_str()), expected);
        }
    }
}
