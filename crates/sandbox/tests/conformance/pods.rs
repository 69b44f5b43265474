//! Pods and what is done to them.

use serde_json::{Value, json};

use crate::cluster::Cluster;

fn pod(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": "conformance"}},
        "spec": {"schedulerName": "nobody", "restartPolicy": "Never", "automountServiceAccountToken": false,
            "containers": [{"name": "c", "image": "registry.example/x:1",
                "resources": {"requests": {"cpu": "100m", "memory": "64Mi"}, "limits": {"memory": "128Mi"}}}]}})
}

#[tokio::test]
async fn pods_have_defaults_and_keep_their_spec() {
    let c = Cluster::new("pods").await;
    let made = c.post(&c.path("pods"), &pod("a")).await.is(201);
    assert_eq!(made["status"]["phase"], "Pending");
    assert_eq!(made["status"]["qosClass"], "Burstable");
    assert_eq!(made["spec"]["terminationGracePeriodSeconds"], 30);
    assert_eq!(made["spec"]["tolerations"].as_array().unwrap().len(), 2);
    assert_eq!(made["spec"]["serviceAccountName"], "default");
    let change = json!({"spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": "200m"}}}]}});
    c.patch("strategic-merge", &c.path("pods/a"), &change).await.fails(422, "Invalid");
    let resized = c.patch("strategic-merge", &c.path("pods/a/resize"), &change).await.is(200);
    assert_eq!(resized["spec"]["containers"][0]["resources"]["requests"]["cpu"], "200m");
    let gone = c.delete(&c.path("pods/a")).await.is(200);
    assert_eq!(gone["kind"], "Pod", "an unscheduled pod goes at once");
    c.get(&c.path("pods/a")).await.fails(404, "NotFound");
    c.end().await;
}

#[tokio::test]
async fn budgets_guard_evictions() {
    let c = Cluster::new("evictions").await;
    let mut placed = pod("a");
    placed["spec"]["nodeName"] = "conformance-no-such-node".into();
    c.post(&c.path("pods"), &placed).await.is(201);
    let running =
        json!({"status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}});
    c.patch("strategic-merge", &c.path("pods/a/status"), &running).await.is(200);
    let budgets = c.group("policy/v1", "poddisruptionbudgets");
    let budget = json!({"apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": {"name": "b"},
        "spec": {"minAvailable": 1, "selector": {"matchLabels": {"app": "conformance"}}}});
    c.post(&budgets, &budget).await.is(201);
    c.until(&format!("{budgets}/b"), |answer| answer.json()["status"]["currentHealthy"] == 1).await;
    let eviction = json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": "a"}});
    let refused = c.post(&c.path("pods/a/eviction"), &eviction).await.fails(429, "TooManyRequests");
    assert_eq!(refused["details"]["causes"][0]["reason"], "DisruptionBudget");
    c.patch("merge", &format!("{budgets}/b"), &json!({"spec": {"minAvailable": 0}})).await.is(200);
    c.until(&format!("{budgets}/b"), |answer| answer.json()["status"]["disruptionsAllowed"] == 1).await;
    c.post(&c.path("pods/a/eviction"), &eviction).await.is(201);
    let going = c.get(&c.path("pods/a")).await;
    assert!(going.code == 404 || !going.json()["metadata"]["deletionTimestamp"].is_null());
    c.delete_with(&c.path("pods/a"), &json!({"gracePeriodSeconds": 0})).await;
    c.end().await;
}
