//! `nested-virt`: which CPU feature, on which nodes.

mod common;

use common::*;
use features::{Node, OutcomeResult};
use serde_json::{Value, json};

fn world(nodes: Vec<Node>) -> World {
    let mut world = World::default();
    world.cluster.nodes = Some(nodes);
    world
}

fn cpu_features(vm: &Value) -> &Value {
    &vm["spec"]["template"]["spec"]["domain"]["cpu"]["features"]
}

fn required_terms(vm: &Value) -> &Value {
    &vm["spec"]["template"]["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
        ["nodeSelectorTerms"]
}

fn offers(feature: &str) -> Value {
    json!({"key": format!("cpu-feature.node.kubevirt.io/{feature}"), "operator": "In", "values": ["true"]})
}

#[test]
fn the_nodes_decide_the_feature() {
    for (nodes, expected) in [
        (vec![amd("a")], "svm"),
        (vec![intel("a")], "vmx"),
        (vec![amd("a"), node("b", &[])], "svm"),
        (vec![intel("a"), Node { unschedulable: true, ..amd("b") }], "vmx"),
        (vec![intel("a"), node("b", &[("cpu-vendor.node.kubevirt.io/AMD", "true")])], "vmx"),
        (
            vec![
                amd("a"),
                node("b", &[("cpu-feature.node.kubevirt.io/vmx", "true"), ("kubernetes.io/arch", "arm64")]),
            ],
            "svm",
        ),
    ] {
        let vm = world(nodes.clone()).created(&asking("nested-virt", "enabled"));
        assert_eq!(cpu_features(&vm), &json!([{"name": expected, "policy": "require"}]), "{nodes:?}");
        assert_eq!(required_terms(&vm), &Value::Null);
        assert_eq!(annotation(&vm, "nested-virt-applied"), Some("true"));
    }
}

#[test]
fn a_mixed_cluster_gets_both_as_optional_and_an_affinity_to_either() {
    let world = world(vec![amd("a"), intel("b"), node("c", &[])]);
    let plain = asking("nested-virt", "enabled");
    let vm = world.created(&plain);
    assert_eq!(
        cpu_features(&vm),
        &json!([{"name": "svm", "policy": "optional"}, {"name": "vmx", "policy": "optional"}])
    );
    assert_eq!(
        required_terms(&vm),
        &json!([{"matchExpressions": [offers("svm")]}, {"matchExpressions": [offers("vmx")]}])
    );
    assert_eq!(world.updated(&without(&vm, "nested-virt"), &vm), without(&plain, "nested-virt"));
}

#[test]
fn existing_terms_are_anded_with_each_alternative() {
    let world =
        world(vec![node("a", &[("z", "1"), ("cpu-feature.node.kubevirt.io/svm", "true")]), intel("b")]);
    let mut plain = asking("nested-virt", "enabled");
    let zone = json!({"key": "z", "operator": "Exists"});
    let name = json!({"key": "metadata.name", "operator": "In", "values": ["b"]});
    plain["spec"]["template"]["spec"]["affinity"] = json!({
        "nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms":
            [{"matchExpressions": [zone]}, {"matchFields": [name]}]}},
        "podAffinity": {},
    });
    let vm = world.created(&plain);
    assert_eq!(
        required_terms(&vm),
        &json!([
            {"matchExpressions": [zone, offers("svm")]},
            {"matchExpressions": [zone, offers("vmx")]},
            {"matchFields": [name], "matchExpressions": [offers("svm")]},
            {"matchFields": [name], "matchExpressions": [offers("vmx")]},
        ])
    );
    assert_eq!(world.updated(&without(&vm, "nested-virt"), &vm), without(&plain, "nested-virt"));
}

#[test]
fn a_term_that_the_user_adds_later_gets_the_alternatives_too() {
    let world = world(vec![amd("a"), intel("b")]);
    let mut vm = world.created(&asking("nested-virt", "enabled"));
    let old = vm.clone();
    let zone = json!({"key": "kubernetes.io/hostname", "operator": "Exists"});
    let terms = &mut vm["spec"]["template"]["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
        ["nodeSelectorTerms"];
    terms.as_array_mut().unwrap().push(json!({"matchExpressions": [zone]}));
    let vm = world.updated(&vm, &old);
    assert_eq!(
        required_terms(&vm),
        &json!([{"matchExpressions": [zone, offers("svm")]}, {"matchExpressions": [zone, offers("vmx")]}])
    );
    let undone = world.updated(&without(&vm, "nested-virt"), &vm);
    assert_eq!(required_terms(&undone), &json!([{"matchExpressions": [zone]}]));
}

#[test]
fn selector_affinity_and_architecture_narrow_the_choice() {
    let world = world(vec![amd("a"), intel("b")]);
    let mut selected = asking("nested-virt", "true");
    selected["spec"]["template"]["spec"]["nodeSelector"] = json!({"kubernetes.io/hostname": "b"});
    assert_eq!(cpu_features(&world.created(&selected))[0]["name"], "vmx");
    let mut bound = asking("nested-virt", "true");
    bound["spec"]["template"]["spec"]["affinity"] = json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms":
            [{"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "NotIn", "values": ["b"]}]}]}}});
    assert_eq!(cpu_features(&world.created(&bound))[0]["name"], "svm");
    for architecture in ["arm64", "s390x"] {
        let mut other = asking("nested-virt", "true");
        other["spec"]["template"]["spec"]["architecture"] = json!(architecture);
        assert!(world.denial(&other).contains(architecture));
    }
}

#[test]
fn what_cannot_be_given_is_an_error() {
    let unknown = {
        let mut world = World::default();
        world.cluster.nodes = None;
        world
    };
    for (world, expected) in [
        (world(vec![node("bare", &[])]), "no node that this VM can land on offers svm or vmx"),
        (world(vec![]), "nodes it can land on: none"),
        (unknown, "the nodes of the cluster are not known"),
    ] {
        let denial = world.denial(&asking("nested-virt", "enabled"));
        assert!(denial.contains(expected), "{denial}");
    }
}

#[test]
fn without_detection_both_are_optional() {
    let mut world = World::default();
    world.config.nested_virtualization.auto_detect = false;
    world.cluster.nodes = None;
    let vm = world.created(&asking("nested-virt", "yes"));
    assert_eq!(
        cpu_features(&vm),
        &json!([{"name": "svm", "policy": "optional"}, {"name": "vmx", "policy": "optional"}])
    );
    assert_eq!(required_terms(&vm), &Value::Null);
}

#[test]
fn what_the_user_wrote_counts() {
    for (policy, expected) in [
        (Some("require"), Ok(OutcomeResult::Unchanged)),
        (Some("force"), Ok(OutcomeResult::Unchanged)),
        (None, Ok(OutcomeResult::Unchanged)),
        (Some("optional"), Ok(OutcomeResult::Applied)),
        (Some("disable"), Err("policy `disable`")),
        (Some("forbid"), Err("policy `forbid`")),
    ] {
        let mut vm = asking("nested-virt", "enabled");
        let mut entry = json!({"name": "svm"});
        if let Some(policy) = policy {
            entry["policy"] = json!(policy);
        }
        vm["spec"]["template"]["spec"]["domain"]["cpu"] = json!({"cores": 2, "features": [entry]});
        let world = World::default();
        match expected {
            Ok(result) => {
                let verdict = world.create(&vm);
                assert_eq!(results(&verdict), [("nested-virt", result)], "{policy:?}");
                let stored = world.created(&vm);
                assert_eq!(cpu_features(&stored), &json!([entry]), "{policy:?}");
                let pinned = required_terms(&stored) != &Value::Null;
                assert_eq!(
                    pinned,
                    policy == Some("optional"),
                    "an optional feature needs a node that has it"
                );
                assert_eq!(
                    world.updated(&without(&stored, "nested-virt"), &stored),
                    without(&vm, "nested-virt")
                );
            }
            Err(text) => assert!(world.denial(&vm).contains(text)),
        }
    }
}

#[test]
fn words_for_yes_and_no() {
    let world = World::default();
    for word in ["enabled", "true", "TRUE", "Yes", "1", "on", " true "] {
        assert_eq!(results(&world.create(&asking("nested-virt", word))).len(), 1, "{word}");
    }
    for word in ["disabled", "false", "no", "0", "off", ""] {
        let verdict = world.create(&asking("nested-virt", word));
        assert_eq!((verdict.patch.0.len(), verdict.outcomes.len()), (0, 0), "{word}");
    }
    for word in ["maybe", "svm", "2"] {
        assert!(
            world.denial(&asking("nested-virt", word)).contains("is not a value of nested-virt"),
            "{word}"
        );
    }
}
