//! What holds for all features: error modes, independence, undo, sources, updates.

mod common;

use common::*;
use features::{ErrorMode, Lookup, Need, OutcomeResult, Request, Source};
use serde_json::{Value, json};

fn world(mode: ErrorMode) -> World {
    World { config: config_with(mode), ..World::default() }
}

/// One feature that works and one that does not.
fn half_wrong() -> Value {
    vm(&[("nested-virt", "enabled"), ("gpu-device-plugin", "no.such/GPU")])
}

#[test]
fn reject_denies_and_names_every_failed_feature() {
    let verdict =
        world(ErrorMode::Reject).create(&vm(&[("nested-virt", "maybe"), ("gpu-device-plugin", "x")]));
    let denial = verdict.denial.clone().unwrap();
    assert!(denial.contains("nested-virt: `maybe`") && denial.contains("gpu-device-plugin: `x`"), "{denial}");
    assert_eq!(
        results(&verdict),
        [("nested-virt", OutcomeResult::Rejected), ("gpu-device-plugin", OutcomeResult::Rejected)]
    );
}

#[test]
fn allow_and_log_gives_the_rest_and_says_what_failed() {
    let world = world(ErrorMode::AllowAndLog);
    let plain = half_wrong();
    let verdict = world.create(&plain);
    assert_eq!(
        results(&verdict),
        [("nested-virt", OutcomeResult::Applied), ("gpu-device-plugin", OutcomeResult::Skipped)]
    );
    assert!(verdict.warnings[0].starts_with("gpu-device-plugin is not applied: `no.such/GPU`"));
    let stored = world.created(&plain);
    assert_eq!(annotation(&stored, "nested-virt-applied"), Some("true"));
    assert!(annotation(&stored, "gpu-device-plugin-error").unwrap().contains("not a permitted device"));
    assert_eq!(annotation(&stored, "gpu-device-plugin"), Some("no.such/GPU"));
    assert_eq!(annotation(&stored, "gpu-device-plugin-applied"), None);
    // the feature works later: the error goes
    let mut mended = stored.clone();
    mended["metadata"]["annotations"][key("gpu-device-plugin")] = json!(A10);
    let mended = world.updated(&mended, &stored);
    assert_eq!(annotation(&mended, "gpu-device-plugin-error"), None);
    assert_eq!(annotation(&mended, "gpu-device-plugin-applied"), Some(A10));
    // nobody asks any more: the error goes
    let asked_no_more = world.updated(&without(&stored, "gpu-device-plugin"), &stored);
    assert_eq!(annotation(&asked_no_more, "gpu-device-plugin-error"), None);
}

#[test]
fn strip_removes_the_wish_and_what_it_had_given() {
    let world = world(ErrorMode::StripLabel);
    let stored = world.created(&half_wrong());
    assert_eq!(annotation(&stored, "gpu-device-plugin"), None);
    assert!(annotation(&stored, "gpu-device-plugin-error").is_some());
    assert_eq!(annotation(&stored, "nested-virt-applied"), Some("true"), "other features stay");
    let good = world.created(&asking("gpu-device-plugin", A10));
    let mut bad = good.clone();
    bad["metadata"]["annotations"][key("gpu-device-plugin")] = json!("no.such/GPU");
    let after = world.updated(&bad, &good);
    assert_eq!(devices(&after).get("gpus"), None, "without the wish there is no GPU");
    assert_eq!(annotation(&after, "gpu-device-plugin-applied"), None);
    assert_eq!(annotation(&after, "managed"), None);
    assert_eq!(world.updated(&after, &good), after, "called again for the same request it changes nothing");
    assert_eq!(world.updated(&after, &after), after, "the explanation stays");
    let mut mended = after.clone();
    mended["metadata"]["annotations"][key("gpu-device-plugin")] = json!(A10);
    assert_eq!(world.updated(&mended, &after), good, "until the feature is given");
}

#[test]
fn strip_removes_labels_too() {
    let mut world = world(ErrorMode::StripLabel);
    world.config.source = Source::Labels;
    let mut plain = vm(&[]);
    plain["metadata"]["labels"] = json!({"app": "x", key("nested-virt"): "maybe"});
    let stored = world.created(&plain);
    assert_eq!(stored["metadata"]["labels"], json!({"app": "x"}));
}

#[test]
fn a_stripped_wish_does_not_uncover_another() {
    let world = world(ErrorMode::StripLabel);
    let mut plain = with_user_data("x_kubevirt_features: {nested_virt: true}");
    plain["metadata"]["annotations"][key("nested-virt")] = json!("maybe");
    let stored = world.created(&plain);
    assert_eq!(annotation(&stored, "nested-virt"), Some("maybe"));
    assert!(annotation(&stored, "nested-virt-error").is_some());
}

#[test]
fn labels_count_beside_annotations_which_win() {
    let mut world = world(ErrorMode::StripLabel);
    let mut plain = vm(&[("gpu-device-plugin", A10)]);
    plain["metadata"]["labels"] =
        json!({key("nested-virt"): "enabled", key("gpu-device-plugin"): "no.such_GPU"});
    assert_eq!(results(&world.create(&plain)), [("gpu-device-plugin", OutcomeResult::Applied)]);
    world.config.source = Source::Both;
    let stored = world.created(&plain);
    assert_eq!(annotation(&stored, "nested-virt-applied"), Some("true"));
    assert_eq!(devices(&stored)["gpus"][0]["deviceName"], A10);
    // an annotation may say no where a label says yes
    let mut refused = plain.clone();
    refused["metadata"]["annotations"][key("nested-virt")] = json!("disabled");
    assert_eq!(annotation(&world.updated(&refused, &stored), "nested-virt-applied"), None);
    // a failed annotation does not uncover the label, a failed label is taken away
    let mut wrong = plain.clone();
    wrong["metadata"]["annotations"][key("gpu-device-plugin")] = json!("no.such/GPU");
    wrong["metadata"]["labels"][key("nested-virt")] = json!("maybe");
    let stored = world.created(&wrong);
    assert_eq!(annotation(&stored, "gpu-device-plugin"), Some("no.such/GPU"));
    assert_eq!(stored["metadata"]["labels"], json!({key("gpu-device-plugin"): "no.such_GPU"}));
}

#[test]
fn modes_can_be_set_for_each_feature() {
    let mut world = world(ErrorMode::Reject);
    world.config.gpu_device_plugin.error_handling = Some(ErrorMode::AllowAndLog);
    assert_eq!(world.create(&half_wrong()).denial, None);
    assert!(world.create(&asking("nested-virt", "maybe")).denial.is_some());
}

#[test]
fn a_failing_change_keeps_what_was_there() {
    let world = world(ErrorMode::AllowAndLog);
    let good = world.created(&asking("gpu-device-plugin", A10));
    let mut bad = good.clone();
    bad["metadata"]["annotations"][key("gpu-device-plugin")] = json!("no.such/GPU");
    let after = world.updated(&bad, &good);
    assert_eq!(devices(&after), devices(&good));
    assert_eq!(annotation(&after, "gpu-device-plugin-applied"), Some(A10));
    assert!(annotation(&after, "gpu-device-plugin-error").is_some());
}

#[test]
fn undo_takes_exactly_what_was_added() {
    let world = World::default();
    for annotations in [
        vec![("nested-virt", "enabled")],
        vec![("pci-passthrough", NIC)],
        vec![("gpu-device-plugin", A10), ("vbios-injection", "rom")],
        vec![("nested-virt", "1"), ("pci-passthrough", NIC), ("gpu-device-plugin", A10)],
    ] {
        let plain = vm(&annotations);
        let stored = world.created(&plain);
        let (mut asked_no_more, mut expected) = (stored.clone(), plain.clone());
        for (name, _) in &annotations {
            asked_no_more = without(&asked_no_more, name);
            expected = without(&expected, name);
        }
        assert_eq!(world.updated(&asked_no_more, &stored), expected, "{annotations:?}");
    }
}

#[test]
fn features_that_share_a_parent_are_undone_in_any_order() {
    let world = World::default();
    let mut plain = vm(&[("pci-passthrough", NIC), ("gpu-device-plugin", A10)]);
    plain["spec"]["template"]["spec"]["domain"].as_object_mut().unwrap().remove("devices");
    let stored = world.created(&plain);
    for order in [["pci-passthrough", "gpu-device-plugin"], ["gpu-device-plugin", "pci-passthrough"]] {
        let once = world.updated(&without(&stored, order[0]), &stored);
        let twice = world.updated(&without(&once, order[1]), &once);
        assert_eq!(twice, without(&without(&plain, order[0]), order[1]));
    }
}

#[test]
fn what_a_user_changed_since_is_not_undone() {
    let world = World::default();
    let mut stored = world.created(&asking("pci-passthrough", NIC));
    stored["spec"]["template"]["spec"]["domain"]["devices"]["hostDevices"][0]["tag"] = json!("mine");
    let after = world.updated(&without(&stored, "pci-passthrough"), &stored);
    assert_eq!(devices(&after)["hostDevices"][0]["tag"], "mine");
    assert_eq!(annotation(&after, "managed"), None);
}

#[test]
fn a_record_lost_in_a_replace_is_taken_from_the_old_object() {
    let world = World::default();
    let plain = asking("pci-passthrough", NIC);
    let stored = world.created(&plain);
    let mut replaced = without(&stored, "pci-passthrough");
    for name in ["managed", "pci-passthrough-applied"] {
        replaced = without(&replaced, name);
    }
    assert_eq!(world.updated(&replaced, &stored), without(&plain, "pci-passthrough"));
    // a replace with the manifest of the user, who still asks: as stored
    assert_eq!(world.updated(&plain, &stored), stored);
}

/// It would be undone by the next call, which finds no record in the object and reads the old one.
#[test]
fn what_was_added_is_undone_at_once_also_where_its_record_was_edited() {
    let world = World::default();
    let plain = asking("pci-passthrough", NIC);
    let stored = world.created(&plain);
    let mut edited = without(&stored, "pci-passthrough");
    let record = edited["metadata"]["annotations"][MANAGED].as_str().unwrap().replace("deviceName", "name");
    edited["metadata"]["annotations"][MANAGED] = json!(record);
    let once = world.updated(&edited, &stored);
    assert_eq!(once, without(&plain, "pci-passthrough"));
    assert_eq!(world.updated(&once, &stored), once);
}

#[test]
fn an_unreadable_record_is_no_obstacle() {
    let world = World::default();
    let mut stored = world.created(&asking("nested-virt", "enabled"));
    stored["metadata"]["annotations"][MANAGED] = json!("{nonsense");
    let verdict = world.create(&stored);
    assert_eq!(verdict.denial, None);
    assert!(verdict.warnings[0].contains("was not readable"));
}

#[test]
fn what_was_admitted_before_is_never_blocked() {
    let mut world = World::default();
    let stored = world.created(&vm(&[
        ("nested-virt", "enabled"),
        ("gpu-device-plugin", A10),
        ("vbios-injection", "rom"),
    ]));
    world.cluster.nodes = Some(vec![]);
    world.cluster.kubevirt = Some(kubevirt(&[], &[]));
    world.lookups.clear();
    let mut started = stored.clone();
    started["spec"]["runStrategy"] = json!("Halted");
    let verdict = world.admit(&started, Some(&stored));
    assert_eq!(verdict.denial, None);
    assert_eq!(verdict.patch.0, []);
    assert_eq!(verdict.warnings.len(), 3);
    assert!(verdict.outcomes.iter().all(|outcome| outcome.result == OutcomeResult::Skipped));
    // a change of what decides is a new question
    started["spec"]["template"]["spec"]["nodeSelector"] = json!({"a": "b"});
    assert!(world.admit(&started, Some(&stored)).denial.is_some());
}

#[test]
fn objects_on_their_way_out_are_left_alone() {
    let mut deleted = half_wrong();
    deleted["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    assert_eq!(World::default().create(&deleted), features::Verdict::default());
}

#[test]
fn a_vm_that_asks_for_nothing_is_not_touched() {
    for vm in [
        vm(&[]),
        with_user_data("#cloud-config\nusers: []\n"),
        json!({"metadata": {}}),
        json!(null),
        json!([]),
    ] {
        assert_eq!(World::default().create(&vm), features::Verdict::default());
    }
}

#[test]
fn a_disabled_feature_is_ignored_with_a_warning() {
    let mut world = World::default();
    let stored = world.created(&asking("nested-virt", "enabled"));
    world.config.nested_virtualization.enabled = false;
    let verdict = world.admit(&stored, Some(&stored));
    assert_eq!(verdict.patch.0, [], "what was given stays");
    assert!(verdict.warnings[0].contains("switched off by the administrator"));
}

#[test]
fn tracking_annotations_can_be_switched_off() {
    let mut world = World::default();
    world.config.add_tracking_annotations = false;
    let stored = world.created(&asking("nested-virt", "enabled"));
    assert_eq!(annotation(&stored, "nested-virt-applied"), None);
}

#[test]
fn cloud_init_may_ask_and_leaves_no_annotation() {
    let world = World::default();
    let text = "#cloud-config\nhostname: a\nx_kubevirt_features:\n  nested_virt: true\n  gpu-device-plugin: nvidia.com/GA102GL_A10\n  pci_passthrough:\n    devices: [intel.com/ETHERNET_CONNECTION_11_I219LM]\n  vbios_injection: false\n  sidecar_image: evil\n  unheard_of: 1\n";
    let plain = with_user_data(text);
    let verdict = world.create(&plain);
    assert_eq!(verdict.outcomes.len(), 3);
    assert_eq!(
        verdict.warnings,
        [
            "x_kubevirt_features: `sidecar_image` is not a feature, it is ignored",
            "x_kubevirt_features: `unheard_of` is not a feature, it is ignored",
        ]
    );
    let stored = world.created(&plain);
    for feature in features::FEATURES {
        assert_eq!(annotation(&stored, feature), None, "{feature}");
    }
    // the user data no longer asks: undone
    let mut quiet = stored.clone();
    quiet["spec"]["template"]["spec"]["volumes"][1]["cloudInitNoCloud"]["userData"] =
        json!("#cloud-config\n");
    assert_eq!(world.updated(&quiet, &stored), with_user_data("#cloud-config\n"));
}

#[test]
fn cloud_init_is_read_wherever_kubevirt_reads_it() {
    let text = "#cloud-config\nx_kubevirt_features: {nested_virt: 'yes'}\n";
    let lookups = [
        (Need::Secret("s".to_owned()), Lookup::Found(json!({"data": {"userdata": base64(text.as_bytes())}}))),
        (Need::Secret("t".to_owned()), Lookup::Found(json!({"stringData": {"user-data": text}}))),
        (Need::Secret("u".to_owned()), Lookup::Found(json!({"data": {"other": "x"}}))),
        (Need::Secret("f".to_owned()), Lookup::Failed("forbidden".into())),
    ]
    .into();
    let world = World { lookups, ..World::default() };
    for (kind, source, expected) in [
        ("cloudInitNoCloud", json!({"userData": text}), 1),
        ("cloudInitConfigDrive", json!({"userData": text}), 1),
        ("cloudInitNoCloud", json!({"userDataBase64": base64(text.as_bytes())}), 1),
        ("cloudInitNoCloud", json!({"secretRef": {"name": "s"}}), 1),
        ("cloudInitConfigDrive", json!({"secretRef": {"name": "t"}}), 1),
        ("cloudInitNoCloud", json!({"secretRef": {"name": "u"}}), 0),
        ("cloudInitNoCloud", json!({"secretRef": {"name": "f"}}), 0),
        ("cloudInitNoCloud", json!({"networkData": text}), 0),
    ] {
        let plain = with_volume(json!({"name": "init", kind: source}));
        assert_eq!(world.create(&plain).outcomes.len(), expected, "{kind} {source}");
        let request = Request { namespace: NAMESPACE, object: &plain, old_object: None };
        let needs = features::needs(&request, &world.config, &features::Lookups::new());
        assert_eq!(needs.len(), usize::from(source.get("secretRef").is_some()));
    }
}

#[test]
fn user_data_has_limits() {
    let world = World::default();
    let map = "x_kubevirt_features: {nested_virt: true}\n";
    let warning = |text: &str| {
        let verdict = world.create(&with_user_data(text));
        assert_eq!(verdict.outcomes, [], "{text:.40}");
        verdict.warnings.join(" ")
    };
    assert!(warning(&format!("{map}#{}", "x".repeat(64 * 1024))).contains("longer than 65536 bytes"));
    let long = format!("x_kubevirt_features: {{nested_virt: {}}}\n", "x".repeat(1025));
    assert!(warning(&long).contains("`nested_virt` is longer than 1024 bytes"));
    assert!(warning("x_kubevirt_features: [").contains("not a YAML mapping"));
    assert!(warning("x_kubevirt_features: 3").contains("not a YAML mapping"));
    let bomb = "a: &a [x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b]\nd: &d [*c,*c,*c,*c,*c,*c,*c,*c]\ne: &e [*d,*d,*d,*d,*d,*d,*d,*d]\nx_kubevirt_features: {nested_virt: *e}\n";
    assert!(!warning(bomb).is_empty());
}

#[test]
fn annotations_win_over_cloud_init() {
    let world = World::default();
    let mut plain = with_user_data("x_kubevirt_features: {nested_virt: true}\n");
    plain["metadata"]["annotations"][key("nested-virt")] = json!("disabled");
    assert_eq!(world.create(&plain).outcomes, []);
}

#[test]
fn operations_are_few_and_create_parents() {
    let world = World::default();
    let verdict = world.create(&asking("nested-virt", "enabled"));
    let operations = serde_json::to_value(&verdict.patch).unwrap();
    assert_eq!(
        operations[0],
        json!({"op": "add", "path": "/spec/template/spec/domain/cpu",
               "value": {"features": [{"name": "svm", "policy": "require"}]}})
    );
    let paths: Vec<_> = verdict.patch.0.iter().map(|operation| operation.path().to_string()).collect();
    assert_eq!(
        paths[1..],
        [
            "/metadata/annotations/vm-feature-manager.io~1managed",
            "/metadata/annotations/vm-feature-manager.io~1nested-virt-applied",
        ]
    );
}

#[test]
fn undo_of_a_created_parent_is_one_removal() {
    let world = World::default();
    let stored = world.created(&asking("nested-virt", "enabled"));
    let verdict = world.admit(&without(&stored, "nested-virt"), Some(&stored));
    assert_eq!(results(&verdict), [("nested-virt", OutcomeResult::Removed)]);
    let paths: Vec<_> = verdict
        .patch
        .0
        .iter()
        .map(|operation| operation.path().to_string())
        .filter(|path| path.starts_with("/spec"))
        .collect();
    assert_eq!(
        paths,
        ["/spec/template/spec/domain/cpu", "/spec/template/spec/domain/cpu"],
        "a test and a remove"
    );
}

#[test]
fn a_malformed_object_is_an_error_of_the_feature() {
    let world = World::default();
    for (path, value) in [
        ("/spec/template/spec/domain", json!("x")),
        ("/spec/template/spec/domain/cpu", json!({"features": {}})),
        ("/spec/template", json!([])),
    ] {
        let mut vm = asking("nested-virt", "enabled");
        *vm.pointer_mut(path.rsplit_once("/cpu").map_or(path, |(parent, _)| parent)).unwrap() =
            if path.ends_with("/cpu") { json!({"cpu": value}) } else { value };
        let denial = world.denial(&vm);
        assert!(denial.contains("it must be"), "{path}: {denial}");
    }
}

/// What fuzzing starts from are VMs that get what they ask for, so that it begins behind the first checks.
#[test]
fn seeds_of_the_fuzz_target_get_something() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/seeds/admit");
    let mut read = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let seed: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        let mut world = World { config: config_with(ErrorMode::AllowAndLog), ..World::default() };
        world.config.qemu_arguments.allowed = vec!["-no-hpet".to_owned()];
        world.cluster = serde_json::from_value(seed["facts"].clone()).unwrap();
        let (object, old) = (&seed["object"], seed.get("old"));
        let request = Request { namespace: "default", object, old_object: old };
        for need in features::needs(&request, &world.config, &features::Lookups::new()) {
            world.lookups.insert(need, Lookup::Found(seed["answer"].clone()));
        }
        let outcomes = results(&world.admit(object, old));
        let given =
            |result: &OutcomeResult| matches!(result, OutcomeResult::Applied | OutcomeResult::Removed);
        assert!(outcomes.iter().any(|(_, result)| given(result)), "{}: {outcomes:?}", path.display());
        read += 1;
    }
    assert!(read >= 8, "only {read} seeds");
}
