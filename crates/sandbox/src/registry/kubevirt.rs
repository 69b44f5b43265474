//! The definitions of KubeVirt 1.9, CDI and their neighbours with names, versions, columns and
//! subresources, but without schemas: every field is kept. For the full schemas, give the sandbox
//! the release's own manifests.

use serde_json::{Value, json};

const KUBEVIRT: &str = include_str!("kubevirt.json");
const HARVESTER: &str = include_str!("harvester.json");

/// `CustomResourceDefinitions` of KubeVirt, CDI, volume snapshots and network attachments.
///
/// # Errors
/// When the embedded table is no JSON, which a test rules out.
pub fn definitions() -> Result<Vec<Value>, serde_json::Error> {
    expand(KUBEVIRT)
}

/// Those of Harvester's PCI devices, which a cluster may lack.
///
/// # Errors
/// As [`definitions`].
pub fn harvester() -> Result<Vec<Value>, serde_json::Error> {
    expand(HARVESTER)
}

fn expand(table: &str) -> Result<Vec<Value>, serde_json::Error> {
    let specs: Vec<Value> = serde_json::from_str(table)?;
    Ok(specs.into_iter().map(definition).collect())
}

fn definition(mut spec: Value) -> Value {
    let open = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
    let schema = json!({"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": true,
        "properties": {"apiVersion": {"type": "string"}, "kind": {"type": "string"},
            "metadata": {"type": "object"}, "spec": open, "status": open}}});
    for version in spec["versions"].as_array_mut().into_iter().flatten() {
        version["schema"] = schema.clone();
    }
    let name = format!(
        "{}.{}",
        spec["names"]["plural"].as_str().unwrap_or_default(),
        spec["group"].as_str().unwrap_or_default()
    );
    json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": name}, "spec": spec})
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::Registry;

    #[test]
    fn every_definition_can_be_served() {
        let registry = Registry::new();
        for definition in definitions().unwrap().iter().chain(&harvester().unwrap()) {
            registry.define(definition).unwrap();
        }
        let kinds = registry.kinds();
        let vm = kinds.find("kubevirt.io", "v1", "virtualmachines").unwrap();
        assert_eq!(vm.short_names, ["vm", "vms"]);
        assert!(vm.subresource("status").is_some());
        assert!(kinds.find("devices.harvesterhci.io", "v1beta1", "pcidevices").is_some());
    }
}
