//! Nodes, as far as they carry VMs.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Value;

use super::json::{condition, list, text};
use super::summary::bytes;

/// A node and what runs on it.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeSummary {
    /// Its name.
    pub name: String,
    /// Whether its kubelet is alive.
    pub ready: bool,
    /// Whether it takes no new pods.
    pub cordoned: bool,
    /// Whether KubeVirt schedules VMs there.
    pub runs_vms: bool,
    /// VMs that run there.
    pub vms: u64,
    /// Of these, how many can move away while they run.
    pub migratable: u64,
    /// Their virtual CPUs.
    pub guest_vcpus: u64,
    /// The memory of their guests, bytes.
    pub guest_memory_bytes: u64,
    /// Thousandths of CPUs that pods can have.
    pub allocatable_cpu_milli: u64,
    /// Memory that pods can have, bytes.
    pub allocatable_memory_bytes: u64,
    /// Device resources, and how many there are.
    pub devices: BTreeMap<String, String>,
    /// The version of its kubelet.
    pub kubelet: String,
}

impl NodeSummary {
    /// Reads a node; VMs are [counted](Self::count) one by one.
    pub fn of(node: &Value) -> Self {
        let label = |name: &str| {
            node.pointer("/metadata/labels").and_then(|labels| labels.get(name)).and_then(Value::as_str)
        };
        let allocatable = node.pointer("/status/allocatable").and_then(Value::as_object);
        let cpu = node.pointer("/status/allocatable/cpu").and_then(apimachinery::quantity::milli);
        let plain = ["cpu", "memory", "pods", "ephemeral-storage"];
        let devices = allocatable.into_iter().flatten().filter(|(name, amount)| {
            !plain.contains(&name.as_str()) && !name.starts_with("hugepages-") && amount.as_str() != Some("0")
        });
        Self {
            name: text(node, "/metadata/name").into(),
            ready: condition(node, "Ready").is_some_and(|one| text(one, "/status") == "True"),
            cordoned: node.pointer("/spec/unschedulable") == Some(&Value::Bool(true)),
            runs_vms: label("kubevirt.io/schedulable") == Some("true"),
            vms: 0,
            migratable: 0,
            guest_vcpus: 0,
            guest_memory_bytes: 0,
            allocatable_cpu_milli: cpu.and_then(|cpu| u64::try_from(cpu).ok()).unwrap_or_default(),
            allocatable_memory_bytes: bytes(text(node, "/status/allocatable/memory")).unwrap_or_default(),
            devices: devices
                .map(|(name, amount)| (name.clone(), amount.as_str().unwrap_or_default().to_owned()))
                .collect(),
            kubelet: text(node, "/status/nodeInfo/kubeletVersion").into(),
        }
    }

    /// Counts an instance that runs there.
    pub fn count(&mut self, vmi: &Value) {
        if matches!(text(vmi, "/status/phase"), "Succeeded" | "Failed") {
            return;
        }
        let summary = super::VmSummary::of(&Value::Null, Some(vmi));
        self.vms += 1;
        self.migratable += u64::from(summary.migratable == Some(true));
        self.guest_vcpus = self.guest_vcpus.saturating_add(summary.vcpus.unwrap_or_default());
        let memory = summary.memory_bytes.unwrap_or_default();
        self.guest_memory_bytes = self.guest_memory_bytes.saturating_add(memory);
    }
}

/// Joins nodes with the instances on them, in the order of the nodes.
pub fn join(nodes: &[Value], vmis: &[Value]) -> Vec<NodeSummary> {
    let mut found: Vec<NodeSummary> = nodes.iter().map(NodeSummary::of).collect();
    let places: BTreeMap<String, usize> =
        found.iter().enumerate().map(|(at, node)| (node.name.clone(), at)).collect();
    for vmi in vmis {
        if let Some(node) = places.get(text(vmi, "/status/nodeName")).and_then(|at| found.get_mut(*at)) {
            node.count(vmi);
        }
    }
    found
}

/// What of a node somebody who looks closer wants to see, with its labels that KubeVirt sets.
pub fn features(node: &Value) -> Vec<String> {
    let labels = node.pointer("/metadata/labels").and_then(Value::as_object);
    let mut found: Vec<String> = labels
        .into_iter()
        .flatten()
        .filter(|(name, value)| name.contains("node.kubevirt.io/") && value.as_str() != Some("false"))
        .map(|(name, _)| name.clone())
        .collect();
    found.sort_unstable();
    found
}

/// Taints of a node, as `kubectl describe` writes them.
pub fn taints(node: &Value) -> Vec<String> {
    let write = |taint: &Value| {
        let (key, value, effect) = (text(taint, "/key"), text(taint, "/value"), text(taint, "/effect"));
        if value.is_empty() { format!("{key}:{effect}") } else { format!("{key}={value}:{effect}") }
    };
    list(node, "/spec/taints").iter().map(write).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn instances_are_counted_where_they_run() {
        let node = |name: &str| {
            json!({"metadata": {"name": name, "labels": {"kubevirt.io/schedulable": "true",
                    "cpu-feature.node.kubevirt.io/svm": "true", "kubernetes.io/os": "linux"}},
                "spec": {"taints": [{"key": "a", "value": "b", "effect": "NoSchedule"}]},
                "status": {"allocatable": {"cpu": "7500m", "memory": "8Gi", "nvidia.com/T4": "2"},
                    "conditions": [{"type": "Ready", "status": "True"}]}})
        };
        let vmi = |node: &str, phase: &str, can: &str| {
            json!({"spec": {"domain": {"memory": {"guest": "1Gi"}}}, "status": {"nodeName": node, "phase": phase,
                "currentCPUTopology": {"sockets": 2}, "conditions": [{"type": "LiveMigratable", "status": can}]}})
        };
        let vmis = [
            vmi("n1", "Running", "True"),
            vmi("n1", "Running", "False"),
            vmi("n1", "Succeeded", "True"),
            vmi("n9", "Running", "True"),
        ];
        let found = join(&[node("n1"), node("n2")], &vmis);
        let first = &found[0];
        assert_eq!((first.vms, first.migratable, first.guest_vcpus), (2, 1, 4));
        assert_eq!((first.guest_memory_bytes, first.allocatable_cpu_milli), (2 << 30, 7500));
        assert_eq!(first.devices.get("nvidia.com/T4").map(String::as_str), Some("2"));
        assert_eq!((found[1].vms, first.ready, first.cordoned), (0, true, false));
        assert_eq!(features(&node("n")), ["cpu-feature.node.kubevirt.io/svm"]);
        assert_eq!(taints(&node("n")), ["a=b:NoSchedule"]);
    }
}
