//! Instance types and preferences, of the cluster and of namespaces (`instancetype.kubevirt.io`, v1beta1).

use serde::Serialize;
use serde_json::Value;

use crate::view::{some, text};

/// An instance type in short.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Instancetype {
    /// `VirtualMachineInstancetype` or `VirtualMachineClusterInstancetype`.
    pub kind: String,
    /// Its namespace, unless it is the cluster's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Its name.
    pub name: String,
    /// Virtual CPUs.
    pub vcpus: u64,
    /// Guest memory, bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
    /// GPUs, by resource.
    pub gpus: Vec<String>,
    /// What is special: dedicated CPUs, huge pages, overcommitted memory.
    pub traits: Vec<String>,
}

/// A preference in short.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Preference {
    /// `VirtualMachinePreference` or `VirtualMachineClusterPreference`.
    pub kind: String,
    /// Its namespace, unless it is the cluster's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Its name.
    pub name: String,
    /// What it calls itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub display_name: Option<String>,
    /// Preferred bus of disks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk_bus: Option<String>,
    /// Preferred model of interfaces.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interface_model: Option<String>,
    /// The least that it asks for: virtual CPUs, and memory in bytes.
    pub requires: (Option<u64>, Option<u64>),
}

fn units(object: &Value, pointer: &str) -> Option<u64> {
    let amount = apimachinery::quantity::units(object.pointer(pointer)?)?;
    u64::try_from(amount).ok()
}

impl Instancetype {
    /// Reads one; items of lists do not say their kind, so it is given.
    pub fn of(kind: &str, object: &Value) -> Self {
        let mut traits = Vec::new();
        if object.pointer("/spec/cpu/dedicatedCPUPlacement") == Some(&Value::Bool(true)) {
            traits.push("dedicated CPUs".to_owned());
        }
        if let Some(size) = some(object, "/spec/memory/hugepages/pageSize") {
            traits.push(format!("{size} pages"));
        }
        if let Some(percent) = object.pointer("/spec/memory/overcommitPercent").and_then(Value::as_u64)
            && percent > 0
        {
            traits.push(format!("{percent} % of memory overcommitted"));
        }
        let gpus = crate::view::list(object, "/spec/gpus").iter();
        Self {
            kind: kind.into(),
            namespace: some(object, "/metadata/namespace"),
            name: text(object, "/metadata/name").into(),
            vcpus: object.pointer("/spec/cpu/guest").and_then(Value::as_u64).unwrap_or_default(),
            memory_bytes: units(object, "/spec/memory/guest"),
            gpus: gpus.map(|gpu| text(gpu, "/deviceName").to_owned()).collect(),
            traits,
        }
    }
}

impl Preference {
    /// Reads one; items of lists do not say their kind, so it is given.
    pub fn of(kind: &str, object: &Value) -> Self {
        let shown =
            object.pointer("/metadata/annotations/openshift.io~1display-name").and_then(Value::as_str);
        Self {
            kind: kind.into(),
            namespace: some(object, "/metadata/namespace"),
            name: text(object, "/metadata/name").into(),
            display_name: shown.map(str::to_owned),
            disk_bus: some(object, "/spec/devices/preferredDiskBus"),
            interface_model: some(object, "/spec/devices/preferredInterfaceModel"),
            requires: (
                object.pointer("/spec/requirements/cpu/guest").and_then(Value::as_u64),
                units(object, "/spec/requirements/memory/guest"),
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn sizes_and_traits_are_read() {
        let read = Instancetype::of(
            "VirtualMachineClusterInstancetype",
            &json!({"metadata": {"name": "u1.medium"}, "spec": {"cpu": {"guest": 1, "dedicatedCPUPlacement": true},
                "memory": {"guest": "4Gi", "overcommitPercent": 50}, "gpus": [{"deviceName": "nvidia.com/T4"}]}}),
        );
        assert_eq!((read.vcpus, read.memory_bytes, read.namespace), (1, Some(4 << 30), None));
        assert_eq!(read.traits, ["dedicated CPUs", "50 % of memory overcommitted"]);
        let read = Preference::of(
            "VirtualMachinePreference",
            &json!({"metadata": {"name": "fedora", "namespace": "a", "annotations": {"openshift.io/display-name": "Fedora"}},
                "spec": {"devices": {"preferredDiskBus": "virtio"}, "requirements": {"memory": {"guest": "1Gi"}}}}),
        );
        assert_eq!(
            (read.display_name.as_deref(), read.disk_bus.as_deref()),
            (Some("Fedora"), Some("virtio"))
        );
        assert_eq!(read.requires, (None, Some(1 << 30)));
    }
}
