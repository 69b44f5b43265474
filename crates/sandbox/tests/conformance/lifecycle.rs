//! Finalizers, owners, namespaces.

use serde_json::{Value, json};

use crate::cluster::{Cluster, config_map};

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
    c.patch("merge", &c.path("configmaps/held"), &json!({"metadata": {"finalizers": null}})).await.is(200);
    c.until(&path, |answer| answer.code == 404).await;
    c.end().await;
}
