//! Forms of answers, discovery, health.

use serde_json::json;

use crate::cluster::Cluster;

#[tokio::test]
async fn answers_come_in_the_form_asked_for() {
    let c = Cluster::new("shapes").await;
    c.config_map("a", json!({})).await;
    let path = c.path("configmaps/a");
    let ask = async |accept: &str| c.send("GET", &path, &[("accept", accept)], String::new()).await;
    assert_eq!(
        ask("application/json;as=PartialObjectMetadata;v=v1;g=meta.k8s.io").await.is(200)["kind"],
        "PartialObjectMetadata"
    );
    let table = ask("application/json;as=Table;v=v1;g=meta.k8s.io").await.is(200);
    assert_eq!(table["kind"], "Table");
    assert_eq!(table["rows"][0]["cells"][0], "a");
    let yaml = ask("application/yaml").await;
    assert!(yaml.text.contains("kind: ConfigMap"), "{}", yaml.text);
    assert_eq!(ask("text/html").await.code, 406);
    c.send("PUT", &c.path("configmaps"), &[("content-type", "application/json")], "{}".into())
        .await
        .fails(405, "MethodNotAllowed");
    c.get(&c.path("nonsense")).await.fails(404, "NotFound");
    c.end().await;
}

#[tokio::test]
async fn the_server_says_what_it_serves() {
    let c = Cluster::new("discovery").await;
    let accept = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
    let all = c.send("GET", "/apis", &[("accept", accept)], String::new()).await.is(200);
    assert_eq!(all["kind"], "APIGroupDiscoveryList");
    assert_eq!(c.get("/apis").await.is(200)["kind"], "APIGroupList");
    let apps = c.get("/apis/apps/v1").await.is(200);
    let mut names = apps["resources"].as_array().unwrap().iter().map(|one| one["name"].as_str().unwrap());
    assert!(names.any(|name| name == "deployments/scale"));
    assert!(c.get("/openapi/v3").await.is(200)["paths"]["api/v1"]["serverRelativeURL"].is_string());
    assert_eq!(c.get("/readyz").await.text, "ok");
    assert!(c.get("/version").await.is(200)["gitVersion"].is_string());
    c.end().await;
}

#[tokio::test]
async fn events_are_the_same_in_both_groups() {
    let c = Cluster::new("events").await;
    let event = json!({"apiVersion": "v1", "kind": "Event", "metadata": {"name": "e"}, "reason": "Tested", "message": "m",
        "type": "Normal", "involvedObject": {"kind": "ConfigMap", "name": "a", "namespace": c.namespace, "apiVersion": "v1"}});
    c.post(&c.path("events"), &event).await.is(201);
    let other = c.get(&c.group("events.k8s.io/v1", "events/e")).await.is(200);
    assert_eq!((&other["note"], &other["regarding"]["name"]), (&json!("m"), &json!("a")));
    let list = c.get(&c.path("events?fieldSelector=involvedObject.name%3Da")).await.is(200);
    assert_eq!(list["items"].as_array().unwrap().len(), 1);
    c.end().await;
}
