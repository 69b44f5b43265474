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
    let yaml = "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: y\ndata:\n  a: '1'\n".to_owned();
    let path = c.path("configmaps/y?fieldManager=yaml");
    c.send("PATCH", &path, &[("content-type", "application/apply-patch+yaml")], yaml).await.is(201);
    c.end().await;
}
