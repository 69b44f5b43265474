//! The webhook configurations, as they are applied. No IO.

use serde_json::{Value, json};

use crate::config::{FailurePolicy, Register};

/// Both kinds of configuration, with the path of their collection.
pub const KINDS: [Kind; 2] = [
    Kind {
        name: "MutatingWebhookConfiguration",
        collection: "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations",
        path: "/mutate",
        webhook: "mutate.vm-feature-manager.io",
    },
    Kind {
        name: "ValidatingWebhookConfiguration",
        collection: "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations",
        path: "/validate",
        webhook: "validate.vm-feature-manager.io",
    },
];

/// One kind of configuration.
pub struct Kind {
    /// `kind`
    pub name: &'static str,
    /// Path of all objects of this kind.
    pub collection: &'static str,
    /// Path on our server.
    pub path: &'static str,
    /// Name of the webhook in the configuration.
    pub webhook: &'static str,
}

/// How API servers reach us.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Reach {
    /// Through a Service.
    Service {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
        /// Its port.
        port: u16,
    },
    /// At a base URL.
    Url(String),
}

impl Reach {
    /// `webhooks[].clientConfig`, without the CA.
    pub fn client_config(&self, path: &str) -> Value {
        match self {
            Self::Service { namespace, name, port } => {
                json!({"service": {"namespace": namespace, "name": name, "port": port, "path": path}})
            }
            Self::Url(base) => json!({"url": format!("{}{path}", base.trim_end_matches('/'))}),
        }
    }
}

/// A VM that is being deleted only loses finalizers, and must be able to: even when nobody answers
/// here (KubeVirt's own webhooks let it pass too).
pub(super) const NOT_BEING_DELETED: &str = "!has(object.metadata.deletionTimestamp)";

/// Whether an object carries a word of ours in annotations or labels, or cloud-init that may carry
/// the map `x_kubevirt_features`: in plain text it is looked for, in base64 or a Secret it may be.
fn may_ask(object: &str) -> String {
    let prefixed = |field: &str| {
        format!(
            "(has({object}.metadata.{field}) && {object}.metadata.{field}.exists(k, k.startsWith('vm-feature-manager.io/')))"
        )
    };
    let source = |name: &str| {
        format!(
            "(has(v.{name}) && (!has(v.{name}.userData) || v.{name}.userData.contains('x_kubevirt_features')))"
        )
    };
    format!(
        "{} || {} || (has({object}.spec) && has({object}.spec.template) && has({object}.spec.template.spec) && \
         has({object}.spec.template.spec.volumes) && {object}.spec.template.spec.volumes.exists(v, {} || {}))",
        prefixed("annotations"),
        prefixed("labels"),
        source("cloudInitNoCloud"),
        source("cloudInitConfigDrive"),
    )
}

/// Whether a VM has devices, hooks, or needs of nodes, which policies and the question whether any node can take
/// it are about.
fn has_devices() -> String {
    let spec = "object.spec.template.spec";
    let devices = format!(
        "(has({spec}.domain.devices) && (has({spec}.domain.devices.hostDevices) || has({spec}.domain.devices.gpus)))"
    );
    let pages = format!("has({spec}.domain.memory) && has({spec}.domain.memory.hugepages)");
    let domain = format!("(has({spec}.domain) && ({devices} || has({spec}.domain.cpu) || {pages}))");
    let hooks = "(has(object.spec.template.metadata) && has(object.spec.template.metadata.annotations))";
    format!(
        "(has(object.spec) && (has(object.spec.instancetype) || (has(object.spec.template) && has({spec}) && \
         (has({spec}.nodeSelector) || has({spec}.affinity) || {domain} || {hooks}))))"
    )
}

/// The configuration of `kind`. Without `ca_bundle` that field is left to whoever owns it:
/// cert-manager's injector, or an administrator.
pub fn configuration(kind: &Kind, register: &Register, reach: &Reach, ca_bundle: Option<&str>) -> Value {
    let mut client_config = reach.client_config(kind.path);
    if let Some(bundle) = ca_bundle {
        use base64::Engine;
        client_config["caBundle"] = base64::engine::general_purpose::STANDARD.encode(bundle).into();
    }
    let mutating = kind.path == "/mutate";
    // Policies are a guard rail: while nobody answers, VMs of everybody must still be possible.
    let failure_policy = if mutating { register.failure_policy } else { FailurePolicy::Ignore };
    let concerns = format!("{} || (oldObject != null && ({}))", may_ask("object"), may_ask("oldObject"));
    let mut webhook = json!({
        "name": kind.webhook,
        "clientConfig": client_config,
        "rules": [{
            "apiGroups": ["kubevirt.io"], "apiVersions": ["v1", "v1alpha3"],
            "operations": ["CREATE", "UPDATE"], "resources": ["virtualmachines"], "scope": "Namespaced",
        }],
        "admissionReviewVersions": ["v1", "v1beta1"],
        "matchPolicy": "Equivalent",
        "failurePolicy": match failure_policy { FailurePolicy::Fail => "Fail", FailurePolicy::Ignore => "Ignore" },
        "timeoutSeconds": register.timeout_seconds,
        "sideEffects": "None",
        "namespaceSelector": selector(&register.namespace_selector),
        "objectSelector": selector(&register.object_selector),
        "matchConditions": [
            {"name": "not-being-deleted", "expression": NOT_BEING_DELETED},
            if mutating {
                json!({"name": "may-ask-for-a-feature", "expression": concerns})
            } else {
                json!({"name": "has-what-policies-are-about", "expression": format!("{} || {concerns}", has_devices())})
            },
        ],
    });
    if mutating {
        webhook["reinvocationPolicy"] = "IfNeeded".into();
    }
    json!({
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": kind.name,
        "metadata": {
            "name": register.name,
            "labels": {"app.kubernetes.io/name": "virt-steward"},
        },
        "webhooks": [webhook],
    })
}

/// A selector as it was configured; unset selects everything.
pub(super) fn selector(configured: &Value) -> Value {
    if configured.is_null() { json!({}) } else { configured.clone() }
}

/// Whether cert-manager's injector (or the service CA operator of `OpenShift`) writes the CA into the object.
pub fn is_injected(object: &Value) -> bool {
    object["metadata"]["annotations"].as_object().is_some_and(|annotations| {
        annotations.keys().any(|key| {
            key.starts_with("cert-manager.io/inject-") || key == "service.beta.openshift.io/inject-cabundle"
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reach() -> Reach {
        Reach::Service { namespace: "ns".into(), name: "svc".into(), port: 443 }
    }

    #[test]
    fn configurations_as_they_are_applied() {
        let both: Vec<_> = KINDS
            .iter()
            .map(|kind| configuration(kind, &Register::default(), &reach(), Some("PEM")))
            .collect();
        insta::assert_json_snapshot!(both);
    }

    #[test]
    fn the_name_sorts_before_harvesters() {
        assert!(Register::default().name.as_str() < "harvester-mutator");
    }

    /// Defect 25: cluster-wide without any way to narrow it. Defect 24: deletion was blocked.
    #[test]
    fn defects_24_and_25_selectors_are_taken_and_deletion_passes_without_us() {
        let register = Register {
            namespace_selector: json!({"matchLabels": {"vm-features": "enabled"}}),
            failure_policy: FailurePolicy::Ignore,
            ..Register::default()
        };
        let object = configuration(&KINDS[0], &register, &Reach::Url("https://127.0.0.1:1/".into()), None);
        let webhook = &object["webhooks"][0];
        assert_eq!(webhook["namespaceSelector"], register.namespace_selector);
        assert_eq!(webhook["failurePolicy"], "Ignore");
        assert_eq!(webhook["clientConfig"], json!({"url": "https://127.0.0.1:1/mutate"}));
        let conditions = webhook["matchConditions"].as_array().unwrap();
        assert!(conditions.iter().any(|c| c["expression"] == NOT_BEING_DELETED));
    }

    #[test]
    fn injected_objects_are_recognised() {
        let with = |key: &str| json!({"metadata": {"annotations": {key: "x"}}});
        assert!(is_injected(&with("cert-manager.io/inject-ca-from")));
        assert!(is_injected(&with("cert-manager.io/inject-ca-from-secret")));
        assert!(!is_injected(&with("meta.helm.sh/release-name")));
        assert!(!is_injected(&json!({"metadata": {}})));
    }
}
