//! Recorded answers of virt-api, through the API server: the simulated one gives the same.

use sandbox::sim::{SimConfig, Simulation, connect};
use sandbox::{Options, Sandbox};

use crate::{Replay, recorded, recordings};

const RECORDINGS: [&str; 5] = [
    "crd-07-schema-violation",
    "crd-08-kubevirt-webhook-denies",
    "crd-10-subresource-aggregated",
    "crd-11-subresource-start-404",
    "discovery-06-subresources",
];
const NAMESPACE: &str = r#"{"apiVersion":"v1","kind":"Namespace","metadata":{"name":"golden"}}"#;
const VM: &str = r#"{"apiVersion":"kubevirt.io/v1","kind":"VirtualMachine","metadata":{"name":"v"},
    "spec":{"runStrategy":"Halted","template":{"spec":{"domain":{"memory":{"guest":"1Gi"},"devices":{}}}}}}"#;

#[tokio::test(flavor = "multi_thread")]
async fn recorded_answers_of_virt_api_replay() {
    let Some(directory) = recordings() else { return };
    let sandbox = Sandbox::start(Options::default()).await.unwrap();
    let client = connect(&sandbox.kubeconfig()).await.unwrap();
    let simulation = Simulation::start(client, SimConfig { nodes: 1, ..SimConfig::default() }).await.unwrap();
    let mut replay = Replay::against(&sandbox).await;
    replay.fill("POST", "/api/v1/namespaces", "application/json", NAMESPACE, &[]).await;
    let vms = "/apis/kubevirt.io/v1/namespaces/golden/virtualmachines";
    replay.fill("POST", vms, "application/json", VM, &[]).await;
    let mut failures = Vec::new();
    for name in RECORDINGS {
        for wrong in replay.replay(name, &recorded(&directory, name)).await {
            failures.push(format!("{name}: {wrong}"));
        }
    }
    drop(simulation);
    sandbox.shutdown().await;
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}
