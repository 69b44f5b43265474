//! virt-api's admission of backups and their trackers (`pkg/storage/admitters/backup.go`, v1.9), with the rules that
//! the real definitions state in CEL, since those here have no schema.

use apimachinery::tree::{Value, json};

use super::storage::{cause, error, judged};
use super::validate::INVALID;
use crate::sim::backup::{is_terminal, tracking::GATE};
use crate::sim::cluster::ClusterConfig;
use crate::sim::json::{self, text};

/// Whether a backup may be made or changed; `others` are the backups of its namespace.
pub fn backup(request: &Value, others: &[Value], config: &ClusterConfig) -> Value {
    let (object, spec) = (&request["object"], &request["object"]["spec"]);
    if text(request, "/operation") != "CREATE" {
        return immutable(request);
    }
    if !config.gate(GATE) {
        return error("IncrementalBackup feature gate not enabled");
    }
    let source = &spec["source"];
    let known = matches!(
        (text(source, "/apiGroup"), text(source, "/kind")),
        ("kubevirt.io", "VirtualMachine") | ("backup.kubevirt.io", "VirtualMachineBackupTracker")
    );
    for (wrong, field, message) in [
        (text(spec, "/pvcName").is_empty(), "spec", "pvcName is required"),
        (
            text(spec, "/mode") == "Pull" && text(spec, "/tokenSecretRef").is_empty(),
            "spec",
            "tokenSecretRef is required when mode is Pull",
        ),
        (
            !known,
            "spec.source",
            "kind must be VirtualMachine for kubevirt.io or VirtualMachineBackupTracker for backup.kubevirt.io",
        ),
        (text(source, "/name").is_empty(), "spec.source", "name is required"),
    ] {
        if wrong {
            return judged(&[cause(INVALID, message, field)]);
        }
    }
    for other in others {
        let name = json::name(other);
        if name == json::name(object) {
            let message = format!("VirtualMachineBackup \"{name}\" already exists");
            return judged(&[cause(INVALID, message, "metadata.name")]);
        }
        if other["spec"]["source"] == *source && !is_terminal(other) {
            let message = format!("VirtualMachineBackup \"{name}\" in progress for source");
            return judged(&[cause(INVALID, message, "spec.source")]);
        }
    }
    json!({"allowed": true})
}

/// Whether a tracker may be made or changed.
pub fn tracker(request: &Value, config: &ClusterConfig) -> Value {
    if text(request, "/operation") != "CREATE" {
        return immutable(request);
    }
    if !config.gate(GATE) {
        return error("IncrementalBackup feature gate not enabled");
    }
    let source = &request["object"]["spec"]["source"];
    if (text(source, "/apiGroup"), text(source, "/kind")) != ("kubevirt.io", "VirtualMachine") {
        return judged(&[cause(INVALID, "kind must be VirtualMachine", "spec.source")]);
    }
    json!({"allowed": true})
}

fn immutable(request: &Value) -> Value {
    let same = request["object"]["spec"] == request["oldObject"]["spec"];
    if text(request, "/operation") != "UPDATE" || same {
        return json!({"allowed": true});
    }
    judged(&[cause(INVALID, "spec is immutable after creation", "spec")])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(gates: &Value) -> ClusterConfig {
        ClusterConfig::of(&json!({"status": {"observedKubeVirtVersion": "v1.9.0"},
            "spec": {"configuration": {"developerConfiguration": {"featureGates": gates}}}}))
    }

    #[test]
    fn backups_need_the_gate_a_scratch_claim_and_a_source_of_their_own() {
        let on = config(&json!(["IncrementalBackup"]));
        let good = json!({"source": {"apiGroup": "kubevirt.io", "kind": "VirtualMachine", "name": "web"},
            "mode": "Pull", "pvcName": "scratch", "tokenSecretRef": "token"});
        let ask = |key: &str, value: Value| {
            let mut spec = good.clone();
            spec[key] = value;
            json!({"operation": "CREATE", "object": {"metadata": {"name": "b"}, "spec": spec}})
        };
        let message = |answer: &Value| text(answer, "/status/message").to_owned();
        let request = ask("mode", json!("Pull"));
        assert_eq!(backup(&request, &[], &on)["allowed"], true);
        let off = backup(&request, &[], &config(&json!([])));
        assert_eq!(message(&off), "IncrementalBackup feature gate not enabled");
        for (key, value, part) in [
            ("pvcName", json!(""), "pvcName is required"),
            ("tokenSecretRef", Value::Null, "tokenSecretRef is required"),
            ("source", json!({"apiGroup": "kubevirt.io", "kind": "Pod", "name": "p"}), "kind must be"),
        ] {
            let found = message(&backup(&ask(key, value), &[], &on));
            assert!(found.contains(part), "{found}");
        }
        let other = |name: &str, done: &str| {
            json!({"metadata": {"name": name}, "spec": {"source": good["source"]},
                "status": {"conditions": [{"type": "Complete", "status": done}]}})
        };
        assert_eq!(backup(&request, &[other("old", "True")], &on)["allowed"], true);
        assert!(message(&backup(&request, &[other("b", "True")], &on)).contains("already exists"));
        assert!(message(&backup(&request, &[other("c", "False")], &on)).contains("in progress for source"));
        let change = json!({"operation": "UPDATE", "object": {"spec": 1}, "oldObject": {"spec": 2}});
        assert_eq!(message(&backup(&change, &[], &on)), "spec is immutable after creation");
        let of = |kind: &str| json!({"operation": "CREATE", "object": {"spec": {"source": {"apiGroup": "kubevirt.io", "kind": kind}}}});
        assert_eq!(tracker(&of("VirtualMachine"), &on)["allowed"], true);
        assert_eq!(tracker(&of("Pod"), &on)["allowed"], false);
        assert_eq!(tracker(&of("VirtualMachine"), &config(&json!([])))["allowed"], false);
    }
}
