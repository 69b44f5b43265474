//! What a node has, as the node agent publishes it: `NodeInventory`, one for each node and of its name
//! (ADR 16). Written by the agent, read by admission and by `virt-steward devices`.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// The API group and version.
pub const API_VERSION: &str = "vm-feature-manager.io/v1alpha1";
/// The kind.
pub const KIND: &str = "NodeInventory";
/// The path of all objects.
pub const COLLECTION: &str = "/apis/vm-feature-manager.io/v1alpha1/nodeinventories";
/// The most devices of a node that are published; a host with all its virtual functions has hundreds.
pub const MAX_DEVICES: usize = 2048;

/// A node's hardware, as far as VMs can use it.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Host {
    /// The name of the node.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub node: String,
    /// The processors.
    pub cpu: Cpu,
    /// Whether the kernel has IOMMU groups; without them nothing can be passed through.
    pub iommu: bool,
    /// How many NUMA nodes there are.
    pub numa_nodes: u32,
    /// The PCI devices, by address. Bridges are left out.
    pub pci_devices: Vec<PciFunction>,
}

/// The processors of a node.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Cpu {
    /// `Intel`, `AMD`, or what the processor calls itself.
    pub vendor: String,
    /// The name of the model.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub model: String,
    /// Whether guests can have guests (`nested` of the kvm module); `None`: no such module.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nested: Option<bool>,
}

/// One function of a PCI device.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PciFunction {
    /// `0000:07:00.0`
    pub address: String,
    /// `10de`
    pub vendor: String,
    /// `1eb8`
    pub device: String,
    /// Class, subclass and interface: `030000`.
    pub class: String,
    /// The kernel's driver; empty: none.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub driver: String,
    /// The IOMMU group; empty: none.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub iommu_group: String,
    /// The NUMA node that it is near.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub numa_node: Option<u32>,
    /// Whether the kernel has a ROM of it.
    pub rom: bool,
    /// Its virtual functions, of a physical function that can have some.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sriov: Option<Sriov>,
    /// The address of the physical function, of a virtual one.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub physical_function: String,
}

/// Virtual functions of a physical one.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Sriov {
    /// How many it can have.
    pub total: u32,
    /// How many it has.
    pub enabled: u32,
}

/// The driver of devices that guests may have.
pub const VFIO: &str = "vfio-pci";

impl PciFunction {
    /// `10DE:1EB8`, as KubeVirt selects devices.
    pub fn selector(&self) -> String {
        format!("{}:{}", self.vendor, self.device).to_ascii_uppercase()
    }

    /// Whether nothing on the host uses it: it is VFIO's, or nobody's. VFIO gives a group away only
    /// when this is so of each member (kernel `Documentation/driver-api/vfio.rst`).
    pub fn is_free(&self) -> bool {
        matches!(self.driver.as_str(), VFIO | "" | "pci-stub")
    }
}

impl Host {
    /// Reads a `NodeInventory`. What a newer agent wrote more is left out; nothing: it cannot be read.
    pub fn from_object(object: &Value) -> Option<Self> {
        let node = object.get("metadata")?.get("name")?.as_str()?.to_owned();
        let host: Self = serde_json::from_value(object.get("status")?.clone()).ok()?;
        Some(Self { node, ..host })
    }

    /// The object to apply; it goes with its node.
    pub fn to_object(&self, node_uid: &str) -> Value {
        let status = Self { node: String::new(), ..self.clone() };
        json!({
            "apiVersion": API_VERSION,
            "kind": KIND,
            "metadata": {"name": self.node, "ownerReferences": [
                {"apiVersion": "v1", "kind": "Node", "name": self.node, "uid": node_uid}]},
            "status": status,
        })
    }

    /// The devices of the same IOMMU group, itself left out.
    pub fn mates<'a>(&'a self, of: &'a PciFunction) -> impl Iterator<Item = &'a PciFunction> {
        self.pci_devices.iter().filter(move |other| {
            !of.iommu_group.is_empty() && other.iommu_group == of.iommu_group && other.address != of.address
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_is_read_as_it_is_written_and_newer_fields_are_left_out() {
        let gpu = PciFunction {
            address: "0000:07:00.0".into(),
            vendor: "10de".into(),
            device: "1eb8".into(),
            driver: VFIO.into(),
            iommu_group: "7".into(),
            ..PciFunction::default()
        };
        let audio =
            PciFunction { address: "0000:07:00.1".into(), driver: "snd_hda_intel".into(), ..gpu.clone() };
        let host = Host {
            node: "a".into(),
            iommu: true,
            cpu: Cpu { vendor: "AMD".into(), nested: Some(true), ..Cpu::default() },
            pci_devices: vec![gpu.clone(), audio.clone()],
            ..Host::default()
        };
        let mut object = host.to_object("u");
        assert_eq!(object["metadata"]["ownerReferences"][0]["uid"], "u");
        object["status"]["later"] = json!(1);
        assert_eq!(Host::from_object(&object), Some(host.clone()));
        assert_eq!(Host::from_object(&json!({"metadata": {"name": "a"}, "status": {"pciDevices": 3}})), None);
        assert_eq!((gpu.selector().as_str(), gpu.is_free(), audio.is_free()), ("10DE:1EB8", true, false));
        assert_eq!(host.mates(&gpu).collect::<Vec<_>>(), [&audio]);
    }
}
