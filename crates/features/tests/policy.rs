//! Policies: each rule, audit, exceptions, counting, and VMs that were there before.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may fail this way")]
#![allow(clippy::needless_pass_by_value, reason = "literals of JSON read better without a reference")]

mod common;

use common::*;
use features::policy::{Availability, PolicyFacts, PolicyRequest, PolicyVerdict, evaluate};
use serde_json::{Value, json};

fn facts(objects: &[Value]) -> PolicyFacts {
    let mut facts = PolicyFacts::default();
    for object in objects {
        assert!(facts.add(object).expect("a policy"), "{object}");
    }
    facts
}

fn policy(kind: &str, spec: Value) -> Value {
    json!({"apiVersion": "vm-feature-manager.io/v1alpha1", "kind": kind,
        "metadata": {"name": "p", "namespace": NAMESPACE}, "spec": spec})
}

fn own(spec: Value) -> PolicyFacts {
    facts(&[policy("FeaturePolicy", spec)])
}

fn machine(hosts: &[&str], gpus: &[&str]) -> Value {
    let mut vm = vm(&[]);
    let entries = |names: &[&str]| -> Value {
        names
            .iter()
            .enumerate()
            .map(|(n, name)| json!({"name": format!("d{n}"), "deviceName": name}))
            .collect()
    };
    let devices = &mut vm["spec"]["template"]["spec"]["domain"]["devices"];
    devices["hostDevices"] = entries(hosts);
    devices["gpus"] = entries(gpus);
    vm
}

fn ask(facts: &PolicyFacts, object: &Value, old: Option<&Value>) -> PolicyVerdict {
    let request = PolicyRequest {
        namespace: NAMESPACE,
        name: "vm",
        user: "ann",
        groups: &["dev"],
        object,
        old_object: old,
    };
    evaluate(&request, facts, None, Availability::Warn)
}

fn denial(facts: &PolicyFacts, object: &Value) -> String {
    ask(facts, object, None).denial.unwrap_or_default()
}

#[test]
fn allow_lists_of_devices_and_images_name_what_is_allowed() {
    let facts = own(
        json!({"devices": {"allow": ["nvidia.com/*", NIC]}, "images": {"allow": ["registry.example/*"]}}),
    );
    assert_eq!(ask(&facts, &machine(&[NIC], &[A10]), None), PolicyVerdict::default());
    let said = denial(&facts, &machine(&["amd.com/GPU"], &[]));
    assert_eq!(
        said,
        format!("policy `p`: device `amd.com/GPU` is not allowed; allowed: nvidia.com/*, {NIC}")
    );
    let mut hooked = vm(&[]);
    hooked["spec"]["template"]["metadata"]["annotations"] =
        json!({"hooks.kubevirt.io/hookSidecars": "[{\"image\":\"evil.example/x\"}]"});
    assert!(denial(&facts, &hooked).contains("image `evil.example/x` of a hook sidecar is not allowed"));
}

#[test]
fn limits_count_the_vm_and_its_namespace() {
    let mut facts = own(
        json!({"limits": {"devicesPerVM": 2, "gpusPerVM": 1, "devicesPerNamespace": 3, "gpusPerNamespace": 2}}),
    );
    assert_eq!(denial(&facts, &machine(&[NIC], &[A10])), "");
    assert_eq!(
        denial(&facts, &machine(&[NIC, NIC, NIC], &[])),
        "policy `p`: 3 devices of a VM, at most 2 are allowed"
    );
    assert!(denial(&facts, &machine(&[], &[A10, A10])).contains("2 GPUs of a VM, at most 1 are allowed"));
    facts.count(NAMESPACE, "other", &machine(&[NIC], &[A10]));
    facts.count("elsewhere", "other", &machine(&[NIC, NIC, NIC], &[A10]));
    facts.count(NAMESPACE, "vm", &machine(&[NIC, NIC], &[]));
    assert_eq!(denial(&facts, &machine(&[NIC], &[])), "", "the VM itself is not counted twice");
    let said = denial(&facts, &machine(&[NIC], &[A10]));
    assert_eq!(said, "policy `p`: 4 devices of the namespace (2 are other VMs'), at most 3 are allowed");
    facts.forget(NAMESPACE, "other");
    assert_eq!(denial(&facts, &machine(&[NIC], &[A10])), "");
}

#[test]
fn features_are_for_those_who_are_listed() {
    let rule = |users: Value, groups: Value| {
        own(json!({"features": [{"names": ["pci-passthrough"], "users": users, "groups": groups}]}))
    };
    let wish = asking("pci-passthrough", NIC);
    assert!(denial(&rule(json!([]), json!([])), &wish).contains("`ann` may not use pci-passthrough"));
    assert_eq!(denial(&rule(json!(["ann"]), json!([])), &wish), "");
    assert_eq!(denial(&rule(json!([]), json!(["ops", "dev"])), &wish), "");
    assert_eq!(
        denial(&rule(json!([]), json!([])), &asking("nested-virt", "enabled")),
        "",
        "not listed, not restricted"
    );
    let all = own(
        json!({"features": [{"names": ["*"], "groups": ["ops"]}, {"names": ["nested-virt"], "users": ["ann"]}]}),
    );
    assert_eq!(denial(&all, &asking("nested-virt", "enabled")), "");
    assert!(denial(&all, &wish).contains("may not use"));
    assert_eq!(denial(&all, &asking("pci-passthrough", "no")), "");
}

#[test]
fn audit_warns_and_exceptions_let_pass() {
    let spec = |mode: &str| json!({"mode": mode, "devices": {"allow": []}});
    let object = machine(&[NIC], &[]);
    let audited = ask(&own(spec("Audit")), &object, None);
    assert_eq!((audited.denial, audited.warnings.len()), (None, 1));
    let exception = |spec: Value| {
        json!({"apiVersion": "vm-feature-manager.io/v1alpha1", "kind": "FeaturePolicyException",
            "metadata": {"name": "e", "namespace": NAMESPACE}, "spec": spec})
    };
    for (spec_of_exception, excepted) in [
        (json!({"policies": ["p"], "virtualMachines": ["vm"]}), true),
        (json!({"policies": ["*"], "virtualMachines": ["v*"], "rules": ["devices"]}), true),
        (json!({"policies": ["p"], "virtualMachines": ["vm"], "rules": ["limits"]}), false),
        (json!({"policies": ["q"], "virtualMachines": ["vm"]}), false),
        (json!({"policies": ["p"], "virtualMachines": ["other"]}), false),
    ] {
        let facts = facts(&[policy("FeaturePolicy", spec("Enforce")), exception(spec_of_exception.clone())]);
        let verdict = ask(&facts, &object, None);
        assert_eq!(verdict.denial.is_none(), excepted, "{spec_of_exception}");
        assert_eq!(verdict.warnings.len(), usize::from(excepted));
    }
}

#[test]
fn cluster_policies_are_for_their_namespaces() {
    for (namespaces, applies) in [(json!([]), true), (json!(["te*"]), true), (json!(["other"]), false)] {
        let facts =
            facts(&[policy("ClusterFeaturePolicy", json!({"namespaces": namespaces, "devices": {}}))]);
        assert_eq!(denial(&facts, &machine(&[NIC], &[])).starts_with("cluster policy `p`"), applies);
    }
    let mut elsewhere = policy("FeaturePolicy", json!({"devices": {}}));
    elsewhere["metadata"]["namespace"] = json!("other");
    assert_eq!(denial(&facts(&[elsewhere]), &machine(&[NIC], &[])), "");
}

#[test]
fn what_was_admitted_before_stays_editable() {
    let facts =
        own(json!({"devices": {"allow": []}, "limits": {"devicesPerVM": 0}, "features": [{"names": ["*"]}]}));
    let mut old = machine(&[NIC], &[]);
    old["metadata"]["annotations"][key("nested-virt")] = json!("enabled");
    let mut new = old.clone();
    new["spec"]["runStrategy"] = json!("Halted");
    assert_eq!(ask(&facts, &new, Some(&old)).denial, None);
    let more = machine(&[NIC, A10], &[]);
    let said = ask(&facts, &more, Some(&old)).denial.expect("more is asked for");
    assert!(said.contains(A10) && !said.contains(NIC) && said.contains("2 devices of a VM"), "{said}");
}

#[test]
fn a_vm_that_no_node_can_take_is_named_with_the_reasons() {
    let node = features::Node { allocatable: [(NIC.to_owned(), "1".to_owned())].into(), ..amd("a") };
    let object = machine(&[], &[A10]);
    let request = PolicyRequest {
        namespace: NAMESPACE,
        name: "vm",
        user: "ann",
        groups: &[],
        object: &object,
        old_object: None,
    };
    let verdict = |availability: &str| {
        let nodes = Some(std::slice::from_ref(&node));
        evaluate(&request, &own(json!({"availability": availability})), nodes, Availability::Ignore)
    };
    let text = format!("no node can take this VM (a: 0 of {A10}, 1 wanted)");
    assert_eq!(verdict("Warn").warnings, [format!("policy `p`: {text}")]);
    assert_eq!(verdict("Deny").denial, Some(format!("policy `p`: {text}")));
    assert_eq!(verdict("Ignore"), PolicyVerdict::default());
}

#[test]
fn without_a_policy_the_administrator_says_what_a_vm_without_a_node_gets() {
    let node = features::Node { allocatable: [(NIC.to_owned(), "1".to_owned())].into(), ..amd("a") };
    let nodes = [node, features::Node { unschedulable: true, ..amd("b") }];
    let (object, possible) = (machine(&[], &[A10]), machine(&[NIC], &[]));
    let asked = |object: &Value, old: Option<&Value>, availability| {
        let request = PolicyRequest {
            namespace: NAMESPACE,
            name: "vm",
            user: "ann",
            groups: &[],
            object,
            old_object: old,
        };
        evaluate(&request, &PolicyFacts::default(), Some(&nodes), availability)
    };
    let text = format!(
        "no node can take this VM (a: 0 of {A10}, 1 wanted, b: it is cordoned, or KubeVirt does not run there)"
    );
    assert_eq!(asked(&object, None, Availability::Warn).warnings, std::slice::from_ref(&text));
    assert_eq!(asked(&object, None, Availability::Deny).denial, Some(text.clone()));
    assert_eq!(asked(&object, None, Availability::Ignore), PolicyVerdict::default());
    for availability in [Availability::Warn, Availability::Deny] {
        assert_eq!(asked(&possible, None, availability), PolicyVerdict::default());
        // what leaves the template alone is not looked at, and what was so before stays editable
        assert_eq!(asked(&object, Some(&object), availability), PolicyVerdict::default());
        let mut edited = object.clone();
        edited["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] = json!(1);
        assert_eq!(asked(&edited, Some(&object), availability).warnings, std::slice::from_ref(&text));
    }
    assert_eq!(asked(&object, Some(&possible), Availability::Deny).denial, Some(text));
}

#[test]
fn what_an_instancetype_gives_counts_as_well() {
    let instancetype = |kind: &str, name: &str, spec: Value| {
        json!({"apiVersion": "instancetype.kubevirt.io/v1beta1", "kind": kind,
            "metadata": {"name": name, "namespace": NAMESPACE}, "spec": spec})
    };
    let of = |kind: &str, name: &str| {
        let mut vm = machine(&[], &[]);
        vm["spec"]["instancetype"] = json!({"kind": kind, "name": name});
        vm
    };
    let mut facts =
        own(json!({"devices": {"allow": [NIC]}, "limits": {"gpusPerNamespace": 3, "devicesPerVM": 2}}));
    let gpus = json!({"gpus": [{"name": "a", "deviceName": A10}, {"name": "b", "deviceName": A10}]});
    let host = json!({"hostDevices": [{"name": "a", "deviceName": NIC}]});
    assert!(!facts.add(&instancetype("VirtualMachineInstancetype", "gpus", gpus)).unwrap());
    assert!(!facts.add(&instancetype("VirtualMachineClusterInstancetype", "nic", host)).unwrap());
    assert!(denial(&facts, &of("VirtualMachineInstancetype", "gpus")).contains(&format!("device `{A10}`")));
    assert_eq!(denial(&facts, &of("", "nic")), "");
    assert_eq!(denial(&facts, &of("", "gpus")), "", "another kind of that name is not meant");
    facts.count(NAMESPACE, "other", &of("VirtualMachineInstancetype", "gpus"));
    facts.policies.values_mut().for_each(|policy| policy.spec.devices = None);
    let said = denial(&facts, &machine(&[], &[A10, A10]));
    assert!(said.contains("4 GPUs of the namespace (2 are other VMs')"), "{said}");
    assert_eq!(denial(&facts, &machine(&[], &[A10])), "");
}

#[test]
fn who_asks_through_cloud_init_is_judged_as_well() {
    let facts = own(json!({"features": [{"names": ["nested-virt"], "users": ["bob"]}]}));
    let world = World::default();
    let stored = world.created(&with_user_data("#cloud-config\nx_kubevirt_features: {nested_virt: true}\n"));
    assert!(denial(&facts, &stored).contains("`ann` may not use nested-virt"));
}

#[test]
fn images_of_both_ways_are_judged() {
    let facts = own(json!({"images": {"allow": ["registry.example/*"]}}));
    for key in ["hooks.kubevirt.io/hookSidecars", features::launcher::HOOKS] {
        let mut vm = machine(&[], &[]);
        vm["spec"]["template"]["metadata"]["annotations"] = json!({key: r#"[{"image": "other.example/x"}]"#});
        assert!(denial(&facts, &vm).contains("image `other.example/x`"), "{key}");
        vm["spec"]["template"]["metadata"]["annotations"] = json!({key: r#"[{"args": []}]"#});
        assert_eq!(denial(&facts, &vm), "", "the image that is set is the administrator's");
    }
}

#[test]
fn misspelt_policies_are_errors_and_other_kinds_are_not_ours() {
    let mut facts = PolicyFacts::default();
    let error = facts.add(&policy("FeaturePolicy", json!({"limit": {}}))).unwrap_err().to_string();
    assert!(error.contains("FeaturePolicy `p`: unknown field `limit`"), "{error}");
    assert!(facts.add(&policy("FeaturePolicy", json!({"mode": "enforce"}))).is_err());
    assert!(!facts.add(&json!({"apiVersion": "v1", "kind": "Node"})).unwrap());
    assert_eq!(facts, PolicyFacts::default());
}
