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

#[tokio::test]
async fn logs_and_exec_need_a_node() {
    let c = Cluster::new("logs").await;
    c.post(&c.path("pods"), &pod("a")).await.is(201);
    assert_eq!(c.get(&c.path("pods/a/log")).await.code, 204, "a pod without a node has said nothing");
    c.get(&c.path("pods/absent/log")).await.fails(404, "NotFound");
    let refused = c.get(&c.path("pods/a/log?container=other")).await.fails(400, "BadRequest");
    assert_eq!(refused["message"], "container other is not valid for pod a");
    let refused = c.get(&c.path("pods/a/exec?command=true&stdout=true")).await.fails(400, "BadRequest");
    assert_eq!(refused["message"], "pod a does not have a host assigned");
    c.end().await;
}

#[tokio::test]
async fn resizes_keep_to_their_rules() {
    let c = Cluster::new("resizes").await;
    c.post(&c.path("pods"), &pod("a")).await.is(201);
    let path = c.path("pods/a/resize");
    assert_eq!(c.get(&path).await.is(200)["kind"], "Pod");
    let resources =
        |resources: Value| json!({"spec": {"containers": [{"name": "c", "resources": resources}]}});
    let over = resources(json!({"requests": {"memory": "256Mi"}}));
    c.patch("strategic-merge", &path, &over).await.fails(422, "Invalid");
    let other = resources(json!({"requests": {"ephemeral-storage": "1Gi"}}));
    c.patch("strategic-merge", &path, &other).await.fails(422, "Invalid");
    let labelled = json!({"metadata": {"labels": {"ignored": "yes"}},
        "spec": {"containers": [{"name": "c", "resources": {"limits": {"memory": "256Mi"}}}]}});
    let resized = c.patch("strategic-merge", &path, &labelled).await.is(200);
    assert_eq!(resized["spec"]["containers"][0]["resources"]["limits"]["memory"], "256Mi");
    assert!(resized["metadata"]["labels"].get("ignored").is_none(), "nothing but resources is taken");
    c.patch("strategic-merge", &c.path("pods/absent/resize"), &over).await.fails(404, "NotFound");
    c.end().await;
}
