//! The defects of the program that users ran before this one, each with the behaviour that
//! replaces it. The number is that of the list from which they were taken. Defects of the
//! server, the configuration and the chart (14, 18, 22, 25, 26, 27) are tested there.

mod common;

use common::*;
use features::{ErrorMode, OutcomeResult, Source};
use serde_json::{Value, json};

fn with_mode(mode: ErrorMode) -> World {
    World { config: config_with(mode), ..World::default() }
}

fn labelled(labels: &[(&str, &str)]) -> (World, Value) {
    let mut world = World::default();
    world.config.source = Source::Labels;
    let mut vm = vm(&[]);
    vm["metadata"] = json!({"name": "vm", "namespace": NAMESPACE});
    for (name, value) in labels {
        vm["metadata"]["labels"][key(name)] = json!(value);
    }
    (world, vm)
}

// 1: the whole spec was replaced from typed structs
#[test]
fn defect_01_fields_of_newer_crds_survive_and_unchanged_objects_get_no_patch() {
    let world = World::default();
    let plain = asking("nested-virt", "enabled");
    let verdict = world.create(&plain);
    assert!(verdict.patch.0.iter().all(|operation| operation.path().as_str() != "/spec"));
    let stored = patched(&plain, &verdict);
    assert_eq!(stored["spec"]["fieldOfTheFuture"], plain["spec"]["fieldOfTheFuture"]);
    assert_eq!(world.create(&vm(&[])).patch.0, []);
    assert_eq!(world.create(&stored).patch.0, []);
}

// 2: `replace /metadata/annotations` failed where there were none
#[test]
fn defect_02_an_object_without_annotations_is_patched() {
    let (world, vm) = labelled(&[("nested-virt", "enabled")]);
    assert_eq!(annotation(&world.created(&vm), "nested-virt-applied"), Some("true"));
    let mut by_user_data = with_user_data("x_kubevirt_features: {nested_virt: true}");
    by_user_data["metadata"].as_object_mut().unwrap().remove("annotations");
    assert_eq!(annotation(&World::default().created(&by_user_data), "nested-virt-applied"), Some("true"));
}

// 3: always svm
#[test]
fn defect_03_intel_nodes_get_vmx() {
    let mut world = World::default();
    world.cluster.nodes = Some(vec![intel("a")]);
    let vm = world.created(&asking("nested-virt", "enabled"));
    assert_eq!(vm["spec"]["template"]["spec"]["domain"]["cpu"]["features"][0]["name"], "vmx");
}

// 4: "true" was enabled and then refused, other words were silently off
#[test]
fn defect_04_truthy_words_work_and_unknown_words_are_errors() {
    let world = World::default();
    assert_eq!(
        results(&world.create(&asking("nested-virt", "true"))),
        [("nested-virt", OutcomeResult::Applied)]
    );
    assert_eq!(world.create(&asking("nested-virt", "no")).outcomes, []);
    assert!(world.denial(&asking("nested-virt", "plenty")).contains("use `enabled` or `disabled`"));
}

// 5: an entry that disables svm counted as done
#[test]
fn defect_05_a_disabled_cpu_feature_is_a_conflict() {
    let mut vm = asking("nested-virt", "enabled");
    vm["spec"]["template"]["spec"]["domain"]["cpu"] =
        json!({"features": [{"name": "svm", "policy": "forbid"}]});
    assert!(World::default().denial(&vm).contains("contradicts nested-virt"));
}

// 6: the ConfigMap was never read
#[test]
fn defect_06_the_config_map_is_read_and_checked() {
    let mut world = World::default();
    let mut vm = asking("vbios-injection", "rom");
    vm["spec"]["template"]["spec"]["domain"]["devices"]["hostDevices"] =
        json!([{"name": "d", "deviceName": A10}]);
    world.lookups = lookups(&[("rom", features::Lookup::NotFound)]);
    assert!(world.denial(&vm).contains("does not exist"));
    world.lookups = lookups(&[("rom", rom_map("rom", b"VaqAAA=="))]);
    assert!(world.denial(&vm).contains("not an option ROM"));
}

// 7: no image that exists, arguments that the shim refuses, no hook, no gate check, a raw address
#[test]
fn defect_07_the_hook_is_ours_with_arguments_that_it_takes_behind_a_checked_gate() {
    let world = World::default();
    let vm = world.created(&vm(&[("vbios-injection", "rom"), ("pci-passthrough", A10)]));
    let hook = &hooks(&vm)[0];
    assert_eq!(hook["image"], HOOK_IMAGE);
    assert_eq!(hook["args"], json!(["vbios", "--rom", "ua-hostdevice-nvidia-com-ga102gl-a10=/rom/rom.rom"]));
    assert_eq!(devices(&vm)["hostDevices"][0]["deviceName"], A10);
    assert_eq!(
        vm["spec"]["template"]["spec"]["volumes"].as_array().unwrap().len(),
        1,
        "no disk in the guest"
    );
    let mut gate_off = World::default();
    gate_off.cluster.kubevirt = Some(kubevirt(&["HostDevices"], &[A10]));
    let verdict = gate_off.create(&common::vm(&[("vbios-injection", "rom"), ("pci-passthrough", A10)]));
    assert!(verdict.denial.unwrap().contains("feature gate Sidecar is off"));
}

// 8: existing hook sidecars made ours disappear, yet it was "applied"
#[test]
fn defect_08_hooks_of_others_are_kept_beside_ours() {
    let mut vm = vm(&[("vbios-injection", "rom"), ("pci-passthrough", A10)]);
    vm["spec"]["template"]["metadata"]["annotations"] =
        json!({"hooks.kubevirt.io/hookSidecars": r#"[{"image":"x"}]"#});
    let hooks = hooks(&World::default().created(&vm));
    assert_eq!((hooks.len(), &hooks[0]), (2, &json!({"image": "x"})));
}

// 9: another ConfigMap in the annotation was ignored
#[test]
fn defect_09_another_config_map_replaces_the_first() {
    let world = World::with_lookups(&[("rom", rom_map("rom", &rom())), ("new", rom_map("rom", &rom()))]);
    let stored = world.created(&vm(&[("vbios-injection", "rom"), ("pci-passthrough", A10)]));
    let mut edited = stored.clone();
    edited["metadata"]["annotations"][key("vbios-injection")] = json!("new");
    let hooks = hooks(&world.updated(&edited, &stored));
    assert_eq!((hooks.len(), &hooks[0]["configMap"]["name"]), (1, &json!("new")));
}

// 10: image references with port, digest or without tag were refused
#[test]
fn defect_10_every_image_reference_is_accepted() {
    let mut world = World::default();
    world.config.vbios_injection.allowed_images = vec!["*".into()];
    for image in ["registry.example:5000/team/hook:v1", HOOK_IMAGE, "quay.io/team/hook"] {
        let vm = vm(&[("vbios-injection", "rom"), ("pci-passthrough", A10), ("sidecar-image", image)]);
        assert_eq!(hooks(&world.created(&vm))[0]["image"], image);
    }
}

// 11: an address became a name that no cluster permits
#[test]
fn defect_11_an_address_resolves_or_is_denied() {
    let mut world = World::default();
    assert!(world.denial(&asking("pci-passthrough", "0000:00:02.0")).contains("cannot be resolved"));
    world.cluster.pci_devices = Some(vec![device("a-000000020", "a", "0000:00:02.0", NIC, "")]);
    let vm = world.created(&asking("pci-passthrough", "0000:00:02.0"));
    assert_eq!(devices(&vm)["hostDevices"], json!([{"name": "a-000000020", "deviceName": NIC}]));
}

// 12: names by index collided, nothing was removed, case hid duplicates
#[test]
fn defect_12_names_are_stable_removal_undoes_and_case_is_folded() {
    let world = World::default();
    let both = world.created(&asking("pci-passthrough", &json!([A10, NIC]).to_string()));
    let mut edited = both.clone();
    edited["metadata"]["annotations"][key("pci-passthrough")] = json!(NIC);
    let one = world.updated(&edited, &both);
    assert_eq!(devices(&one)["hostDevices"], json!([devices(&both)["hostDevices"][1]]));
    let none = world.updated(&without(&one, "pci-passthrough"), &one);
    assert_eq!(devices(&none).get("hostDevices"), None);
    let mut raw = World::default();
    raw.config.pci_passthrough.device_names = features::DeviceNames::Raw;
    assert!(raw.denial(&asking("pci-passthrough", r#"["0000:0A:00.0","0000:0a:00.0"]"#)).contains("twice"));
}

// 13: limits gave the guest nothing, vendors' names were refused
#[test]
fn defect_13_a_gpu_reaches_the_guest_under_its_vendors_name() {
    let vm = World::default().created(&asking("gpu-device-plugin", A10));
    assert_eq!(devices(&vm)["gpus"][0]["deviceName"], A10);
    assert_eq!(vm["spec"]["template"]["spec"]["domain"].get("resources"), None);
}

// 14 (this crate's part): settings that nothing read
#[test]
fn defect_14_every_setting_of_a_feature_is_in_force() {
    let mut world = World::default();
    world.config.pci_passthrough.max_devices = 1;
    assert!(
        world.denial(&asking("pci-passthrough", &json!([A10, NIC]).to_string())).contains("1 are allowed")
    );
    world.config.gpu_device_plugin.allowed_plugins = vec!["amd.com/gpu".into()];
    assert!(world.denial(&asking("gpu-device-plugin", A10)).contains("administrator allows: amd.com/gpu"));
    world.config.gpu_device_plugin.error_handling = Some(ErrorMode::AllowAndLog);
    assert_eq!(world.create(&asking("gpu-device-plugin", A10)).denial, None);
    world.config.gpu_device_plugin.enabled = false;
    assert_eq!(world.create(&asking("gpu-device-plugin", A10)).outcomes, []);
    world.config.vbios_injection.config_map_key = "bios".into();
    let rom = world.create(&vm(&[("vbios-injection", "rom"), ("pci-passthrough", A10)]));
    assert!(rom.denial.unwrap().contains("no binaryData key `bios`"));
}

// 15: error annotations were defined and never written
#[test]
fn defect_15_errors_are_annotated() {
    let vm = with_mode(ErrorMode::AllowAndLog).created(&asking("nested-virt", "plenty"));
    assert!(annotation(&vm, "nested-virt-error").unwrap().contains("`plenty`"));
}

// 16: allow-and-log lost the features that worked
#[test]
fn defect_16_allow_and_log_keeps_what_worked() {
    let vm = with_mode(ErrorMode::AllowAndLog)
        .created(&vm(&[("gpu-device-plugin", "no.such/X"), ("nested-virt", "1")]));
    assert_eq!(annotation(&vm, "nested-virt-applied"), Some("true"));
}

// 17: strip-label stopped at the first failure with half of its changes made
#[test]
fn defect_17_strip_label_is_for_one_feature_and_also_for_labels() {
    let world = with_mode(ErrorMode::StripLabel);
    let stored = world.created(&vm(&[("nested-virt", "plenty"), ("gpu-device-plugin", A10)]));
    assert_eq!(annotation(&stored, "nested-virt"), None);
    assert_eq!(annotation(&stored, "gpu-device-plugin-applied"), Some(A10));
    let (mut world, vm) = labelled(&[("nested-virt", "plenty")]);
    world.config.error_handling = ErrorMode::StripLabel;
    assert_eq!(world.created(&vm)["metadata"]["labels"], json!({}));
    // a wish in user data cannot be stripped: it is refused again, and blocks nothing
    let world = with_mode(ErrorMode::StripLabel);
    let stored = world.created(&with_user_data("x_kubevirt_features: {nested_virt: plenty}"));
    assert_eq!(world.updated(&stored, &stored), stored);
}

// 18 (this crate's part): the chart's default was not a known mode
#[test]
fn defect_18_old_spellings_of_modes_are_known() {
    for (text, mode) in [
        ("StripLabel", ErrorMode::StripLabel),
        ("strip-label", ErrorMode::StripLabel),
        ("KeepLabel", ErrorMode::AllowAndLog),
        ("allow", ErrorMode::AllowAndLog),
        ("allow-and-log", ErrorMode::AllowAndLog),
        ("reject", ErrorMode::Reject),
    ] {
        assert_eq!(serde_json::from_value::<ErrorMode>(json!(text)).unwrap(), mode);
    }
    assert!(serde_json::from_value::<ErrorMode>(json!("whatever")).is_err());
}

// 19: labels can carry neither JSON nor `/`
#[test]
fn defect_19_labels_can_ask_for_every_feature() {
    let (mut world, vm) = labelled(&[
        ("nested-virt", "enabled"),
        ("pci-passthrough", "intel.com_ETHERNET_CONNECTION_11_I219LM"),
        ("gpu-device-plugin", "nvidia.com_GA102GL_A10"),
    ]);
    let stored = world.created(&vm);
    assert_eq!(devices(&stored)["hostDevices"][0]["deviceName"], NIC);
    assert_eq!(devices(&stored)["gpus"][0]["deviceName"], A10);
    world.cluster.pci_devices = Some(vec![device("a-000000020", "a", "0000:00:02.0", NIC, "")]);
    let (_, vm) = labelled(&[("pci-passthrough", "pci_0000_00_02_0"), ("vbios-injection", "rom")]);
    assert_eq!(hooks(&world.created(&vm)).len(), 1);
}

// 20: with the label source user data was ignored
#[test]
fn defect_20_user_data_counts_with_the_label_source() {
    let mut world = World::default();
    world.config.source = Source::Labels;
    let verdict = world.create(&with_user_data("x_kubevirt_features: {nested_virt: true}"));
    assert_eq!(results(&verdict), [("nested-virt", OutcomeResult::Applied)]);
}

// 21: user data became annotations for ever, any key went, false was a ConfigMap
#[test]
fn defect_21_user_data_is_not_copied_and_false_means_no() {
    let world = World::default();
    let plain = with_user_data(
        "x_kubevirt_features: {vbios_injection: false, sidecar_image: evil, nested_virt: true}",
    );
    let stored = world.created(&plain);
    for name in ["nested-virt", "vbios-injection", "sidecar-image"] {
        assert_eq!(annotation(&stored, name), None, "{name}");
    }
    assert_eq!(results(&world.create(&plain)), [("nested-virt", OutcomeResult::Applied)]);
}

// 23: the documentation named a field that KubeVirt does not have
#[test]
fn defect_23_the_secret_of_user_data_is_kubevirts_field() {
    let request = |field: &str| {
        let vm = with_volume(json!({"name": "init", "cloudInitNoCloud": {field: {"name": "s"}}}));
        let request = features::Request { namespace: NAMESPACE, object: &vm, old_object: None };
        features::needs(&request, &config(), &features::Lookups::new())
    };
    assert_eq!(request("secretRef"), [features::Need::Secret("s".into())]);
    assert_eq!(request("userDataSecretRef"), []);
}

// 24: VMs under deletion and untouched old VMs were blocked
#[test]
fn defect_24_deletion_and_untouched_vms_are_not_blocked() {
    let world = World::default();
    let mut deleted = asking("nested-virt", "plenty");
    deleted["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    assert_eq!(world.create(&deleted), features::Verdict::default());
    let old = asking("nested-virt", "plenty");
    let mut touched = old.clone();
    touched["spec"]["runStrategy"] = json!("Halted");
    let verdict = world.admit(&touched, Some(&old));
    assert_eq!((verdict.denial, verdict.patch.0.len(), verdict.warnings.len()), (None, 0, 1));
}

// 28: nothing was ever tested against KubeVirt's own validation
#[test]
fn defect_28_what_is_written_are_fields_of_kubevirts_schema() {
    let Ok(archive) = std::env::var("KUBEVIRT_MANIFESTS") else {
        eprintln!(
            "SKIPPED: set KUBEVIRT_MANIFESTS to a .tar.gz with KubeVirt's virtualmachines.kubevirt.io.yaml"
        );
        return;
    };
    let schema = vm_schema(&archive).expect("the archive has the schema");
    let mut world = World::default();
    world.cluster.nodes = Some(vec![amd("a"), intel("b")]);
    let features = [
        ("nested-virt", "1"),
        ("pci-passthrough", NIC),
        ("gpu-device-plugin", A10),
        ("vbios-injection", "{\"intel-com-ethernet-connection-11-i219lm\":\"rom\"}"),
    ];
    let mut plain = vm(&features);
    plain["spec"].as_object_mut().unwrap().remove("fieldOfTheFuture");
    let mut wrong = Vec::new();
    check_schema(&schema["properties"]["spec"], &world.created(&plain)["spec"], "spec", &mut wrong);
    assert_eq!(wrong, Vec::<String>::new());
    let mut checked = Vec::new();
    check_schema(
        &schema["properties"]["spec"],
        &json!({"template": {"spec": {"nonsense": 1}}}),
        "spec",
        &mut checked,
    );
    assert_eq!(checked, ["spec.template.spec.nonsense: not in the schema"], "the check finds what is wrong");
}

/// The v1 schema of a VirtualMachine, from an archive of KubeVirt's manifests.
fn vm_schema(archive: &str) -> Option<Value> {
    let output = std::process::Command::new("tar")
        .args(["-xzOf", archive, "--wildcards", "*/virtualmachines.kubevirt.io.yaml"])
        .output()
        .ok()?;
    let crd: Value = serde_saphyr::from_str(std::str::from_utf8(&output.stdout).ok()?).ok()?;
    let versions = crd["spec"]["versions"].as_array()?;
    let version = versions.iter().find(|version| version["name"] == "v1")?;
    Some(version["schema"]["openAPIV3Schema"].clone())
}

/// Lists the fields of a value that a structural schema does not have or types otherwise.
fn check_schema(schema: &Value, value: &Value, path: &str, wrong: &mut Vec<String>) {
    let expected = schema["type"].as_str().unwrap_or("any");
    let fits = match value {
        Value::Object(_) => expected == "object",
        Value::Array(_) => expected == "array",
        Value::String(_) => expected == "string",
        Value::Bool(_) => expected == "boolean",
        Value::Number(_) => matches!(expected, "integer" | "number"),
        Value::Null => true,
    };
    if !fits && expected != "any" && schema["x-kubernetes-int-or-string"] != true {
        wrong.push(format!("{path}: {value} is not {expected}"));
    }
    match value {
        Value::Object(members) if schema["x-kubernetes-preserve-unknown-fields"] != true => {
            for (key, member) in members {
                let path = format!("{path}.{key}");
                match (schema["properties"].get(key), schema.get("additionalProperties")) {
                    (Some(schema), _) | (None, Some(schema)) => check_schema(schema, member, &path, wrong),
                    (None, None) => wrong.push(format!("{path}: not in the schema")),
                }
            }
        }
        Value::Array(items) => {
            for item in items {
                check_schema(&schema["items"], item, path, wrong);
            }
        }
        _ => {}
    }
}
