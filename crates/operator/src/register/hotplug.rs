//! The webhook configurations of the guard and the gate. No IO.
//!
//! Whoever keeps a cluster from wedging is not even asked: match conditions (CEL) keep the garbage
//! collector, the namespace controller and kubelets out, and every pod that may go anyway. So with
//! `failurePolicy: Fail` a guard that is away holds up the deletes that it is there for, and no
//! others. The gate fails open: without it KubeVirt is as it always was.

use serde_json::{Value, json};

use super::objects::{Reach, selector};
use crate::config::{FailurePolicy, Hotplug, Register};
use crate::hotplug::{GATE, GUARD, MOUNTS};

/// Accounts that must never be held up.
const NOT_A_CONTROLLER: &str = "!(request.userInfo.username in [\
    'system:serviceaccount:kube-system:generic-garbage-collector', \
    'system:serviceaccount:kube-system:namespace-controller', \
    'system:serviceaccount:kube-system:pod-garbage-collector', \
    'system:kube-controller-manager']) && !request.userInfo.username.startsWith('system:node:')";

/// Pods that may go whatever their guest does.
const IN_SERVICE: &str = "!has(oldObject.metadata.deletionTimestamp) && \
    !(has(oldObject.status) && has(oldObject.status.phase) && oldObject.status.phase in ['Succeeded', 'Failed']) && \
    !(has(oldObject.metadata.annotations) && 'kubevirt.io/ephemeral-provisioning' in oldObject.metadata.annotations)";

const FORCED: &str = "request.options != null && has(request.options.gracePeriodSeconds) && \
    request.options.gracePeriodSeconds == 0";

/// Only a change of volumes of a VMI that runs and is not about to end.
const VOLUMES_CHANGE: &str = "!has(object.metadata.deletionTimestamp) && has(oldObject.spec) && has(object.spec) && \
    ((has(oldObject.spec.volumes) ? oldObject.spec.volumes : []) != (has(object.spec.volumes) ? object.spec.volumes : []))";

/// The collection of validating configurations.
pub const VALIDATING: &str = "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations";
/// The collection of mutating configurations.
pub const MUTATING: &str = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations";

struct Hook {
    name: &'static str,
    path: &'static str,
    rule: Value,
    object: Value,
    conditions: Vec<(&'static str, &'static str)>,
    fails_open: bool,
    writes: bool,
}

fn rule(group: &str, version: &str, operation: &str, resource: &str, scope: &str) -> Value {
    json!({"apiGroups": [group], "apiVersions": [version], "operations": [operation], "resources": [resource], "scope": scope})
}

fn labelled(value: &str) -> Value {
    json!({"matchLabels": {"kubevirt.io": value}})
}

fn validating(hotplug: Hotplug) -> Vec<Hook> {
    let pods = |operation, resource| rule("", "v1", operation, resource, "Namespaced");
    let guard = [
        Hook {
            name: "guard.hotplug.vm-feature-manager.io",
            path: GUARD,
            rule: pods("DELETE", "pods"),
            object: labelled("hotplug-disk"),
            conditions: vec![("not-a-controller", NOT_A_CONTROLLER), ("in-service", IN_SERVICE)],
            fails_open: false,
            writes: true,
        },
        Hook {
            name: "evictions.hotplug.vm-feature-manager.io",
            path: GUARD,
            rule: pods("CREATE", "pods/eviction"),
            object: json!({}),
            conditions: vec![("of-an-attachment-pod", "request.name.startsWith('hp-volume-')")],
            fails_open: false,
            writes: true,
        },
        Hook {
            name: "launchers.hotplug.vm-feature-manager.io",
            path: GUARD,
            rule: pods("DELETE", "pods"),
            object: labelled("virt-launcher"),
            conditions: vec![
                ("not-a-controller", NOT_A_CONTROLLER),
                ("in-service", IN_SERVICE),
                ("forced", FORCED),
            ],
            fails_open: false,
            writes: false,
        },
        Hook {
            name: "namespaces.hotplug.vm-feature-manager.io",
            path: GUARD,
            rule: rule("", "v1", "DELETE", "namespaces", "Cluster"),
            object: json!({"matchLabels": {hotplug::annotations::PROTECT: "true"}}),
            conditions: vec![("not-a-controller", NOT_A_CONTROLLER)],
            fails_open: false,
            writes: false,
        },
    ];
    let gate = Hook {
        name: "gate.hotplug.vm-feature-manager.io",
        path: GATE,
        rule: rule("kubevirt.io", "v1", "UPDATE", "virtualmachineinstances", "Namespaced"),
        object: json!({}),
        conditions: vec![("volumes-change", VOLUMES_CHANGE)],
        fails_open: true,
        writes: true,
    };
    let migrations = Hook {
        name: "migrations.hotplug.vm-feature-manager.io",
        path: GATE,
        rule: rule("kubevirt.io", "v1", "CREATE", "virtualmachineinstancemigrations", "Namespaced"),
        object: json!({}),
        conditions: Vec::new(),
        fails_open: true,
        writes: true,
    };
    let mut hooks: Vec<Hook> = if hotplug.guard { guard.into() } else { Vec::new() };
    if hotplug.gate {
        hooks.extend([gate, migrations]);
    }
    hooks
}

fn mutating(hotplug: Hotplug) -> Vec<Hook> {
    let mounts = Hook {
        name: "mounts.hotplug.vm-feature-manager.io",
        path: MOUNTS,
        rule: rule("", "v1", "CREATE", "pods", "Namespaced"),
        object: labelled("hotplug-disk"),
        conditions: Vec::new(),
        fails_open: true,
        writes: false,
    };
    hotplug.guard.then_some(mounts).into_iter().collect()
}

/// Both configurations as they are applied, each with the path of its collection; one that has no
/// webhooks takes away those that were there.
pub fn configurations(
    register: &Register,
    hotplug: Hotplug,
    reach: &Reach,
    ca_bundle: Option<&str>,
) -> [(&'static str, Value); 2] {
    let configuration = |kind: &str, hooks: Vec<Hook>| {
        let webhooks: Vec<Value> =
            hooks.iter().map(|hook| webhook(hook, register, reach, ca_bundle, kind)).collect();
        json!({
            "apiVersion": "admissionregistration.k8s.io/v1",
            "kind": kind,
            "metadata": {"name": name(register), "labels": {"app.kubernetes.io/name": "virt-steward"}},
            "webhooks": webhooks,
        })
    };
    [
        (VALIDATING, configuration("ValidatingWebhookConfiguration", validating(hotplug))),
        (MUTATING, configuration("MutatingWebhookConfiguration", mutating(hotplug))),
    ]
}

/// The name of both.
pub fn name(register: &Register) -> String {
    format!("{}-hotplug", register.name)
}

fn webhook(hook: &Hook, register: &Register, reach: &Reach, ca_bundle: Option<&str>, kind: &str) -> Value {
    let mut client_config = reach.client_config(hook.path);
    if let Some(bundle) = ca_bundle {
        use base64::Engine;
        client_config["caBundle"] = base64::engine::general_purpose::STANDARD.encode(bundle).into();
    }
    let open = hook.fails_open || register.failure_policy == FailurePolicy::Ignore;
    let conditions: Vec<Value> = hook
        .conditions
        .iter()
        .map(|(name, expression)| json!({"name": name, "expression": expression}))
        .collect();
    let mut webhook = json!({
        "name": hook.name,
        "clientConfig": client_config,
        "rules": [hook.rule],
        "admissionReviewVersions": ["v1", "v1beta1"],
        "matchPolicy": "Equivalent",
        "failurePolicy": if open { "Ignore" } else { "Fail" },
        "timeoutSeconds": register.timeout_seconds,
        "sideEffects": if hook.writes { "NoneOnDryRun" } else { "None" },
        "namespaceSelector": selector(&register.namespace_selector),
        "objectSelector": hook.object,
        "matchConditions": conditions,
    });
    if kind == "MutatingWebhookConfiguration" {
        webhook["reinvocationPolicy"] = "Never".into();
    }
    webhook
}

#[cfg(test)]
mod tests {
    use super::*;

    fn applied(hotplug: Hotplug) -> [(&'static str, Value); 2] {
        let reach = Reach::Service { namespace: "ns".into(), name: "svc".into(), port: 443 };
        configurations(&Register::default(), hotplug, &reach, Some("PEM"))
    }

    #[test]
    fn guard_and_gate_as_they_are_applied() {
        let hotplug = Hotplug { guard: true, gate: true, heal: false };
        let objects: Vec<Value> = applied(hotplug).into_iter().map(|(_, object)| object).collect();
        insta::assert_json_snapshot!(objects);
    }

    /// With certificates of others it is the chart that registers.
    #[test]
    fn the_chart_has_the_same_conditions() {
        let chart = include_str!("../../../../charts/virt-steward/templates/hotplug.yaml");
        for expression in [NOT_A_CONTROLLER, IN_SERVICE, FORCED, VOLUMES_CHANGE] {
            assert!(chart.contains(expression), "{expression}");
        }
    }

    #[test]
    fn what_is_off_has_no_webhooks() {
        for (_, object) in applied(Hotplug::default()) {
            assert_eq!(object["webhooks"], json!([]));
        }
    }

    /// A guard that is away must hold up nothing but what it is there for.
    #[test]
    fn only_the_guard_fails_closed_and_controllers_are_not_asked_about() {
        let hotplug = Hotplug { guard: true, gate: true, heal: false };
        for (_, object) in applied(hotplug) {
            for webhook in object["webhooks"].as_array().unwrap() {
                let closed = webhook["failurePolicy"] == "Fail";
                let deletes = webhook["rules"][0]["operations"] == json!(["DELETE"]);
                assert_eq!(closed, webhook["clientConfig"]["service"]["path"] == GUARD, "{webhook}");
                let conditions = webhook["matchConditions"].to_string();
                assert_eq!(deletes, conditions.contains("generic-garbage-collector"), "{webhook}");
            }
        }
    }
}
