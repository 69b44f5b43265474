//! Interfaces that come to running VMs, go, and change their link.

#![allow(clippy::unwrap_used, clippy::panic)] // helpers of tests fail as tests do

mod sim;

use http::Method;
use sandbox::sim::SimConfig;
use serde_json::{Value, json};
use sim::{Cluster, items, vm, vm_path, vmi_path};

fn interface<'a>(vmi: &'a Value, name: &str) -> Option<&'a Value> {
    vmi["status"]["interfaces"].as_array()?.iter().find(|one| one["name"] == name)
}

fn with(state: Option<&str>, binding: &str) -> Value {
    let mut blue = json!({"name": "blue", binding: {}});
    if let Some(state) = state {
        blue["state"] = state.into();
    }
    json!({"spec": {"template": {"spec": {
        "domain": {"devices": {"interfaces": [{"name": "default", "masquerade": {}}, blue]}},
        "networks": [{"name": "default", "pod": {}}, {"name": "blue", "multus": {"networkName": "blue-net"}}]}}}})
}

#[tokio::test(flavor = "multi_thread")]
async fn an_sriov_interface_comes_by_migration_goes_down_in_place_and_leaves_again() {
    let cluster = Cluster::start(SimConfig { nodes: 3, ..SimConfig::default() }).await;
    let definition = json!({"apiVersion": "k8s.cni.cncf.io/v1", "kind": "NetworkAttachmentDefinition",
        "metadata": {"name": "blue-net", "namespace": "default"}, "spec": {"config": "{}"}});
    let definitions = "/apis/k8s.cni.cncf.io/v1/namespaces/default/network-attachment-definitions";
    cluster.call(Method::POST, definitions, definition).await.unwrap();
    cluster.call(Method::POST, sim::VMS, vm("net", "Always")).await.unwrap();
    cluster.printable("net", "Running").await;
    let before = cluster.get(&vmi_path("net")).await.unwrap();
    cluster.call(Method::PATCH, &vm_path("net"), with(None, "sriov")).await.unwrap();
    let arrived = |vmi: Option<&Value>| {
        vmi.is_some_and(|vmi| {
            let source = interface(vmi, "blue").and_then(|one| one["infoSource"].as_str());
            source.is_some_and(|source| source.contains("domain") && source.contains("multus-status"))
        })
    };
    let vmi = cluster.wait(&vmi_path("net"), "with the new interface", arrived).await.unwrap();
    assert_ne!(vmi["status"]["nodeName"], before["status"]["nodeName"], "only another pod has the network");
    let migrations = cluster
        .get("/apis/kubevirt.io/v1/namespaces/default/virtualmachineinstancemigrations")
        .await
        .unwrap();
    assert!(
        items(&migrations)[0]["metadata"]["name"].as_str().unwrap().starts_with("kubevirt-workload-update-")
    );
    let settled =
        |vmi: Option<&Value>| vmi.is_some_and(|vmi| sim::condition(vmi, "MigrationRequired").is_none());
    cluster.wait(&vmi_path("net"), "settled", settled).await;

    cluster.call(Method::PATCH, &vm_path("net"), with(Some("down"), "sriov")).await.unwrap();
    let down = |vmi: Option<&Value>| {
        vmi.is_some_and(|vmi| interface(vmi, "blue").is_some_and(|one| one["linkState"] == "down"))
    };
    let vmi = cluster.wait(&vmi_path("net"), "down", down).await.unwrap();
    assert_eq!(vmi["spec"]["domain"]["devices"]["interfaces"][1]["state"], "down");

    cluster.call(Method::PATCH, &vm_path("net"), with(Some("absent"), "sriov")).await.unwrap();
    let unplugged = |vmi: Option<&Value>| {
        vmi.is_some_and(|vmi| interface(vmi, "blue").is_none_or(|one| one["infoSource"] == "multus-status"))
    };
    cluster.wait(&vmi_path("net"), "without it in the guest", unplugged).await;
    let vm = cluster.get(&vm_path("net")).await.unwrap();
    assert!(sim::condition(&vm, "RestartRequired").is_none());

    // What cannot be plugged waits for a restart.
    let changed = json!({"spec": {"template": {"spec": {"domain": {"devices": {"interfaces": [
        {"name": "default", "masquerade": {}, "model": "e1000"}]}}, "networks": [{"name": "default", "pod": {}}]}}}});
    cluster.call(Method::PATCH, &vm_path("net"), changed).await.unwrap();
    let restart = |vm: Option<&Value>| vm.is_some_and(|vm| sim::condition(vm, "RestartRequired").is_some());
    cluster.wait(&vm_path("net"), "marked", restart).await;
    cluster.stop().await;
}
