//! What files, or a cluster, say about nodes, devices and objects that VMs name: the facts that
//! [`features::admit`] decides on.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Result;
use features::{ClusterFacts, Lookup, Need, Node, PciDevice};
use kubevirt::inventory::Host;
use serde_json::Value;

use crate::problem::Problem;

/// Objects sorted by what they are good for.
#[derive(Debug, Default)]
pub struct Inventory {
    facts: ClusterFacts,
    claimed: BTreeSet<String>,
    /// `ConfigMap`s and `Secret`s by namespace and need.
    named: BTreeMap<(String, Need), Value>,
    /// Cluster instancetypes and cluster preferences; they have no namespace.
    clusterwide: BTreeMap<Need, Value>,
    /// The `VirtualMachine`s, in the order in which they were given.
    pub machines: Vec<Value>,
}

impl Inventory {
    /// Takes in one object. A document with neither `kind` nor `apiVersion` is [`ClusterFacts`].
    ///
    /// `namespace` is that of objects that name none; `origin` is named in errors.
    pub fn add(&mut self, object: Value, namespace: &str, origin: &str) -> Result<()> {
        if object.get("kind").is_none() && object.get("apiVersion").is_none() {
            return self.add_facts(object, origin);
        }
        let group =
            object["apiVersion"].as_str().and_then(|v| v.split_once('/')).map_or("", |(group, _)| group);
        match (group, object["kind"].as_str().unwrap_or_default()) {
            ("", "Node") => self.facts.nodes.get_or_insert_default().push(node(&object)),
            ("kubevirt.io", "VirtualMachine") => self.machines.push(object),
            ("kubevirt.io", "KubeVirt") => {
                if self.facts.kubevirt.is_some() {
                    return Err(Problem::new(
                        format!("reading KubeVirt `{}` from `{origin}`", name(&object)),
                        "there is one already",
                        "give one KubeVirt object: a cluster has one",
                    )
                    .into());
                }
                self.facts.kubevirt = Some(object);
            }
            ("devices.harvesterhci.io", "PCIDevice") => {
                self.facts.pci_devices.get_or_insert_default().push(pci_device(&object));
            }
            ("devices.harvesterhci.io", "PCIDeviceClaim")
                if object["status"]["passthroughEnabled"] == true =>
            {
                self.claimed.insert(name(&object).to_owned());
            }
            ("", "ConfigMap") => self.add_named(Need::ConfigMap(name(&object).to_owned()), object, namespace),
            ("k8s.cni.cncf.io", "NetworkAttachmentDefinition") => self.add_network(object, namespace),
            ("instancetype.kubevirt.io", "VirtualMachineInstancetype") => {
                self.add_named(Need::Instancetype(name(&object).to_owned()), object, namespace);
            }
            ("instancetype.kubevirt.io", "VirtualMachineClusterInstancetype") => {
                self.clusterwide.insert(Need::ClusterInstancetype(name(&object).to_owned()), object);
            }
            ("instancetype.kubevirt.io", "VirtualMachinePreference") => {
                self.add_named(Need::Preference(name(&object).to_owned()), object, namespace);
            }
            ("instancetype.kubevirt.io", "VirtualMachineClusterPreference") => {
                self.clusterwide.insert(Need::ClusterPreference(name(&object).to_owned()), object);
            }
            ("vm-feature-manager.io", "NodeInventory") => {
                let host = Host::from_object(&object).ok_or_else(|| {
                    Problem::new(
                        format!("reading NodeInventory `{}` from `{origin}`", name(&object)),
                        "its status is not one",
                        "take it from the cluster: `kubectl get nodeinventories -o yaml`",
                    )
                })?;
                self.facts.hosts.get_or_insert_default().push(host);
            }
            ("plugin.kubevirt.io", "Plugin") => {
                self.facts.plugins.get_or_insert_default().push(name(&object).to_owned());
            }
            ("", "Secret") => self.add_named(Need::Secret(name(&object).to_owned()), object, namespace),
            // other kinds in a user's files say nothing about admission
            _ => {}
        }
        Ok(())
    }

    /// The facts, with claims joined to the devices of the same name.
    pub fn cluster_facts(&self) -> ClusterFacts {
        let mut facts = self.facts.clone();
        for device in facts.pci_devices.iter_mut().flatten() {
            device.passthrough_enabled |= self.claimed.contains(&device.name);
        }
        facts
    }

    /// Answers a need of a VM in a namespace, when the object was given.
    pub fn lookup(&self, namespace: &str, need: &Need) -> Option<Lookup> {
        let found = match need {
            Need::ClusterInstancetype(_) | Need::ClusterPreference(_) => self.clusterwide.get(need),
            _ => self.named.get(&(namespace.to_owned(), need.clone())),
        };
        found.cloned().map(Lookup::Found)
    }

    /// Records that a cluster has the `PCIDevice` kind, even when it has no device.
    pub fn expect_pci_devices(&mut self) {
        self.facts.pci_devices.get_or_insert_default();
    }

    /// Records that a cluster has the kinds `NodeInventory` or `Plugin`, even when it has no such object.
    pub fn expect(&mut self, kind: &str) {
        match kind {
            "NodeInventory" => drop(self.facts.hosts.get_or_insert_default()),
            "Plugin" => drop(self.facts.plugins.get_or_insert_default()),
            _ => {}
        }
    }

    /// A network is named alone in its own namespace and with its namespace in every other.
    fn add_network(&mut self, object: Value, namespace: &str) {
        let own = object["metadata"]["namespace"].as_str().unwrap_or(namespace).to_owned();
        let full = Need::Network(format!("{own}/{}", name(&object)));
        for machine in [own.as_str(), namespace] {
            self.named.insert((machine.to_owned(), full.clone()), object.clone());
        }
        self.add_named(Need::Network(name(&object).to_owned()), object, &own);
    }

    fn add_named(&mut self, need: Need, object: Value, namespace: &str) {
        let namespace = object["metadata"]["namespace"].as_str().unwrap_or(namespace).to_owned();
        self.named.insert((namespace, need), object);
    }

    fn add_facts(&mut self, document: Value, origin: &str) -> Result<()> {
        let ClusterFacts { nodes, kubevirt, pci_devices, hosts, plugins } =
            serde_json::from_value(document).map_err(|error| {
                Problem::new(
                    format!("reading cluster facts from `{origin}`"),
                    error,
                    "give Kubernetes objects, or a mapping with `nodes`, `kubevirt`, `pciDevices`, `hosts` and `plugins`",
                )
            })?;
        merge(&mut self.facts.nodes, nodes);
        merge(&mut self.facts.pci_devices, pci_devices);
        merge(&mut self.facts.hosts, hosts);
        merge(&mut self.facts.plugins, plugins);
        self.facts.kubevirt = kubevirt.or(self.facts.kubevirt.take());
        Ok(())
    }
}

fn merge<T>(known: &mut Option<Vec<T>>, given: Option<Vec<T>>) {
    if let Some(given) = given {
        known.get_or_insert_default().extend(given);
    }
}

/// `metadata.name`, or what it will start with.
pub fn name(object: &Value) -> &str {
    let metadata = &object["metadata"];
    metadata["name"].as_str().or(metadata["generateName"].as_str()).unwrap_or_default()
}

fn node(object: &Value) -> Node {
    Node { name: name(object).to_owned(), ..Node::from_object(object) }
}

/// Reads a device as harvester/pcidevices v1beta1 reports it.
fn pci_device(object: &Value) -> PciDevice {
    let status = |field: &str| object["status"][field].as_str().unwrap_or_default().to_owned();
    PciDevice {
        name: name(object).to_owned(),
        address: status("address"),
        node_name: status("nodeName"),
        resource_name: status("resourceName"),
        iommu_group: status("iommuGroup"),
        passthrough_enabled: false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn inventory(objects: &[Value]) -> Inventory {
        let mut inventory = Inventory::default();
        for object in objects {
            inventory.add(object.clone(), "default", "test").unwrap();
        }
        inventory
    }

    #[test]
    fn nothing_given_is_not_the_same_as_none() {
        assert_eq!(Inventory::default().cluster_facts(), ClusterFacts::default());
        let mut empty = Inventory::default();
        empty.expect_pci_devices();
        assert_eq!(empty.cluster_facts().pci_devices, Some(vec![]));
    }

    #[test]
    fn kubernetes_objects_become_facts() {
        let facts = inventory(&[
            json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1", "labels": {"a": "b"}},
                   "spec": {"unschedulable": true}}),
            json!({"apiVersion": "devices.harvesterhci.io/v1beta1", "kind": "PCIDeviceClaim",
                   "metadata": {"name": "n1-000001105"}, "status": {"passthroughEnabled": true}}),
            json!({"apiVersion": "devices.harvesterhci.io/v1beta1", "kind": "PCIDevice",
                   "metadata": {"name": "n1-000001105"},
                   "status": {"address": "0000:01:10.5", "nodeName": "n1", "resourceName": "intel.com/X", "iommuGroup": "7"}}),
        ])
        .cluster_facts();
        assert_eq!(
            facts.nodes,
            Some(vec![Node {
                name: "n1".into(),
                labels: [("a".into(), "b".into())].into(),
                unschedulable: true,
                ..Node::default()
            }])
        );
        let device = &facts.pci_devices.unwrap()[0];
        assert_eq!((device.address.as_str(), device.passthrough_enabled), ("0000:01:10.5", true));
    }

    #[test]
    fn facts_documents_add_to_objects() {
        let facts = inventory(&[
            json!({"nodes": [{"name": "a"}]}),
            json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "b"}}),
            json!({"kubevirt": {"spec": {}}}),
        ])
        .cluster_facts();
        let names: Vec<_> = facts.nodes.unwrap().into_iter().map(|node| node.name).collect();
        assert_eq!(names, ["a", "b"]);
        assert_eq!(facts.kubevirt, Some(json!({"spec": {}})));
    }

    #[test]
    fn misspelt_facts_and_a_second_kubevirt_are_errors() {
        let mut inventory = Inventory::default();
        let error = inventory.add(json!({"node": []}), "default", "facts.yaml").unwrap_err().to_string();
        assert!(error.contains("`facts.yaml`") && error.contains("unknown field `node`"), "{error}");
        let kubevirt =
            json!({"apiVersion": "kubevirt.io/v1", "kind": "KubeVirt", "metadata": {"name": "kv"}});
        inventory.add(kubevirt.clone(), "default", "a").unwrap();
        assert!(inventory.add(kubevirt, "default", "b").is_err());
    }

    #[test]
    fn lookups_stay_in_their_namespace() {
        let object =
            json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "rom", "namespace": "a"}});
        let inventory = inventory(&[object]);
        let need = Need::ConfigMap("rom".into());
        assert!(matches!(inventory.lookup("a", &need), Some(Lookup::Found(_))));
        assert_eq!(inventory.lookup("b", &need), None);
        assert_eq!(inventory.lookup("a", &Need::Secret("rom".into())), None);
    }
}
