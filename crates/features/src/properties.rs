//! What holds for every VM, every request and every cluster.

use json_patch::Patch;
use proptest::prelude::*;
use proptest::sample::{Index, select, subsequence};
use proptest::test_runner::RngSeed;
use serde_json::{Value, json};

use crate::common::{
    A10, MANAGED, NAMESPACE, NIC, World, amd, annotation, config, device, intel, key, kubevirt, lookups,
    node, rom, rom_map, vm, without,
};
use crate::feature::Feature;
use crate::{
    ClusterFacts, DeviceNames, ErrorMode, FEATURES, GpuMode, Lookup, Node, Request, Source, Verdict,
};

/// Values that users write, right and wrong, by feature.
fn wish() -> impl Strategy<Value = (&'static str, String)> {
    let texts = |feature, values: Vec<String>| select(values).prop_map(move |value| (feature, value));
    prop_oneof![
        texts("nested-virt", ["enabled", "true", "off", "maybe", ""].map(str::to_owned).into()),
        texts(
            "pci-passthrough",
            vec![
                NIC.into(),
                A10.to_ascii_lowercase(),
                json!([A10, NIC]).to_string(),
                json!({"devices": ["0000:01:00.0"]}).to_string(),
                json!([{"address": "n1/0000:02:00.0", "name": "nic"}]).to_string(),
                "n1-000002000".into(),
                "0000:00:zz.0".into(),
                "{".into(),
            ]
        ),
        texts(
            "gpu-device-plugin",
            vec![A10.into(), "no.such/GPU".into(), json!([A10, NIC]).to_string(), "x".into()]
        ),
        texts(
            "vbios-injection",
            vec![
                "rom".into(),
                "rom/other".into(),
                "absent".into(),
                json!({"mine": "rom"}).to_string(),
                json!({A10: "rom", "mine": "gop"}).to_string(),
            ]
        ),
    ]
}

fn expression() -> impl Strategy<Value = Value> {
    (select(vec!["zone", "kubernetes.io/hostname"]), select(vec!["In", "NotIn", "Exists"]))
        .prop_map(|(key, operator)| json!({"key": key, "operator": operator, "values": ["n1"]}))
}

fn term() -> impl Strategy<Value = Value> {
    prop_oneof![
        4 => prop::collection::vec(expression(), 1..3).prop_map(|all| json!({"matchExpressions": all})),
        1 => Just(json!({})),
        1 => Just(json!({"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n1"]}]})),
    ]
}

/// A VM as a user may write it, with or without the containers that features add to.
fn machine() -> impl Strategy<Value = Value> {
    let hooks = prop_oneof![
        3 => Just(None),
        1 => Just(Some("[]")),
        1 => Just(Some("[ {\"image\" : \"other\"} ,{\"configMap\":{\"name\":\"gop\"}}\n]")),
        1 => Just(Some("[nonsense")),
    ];
    let cpu = select(vec![
        None,
        Some(json!({"cores": 2})),
        Some(json!({"features": [{"name": "svm", "policy": "disable"}]})),
        Some(json!({"features": [{"name": "vmx", "policy": "optional"}, {"name": "x"}]})),
    ]);
    let hosts = select(vec![
        None,
        Some(json!([])),
        Some(json!([{"name": "mine", "deviceName": NIC}])),
        Some(json!([{"name": "mine", "deviceName": "other/X", "tag": "t"}])),
    ]);
    let gpus = select(vec![None, Some(json!([{"name": "g", "deviceName": A10}]))]);
    let wishes = prop::collection::vec(wish(), 0..5);
    let terms = prop::option::of(prop::collection::vec(term(), 1..3));
    (wishes, hooks, cpu, hosts, gpus, terms, any::<bool>(), any::<bool>()).prop_map(
        |(wishes, hooks, cpu, hosts, gpus, terms, has_devices, has_limits)| {
            let wishes: Vec<_> = wishes.iter().map(|(name, value)| (*name, value.as_str())).collect();
            let mut vm = vm(&wishes);
            let template = &mut vm["spec"]["template"];
            if let Some(hooks) = hooks {
                template["metadata"]["annotations"] = json!({"hooks.kubevirt.io/hookSidecars": hooks});
            }
            if let Some(terms) = terms {
                template["spec"]["affinity"]["nodeAffinity"] =
                    json!({"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}});
            }
            let domain = &mut template["spec"]["domain"];
            for (place, value) in [("cpu", cpu), ("hostDevices", hosts), ("gpus", gpus)] {
                let place = if place == "cpu" { &mut domain["cpu"] } else { &mut domain["devices"][place] };
                match value {
                    Some(value) => *place = value,
                    None => *place = Value::Null,
                }
            }
            if !has_devices {
                domain["devices"] = Value::Null;
            }
            if has_limits {
                domain["resources"] = json!({"limits": {"memory": "1Gi"}});
            }
            drop_nulls(domain);
            drop_nulls(&mut domain["devices"]);
            drop_nulls(domain);
            vm
        },
    )
}

fn drop_nulls(value: &mut Value) {
    if let Value::Object(members) = value {
        members.retain(|_, member| !member.is_null());
    }
}

fn world() -> impl Strategy<Value = World> {
    let nodes: Vec<Node> = vec![amd("n1"), intel("n2"), node("n3", &[("zone", "a")]), amd("n4")];
    let nodes = prop::option::weighted(0.9, subsequence(nodes, 0..4));
    let gates = subsequence(vec!["HostDevices", "Sidecar", "Plugins"], 0..4);
    let permitted = subsequence(vec![A10, NIC], 0..3);
    let modes = select(vec![ErrorMode::Reject, ErrorMode::AllowAndLog, ErrorMode::StripLabel]);
    let devices = prop::option::of(Just(vec![
        device("n1-000001000", "n1", "0000:01:00.0", A10, "1"),
        device("n1-000002000", "n1", "0000:02:00.0", NIC, "2"),
        device("n2-000001000", "n2", "0000:01:00.0", A10, ""),
    ]));
    (nodes, gates, permitted, modes, devices, any::<[bool; 4]>()).prop_map(
        |(nodes, gates, permitted, mode, pci_devices, [raw, limits, knows_kubevirt, tracks])| {
            let mut config = config();
            config.error_handling = mode;
            config.add_tracking_annotations = tracks;
            if raw {
                config.pci_passthrough.device_names = DeviceNames::Raw;
            }
            if limits {
                config.gpu_device_plugin.mode = GpuMode::Limits;
            }
            World {
                cluster: ClusterFacts {
                    nodes,
                    kubevirt: knows_kubevirt.then(|| kubevirt(&gates, &permitted)),
                    pci_devices,
                    ..ClusterFacts::default()
                },
                lookups: lookups(&[
                    ("rom", rom_map("rom", &rom())),
                    ("gop", rom_map("rom", &rom())),
                    ("absent", Lookup::NotFound),
                ]),
                config,
            }
        },
    )
}

fn apply(object: &Value, patch: &Patch) -> Value {
    let mut object = object.clone();
    json_patch::patch(&mut object, patch).expect("the patch applies");
    object
}

fn in_order(world: &World, object: &Value, order: [Feature; Feature::ALL.len()]) -> Verdict {
    let request = Request { namespace: NAMESPACE, object, old_object: None };
    crate::admission::admit(&request, &world.cluster, &world.lookups, &world.config, order)
}

/// What features never touch: all but their containers and the annotations.
fn untouched(object: &Value) -> Value {
    let mut object = object.clone();
    for path in [
        "/metadata/annotations",
        "/spec/template/metadata/annotations",
        "/spec/template/spec/affinity",
        "/spec/template/spec/domain/cpu",
        "/spec/template/spec/domain/resources",
        "/spec/template/spec/domain/devices/hostDevices",
        "/spec/template/spec/domain/devices/gpus",
    ] {
        let (parent, last) = path.rsplit_once('/').unwrap();
        if let Some(Value::Object(parent)) = object.pointer_mut(parent) {
            parent.remove(last);
        }
    }
    let domain = &mut object["spec"]["template"]["spec"]["domain"];
    if domain.get("devices") == Some(&json!({})) {
        domain.as_object_mut().unwrap().remove("devices");
    }
    object
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, rng_seed: RngSeed::Fixed(1), failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn applying_twice_changes_nothing(world in world(), vm in machine()) {
        let verdict = world.create(&vm);
        if verdict.denial.is_none() {
            let stored = apply(&vm, &verdict.patch);
            prop_assert_eq!(world.create(&stored).patch.0, []);
            let update = world.admit(&stored, Some(&stored));
            prop_assert_eq!(update.denial, None);
        }
    }

    /// An API server may call again for one UPDATE, with our patch applied.
    #[test]
    fn being_called_again_for_an_update_changes_nothing(world in world(), old in machine(), new in machine(), same in any::<bool>()) {
        let old = apply(&old, &world.create(&old).patch);
        for new in [if same { old.clone() } else { new }, old.clone()] {
            for old in [&old, &new] {
                let verdict = world.admit(&new, Some(old));
                if verdict.denial.is_none() {
                    let again = world.admit(&apply(&new, &verdict.patch), Some(old));
                    prop_assert_eq!(again.denial, None);
                    prop_assert_eq!(again.patch.0, []);
                }
            }
        }
    }

    /// What is stored from before the webhook was there fails, and stays editable.
    #[test]
    fn a_vm_from_before_is_never_blocked(world in world(), vm in machine(), halted in any::<bool>()) {
        let mut new = vm.clone();
        if halted {
            new["spec"]["runStrategy"] = json!("Halted");
        }
        let verdict = world.admit(&new, Some(&vm));
        prop_assert_eq!(&verdict.denial, &None);
        let again = world.admit(&apply(&new, &verdict.patch), Some(&vm));
        prop_assert_eq!(again.denial, None);
        prop_assert_eq!(again.patch.0, []);
    }

    #[test]
    fn the_order_of_features_does_not_matter(world in world(), vm in machine(), order in Just(Feature::ALL.to_vec()).prop_shuffle()) {
        let order = order.try_into().expect("four features");
        let (usual, shuffled) = (in_order(&world, &vm, Feature::ALL), in_order(&world, &vm, order));
        prop_assert_eq!(usual.denial.is_some(), shuffled.denial.is_some());
        prop_assert_eq!(apply(&vm, &usual.patch), apply(&vm, &shuffled.patch));
        let by_name = |verdict: Verdict| {
            let mut outcomes = verdict.outcomes;
            outcomes.sort_by_key(|outcome| outcome.feature);
            outcomes
        };
        prop_assert_eq!(by_name(usual), by_name(shuffled));
    }

    #[test]
    fn fields_that_no_feature_owns_are_preserved(world in world(), vm in machine()) {
        let stored = apply(&vm, &world.create(&vm).patch);
        prop_assert_eq!(untouched(&stored), untouched(&vm));
    }

    #[test]
    fn taking_the_wishes_back_restores_the_vm(world in world(), vm in machine()) {
        let verdict = world.create(&vm);
        prop_assume!(verdict.denial.is_none());
        let stored = apply(&vm, &verdict.patch);
        let (mut quiet, mut expected) = (stored.clone(), vm.clone());
        for feature in FEATURES {
            quiet = without(&quiet, feature);
            expected = without(&expected, feature);
        }
        let undone = world.admit(&quiet, Some(&stored));
        prop_assert_eq!(&undone.denial, &None);
        let mut undone = apply(&quiet, &undone.patch);
        if world.config.error_handling == ErrorMode::StripLabel {
            for feature in FEATURES {
                undone = without(&undone, &format!("{feature}-error"));
            }
        }
        prop_assert_eq!(undone, expected);
    }

    #[test]
    fn a_feature_that_fails_leaves_nothing_behind(world in world(), vm in machine()) {
        let verdict = world.create(&vm);
        let stored = apply(&vm, &verdict.patch);
        for outcome in verdict.outcomes.iter().filter(|outcome| outcome.error.is_some()) {
            let record = annotation(&stored, "managed").unwrap_or_default();
            prop_assert!(!record.contains(outcome.feature), "{} in {record}", outcome.feature);
        }
    }

    #[test]
    fn damaged_objects_neither_panic_nor_give_a_patch_that_does_not_apply(
        world in world(),
        vm in machine(),
        damage in prop::collection::vec((any::<Index>(), junk()), 1..4),
        labels in any::<bool>(),
    ) {
        let mut world = world;
        if labels {
            world.config.source = Source::Labels;
        }
        let mut stored = apply(&vm, &world.create(&vm).patch);
        for (place, junk) in damage {
            let paths = paths(&stored);
            let path = place.get(&paths).clone();
            *stored.pointer_mut(&path).expect("a path of the object") = junk;
        }
        for old in [None, Some(&vm)] {
            let verdict = world.admit(&stored, old);
            let after = apply(&stored, &verdict.patch);
            let again = world.admit(&after, old);
            if verdict.denial.is_none() && again.denial.is_none() {
                prop_assert_eq!(again.patch.0, []);
            }
            let request = Request { namespace: NAMESPACE, object: &stored, old_object: old };
            crate::needs(&request, &world.config, &world.lookups);
        }
    }

    /// What is not read would not have changed the verdict, nor is it lost when containers of ours are undone.
    #[test]
    fn what_is_skipped_decides_nothing(
        world in world(),
        vm in machine(),
        parts in prop::collection::vec((any::<Index>(), junk()), 0..6),
    ) {
        let paths = crate::relevant::skipped();
        let fill = |object: &mut Value| {
            for (place, junk) in &parts {
                let (last, above) = place.get(&paths).split_last().expect("no path is empty");
                let parent = above.iter().fold(&mut *object, |at, key| &mut at[*key]);
                parent[*last] = junk.clone();
            }
        };
        let read = |object: &Value| -> Value {
            serde_json::from_str::<crate::Relevant>(&object.to_string()).expect("JSON").0
        };
        let mut written = vm.clone();
        fill(&mut written);
        let verdict = world.create(&written);
        prop_assert_eq!(&world.create(&read(&written)), &verdict);
        // asked for, added to by the user, and taken back
        let mut stored = apply(&vm, &world.create(&vm).patch);
        fill(&mut stored);
        let quiet = FEATURES.iter().fold(stored.clone(), |vm, feature| without(&vm, feature));
        for (new, old) in [(&quiet, &stored), (&stored, &stored)] {
            let verdict = world.admit(new, Some(old));
            prop_assert_eq!(&world.admit(&read(new), Some(&read(old))), &verdict);
        }
    }

    #[test]
    fn any_json_is_survived(object in junk(), old in prop::option::of(junk())) {
        World::default().admit(&object, old.as_ref());
    }

    #[test]
    fn any_text_is_survived(feature in select(FEATURES.to_vec()), text in ".{0,80}", data in ".{0,200}") {
        let world = World { config: crate::Config { error_handling: ErrorMode::AllowAndLog, ..config() }, ..World::default() };
        let mut vm = vm(&[(feature, &text)]);
        vm["metadata"]["annotations"][MANAGED] = json!(data);
        vm["spec"]["template"]["metadata"]["annotations"] = json!({"hooks.kubevirt.io/hookSidecars": data});
        vm["spec"]["template"]["spec"]["volumes"][0] =
            json!({"cloudInitNoCloud": {"userData": format!("x_kubevirt_features: {{nested_virt: {text}}}")}});
        let verdict = world.create(&vm);
        prop_assert_eq!(&verdict.denial, &None);
        let stored = apply(&vm, &verdict.patch);
        prop_assert_eq!(world.create(&stored).patch.0, []);
        let _ = annotation(&stored, &key(feature));
    }
}

fn junk() -> impl Strategy<Value = Value> {
    let words = select(vec![
        "metadata",
        "annotations",
        "labels",
        "spec",
        "template",
        "domain",
        "devices",
        "hostDevices",
        "gpus",
        "cpu",
        "features",
        "name",
        "deviceName",
        "policy",
        "volumes",
        "affinity",
        "vm-feature-manager.io/nested-virt",
        "vm-feature-manager.io/pci-passthrough",
        MANAGED,
        "enabled",
        "svm",
        "[]",
        "{}",
        "",
    ]);
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        words.clone().prop_map(Value::from),
    ];
    leaf.prop_recursive(6, 64, 6, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec((words.clone(), inner), 0..5).prop_map(|members| members
                .into_iter()
                .map(|(key, value)| (key.to_owned(), value))
                .collect()),
        ]
    })
}

/// Every JSON pointer into a value.
fn paths(value: &Value) -> Vec<String> {
    let mut found = vec![String::new()];
    let children: Vec<(String, &Value)> = match value {
        Value::Array(items) => {
            items.iter().enumerate().map(|(index, item)| (index.to_string(), item)).collect()
        }
        Value::Object(members) => {
            members.iter().map(|(key, member)| (key.replace('~', "~0").replace('/', "~1"), member)).collect()
        }
        _ => Vec::new(),
    };
    for (token, child) in children {
        found.extend(paths(child).iter().map(|path| format!("/{token}{path}")));
    }
    found
}
