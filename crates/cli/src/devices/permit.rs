//! The change of the KubeVirt CR that permits a device. No IO.

use kubevirt::inventory::{Host, PciFunction};
use serde_json::{Value, json};

use super::text;

const LIST: &str = "/spec/configuration/permittedHostDevices/pciHostDevices";

/// A kind of device, as KubeVirt knows it.
#[derive(Debug, Eq, PartialEq)]
pub struct Device {
    /// `VENDOR:PRODUCT`
    pub selector: String,
    /// What VMs ask for.
    pub resource: String,
    /// A device plugin of somebody else hands it out.
    pub external: bool,
}

impl Device {
    /// A device that the user describes.
    pub fn given(selector: &str, resource: &str, external: bool) -> Result<Self, String> {
        let is_hex = |part: &str| part.len() == 4 && part.bytes().all(|byte| byte.is_ascii_hexdigit());
        if !selector.split_once(':').is_some_and(|(vendor, product)| is_hex(vendor) && is_hex(product)) {
            return Err(format!("`{selector}` is not VENDOR:PRODUCT in hexadecimal, such as 10DE:1EB8"));
        }
        if !resource.split_once('/').is_some_and(|(domain, name)| !domain.is_empty() && !name.is_empty()) {
            return Err(format!("`{resource}` is not a resource name such as vendor.com/NAME"));
        }
        Ok(Self { selector: selector.to_ascii_uppercase(), resource: resource.to_owned(), external })
    }

    /// The device at an address, by what node agents found; with what keeps guests from having it yet.
    pub fn found(
        hosts: &[Host],
        address: &str,
        node: Option<&str>,
        resource: Option<&str>,
    ) -> Result<(Self, Vec<String>), String> {
        let wanted: kubevirt::PciAddress = address.parse().map_err(|error| format!("{error}"))?;
        let at_address = |host: &'_ Host| {
            host.pci_devices.iter().find(|device| device.address.parse() == Ok(wanted)).cloned()
        };
        let found: Vec<(&Host, PciFunction)> = hosts
            .iter()
            .filter(|host| node.is_none_or(|node| host.node == node))
            .filter_map(|host| Some((host, at_address(host)?)))
            .collect();
        let Some((_, first)) = found.first() else {
            return Err(format!("no agent found a device at {wanted}"));
        };
        if found.iter().any(|(_, other)| other.selector() != first.selector()) {
            let nodes: Vec<&str> = found.iter().map(|(host, _)| host.node.as_str()).collect();
            return Err(differ(wanted, &nodes));
        }
        let device =
            Self::given(&first.selector(), &resource.map_or_else(|| name(first), str::to_owned), false)?;
        Ok((device, found.iter().flat_map(|(host, function)| obstacles(host, function)).collect()))
    }

    /// The device at an address, by Harvester's inventory.
    pub fn find(
        devices: &[Value],
        address: &str,
        node: Option<&str>,
        resource: Option<&str>,
    ) -> Result<Self, String> {
        let wanted: kubevirt::PciAddress = address.parse().map_err(|error| format!("{error}"))?;
        let found: Vec<&Value> = devices
            .iter()
            .filter(|device| text(device, "status", "address").parse() == Ok(wanted))
            .filter(|device| node.is_none_or(|node| text(device, "status", "nodeName") == node))
            .collect();
        let id = |device: &Value| {
            format!("{}:{}", text(device, "status", "vendorId"), text(device, "status", "deviceId"))
        };
        match &found[..] {
            [] => Err(format!("no PCIDevice has address {wanted}")),
            [first, rest @ ..] if rest.iter().all(|other| id(other) == id(first)) => {
                // Harvester's own device plugin hands it out
                Self::given(&id(first), resource.unwrap_or(text(first, "status", "resourceName")), true)
            }
            several => {
                let nodes: Vec<&str> =
                    several.iter().map(|device| text(device, "status", "nodeName")).collect();
                Err(differ(wanted, &nodes))
            }
        }
    }
}

fn differ(address: kubevirt::PciAddress, nodes: &[&str]) -> String {
    format!("several nodes have different devices at {address}: {}; name one with --node", nodes.join(", "))
}

/// A resource name for a device whose product name nobody knows here: `nvidia.com/PCI_1EB8`.
fn name(function: &PciFunction) -> String {
    let product = function.device.to_ascii_uppercase();
    match function.vendor.as_str() {
        "10de" => format!("nvidia.com/PCI_{product}"),
        "1002" => format!("amd.com/PCI_{product}"),
        "8086" => format!("intel.com/PCI_{product}"),
        "15b3" => format!("mellanox.com/PCI_{product}"),
        vendor => format!("pci.kubevirt.io/{}_{product}", vendor.to_ascii_uppercase()),
    }
}

/// What keeps a guest from having a device that is permitted: KubeVirt offers what is bound to vfio-pci, and VFIO
/// gives groups away as a whole.
fn obstacles(host: &Host, function: &PciFunction) -> Vec<String> {
    let (node, address) = (&host.node, &function.address);
    let mut obstacles = Vec::new();
    if function.iommu_group.is_empty() {
        obstacles.push(format!(
            "{address} of {node} has no IOMMU group: switch the IOMMU on in firmware and kernel"
        ));
    }
    if function.driver != kubevirt::inventory::VFIO {
        let driver = if function.driver.is_empty() { "no driver" } else { &function.driver };
        obstacles.push(format!("{address} of {node} is bound to {driver}: bind it to vfio-pci"));
    }
    obstacles.extend(host.mates(function).filter(|mate| !mate.is_free()).map(|mate| {
        format!(
            "{} of {node} is in the same IOMMU group and bound to {}: bind it to vfio-pci",
            mate.address, mate.driver
        )
    }));
    obstacles
}

/// The patch, or why none is needed. It tests what it is made for, so that it cannot undo what
/// somebody else permits meanwhile.
pub fn patch(kubevirt: &Value, device: &Device) -> Result<Value, String> {
    let mut entry = json!({"pciVendorSelector": device.selector, "resourceName": device.resource});
    if device.external {
        entry["externalResourceProvider"] = true.into();
    }
    if let Some(list) = kubevirt.pointer(LIST) {
        let listed = list.as_array().into_iter().flatten().find(|listed| {
            listed["pciVendorSelector"].as_str().is_some_and(|one| one.eq_ignore_ascii_case(&device.selector))
        });
        return match listed {
            Some(listed) => {
                Err(format!("{} is permitted already, as {}", device.selector, listed["resourceName"]))
            }
            None => Ok(
                json!([{"op": "test", "path": LIST, "value": list}, {"op": "add", "path": format!("{LIST}/-"), "value": entry}]),
            ),
        };
    }
    // the deepest parent that is there, guarded by its own content
    let mut value = json!([entry]);
    let mut path = LIST;
    while let Some((parent, key)) = path.rsplit_once('/') {
        if let Some(present) = kubevirt.pointer(parent) {
            let test = json!({"op": "test", "path": parent, "value": present});
            return Ok(json!([test, {"op": "add", "path": path, "value": value}]));
        }
        value = json!({key: value});
        path = parent;
    }
    Err("the KubeVirt object has no content".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device() -> Device {
        Device::given("10de:1eb8", "nvidia.com/T4", false).unwrap()
    }

    fn applied(kubevirt: &Value) -> Value {
        let change: json_patch::Patch = serde_json::from_value(patch(kubevirt, &device()).unwrap()).unwrap();
        let mut after = kubevirt.clone();
        json_patch::patch(&mut after, &change).unwrap();
        after
    }

    #[test]
    fn the_patch_adds_to_what_is_there_and_fails_when_that_changed() {
        let entry = json!({"pciVendorSelector": "10DE:1EB8", "resourceName": "nvidia.com/T4"});
        let other = json!({"pciVendorSelector": "8086:1572", "resourceName": "intel.com/X710"});
        for (kubevirt, expected) in [
            (json!({"spec": {}}), json!([entry])),
            (json!({"spec": {"configuration": {"permittedHostDevices": {}}}}), json!([entry])),
            (
                json!({"spec": {"configuration": {"permittedHostDevices": {"pciHostDevices": [other]}}}}),
                json!([other, entry]),
            ),
        ] {
            assert_eq!(applied(&kubevirt).pointer(LIST), Some(&expected), "{kubevirt}");
            let change: json_patch::Patch =
                serde_json::from_value(patch(&kubevirt, &device()).unwrap()).unwrap();
            let mut changed = applied(&kubevirt);
            assert!(
                json_patch::patch(&mut changed, &change).is_err(),
                "a second writer does not get through"
            );
            assert!(patch(&changed, &device()).unwrap_err().contains("permitted already"));
        }
    }

    #[test]
    fn addresses_of_agents_give_a_selector_a_name_and_what_is_in_the_way() {
        let function = |address: &str, id: (&str, &str), driver: &str| PciFunction {
            address: address.into(),
            vendor: id.0.into(),
            device: id.1.into(),
            driver: driver.into(),
            iommu_group: "7".into(),
            ..PciFunction::default()
        };
        let host = |node: &str, devices: Vec<PciFunction>| Host {
            node: node.into(),
            pci_devices: devices,
            ..Host::default()
        };
        let hosts = [
            host(
                "a",
                vec![
                    function("0000:01:00.0", ("10de", "1eb8"), "nvidia"),
                    function("0000:01:00.1", ("10de", "10f8"), "snd_hda_intel"),
                ],
            ),
            host("b", vec![function("0000:01:00.0", ("1002", "73bf"), "vfio-pci")]),
        ];
        let (device, notes) = Device::found(&hosts, "01:00.0", Some("a"), None).unwrap();
        assert_eq!(
            (device.selector.as_str(), device.resource.as_str(), device.external),
            ("10DE:1EB8", "nvidia.com/PCI_1EB8", false)
        );
        assert_eq!(
            notes,
            [
                "0000:01:00.0 of a is bound to nvidia: bind it to vfio-pci",
                "0000:01:00.1 of a is in the same IOMMU group and bound to snd_hda_intel: bind it to vfio-pci",
            ]
        );
        let (device, notes) = Device::found(&hosts, "0000:01:00.0", Some("b"), Some("amd.com/NAVI")).unwrap();
        assert_eq!((device.resource.as_str(), notes.len()), ("amd.com/NAVI", 0));
        assert!(
            Device::found(&hosts, "0000:01:00.0", None, None)
                .unwrap_err()
                .contains("a, b; name one with --node")
        );
        assert!(Device::found(&hosts, "0000:09:00.0", None, None).unwrap_err().contains("no agent found"));
        assert!(Device::found(&hosts, "x", None, None).is_err());
    }

    #[test]
    fn addresses_are_looked_up_and_ambiguous_ones_need_a_node() {
        let at = |node: &str, product: &str| {
            json!({"status": {"address": "0000:01:00.0", "nodeName": node,
            "vendorId": "10de", "deviceId": product, "resourceName": format!("nvidia.com/{product}")}})
        };
        let all = [at("a", "1eb8"), at("b", "2236")];
        let found = Device::find(&all, "01:00.0", Some("b"), None).unwrap();
        assert_eq!(
            (found.selector.as_str(), found.resource.as_str(), found.external),
            ("10DE:2236", "nvidia.com/2236", true)
        );
        assert!(
            Device::find(&all, "0000:01:00.0", None, None)
                .unwrap_err()
                .contains("a, b; name one with --node")
        );
        assert!(Device::find(&all, "0000:02:00.0", None, None).unwrap_err().contains("no PCIDevice"));
        assert!(Device::find(&all, "x", None, None).is_err());
        assert!(Device::given("10de", "a/b", false).is_err());
        assert!(Device::given("10de:1eb8", "T4", false).is_err());
    }
}
