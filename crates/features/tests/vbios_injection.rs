//! `vbios-injection`: hook sidecars that carry ROMs.

mod common;

use common::*;
use features::{Lookup, Need, Request};
use serde_json::{Value, json};

/// A VM with host devices `igpu` and, if asked, `audio`, that wants ROMs.
fn vbios(value: &str, names: &[&str]) -> Value {
    let mut vm = asking("vbios-injection", value);
    let entries: Vec<_> = names.iter().map(|name| json!({"name": name, "deviceName": A10})).collect();
    vm["spec"]["template"]["spec"]["domain"]["devices"]["hostDevices"] = json!(entries);
    vm
}

fn one(value: &str) -> Value {
    vbios(value, &["igpu"])
}

#[test]
fn a_rom_is_a_hook_sidecar_and_never_a_volume() {
    let plain = one("rom");
    let world = World::default();
    let vm = world.created(&plain);
    assert_eq!(
        hooks(&vm),
        [json!({
            "image": HOOK_IMAGE,
            "imagePullPolicy": "IfNotPresent",
            "args": ["vbios", "--rom", "ua-hostdevice-igpu=/rom/rom.rom"],
            "configMap": {"name": "rom", "key": "rom", "hookPath": "/rom/rom.rom"},
        })]
    );
    assert_eq!(vm["spec"]["template"]["spec"], plain["spec"]["template"]["spec"]);
    assert_eq!(annotation(&vm, "vbios-injection-applied"), Some("rom"));
    assert_eq!(world.updated(&without(&vm, "vbios-injection"), &vm), without(&plain, "vbios-injection"));
}

#[test]
fn other_hooks_keep_their_text_to_the_byte() {
    let world = World::default();
    let mut plain = one("rom");
    let text = "[ {\"image\" : \"other\", \"args\":[\"x\"]} ]";
    plain["spec"]["template"]["metadata"]["annotations"] = json!({"hooks.kubevirt.io/hookSidecars": text});
    let vm = world.created(&plain);
    let written =
        vm["spec"]["template"]["metadata"]["annotations"]["hooks.kubevirt.io/hookSidecars"].as_str().unwrap();
    assert!(written.starts_with(text.trim_end_matches(" ]")), "{written}");
    assert_eq!(hooks(&vm).len(), 2);
    assert_eq!(world.updated(&without(&vm, "vbios-injection"), &vm), without(&plain, "vbios-injection"));
    for invalid in [json!(r#"["image":"x"]"#), json!("{}"), json!(""), json!(3)] {
        plain["spec"]["template"]["metadata"]["annotations"]["hooks.kubevirt.io/hookSidecars"] =
            invalid.clone();
        let denial = world.denial(&plain);
        assert!(denial.contains("hookSidecars"), "{invalid}: {denial}");
    }
}

#[test]
fn several_roms_are_several_sidecars() {
    let world =
        World::with_lookups(&[("vbios", rom_map("rom", &rom())), ("gop", rom_map("efi.rom", &rom()))]);
    let vm = world.created(&vbios(r#"{"igpu":"vbios","audio":"gop/efi.rom"}"#, &["igpu", "audio"]));
    let arguments: Vec<_> =
        hooks(&vm).iter().map(|hook| hook["args"][2].as_str().unwrap().to_owned()).collect();
    assert_eq!(arguments, ["ua-hostdevice-audio=/rom/gop.rom", "ua-hostdevice-igpu=/rom/vbios.rom"]);
    let shared = world.created(&vbios(r#"{"igpu":"vbios","audio":"vbios"}"#, &["igpu", "audio"]));
    assert_eq!(
        hooks(&shared)[0]["args"],
        json!([
            "vbios",
            "--rom",
            "ua-hostdevice-audio=/rom/vbios.rom",
            "--rom",
            "ua-hostdevice-igpu=/rom/vbios.rom"
        ])
    );
    let denial = world.denial(&vbios(r#"{"igpu":"vbios","audio":"vbios/other"}"#, &["igpu", "audio"]));
    assert!(denial.contains("with two keys"), "{denial}");
}

#[test]
fn the_device_is_found_by_name_resource_or_address() {
    let mut world = World::default();
    world.cluster.pci_devices = Some(vec![device("n-1", "a", "0000:01:00.0", NIC, "")]);
    for wanted in ["n-1", NIC, "0000:01:00.0", "01:00.0"] {
        let mut vm = vbios(&json!({wanted: "rom"}).to_string(), &["n-1", "other"]);
        vm["spec"]["template"]["spec"]["domain"]["devices"]["hostDevices"][0]["deviceName"] = json!(NIC);
        assert_eq!(hooks(&world.created(&vm))[0]["args"][2], "ua-hostdevice-n-1=/rom/rom.rom", "{wanted}");
    }
    let mut gpu = vbios("rom", &[]);
    gpu["spec"]["template"]["spec"]["domain"]["devices"]["gpus"] = json!([{"name": "g", "deviceName": A10}]);
    assert_eq!(hooks(&world.created(&gpu))[0]["args"][2], "ua-gpu-g=/rom/rom.rom");
}

#[test]
fn the_device_may_come_from_another_feature_of_the_same_request() {
    let world = World::default();
    let vm = world.created(&vm(&[("vbios-injection", "rom"), ("pci-passthrough", A10)]));
    assert_eq!(hooks(&vm)[0]["args"][2], "ua-hostdevice-nvidia-com-ga102gl-a10=/rom/rom.rom");
}

#[test]
fn what_cannot_work_is_denied() {
    let world = World::default();
    for (vm, expected) in [
        (vbios("rom", &[]), "has no host device and no GPU"),
        (vbios("rom", &["a", "b"]), "say which is meant: {\"<device>\":\"rom\"}; devices: a, b"),
        (vbios(r#"{"c":"rom"}"#, &["a", "b"]), "no device `c`; devices: a, b"),
        (vbios(r#"{"a.b":"rom"}"#, &["a.b"]), "cannot be a libvirt alias"),
        (vbios(r#"{"a":"rom", "0000:00:02.0":"x"}"#, &["a"]), "no device `0000:00:02.0`"),
        (one("Rom"), "not a DNS label"),
        (one("a.b"), "not a DNS label"),
        (one("sockets"), "volume of the launcher pod"),
        (one("root"), "volume of the VM has the same name"),
        (one("absent"), "could not be read"),
        (one("rom/other"), "no binaryData key `other`; keys: rom"),
        (one("{"), "not a JSON mapping"),
    ] {
        let denial = world.denial(&vm);
        assert!(denial.contains(expected), "{denial}");
    }
    let mut hooked = one("rom");
    hooked["spec"]["template"]["metadata"]["annotations"] = json!({"hooks.kubevirt.io/hookSidecars": r#"[{"configMap":{"name":"rom","key":"x","hookPath":"/x"}}]"#});
    assert!(world.denial(&hooked).contains("another hook sidecar of the VM mounts the same volume"));
}

#[test]
fn the_config_map_must_hold_a_rom() {
    let mut world = World::default();
    let mut text_rom = base64(&rom()).into_bytes();
    text_rom.resize(600, b'A');
    for (answer, expected) in [
        (Lookup::NotFound, "does not exist in namespace `team`"),
        (Lookup::Failed("forbidden".into()), "could not be read: forbidden"),
        (Lookup::Found(json!({"data": {"rom": "VaoB"}})), "under data, which is text"),
        (Lookup::Found(json!({})), "no binaryData key `rom`; keys: none"),
        (Lookup::Found(json!({"binaryData": {"rom": "***"}})), "is not base64"),
        (rom_map("rom", &text_rom), "it begins with 0x56 0x61"),
        (rom_map("rom", &rom()[..300]), "300 bytes of an image of 512"),
        (rom_map("rom", &[0x55, 0xaa]), "no PCIR structure"),
        (rom_map("rom", &[]), "not an option ROM"),
    ] {
        world.lookups = lookups(&[("rom", answer.clone())]);
        let denial = world.denial(&one("rom"));
        assert!(denial.contains(expected), "{answer:?}: {denial}");
    }
    let mut large = rom();
    large.resize(700_001, 0);
    world.lookups = lookups(&[("rom", rom_map("rom", &large))]);
    assert_eq!(world.create(&one("rom")).denial, None);
}

#[test]
fn gates_are_checked() {
    let mut world = World::default();
    world.cluster.kubevirt = Some(kubevirt(&["HostDevices"], &[A10]));
    assert!(world.denial(&one("rom")).contains("feature gate Sidecar is off"));
    let mut newer = kubevirt(&["Sidecar", "Plugins"], &[A10]);
    newer["status"]["observedKubeVirtVersion"] = json!("v1.9.0");
    world.cluster.kubevirt = Some(newer);
    assert!(world.create(&one("rom")).warnings[0].contains("feature gate Plugins is on"));
    world.cluster.kubevirt = None;
    assert!(world.create(&one("rom")).warnings[0].contains("feature gate Sidecar was not checked"));
}

#[test]
fn the_image_is_configured_or_allowed() {
    let mut world = World::default();
    let choosing = |image: &str| {
        let mut vm = one("rom");
        vm["metadata"]["annotations"][key("sidecar-image")] = json!(image);
        vm
    };
    assert!(world.denial(&choosing("quay.io/team/hook:v1")).contains("is not allowed"));
    world.config.vbios_injection.allowed_images = vec!["quay.io/team/*".into(), "*".into()];
    let vm = world.created(&choosing("quay.io/team/hook:v1"));
    assert_eq!(hooks(&vm)[0]["image"], "quay.io/team/hook:v1");
    assert!(world.denial(&choosing("not an image")).contains("is not an image reference"));
    world.config.vbios_injection.hook_image = String::new();
    assert!(world.denial(&one("rom")).contains("no hook image is set"));
}

#[test]
fn config_maps_are_asked_for_by_name() {
    let world = World::default();
    let needs = |object: &Value| {
        let request = Request { namespace: NAMESPACE, object, old_object: None };
        features::needs(&request, &world.config, &features::Lookups::new())
    };
    assert_eq!(needs(&one("rom")), [Need::ConfigMap("rom".into())]);
    assert_eq!(
        needs(&one(r#"{"a":"x/k","b":"y","c":"x/k"}"#)),
        [Need::ConfigMap("x".into()), Need::ConfigMap("y".into())]
    );
    assert_eq!(needs(&vm(&[("vbios-configmap", "rom")])), [Need::ConfigMap("rom".into())]);
    assert_eq!(needs(&vm(&[("nested-virt", "true")])), []);
    let mut deleted = one("rom");
    deleted["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    assert_eq!(needs(&deleted), []);
}
