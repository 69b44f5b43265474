//! Finalizers, owners, namespaces.

use serde_json::{Value, json};

use crate::cluster::{Answer, Cluster, config_map};

fn owned_by(owner: &Value) -> Value {
    json!({"metadata": {"ownerReferences": [{"apiVersion": "v1", "kind": "ConfigMap",
        "name": owner["metadata"]["name"], "uid": owner["metadata"]["uid"], "blockOwnerDeletion": true}]}})
}

#[tokio::test]
async fn finalizers_hold_an_object_back() {
    let c = Cluster::new("finalizers").await;
    c.config_map("a", json!({"metadata": {"finalizers": ["example.com/f"]}})).await;
    let path = c.path("configmaps/a");
    let deleted = c.delete(&path).await.is(200);
    assert!(deleted["metadata"]["deletionTimestamp"].is_string());
    let more = json!({"metadata": {"finalizers": ["example.com/f", "example.com/g"]}});
    c.patch("merge", &path, &more).await.fails(422, "Invalid");
    c.patch("merge", &path, &json!({"data": {"still": "writable"}})).await.is(200);
    c.patch("merge", &path, &json!({"metadata": {"finalizers": null}})).await.is(200);
    c.get(&path).await.fails(404, "NotFound");
    c.end().await;
}

#[tokio::test]
async fn dependents_follow_their_owner() {
    let c = Cluster::new("owners").await;
    let owner = c.config_map("owner", json!({})).await;
    c.config_map("child", owned_by(&owner)).await;
    c.delete_with(&c.path("configmaps/owner"), &json!({"propagationPolicy": "Background"})).await.is(200);
    c.until(&c.path("configmaps/child"), |answer| answer.code == 404).await;

    let owner = c.config_map("owner", json!({})).await;
    let mut held = owned_by(&owner);
    held["metadata"]["finalizers"] = json!(["example.com/f"]);
    c.config_map("child", held).await;
    let waiting =
        c.delete_with(&c.path("configmaps/owner"), &json!({"propagationPolicy": "Foreground"})).await.is(200);
    assert_eq!(waiting["metadata"]["finalizers"], json!(["foregroundDeletion"]));
    c.until(&c.path("configmaps/child"), |answer| !answer.json()["metadata"]["deletionTimestamp"].is_null())
        .await;
    c.get(&c.path("configmaps/owner")).await.is(200);
    c.patch("merge", &c.path("configmaps/child"), &json!({"metadata": {"finalizers": null}})).await.is(200);
    c.until(&c.path("configmaps/owner"), |answer| answer.code == 404).await;

    let owner = c.config_map("owner", json!({})).await;
    c.config_map("child", owned_by(&owner)).await;
    c.delete_with(&c.path("configmaps/owner"), &json!({"propagationPolicy": "Orphan"})).await.is(200);
    c.until(&c.path("configmaps/owner"), |answer| answer.code == 404).await;
    assert!(c.get(&c.path("configmaps/child")).await.is(200)["metadata"]["ownerReferences"].is_null());
    c.end().await;
}

#[tokio::test]
async fn a_namespace_is_emptied_before_it_goes() {
    let c = Cluster::new("namespaces").await;
    c.config_map("held", json!({"metadata": {"finalizers": ["example.com/f"]}})).await;
    let path = format!("/api/v1/namespaces/{}", c.namespace);
    let going = c.delete(&path).await.is(200);
    assert_eq!(going["status"]["phase"], "Terminating");
    let refused = c.post(&c.path("configmaps"), &config_map("late")).await.fails(403, "Forbidden");
    assert_eq!(refused["details"]["causes"][0]["reason"], "NamespaceTerminating");
    c.until(&c.path("configmaps/held"), |answer| !answer.json()["metadata"]["deletionTimestamp"].is_null())
        .await;
    let waits = c.until(&path, |answer| condition(answer, "NamespaceFinalizersRemaining").0 == "True").await;
    let said = |kind: &str| condition(&waits, kind);
    assert_eq!(said("NamespaceDeletionContentFailure").0, "False");
    let left =
        ("True".to_owned(), "Some resources are remaining: configmaps. has 1 resource instances".to_owned());
    assert_eq!(said("NamespaceContentRemaining"), left);
    let why = "Some content in the namespace has finalizers remaining: example.com/f in 1 resource instances";
    assert_eq!(said("NamespaceFinalizersRemaining").1, why);
    c.patch("merge", &c.path("configmaps/held"), &json!({"metadata": {"finalizers": null}})).await.is(200);
    c.until(&path, |answer| answer.code == 404).await;
    c.end().await;
}

/// Status and message of a condition of a namespace.
fn condition(answer: &Answer, kind: &str) -> (String, String) {
    let status = answer.json()["status"]["conditions"].clone();
    let found = status.as_array().into_iter().flatten().find(|one| one["type"] == kind);
    let text = |key: &str| found.map_or("", |one| one[key].as_str().unwrap_or_default()).to_owned();
    (text("status"), text("message"))
}

/// Within a collection the first refusal ends it; the other collections are emptied all the same.
#[tokio::test]
async fn a_refusal_stops_the_collection_and_the_namespace_stays() {
    let c = Cluster::new("refusals").await;
    let name = c.namespace.clone();
    let policies = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies";
    let bindings = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicybindings";
    let policy = json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicy",
        "metadata": {"name": name}, "spec": {
            "matchConstraints": {"resourceRules": [{"apiGroups": [""], "apiVersions": ["v1"],
                "operations": ["DELETE"], "resources": ["configmaps"]}]},
            "validations": [{"expression": "oldObject.metadata.name != 'b'", "message": "b is kept"}]}});
    c.post(policies, &policy).await.is(201);
    let binding = json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicyBinding",
        "metadata": {"name": name}, "spec": {"policyName": name, "validationActions": ["Deny"],
            "matchResources": {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": name}}}}});
    c.post(bindings, &binding).await.is(201);
    for name in ["a", "b", "c"] {
        c.config_map(name, json!({})).await;
    }
    let secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}});
    c.post(&c.path("secrets"), &secret).await.is(201);
    // A real API server takes a moment to notice the policy.
    let dry = format!("{}?dryRun=All", c.path("configmaps/b"));
    let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(30);
    while c.delete(&dry).await.code == 200 {
        assert!(tokio::time::Instant::now() < deadline, "the policy never took effect");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    let path = format!("/api/v1/namespaces/{name}");
    c.delete(&path).await.is(200);
    let failed =
        c.until(&path, |answer| condition(answer, "NamespaceDeletionContentFailure").0 == "True").await;
    let said = condition(&failed, "NamespaceDeletionContentFailure").1;
    assert!(
        said.starts_with("Failed to delete all resource types, 1 remaining: ") && said.contains("b is kept"),
        "{said}"
    );
    c.until(&c.path("secrets/s"), |answer| answer.code == 404).await;
    c.get(&c.path("configmaps/a")).await.fails(404, "NotFound");
    c.get(&c.path("configmaps/c")).await.is(200);
    c.delete(&format!("{bindings}/{name}")).await.is(200);
    c.delete(&format!("{policies}/{name}")).await.is(200);
    c.until(&path, |answer| answer.code == 404).await;
    c.end().await;
}
