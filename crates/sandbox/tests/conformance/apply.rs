//! Server-side apply.

use serde_json::json;

use crate::cluster::Cluster;

#[tokio::test]
async fn fields_have_owners() {
    let c = Cluster::new("apply").await;
    let path = c.path("configmaps/a");
    let config = |data: serde_json::Value| json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "data": data});
    let made = c.apply(&path, "one", false, &config(json!({"x": "1", "y": "1"}))).await.is(201);
    assert_eq!(made["metadata"]["managedFields"][0]["manager"], "one");
    let refused = c.apply(&path, "two", false, &config(json!({"x": "2"}))).await.fails(409, "Conflict");
    let cause = &refused["details"]["causes"][0];
    assert_eq!((&cause["reason"], &cause["field"]), (&json!("FieldManagerConflict"), &json!(".data.x")));
    let forced = c.apply(&path, "two", true, &config(json!({"x": "2"}))).await.is(200);
    assert_eq!(forced["data"], json!({"x": "2", "y": "1"}));
    let dropped = c.apply(&path, "one", false, &config(json!({}))).await.is(200);
    assert_eq!(dropped["data"], json!({"x": "2"}), "what nobody applies any longer goes");
    let same = c.apply(&path, "two", false, &config(json!({"x": "2"}))).await.is(200);
    assert_eq!(same["metadata"]["resourceVersion"], dropped["metadata"]["resourceVersion"]);
    let unnamed = c.send(
        "PATCH",
        &path,
        &[("content-type", "application/apply-patch+yaml")],
        config(json!({})).to_string(),
    );
    unnamed.await.fails(422, "Invalid");
    c.end().await;
}

#[tokio::test]
async fn applied_yaml_creates_too() {
    let c = Cluster::new("apply-yaml").await;
    let yaml = |name: &str| {
        format!("apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: {name}\ndata:\n  a: '1'\n  a: '2'\n")
    };
    let media = [("content-type", "application/apply-patch+yaml")];
    let made = c.send("PATCH", &c.path("configmaps/a?fieldManager=yaml"), &media, yaml("a")).await.is(201);
    assert_eq!(made["data"]["a"], "2", "of a key that is there twice the last counts");
    let refused = c.send("PATCH", &c.path("configmaps/y?fieldManager=yaml"), &media, yaml("y")).await;
    let message = refused.is(500)["message"].as_str().unwrap().to_owned();
    assert!(
        message.contains(".metadata.name: expected string, got"),
        "y is a boolean in YAML 1.1: {message}"
    );
    c.end().await;
}

#[tokio::test]
async fn who_changes_nothing_owns_without_a_time() {
    let c = Cluster::new("apply-time").await;
    let path = c.path("configmaps/a");
    let config =
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "data": {"x": "1"}});
    c.apply(&path, "one", false, &config).await.is(201);
    let shared = c.apply(&path, "two", false, &config).await.is(200);
    let entries = shared["metadata"]["managedFields"].as_array().unwrap();
    let seen: Vec<_> =
        entries.iter().map(|entry| (entry["manager"].as_str().unwrap(), entry["time"].is_string())).collect();
    assert_eq!(seen, [("two", false), ("one", true)]);
    c.end().await;
}

#[tokio::test]
async fn what_does_not_fit_is_not_applied() {
    let c = Cluster::new("apply-fit").await;
    let path = c.path("configmaps/a");
    let config = |extra: serde_json::Value| {
        let mut config =
            json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "data": {"x": "1"}});
        config.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        config
    };
    let refused = c.apply(&path, "one", false, &config(json!({"bogus": 1}))).await.is(500);
    assert_eq!(
        refused["message"],
        "failed to create typed patch object (/a; /v1, Kind=ConfigMap): .bogus: field not declared in schema"
    );
    c.apply(&path, "one", false, &config(json!({"data": {"x": 1}}))).await.is(500);
    let other = config(json!({"metadata": {"name": "a", "uid": "other"}}));
    c.apply(&path, "one", false, &other).await.fails(409, "Conflict");
    let old = config(json!({"metadata": {"name": "a", "resourceVersion": "1"}}));
    c.apply(&path, "one", false, &old).await.is(201);
    c.apply(&path, "one", false, &old).await.fails(409, "Conflict");
    c.apply(&path, "one", false, &other).await.fails(422, "Invalid");
    c.end().await;
}
