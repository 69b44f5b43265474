//! Every pair of features on one VM: both are given or the reason names what is in the way; in any
//! order of asking the result is the same, and undoing both leaves no trace.

mod common;

use common::*;
use features::{Lookup, Need, Node};
use serde_json::json;

const GRID: &str = "nvidia.com/GRID_T4-1Q";
const STICK: &str = "kubevirt.io/stick";

/// A value for each feature with which it works alone.
const WISHES: [(&str, &str); 13] = [
    ("nested-virt", "enabled"),
    ("cpu-pinning", "enabled"),
    ("hugepages", "1Gi"),
    ("numa", "auto"),
    ("realtime", "enabled"),
    ("pci-passthrough", A10),
    ("vfio-passthrough", NIC),
    ("usb-passthrough", STICK),
    ("gpu-device-plugin", A10),
    ("vgpu", GRID),
    ("dra-claims", r#"{"template":"t","request":"gpu"}"#),
    ("sriov", "fast"),
    ("vbios-injection", "rom"),
];

/// Pairs that cannot be, and why: `None` for features that need more than the other gives.
const NOT_TOGETHER: [(&str, &str, &str); 2] =
    [("gpu-device-plugin", "dra-claims", "does not mix"), ("vgpu", "dra-claims", "does not mix")];

fn world() -> World {
    let mut world = World::default();
    let mut node: Node = amd("a");
    node.labels.extend(
        [("kubevirt.io/cpumanager", "true"), ("kubevirt.io/realtime", "")].map(|(k, v)| (k.into(), v.into())),
    );
    node.allocatable =
        [("hugepages-1Gi", "8Gi"), ("intel.com/vf", "4")].map(|(k, v)| (k.into(), v.into())).into();
    world.cluster.nodes = Some(vec![node]);
    let mut kubevirt = kubevirt(&["HostDevices", "Sidecar"], &[A10, NIC]);
    let permitted = &mut kubevirt["spec"]["configuration"]["permittedHostDevices"];
    permitted["usb"] = json!([{"resourceName": STICK}]);
    permitted["mediatedDevices"] = json!([{"resourceName": GRID}]);
    kubevirt["status"]["observedKubeVirtVersion"] = json!("v1.9.0");
    world.cluster.kubevirt = Some(kubevirt);
    world.lookups.insert(
        Need::Network("fast".into()),
        Lookup::Found(
            json!({"metadata": {"annotations": {"k8s.v1.cni.cncf.io/resourceName": "intel.com/vf"}},
            "spec": {"config": "{\"type\":\"sriov\"}"}}),
        ),
    );
    world
}

fn machine(wishes: &[(&str, &str)]) -> serde_json::Value {
    let mut vm = vm(wishes);
    vm["spec"]["template"]["spec"]["domain"]["cpu"] = json!({"cores": 2});
    vm
}

/// What a feature has to have beside it.
fn needs(feature: &str) -> &'static [(&'static str, &'static str)] {
    match feature {
        "realtime" => &[("numa", "auto")],
        // one device, so that it is clear whose ROM it is
        "vbios-injection" => &[("pci-passthrough", A10)],
        _ => &[],
    }
}

#[test]
fn every_pair_of_features_is_given_or_refused_with_the_reason() {
    let world = world();
    let mut given = 0;
    for (index, first) in WISHES.iter().enumerate() {
        for second in &WISHES[index + 1..] {
            let mut wishes = vec![*first, *second];
            for wish in needs(first.0).iter().chain(needs(second.0)) {
                if !wishes.iter().any(|(feature, _)| feature == &wish.0) {
                    wishes.push(*wish);
                }
            }
            let pair = format!("{} and {}", first.0, second.0);
            // two devices: the ROM has to say whose it is
            let devices = wishes.iter().filter(|(feature, _)| {
                ["pci-passthrough", "vfio-passthrough", "gpu-device-plugin", "vgpu", "dra-claims"]
                    .contains(feature)
            });
            if devices.count() > 1
                && let Some(rom) = wishes.iter_mut().find(|(feature, _)| *feature == "vbios-injection")
            {
                rom.1 = r#"{"nvidia-com-ga102gl-a10":"rom"}"#;
            }
            let plain = machine(&wishes);
            let expected = NOT_TOGETHER.iter().find(|(one, other, _)| {
                [first.0, second.0].contains(one) && [first.0, second.0].contains(other)
            });
            if let Some((_, _, reason)) = expected {
                let denial = world.denial(&plain);
                assert!(denial.contains(reason), "{pair}: {denial}");
                continue;
            }
            let vm = world.created(&plain);
            let reversed: Vec<_> = wishes.iter().rev().copied().collect();
            assert_eq!(world.created(&machine(&reversed)), vm, "{pair}");
            let mut bare = vm.clone();
            for (feature, _) in &wishes {
                bare = without(&bare, feature);
            }
            let undone = world.updated(&bare, &vm);
            assert_eq!(undone, machine(&[]), "{pair}");
            given += 1;
        }
    }
    assert_eq!(given, 78 - NOT_TOGETHER.len());
}
