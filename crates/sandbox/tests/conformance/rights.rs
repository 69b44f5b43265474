//! Who may do what.

use serde_json::json;

use crate::cluster::Cluster;

#[tokio::test]
async fn roles_are_enforced() {
    let c = Cluster::new("rights").await;
    let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "robot"}});
    c.post(&c.path("serviceaccounts"), &account).await.is(201);
    let user = format!("system:serviceaccount:{}:robot", c.namespace);
    let headers = [("impersonate-user", user.as_str())];
    let refused = c.send("GET", &c.path("configmaps"), &headers, String::new()).await.fails(403, "Forbidden");
    assert!(refused["message"].as_str().unwrap().contains("cannot list resource \"configmaps\""));

    let role = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": {"name": "reader"},
        "rules": [{"apiGroups": [""], "resources": ["configmaps"], "verbs": ["list"]}]});
    c.post(&c.group("rbac.authorization.k8s.io/v1", "roles"), &role).await.is(201);
    let binding = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": {"name": "reader"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "reader"},
        "subjects": [{"kind": "ServiceAccount", "name": "robot", "namespace": c.namespace}]});
    c.post(&c.group("rbac.authorization.k8s.io/v1", "rolebindings"), &binding).await.is(201);
    let path = c.path("configmaps");
    let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(30);
    while c.send("GET", &path, &headers, String::new()).await.code != 200 {
        assert!(tokio::time::Instant::now() < deadline, "the binding never took effect");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    c.send("DELETE", &path, &headers, String::new()).await.fails(403, "Forbidden");

    let question = json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview",
        "spec": {"user": user, "resourceAttributes": {"namespace": c.namespace, "verb": "list", "resource": "configmaps"}}});
    let answer = c.post("/apis/authorization.k8s.io/v1/subjectaccessreviews", &question).await.is(201);
    assert_eq!(answer["status"]["allowed"], true);
    c.end().await;
}

#[tokio::test]
async fn tokens_of_service_accounts_are_good() {
    let c = Cluster::new("tokens").await;
    let request = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}});
    let made = c.post(&c.path("serviceaccounts/default/token"), &request).await.is(201);
    let token = made["status"]["token"].as_str().unwrap();
    let review =
        json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": {"token": token}});
    let answer = c.post("/apis/authentication.k8s.io/v1/tokenreviews", &review).await.is(201);
    assert_eq!(answer["status"]["authenticated"], true);
    assert_eq!(
        answer["status"]["user"]["username"],
        format!("system:serviceaccount:{}:default", c.namespace)
    );
    c.end().await;
}
