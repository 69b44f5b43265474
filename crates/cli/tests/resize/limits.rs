//! Quota, limits, nodes that cannot, and requests and limits alone.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use http::Method;
use resize::quantity::bytes;
use serde_json::{Value, json};

use super::program::virt_steward;
use super::stage::*;

const QUOTAS: &str = "/api/v1/namespaces/default/resourcequotas";

#[tokio::test(flavor = "multi_thread")]
async fn what_the_node_cannot_do_is_put_back_and_said() {
    let (stage, _steward) = Stage::with_steward(Setup::default()).await;
    stage.vm("db", Some("Enabled")).await;
    let pod = stage.launchers("db").await.remove(0);
    let node = format!("/api/v1/nodes/{}", pod["spec"]["nodeName"].as_str().unwrap());
    let fault = json!({"metadata": {"annotations": {"sandbox.vm-feature-manager.io/resize": "Infeasible"}}});
    stage.patch(&node, fault).await;
    stage.grow("db", 4, "2Gi").await;
    let state = stage.wait_phase("db", "Stopped").await;
    assert_eq!(state["reason"]["cause"], "Infeasible");
    let vmi = stage.get(&format!("{VMIS}/db")).await;
    assert_eq!(vmi["spec"]["domain"]["cpu"]["sockets"], 2, "held");
    let after = stage.launchers("db").await.remove(0);
    assert_eq!(resources(&after), resources(&pod), "nothing is kept");
    assert_eq!(stage.migrations().await, 0);
}

/// What a quota has counted.
fn used(quota: &Value) -> Option<u64> {
    bytes(&quota["status"]["used"]["requests.memory"])
}

/// A quota that is watched the whole time: what was used at first, and what at the most.
async fn watched(stage: &Stage, memory: &str) -> (u64, Arc<AtomicU64>, tokio::task::JoinHandle<()>) {
    let quota = json!({"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "q"},
        "spec": {"hard": {"requests.memory": memory}}});
    stage.create(QUOTAS, quota).await;
    let quota = stage.wait(&format!("{QUOTAS}/q"), "counted", |quota| used(quota).is_some()).await;
    let (most, client) = (Arc::new(AtomicU64::new(0)), stage.client.clone());
    let seen = Arc::clone(&most);
    let task = tokio::spawn(async move {
        loop {
            let request = http::Request::get(format!("{QUOTAS}/q")).body(Vec::new()).unwrap();
            if let Ok(quota) = client.request::<Value>(request).await {
                seen.fetch_max(used(&quota).unwrap_or(0), Ordering::SeqCst);
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    (used(&quota).unwrap(), most, task)
}

#[tokio::test(flavor = "multi_thread")]
async fn quota_is_never_exceeded_shown_as_it_is_and_not_held_after_giving_up() {
    let (stage, _steward) = Stage::with_steward(Setup::default()).await;
    stage.vm("db", Some("Enabled")).await;
    let pod = stage.launchers("db").await.remove(0);
    let (first, most, watching) = watched(&stage, "2Gi").await;
    stage.grow("db", 4, "2Gi").await;
    let state = stage.wait_phase("db", "Stopped").await;
    assert_eq!(state["reason"]["cause"], "Refused");
    let words = state["reason"]["message"].as_str().unwrap();
    assert!(words.contains("exceeded quota: q, requested: requests.memory="), "{words}");
    assert_eq!(resources(&stage.launchers("db").await[0]), resources(&pod));
    assert_eq!(used(&stage.get(&format!("{QUOTAS}/q")).await), Some(first), "nothing is held");
    assert!(stage.events("db").await.contains(&"ResizeRefused".to_owned()));
    // With more room, and another wish, it is done; only the difference is needed, not a second pod.
    stage.patch(&format!("{QUOTAS}/q"), json!({"spec": {"hard": {"requests.memory": "2500Mi"}}})).await;
    stage.grow("db", 3, "2Gi").await;
    stage.wait_vmi("db", "grown", |vmi| has_size(vmi, 3, "2Gi")).await;
    watching.abort();
    let most = most.load(Ordering::SeqCst);
    assert!(most <= 2500 << 20, "{most} bytes were used of 2500Mi");
    assert_eq!(stage.migrations().await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn quota_is_given_back_when_kubelet_does_not_answer_in_time() {
    let (stage, _steward) = Stage::with_steward(Setup { deadline: 5, ..Setup::default() }).await;
    stage.vm("db", Some("Enabled")).await;
    let pod = stage.launchers("db").await.remove(0);
    let node = format!("/api/v1/nodes/{}", pod["spec"]["nodeName"].as_str().unwrap());
    let fault =
        |what: Value| json!({"metadata": {"annotations": {"sandbox.vm-feature-manager.io/resize": what}}});
    stage.patch(&node, fault("Defer".into())).await;
    let (first, most, watching) = watched(&stage, "3Gi").await;
    stage.grow("db", 4, "2Gi").await;
    let state = stage.wait_phase("db", "Stopped").await;
    assert_eq!(state["reason"]["cause"], "Deferred");
    watching.abort();
    assert_eq!(most.load(Ordering::SeqCst) - first, 1040 << 20, "held while kubelet was asked");
    stage.wait(&format!("{QUOTAS}/q"), "free", |quota| used(quota) == Some(first)).await;
    // The owner asks for something else once the node has room.
    stage.patch(&node, fault(Value::Null)).await;
    stage.grow("db", 3, "2Gi").await;
    stage.wait_vmi("db", "grown", |vmi| has_size(vmi, 3, "2Gi")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_limit_range_is_shown_as_it_is() {
    let (stage, _steward) = Stage::with_steward(Setup::default()).await;
    let limits = json!({"requests": {"memory": "1Gi"}, "limits": {"memory": "2Gi"}});
    stage.vm_with("db", Some("Enabled"), limits, true).await;
    let range = json!({"apiVersion": "v1", "kind": "LimitRange", "metadata": {"name": "r"},
        "spec": {"limits": [{"type": "Container", "max": {"memory": "2500Mi"}}]}});
    stage.create("/api/v1/namespaces/default/limitranges", range).await;
    stage.grow("db", 2, "2Gi").await;
    let state = stage.wait_phase("db", "Stopped").await;
    assert_eq!(state["reason"]["cause"], "Refused");
    let words = state["reason"]["message"].as_str().unwrap();
    assert!(words.contains("maximum memory usage per Container is 2500Mi"), "{words}");
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_and_limits_of_a_launcher_that_runs_are_corrected_alone() {
    let (stage, _steward) = Stage::with_steward(Setup::default()).await;
    let limits = json!({"requests": {"memory": "1Gi"}, "limits": {"memory": "2Gi"}});
    let vmi = stage.vm_with("db", Some("Enabled"), limits, true).await;
    let pod = stage.launchers("db").await.remove(0);
    let kubeconfig = stage.kubeconfig.to_str().unwrap().to_owned();
    let run = move |line: &str| {
        let mut words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
        words.extend(["--kubeconfig".into(), kubeconfig.clone()]);
        async move {
            tokio::task::spawn_blocking(move || {
                let words: Vec<&str> = words.iter().map(String::as_str).collect();
                virt_steward(&words, "")
            })
            .await
            .unwrap()
        }
    };
    let planned = run("vm resize db --limit-memory 4Gi --dry-run").await;
    assert_eq!(planned.status, 0, "{}", planned.stderr);
    assert!(planned.stdout.contains("(limit 4Gi)"), "{}", planned.stdout);
    assert_eq!(resources(&stage.launchers("db").await[0]), resources(&pod), "a dry run");
    let done = run("vm resize db --limit-memory 4Gi --request-cpu 500m --wait").await;
    assert_eq!(done.status, 0, "{}", done.stderr);
    let corrected = stage.launchers("db").await.remove(0);
    assert_eq!(resources(&corrected)["limits"]["memory"], "4Gi");
    assert_eq!(resources(&corrected)["requests"]["cpu"], "500m");
    assert_eq!(resources(&corrected)["requests"]["memory"], resources(&pod)["requests"]["memory"]);
    let same = stage.get(&format!("{VMIS}/db")).await;
    assert_eq!(same["spec"], vmi["spec"], "neither VM nor guest");
    let refused = run("vm resize db --limit-memory 512Mi").await;
    assert_eq!(refused.status, 1);
    assert!(refused.stderr.contains("less than the pod requests"), "{}", refused.stderr);
    // A later resize adds to what was corrected.
    stage.grow("db", 4, "1Gi").await;
    stage.wait_vmi("db", "larger", |vmi| has_size(vmi, 4, "1Gi")).await;
    assert_eq!(resources(&stage.launchers("db").await[0])["requests"]["cpu"], "700m");
    let _ = stage.send(Method::DELETE, &format!("{VMS}/db"), &Value::Null).await;
}
