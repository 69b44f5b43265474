//! What a cluster can do, and what the caller may do there, out of raw answers of its API.

use kubevirt::{KubeVirtView, feature_gates};
use serde::Serialize;
use serde_json::Value;

use crate::view::{list, some, text};

/// What was read from a cluster. What could not be read is `None`, with a line in `missing`.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// `/version`
    pub version: Value,
    /// Names of API groups with their versions.
    pub groups: Vec<(String, Vec<String>)>,
    /// The KubeVirt object.
    pub kubevirt: Option<Value>,
    /// CDI objects.
    pub cdi: Option<Vec<Value>>,
    /// Storage classes.
    pub storage_classes: Option<Vec<Value>>,
    /// Volume snapshot classes.
    pub snapshot_classes: Option<Vec<Value>>,
    /// Nodes.
    pub nodes: Option<Vec<Value>>,
    /// Ingresses and routes.
    pub ways_in: Vec<Value>,
    /// Answers to [`ASKED`], in its order.
    pub allowed: Vec<Option<bool>>,
    /// What could not be read, and why.
    pub missing: Vec<String>,
}

/// What a cluster can do.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Capabilities {
    /// As in `v1.36.2`.
    pub kubernetes: String,
    /// KubeVirt, if it is there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kubevirt: Option<KubeVirt>,
    /// The gates that operations depend on.
    pub gates: Vec<Gate>,
    /// The APIs that operations depend on.
    pub apis: Vec<ApiGroup>,
    /// The version of CDI, which fills data volumes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cdi: Option<String>,
    /// Where exports can be fetched from outside the cluster: the host of an ingress or route that leads to
    /// `virt-exportproxy`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub export_proxy: Option<String>,
    /// Storage classes, and which snapshot class fits each.
    pub storage: Vec<Storage>,
    /// Nodes that VMs can run on, and what they have.
    pub nodes: Vec<Node>,
    /// What the caller may do in the namespace asked about.
    pub permissions: Vec<Permission>,
    /// What could not be found out.
    pub missing: Vec<String>,
}

/// The KubeVirt installation.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct KubeVirt {
    /// Where the object is; names differ between distributions.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// As in `v1.9.0`.
    pub version: String,
    /// As in `Deployed`.
    pub phase: String,
}

/// A feature gate.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Gate {
    /// Its name.
    pub name: &'static str,
    /// Whether it is on, by KubeVirt's own rule.
    pub enabled: bool,
    /// What needs it.
    pub needed_for: &'static str,
}

/// An API group.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ApiGroup {
    /// The group.
    pub group: &'static str,
    /// Its versions; empty when it is not served.
    pub versions: Vec<String>,
    /// What needs it.
    pub needed_for: &'static str,
}

/// A storage class.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Storage {
    /// Its name.
    pub class: String,
    /// Its CSI driver.
    pub driver: String,
    /// The snapshot class of the same driver; without one VMs on this class have no snapshots
    /// (`pkg/storage/snapshot/snapshot.go`, v1.9).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub snapshot_class: Option<String>,
}

/// A node.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Node {
    /// Its name.
    pub name: String,
    /// Whether KubeVirt schedules VMs there.
    pub schedulable: bool,
    /// Device resources and how many of them can be allocated.
    pub devices: Vec<(String, String)>,
    /// What the hardware can do: `kvm`, the host's CPU model, nested virtualisation, encrypted memory.
    pub hardware: Vec<String>,
}

/// Something that the caller may or may not do.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Permission {
    /// The operation, in our words.
    pub operation: &'static str,
    /// Whether it is allowed; absent when the cluster did not say.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allowed: Option<bool>,
}

/// Gates of operations.
const GATES: [(&str, &str); 9] = [
    ("Template", "templates made from VMs"),
    ("Snapshot", "snapshots, restores, clones"),
    ("VMExport", "export"),
    ("DeclarativeHotplugVolumes", "volumes of running VMs, by the spec"),
    ("HotplugVolumes", "volumes of running VMs, by request"),
    ("HotplugNICs", "interfaces of running VMs"),
    ("VMLiveUpdateFeatures", "CPU and memory of running VMs"),
    ("IncrementalBackup", "export of running VMs without a snapshot"),
    ("ExpandDisks", "larger disks of running VMs"),
];

/// API groups of operations.
const GROUPS: [(&str, &str); 11] = [
    ("kubevirt.io", "everything"),
    ("subresources.kubevirt.io", "start, stop and the like"),
    ("snapshot.kubevirt.io", "snapshots and restores"),
    ("clone.kubevirt.io", "clones"),
    ("export.kubevirt.io", "export"),
    ("instancetype.kubevirt.io", "instance types and preferences"),
    ("template.kubevirt.io", "templates"),
    ("cdi.kubevirt.io", "data volumes"),
    ("snapshot.storage.k8s.io", "snapshots of disks"),
    ("k8s.cni.cncf.io", "networks beside the pod's (Multus)"),
    ("metrics.k8s.io", "usage"),
];

/// A right to ask for: operation, verb, group, resource, subresource.
pub type Right = (&'static str, &'static str, &'static str, &'static str, &'static str);

/// What operations need; the order is that of [`Facts::allowed`].
pub const ASKED: [Right; 18] = [
    ("list", "list", "kubevirt.io", "virtualmachines", ""),
    ("create", "create", "kubevirt.io", "virtualmachines", ""),
    ("delete", "delete", "kubevirt.io", "virtualmachines", ""),
    ("start", "update", "subresources.kubevirt.io", "virtualmachines", "start"),
    ("stop", "update", "subresources.kubevirt.io", "virtualmachines", "stop"),
    ("restart", "update", "subresources.kubevirt.io", "virtualmachines", "restart"),
    ("pause", "update", "subresources.kubevirt.io", "virtualmachineinstances", "pause"),
    ("unpause", "update", "subresources.kubevirt.io", "virtualmachineinstances", "unpause"),
    // since v1.5 namespace administrators need the ClusterRole kubevirt.io:migrate for it
    ("migrate", "create", "kubevirt.io", "virtualmachineinstancemigrations", ""),
    ("snapshot", "create", "snapshot.kubevirt.io", "virtualmachinesnapshots", ""),
    ("restore", "create", "snapshot.kubevirt.io", "virtualmachinerestores", ""),
    ("clone", "create", "clone.kubevirt.io", "virtualmachineclones", ""),
    ("delete snapshot", "delete", "snapshot.kubevirt.io", "virtualmachinesnapshots", ""),
    ("change volumes, interfaces, devices", "patch", "kubevirt.io", "virtualmachines", ""),
    ("expand volumes", "patch", "", "persistentvolumeclaims", ""),
    ("export", "create", "export.kubevirt.io", "virtualmachineexports", ""),
    ("use templates", "create", "subresources.template.kubevirt.io", "virtualmachinetemplates", "process"),
    ("console", "get", "subresources.kubevirt.io", "virtualmachineinstances", "console"),
];

/// Puts the facts together.
pub fn decide(facts: Facts) -> Capabilities {
    let versions = |group: &str| {
        facts.groups.iter().find(|(name, _)| name == group).map(|(_, versions)| versions.clone())
    };
    let empty = Value::Null;
    let view = KubeVirtView(facts.kubevirt.as_ref().unwrap_or(&empty));
    let gates = if facts.kubevirt.is_some() { &GATES[..] } else { &[] };
    Capabilities {
        kubernetes: text(&facts.version, "/gitVersion").into(),
        kubevirt: facts.kubevirt.as_ref().map(|kubevirt| KubeVirt {
            namespace: text(kubevirt, "/metadata/namespace").into(),
            name: text(kubevirt, "/metadata/name").into(),
            version: text(kubevirt, "/status/observedKubeVirtVersion").into(),
            phase: text(kubevirt, "/status/phase").into(),
        }),
        gates: gates
            .iter()
            .map(|(name, needed_for)| Gate {
                name,
                enabled: feature_gates::is_enabled(view, name),
                needed_for,
            })
            .collect(),
        apis: GROUPS
            .iter()
            .map(|(group, needed_for)| ApiGroup {
                group,
                versions: versions(group).unwrap_or_default(),
                needed_for,
            })
            .collect(),
        cdi: facts
            .cdi
            .as_ref()
            .and_then(|all| all.first())
            .map(|cdi| text(cdi, "/status/observedVersion").to_owned()),
        export_proxy: facts.ways_in.iter().find_map(export_proxy),
        storage: storage(&facts),
        nodes: facts.nodes.iter().flatten().map(node).collect(),
        permissions: ASKED
            .iter()
            .zip(facts.allowed.iter().copied().chain(std::iter::repeat(None)))
            .map(|((operation, ..), allowed)| Permission { operation, allowed })
            .collect(),
        missing: facts.missing,
    }
}

fn storage(facts: &Facts) -> Vec<Storage> {
    let snapshots = facts.snapshot_classes.as_deref().unwrap_or_default();
    facts
        .storage_classes
        .iter()
        .flatten()
        .map(|class| {
            let driver = text(class, "/provisioner");
            let fits = snapshots.iter().find(|one| text(one, "/driver") == driver);
            Storage {
                class: text(class, "/metadata/name").into(),
                driver: driver.into(),
                snapshot_class: fits.map(|one| text(one, "/metadata/name").to_owned()),
            }
        })
        .collect()
}

/// The host that leads to `virt-exportproxy` (`pkg/storage/export/export/links.go`, v1.9).
fn export_proxy(way: &Value) -> Option<String> {
    let proxy = "virt-exportproxy";
    if text(way, "/spec/to/name") == proxy {
        let admitted = list(way, "/status/ingress").iter().find_map(|one| some(one, "/host"));
        return admitted.or_else(|| some(way, "/spec/host"));
    }
    let default = text(way, "/spec/defaultBackend/service/name") == proxy;
    list(way, "/spec/rules").iter().find_map(|rule| {
        let leads = list(rule, "/http/paths").iter().any(|path| text(path, "/backend/service/name") == proxy);
        (leads || default).then(|| some(rule, "/host")).flatten()
    })
}

fn node(node: &Value) -> Node {
    let plain = ["cpu", "memory", "pods", "ephemeral-storage"];
    let allocatable = node.pointer("/status/allocatable").and_then(Value::as_object);
    let devices = allocatable.into_iter().flatten().filter(|(name, amount)| {
        !plain.contains(&name.as_str()) && !name.starts_with("hugepages-") && amount.as_str() != Some("0")
    });
    let labels = node.pointer("/metadata/labels");
    Node {
        name: text(node, "/metadata/name").into(),
        schedulable: labels.and_then(|labels| labels.get("kubevirt.io/schedulable")) == Some(&"true".into())
            && node.pointer("/spec/unschedulable") != Some(&true.into()),
        devices: devices
            .map(|(name, amount)| (name.clone(), amount.as_str().unwrap_or_default().to_owned()))
            .collect(),
        hardware: hardware(node),
    }
}

/// Labels of KubeVirt's node labeller, in short (`pkg/virt-handler/node-labeller`, v1.9).
fn hardware(node: &Value) -> Vec<String> {
    let labels = node.pointer("/metadata/labels").and_then(Value::as_object);
    let mut found: Vec<String> = labels
        .into_iter()
        .flatten()
        .filter(|(_, value)| value.as_str() == Some("true"))
        .filter_map(|(name, _)| {
            let (kind, of) = name.split_once('/')?;
            match (kind, of) {
                ("host-model-cpu.node.kubevirt.io", model) => Some(format!("cpu {model}")),
                ("cpu-feature.node.kubevirt.io", "svm" | "vmx") => Some(format!("nested ({of})")),
                ("kubevirt.io", "sev" | "sev-es" | "sev-snp" | "tdx" | "ksm-enabled" | "realtime") => {
                    Some(of.to_owned())
                }
                _ => None,
            }
        })
        .collect();
    let kvm = node.pointer("/status/allocatable/devices.kubevirt.io~1kvm").and_then(Value::as_str);
    if kvm.is_some_and(|count| count != "0") {
        found.insert(0, "kvm".into());
    }
    found
}

/// The groups of `/apis` with their versions.
pub fn groups(apis: &Value) -> Vec<(String, Vec<String>)> {
    list(apis, "/groups")
        .iter()
        .map(|group| {
            let versions = list(group, "/versions").iter().map(|one| text(one, "/version").to_owned());
            (text(group, "/name").to_owned(), versions.collect())
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn facts_become_capabilities() {
        let facts = Facts {
            version: json!({"gitVersion": "v1.36.2"}),
            groups: vec![("snapshot.kubevirt.io".into(), vec!["v1beta1".into()])],
            kubevirt: Some(json!({"metadata": {"name": "kv", "namespace": "hco"},
                "spec": {"configuration": {"developerConfiguration": {"disabledFeatureGates": ["Snapshot"]}}},
                "status": {"observedKubeVirtVersion": "v1.9.0", "phase": "Deployed"}})),
            storage_classes: Some(vec![
                json!({"metadata": {"name": "fast"}, "provisioner": "csi.a"}),
                json!({"metadata": {"name": "slow"}, "provisioner": "nfs"}),
            ]),
            snapshot_classes: Some(vec![json!({"metadata": {"name": "snap"}, "driver": "csi.a"})]),
            nodes: Some(vec![
                json!({"metadata": {"name": "n1", "labels": {"kubevirt.io/schedulable": "true"}},
                "status": {"allocatable": {"cpu": "4", "nvidia.com/T4": "2", "devices.kubevirt.io/kvm": "0"}}}),
            ]),
            allowed: vec![Some(true), Some(false)],
            ..Facts::default()
        };
        let found = decide(facts);
        let on = |name: &str| found.gates.iter().find(|gate| gate.name == name).unwrap().enabled;
        assert!(!on("Snapshot") && on("VMExport"), "disabled, and GA");
        assert_eq!(found.storage[0].snapshot_class.as_deref(), Some("snap"));
        assert_eq!(found.storage[1].snapshot_class, None);
        assert_eq!(found.nodes[0].devices, [("nvidia.com/T4".into(), "2".into())]);
        assert_eq!(found.permissions[1], Permission { operation: "create", allowed: Some(false) });
        assert_eq!(found.permissions[2].allowed, None);
        assert!(decide(Facts::default()).gates.is_empty(), "no KubeVirt, no gates");
    }
}
