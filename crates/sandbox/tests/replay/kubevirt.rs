//! Recorded answers about KubeVirt's objects, with virt-api and virt-controller behind the API server: the simulated ones
//! make the same of them.

use std::path::Path;

use sandbox::sim::{SimConfig, Simulation, connect};
use sandbox::{Options, Sandbox};
use serde_json::json;

use crate::{Replay, recorded, recordings};

/// In order.
const OF_A_VM: [&str; 8] = [
    "crd-02-spec-patch-ignores-status",
    "crd-04-status-patch-metadata",
    "crd-05-generation-bumps-on-spec",
    "crd-07-schema-violation",
    "crd-08-kubevirt-webhook-denies",
    "crd-10-subresource-aggregated",
    "crd-11-subresource-start-404",
    "discovery-06-subresources",
];
const NAMESPACE: &str = r#"{"apiVersion":"v1","kind":"Namespace","metadata":{"name":"golden"}}"#;
const KUBEVIRTS: &str = "/apis/kubevirt.io/v1/namespaces/kubevirt/kubevirts";
/// The lab's KubeVirt object.
const KUBEVIRT: &str = r#"{"apiVersion":"kubevirt.io/v1","kind":"KubeVirt","metadata":{"name":"kubevirt"},"spec":{
    "configuration":{"developerConfiguration":{"featureGates":[]},"vmRolloutStrategy":"LiveUpdate"},
    "workloadUpdateStrategy":{"workloadUpdateMethods":["LiveMigrate"]}}}"#;
const APPLY: &str = "application/apply-patch+yaml";
const MERGE: &str = "application/merge-patch+json";

#[tokio::test(flavor = "multi_thread")]
async fn recorded_answers_of_virt_api_replay() {
    let Some(directory) = recordings() else { return };
    let sandbox = Sandbox::start(Options::default()).await.unwrap();
    let client = connect(&sandbox.kubeconfig()).await.unwrap();
    let simulation = Simulation::start(client, SimConfig { nodes: 1, ..SimConfig::default() }).await.unwrap();
    let mut replay = Replay::against(&sandbox).await;
    let mut failures = Vec::new();
    replay.fill("POST", "/api/v1/namespaces", "application/json", NAMESPACE, &[]).await;
    failures.extend(replayed(&mut replay, &directory, "crd-01-create").await);
    // Virt-controller has seen a new VM before somebody changes it.
    let vm = "/apis/kubevirt.io/v1/namespaces/golden/virtualmachines/v";
    replay.wait(vm, "/status/printableStatus", &json!("Stopped")).await;
    replay.wait(vm, "/metadata/finalizers/0", &json!("kubevirt.io/virtualMachineControllerFinalize")).await;
    for name in OF_A_VM {
        failures.extend(replayed(&mut replay, &directory, name).await);
    }
    make_the_labs_kubevirt(&mut replay).await;
    failures.extend(replayed(&mut replay, &directory, "list-22-table-crd").await);
    drop(simulation);
    sandbox.shutdown().await;
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

async fn replayed(replay: &mut Replay, directory: &Path, name: &str) -> Vec<String> {
    let wrong = replay.replay(name, &recorded(directory, name)).await;
    wrong.into_iter().map(|wrong| format!("{name}: {wrong}")).collect()
}

/// The operator's object as the lab had made it, with virt-controller's count.
async fn make_the_labs_kubevirt(replay: &mut Replay) {
    let kubevirt = format!("{KUBEVIRTS}/kubevirt");
    replay.fill("DELETE", &kubevirt, "application/json", "", &[]).await;
    replay.wait(&kubevirt, "", &json!(404)).await;
    replay.fill("PATCH", &format!("{kubevirt}?fieldManager=lab"), APPLY, KUBEVIRT, &[]).await;
    let status = r#"{"status":{"phase":"Deployed","defaultArchitecture":"amd64"}}"#;
    replay.fill("PATCH", &format!("{kubevirt}/status"), MERGE, status, &[]).await;
    replay.wait(&kubevirt, "/status/outdatedVirtualMachineInstanceWorkloads", &json!(0)).await;
}
