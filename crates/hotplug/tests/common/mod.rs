//! Objects as an API server would send them, small enough to read in a table.
#![allow(dead_code, reason = "each test file uses some of it")]
#![allow(clippy::expect_used, clippy::panic, reason = "a helper that fails is a test that fails")]

use hotplug::guard::Observation;
use hotplug::policy::Class;
use hotplug::view::{AttachmentPod, Instance, Launcher, Node};
use serde_json::{Value, json};

/// 2026-01-01T00:00:00Z, the time of every test.
pub const NOW: i64 = 1_767_225_600;

/// A time `seconds` before [`NOW`].
pub fn ago(seconds: i64) -> String {
    hotplug::view::rfc3339(NOW - seconds)
}

/// How a pod uses a volume.
#[derive(Clone, Copy)]
pub enum Use {
    Device,
    Mount,
    List,
}

/// A running, ready attachment pod of launcher `l1` on `n1`, an hour old.
pub fn pod(name: &str, volumes: &[(&str, Use)]) -> Value {
    let names = |wanted: fn(&Use) -> bool, field: &str| -> Vec<Value> {
        let used = volumes.iter().filter(|(_, usage)| wanted(usage));
        used.map(|(name, _)| json!({"name": name, field: format!("/{name}")})).collect()
    };
    let listed: Vec<Value> = volumes
        .iter()
        .map(|(name, _)| json!({"name": name, "persistentVolumeClaim": {"claimName": format!("pvc-{name}")}}))
        .chain([json!({"name": "hotplug-disks", "emptyDir": {}})])
        .collect();
    json!({
        "metadata": {
            "name": name, "uid": format!("u-{name}"), "namespace": "ns", "creationTimestamp": ago(3600),
            "labels": {"kubevirt.io": "hotplug-disk"}, "annotations": {},
            "ownerReferences": [{"kind": "Pod", "name": "launcher", "uid": "l1", "controller": true}],
        },
        "spec": {
            "nodeName": "n1", "volumes": listed,
            "containers": [{
                "name": "hotplug-disk",
                "volumeDevices": names(|usage| matches!(usage, Use::Device), "devicePath"),
                "volumeMounts": names(|usage| matches!(usage, Use::Mount), "mountPath"),
            }],
        },
        "status": {"phase": "Running", "containerStatuses": [{"name": "hotplug-disk", "ready": true}]},
    })
}

/// The launcher of everything.
pub fn launcher() -> Value {
    json!({
        "metadata": {
            "name": "launcher", "uid": "l1", "labels": {"kubevirt.io": "virt-launcher"},
            "ownerReferences": [
                {"kind": "VirtualMachineInstance", "name": "vm", "uid": "v1", "controller": true}],
        },
        "spec": {"nodeName": "n1"},
        "status": {"phase": "Running", "containerStatuses": [{"name": "compute", "ready": true}]},
    })
}

/// A running VMI whose guest has the volumes, each from the pod `u-old`.
pub fn vmi(volumes: &[&str]) -> Value {
    let spec: Vec<Value> = volumes.iter().map(|name| spec_volume(name)).collect();
    let status: Vec<Value> = volumes.iter().map(|name| ready(name, "u-old")).collect();
    json!({
        "metadata": {"name": "vm", "uid": "v1", "namespace": "ns", "annotations": {}},
        "spec": {"terminationGracePeriodSeconds": 30, "volumes": spec},
        "status": {"phase": "Running", "nodeName": "n1", "volumeStatus": status},
    })
}

/// One hotplugged volume of a spec.
pub fn spec_volume(name: &str) -> Value {
    json!({"name": name, "persistentVolumeClaim": {"claimName": format!("pvc-{name}"), "hotpluggable": true}})
}

/// The status of a volume that the guest has.
pub fn ready(name: &str, pod: &str) -> Value {
    status(name, "Ready", pod, "sda")
}

/// The status of a volume.
pub fn status(name: &str, phase: &str, pod: &str, target: &str) -> Value {
    json!({"name": name, "phase": phase, "target": target, "hotplugVolume": {"attachPodUID": pod}})
}

/// A node that is well.
pub fn node() -> Value {
    json!({"metadata": {"name": "n1"}, "spec": {}, "status": {"conditions": [{"type": "Ready", "status": "True"}]}})
}

/// Everything that a verdict is made of, as JSON, so that a test changes what it is about.
#[derive(Clone)]
pub struct World {
    pub pod: Value,
    pub others: Vec<Value>,
    pub launcher: Value,
    pub vmi: Value,
    pub node: Value,
    pub namespace_terminating: bool,
    pub namespace_break_glass: bool,
    pub class: Class,
    pub unmountable: Vec<(&'static str, &'static str)>,
}

impl World {
    /// A guest has block volume `a` from `old`, and nothing else has it: the delete is denied.
    pub fn uncovered() -> Self {
        Self {
            pod: pod("old", &[("a", Use::Device)]),
            others: Vec::new(),
            launcher: launcher(),
            vmi: vmi(&["a"]),
            node: node(),
            namespace_terminating: false,
            namespace_break_glass: false,
            class: Class::default(),
            unmountable: Vec::new(),
        }
    }

    /// The views of it; `null` is absent.
    pub fn observe(&self) -> Observation<'_> {
        let pod = AttachmentPod::read(&self.pod).expect("an attachment pod");
        let siblings =
            std::iter::once(&self.pod).chain(&self.others).filter_map(AttachmentPod::read).collect();
        let classes = pod.volumes.iter().map(|volume| (volume.claim, self.class)).collect();
        Observation {
            pod,
            namespace_terminating: self.namespace_terminating,
            namespace_break_glass: self.namespace_break_glass,
            launcher: (!self.launcher.is_null()).then(|| Launcher::read(&self.launcher)),
            instance: (!self.vmi.is_null()).then(|| Instance::read(&self.vmi)),
            siblings,
            node: (!self.node.is_null()).then(|| Node::read(&self.node)),
            classes,
            unmountable: self.unmountable.clone(),
        }
    }
}
