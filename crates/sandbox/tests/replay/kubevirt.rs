//! Recorded answers about KubeVirt's objects, with virt-api and virt-controller behind the API server: the simulated ones
//! make the same of them.

use sandbox::sim::{SimConfig, Simulation, connect};
use sandbox::{Options, Sandbox};
use serde_json::json;

use crate::{Replay, recorded, recordings};

/// In order: virt-controller has seen a new VM before somebody changes it.
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
    let mut names = vec!["crd-01-create"];
    for wrong in replay.replay(names[0], &recorded(&directory, names[0])).await {
        failures.push(format!("{}: {wrong}", names[0]));
    }
    let vm = "/apis/kubevirt.io/v1/namespaces/golden/virtualmachines/v";
    replay.wait(vm, "/status/printableStatus", &json!("Stopped")).await;
    replay.wait(vm, "/metadata/finalizers/0", &json!("kubevirt.io/virtualMachineControllerFinalize")).await;

    names.clear();
    names.extend(OF_A_VM);
    // The operator's object as the lab had made it, and its count by virt-controller.
    replay.fill("DELETE", &format!("{KUBEVIRTS}/kubevirt"), "application/json", "", &[]).await;
    replay.wait(&format!("{KUBEVIRTS}/kubevirt"), "", &json!(404)).await;
    let apply = format!("{KUBEVIRTS}/kubevirt?fieldManager=lab");
    replay.fill("PATCH", &apply, APPLY, KUBEVIRT, &[]).await;
    let status = r#"{"status":{"phase":"Deployed","defaultArchitecture":"amd64"}}"#;
    replay.fill("PATCH", &format!("{KUBEVIRTS}/kubevirt/status"), MERGE, status, &[]).await;
    let counted = "/status/outdatedVirtualMachineInstanceWorkloads";
    replay.wait(&format!("{KUBEVIRTS}/kubevirt"), counted, &json!(0)).await;
    names.push("list-22-table-crd");
    for name in names {
        for wrong in replay.replay(name, &recorded(&directory, name)).await {
            failures.push(format!("{name}: {wrong}"));
        }
    }
    drop(simulation);
    sandbox.shutdown().await;
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}
