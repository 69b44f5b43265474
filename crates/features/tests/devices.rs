//! USB, VFIO, vGPU, DRA and SR-IOV: entries, rules, undo.

mod common;

use common::*;
use features::{Lookup, Need};
use serde_json::{Value, json};

const STICK: &str = "kubevirt.io/node1-0627-0001-001002";
const GRID: &str = "nvidia.com/GRID_T4-1Q";

fn world() -> World {
    let mut world = World::default();
    let mut kubevirt = kubevirt(&["HostDevices", "Sidecar"], &[A10, NIC]);
    let permitted = &mut kubevirt["spec"]["configuration"]["permittedHostDevices"];
    permitted["usb"] = json!([{"resourceName": STICK, "selectors": [{"vendor": "0627", "product": "0001"}]}]);
    permitted["mediatedDevices"] = json!([{"resourceName": GRID, "mdevNameSelector": "GRID T4-1Q"}]);
    kubevirt["status"]["observedKubeVirtVersion"] = json!("v1.9.0");
    world.cluster.kubevirt = Some(kubevirt);
    world
}

/// Created, undone without a trace, and what was added.
fn round(world: &World, feature: &str, value: &str) -> Value {
    let plain = asking(feature, value);
    let vm = world.created(&plain);
    assert_eq!(world.updated(&without(&vm, feature), &vm), without(&plain, feature), "{feature} {value}");
    vm
}

#[test]
fn usb_devices_are_host_devices() {
    let world = world();
    let vm = round(&world, "usb-passthrough", STICK);
    let name = "usb-kubevirt-io-node1-0627-0001-001002";
    assert_eq!(devices(&vm)["hostDevices"], json!([{"name": name, "deviceName": STICK}]));
    let denial = world.denial(&asking("usb-passthrough", A10));
    assert!(denial.contains("is not a permitted USB device") && denial.contains(STICK), "{denial}");
    let mut off = World { cluster: world.cluster.clone(), ..World::default() };
    off.cluster.kubevirt.as_mut().unwrap()["spec"]["configuration"]["developerConfiguration"] = json!({});
    assert!(off.denial(&asking("usb-passthrough", STICK)).contains("feature gate HostDevices is off"));
}

#[test]
fn vfio_gives_several_of_one_kind() {
    let world = world();
    let value = json!([NIC, NIC, {"resource": GRID.to_ascii_lowercase(), "name": "accel"}]).to_string();
    let vm = round(&world, "vfio-passthrough", &value);
    assert_eq!(
        devices(&vm)["hostDevices"],
        json!([
            {"name": "vfio-intel-com-ethernet-connection-11-i219lm", "deviceName": NIC},
            {"name": "vfio-intel-com-ethernet-connection-11-i219lm-2", "deviceName": NIC},
            {"name": "accel", "deviceName": GRID},
        ])
    );
    for (value, expected) in [
        (
            json!([{"resource": NIC, "name": "a"}, {"resource": A10, "name": "a"}]).to_string(),
            "two devices would be named `a`",
        ),
        (json!([{"resource": NIC, "name": "a.b"}]).to_string(), "cannot be a libvirt alias"),
        (json!([{"resource": STICK}]).to_string(), "is not a permitted PCI or mediated device"),
        ("[]".to_owned(), "names no device"),
        (json!(vec![NIC; 17]).to_string(), "more than 16"),
        ("{\"resorce\":\"x\"}".to_owned(), "unknown field"),
        ("nothing".to_owned(), "is not a request for devices"),
    ] {
        let denial = world.denial(&asking("vfio-passthrough", &value));
        assert!(denial.contains(expected), "{value}: {denial}");
    }
    let mut taken = asking("vfio-passthrough", &json!({"resource": NIC, "name": "mine"}).to_string());
    taken["spec"]["template"]["spec"]["domain"]["devices"]["gpus"] =
        json!([{"name": "mine", "deviceName": A10}]);
    assert!(world.denial(&taken).contains("the VM has a device `mine` already"));
}

#[test]
fn a_vgpu_may_have_a_display_and_one_may_have_ramfb() {
    let world = world();
    let vm = round(&world, "vgpu", GRID);
    assert_eq!(devices(&vm)["gpus"], json!([{"name": "vgpu-nvidia-com-grid-t4-1q", "deviceName": GRID}]));
    let value = json!([{"resource": GRID, "name": "a", "display": true}, {"resource": GRID, "name": "b", "display": true, "ramFB": false},
        {"resource": GRID, "name": "c", "display": false}]);
    let vm = round(&world, "vgpu", &value.to_string());
    let options = |index: usize| devices(&vm)["gpus"][index]["virtualGPUOptions"]["display"].clone();
    assert_eq!(options(0), json!({"enabled": true, "ramFB": {"enabled": true}}));
    assert_eq!(options(1), json!({"enabled": true, "ramFB": {"enabled": false}}));
    assert_eq!(options(2), json!({"enabled": false, "ramFB": {"enabled": false}}));
    let two = json!([{"resource": GRID, "name": "a", "display": true}, {"resource": GRID, "name": "b", "display": true}]);
    assert!(world.denial(&asking("vgpu", &two.to_string())).contains("several displays would use ramFB"));
    assert!(world.denial(&asking("vgpu", A10)).contains("is not a permitted mediated device"));
}

#[test]
fn claims_come_with_the_devices_that_use_them() {
    let world = world();
    let value = json!([{"template": "big-gpu", "request": "gpu"}, {"claim": "nic", "request": "vf", "device": "host", "name": "fast"}]);
    let vm = round(&world, "dra-claims", &value.to_string());
    assert_eq!(
        vm["spec"]["template"]["spec"]["resourceClaims"],
        json!([{"name": "big-gpu-gpu", "resourceClaimTemplateName": "big-gpu"}, {"name": "fast", "resourceClaimName": "nic"}])
    );
    assert_eq!(
        devices(&vm)["gpus"],
        json!([{"name": "big-gpu-gpu", "claimName": "big-gpu-gpu", "requestName": "gpu"}])
    );
    assert_eq!(
        devices(&vm)["hostDevices"],
        json!([{"name": "fast", "claimName": "fast", "requestName": "vf"}])
    );
    for (value, expected) in [
        (json!({"request": "gpu"}), "give one of the two"),
        (json!({"claim": "a", "template": "b", "request": "gpu"}), "give one of the two"),
        (json!({"claim": "A", "request": "gpu"}), "`A` is not a name"),
        (json!({"claim": "a"}), "missing field `request`"),
        (json!([]), "between 1 and 16"),
    ] {
        let denial = world.denial(&asking("dra-claims", &value.to_string()));
        assert!(denial.contains(expected), "{value}: {denial}");
    }
    let mut mixed = asking("dra-claims", r#"{"claim":"a","request":"gpu"}"#);
    mixed["spec"]["template"]["spec"]["domain"]["devices"]["gpus"] =
        json!([{"name": "p", "deviceName": A10}]);
    assert!(world.denial(&mixed).contains("does not mix them with GPUs by claim"));
    let mut old = World { cluster: world.cluster.clone(), ..World::default() };
    old.cluster.kubevirt.as_mut().unwrap()["status"]["observedKubeVirtVersion"] = json!("v1.8.0");
    assert!(
        old.denial(&asking("dra-claims", r#"{"claim":"a","request":"gpu"}"#)).contains("GPUsWithDRA is off")
    );
}

fn network(vlan: u64) -> Lookup {
    let config = json!({"cniVersion": "0.3.1", "type": "sriov", "vlan": vlan}).to_string();
    Lookup::Found(json!({"metadata": {"annotations": {"k8s.v1.cni.cncf.io/resourceName": "intel.com/vf"}},
        "spec": {"config": config}}))
}

fn networks() -> World {
    let mut world = world();
    let plain = Lookup::Found(json!({"metadata": {}, "spec": {"config": "{\"type\":\"bridge\"}"}}));
    let bridge = Lookup::Found(
        json!({"metadata": {"annotations": {"k8s.v1.cni.cncf.io/resourceName": "bridge.io/br0"}},
        "spec": {"config": "{\"plugins\":[{\"type\":\"bridge\"}]}"}}),
    );
    world.lookups = [
        ("fast", network(100)),
        ("infra/fast", network(0)),
        ("plain", plain),
        ("bridge", bridge),
        ("gone", Lookup::NotFound),
    ]
    .map(|(name, lookup)| (Need::Network(name.into()), lookup))
    .into();
    world
}

#[test]
fn an_sriov_network_is_an_interface_and_the_pod_network_stays() {
    let world = networks();
    let value =
        json!([{"network": "fast", "mac": "02-00-00-00-00-0A", "vlan": 100}, "infra/fast"]).to_string();
    let vm = round(&world, "sriov", &value);
    assert_eq!(
        devices(&vm)["interfaces"],
        json!([{"name": "default", "bridge": {}}, {"name": "fast", "sriov": {}, "macAddress": "02:00:00:00:00:0a"},
            {"name": "infra-fast", "sriov": {}}])
    );
    assert_eq!(
        vm["spec"]["template"]["spec"]["networks"],
        json!([{"name": "default", "pod": {}}, {"name": "fast", "multus": {"networkName": "fast"}},
            {"name": "infra-fast", "multus": {"networkName": "infra/fast"}}])
    );
    let said = world.create(&asking("sriov", "fast")).warnings;
    assert!(said[0].contains("network `fast` gives a device of intel.com/vf, VLAN 100"), "{said:?}");
    // a VM with interfaces of its own keeps them and gets no other
    let mut own = asking("sriov", "fast");
    let spec = &mut own["spec"]["template"]["spec"];
    spec["domain"]["devices"]["interfaces"] = json!([{"name": "fast", "masquerade": {}}]);
    spec["networks"] = json!([{"name": "fast", "pod": {}}]);
    let vm = world.created(&own);
    assert_eq!(
        devices(&vm)["interfaces"],
        json!([{"name": "fast", "masquerade": {}}, {"name": "fast-2", "sriov": {}}])
    );
    let asked = features::needs(
        &features::Request { namespace: NAMESPACE, object: &own, old_object: None },
        &world.config,
        &features::Lookups::new(),
    );
    assert_eq!(asked, [Need::Network("fast".into())]);
}

#[test]
fn every_rule_of_sriov_networks_is_told() {
    let mut world = networks();
    for (value, expected) in [
        (json!("gone"), "does not exist in namespace `team`"),
        (json!("plain"), "hands out no device"),
        (json!("bridge"), "is of type bridge, not sriov"),
        (json!("unread"), "could not be read"),
        (json!("a/b/c"), "is not the name of a NetworkAttachmentDefinition"),
        (json!(""), "is not the name of a NetworkAttachmentDefinition"),
        (json!({"network": "fast", "vlan": 7}), "has VLAN 100 and the request asks for 7"),
        (json!({"network": "infra/fast", "vlan": 7}), "has VLAN none"),
        (json!({"network": "fast", "mac": "01:00:00:00:00:01"}), "is not a unicast MAC address"),
        (json!({"network": "fast", "mac": "nonsense"}), "is not a unicast MAC address"),
        (json!({"network": "fast", "state": "down"}), "unknown field `state`"),
        (
            json!([{"network": "fast", "mac": "02:00:00:00:00:01"}, {"network": "fast", "name": "b", "mac": "02:00:00:00:00:01"}]),
            "is used twice",
        ),
        (json!([{"network": "fast", "name": "x"}, {"network": "fast", "name": "x"}]), "already"),
        (json!({"network": "fast", "name": "default"}), "a network or interface `default` already"),
        (json!({"network": "fast", "name": "A"}), "is not a name"),
        (json!([]), "between 1 and 16"),
    ] {
        let denial = world.denial(&asking("sriov", &json!([value]).to_string()).single(&value));
        assert!(denial.contains(expected), "{value}: {denial}");
    }
    let mut node = amd("a");
    node.allocatable = [("other.io/x".to_owned(), "1".to_owned())].into();
    world.cluster.nodes = Some(vec![node]);
    let denial = world.denial(&asking("sriov", "fast"));
    assert!(
        denial.contains(
            "no node that this VM can land on has resource intel.com/vf of network `fast`; nodes: a"
        )
    );
}

/// KubeVirt takes a link state for bridge and masquerade alone; `absent` is how any interface goes.
#[test]
fn a_link_state_of_an_sriov_interface_is_refused_before_kubevirt_does() {
    let world = networks();
    let with = |binding: &str, state: &str| {
        let mut vm = asking("sriov", "fast");
        let spec = &mut vm["spec"]["template"]["spec"];
        let mut own = json!({"name": "own", "state": state});
        own[binding] = json!({});
        spec["domain"]["devices"]["interfaces"] = json!([own]);
        spec["networks"] = json!([{"name": "own", "multus": {"networkName": "infra/fast"}}]);
        vm
    };
    for state in ["up", "down"] {
        let denial = world.denial(&with("sriov", state));
        assert!(
            denial.contains("interface `own` is SR-IOV and has a state, which KubeVirt refuses"),
            "{denial}"
        );
        world.created(&with("bridge", state));
    }
    world.created(&with("sriov", "absent"));
}

/// A list stands for itself, everything else for one entry.
trait Single {
    fn single(self, value: &Value) -> Value;
}

impl Single for Value {
    fn single(mut self, value: &Value) -> Value {
        if value.is_array() {
            self["metadata"]["annotations"][key("sriov")] = json!(value.to_string());
        }
        self
    }
}
