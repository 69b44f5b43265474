//! What guests, pods and nodes use, as metrics-server and virt-handlers tell it.

#![allow(clippy::unwrap_used, clippy::panic)] // helpers of tests fail as tests do

mod sim;

use http::Method;
use sandbox::sim::SimConfig;
use serde_json::{Value, json};
use sim::{Cluster, items, vm};

fn sample(page: &str, name: &str, vm: &str) -> f64 {
    let labelled = format!("name=\"{vm}\"");
    let line = page.lines().find(|line| line.starts_with(&format!("{name}{{")) && line.contains(&labelled));
    line.and_then(|line| line.rsplit(' ').next()?.parse().ok())
        .unwrap_or_else(|| panic!("{name} of {vm}: {page}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_server_and_virt_handlers_tell_what_a_guest_uses() {
    let cluster = Cluster::start(SimConfig { nodes: 2, ..SimConfig::default() }).await;
    cluster.call(Method::POST, sim::VMS, vm("busy", "Always")).await.unwrap();
    cluster.printable("busy", "Running").await;
    let vmi = cluster.get(&sim::vmi_path("busy")).await.unwrap();
    let node = vmi["status"]["nodeName"].as_str().unwrap();

    let path = "/apis/metrics.k8s.io/v1beta1";
    let groups = cluster.get("/apis").await.unwrap();
    let named = groups["groups"].as_array().unwrap().iter().any(|group| group["name"] == "metrics.k8s.io");
    assert!(named, "kubectl top looks for the group");
    let nodes = cluster.get(&format!("{path}/nodes")).await.unwrap();
    assert_eq!((items(&nodes).len(), &nodes["kind"]), (2, &json!("NodeMetricsList")));
    assert!(items(&nodes)[0]["usage"]["cpu"].as_str().unwrap().ends_with('n'));
    let selected = format!("{path}/namespaces/default/pods?labelSelector=kubevirt.io%3Dvirt-launcher");
    let pods = cluster.get(&selected).await.unwrap();
    let launcher = &items(&pods)[0];
    assert_eq!(launcher["metadata"]["labels"]["vm.kubevirt.io/name"], "busy");
    let containers: Vec<&str> =
        launcher["containers"].as_array().unwrap().iter().map(|one| one["name"].as_str().unwrap()).collect();
    assert_eq!(containers, ["compute", "guest-console-log"]);
    let name = launcher["metadata"]["name"].as_str().unwrap();
    assert!(cluster.get(&format!("{path}/namespaces/default/pods/{name}")).await.is_some());
    let none = cluster.get(&format!("{path}/pods?labelSelector=no%3Dsuch")).await.unwrap();
    assert!(items(&none).is_empty());
    let (code, status) = cluster.raw(Method::GET, &format!("{path}/nodes/nowhere"), Value::Null).await;
    assert_eq!((code, &status["message"]), (404, &json!("nodes.metrics.k8s.io \"nowhere\" not found")));

    // As a scraper without Prometheus does it.
    let handlers = "/api/v1/namespaces/kubevirt/pods?labelSelector=kubevirt.io%3Dvirt-handler";
    let handlers = cluster.get(handlers).await.unwrap();
    let pod = items(&handlers).iter().find(|pod| pod["spec"]["nodeName"] == node).unwrap();
    let name = pod["metadata"]["name"].as_str().unwrap();
    let proxy = format!("/api/v1/namespaces/kubevirt/pods/https:{name}:8443/proxy/metrics");
    let (code, page) = cluster.raw(Method::GET, &proxy, Value::Null).await;
    assert_eq!(code, 200);
    let page = page.as_str().unwrap();
    for name in ["kubevirt_vmi_cpu_usage_seconds_total", "kubevirt_vmi_storage_read_traffic_bytes_total"] {
        assert!(sample(page, name, "busy") >= 0.0);
    }
    let (available, usable) = (
        sample(page, "kubevirt_vmi_memory_available_bytes", "busy"),
        sample(page, "kubevirt_vmi_memory_usable_bytes", "busy"),
    );
    assert!(usable > 0.0 && usable < available && available < 1_073_741_824.0);
    let other = items(&handlers).iter().find(|pod| pod["spec"]["nodeName"] != node).unwrap();
    let proxy = format!(
        "/api/v1/namespaces/kubevirt/pods/https:{}:8443/proxy/metrics",
        other["metadata"]["name"].as_str().unwrap()
    );
    let (_, page) = cluster.raw(Method::GET, &proxy, Value::Null).await;
    assert!(!page.as_str().unwrap().contains("name=\"busy\""), "another node's page");
    let closed = format!("/api/v1/namespaces/kubevirt/pods/https:{name}:9999/proxy/metrics");
    let (code, status) = cluster.raw(Method::GET, &closed, Value::Null).await;
    assert_eq!(code, 503);
    assert!(status["message"].as_str().unwrap().ends_with("connect: connection refused"), "{status}");
    cluster.stop().await;
}
