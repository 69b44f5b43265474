use std::collections::BTreeMap;
use std::sync::Mutex;

use apimachinery::tree::json;
use http::HeaderValue;

use super::*;

/// Objects by group, resource, namespace and name; the revision is how many there are of a kind.
#[derive(Default)]
struct Memory(Mutex<BTreeMap<[String; 4], Arc<Value>>>);

impl Memory {
    fn put(&self, group: &str, resource: &str, object: Value) {
        let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default().to_owned();
        let key = [group.to_owned(), resource.to_owned(), text("namespace"), text("name")];
        self.0.lock().unwrap().insert(key, Arc::new(object));
    }
}

impl Objects for Memory {
    fn get(&self, group: &str, resource: &str, namespace: &str, name: &str) -> Option<Arc<Value>> {
        self.0.lock().unwrap().get(&[group, resource, namespace, name].map(str::to_owned)).cloned()
    }

    fn list(&self, group: &str, resource: &str) -> Vec<Arc<Value>> {
        let objects = self.0.lock().unwrap();
        let of_kind = objects.iter().filter(|(key, _)| key[0] == group && key[1] == resource);
        of_kind.map(|(_, object)| Arc::clone(object)).collect()
    }

    fn revision(&self, group: &str, resource: &str) -> u64 {
        self.list(group, resource).len() as u64
    }
}

const NOW: &str = "2026-11-21T01:00:00Z";

fn user(name: &str, groups: &[&str]) -> User {
    User { name: name.into(), groups: groups.iter().map(|&group| group.into()).collect(), ..User::default() }
}

fn cluster() -> (Arc<Memory>, Auth) {
    let memory = Arc::new(Memory::default());
    for object in bootstrap_objects() {
        let plural = format!("{}s", object["kind"].as_str().unwrap().to_lowercase());
        memory.put("rbac.authorization.k8s.io", &plural, object);
    }
    memory.put("", "serviceaccounts", json!({"metadata": {"name": "sa", "namespace": "n", "uid": "u-1"}}));
    let auth =
        Auth::new(Arc::clone(&memory) as _, "secret".into(), user("admin", &["system:masters"])).unwrap();
    (memory, auth)
}

fn bind(memory: &Memory, name: &str, role: &str, namespace: &str) {
    let (kind, plural) = if namespace.is_empty() {
        ("ClusterRoleBinding", "clusterrolebindings")
    } else {
        ("RoleBinding", "rolebindings")
    };
    memory.put(
        "rbac.authorization.k8s.io",
        plural,
        json!({"kind": kind,
        "metadata": {"name": format!("{name}-{role}"), "namespace": namespace},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
        "subjects": [{"kind": "User", "name": name}]}),
    );
}

fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
    pairs
        .iter()
        .map(|(name, value)| (http::HeaderName::from_static(name), HeaderValue::from_str(value).unwrap()))
        .collect()
}

fn asks(user: User, verb: &str, resource: &str, name: &str) -> Attributes {
    Attributes {
        user,
        verb: verb.into(),
        version: "v1".into(),
        resource: resource.into(),
        namespace: "golden".into(),
        name: name.into(),
        ..Attributes::default()
    }
}

fn now() -> Timestamp {
    NOW.parse().unwrap()
}

#[test]
fn what_may_not_be_done_is_refused_as_recorded() {
    let (_, auth) = cluster();
    let scheduler = user("system:kube-scheduler", &["system:authenticated"]);
    let status = auth.authorize(&asks(scheduler.clone(), "delete", "configmaps", "l0")).unwrap_err();
    let want = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": "configmaps \"l0\" is forbidden: User \"system:kube-scheduler\" cannot delete resource \"configmaps\" in API group \"\" in the namespace \"golden\"",
        "reason": "Forbidden", "details": {"name": "l0", "kind": "configmaps"}, "code": 403});
    assert_eq!(status.to_json(), want);
    assert!(auth.authorize(&asks(scheduler, "delete", "pods", "p")).is_ok());
}

#[test]
fn bound_users_have_what_their_role_gives_them_at_once() {
    let (memory, auth) = cluster();
    let bob = || user("bob", &["system:authenticated"]);
    assert!(auth.authorize(&asks(bob(), "get", "pods", "p")).is_err());
    bind(&memory, "bob", "edit", "golden");
    for (verb, resource, allowed) in [
        ("get", "pods", true),
        ("create", "configmaps", true),
        ("get", "secrets", true),
        ("create", "nodes", false),
        ("create", "resourcequotas", false),
    ] {
        assert_eq!(auth.authorize(&asks(bob(), verb, resource, "x")).is_ok(), allowed, "{verb} {resource}");
    }
    let path = |user, path: &str| Attributes {
        user,
        verb: "get".into(),
        path: path.into(),
        ..Attributes::default()
    };
    assert!(auth.authorize(&path(bob(), "/apis")).is_ok());
    assert!(auth.authorize(&path(anonymous(), "/apis")).is_err());
    assert!(auth.authorize(&path(anonymous(), "/healthz")).is_ok());
}

#[test]
fn tokens_are_good_for_their_account_until_they_expire_or_it_goes() {
    let (memory, auth) = cluster();
    let answer =
        auth.request_token(("n", "sa"), json!({"spec": {"expirationSeconds": 600}}), now(), "id-1").unwrap();
    assert_eq!(answer["status"]["expirationTimestamp"], "2026-11-21T01:10:00Z");
    let token = answer["status"]["token"].as_str().unwrap();
    let with = headers(&[("authorization", &format!("Bearer {token}"))]);
    let (user, real) = auth.authenticate(&with, None, now()).unwrap();
    assert_eq!((user.name.as_str(), user.uid.as_str(), real), ("system:serviceaccount:n:sa", "u-1", None));
    assert_eq!(user.groups, ["system:serviceaccounts", "system:serviceaccounts:n", "system:authenticated"]);
    assert_eq!(user.extra["authentication.kubernetes.io/credential-id"], ["JTI=id-1"]);

    let late = "2026-11-21T01:10:00Z".parse().unwrap();
    let status = auth.authenticate(&with, None, late).unwrap_err();
    let want = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": "Unauthorized", "reason": "Unauthorized", "code": 401});
    assert_eq!(status.to_json(), want);

    let mut forged = token.to_owned();
    let middle = forged.find('.').unwrap() + 5;
    let other = if forged.as_bytes()[middle] == b'A' { "B" } else { "A" };
    forged.replace_range(middle..=middle, other);
    for wrong in [forged.as_str(), "", "secret2", "a.b.c", &"x".repeat(20_000)] {
        let with = headers(&[("authorization", &format!("Bearer {wrong}"))]);
        assert!(auth.authenticate(&with, None, now()).is_err(), "{wrong}");
    }
    // deleted and made again: another account
    memory.put("", "serviceaccounts", json!({"metadata": {"name": "sa", "namespace": "n", "uid": "u-2"}}));
    assert!(auth.authenticate(&with, None, now()).is_err());
}

#[test]
fn tokens_of_another_server_or_audience_are_refused() {
    let (_, auth) = cluster();
    let (_, other) = cluster();
    let token = |auth: &Auth, spec: Value| {
        let answer = auth.request_token(("n", "sa"), json!({"spec": spec}), now(), "id").unwrap();
        answer["status"]["token"].as_str().unwrap().to_owned()
    };
    for token in [token(&other, json!({})), token(&auth, json!({"audiences": ["vault"]}))] {
        let with = headers(&[("authorization", &format!("Bearer {token}"))]);
        assert_eq!(auth.authenticate(&with, None, now()).unwrap_err().code, 401);
    }
    let review = json!({"kind": "TokenReview", "spec": {"token": token(&auth, json!({"audiences": ["vault"]})), "audiences": ["vault", "x"]}});
    let answer = auth.review(&user("r", &[]), "", review, now()).unwrap();
    assert_eq!(answer["status"]["audiences"], json!(["vault"]));
    assert_eq!(answer["status"]["user"]["username"], "system:serviceaccount:n:sa");
    let review = json!({"kind": "TokenReview", "spec": {"token": "junk"}});
    let answer = auth.review(&user("r", &[]), "", review, now()).unwrap();
    assert_eq!(answer["status"], json!({"user": {}, "error": "[invalid bearer token, token is no JWT]"}));
}

#[test]
fn tokens_bound_to_a_pod_end_with_it() {
    let (memory, auth) = cluster();
    let spec = |uid: &str| json!({"spec": {"boundObjectRef": {"kind": "Pod", "name": "p", "uid": uid}}});
    assert_eq!(auth.request_token(("n", "sa"), spec("x"), now(), "i").unwrap_err().code, 404);
    memory.put("", "pods", json!({"metadata": {"name": "p", "namespace": "n", "uid": "x"}}));
    assert_eq!(auth.request_token(("n", "sa"), spec("y"), now(), "i").unwrap_err().code, 409);
    let answer = auth.request_token(("n", "sa"), spec("x"), now(), "i").unwrap();
    let with =
        headers(&[("authorization", &format!("bearer {}", answer["status"]["token"].as_str().unwrap()))]);
    let (user, _) = auth.authenticate(&with, None, now()).unwrap();
    assert_eq!(user.extra["authentication.kubernetes.io/pod-name"], ["p"]);
    assert!(!user.extra.contains_key("authentication.kubernetes.io/node-name"));
    memory.put("", "pods", json!({"metadata": {"name": "p", "namespace": "n", "uid": "z"}}));
    assert!(auth.authenticate(&with, None, now()).is_err());
    // a pod on a node says which, and the token does not end with the node
    memory.put("", "nodes", json!({"metadata": {"name": "a", "uid": "u"}}));
    let pod = json!({"metadata": {"name": "p", "namespace": "n", "uid": "x"}, "spec": {"nodeName": "a"}});
    memory.put("", "pods", pod);
    let answer = auth.request_token(("n", "sa"), spec("x"), now(), "i").unwrap();
    memory.put("", "nodes", json!({"metadata": {"name": "a", "uid": "another"}}));
    let bearer = format!("bearer {}", answer["status"]["token"].as_str().unwrap());
    let (user, _) = auth.authenticate(&headers(&[("authorization", &bearer)]), None, now()).unwrap();
    assert_eq!(user.extra["authentication.kubernetes.io/node-name"], ["a"]);
    assert_eq!(user.extra["authentication.kubernetes.io/node-uid"], ["u"]);
    for (seconds, want) in [
        (
            599_i64,
            "spec.expirationSeconds: Invalid value: 599: may not specify a duration less than 10 minutes",
        ),
        (1_i64 << 33, "may not specify a duration larger than 2^32 seconds"),
    ] {
        let request = json!({"spec": {"expirationSeconds": seconds}});
        let status = auth.request_token(("n", "sa"), request, now(), "i").unwrap_err();
        assert_eq!(status.code, 422);
        assert!(status.message.contains(want), "{status}");
    }
}

#[test]
fn impersonation_needs_the_right_to_and_keeps_who_really_asked() {
    let (memory, auth) = cluster();
    let as_bob = headers(&[
        ("impersonate-user", "bob"),
        ("impersonate-group", "dev"),
        ("impersonate-extra-a%2fb", "c"),
    ]);
    let (bob, real) = auth.authenticate(&as_bob, Some(user("admin", &["system:masters"])), now()).unwrap();
    assert_eq!(bob.groups, ["dev", "system:authenticated"]);
    assert_eq!(bob.extra["a/b"], ["c"]);
    assert_eq!(real.unwrap().name, "admin");

    let alice = || Some(user("alice", &["system:authenticated"]));
    let status = auth.authenticate(&as_bob, alice(), now()).unwrap_err();
    assert_eq!(
        status.message,
        "users \"bob\" is forbidden: User \"alice\" cannot impersonate resource \"users\" in API group \"\" at the cluster scope"
    );
    memory.put("rbac.authorization.k8s.io", "clusterroles", json!({"kind": "ClusterRole", "metadata": {"name": "imp"},
        "rules": [{"verbs": ["impersonate"], "apiGroups": [""], "resources": ["users"], "resourceNames": ["bob"]}]}));
    bind(&memory, "alice", "imp", "");
    assert!(auth.authenticate(&headers(&[("impersonate-user", "bob")]), alice(), now()).is_ok());
    let status = auth.authenticate(&as_bob, alice(), now()).unwrap_err();
    assert!(
        status.message.starts_with("groups \"dev\" is forbidden: User \"alice\" cannot impersonate"),
        "{status}"
    );

    let account = headers(&[("impersonate-user", "system:serviceaccount:n:sa")]);
    let (account, _) = auth.authenticate(&account, Some(user("admin", &["system:masters"])), now()).unwrap();
    assert_eq!(
        account.groups,
        ["system:serviceaccounts", "system:serviceaccounts:n", "system:authenticated"]
    );
    let alone = headers(&[("impersonate-group", "dev")]);
    assert_eq!(auth.authenticate(&alone, alice(), now()).unwrap_err().code, 500);
}

#[test]
fn access_reviews_answer_for_whom_they_ask() {
    let (memory, auth) = cluster();
    bind(&memory, "bob", "view", "golden");
    let admin = user("admin", &["system:masters"]);
    let review = json!({"kind": "SelfSubjectAccessReview", "spec": {"resourceAttributes": {"verb": "patch", "resource": "pods", "subresource": "resize"}}});
    let answer = auth.review(&admin, "", review, now()).unwrap();
    assert_eq!(answer["status"], json!({"allowed": true}));
    let ask =
        |kind: &str, spec: Value| auth.review(&admin, "golden", json!({"kind": kind, "spec": spec}), now());
    let pods = |verb: &str| json!({"verb": verb, "resource": "pods", "namespace": "golden"});
    let answer =
        ask("SubjectAccessReview", json!({"user": "bob", "resourceAttributes": pods("get")})).unwrap();
    assert_eq!(answer["status"]["allowed"], true);
    assert!(answer["status"]["reason"].as_str().unwrap().starts_with("RBAC: allowed by"));
    let answer =
        ask("LocalSubjectAccessReview", json!({"user": "bob", "resourceAttributes": pods("delete")}))
            .unwrap();
    assert_eq!(answer["status"], json!({"allowed": false}));
    for (kind, spec, code) in [
        ("SubjectAccessReview", json!({"resourceAttributes": pods("get")}), 422),
        ("SubjectAccessReview", json!({"user": "bob"}), 422),
        (
            "SubjectAccessReview",
            json!({"user": "bob", "resourceAttributes": {}, "nonResourceAttributes": {}}),
            422,
        ),
        (
            "LocalSubjectAccessReview",
            json!({"user": "bob", "resourceAttributes": {"namespace": "other"}}),
            400,
        ),
        ("SelfSubjectRulesReview", json!({}), 400),
        ("TokenReview", json!({}), 400),
    ] {
        assert_eq!(ask(kind, spec).unwrap_err().code, code, "{kind}");
    }
    let bob = user("bob", &["system:authenticated"]);
    let rules = auth
        .review(&bob, "", json!({"kind": "SelfSubjectRulesReview", "spec": {"namespace": "golden"}}), now())
        .unwrap();
    assert!(rules["status"]["resourceRules"].as_array().unwrap().len() >= 2);
    let own = auth.review(&bob, "", json!({"kind": "SelfSubjectReview"}), now()).unwrap();
    assert_eq!(own["status"]["userInfo"], json!({"username": "bob", "groups": ["system:authenticated"]}));
}

#[test]
fn nobody_gives_what_they_do_not_have() {
    let (memory, auth) = cluster();
    bind(&memory, "bob", "admin", "golden");
    let bob = user("bob", &["system:authenticated"]);
    let role = |verb: &str, resource: &str| {
        json!({"kind": "Role", "metadata": {"name": "r", "namespace": "golden"},
            "rules": [{"verbs": [verb], "apiGroups": [""], "resources": [resource]}]})
    };
    assert!(auth.authorizer().may_grant(&bob, &role("get", "pods"), None).is_ok());
    let status = auth.authorizer().may_grant(&bob, &role("get", "nodes"), None).unwrap_err();
    assert_eq!(status.code, 403);
    assert!(
        status.message.contains("is attempting to grant RBAC permissions not currently held"),
        "{status}"
    );
    // what is there already may stay
    let mut labelled = role("get", "nodes");
    labelled["metadata"]["labels"] = json!({"a": "b"});
    assert!(auth.authorizer().may_grant(&bob, &labelled, Some(&role("get", "nodes"))).is_ok());
    let binding = json!({"kind": "RoleBinding", "metadata": {"name": "b", "namespace": "golden"},
        "roleRef": {"kind": "ClusterRole", "name": "cluster-admin"}, "subjects": []});
    assert_eq!(auth.authorizer().may_grant(&bob, &binding, None).unwrap_err().code, 403);
    assert!(auth.authorizer().may_grant(&user("a", &["system:masters"]), &binding, None).is_ok());
}
