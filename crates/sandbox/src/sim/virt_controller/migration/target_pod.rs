//! The pod that a guest moves into (`RenderMigrationManifest`, `createTargetPod`, v1.9): a launcher pod
//! that keeps away from the source's node and needs a CPU that the guest can run on.

use serde_json::{Map, Value, json};

use super::decide::JOB_LABEL;
use crate::sim::cluster::ClusterConfig;
use crate::sim::json::{self, map, slot, text};
use crate::sim::virt_controller::launcher_pod;
use crate::sim::virt_controller::vm_status::SyncError;

const VENDOR: &str = "cpu-vendor.node.kubevirt.io/";
const HOST_MODEL: &str = "host-model-cpu.node.kubevirt.io/";
const MODEL_MIGRATION: &str = "cpu-model-migration.node.kubevirt.io/";
const FEATURE: &str = "cpu-feature.node.kubevirt.io/";
const REQUIRED_FEATURE: &str = "host-model-required-features.node.kubevirt.io/";
const MACHINE: &str = "machine-type.node.kubevirt.io/";

/// The pod, or why there can be none.
pub fn render(
    migration: &Value,
    vmi: &Value,
    source: &Value,
    node: Option<&Value>,
    config: &ClusterConfig,
) -> Result<Value, SyncError> {
    let mut pod = launcher_pod::render(vmi, config)?;
    json::put(&mut pod, &["metadata", "labels", JOB_LABEL], json::uid(migration));
    json::put(&mut pod, &["metadata", "annotations", "kubevirt.io/migrationJobName"], json::name(migration));
    let term = json!({"labelSelector": {"matchLabels": {"kubevirt.io/created-by": json::uid(vmi)}},
        "topologyKey": "kubernetes.io/hostname"});
    let terms = slot(
        &mut pod,
        &["spec", "affinity", "podAntiAffinity", "requiredDuringSchedulingIgnoredDuringExecution"],
    );
    match terms {
        Value::Array(terms) => terms.push(term),
        other => *other = json!([term]),
    }
    let mut selector = map(migration, "/spec/addedNodeSelector").cloned().unwrap_or_default();
    // What the VMI wants itself wins over what the migration adds.
    selector.extend(map(&pod, "/spec/nodeSelector").cloned().unwrap_or_default());
    machine(&mut selector, vmi);
    let labels = node.and_then(|node| map(node, "/metadata/labels"));
    if text(vmi, "/spec/domain/cpu/model") == "host-model" {
        selector.extend(
            host_model(map(source, "/spec/nodeSelector"), labels)
                .map_err(|message| SyncError { reason: "FailedCreate", message })?,
        );
    }
    if !selector.keys().any(|key| key.starts_with(VENDOR))
        && let Some(vendor) = labels.and_then(|labels| labels.keys().find(|key| key.starts_with(VENDOR)))
    {
        selector.insert(vendor.clone(), "true".into());
    }
    pod["spec"]["nodeSelector"] = selector.into();
    Ok(pod)
}

/// The guest goes on with the machine that it runs on, not with what an alias means today.
fn machine(selector: &mut Map<String, Value>, vmi: &Value) {
    let machine = text(vmi, "/status/machine/type");
    if machine.is_empty() {
        return;
    }
    selector.retain(|key, _| !key.starts_with(MACHINE));
    selector.insert(format!("{MACHINE}{machine}"), "true".into());
}

/// What a node must have so that a guest with the source's CPU runs there: copied from the node the
/// first time, and from pod to pod afterwards (`prepareNodeSelectorForHostCpuModel`).
fn host_model(
    source: Option<&Map<String, Value>>,
    labels: Option<&Map<String, Value>>,
) -> Result<Map<String, Value>, String> {
    let inherited: Map<String, Value> = source
        .into_iter()
        .flatten()
        .filter(|(key, _)| key.contains(FEATURE) || key.contains(MODEL_MIGRATION))
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect();
    if !inherited.is_empty() {
        return Ok(inherited);
    }
    let mut found = Map::new();
    let mut model = None;
    for (key, value) in labels.into_iter().flatten() {
        if let Some(name) = key.strip_prefix(HOST_MODEL) {
            model = Some((format!("{MODEL_MIGRATION}{name}"), value.clone()));
        }
        if let Some(feature) = key.strip_prefix(REQUIRED_FEATURE) {
            found.insert(format!("{FEATURE}{feature}"), value.clone());
        }
    }
    let (key, value) = model.ok_or_else(|| {
        format!("unable to locate host cpu model, does not contain label \"{HOST_MODEL}\" with information")
    })?;
    found.insert(key, value);
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_keeps_away_from_the_source_and_needs_its_cpu() {
        let vmi = json!({"metadata": {"name": "v", "namespace": "n", "uid": "vmi-uid"},
            "spec": {"domain": {"cpu": {"model": "host-model"}, "machine": {"type": "q35"}}},
            "status": {"machine": {"type": "pc-q35-rhel9.6.0"}}});
        let migration = json!({"metadata": {"name": "m", "uid": "m-uid"},
            "spec": {"addedNodeSelector": {"zone": "b", "kubevirt.io/schedulable": "never"}}});
        let node = json!({"metadata": {"labels": {"host-model-cpu.node.kubevirt.io/Skylake": "true",
            "cpu-vendor.node.kubevirt.io/Intel": "true", "host-model-required-features.node.kubevirt.io/vmx": "true"}}});
        let source = json!({"spec": {"nodeSelector": {}}});
        let pod = render(&migration, &vmi, &source, Some(&node), &ClusterConfig::of(&Value::Null)).unwrap();
        assert_eq!(pod["metadata"]["labels"][JOB_LABEL], "m-uid");
        assert_eq!(pod["metadata"]["annotations"]["kubevirt.io/migrationJobName"], "m");
        assert_eq!(
            pod["spec"]["affinity"]["podAntiAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"][0]["labelSelector"],
            json!({"matchLabels": {"kubevirt.io/created-by": "vmi-uid"}})
        );
        assert_eq!(
            pod["spec"]["nodeSelector"],
            json!({"zone": "b", "kubevirt.io/schedulable": "true", "cpu-vendor.node.kubevirt.io/Intel": "true",
                "cpu-feature.node.kubevirt.io/vmx": "true", "cpu-model-migration.node.kubevirt.io/Skylake": "true",
                "machine-type.node.kubevirt.io/pc-q35-rhel9.6.0": "true"})
        );
        // The second time the first pod's selector counts, whatever the node is.
        let other = json!({"metadata": {"labels": {"host-model-cpu.node.kubevirt.io/Cascadelake": "true"}}});
        let again = render(&migration, &vmi, &pod, Some(&other), &ClusterConfig::of(&Value::Null)).unwrap();
        assert!(
            again["spec"]["nodeSelector"].get("cpu-model-migration.node.kubevirt.io/Cascadelake").is_none()
        );
        assert!(render(&migration, &vmi, &source, None, &ClusterConfig::of(&Value::Null)).is_err());
    }
}
