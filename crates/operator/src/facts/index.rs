//! Changes in, [`ClusterFacts`] out. No IO.
//!
//! The published facts are the only copy: a change that says nothing new (a node's heartbeat, a
//! relist) is recognised against them and dropped; one that does is applied to a clone, which then
//! takes their place.

use std::collections::BTreeMap;

use features::{ClusterFacts, Node, PciDevice};
use kubevirt::inventory::Host;
use serde_json::Value;

/// What a watch saw, already cut down to what decides.
#[derive(Clone, Debug)]
pub enum Change {
    /// All nodes, after a list.
    Nodes(Vec<Node>),
    /// One node is there, or is different.
    Node(Node),
    /// One node is gone.
    NodeGone(String),
    /// All KubeVirt CRs by `namespace/name`, after a list; `None`: there is no such kind.
    KubeVirts(Option<BTreeMap<String, Value>>),
    /// One KubeVirt CR is there, or is different.
    KubeVirt(String, Value),
    /// One KubeVirt CR is gone.
    KubeVirtGone(String),
    /// All PCI devices, after a list; `None`: there is no such kind.
    Devices(Option<Vec<PciDevice>>),
    /// One device is there, or is different.
    Device(PciDevice),
    /// One device is gone.
    DeviceGone(String),
    /// All claims with whether they are fulfilled, after a list.
    Claims(BTreeMap<String, bool>),
    /// One claim.
    Claim(String, bool),
    /// One claim is gone.
    ClaimGone(String),
    /// What all node agents found, after a list; `None`: there is no such kind.
    Hosts(Option<Vec<Host>>),
    /// What one node agent found.
    Host(Host),
    /// The inventory of one node is gone.
    HostGone(String),
    /// The names of all Plugins, after a list; `None`: there is no such kind.
    Plugins(Option<Vec<String>>),
    /// One Plugin.
    Plugin(String),
    /// One Plugin is gone.
    PluginGone(String),
}

/// The one writer's own knowledge, beside the facts that it publishes.
#[derive(Debug, Default)]
pub struct Index {
    kubevirts: BTreeMap<String, Value>,
    claims: BTreeMap<String, bool>,
}

impl Index {
    /// Whether `change` says anything that `facts` do not already say.
    pub fn is_news(&self, facts: &ClusterFacts, change: &Change) -> bool {
        match change {
            Change::Nodes(_)
            | Change::KubeVirts(_)
            | Change::Devices(_)
            | Change::Claims(_)
            | Change::Hosts(_)
            | Change::Plugins(_) => true,
            Change::Host(host) => find(facts.hosts.as_deref(), &host.node, |h| &h.node) != Some(host),
            Change::HostGone(name) => find(facts.hosts.as_deref(), name, |h| &h.node).is_some(),
            Change::Plugin(name) => find(facts.plugins.as_deref(), name, |p| p).is_none(),
            Change::PluginGone(name) => find(facts.plugins.as_deref(), name, |p| p).is_some(),
            Change::Node(node) => find(facts.nodes.as_deref(), &node.name, |n| &n.name) != Some(node),
            Change::NodeGone(name) => find(facts.nodes.as_deref(), name, |n| &n.name).is_some(),
            Change::KubeVirt(key, value) => self.kubevirts.get(key) != Some(value),
            Change::KubeVirtGone(key) => self.kubevirts.contains_key(key),
            Change::Device(device) => {
                let joined = self.joined(device.clone());
                find(facts.pci_devices.as_deref(), &device.name, |d| &d.name) != Some(&joined)
            }
            Change::DeviceGone(name) => find(facts.pci_devices.as_deref(), name, |d| &d.name).is_some(),
            Change::Claim(name, enabled) => self.claims.get(name) != Some(enabled),
            Change::ClaimGone(name) => self.claims.contains_key(name),
        }
    }

    /// Applies `change` to `facts`.
    pub fn apply(&mut self, facts: &mut ClusterFacts, change: Change) {
        match change {
            Change::Nodes(mut nodes) => {
                nodes.sort_by(|a, b| a.name.cmp(&b.name));
                facts.nodes = Some(nodes);
            }
            Change::Node(node) => put(facts.nodes.get_or_insert_default(), node, |n| &n.name),
            Change::NodeGone(name) => remove(facts.nodes.as_mut(), &name, |n| &n.name),
            Change::KubeVirts(all) => {
                self.kubevirts = all.unwrap_or_default();
                self.choose_kubevirt(facts);
            }
            Change::KubeVirt(key, value) => {
                self.kubevirts.insert(key, value);
                self.choose_kubevirt(facts);
            }
            Change::KubeVirtGone(key) => {
                self.kubevirts.remove(&key);
                self.choose_kubevirt(facts);
            }
            Change::Devices(all) => {
                facts.pci_devices = all.map(|mut devices| {
                    devices.sort_by(|a, b| a.name.cmp(&b.name));
                    devices.into_iter().map(|device| self.joined(device)).collect()
                });
            }
            Change::Device(device) => {
                let joined = self.joined(device);
                put(facts.pci_devices.get_or_insert_default(), joined, |d| &d.name);
            }
            Change::DeviceGone(name) => remove(facts.pci_devices.as_mut(), &name, |d| &d.name),
            Change::Claims(all) => {
                self.claims = all;
                for device in facts.pci_devices.iter_mut().flatten() {
                    device.passthrough_enabled = self.claimed(&device.name);
                }
            }
            Change::Claim(name, enabled) => {
                set_claimed(facts, &name, enabled);
                self.claims.insert(name, enabled);
            }
            Change::ClaimGone(name) => {
                set_claimed(facts, &name, false);
                self.claims.remove(&name);
            }
            Change::Hosts(all) => {
                facts.hosts = all.map(|mut hosts| {
                    hosts.sort_by(|a, b| a.node.cmp(&b.node));
                    hosts
                });
            }
            Change::Host(host) => put(facts.hosts.get_or_insert_default(), host, |h| &h.node),
            Change::HostGone(name) => remove(facts.hosts.as_mut(), &name, |h| &h.node),
            Change::Plugins(all) => {
                facts.plugins = all.map(|mut names| {
                    names.sort();
                    names
                });
            }
            Change::Plugin(name) => put(facts.plugins.get_or_insert_default(), name, |p| p),
            Change::PluginGone(name) => remove(facts.plugins.as_mut(), &name, |p| p),
        }
    }

    /// KubeVirt allows one CR in a cluster; should there be two, the choice must at least be the
    /// same on every replica.
    fn choose_kubevirt(&self, facts: &mut ClusterFacts) {
        facts.kubevirt = self.kubevirts.values().next().cloned();
    }

    fn joined(&self, device: PciDevice) -> PciDevice {
        PciDevice { passthrough_enabled: self.claimed(&device.name), ..device }
    }

    fn claimed(&self, name: &str) -> bool {
        self.claims.get(name).copied().unwrap_or_default()
    }
}

fn set_claimed(facts: &mut ClusterFacts, name: &str, enabled: bool) {
    for device in facts.pci_devices.iter_mut().flatten().filter(|device| device.name == name) {
        device.passthrough_enabled = enabled;
    }
}

fn find<'a, T>(sorted: Option<&'a [T]>, name: &str, key: impl Fn(&T) -> &String) -> Option<&'a T> {
    let sorted = sorted?;
    sorted.binary_search_by(|item| key(item).as_str().cmp(name)).ok().and_then(|at| sorted.get(at))
}

fn put<T>(sorted: &mut Vec<T>, item: T, key: impl Fn(&T) -> &String) {
    match sorted.binary_search_by(|other| key(other).cmp(key(&item))) {
        Ok(at) => sorted[at] = item,
        Err(at) => sorted.insert(at, item),
    }
}

fn remove<T>(sorted: Option<&mut Vec<T>>, name: &str, key: impl Fn(&T) -> &String) {
    if let Some(sorted) = sorted
        && let Ok(at) = sorted.binary_search_by(|item| key(item).as_str().cmp(name))
    {
        sorted.remove(at);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str, label: &str) -> Node {
        let labels = BTreeMap::from([("kubernetes.io/arch".to_owned(), label.to_owned())]);
        Node { name: name.into(), labels, ..Node::default() }
    }

    fn device(name: &str) -> PciDevice {
        PciDevice { name: name.into(), address: "0000:01:00.0".into(), ..PciDevice::default() }
    }

    fn run(changes: Vec<Change>) -> (ClusterFacts, Vec<bool>) {
        let (mut index, mut facts, mut news) = (Index::default(), ClusterFacts::default(), Vec::new());
        for change in changes {
            let new = index.is_news(&facts, &change);
            news.push(new);
            if new {
                index.apply(&mut facts, change);
            }
        }
        (facts, news)
    }

    #[test]
    fn heartbeats_are_no_news_and_labels_are() {
        let (facts, news) = run(vec![
            Change::Nodes(vec![node("b", "amd64"), node("a", "amd64")]),
            Change::Node(node("a", "amd64")),
            Change::Node(node("a", "arm64")),
            Change::NodeGone("c".into()),
            Change::NodeGone("b".into()),
        ]);
        assert_eq!(news, [true, false, true, false, true]);
        assert_eq!(facts.nodes, Some(vec![node("a", "arm64")]));
    }

    #[test]
    fn claims_and_devices_are_joined_in_any_order() {
        let orders = [
            vec![Change::Devices(Some(vec![device("a"), device("b")])), Change::Claim("b".into(), true)],
            vec![Change::Claim("b".into(), true), Change::Devices(Some(vec![device("b"), device("a")]))],
            vec![
                Change::Claims(BTreeMap::from([("b".into(), true)])),
                Change::Device(device("b")),
                Change::Device(device("a")),
            ],
        ];
        for order in orders {
            let (facts, _) = run(order);
            let enabled: Vec<_> = facts.pci_devices.unwrap().iter().map(|d| d.passthrough_enabled).collect();
            assert_eq!(enabled, [false, true]);
        }
        let (facts, _) = run(vec![
            Change::Device(device("a")),
            Change::Claim("a".into(), true),
            Change::ClaimGone("a".into()),
        ]);
        assert!(!facts.pci_devices.unwrap()[0].passthrough_enabled);
    }

    #[test]
    fn inventories_and_plugins_come_and_go() {
        let host = |node: &str| Host { node: node.into(), ..Host::default() };
        let mut changed = host("a");
        changed.iommu = true;
        let (facts, news) = run(vec![
            Change::Hosts(Some(vec![host("b"), host("a")])),
            Change::Host(host("a")),
            Change::Host(changed.clone()),
            Change::HostGone("b".into()),
            Change::Plugins(Some(vec![])),
            Change::Plugin("virt-steward".into()),
            Change::Plugin("virt-steward".into()),
            Change::Plugin("a".into()),
            Change::PluginGone("a".into()),
            Change::PluginGone("a".into()),
        ]);
        assert_eq!(news, [true, false, true, true, true, true, false, true, true, false]);
        assert_eq!(facts.hosts, Some(vec![changed]));
        assert_eq!(facts.plugins, Some(vec!["virt-steward".to_owned()]));
        let (facts, _) = run(vec![Change::Host(host("a")), Change::Hosts(None), Change::Plugins(None)]);
        assert_eq!((facts.hosts, facts.plugins), (None, None));
    }

    #[test]
    fn kinds_that_are_absent_are_none() {
        let (facts, _) = run(vec![
            Change::KubeVirt("kubevirt/kubevirt".into(), Value::Bool(true)),
            Change::Devices(Some(vec![])),
            Change::KubeVirts(None),
            Change::Devices(None),
        ]);
        assert_eq!((facts.kubevirt, facts.pci_devices), (None, None));
    }
}
