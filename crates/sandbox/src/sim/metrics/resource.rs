//! `metrics.k8s.io/v1beta1`: what pods and nodes use (metrics-server 0.8), so that `kubectl top` works. Of a launcher pod
//! that is QEMU's part, as everywhere: the memory is not what the guest uses.

use apimachinery::tree::{Value, json};
use jiff::Timestamp;

use super::load::Load;
use crate::sim::json::{self, list, time};

pub const GROUP: &str = "metrics.k8s.io";
pub const VERSION: &str = "v1beta1";
const WINDOW: &str = "15s";
/// What a node uses by itself: CPUs and bytes.
const SYSTEM: (f64, f64) = (0.25, 2.0 * 1_073_741_824.0);

/// The resources of the group, for discovery.
pub fn resources() -> Value {
    let resource = |name: &str, kind: &str, namespaced: bool| json!({"name": name, "singularName": "", "namespaced": namespaced, "kind": kind, "verbs": ["get", "list"]});
    json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": format!("{GROUP}/{VERSION}"),
        "resources": [resource("nodes", "NodeMetrics", false), resource("pods", "PodMetrics", true)]})
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "amounts that are in use")]
fn usage(cpus: f64, bytes: f64) -> Value {
    json!({"cpu": format!("{}n", (cpus * 1e9) as u64), "memory": format!("{}Ki", (bytes / 1024.0) as u64)})
}

fn metadata(object: &Value) -> Value {
    let mut metadata =
        json!({"name": json::name(object), "creationTimestamp": object["metadata"]["creationTimestamp"]});
    if !json::namespace(object).is_empty() {
        metadata["namespace"] = json::namespace(object).into();
    }
    if let Some(labels) = object.pointer("/metadata/labels") {
        metadata["labels"] = labels.clone();
    }
    metadata
}

/// What a pod uses. `load` is that of the guest in it.
pub fn pod(pod: &Value, load: Option<&Load>, now: Timestamp) -> Value {
    let mut containers: Vec<Value> = list(pod, "/spec/containers")
        .iter()
        .map(|container| {
            let name = &container["name"];
            let used = match load.filter(|_| name == "compute") {
                Some(load) => usage(load.cpus(), load.resident()),
                None => usage(0.002, 12.0 * 1_048_576.0),
            };
            json!({"name": name, "usage": used})
        })
        .collect();
    let sidecars = list(pod, "/spec/initContainers").iter().filter(|one| one["restartPolicy"] == "Always");
    containers
        .extend(sidecars.map(|one| json!({"name": one["name"], "usage": usage(0.001, 2.0 * 1_048_576.0)})));
    json!({"kind": "PodMetrics", "apiVersion": format!("{GROUP}/{VERSION}"), "metadata": metadata(pod),
        "timestamp": time(now), "window": WINDOW, "containers": containers})
}

/// What a node uses: its guests, and itself.
pub fn node(node: &Value, loads: &[Load], now: Timestamp) -> Value {
    let cpus: f64 = loads.iter().map(Load::cpus).sum();
    let memory: f64 = loads.iter().map(Load::resident).sum();
    json!({"kind": "NodeMetrics", "apiVersion": format!("{GROUP}/{VERSION}"), "metadata": metadata(node),
        "timestamp": time(now), "window": WINDOW, "usage": usage(SYSTEM.0 + cpus, SYSTEM.1 + memory)})
}

/// A list of either.
pub fn listed(kind: &str, items: &[Value]) -> Value {
    json!({"kind": format!("{kind}List"), "apiVersion": format!("{GROUP}/{VERSION}"), "metadata": {}, "items": items})
}
