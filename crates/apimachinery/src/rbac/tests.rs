use crate::tree::json;

use super::*;

fn user(name: &str, groups: &[&str]) -> User {
    User { name: name.into(), groups: groups.iter().map(|group| (*group).to_owned()).collect() }
}

fn objects() -> Vec<Value> {
    let role = |kind: &str, namespace: &str, name: &str, rules: Value| json!({"kind": kind, "metadata": {"name": name, "namespace": namespace}, "rules": rules});
    let binding = |kind: &str, namespace: &str, name: &str, role: (&str, &str), subjects: Value| {
        json!({"kind": kind, "metadata": {"name": name, "namespace": namespace},
            "roleRef": {"kind": role.0, "name": role.1}, "subjects": subjects})
    };
    vec![
        role(
            "Role",
            "n",
            "editor",
            json!([
                {"apiGroups": [""], "resources": ["configmaps"], "verbs": ["*"]},
                {"apiGroups": [""], "resources": ["secrets"], "resourceNames": ["mine"], "verbs": ["get"]},
            ]),
        ),
        role(
            "ClusterRole",
            "",
            "reader",
            json!([
                {"apiGroups": ["kubevirt.io"], "resources": ["*"], "verbs": ["get", "list"]},
                {"apiGroups": ["*"], "resources": ["*/scale"], "verbs": ["get"]},
                {"nonResourceURLs": ["/healthz", "/metrics/*"], "verbs": ["get"]},
            ]),
        ),
        json!({"kind": "ClusterRole", "metadata": {"name": "part", "labels": {"to": "whole"}},
            "rules": [{"apiGroups": ["a"], "resources": ["b"], "verbs": ["c"]}]}),
        json!({"kind": "ClusterRole", "metadata": {"name": "whole"}, "rules": [],
            "aggregationRule": {"clusterRoleSelectors": [{"matchLabels": {"to": "whole"}}]}}),
        binding(
            "RoleBinding",
            "n",
            "eb",
            ("Role", "editor"),
            json!([{"kind": "ServiceAccount", "name": "sa"}, {"kind": "User", "name": "u"}]),
        ),
        binding("RoleBinding", "n", "wb", ("ClusterRole", "whole"), json!([{"kind": "User", "name": "w"}])),
        binding(
            "ClusterRoleBinding",
            "",
            "rb",
            ("ClusterRole", "reader"),
            json!([{"kind": "Group", "name": "g"}]),
        ),
    ]
}

fn policy() -> Policy {
    Policy::new(&objects())
}

#[test]
fn who_may_do_what() {
    let policy = policy();
    let sa = user("system:serviceaccount:n:sa", &["system:authenticated"]);
    let group = user("x", &["g"]);
    let ask = |user: &User, verb, group, resource, subresource, namespace, name| {
        let attributes = Attributes { verb, group, resource, subresource, namespace, name, path: "" };
        policy.allowed(user, &attributes).allowed
    };
    for (got, want) in [
        (ask(&sa, "delete", "", "configmaps", "", "n", "a"), true),
        (ask(&sa, "delete", "", "configmaps", "", "m", "a"), false),
        (ask(&sa, "delete", "", "configmaps", "status", "n", "a"), false),
        (ask(&sa, "get", "", "secrets", "", "n", "mine"), true),
        (ask(&sa, "get", "", "secrets", "", "n", "other"), false),
        (ask(&sa, "list", "", "secrets", "", "n", ""), false),
        (ask(&group, "get", "kubevirt.io", "virtualmachines", "status", "m", "a"), true),
        (ask(&group, "get", "kubevirt.io", "virtualmachines", "", "", ""), true),
        (ask(&group, "delete", "kubevirt.io", "virtualmachines", "", "m", "a"), false),
        (ask(&group, "get", "apps", "deployments", "scale", "m", "a"), true),
        (ask(&group, "get", "apps", "deployments", "", "m", "a"), false),
        (ask(&user("w", &[]), "c", "a", "b", "", "n", ""), true),
        (ask(&user("w", &[]), "c", "a", "b", "", "", ""), false),
        (ask(&user("root", &[MASTERS]), "delete", "x", "y", "z", "", "q"), true),
        (ask(&user("nobody", &[]), "get", "", "pods", "", "n", "a"), false),
    ] {
        assert_eq!(got, want);
    }
    for (path, want) in
        [("/healthz", true), ("/healthz/x", false), ("/metrics/cadvisor", true), ("/logs", false)]
    {
        let attributes = Attributes { verb: "get", path, ..Attributes::default() };
        assert_eq!(policy.allowed(&group, &attributes).allowed, want, "{path}");
    }
}

#[test]
fn decisions_name_the_binding() {
    let attributes =
        Attributes { verb: "get", resource: "configmaps", namespace: "n", ..Attributes::default() };
    let decision = policy().allowed(&user("system:serviceaccount:n:sa", &[]), &attributes);
    assert_eq!(
        decision.reason,
        r#"RBAC: allowed by RoleBinding "eb/n" of Role "editor" to ServiceAccount "sa/n""#
    );
}

#[test]
fn a_refusal_reads_as_the_api_writes_it() {
    let attributes = Attributes {
        verb: "delete",
        resource: "configmaps",
        namespace: "golden",
        name: "l0",
        ..Attributes::default()
    };
    assert_eq!(
        attributes.forbidden(&user("system:kube-scheduler", &[])).to_json(),
        json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": "configmaps \"l0\" is forbidden: User \"system:kube-scheduler\" cannot delete resource \"configmaps\" in API group \"\" in the namespace \"golden\"",
            "reason": "Forbidden", "details": {"name": "l0", "kind": "configmaps"}, "code": 403})
    );
    let cluster = Attributes {
        verb: "patch",
        group: "kubevirt.io",
        resource: "virtualmachines",
        subresource: "status",
        ..Attributes::default()
    };
    assert_eq!(
        cluster.forbidden(&user("u", &[])).message,
        r#"virtualmachines.kubevirt.io is forbidden: User "u" cannot patch resource "virtualmachines/status" in API group "kubevirt.io" at the cluster scope"#
    );
    let path = Attributes { verb: "get", path: "/metrics", ..Attributes::default() };
    assert_eq!(path.forbidden(&user("u", &[])).message, r#"forbidden: User "u" cannot get path "/metrics""#);
}

#[test]
fn the_review_lists_the_rules() {
    let review = policy().rules_review(&user("u", &["g"]), "n");
    assert_eq!(review["resourceRules"].as_array().unwrap().len(), 4);
    assert_eq!(
        review["nonResourceRules"],
        json!([{"verbs": ["get"], "nonResourceURLs": ["/healthz", "/metrics/*"]}])
    );
    let all = policy().rules_review(&user("root", &[MASTERS]), "n");
    assert_eq!(all["resourceRules"], json!([{"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]}]));
}

#[test]
fn no_one_gives_what_they_do_not_have() {
    let policy = policy();
    let u = user("u", &["system:authenticated"]);
    let role =
        |rules: Value| json!({"kind": "Role", "metadata": {"name": "r", "namespace": "n"}, "rules": rules});
    let held = role(json!([{"apiGroups": [""], "resources": ["configmaps"], "verbs": ["get", "patch"]},
        {"apiGroups": [""], "resources": ["secrets"], "resourceNames": ["mine"], "verbs": ["get"]}]));
    assert_eq!(grants_of_role(&policy, &u, &held), Ok(()));
    let more = role(json!([{"apiGroups": [""], "resources": ["secrets"], "verbs": ["get"]}]));
    let refusal = grants_of_role(&policy, &u, &more).unwrap_err();
    assert_eq!(refusal.code, 403);
    assert_eq!(
        refusal.message,
        "roles.rbac.authorization.k8s.io \"r\" is forbidden: user \"u\" (groups=[\"system:authenticated\"]) is attempting to grant RBAC permissions not currently held:\n{APIGroups:[\"\"], Resources:[\"secrets\"], Verbs:[\"get\"]}"
    );
    assert_eq!(grants_of_role(&policy, &user("root", &[MASTERS]), &more), Ok(()));
    let binding = json!({"kind": "RoleBinding", "metadata": {"name": "b", "namespace": "n"},
        "roleRef": {"kind": "ClusterRole", "name": "reader"}, "subjects": []});
    let refusal = grants_of_binding(&policy, &u, &binding).unwrap_err();
    assert!(
        refusal.message.starts_with("rolebindings.rbac.authorization.k8s.io \"b\" is forbidden: user \"u\"")
    );
    assert_eq!(grants_of_binding(&policy, &user("x", &["g"]), &binding), Ok(()));
    let dangling = json!({"kind": "RoleBinding", "metadata": {"name": "b", "namespace": "n"},
        "roleRef": {"kind": "Role", "name": "none"}});
    assert_eq!(grants_of_binding(&policy, &u, &dangling).unwrap_err().code, 404);
}

proptest::proptest! {
    #[test]
    fn no_object_panics(object in crate::patch::tests::any_json()) {
        for kind in ["Role", "ClusterRole", "RoleBinding"] {
            let mut object = object.clone();
            if object.is_object() {
                object["kind"] = kind.into();
            }
            let policy = Policy::new([&object]);
            let u = user("u", &[]);
            let _ = policy.rules_review(&u, "n");
            let _ = grants_of_role(&policy, &u, &object);
            let _ = grants_of_binding(&policy, &u, &object);
        }
    }
}
