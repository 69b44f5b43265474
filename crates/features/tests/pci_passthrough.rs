//! `pci-passthrough`: from an address or a name to a permitted device.

mod common;

use common::*;
use features::{DeviceNames, OutcomeResult, Source};
use kubevirt::inventory::{Host, PciFunction};
use serde_json::json;

/// Harvester with an inventory: two cards of one model on two nodes, a NIC with an IOMMU mate.
fn harvester() -> World {
    let mut world = World::default();
    world.cluster.nodes = Some(vec![amd("n1"), amd("n2")]);
    world.cluster.pci_devices = Some(vec![
        device("n1-000001000", "n1", "0000:01:00.0", A10, "11"),
        device("n2-000001000", "n2", "0000:01:00.0", A10, "11"),
        device("n1-000002000", "n1", "0000:02:00.0", NIC, "12"),
        device("n1-000002001", "n1", "0000:02:00.1", "intel.com/AUDIO", "12"),
    ]);
    world.cluster.kubevirt = Some(kubevirt(&["HostDevices"], &[A10, NIC, "intel.com/AUDIO"]));
    world
}

fn pci(value: &str) -> serde_json::Value {
    asking("pci-passthrough", value)
}

#[test]
fn a_resource_name_becomes_an_entry_with_a_stable_name() {
    let vm = World::default().created(&pci(NIC));
    assert_eq!(
        devices(&vm)["hostDevices"],
        json!([{"name": "intel-com-ethernet-connection-11-i219lm", "deviceName": NIC}])
    );
    assert_eq!(annotation(&vm, "pci-passthrough-applied"), Some(json!([NIC]).to_string().as_str()));
    let folded = World::default().created(&pci("Intel.com/Ethernet_Connection_11_i219lm"));
    assert_eq!(devices(&folded), devices(&vm), "a name in another case is the permitted one");
}

#[test]
fn an_address_is_resolved_by_the_inventory_with_its_iommu_mates() {
    for value in ["0000:02:00.0", "n1/0000:02:00.0", "n1-000002000", r#"{"devices":["0000:02:00.0"]}"#] {
        let vm = harvester().created(&pci(value));
        assert_eq!(
            devices(&vm)["hostDevices"],
            json!([
                {"name": "n1-000002000", "deviceName": NIC},
                {"name": "n1-000002001", "deviceName": "intel.com/AUDIO"},
            ]),
            "{value}"
        );
    }
}

#[test]
fn an_address_on_several_nodes_needs_a_node() {
    let world = harvester();
    let denial = world.denial(&pci("0000:01:00.0"));
    assert!(denial.contains("n1-000001000 on n1, n2-000001000 on n2"), "{denial}");
    let named = world.created(&pci(r#"[{"address":"0000:01:00.0","node":"n2"}]"#));
    assert_eq!(devices(&named)["hostDevices"][0]["name"], "n2-000001000");
    let mut pinned = pci("0000:01:00.0");
    pinned["spec"]["template"]["spec"]["nodeSelector"] = json!({"kubernetes.io/hostname": "n1"});
    let verdict = world.create(&pinned);
    assert!(verdict.warnings[0].contains("is one of 2 devices"), "{:?}", verdict.warnings);
    assert_eq!(devices(&world.created(&pinned))["hostDevices"][0]["name"], "n1-000001000");
}

#[test]
fn the_administrators_map_resolves_addresses() {
    let mut world = World::default();
    world.cluster.nodes = Some(vec![amd("n1"), amd("n2")]);
    world.config.pci_passthrough.address_map = [
        ("0000:0A:00.0", NIC),
        ("n1/0000:0b:00.0", NIC),
        ("n2/0000:0b:00.0", A10),
        ("0000:0c:00.0", "no.such/X"),
    ]
    .map(|(key, value)| (key.to_owned(), value.to_owned()))
    .into();
    let entry = |name: &str, resource: &str| json!([{"name": name, "deviceName": resource}]);
    assert_eq!(devices(&world.created(&pci("0000:0a:00.0")))["hostDevices"], entry("pci-0000-0a-00-0", NIC));
    assert_eq!(
        devices(&world.created(&pci("n2/0000:0b:00.0")))["hostDevices"],
        entry("pci-0000-0b-00-0", A10)
    );
    assert!(world.denial(&pci("0000:0b:00.0")).contains("exists more than once"));
    assert!(world.denial(&pci("0000:0c:00.0")).contains("`no.such/X` is not permitted"));
}

#[test]
fn what_cannot_be_resolved_is_denied_with_candidates() {
    let plain = World::default();
    let denial = plain.denial(&pci("0000:00:02.0"));
    assert!(
        denial.contains("PCI address 0000:00:02.0 cannot be resolved") && denial.contains(A10),
        "{denial}"
    );
    assert!(plain.denial(&pci("no.such/Device")).contains(NIC));
    assert!(plain.denial(&pci("dell-190-000001105")).contains("there is no PCIDevice `dell-190-000001105`"));
    let denial = harvester().denial(&pci("n1-000009000"));
    assert!(denial.contains("n1-000001000, n2-000001000"), "{denial}");
    let mut unset = World::default();
    unset.cluster.kubevirt = Some(
        json!({"spec": {"configuration": {"developerConfiguration": {"featureGates": ["HostDevices"]}}}}),
    );
    assert!(unset.denial(&pci(NIC)).contains("permitted: none"), "an unset list would leave the pod pending");
    unset.cluster.kubevirt = None;
    assert!(unset.denial(&pci(NIC)).contains("the KubeVirt CR is not known"));
}

#[test]
fn claims_gates_limits_and_nodes_are_checked() {
    let mut unclaimed = harvester();
    unclaimed.cluster.pci_devices.as_mut().unwrap()[0].passthrough_enabled = false;
    assert!(unclaimed.denial(&pci("n1-000001000")).contains("not enabled for passthrough"));
    let mut mate = harvester();
    mate.cluster.pci_devices.as_mut().unwrap()[3].passthrough_enabled = false;
    let denial = mate.denial(&pci("0000:02:00.0"));
    assert!(denial.contains("IOMMU group 12") && denial.contains("n1-000002001"), "{denial}");
    let mut gate = World::default();
    gate.cluster.kubevirt = Some(kubevirt(&[], &[NIC]));
    assert!(gate.denial(&pci(NIC)).contains("feature gate HostDevices is off"));
    let mut few = harvester();
    few.config.pci_passthrough.max_devices = 1;
    assert!(few.denial(&pci("n1-000002000")).contains("2 devices are needed"), "mates count");
    assert!(few.denial(&pci(&json!([A10, NIC]).to_string())).contains("1 are allowed"));
    let denial = harvester().denial(&pci(r#"["n1-000001000","n2-000001000"]"#));
    assert!(denial.contains("n1, n2"), "{denial}");
}

#[test]
fn duplicates_are_refused_in_any_case() {
    for value in [
        r#"["0000:0A:00.0","0000:0a:00.0"]"#.to_owned(),
        r#"["0a:00.0","pci_0000_0a_00_0"]"#.to_owned(),
        json!([NIC, NIC.to_ascii_lowercase()]).to_string(),
    ] {
        let mut world = World::default();
        world.config.pci_passthrough.address_map = [("0000:0a:00.0".to_owned(), NIC.to_owned())].into();
        assert!(world.denial(&pci(&value)).contains("asked for twice"), "{value}");
    }
    assert!(harvester().denial(&pci(r#"["n1-000002000","0000:02:00.0"]"#)).contains("asked for twice"));
    let two = World::default()
        .created(&pci(&json!([{"resource": A10, "name": "a"}, {"resource": A10, "name": "b"}]).to_string()));
    assert_eq!(
        devices(&two)["hostDevices"].as_array().unwrap().len(),
        2,
        "two of a kind have names of their own"
    );
}

#[test]
fn devices_that_the_user_wrote_count() {
    let written = |name: &str, resource: &str| {
        let mut vm = pci(NIC);
        vm["spec"]["template"]["spec"]["domain"]["devices"]["hostDevices"] =
            json!([{"name": name, "deviceName": resource, "tag": "t"}]);
        vm
    };
    let same = written("intel-com-ethernet-connection-11-i219lm", NIC);
    let world = World::default();
    assert_eq!(results(&world.create(&same)), [("pci-passthrough", OutcomeResult::Unchanged)]);
    let stored = world.created(&same);
    assert_eq!(
        world.updated(&without(&stored, "pci-passthrough"), &stored),
        without(&same, "pci-passthrough")
    );
    assert!(world.denial(&written("mine", &NIC.to_ascii_uppercase())).contains("already, as `mine`"));
    assert!(world.denial(&written("intel-com-ethernet-connection-11-i219lm", A10)).contains("rename it"));
    let other = world.created(&written("mine", A10));
    assert_eq!(devices(&other)["hostDevices"].as_array().unwrap().len(), 2);
}

#[test]
fn raw_mode_writes_what_the_program_before_wrote() {
    let mut world = World::default();
    world.config.pci_passthrough.device_names = DeviceNames::Raw;
    let vm = world.created(&pci(r#"{"devices":["0000:00:02.0"]}"#));
    assert_eq!(
        devices(&vm)["hostDevices"],
        json!([{"name": "pci-0000-00-02-0", "deviceName": "pci_0000_00_02_0"}])
    );
    assert_eq!(annotation(&vm, "pci-passthrough-applied"), Some(r#"["0000:00:02.0"]"#));
}

#[test]
fn a_change_of_the_request_changes_only_what_differs() {
    let world = World::default();
    let stored = world.created(&pci(&json!([A10, NIC]).to_string()));
    let mut edited = stored.clone();
    edited["metadata"]["annotations"][key("pci-passthrough")] = json!(NIC);
    let verdict = world.admit(&edited, Some(&stored));
    let operations = serde_json::to_value(&verdict.patch).unwrap();
    let path = "/spec/template/spec/domain/devices/hostDevices/0";
    assert_eq!(operations[0]["op"], "test");
    assert_eq!(operations[0]["path"], path);
    assert_eq!(operations[1], json!({"op": "remove", "path": path}));
    let after = patched(&edited, &verdict);
    assert_eq!(after, world.created(&pci(NIC)), "as if it had been asked for at once");
}

#[test]
fn labels_carry_names_without_slash() {
    let mut world = harvester();
    world.config.source = Source::Labels;
    for (value, expected) in [
        ("n1-000002000", "n1-000002000"),
        ("intel.com_AUDIO", "intel-com-audio"),
        ("pci_0000_02_00_0", "n1-000002000"),
    ] {
        let mut vm = vm(&[]);
        vm["metadata"]["labels"] = json!({key("pci-passthrough"): value});
        assert_eq!(devices(&world.created(&vm))["hostDevices"][0]["name"], expected, "{value}");
    }
}

/// A cluster whose node agents found the cards: the same on two nodes, a NIC on one.
fn with_agents() -> World {
    let function = |address: &str, id: (&str, &str), driver: &str, group: &str| PciFunction {
        address: address.into(),
        vendor: id.0.into(),
        device: id.1.into(),
        driver: driver.into(),
        iommu_group: group.into(),
        ..PciFunction::default()
    };
    let mut world = World::default();
    world.cluster.nodes = Some(vec![amd("n1"), amd("n2")]);
    let (gpu, nic) = (("10de", "2236"), ("8086", "154c"));
    world.cluster.hosts = Some(vec![
        Host {
            node: "n1".into(),
            pci_devices: vec![
                function("0000:01:00.0", gpu, "vfio-pci", "11"),
                function("0000:01:00.1", ("10de", "1aef"), "vfio-pci", "11"),
                function("0000:02:00.0", nic, "vfio-pci", "12"),
                function("0000:03:00.0", gpu, "nvidia", "13"),
                function("0000:04:00.0", gpu, "vfio-pci", "14"),
                function("0000:04:00.1", ("10de", "1aef"), "snd_hda_intel", "14"),
                function("0000:05:00.0", gpu, "vfio-pci", ""),
            ],
            ..Host::default()
        },
        Host {
            node: "n2".into(),
            pci_devices: vec![
                function("0000:01:00.0", gpu, "vfio-pci", "3"),
                function("0000:02:00.0", gpu, "vfio-pci", "4"),
                function("0000:03:00.0", gpu, "vfio-pci", "5"),
            ],
            ..Host::default()
        },
    ]);
    world
}

#[test]
fn an_address_that_node_agents_found_is_resolved_by_vendor_and_product() {
    let world = with_agents();
    let verdict = world.create(&pci("n1/0000:01:00.0"));
    let vm = patched(&pci("n1/0000:01:00.0"), &verdict);
    assert_eq!(devices(&vm)["hostDevices"], json!([{"name": "pci-0000-01-00-0", "deviceName": A10}]));
    assert!(verdict.warnings[0].contains("is one of 7 devices of"), "{:?}", verdict.warnings);
    // the same kind on both nodes: whichever node has it free
    assert_eq!(devices(&world.created(&pci("0000:01:00.0"))), devices(&vm));
    assert_eq!(world.create(&pci("0000:03:00.0")).denial, None, "one of the nodes can give it");
    // an administrator's word is more exact
    let mut mapped = with_agents();
    mapped.config.pci_passthrough.address_map = [("0000:01:00.0".to_owned(), NIC.to_owned())].into();
    assert_eq!(devices(&mapped.created(&pci("0000:01:00.0")))["hostDevices"][0]["deviceName"], NIC);
}

#[test]
fn what_no_guest_can_have_is_named_with_the_reason() {
    let world = with_agents();
    for (wish, expected) in [
        ("0000:02:00.0", "exists more than once: 8086:154C on n1, 10DE:2236 on n2"),
        ("n1/0000:02:00.0", "virt-steward devices permit 0000:02:00.0 --node n1"),
        ("n1/0000:03:00.0", "its driver is nvidia; bind it to vfio-pci"),
        ("0000:04:00.0", "others of its IOMMU group 14 are in use: 0000:04:00.1 (snd_hda_intel)"),
        ("0000:05:00.0", "it has no IOMMU group"),
        ("0000:09:00.0", "cannot be resolved"),
    ] {
        let denial = world.denial(&pci(wish));
        assert!(denial.contains(expected), "{wish}: {denial}");
    }
}
