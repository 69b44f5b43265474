//! What a cluster has, permits, gives and uses, as rows. No IO.

use std::collections::BTreeMap;

use kubevirt::inventory::{Host, PciFunction};
use kubevirt::{KubeVirtView, PermittedKind};
use serde::Serialize;
use serde_json::Value;

use super::text;

/// What was read of the cluster.
#[derive(Default)]
pub struct Seen {
    pub nodes: Vec<Value>,
    pub kubevirt: Option<Value>,
    pub pci_devices: Vec<Value>,
    pub claims: Vec<Value>,
    pub machines: Vec<Value>,
    /// What node agents found.
    pub hosts: Vec<Host>,
}

/// Classes of devices that somebody may want to give to a guest: storage, network, display, multimedia, serial
/// buses (USB controllers) and accelerators.
const WORTH_SHOWING: [&str; 6] = ["01", "02", "03", "04", "0c03", "12"];

/// One resource on one node, or one device that no resource stands for yet.
#[derive(Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Row {
    pub node: String,
    /// What VMs ask for; vendor and product where nothing is permitted.
    pub resource: String,
    /// `pci`, `mdev`, `usb`; `-`: not permitted, so not known.
    pub kind: &'static str,
    pub permitted: bool,
    /// How many the node's device plugins offer.
    pub there: i64,
    pub free: i64,
    /// VMIs, as `namespace/name`.
    pub used_by: Vec<String>,
    /// Addresses, where Harvester or an agent knows them: with IOMMU group and driver.
    pub addresses: Vec<String>,
    /// The same devices in full, where an agent found them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub functions: Vec<PciFunction>,
}

/// The rows, by node and resource.
pub fn rows(seen: &Seen) -> Vec<Row> {
    let permitted: BTreeMap<&str, &'static str> = seen
        .kubevirt
        .iter()
        .flat_map(|kubevirt| KubeVirtView(kubevirt).permitted_devices())
        .map(|device| {
            let kind = match device.kind {
                PermittedKind::Pci => "pci",
                PermittedKind::Mediated => "mdev",
                PermittedKind::Usb => "usb",
            };
            (device.resource_name, kind)
        })
        .collect();
    let mut rows = Vec::new();
    for node in &seen.nodes {
        let name = text(node, "metadata", "name");
        let offered: BTreeMap<&str, i64> = node["status"]["allocatable"]
            .as_object()
            .into_iter()
            .flatten()
            .filter(|(resource, _)| resource.contains('/') && !resource.starts_with("devices.kubevirt.io/"))
            .filter_map(|(resource, count)| Some((resource.as_str(), count.as_str()?.parse().ok()?)))
            .collect();
        let mut addresses = addresses(seen, name);
        let mut functions = functions(seen, name);
        for (resource, found) in &functions {
            let shown = addresses.entry(resource.clone()).or_default();
            // Harvester knows more about what it has claimed
            if shown.is_empty() {
                shown.extend(found.iter().map(describe));
            }
        }
        let mut resources: Vec<&str> =
            offered.keys().copied().chain(addresses.keys().map(String::as_str)).collect();
        resources.sort_unstable();
        resources.dedup();
        for resource in resources {
            let used_by = users(seen, name, resource);
            let there = offered.get(resource).copied().unwrap_or_default();
            let is_used = i64::try_from(used_by.len()).unwrap_or(i64::MAX);
            rows.push(Row {
                node: name.to_owned(),
                resource: resource.to_owned(),
                kind: permitted.get(resource).copied().unwrap_or("-"),
                permitted: permitted.contains_key(resource),
                there,
                free: (there - is_used).max(0),
                used_by,
                addresses: addresses.get(resource).cloned().unwrap_or_default(),
                functions: functions.remove(resource).unwrap_or_default(),
            });
        }
    }
    rows
}

/// The devices that an agent found on a node, by the resource that stands for them, or else by vendor and product.
fn functions(seen: &Seen, node: &str) -> BTreeMap<String, Vec<PciFunction>> {
    let permitted: BTreeMap<String, &str> = seen
        .kubevirt
        .iter()
        .flat_map(|kubevirt| KubeVirtView(kubevirt).permitted_devices())
        .filter_map(|device| Some((device.selector?.to_ascii_uppercase(), device.resource_name)))
        .collect();
    let mut found: BTreeMap<String, Vec<PciFunction>> = BTreeMap::new();
    for function in seen.hosts.iter().filter(|host| host.node == node).flat_map(|host| &host.pci_devices) {
        let selector = function.selector();
        let resource = permitted.get(&selector).map(|name| (*name).to_owned());
        let is_worth = WORTH_SHOWING.iter().any(|class| function.class.starts_with(class));
        if let Some(resource) = resource.or_else(|| is_worth.then_some(selector)) {
            found.entry(resource).or_default().push(function.clone());
        }
    }
    found
}

/// `0000:07:00.0 group 7 vfio-pci numa 1 rom vfs 2/64`
fn describe(function: &PciFunction) -> String {
    let mut shown = function.address.clone();
    if !function.iommu_group.is_empty() {
        shown.extend([" group ", &function.iommu_group]);
    }
    if !function.driver.is_empty() {
        shown.extend([" ", &function.driver]);
    }
    if let Some(numa) = function.numa_node {
        shown.extend([" numa ", &numa.to_string()]);
    }
    if function.rom {
        shown.push_str(" rom");
    }
    if let Some(sriov) = function.sriov {
        shown.extend([" vfs ", &sriov.enabled.to_string(), "/", &sriov.total.to_string()]);
    }
    if !function.physical_function.is_empty() {
        shown.extend([" of ", &function.physical_function]);
    }
    shown
}

/// Harvester's devices of a node by resource.
fn addresses(seen: &Seen, node: &str) -> BTreeMap<String, Vec<String>> {
    let mut found: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for device in seen.pci_devices.iter().filter(|device| text(device, "status", "nodeName") == node) {
        let is_claimed = seen.claims.iter().any(|claim| {
            claim["metadata"]["name"] == device["metadata"]["name"]
                && claim["status"]["passthroughEnabled"] == true
        });
        let mut shown = text(device, "status", "address").to_owned();
        for (label, field) in [("group ", "iommuGroup"), ("", "kernelDriverInUse")] {
            let value = text(device, "status", field);
            if !value.is_empty() {
                shown.extend([" ", label, value]);
            }
        }
        if !is_claimed {
            shown.push_str(" (not claimed)");
        }
        found.entry(text(device, "status", "resourceName").to_owned()).or_default().push(shown);
    }
    found
}

/// One entry for each device that a VMI on the node has.
fn users(seen: &Seen, node: &str, resource: &str) -> Vec<String> {
    let is_there = |machine: &&Value| {
        text(machine, "status", "nodeName") == node
            && !matches!(text(machine, "status", "phase"), "Succeeded" | "Failed")
    };
    let mut users = Vec::new();
    for machine in seen.machines.iter().filter(is_there) {
        let devices = &machine["spec"]["domain"]["devices"];
        let count = ["hostDevices", "gpus"]
            .into_iter()
            .filter_map(|list| devices[list].as_array())
            .flatten()
            .filter(|device| device["deviceName"] == resource)
            .count();
        let key = format!("{}/{}", text(machine, "metadata", "namespace"), text(machine, "metadata", "name"));
        users.extend(std::iter::repeat_n(key, count));
    }
    users
}

/// Rows for people.
pub fn table(rows: &[Row], is_wide: bool) -> Vec<Vec<String>> {
    let mut lines = vec![
        ["NODE", "RESOURCE", "KIND", "PERMITTED", "THERE", "FREE", "USED BY", "ADDRESSES"]
            .map(str::to_owned)
            .to_vec(),
    ];
    for row in rows {
        let users = match &row.used_by[..] {
            [] => "-".to_owned(),
            [first, rest @ ..] if !is_wide && !rest.is_empty() => format!("{first} and {} more", rest.len()),
            all => all.join(","),
        };
        let addresses = if row.addresses.is_empty() { "-".to_owned() } else { row.addresses.join(", ") };
        lines.push(vec![
            row.node.clone(),
            row.resource.clone(),
            row.kind.to_owned(),
            if row.permitted { "yes" } else { "no" }.to_owned(),
            row.there.to_string(),
            row.free.to_string(),
            users,
            addresses,
        ]);
    }
    lines
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn rows_say_what_is_there_permitted_free_and_used() {
        let node = |name: &str, count: &str| {
            json!({"metadata": {"name": name}, "status": {"allocatable":
                {"cpu": "4", "x.com/A": count, "y.com/B": "1", "devices.kubevirt.io/kvm": "1000"}}})
        };
        let machine = |name: &str, phase: &str| {
            json!({"metadata": {"namespace": "n", "name": name}, "status": {"nodeName": "a", "phase": phase},
                "spec": {"domain": {"devices": {"gpus": [{"name": "1", "deviceName": "x.com/A"}, {"name": "2", "deviceName": "x.com/A"}]}}}})
        };
        let seen = Seen {
            nodes: vec![node("a", "3"), node("b", "2")],
            kubevirt: Some(
                json!({"spec": {"configuration": {"permittedHostDevices": {"pciHostDevices": [{"resourceName": "x.com/A"}]}}}}),
            ),
            pci_devices: vec![
                json!({"metadata": {"name": "a-1"}, "status": {"nodeName": "a", "address": "0000:01:00.0",
                "iommuGroup": "7", "kernelDriverInUse": "nvidia", "resourceName": "z.com/C"}}),
            ],
            claims: vec![],
            machines: vec![machine("v", "Running"), machine("old", "Succeeded")],
            hosts: vec![],
        };
        let rows = rows(&seen);
        let find = |node: &str, resource: &str| {
            rows.iter().find(|row| row.node == node && row.resource == resource).unwrap()
        };
        let used = find("a", "x.com/A");
        assert_eq!((used.there, used.free, used.permitted, used.kind), (3, 1, true, "pci"));
        assert_eq!(used.used_by, ["n/v", "n/v"]);
        assert_eq!((find("b", "x.com/A").free, find("b", "y.com/B").permitted), (2, false));
        assert_eq!(find("a", "z.com/C").addresses, ["0000:01:00.0 group 7 nvidia (not claimed)"]);
        assert_eq!(rows.len(), 5);
        assert_eq!(table(&rows, false)[1][6], "n/v and 1 more");
        assert_eq!(table(&rows, true)[1][6], "n/v,n/v");
    }

    #[test]
    fn what_agents_found_is_shown_where_it_is_permitted_or_worth_permitting() {
        let function = |address: &str, id: (&str, &str), class: &str, driver: &str| PciFunction {
            address: address.into(),
            vendor: id.0.into(),
            device: id.1.into(),
            class: class.into(),
            driver: driver.into(),
            iommu_group: "7".into(),
            ..PciFunction::default()
        };
        let gpu = PciFunction {
            numa_node: Some(1),
            rom: true,
            ..function("0000:07:00.0", ("10de", "1eb8"), "030200", "vfio-pci")
        };
        let nic = PciFunction {
            sriov: Some(kubevirt::inventory::Sriov { total: 64, enabled: 2 }),
            ..function("0000:81:00.0", ("8086", "1572"), "020000", "i40e")
        };
        let seen = Seen {
            nodes: vec![json!({"metadata": {"name": "a"}, "status": {"allocatable": {"x.com/T4": "1"}}})],
            kubevirt: Some(json!({"spec": {"configuration": {"permittedHostDevices": {"pciHostDevices": [
                {"resourceName": "x.com/T4", "pciVendorSelector": "10DE:1EB8"}]}}}})),
            hosts: vec![Host {
                node: "a".into(),
                pci_devices: vec![gpu, nic, function("0000:00:1f.0", ("8086", "06c0"), "088000", "")],
                ..Host::default()
            }],
            ..Seen::default()
        };
        let rows = rows(&seen);
        let shown: Vec<_> = rows
            .iter()
            .map(|row| (row.resource.as_str(), row.permitted, row.there, row.addresses.join(", ")))
            .collect();
        assert_eq!(
            shown,
            [
                ("8086:1572", false, 0, "0000:81:00.0 group 7 i40e vfs 2/64".to_owned()),
                ("x.com/T4", true, 1, "0000:07:00.0 group 7 vfio-pci numa 1 rom".to_owned()),
            ],
            "a chip of the board is nothing to give away"
        );
        assert_eq!(rows[1].functions[0].address, "0000:07:00.0");
    }
}
