//! `cpu-pinning`, `hugepages`, `numa` and `realtime`: each rule of KubeVirt's admission for them
//! (`vmi-create-admitter.go`, v1.9) is told before KubeVirt tells it.

#![allow(clippy::unwrap_used, reason = "a test may fail this way")]

mod common;

use common::*;
use features::{Lookup, Need, Node};
use serde_json::{Value, json};

/// Nodes that can do all of it.
fn able(name: &str) -> Node {
    let mut node = node(name, &[("kubevirt.io/cpumanager", "true"), ("kubevirt.io/realtime", "")]);
    node.allocatable = [("hugepages-1Gi", "8Gi"), ("hugepages-2Mi", "1Gi")]
        .map(|(key, amount)| (key.to_owned(), amount.to_owned()))
        .into();
    node
}

fn world() -> World {
    let mut world = World::default();
    world.cluster.nodes = Some(vec![able("a"), amd("b")]);
    world
}

/// A VM with CPU settings beside what it asks for.
fn machine(wishes: &[(&str, &str)], domain: &Value) -> Value {
    let mut vm = vm(wishes);
    let target = &mut vm["spec"]["template"]["spec"]["domain"];
    target["cpu"] = json!({"cores": 2});
    for (key, value) in domain.as_object().into_iter().flatten() {
        target[key] = value.clone();
    }
    vm
}

fn domain(vm: &Value) -> &Value {
    &vm["spec"]["template"]["spec"]["domain"]
}

#[test]
fn pinning_is_a_setting_that_undo_takes_away() {
    let world = world();
    for (value, expected) in [
        ("enabled", json!({"cores": 2, "dedicatedCpuPlacement": true})),
        (
            "isolate-emulator-thread",
            json!({"cores": 2, "dedicatedCpuPlacement": true, "isolateEmulatorThread": true}),
        ),
        (
            r#"{"isolateEmulatorThread": true}"#,
            json!({"cores": 2, "dedicatedCpuPlacement": true, "isolateEmulatorThread": true}),
        ),
        (r#"{"isolateEmulatorThread": false}"#, json!({"cores": 2, "dedicatedCpuPlacement": true})),
    ] {
        let plain = machine(&[("cpu-pinning", value)], &json!({}));
        let vm = world.created(&plain);
        assert_eq!(domain(&vm)["cpu"], expected, "{value}");
        assert_eq!(
            world.updated(&without(&vm, "cpu-pinning"), &vm),
            without(&plain, "cpu-pinning"),
            "{value}"
        );
    }
}

#[test]
fn every_rule_of_pinned_cpus_is_told() {
    let world = world();
    let denied = |domain: Value| world.denial(&machine(&[("cpu-pinning", "enabled")], &domain));
    for (changed, expected) in [
        (json!({"memory": {}}), "wants memory to be given"),
        (json!({"cpu": {}}), "wants cores, or a CPU request or limit"),
        (json!({"resources": {"requests": {"cpu": "1500m"}}}), "wants whole CPUs"),
        (
            json!({"resources": {"requests": {"cpu": "2"}, "limits": {"cpu": "3"}}}),
            "equal requests and limits of CPU with pinned CPUs: 2 and 3",
        ),
        (
            json!({"resources": {"requests": {"memory": "1Gi"}, "limits": {"memory": "2Gi"}}}),
            "equal requests and limits of memory",
        ),
        (json!({"resources": {"limits": {"cpu": "4"}}}), "the VM has 2 vCPUs"),
        (json!({"cpu": {"cores": 1, "threads": 3}}), "3 threads per core"),
        (
            json!({"cpu": {"cores": 2, "dedicatedCpuPlacement": false}}),
            "sets cpu.dedicatedCpuPlacement to false",
        ),
    ] {
        let denial = denied(changed.clone());
        assert!(denial.contains(expected), "{changed}: {denial}");
    }
    // what KubeVirt accepts
    for domain in [
        json!({"resources": {"requests": {"cpu": "2", "memory": "2Gi"}, "limits": {"cpu": "2000m", "memory": "2048Mi"}}}),
        json!({"cpu": {"sockets": 2, "threads": 2}}),
        json!({"cpu": {}, "resources": {"limits": {"cpu": "2"}}}),
        json!({"memory": {}, "resources": {"requests": {"memory": "1Gi"}}}),
    ] {
        world.created(&machine(&[("cpu-pinning", "enabled")], &domain));
    }
    let mut arm = machine(&[("cpu-pinning", "enabled")], &json!({"cpu": {"cores": 1, "threads": 2}}));
    arm["spec"]["template"]["spec"]["architecture"] = json!("arm64");
    assert!(
        world
            .denial(&arm)
            .contains("2 threads per core are more than KubeVirt allows with pinned CPUs (1 on arm64)")
    );
    assert!(world.denial(&asking("cpu-pinning", "maybe")).contains("`maybe` is not a value"));
    assert!(world.denial(&asking("cpu-pinning", "{\"isolate\":true}")).contains("is not a value"));
}

#[test]
fn pinning_needs_a_node_that_can() {
    let mut world = world();
    world.cluster.nodes = Some(vec![amd("x"), amd("y")]);
    let wish = machine(&[("cpu-pinning", "enabled")], &json!({}));
    let denial = world.denial(&wish);
    assert!(
        denial.contains(
            "can pin CPUs (label kubevirt.io/cpumanager or cpumanager); nodes it can land on: x, y"
        )
    );
    assert!(denial.contains("feature gate CPUManager is off"), "{denial}");
    world.cluster.kubevirt = Some(kubevirt(&["CPUManager"], &[]));
    assert!(world.denial(&wish).contains("static CPU manager policy"));
    // older releases label without the prefix
    world.cluster.nodes = Some(vec![node("old", &[("cpumanager", "true")])]);
    world.created(&wish);
    // nodes that are not known deny nothing
    world.cluster.nodes = None;
    world.created(&wish);
}

#[test]
fn huge_pages_fit_the_memory_and_the_nodes() {
    let world = world();
    let with =
        |value: &str, guest: &str| machine(&[("hugepages", value)], &json!({"memory": {"guest": guest}}));
    for (value, guest, page) in
        [("1Gi", "2Gi", "1Gi"), ("2Mi", "512Mi", "2Mi"), ("auto", "4Gi", "1Gi"), ("enabled", "514Mi", "2Mi")]
    {
        let plain = with(value, guest);
        let vm = world.created(&plain);
        assert_eq!(
            domain(&vm)["memory"],
            json!({"guest": guest, "hugepages": {"pageSize": page}}),
            "{value}"
        );
        assert_eq!(annotation(&vm, "hugepages-applied"), Some(page));
        assert_eq!(world.updated(&without(&vm, "hugepages"), &vm), without(&plain, "hugepages"));
    }
    for (value, guest, expected) in [
        ("1Gi", "512Mi", "512Mi of memory are less than one huge page of 1Gi"),
        ("1Gi", "1536Mi", "1536Mi of memory are not a multiple of the huge page size 1Gi"),
        ("big", "2Gi", "`big` is not a size of huge pages"),
        ("1Gi", "lots", "domain.memory.guest is `lots`, which is no amount"),
        ("1Gi", "16Gi", "has 16Gi of huge pages of 1Gi; nodes it can land on: a, b"),
        ("16Mi", "512Mi", "has 512Mi of huge pages of 16Mi"),
        ("auto", "16Gi", "no page size that the nodes offer fits 16Gi of memory (offered: 1Gi, 2Mi)"),
    ] {
        let denial = world.denial(&with(value, guest));
        assert!(denial.contains(expected), "{value} {guest}: {denial}");
    }
    assert!(world.denial(&machine(&[("hugepages", "2Mi")], &json!({"memory": {}}))).contains("wants memory"));
    let other = machine(
        &[("hugepages", "1Gi")],
        &json!({"memory": {"guest": "2Gi", "hugepages": {"pageSize": "2Mi"}}}),
    );
    assert!(world.denial(&other).contains("contradicts the request"));
}

#[test]
fn numa_needs_pinning_and_huge_pages_or_adds_them() {
    let world = world();
    let all = [("cpu-pinning", "enabled"), ("hugepages", "1Gi"), ("numa", "enabled")];
    let denial = world.denial(&machine(&all[2..], &json!({})));
    assert!(denial.contains(
        "needs pinned CPUs; ask for that too (annotation vm-feature-manager.io/cpu-pinning), or write `auto`"
    ));
    let denial = world.denial(&machine(&[all[0], all[2]], &json!({})));
    assert!(
        denial.contains("needs huge pages; ask for that too (annotation vm-feature-manager.io/hugepages)"),
        "{denial}"
    );
    let complete =
        json!({"cores": 2, "dedicatedCpuPlacement": true, "numa": {"guestMappingPassthrough": {}}});
    let vm = world.created(&machine(&all, &json!({})));
    assert_eq!(domain(&vm)["cpu"], complete);
    let plain = machine(&[("numa", "auto")], &json!({}));
    let auto = world.created(&plain);
    assert_eq!(domain(&auto), domain(&vm));
    assert_eq!(world.updated(&without(&auto, "numa"), &auto), without(&plain, "numa"));
    // a gate until v1.3, on ever since
    let mut old = self::world();
    for (version, gates, is_on) in [
        ("v1.3.1", &["CPUManager"][..], false),
        ("v1.3.1", &["CPUManager", "NUMA"], true),
        ("v1.4.0", &["CPUManager"], true),
    ] {
        let mut cr = kubevirt(gates, &[]);
        cr["status"]["observedKubeVirtVersion"] = json!(version);
        old.cluster.kubevirt = Some(cr);
        let denial = old.create(&plain).denial.unwrap_or_default();
        assert_eq!(denial.contains("feature gate NUMA is off"), !is_on, "{version} {gates:?}: {denial}");
    }
    assert!(
        world.denial(&machine(&[("numa", "0")], &json!({})).clone().tap("numa", "maybe")).contains("`maybe`")
    );
}

#[test]
fn a_setting_that_two_features_need_stays_until_neither_does() {
    let world = world();
    let plain = machine(&[("numa", "auto"), ("cpu-pinning", "enabled")], &json!({}));
    let both = world.created(&plain);
    for first in ["numa", "cpu-pinning"] {
        let one_left = without(&both, first);
        let vm = world.updated(&one_left, &both);
        assert_eq!(domain(&vm)["cpu"]["dedicatedCpuPlacement"], true, "without {first}");
        let second = if first == "numa" { "cpu-pinning" } else { "numa" };
        let none = world.updated(&without(&vm, second), &vm);
        assert_eq!(none, without(&without(&plain, "numa"), "cpu-pinning"), "{first}, then {second}");
    }
}

fn with(value: &str) -> [(&str, &str); 2] {
    [("numa", "auto"), ("realtime", value)]
}

#[test]
fn realtime_needs_pinning_and_numa() {
    let mut world = world();
    for (value, expected) in
        [("enabled", json!({})), ("0-1,^1", json!({"mask": "0-1,^1"})), ("3", json!({"mask": "3"}))]
    {
        let plain = machine(&with(value), &json!({}));
        let vm = world.created(&plain);
        assert_eq!(domain(&vm)["cpu"]["realtime"], expected);
        assert_eq!(
            world.updated(&without(&vm, "realtime"), &vm)["spec"]["template"]["spec"]["domain"]["cpu"]
                .get("realtime"),
            None
        );
    }
    for value in ["fast", "3-1", "0-", "^", "0,,1"] {
        assert!(
            world.denial(&machine(&with(value), &json!({}))).contains("is not a list of vCPUs"),
            "{value}"
        );
    }
    let only = world.denial(&machine(&[("realtime", "enabled")], &json!({})));
    assert!(only.contains("realtime needs pinned CPUs"), "{only}");
    let pinned = world.denial(&machine(&[("cpu-pinning", "enabled"), ("realtime", "enabled")], &json!({})));
    assert!(pinned.contains("realtime needs NUMA passthrough"), "{pinned}");
    let mut plain = able("a");
    plain.labels.remove("kubevirt.io/realtime");
    world.cluster.nodes = Some(vec![plain]);
    assert!(world.denial(&machine(&with("enabled"), &json!({}))).contains("label kubevirt.io/realtime"));
}

/// With an instancetype, what it sets is named before KubeVirt refuses it.
#[test]
fn conflicts_with_the_instancetype_are_named() {
    let spec = json!({"cpu": {"guest": 4, "dedicatedCPUPlacement": true, "isolateEmulatorThread": true,
            "numa": {"guestMappingPassthrough": {}}, "realtime": {}},
        "memory": {"guest": "4Gi", "hugepages": {"pageSize": "1Gi"}},
        "gpus": [{"name": "g", "deviceName": A10}], "hostDevices": [{"name": "h", "deviceName": NIC}]});
    let mut world = world();
    let small = json!({"cpu": {"guest": 4}, "memory": {"guest": "3Gi"}});
    world.lookups = [
        (Need::ClusterInstancetype("full".into()), Lookup::Found(json!({"spec": spec}))),
        (Need::Instancetype("small".into()), Lookup::Found(json!({"spec": small}))),
        (Need::ClusterInstancetype("gone".into()), Lookup::NotFound),
    ]
    .into();
    let with = |wish: (&str, &str), reference: Value| {
        let mut vm = vm(&[wish]);
        vm["spec"]["template"]["spec"]["domain"]["memory"] = Value::Null;
        vm["spec"]["instancetype"] = reference;
        vm
    };
    for (feature, value, field) in [
        ("cpu-pinning", "enabled", "cpu.dedicatedCPUPlacement"),
        ("hugepages", "1Gi", "memory.hugepages"),
        ("numa", "enabled", "cpu.numa"),
        ("realtime", "enabled", "cpu.realtime"),
        ("vfio-passthrough", NIC, "hostDevices"),
    ] {
        let denial = world.denial(&with((feature, value), json!({"name": "full"})));
        assert!(denial.contains("instancetype `full`") && denial.contains(field), "{feature}: {denial}");
    }
    // what it gives counts: four CPUs, three gibibytes
    let small = json!({"name": "small", "kind": "VirtualMachineInstancetype"});
    let vm = world.created(&with(("cpu-pinning", "enabled"), small.clone()));
    assert_eq!(domain(&vm)["cpu"], json!({"dedicatedCpuPlacement": true}));
    assert_eq!(
        domain(&world.created(&with(("hugepages", "auto"), small)))["memory"]["hugepages"]["pageSize"],
        "1Gi"
    );
    let unknown = machine(&[("cpu-pinning", "enabled")], &json!({})).also(json!({"name": "gone"}));
    let verdict = world.create(&unknown);
    assert!(
        verdict.warnings[0].contains("the instancetype was not checked for conflicts: it does not exist")
    );
}

/// Small changes to a VM within an expression.
trait Change {
    fn tap(self, feature: &str, value: &str) -> Value;
    fn also(self, instancetype: Value) -> Value;
}

impl Change for Value {
    fn tap(mut self, feature: &str, value: &str) -> Value {
        self["metadata"]["annotations"][key(feature)] = json!(value);
        self
    }

    fn also(mut self, instancetype: Value) -> Value {
        self["spec"]["instancetype"] = instancetype;
        self
    }
}

/// With a preference, what it requires and how it lays vCPUs out is told before KubeVirt refuses the VM.
#[test]
fn conflicts_with_the_preference_are_named() {
    let mut world = world();
    let preference = |spec: Value| Lookup::Found(json!({"spec": spec}));
    world.lookups.extend([
        (
            Need::ClusterPreference("threads".into()),
            preference(json!({"cpu": {"preferredCPUTopology": "preferThreads"}})),
        ),
        (
            Need::ClusterPreference("spread".into()),
            preference(json!({"cpu": {"preferredCPUTopology": "spread",
            "spreadOptions": {"across": "CoresThreads", "ratio": 4}}})),
        ),
        (
            Need::ClusterPreference("sockets".into()),
            preference(json!({"cpu": {"preferredCPUTopology": "preferSockets"}})),
        ),
        (Need::Preference("large".into()), preference(json!({"requirements": {"memory": {"guest": "8Gi"}}}))),
        (
            Need::ClusterPreference("many".into()),
            preference(json!({"cpu": {"preferredCPUTopology": "cores"},
            "requirements": {"cpu": {"guest": 4}}})),
        ),
        (Need::ClusterPreference("gone".into()), Lookup::NotFound),
        (
            Need::ClusterInstancetype("eight".into()),
            Lookup::Found(json!({"spec": {"cpu": {"guest": 8}, "memory": {"guest": "2Gi"}}})),
        ),
    ]);
    let with = |feature: &str, value: &str, preference: Value, typed: bool| {
        let mut vm = vm(&[(feature, value)]);
        if typed {
            vm["spec"]["instancetype"] = json!({"name": "eight"});
            vm["spec"]["template"]["spec"]["domain"].as_object_mut().unwrap().remove("memory");
        } else {
            vm["spec"]["template"]["spec"]["domain"]["cpu"] = json!({"cores": 2});
        }
        vm["spec"]["preference"] = preference;
        vm
    };
    for (vm, expected) in [
        (
            with("cpu-pinning", "enabled", json!({"name": "threads"}), true),
            "`threads` lays the instancetype's vCPUs out as 8 threads per core",
        ),
        (with("cpu-pinning", "enabled", json!({"name": "spread"}), true), "4 threads per core"),
        (with("numa", "auto", json!({"name": "threads"}), true), "8 threads per core"),
        (
            with("hugepages", "1Gi", json!({"name": "large", "kind": "VirtualMachinePreference"}), false),
            "preference `large` requires 8Gi of memory and the VM has 2Gi",
        ),
        (
            with("cpu-pinning", "enabled", json!({"name": "many"}), false),
            "`many` requires 4 vCPUs and the VM has 2",
        ),
    ] {
        let denial = world.denial(&vm);
        assert!(denial.contains(expected), "{denial}");
    }
    for fine in [
        with("cpu-pinning", "enabled", json!({"name": "sockets"}), true),
        with("hugepages", "1Gi", json!({"name": "threads"}), true),
        with("cpu-pinning", "enabled", json!({"name": "threads"}), false),
        with("cpu-pinning", "enabled", json!({"name": "many"}), true),
    ] {
        assert_eq!(world.create(&fine).denial, None, "{fine}");
    }
    let unknown = world.create(&with("cpu-pinning", "enabled", json!({"name": "gone"}), false));
    assert!(
        unknown.warnings.iter().any(|text| text.contains("the preference was not checked")),
        "{unknown:?}"
    );
    let asked = with("numa", "auto", json!({"name": "large", "kind": "virtualmachinepreference"}), false);
    let request = features::Request { namespace: NAMESPACE, object: &asked, old_object: None };
    let needs = features::needs(&request, &world.config, &features::Lookups::new());
    assert_eq!(needs, [Need::Preference("large".into())]);
}
