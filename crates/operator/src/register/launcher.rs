//! The webhook for launcher pods and our Plugin, for the way of Plugins (`features::launcher`). No IO.
//!
//! The webhook fails closed: a pod that is made without the hook would start a VM without what was asked
//! for, or hang for its socket. virt-controller tries again, and only pods of VMs that ask are sent here.

use features::launcher::{HOOKS, HookList};
use serde_json::{Value, json};

use super::objects::{Reach, selector};
use crate::config::Register;
use crate::kubernetes::RawError;
use crate::webhook::LAUNCHER;

/// The path of its collection.
pub const COLLECTION: &str = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations";
/// The path of Plugins.
pub const PLUGINS: &str = "/apis/plugin.kubevirt.io/v1alpha1/plugins";

/// Its name.
pub fn name(register: &Register) -> String {
    format!("{}-launcher", register.name)
}

/// Whether the API server refused a Plugin because it does not know this list of hooks.
pub fn lacks(error: &RawError, list: HookList) -> bool {
    let unknown = format!(".spec.{}: field not declared in schema", list.field());
    matches!(error, RawError::Refused { message, .. } if message.contains(&unknown))
}

/// The configuration as it is applied.
pub fn configuration(register: &Register, reach: &Reach, ca_bundle: Option<&str>) -> Value {
    let mut client_config = reach.client_config(LAUNCHER);
    if let Some(bundle) = ca_bundle {
        use base64::Engine;
        client_config["caBundle"] = base64::engine::general_purpose::STANDARD.encode(bundle).into();
    }
    let asks = format!("has(object.metadata.annotations) && '{HOOKS}' in object.metadata.annotations");
    json!({
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "MutatingWebhookConfiguration",
        "metadata": {"name": name(register), "labels": {"app.kubernetes.io/name": "virt-steward"}},
        "webhooks": [{
            "name": "launcher.vm-feature-manager.io",
            "clientConfig": client_config,
            "rules": [{
                "apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"],
                "resources": ["pods"], "scope": "Namespaced",
            }],
            "admissionReviewVersions": ["v1"],
            "matchPolicy": "Equivalent",
            "failurePolicy": "Fail",
            "timeoutSeconds": register.timeout_seconds,
            "sideEffects": "None",
            "reinvocationPolicy": "Never",
            "namespaceSelector": selector(&register.namespace_selector),
            "objectSelector": {"matchLabels": {"kubevirt.io": "virt-launcher"}},
            "matchConditions": [{"name": "asks-for-a-hook", "expression": asks}],
        }],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_name_of_the_hooks_is_tried_only_where_the_first_is_unknown() {
        let refused = |message: &str| RawError::Refused { code: 500, message: message.into() };
        let unknown = "failed to create typed patch object (/virt-steward; plugin.kubevirt.io/v1alpha1, Kind=Plugin): \
                       .spec.domainHooks: field not declared in schema";
        assert!(lacks(&refused(unknown), HookList::Domain));
        assert!(!lacks(&refused(unknown), HookList::Launcher));
        assert!(!lacks(&refused("etcdserver: request timed out"), HookList::Domain));
        assert!(!lacks(&RawError::Away("domainHooks".into()), HookList::Domain));
    }

    #[test]
    fn it_is_asked_about_launcher_pods_that_want_a_hook_and_fails_closed() {
        let reach = Reach::Service { namespace: "ns".into(), name: "svc".into(), port: 443 };
        let webhook = &configuration(&Register::default(), &reach, None)["webhooks"][0];
        assert_eq!(webhook["failurePolicy"], "Fail");
        assert_eq!(webhook["objectSelector"]["matchLabels"]["kubevirt.io"], "virt-launcher");
        assert_eq!(webhook["rules"][0]["operations"], json!(["CREATE"]));
        assert_eq!(webhook["clientConfig"]["service"]["path"], "/launcher");
        assert!(webhook["matchConditions"][0]["expression"].as_str().unwrap().contains(HOOKS));
    }
}
