//! Every pair of features on one VM: both are given or the reason names what is in the way; in any
//! order of asking the result is the same, and undoing both leaves no trace.

#![allow(clippy::unwrap_used, reason = "a test may fail this way")]

mod common;

use common::*;
use features::{Lookup, Need, Node};
use serde_json::json;

const GRID: &str = "nvidia.com/GRID_T4-1Q";
const STICK: &str = "kubevirt.io/stick";
const IGD: &str = "intel.com/IGD";
const VF: &str = "intel.com/X710_VF";

/// A value for each feature with which it works alone.
const WISHES: [(&str, &str); 16] = [
    ("nested-virt", "enabled"),
    ("cpu-pinning", "enabled"),
    ("hugepages", "1Gi"),
    ("numa", "auto"),
    ("realtime", "enabled"),
    ("pci-passthrough", A10),
    ("vfio-passthrough", VF),
    ("usb-passthrough", STICK),
    ("gpu-device-plugin", A10),
    ("vgpu", GRID),
    ("dra-claims", r#"{"template":"t","request":"gpu"}"#),
    ("sriov", "fast"),
    ("vbios-injection", "rom"),
    ("kvm-hidden", "enabled"),
    ("igd-opregion", "igd"),
    ("qemu-arguments", "-no-hpet"),
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
    let pci = permitted["pciHostDevices"].as_array_mut().unwrap();
    pci.push(json!({"pciVendorSelector": "8086:46a6", "resourceName": IGD}));
    pci.push(json!({"pciVendorSelector": "8086:154c", "resourceName": VF}));
    permitted["usb"] = json!([{"resourceName": STICK}]);
    permitted["mediatedDevices"] = json!([{"resourceName": GRID}]);
    kubevirt["status"]["observedKubeVirtVersion"] = json!("v1.9.0");
    world.cluster.kubevirt = Some(kubevirt);
    world.config.qemu_arguments.allowed = vec!["-no-hpet".into()];
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
        "igd-opregion" => &[("vfio-passthrough", r#"{"resource":"intel.com/IGD","name":"igd"}"#)],
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
            // the device that the OpRegion is of
            if second.0 == "igd-opregion"
                && let Some(vfio) = wishes.iter_mut().find(|(feature, _)| *feature == "vfio-passthrough")
            {
                vfio.1 = needs("igd-opregion")[0].1;
            }
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
    assert_eq!(given, 120 - NOT_TOGETHER.len());
}
