//! What is known about the cluster when a request is decided: plain data, filled in from
//! watches by the operator or from a file by `virt-steward admit --facts`.

use std::collections::BTreeMap;

use kubevirt::inventory::Host;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Facts that hold for every request until a watch changes them.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ClusterFacts {
    /// The nodes, by any order; `None` when they could not be read.
    pub nodes: Option<Vec<Node>>,
    /// The KubeVirt CR, raw (`spec`, `status`); `None` when it is not there or not readable.
    pub kubevirt: Option<Value>,
    /// Harvester's `PCIDevice` objects joined with their claims; `None` when that CRD is absent.
    pub pci_devices: Option<Vec<PciDevice>>,
    /// What node agents published, by node; `None` when that CRD is absent.
    pub hosts: Option<Vec<Host>>,
    /// Names of KubeVirt's `Plugin` objects (VEP 190); `None` when that CRD is absent.
    pub plugins: Option<Vec<String>>,
}

/// What decides whether a VM can land on a node.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Node {
    /// `metadata.name`
    pub name: String,
    /// `metadata.labels`, with `kubernetes.io/arch` and the node-labeller's labels.
    pub labels: BTreeMap<String, String>,
    /// `spec.unschedulable`
    pub unschedulable: bool,
    /// Of `status.allocatable` what VMs can be short of: huge pages and devices. Empty when that is
    /// not known.
    pub allocatable: BTreeMap<String, String>,
}

/// One Harvester `PCIDevice` (harvester/pcidevices v1beta1).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct PciDevice {
    /// `metadata.name`, for example `dell-190-000001105`.
    pub name: String,
    /// `status.address`, for example `0000:01:10.5`.
    pub address: String,
    /// `status.nodeName`
    pub node_name: String,
    /// `status.resourceName`
    pub resource_name: String,
    /// `status.iommuGroup`, empty when the host reports none.
    pub iommu_group: String,
    /// The claim of the same name exists and reports `status.passthroughEnabled`.
    pub passthrough_enabled: bool,
}

impl ClusterFacts {
    /// Facts from raw Kubernetes objects: `Node`, the `KubeVirt` CR, and Harvester's `PCIDevice`
    /// and `PCIDeviceClaim`, each `None` when it could not be read or the kind is not there.
    pub fn from_objects(
        nodes: Option<&[Value]>,
        kubevirt: Option<Value>,
        pci_devices: Option<(&[Value], &[Value])>,
    ) -> Self {
        Self {
            nodes: nodes.map(|nodes| nodes.iter().map(Node::from_object).collect()),
            kubevirt,
            pci_devices: pci_devices.map(|(devices, claims)| PciDevice::join(devices, claims)),
            hosts: None,
            plugins: None,
        }
    }
}

impl Node {
    /// Reads a `v1` Node.
    pub fn from_object(node: &Value) -> Self {
        Self {
            name: text(node, "metadata", "name"),
            labels: node["metadata"]["labels"]
                .as_object()
                .into_iter()
                .flatten()
                .filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned())))
                .collect(),
            unschedulable: node["spec"]["unschedulable"] == true,
            allocatable: Self::allocatable(&node["status"]["allocatable"]),
        }
    }

    /// What of `status.allocatable` counts: the rest changes often and decides nothing here.
    pub fn allocatable(amounts: &Value) -> BTreeMap<String, String> {
        let counts = |name: &str| {
            name.starts_with("hugepages-")
                || (name.contains('/') && !name.starts_with("devices.kubevirt.io/"))
        };
        let members = amounts.as_object().into_iter().flatten();
        members
            .filter(|(name, _)| counts(name))
            .filter_map(|(name, amount)| Some((name.clone(), amount.as_str()?.to_owned())))
            .collect()
    }
}

impl PciDevice {
    /// Reads a `PCIDevice` (harvester/pcidevices v1beta1), as yet without its claim.
    pub fn from_object(device: &Value) -> Self {
        Self {
            name: text(device, "metadata", "name"),
            address: text(device, "status", "address"),
            node_name: text(device, "status", "nodeName"),
            resource_name: text(device, "status", "resourceName"),
            iommu_group: text(device, "status", "iommuGroup"),
            passthrough_enabled: false,
        }
    }

    /// Joins `PCIDevice` objects with the `PCIDeviceClaim` objects of the same name.
    pub fn join(devices: &[Value], claims: &[Value]) -> Vec<Self> {
        let enabled: std::collections::BTreeSet<&str> = claims
            .iter()
            .filter(|claim| claim["status"]["passthroughEnabled"] == true)
            .filter_map(|claim| claim["metadata"]["name"].as_str())
            .collect();
        devices
            .iter()
            .map(Self::from_object)
            .map(|device| Self { passthrough_enabled: enabled.contains(device.name.as_str()), ..device })
            .collect()
    }
}

fn text(object: &Value, section: &str, field: &str) -> String {
    object[section][field].as_str().unwrap_or_default().to_owned()
}

/// One object that a request makes us read, because the VM asks for it by name.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Need {
    /// A ConfigMap in the VM's namespace.
    ConfigMap(String),
    /// A Secret in the VM's namespace.
    Secret(String),
    /// A Multus `NetworkAttachmentDefinition`, as KubeVirt names it: `name` in the VM's namespace, or
    /// `namespace/name`.
    Network(String),
    /// A `VirtualMachineInstancetype` in the VM's namespace.
    Instancetype(String),
    /// A `VirtualMachineClusterInstancetype`.
    ClusterInstancetype(String),
    /// A `VirtualMachinePreference` in the VM's namespace.
    Preference(String),
    /// A `VirtualMachineClusterPreference`.
    ClusterPreference(String),
}

impl Need {
    /// The path of the object at an API server, for a VM in a namespace. Names are as users write
    /// them; who sends the path checks that they are names.
    pub fn path(&self, namespace: &str) -> String {
        const INSTANCETYPES: &str = "/apis/instancetype.kubevirt.io/v1beta1";
        match self {
            Self::ConfigMap(name) => format!("/api/v1/namespaces/{namespace}/configmaps/{name}"),
            Self::Secret(name) => format!("/api/v1/namespaces/{namespace}/secrets/{name}"),
            Self::Network(name) => {
                let (namespace, name) = name.split_once('/').unwrap_or((namespace, name));
                format!(
                    "/apis/k8s.cni.cncf.io/v1/namespaces/{namespace}/network-attachment-definitions/{name}"
                )
            }
            Self::Instancetype(name) => {
                format!("{INSTANCETYPES}/namespaces/{namespace}/virtualmachineinstancetypes/{name}")
            }
            Self::ClusterInstancetype(name) => {
                format!("{INSTANCETYPES}/virtualmachineclusterinstancetypes/{name}")
            }
            Self::Preference(name) => {
                format!("{INSTANCETYPES}/namespaces/{namespace}/virtualmachinepreferences/{name}")
            }
            Self::ClusterPreference(name) => {
                format!("{INSTANCETYPES}/virtualmachineclusterpreferences/{name}")
            }
        }
    }

    /// The parts that a user wrote: each has to be the name of an object.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        let (Self::ConfigMap(name)
        | Self::Secret(name)
        | Self::Network(name)
        | Self::Instancetype(name)
        | Self::ClusterInstancetype(name)
        | Self::Preference(name)
        | Self::ClusterPreference(name)) = self;
        let (first, second) = match (self, name.split_once('/')) {
            (Self::Network(_), Some((namespace, name))) => (namespace, Some(name)),
            _ => (name.as_str(), None),
        };
        std::iter::once(first).chain(second)
    }
}

/// What reading a [`Need`] gave.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Lookup {
    /// The object, raw.
    Found(Value),
    /// It does not exist.
    NotFound,
    /// It could not be read; the text says why (forbidden, timeout, …).
    Failed(String),
}

/// Answers to needs.
pub type Lookups = BTreeMap<Need, Lookup>;

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn facts_are_read_from_raw_objects() {
        let node = json!({"metadata": {"name": "n1", "labels": {"a": "b", "odd": 3}}, "spec": {"unschedulable": true}});
        let device = |name: &str| {
            json!({
                "metadata": {"name": name},
                "status": {"address": "0000:01:10.5", "nodeName": "n1", "resourceName": "intel.com/X", "iommuGroup": "7"},
            })
        };
        let claim = |name: &str, enabled: bool| json!({"metadata": {"name": name}, "status": {"passthroughEnabled": enabled}});
        let facts = ClusterFacts::from_objects(
            Some(&[node, json!({})]),
            None,
            Some((&[device("d1"), device("d2"), device("d3")], &[claim("d1", true), claim("d2", false)])),
        );
        let nodes = facts.nodes.unwrap();
        assert_eq!((nodes[0].name.as_str(), nodes[0].unschedulable, nodes[0].labels.len()), ("n1", true, 1));
        assert_eq!(nodes[1], Node::default());
        let devices = facts.pci_devices.unwrap();
        let enabled: Vec<_> = devices.iter().map(|device| device.passthrough_enabled).collect();
        assert_eq!(enabled, [true, false, false]);
        assert_eq!((devices[0].address.as_str(), devices[0].iommu_group.as_str()), ("0000:01:10.5", "7"));
        let unknown = ClusterFacts::from_objects(None, None, None);
        assert_eq!(unknown, ClusterFacts::default());
    }
}
