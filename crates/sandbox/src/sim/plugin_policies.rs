//! The admission policies that virt-operator installs for Plugins: sidecars see the directory of one plugin
//! alone, and a Plugin names sockets in its own (`components/validatingadmissionpolicies`, v1.9).

use apimachinery::tree::{Value, json};

/// Policies and their bindings.
pub fn objects() -> Vec<Value> {
    let has_sub_path = |containers: &str| {
        format!(
            "!has(object.spec.{containers}) || object.spec.{containers}.all(c, c.name == 'compute' || !has(c.volumeMounts) || \
             c.volumeMounts.filter(m, m.name == 'kubevirt-plugin-sockets').all(m, has(m.subPath) && m.subPath != ''))"
        )
    };
    let sub_path = ["containers", "initContainers", "ephemeralContainers"].map(|containers| {
        json!({"expression": has_sub_path(containers),
            "message": "containers that mount kubevirt-plugin-sockets must set subPath"})
    });
    let of_sidecars = |rule: &str| {
        format!("!has(object.spec.domainHooks) || object.spec.domainHooks.all(h, !has(h.sidecar) || {rule})")
    };
    let socket_path = [
        ("h.sidecar.socketPath.endsWith('.sock')", "sidecar socketPath must end with .sock"),
        (
            "size(h.sidecar.socketPath) <= 108",
            "sidecar socketPath must not exceed 108 characters (Unix socket limit)",
        ),
        (
            "h.sidecar.socketPath.startsWith('/var/run/kubevirt-plugin/' + object.metadata.name + '/')",
            "sidecar socketPath must start with /var/run/kubevirt-plugin/<plugin-name>/",
        ),
    ]
    .map(|(rule, message)| json!({"expression": of_sidecars(rule), "message": message}));
    let rule = |group: &str, version: &str, operations: &[&str], resources: &[&str]| json!([{"apiGroups": [group], "apiVersions": [version], "operations": operations, "resources": resources}]);
    let launchers = json!({
        "resourceRules": rule("", "v1", &["CREATE", "UPDATE"], &["pods", "pods/ephemeralcontainers"]),
        "objectSelector": {"matchLabels": {"kubevirt.io": "virt-launcher"}},
    });
    let plugins =
        json!({"resourceRules": rule("plugin.kubevirt.io", "v1alpha1", &["CREATE", "UPDATE"], &["plugins"])});
    [
        ("kubevirt-plugin-sidecar-subpath", launchers, json!(sub_path)),
        ("kubevirt-plugin-socket-path", plugins, json!(socket_path)),
    ]
    .into_iter()
    .flat_map(|(name, constraints, validations)| {
        [
            json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicy",
                "metadata": {"name": name},
                "spec": {"failurePolicy": "Fail", "matchConstraints": constraints, "validations": validations}}),
            json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicyBinding",
                "metadata": {"name": format!("{name}-binding")},
                "spec": {"policyName": name, "validationActions": ["Deny"]}}),
        ]
    })
    .collect()
}
