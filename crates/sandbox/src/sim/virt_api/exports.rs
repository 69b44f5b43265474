//! virt-api's admission of exports (`pkg/storage/admitters/vmexport.go`, v1.9, and its gate of the releases before).

use apimachinery::tree::Value;

use super::storage::{cause, changed, error, judged};
use super::validate::INVALID;
use crate::sim::cluster::ClusterConfig;
use crate::sim::json::text;

/// What can be exported: kind, API group, and what the admission calls it.
const SOURCES: [(&str, &str, &str); 5] = [
    ("PersistentVolumeClaim", "", "PVC"),
    ("VirtualMachineSnapshot", "snapshot.kubevirt.io", "VMSnapshot"),
    ("VirtualMachine", "kubevirt.io", "VM"),
    ("VirtualMachineBackup", "backup.kubevirt.io", "VMBackup"),
    ("VirtualMachineTemplate", "template.kubevirt.io", "VMTemplate"),
];

/// Whether an export may be made or changed.
pub fn export(request: &Value, config: &ClusterConfig) -> Value {
    if text(request, "/operation") == "UPDATE" {
        return judged(&changed(request));
    }
    if !config.gate("VMExport") {
        return error("vm export feature gate not enabled");
    }
    let source = &request["object"]["spec"]["source"];
    let Some((_, group, called)) = SOURCES.iter().find(|(kind, ..)| *kind == text(source, "/kind")) else {
        return judged(&[cause(INVALID, "invalid kind", "spec.source.kind")]);
    };
    let mut causes = Vec::new();
    if text(source, "/name").is_empty() {
        let named = if *called == "VM" { "Virtual Machine" } else { called };
        causes.push(cause(INVALID, format!("{named} name must not be empty"), "spec.source.name"));
    }
    if text(source, "/apiGroup") != *group {
        let wanted = if group.is_empty() { "missing or blank" } else { group };
        causes.push(cause(INVALID, format!("{called} API group must be {wanted}"), "spec.source.APIGroup"));
    }
    judged(&causes)
}

#[cfg(test)]
mod tests {
    use apimachinery::tree::json;

    use super::*;

    fn config(version: &str, gates: &[&str]) -> ClusterConfig {
        ClusterConfig::of(
            &json!({"spec": {"configuration": {"developerConfiguration": {"featureGates": gates}}},
                "status": {"observedKubeVirtVersion": version}}),
        )
    }

    fn create(source: &Value) -> Value {
        json!({"operation": "CREATE", "object": {"spec": {"source": source}}})
    }

    fn message(response: &Value) -> &str {
        text(response, "/status/message")
    }

    #[test]
    fn before_ga_an_export_needs_its_gate() {
        let vm = create(&json!({"apiGroup": "kubevirt.io", "kind": "VirtualMachine", "name": "web"}));
        assert_eq!(message(&export(&vm, &config("v1.8.4", &[]))), "vm export feature gate not enabled");
        assert_eq!(export(&vm, &config("v1.8.4", &["VMExport"]))["allowed"], true);
        assert_eq!(export(&vm, &config("v1.9.0", &[]))["allowed"], true);
    }

    #[test]
    fn what_is_exported_has_the_group_of_its_kind_and_a_name_and_stays() {
        let new = config("v1.9.0", &[]);
        for (source, wrong) in [
            (json!({"kind": "PersistentVolumeClaim", "name": "a"}), ""),
            (
                json!({"apiGroup": "x", "kind": "PersistentVolumeClaim", "name": "a"}),
                "PVC API group must be missing or blank",
            ),
            (json!({"kind": "VirtualMachine", "name": "a"}), "VM API group must be kubevirt.io"),
            (
                json!({"apiGroup": "kubevirt.io", "kind": "VirtualMachine"}),
                "Virtual Machine name must not be empty",
            ),
            (json!({"kind": "Pod", "name": "a"}), "invalid kind"),
        ] {
            let answer = export(&create(&source), &new);
            assert!(message(&answer).contains(wrong), "{source}: {answer}");
            assert_eq!(answer["allowed"], wrong.is_empty(), "{source}");
        }
        let update = json!({"operation": "UPDATE", "object": {"spec": {"ttlDuration": "2h"}},
            "oldObject": {"spec": {"ttlDuration": "1h"}}});
        assert_eq!(export(&update, &new)["allowed"], false);
    }
}
