//! Simulated nodes that join a control plane which has none of its own.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may fail this way")]

mod sim;

use http::Method;
use sandbox::sim::{Nodes, SimConfig, connect};
use serde_json::{Value, json};
use sim::{Cluster, VMS, condition, items, vm, vmi_path};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_vm_runs_as_soon_as_nodes_join() {
    let cluster = Cluster::start(SimConfig { nodes: 0, ..SimConfig::default() }).await;
    cluster.call(Method::POST, VMS, vm("web", "Always")).await.unwrap();
    cluster.printable("web", "ErrorUnschedulable").await;
    let client = connect(&cluster.sandbox.kubeconfig()).await.unwrap();
    let nodes = Nodes::start(client, SimConfig { nodes: 2, seed: 7, ..SimConfig::default() }).await.unwrap();
    assert_eq!(nodes.names(), ["node01", "node02"]);
    cluster.printable("web", "Running").await;
    let first = cluster.get(&vmi_path("web")).await.unwrap()["status"]["nodeName"].clone();

    let object = json!({"apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstanceMigration",
        "metadata": {"name": "m"}, "spec": {"vmiName": "web"}});
    let path = "/apis/kubevirt.io/v1/namespaces/default/virtualmachineinstancemigrations";
    cluster.call(Method::POST, path, object).await.unwrap();
    let moved = |vmi: Option<&Value>| {
        vmi.is_some_and(|vmi| {
            vmi["status"]["nodeName"] != first && vmi["status"]["migrationState"]["completed"] == true
        })
    };
    let vmi = cluster.wait(&vmi_path("web"), "moved", moved).await.unwrap();
    let uid = vmi["metadata"]["uid"].clone();
    assert!(nodes.end_guest("default", "web", true));
    let again = |vmi: Option<&Value>| {
        vmi.is_some_and(|vmi| vmi["metadata"]["uid"] != uid && vmi["status"]["phase"] == "Running")
    };
    cluster.wait(&vmi_path("web"), "started again", again).await;
    drop(nodes);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_not_simulated_is_left_alone() {
    let cluster = Cluster::start(SimConfig { nodes: 0, ..SimConfig::default() }).await;
    let real = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node01"}});
    cluster.call(Method::POST, "/api/v1/nodes", real).await.unwrap();
    let client = connect(&cluster.sandbox.kubeconfig()).await.unwrap();
    let error = Nodes::start(client, SimConfig::default()).await.unwrap_err();
    let why = std::error::Error::source(&error).unwrap().to_string();
    assert_eq!(why, "the cluster has a node node01 that is not simulated");
    assert_eq!(items(&cluster.get("/api/v1/nodes").await.unwrap()).len(), 1);
    cluster.stop().await;
}

/// A node that is short of memory says so, takes nobody in, and ends its pods one by one, whatever budgets say.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_short_of_memory_evicts_its_pods_and_vms_start_elsewhere() {
    let cluster = Cluster::start(SimConfig { nodes: 2, ..SimConfig::default() }).await;
    cluster.call(Method::POST, VMS, vm("web", "Always")).await.unwrap();
    cluster.printable("web", "Running").await;
    let vmi = cluster.get(&vmi_path("web")).await.unwrap();
    let node = format!("/api/v1/nodes/{}", vmi["status"]["nodeName"].as_str().unwrap());
    let pressure =
        |what: Value| json!({"metadata": {"annotations": {"sandbox.vm-feature-manager.io/pressure": what}}});
    let says = |status: &'static str, tainted: bool| {
        move |node: Option<&Value>| {
            let node = node.unwrap();
            let taints = node["spec"]["taints"].as_array().map_or(&[][..], Vec::as_slice);
            let taint = taints.iter().any(|taint| taint["key"] == "node.kubernetes.io/memory-pressure");
            condition(node, "MemoryPressure").unwrap()["status"] == status && taint == tainted
        }
    };
    cluster.call(Method::PATCH, &node, pressure("memory".into())).await.unwrap();
    let evicted = |events: Option<&Value>| {
        let all = items(events.unwrap());
        all.iter().any(|event| {
            event["message"]
                .as_str()
                .unwrap()
                .starts_with("The node was low on resource: memory. Threshold quantity: 100Mi")
        })
    };
    let events = "/api/v1/namespaces/default/events?fieldSelector=reason%3DEvicted";
    cluster.wait(events, "evicted", evicted).await;
    cluster.wait(&node, "under pressure", says("True", true)).await;
    let elsewhere = |next: Option<&Value>| {
        next.is_some_and(|next| {
            next["metadata"]["uid"] != vmi["metadata"]["uid"]
                && next["status"]["phase"] == "Running"
                && next["status"]["nodeName"] != vmi["status"]["nodeName"]
        })
    };
    cluster.wait(&vmi_path("web"), "started elsewhere", elsewhere).await;
    cluster.call(Method::PATCH, &node, pressure(Value::Null)).await.unwrap();
    cluster.wait(&node, "well again", says("False", false)).await;
    cluster.stop().await;
}
