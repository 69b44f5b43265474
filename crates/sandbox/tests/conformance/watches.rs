//! watch.

use serde_json::json;

use crate::cluster::{Cluster, version};

#[tokio::test]
async fn a_watch_tells_what_enters_and_leaves_its_selection() {
    let c = Cluster::new("watch-selector").await;
    let start = version(&c.config_map("first", json!({})).await).to_owned();
    c.config_map("a", json!({"metadata": {"labels": {"w": "1"}}})).await;
    let path = c.path("configmaps/a");
    c.patch("merge", &path, &json!({"data": {"a": "2"}})).await.is(200);
    c.patch("merge", &path, &json!({"metadata": {"labels": {"w": "2"}}})).await.is(200);
    c.patch("merge", &path, &json!({"metadata": {"labels": {"w": "1"}}})).await.is(200);
    c.delete(&path).await.is(200);
    let query = format!("configmaps?watch=true&labelSelector=w%3D1&resourceVersion={start}&timeoutSeconds=2");
    let events = c.get(&c.path(&query)).await.events();
    let kinds: Vec<&str> = events.iter().map(|(kind, _)| kind.as_str()).collect();
    assert_eq!(kinds, ["ADDED", "MODIFIED", "DELETED", "ADDED", "DELETED"]);
    assert_eq!(events[2].1["metadata"]["labels"]["w"], "1", "as it was when it was selected");
    let versions: Vec<u64> = events.iter().map(|(_, object)| version(object).parse().unwrap()).collect();
    assert!(versions.is_sorted());
    c.end().await;
}

#[tokio::test]
async fn a_streaming_list_ends_with_its_bookmark() {
    let c = Cluster::new("watch-list").await;
    c.config_map("a", json!({"metadata": {"labels": {"w": "1"}}})).await;
    let query = "configmaps?watch=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true&labelSelector=w&timeoutSeconds=2";
    let events = c.get(&c.path(query)).await.events();
    assert_eq!(events[0].0, "ADDED");
    assert_eq!(events[1].0, "BOOKMARK");
    assert_eq!(events[1].1["metadata"]["annotations"]["k8s.io/initial-events-end"], "true");
    c.get(&c.path("configmaps?watch=true&sendInitialEvents=true")).await.fails(422, "Invalid");
    c.end().await;
}

#[tokio::test]
async fn impossible_starts_are_refused() {
    let c = Cluster::new("watch-starts").await;
    let events = c.get(&c.path("configmaps?watch=true&resourceVersion=1&timeoutSeconds=2")).await.events();
    assert_eq!((events[0].0.as_str(), &events[0].1["code"]), ("ERROR", &json!(410)));
    assert_eq!(c.get(&c.path("configmaps?watch=true&resourceVersion=abc")).await.code, 500);
    c.get(&c.path("configmaps?resourceVersion=999999999999")).await.fails(504, "Timeout");
    c.end().await;
}
