//! What goes through our hook: by which way it gets into pods, and what it is told.

#![allow(clippy::unwrap_used, reason = "a test may fail this way")]

mod common;

use common::*;
use features::launcher::HookList;
use features::{ErrorMode, HookPath, launcher};
use serde_json::{Value, json};

const IGD: &str = "intel.com/ALDERLAKE_IGPU";

/// A cluster with an Intel GPU, gates, a version and Plugins.
fn world(gates: &[&str], version: &str, plugins: Option<&[&str]>) -> World {
    let mut world = World::default();
    let mut gates = gates.to_vec();
    gates.push("HostDevices");
    let mut kubevirt = kubevirt(&gates, &[A10, NIC]);
    kubevirt["status"]["observedKubeVirtVersion"] = json!(version);
    let list = &mut kubevirt["spec"]["configuration"]["permittedHostDevices"]["pciHostDevices"];
    list.as_array_mut().unwrap().push(json!({"pciVendorSelector": "8086:46a6", "resourceName": IGD}));
    world.cluster.kubevirt = Some(kubevirt);
    world.cluster.plugins = plugins.map(|names| names.iter().map(|name| (*name).to_owned()).collect());
    world.config.qemu_arguments.allowed = vec!["-fw_cfg name=opt/team/*".into(), "-no-hpet".into()];
    world
}

fn with_device(mut vm: Value, resource: &str) -> Value {
    vm["spec"]["template"]["spec"]["domain"]["devices"]["hostDevices"] =
        json!([{"name": "igpu", "deviceName": resource}]);
    vm
}

fn launcher_hooks(vm: &Value) -> Vec<Value> {
    vm["spec"]["template"]["metadata"]["annotations"][launcher::HOOKS]
        .as_str()
        .map_or(Vec::new(), |text| serde_json::from_str(text).unwrap())
}

#[test]
fn gates_versions_and_plugins_choose_the_way() {
    let vm = with_device(asking("vbios-injection", "rom"), A10);
    for (gates, version, plugins, path, register, expected) in [
        (&["Sidecar"][..], "v1.8.0", None, HookPath::Auto, false, Ok("sidecar")),
        (&["Sidecar", "Plugins"], "v1.8.0", None, HookPath::Auto, true, Ok("sidecar")),
        (&["Sidecar", "Plugins"], "v1.9.0", Some(&[][..]), HookPath::Auto, false, Ok("sidecar")),
        (&["Sidecar", "Plugins"], "v1.9.0", Some(&["virt-steward"][..]), HookPath::Auto, false, Ok("plugin")),
        (&["Plugins"], "v1.9.0", Some(&["virt-steward", "x"][..]), HookPath::Auto, true, Ok("plugin")),
        (&["Plugins"], "v1.9.0", Some(&["virt-steward"][..]), HookPath::Plugin, false, Ok("plugin")),
        (&["Plugins"], "v1.9.0", Some(&[][..]), HookPath::Auto, true, Err("`virt-steward` is not there")),
        (&["Plugins"], "v1.9.0", Some(&[][..]), HookPath::Plugin, false, Err("`virt-steward` is not there")),
        (&["Plugins"], "v1.9.0", Some(&[][..]), HookPath::Auto, false, Err("feature gate Sidecar is off")),
        (
            &["Sidecar"],
            "v1.9.0",
            Some(&["virt-steward"][..]),
            HookPath::Plugin,
            false,
            Err("takes no Plugins"),
        ),
        (&["Sidecar", "Plugins"], "v1.9.0", Some(&["x"][..]), HookPath::Auto, false, Err("there is `x`")),
        (
            &["Sidecar", "Plugins"],
            "v1.9.0",
            Some(&["virt-steward"][..]),
            HookPath::Sidecar,
            true,
            Err("KubeVirt drops"),
        ),
        (
            &["Sidecar"],
            "v1.1.0",
            None,
            HookPath::Auto,
            false,
            Err("KubeVirt 1.1 cannot give a hook sidecar a ConfigMap"),
        ),
    ] {
        let case = format!("{gates:?} {version} {plugins:?} {path:?} {register}");
        let mut world = world(gates, version, plugins);
        world.config.vbios_injection.hook_path = path;
        world.config.vbios_injection.register_plugin = register;
        match expected {
            Ok(way) => {
                let stored = world.created(&vm);
                let (sidecars, hooks) = (hooks(&stored), launcher_hooks(&stored));
                assert_eq!(
                    (sidecars.len(), hooks.len()),
                    if way == "sidecar" { (1, 0) } else { (0, 1) },
                    "{case}"
                );
            }
            Err(reason) => {
                let denial = world.denial(&vm);
                assert!(denial.contains(reason), "{case}: {denial}");
            }
        }
    }
}

#[test]
fn a_vm_moves_to_the_other_way_when_it_is_written_again() {
    let vm = with_device(asking("vbios-injection", "rom"), A10);
    let stored = world(&["Sidecar"], "v1.9.0", Some(&[])).created(&vm);
    let moved = world(&["Plugins"], "v1.9.0", Some(&["virt-steward"])).updated(&stored, &stored);
    assert_eq!((hooks(&moved).len(), launcher_hooks(&moved).len()), (0, 1));
    assert_eq!(
        launcher_hooks(&moved),
        [json!({"args": ["vbios", "--rom", "ua-hostdevice-igpu=/rom/rom.rom"],
            "configMap": {"name": "rom", "key": "rom", "hookPath": "/rom/rom.rom"}})],
        "the image is the one that is set when the pod is made"
    );
    let back = world(&["Sidecar"], "v1.9.0", Some(&[])).updated(&moved, &moved);
    assert_eq!(back, stored);
}

#[test]
fn an_intel_gpu_gets_its_opregion() {
    let world = world(&["Sidecar"], "v1.9.0", None);
    for value in ["enabled", "igpu", IGD] {
        let plain = with_device(asking("igd-opregion", value), IGD);
        let vm = world.created(&plain);
        assert_eq!(hooks(&vm)[0]["args"], json!(["edit", "--igd", "ua-hostdevice-igpu"]), "{value}");
        assert_eq!(hooks(&vm)[0]["image"], HOOK_IMAGE);
        assert_eq!(world.updated(&without(&vm, "igd-opregion"), &vm), without(&plain, "igd-opregion"));
    }
    for (vm, expected) in [
        (with_device(asking("igd-opregion", "igpu"), A10), "is of vendor 10de, only Intel's"),
        (with_device(asking("igd-opregion", "other"), IGD), "no device `other`; devices: igpu"),
        (asking("igd-opregion", "enabled"), "no host device and no GPU"),
    ] {
        let denial = world.denial(&vm);
        assert!(denial.contains(expected), "{denial}");
    }
    let mut arm = with_device(asking("igd-opregion", "igpu"), IGD);
    arm["spec"]["template"]["spec"]["architecture"] = json!("arm64");
    assert!(world.denial(&arm).contains("amd64 hosts"));
}

#[test]
fn arguments_for_qemu_are_those_that_are_listed() {
    let world = world(&["Sidecar"], "v1.9.0", None);
    for (value, expected) in [
        ("-no-hpet", &["-no-hpet"][..]),
        (r#"["-fw_cfg", "name=opt/team/a,string=x y"]"#, &["-fw_cfg", "name=opt/team/a,string=x y"]),
        ("-fw_cfg name=opt/team/a,string=1 -no-hpet", &["-fw_cfg", "name=opt/team/a,string=1", "-no-hpet"]),
    ] {
        let plain = asking("qemu-arguments", value);
        let vm = world.created(&plain);
        let mut args = vec!["edit".to_owned()];
        args.extend(expected.iter().flat_map(|one| ["--qemu-arg".to_owned(), (*one).to_owned()]));
        assert_eq!(hooks(&vm)[0]["args"], json!(args), "{value}");
        assert_eq!(world.updated(&without(&vm, "qemu-arguments"), &vm), without(&plain, "qemu-arguments"));
    }
    for (value, expected) in [
        (
            "-device vfio-pci,host=0000:01:00.0",
            "`-device vfio-pci,host=0000:01:00.0` is not allowed; allowed",
        ),
        ("-no-hpet extra", "`-no-hpet extra` is not allowed"),
        ("-fw_cfg name=opt/other", "is not allowed"),
        ("no-hpet", "begin with `no-hpet`, which is no option"),
        ("[", "not a JSON list"),
        ("[]", "between 1 and 64"),
        (r#"["-no-hpet", ""]"#, "cannot be an argument"),
        (r#"["-no-hpet\n"]"#, "cannot be an argument"),
    ] {
        let denial = world.denial(&asking("qemu-arguments", value));
        assert!(denial.contains(expected), "{value}: {denial}");
    }
    let denial = World::default().denial(&asking("qemu-arguments", "-no-hpet"));
    assert!(denial.contains("allowed): none"), "nothing is allowed unless it is listed: {denial}");
}

#[test]
fn kvm_is_hidden_by_kubevirts_own_field() {
    let world = World::default();
    let plain = asking("kvm-hidden", "enabled");
    let vm = world.created(&plain);
    assert_eq!(vm["spec"]["template"]["spec"]["domain"]["features"], json!({"kvm": {"hidden": true}}));
    assert_eq!(hooks(&vm), Vec::<Value>::new());
    assert_eq!(world.updated(&without(&vm, "kvm-hidden"), &vm), without(&plain, "kvm-hidden"));
    let mut shown = plain.clone();
    shown["spec"]["template"]["spec"]["domain"]["features"] = json!({"acpi": {}, "kvm": {"hidden": false}});
    assert!(world.denial(&shown).contains("sets features.kvm.hidden to false"));
    assert!(world.denial(&asking("kvm-hidden", "maybe")).contains("`maybe` is not a value"));
}

#[test]
fn a_rom_is_compared_with_the_device_as_far_as_that_is_known() {
    let world = world(&["Sidecar"], "v1.9.0", None);
    let denial = world.denial(&with_device(asking("vbios-injection", "rom"), IGD));
    assert!(denial.contains("it is for vendor 10de, the device is of vendor 8086"), "{denial}");
    let mut other = rom();
    other[0x22] ^= 1;
    let other = World { lookups: lookups(&[("rom", rom_map("rom", &other))]), ..world };
    let verdict = other.create(&with_device(asking("vbios-injection", "rom"), A10));
    assert_eq!(verdict.denial, None);
    assert!(
        verdict.warnings[0].contains("does not name device 10de:2236 of `igpu`"),
        "{:?}",
        verdict.warnings
    );
}

// --- what the webhook adds to launcher pods

fn pod(hooks: &Value) -> Value {
    json!({"metadata": {"labels": {"kubevirt.io": "virt-launcher"}, "annotations": {launcher::HOOKS: hooks.to_string()}},
    "spec": {
        "volumes": [{"name": "kubevirt-plugin-sockets", "emptyDir": {}}],
        "initContainers": [{"name": "guest-console-log"}],
        "containers": [{"name": "compute", "resources": {"requests": {"cpu": "1", "memory": "1Gi"}}}],
    }})
}

fn admitted(pod: &Value, world: &World) -> Value {
    let verdict = launcher::admit(pod, &world.config);
    assert_eq!(verdict.denial, None);
    let after = patched(pod, &verdict);
    assert_eq!(launcher::admit(&after, &world.config).patch.0, [], "a second call changes nothing");
    after
}

#[test]
fn a_launcher_pod_gets_one_container_with_all_that_was_asked_for() {
    let mut world = world(&["Plugins"], "v1.9.0", Some(&["virt-steward"]));
    let asked = vm(&[("vbios-injection", "rom"), ("igd-opregion", "igpu"), ("qemu-arguments", "-no-hpet")]);
    world.lookups = lookups(&[(
        "rom",
        rom_map("rom", &{
            let mut intel = rom();
            intel[0x20..0x24].copy_from_slice(&[0x86, 0x80, 0xa6, 0x46]);
            intel
        }),
    )]);
    let stored = world.created(&with_device(asked, IGD));
    let pod = admitted(&pod(&json!(launcher_hooks(&stored))), &world);
    let added = &pod["spec"]["initContainers"][1];
    assert_eq!(
        (added["name"].as_str(), added["image"].as_str()),
        (Some(launcher::CONTAINER), Some(HOOK_IMAGE))
    );
    assert_eq!(
        added["args"],
        json!([
            "edit",
            "--rom",
            "ua-hostdevice-igpu=/rom/rom.rom",
            "--igd",
            "ua-hostdevice-igpu",
            "--qemu-arg",
            "-no-hpet",
            "--plugin",
            "virt-steward"
        ])
    );
    assert_eq!(
        added["volumeMounts"],
        json!([
            {"name": "kubevirt-plugin-sockets", "mountPath": "/var/run/kubevirt-plugin/virt-steward", "subPath": "virt-steward"},
            {"name": "virt-steward-rom-0", "mountPath": "/rom/rom.rom", "subPath": "rom", "readOnly": true},
        ])
    );
    assert_eq!(
        pod["spec"]["volumes"][1],
        json!({"name": "virt-steward-rom-0", "configMap": {"name": "rom", "items": [{"key": "rom", "path": "rom"}]}})
    );
    // it ends with the others, and has no more rights than QEMU
    assert_eq!(added["restartPolicy"], "Always");
    let context = &added["securityContext"];
    assert_eq!((context["runAsUser"].as_u64(), context["runAsNonRoot"].as_bool()), (Some(107), Some(true)));
    assert_eq!(context["seccompProfile"]["type"], "RuntimeDefault");
    assert_ne!(added["resources"]["limits"], added["resources"]["requests"]);
}

#[test]
fn a_pod_with_cpus_of_its_own_stays_guaranteed() {
    let world = World::default();
    let mut own = pod(&json!([{"args": ["edit", "--hide-kvm"]}]));
    own["spec"]["containers"][0]["resources"]["limits"] = json!({"cpu": "1", "memory": "1Gi"});
    own["spec"].as_object_mut().unwrap().remove("initContainers");
    let after = admitted(&own, &world);
    let resources = &after["spec"]["initContainers"][0]["resources"];
    assert_eq!(resources["limits"], resources["requests"]);
}

#[test]
fn what_somebody_wrote_by_hand_is_checked_again() {
    let mut world = world(&["Plugins"], "v1.9.0", None);
    world.config.error_handling = ErrorMode::AllowAndLog;
    world.config.vbios_injection.allowed_images = vec!["registry.example/team/*".into()];
    let rom = |path: &str, key: &str| json!({"args": ["vbios", "--rom", "ua-a=/rom/a.rom"], "configMap": {"name": "a", "key": key, "hookPath": path}});
    for (hooks, expected) in [
        (json!({}), "is not a JSON list"),
        (json!([{"args": ["sh", "-c", "id"]}]), "the first argument has to be the job"),
        (
            json!([{"args": ["edit", "--hide-kvm"], "image": "evil.example/x"}]),
            "image `evil.example/x` is not allowed",
        ),
        (
            json!([{"args": ["edit", "--hide-kvm"], "image": "registry.example/team/a"},
                {"args": ["edit", "--qemu-arg", "-no-hpet"], "image": "registry.example/team/b"}]),
            "ask for different images",
        ),
        (json!([{"args": ["edit", "--qemu-arg", "-monitor"]}]), "`-monitor` is not allowed"),
        (json!([rom("/etc/passwd", "k")]), "a path that is not below /rom/"),
        (json!([rom("/rom/../etc", "k")]), "a path that is not below /rom/"),
        (json!([rom("/rom/a.rom", "")]), "no key"),
        (json!([rom("/rom/a.rom", "k"), rom("/rom/a.rom", "l")]), "is given two ROMs"),
    ] {
        let denial = launcher::admit(&pod(&hooks), &world.config).denial.unwrap();
        assert!(denial.contains(expected), "{hooks}: {denial}");
    }
    let chosen = json!([{"args": ["edit", "--hide-kvm"], "image": "registry.example/team/a"}]);
    assert_eq!(
        admitted(&pod(&chosen), &world)["spec"]["initContainers"][1]["image"],
        "registry.example/team/a"
    );
    let mut bare = pod(&json!([{"args": ["edit", "--hide-kvm"]}]));
    bare["spec"]["volumes"] = json!([]);
    assert!(launcher::admit(&bare, &world.config).denial.unwrap().contains("gate Plugins"));
    world.config.vbios_injection.hook_image = String::new();
    let none = launcher::admit(&pod(&json!([{"args": ["edit", "--hide-kvm"]}])), &world.config);
    assert!(none.denial.unwrap().contains("no hook image"));
    // pods that are not ours are left alone
    for other in [json!({}), json!({"metadata": {"annotations": {"a": "b"}}}), pod(&json!([]))] {
        assert_eq!(launcher::admit(&other, &world.config), features::Verdict::default());
    }
}

#[test]
fn our_plugin_keeps_to_kubevirts_rules() {
    for (list, other) in [(HookList::Domain, HookList::Launcher), (HookList::Launcher, HookList::Domain)] {
        let plugin = launcher::plugin(list);
        let name = plugin["metadata"]["name"].as_str().unwrap();
        // `validatingadmissionpolicy_sidecar.go`, v1.9
        let socket = plugin["spec"][list.field()][0]["sidecar"]["socketPath"].as_str().unwrap();
        assert!(
            socket.starts_with(&format!("/var/run/kubevirt-plugin/{name}/"))
                && socket.strip_suffix(".sock").is_some()
        );
        assert!(socket.len() <= 107);
        assert!(
            plugin["spec"].get(other.field()).is_none(),
            "a cluster knows one of them and refuses the other"
        );
        assert_eq!(plugin["spec"]["failureStrategy"], "Fail");
        assert!(plugin["spec"]["condition"].as_str().unwrap().contains(launcher::HOOKS));
    }
}
