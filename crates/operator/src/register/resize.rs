//! The webhook configuration of in-place resize. No IO.

use serde_json::{Value, json};

use super::objects::{NOT_BEING_DELETED, Reach, selector};
use crate::config::Register;

/// The path of its collection.
pub const COLLECTION: &str = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations";

/// Only virt-controller's own patches, in whichever namespace KubeVirt is.
const VIRT_CONTROLLER: &str = "request.userInfo.username.startsWith('system:serviceaccount:') && \
    request.userInfo.username.endsWith(':kubevirt-controller')";

/// Only where the policy of this VMI is in force, or a resize is under way.
const OURS: &str = "has(oldObject.metadata.annotations) && \
    oldObject.metadata.annotations.exists(k, k.startsWith('vm-feature-manager.io/resize-'))";

/// Only when sockets or guest memory change.
const SIZE_CHANGES: &str = "(has(object.spec.domain.cpu) && has(oldObject.spec.domain.cpu) && \
    has(object.spec.domain.cpu.sockets) && has(oldObject.spec.domain.cpu.sockets) && \
    object.spec.domain.cpu.sockets != oldObject.spec.domain.cpu.sockets) || \
    (has(object.spec.domain.memory) && has(oldObject.spec.domain.memory) && \
    has(object.spec.domain.memory.guest) && has(oldObject.spec.domain.memory.guest) && \
    object.spec.domain.memory.guest != oldObject.spec.domain.memory.guest)";

/// Its name.
pub fn name(register: &Register) -> String {
    format!("{}-resize", register.name)
}

/// The configuration as it is applied. It fails open: with nobody here KubeVirt migrates, as it
/// would without us.
pub fn configuration(register: &Register, reach: &Reach, ca_bundle: Option<&str>) -> Value {
    let mut client_config = reach.client_config(crate::resize::PATH);
    if let Some(bundle) = ca_bundle {
        use base64::Engine;
        client_config["caBundle"] = base64::engine::general_purpose::STANDARD.encode(bundle).into();
    }
    json!({
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "MutatingWebhookConfiguration",
        "metadata": {"name": name(register), "labels": {"app.kubernetes.io/name": "virt-steward"}},
        "webhooks": [{
            "name": "resize.vm-feature-manager.io",
            "clientConfig": client_config,
            "rules": [{
                "apiGroups": ["kubevirt.io"], "apiVersions": ["v1"], "operations": ["UPDATE"],
                "resources": ["virtualmachineinstances"], "scope": "Namespaced",
            }],
            "admissionReviewVersions": ["v1"],
            "matchPolicy": "Equivalent",
            "failurePolicy": "Ignore",
            "timeoutSeconds": register.timeout_seconds,
            "sideEffects": "None",
            "reinvocationPolicy": "Never",
            "namespaceSelector": selector(&register.namespace_selector),
            "matchConditions": [
                {"name": "not-being-deleted", "expression": NOT_BEING_DELETED},
                {"name": "virt-controller", "expression": VIRT_CONTROLLER},
                {"name": "policy-in-force", "expression": OURS},
                {"name": "size-changes", "expression": SIZE_CHANGES},
            ],
        }],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_fails_open_and_matches_virt_controller_alone() {
        let reach = Reach::Service { namespace: "ns".into(), name: "svc".into(), port: 443 };
        let webhook = &configuration(&Register::default(), &reach, None)["webhooks"][0];
        assert_eq!(webhook["failurePolicy"], "Ignore");
        assert_eq!(webhook["rules"][0]["operations"], json!(["UPDATE"]));
        assert!(
            webhook["matchConditions"][1]["expression"].as_str().unwrap().contains("kubevirt-controller")
        );
        assert_eq!(webhook["clientConfig"]["service"]["path"], "/resize");
    }
}
