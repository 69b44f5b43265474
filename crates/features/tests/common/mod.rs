//! Small worlds for the tests of this crate.
#![allow(dead_code, reason = "each test binary uses its own part of these helpers")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a helper that fails is a test that fails")]

use std::collections::BTreeMap;

use features::{
    ClusterFacts, Config, ErrorMode, Lookup, Lookups, Need, Node, OutcomeResult, PciDevice, Request, Verdict,
};
use serde_json::{Value, json};

pub const NAMESPACE: &str = "team";
pub const HOOK_IMAGE: &str =
    "registry.example:5000/hook@sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
pub const MANAGED: &str = "vm-feature-manager.io/managed";

/// The full key of an annotation of ours.
pub fn key(name: &str) -> String {
    format!("vm-feature-manager.io/{name}")
}

/// A small VM with annotations of ours.
pub fn vm(annotations: &[(&str, &str)]) -> Value {
    let mut vm = json!({
        "apiVersion": "kubevirt.io/v1",
        "kind": "VirtualMachine",
        "metadata": {"name": "vm", "namespace": NAMESPACE, "annotations": {"user": "text"}},
        "spec": {
            "runStrategy": "Always",
            "fieldOfTheFuture": {"kept": [1, 2.5, null]},
            "template": {
                "metadata": {"labels": {"app": "vm"}},
                "spec": {
                    "domain": {
                        "devices": {"disks": [{"name": "root", "disk": {"bus": "virtio"}}]},
                        "memory": {"guest": "2Gi"},
                    },
                    "volumes": [{"name": "root", "containerDisk": {"image": "x"}}],
                },
            },
        },
    });
    for (name, value) in annotations {
        vm["metadata"]["annotations"][key(name)] = json!(value);
    }
    vm
}

/// A VM with one annotation.
pub fn asking(feature: &str, value: &str) -> Value {
    vm(&[(feature, value)])
}

/// A VM whose cloud-init carries user data.
pub fn with_user_data(user_data: &str) -> Value {
    with_volume(json!({"name": "init", "cloudInitNoCloud": {"userData": user_data}}))
}

/// A VM with one more volume.
pub fn with_volume(volume: Value) -> Value {
    let mut vm = vm(&[]);
    vm["spec"]["template"]["spec"]["volumes"].as_array_mut().unwrap().push(volume);
    vm
}

pub fn node(name: &str, labels: &[(&str, &str)]) -> Node {
    let mut all: BTreeMap<String, String> = [
        ("kubernetes.io/arch", "amd64"),
        ("kubernetes.io/hostname", name),
        ("kubevirt.io/schedulable", "true"),
    ]
    .into_iter()
    .map(|(key, value)| (key.to_owned(), value.to_owned()))
    .collect();
    all.extend(labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())));
    Node { name: name.into(), labels: all, ..Node::default() }
}

pub fn amd(name: &str) -> Node {
    node(name, &[("cpu-feature.node.kubevirt.io/svm", "true"), ("cpu-vendor.node.kubevirt.io/AMD", "true")])
}

pub fn intel(name: &str) -> Node {
    node(name, &[("cpu-feature.node.kubevirt.io/vmx", "true"), ("cpu-vendor.node.kubevirt.io/Intel", "true")])
}

/// A KubeVirt CR with gates and permitted PCI devices.
pub fn kubevirt(gates: &[&str], permitted: &[&str]) -> Value {
    let pci: Vec<_> = permitted
        .iter()
        .map(|name| json!({"pciVendorSelector": "10de:2236", "resourceName": name, "externalResourceProvider": true}))
        .collect();
    json!({
        "apiVersion": "kubevirt.io/v1", "kind": "KubeVirt", "metadata": {"name": "kubevirt"},
        "spec": {"configuration": {
            "developerConfiguration": {"featureGates": gates},
            "permittedHostDevices": {"pciHostDevices": pci},
        }},
        "status": {"observedKubeVirtVersion": "v1.8.4", "defaultArchitecture": "amd64"},
    })
}

pub fn device(name: &str, node: &str, address: &str, resource: &str, group: &str) -> PciDevice {
    PciDevice {
        name: name.into(),
        address: address.into(),
        node_name: node.into(),
        resource_name: resource.into(),
        iommu_group: group.into(),
        passthrough_enabled: true,
    }
}

pub const A10: &str = "nvidia.com/GA102GL_A10";
pub const NIC: &str = "intel.com/ETHERNET_CONNECTION_11_I219LM";

/// One AMD node, both gates, two permitted devices.
pub fn cluster() -> ClusterFacts {
    ClusterFacts {
        nodes: Some(vec![amd("a")]),
        kubevirt: Some(kubevirt(&["HostDevices", "Sidecar"], &[A10, NIC])),
        ..ClusterFacts::default()
    }
}

/// A valid option ROM of 512 bytes.
pub fn rom() -> Vec<u8> {
    let mut rom = vec![0; 512];
    rom[..3].copy_from_slice(&[0x55, 0xaa, 1]);
    rom[0x18] = 0x1c;
    // for the devices of `kubevirt()`
    rom[0x1c..0x24].copy_from_slice(b"PCIR\xde\x10\x36\x22");
    rom[0x1c + 0x10] = 1;
    rom[0x1c + 0x15] = 0x80;
    rom
}

pub fn base64(bytes: &[u8]) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

/// A ConfigMap with a ROM under a key.
pub fn rom_map(key: &str, rom: &[u8]) -> Lookup {
    Lookup::Found(json!({"kind": "ConfigMap", "binaryData": {key: base64(rom)}}))
}

pub fn lookups(config_maps: &[(&str, Lookup)]) -> Lookups {
    config_maps.iter().map(|(name, answer)| (Need::ConfigMap((*name).into()), answer.clone())).collect()
}

/// A configuration with a hook image.
pub fn config() -> Config {
    let mut config = Config::default();
    config.vbios_injection.hook_image = HOOK_IMAGE.into();
    config
}

pub fn config_with(mode: ErrorMode) -> Config {
    Config { error_handling: mode, ..config() }
}

/// A request on a cluster.
#[derive(Debug)]
pub struct World {
    pub cluster: ClusterFacts,
    pub lookups: Lookups,
    pub config: Config,
}

impl Default for World {
    fn default() -> Self {
        Self { cluster: cluster(), lookups: lookups(&[("rom", rom_map("rom", &rom()))]), config: config() }
    }
}

impl World {
    /// With other ConfigMaps.
    pub fn with_lookups(config_maps: &[(&str, Lookup)]) -> Self {
        Self { lookups: lookups(config_maps), ..Self::default() }
    }

    pub fn create(&self, object: &Value) -> Verdict {
        self.admit(object, None)
    }

    pub fn admit(&self, object: &Value, old_object: Option<&Value>) -> Verdict {
        let request = Request { namespace: NAMESPACE, object, old_object };
        let verdict = features::admit(&request, &self.cluster, &self.lookups, &self.config);
        for warning in &verdict.warnings {
            assert!(warning.len() < 256 && !warning.contains('\n'), "{warning}");
        }
        if verdict.denial.is_some() {
            assert!(verdict.patch.0.is_empty(), "a denied request is not patched");
        }
        verdict
    }

    /// Creates, expects to be allowed, and returns what is stored; a second call changes nothing.
    pub fn created(&self, object: &Value) -> Value {
        let verdict = self.create(object);
        assert_eq!(verdict.denial, None);
        let stored = patched(object, &verdict);
        let again = self.create(&stored);
        assert_eq!(again.patch.0, [], "a second call changes nothing");
        stored
    }

    pub fn updated(&self, object: &Value, old: &Value) -> Value {
        let verdict = self.admit(object, Some(old));
        assert_eq!(verdict.denial, None);
        patched(object, &verdict)
    }

    /// The reason for which a VM is denied.
    pub fn denial(&self, object: &Value) -> String {
        self.create(object).denial.expect("the request is denied")
    }
}

pub fn patched(object: &Value, verdict: &Verdict) -> Value {
    let mut object = object.clone();
    json_patch::patch(&mut object, &verdict.patch).expect("the patch applies");
    object
}

/// The VM without one of our annotations.
pub fn without(object: &Value, name: &str) -> Value {
    let mut object = object.clone();
    object["metadata"]["annotations"].as_object_mut().unwrap().remove(&key(name));
    object
}

pub fn annotation<'v>(object: &'v Value, name: &str) -> Option<&'v str> {
    object["metadata"]["annotations"][key(name)].as_str()
}

pub fn devices(object: &Value) -> &Value {
    &object["spec"]["template"]["spec"]["domain"]["devices"]
}

pub fn hooks(object: &Value) -> Vec<Value> {
    object["spec"]["template"]["metadata"]["annotations"]["hooks.kubevirt.io/hookSidecars"]
        .as_str()
        .map_or(Vec::new(), |text| serde_json::from_str(text).unwrap())
}

pub fn results(verdict: &Verdict) -> Vec<(&'static str, OutcomeResult)> {
    verdict.outcomes.iter().map(|outcome| (outcome.feature, outcome.result)).collect()
}
