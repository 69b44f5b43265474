//! The part of kube-controller-manager's node lifecycle controller that lets pods onto nodes:
//! taints follow conditions (`pkg/controller/nodelifecycle`, `TaintNodesByCondition`, 1.36). The
//! API server taints every new node as not ready; this takes the taint off again.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::cache::Cache;
use super::client::ClientError;
use super::identity::Identity;
use super::json::{self, list, text};
use super::queue::Queue;
use super::resource::NODES;
use super::write::{Op, Write, Writer};

/// A condition's status and the taint that goes with it.
const TAINTS: [(&str, &str, &str); 6] = [
    ("Ready", "False", "node.kubernetes.io/not-ready"),
    ("Ready", "Unknown", "node.kubernetes.io/unreachable"),
    ("MemoryPressure", "True", "node.kubernetes.io/memory-pressure"),
    ("DiskPressure", "True", "node.kubernetes.io/disk-pressure"),
    ("PIDPressure", "True", "node.kubernetes.io/pid-pressure"),
    ("NetworkUnavailable", "True", "node.kubernetes.io/network-unavailable"),
];
const CORDONED: &str = "node.kubernetes.io/unschedulable";

/// Starts the controller.
pub fn start(writer: Writer, nodes: &Arc<Cache>, stop: &CancellationToken) {
    let queue = Queue::default();
    let on_node = queue.clone();
    nodes.on_change(move |change| on_node.add(change.key));
    let nodes = nodes.clone();
    queue.run("node-lifecycle", 2, stop, move |key| {
        let (nodes, writer) = (nodes.clone(), writer.clone());
        async move { reconcile(&nodes, &writer, &key).await }
    });
}

async fn reconcile(nodes: &Cache, writer: &Writer, key: &str) -> Result<Option<Duration>, ClientError> {
    let Some(node) = nodes.get(key) else { return Ok(None) };
    if let Some(taints) = decide(&node) {
        let version = text(&node, "/metadata/resourceVersion");
        let patch = json!({"metadata": {"resourceVersion": version}, "spec": {"taints": taints}});
        let write = Write::to(&NODES, &node, "", Op::MergePatch(patch));
        writer.write(&Identity::node_controller(), &write).await?;
    }
    Ok(None)
}

/// The taints that a node should have, if it has others. A node without conditions is not ready.
fn decide(node: &Value) -> Option<Vec<Value>> {
    let old = list(node, "/spec/taints");
    let status = |kind: &str| {
        json::condition(node, "/status/conditions", kind)
            .map_or(if kind == "Ready" { "False" } else { "" }, |one| text(one, "/status"))
    };
    let mut wanted: Vec<&str> =
        TAINTS.iter().filter(|(kind, bad, _)| status(kind) == *bad).map(|(_, _, taint)| *taint).collect();
    if node.pointer("/spec/unschedulable") == Some(&Value::Bool(true)) {
        wanted.push(CORDONED);
    }
    // Evicting taints (`NoExecute`) and those of others stay as they are.
    let ours = |taint: &&Value| {
        let key = text(taint, "/key");
        taint["effect"] == "NoSchedule" && (key == CORDONED || TAINTS.iter().any(|(_, _, one)| *one == key))
    };
    let mut new: Vec<Value> =
        old.iter().filter(|taint| !ours(taint) || wanted.contains(&text(taint, "/key"))).cloned().collect();
    for key in wanted {
        if !new.iter().any(|taint| ours(&taint) && taint["key"] == key) {
            new.push(json!({"key": key, "effect": "NoSchedule"}));
        }
    }
    (new != old).then_some(new)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn taints_follow_conditions_and_those_of_others_stay() {
        let taint = |key: &str, effect: &str| json!({"key": key, "effect": effect});
        let not_ready = || taint("node.kubernetes.io/not-ready", "NoSchedule");
        let ready = |status: &str| json!([{"type": "Ready", "status": status}]);
        for (taints, conditions, cordoned, expected) in [
            (json!([not_ready()]), ready("True"), false, Some(vec![])),
            (json!([not_ready()]), ready("False"), false, None),
            (json!([]), json!([]), false, Some(vec![not_ready()])),
            (
                json!([]),
                ready("Unknown"),
                false,
                Some(vec![taint("node.kubernetes.io/unreachable", "NoSchedule")]),
            ),
            (
                json!([taint("mine", "NoSchedule"), taint("node.kubernetes.io/not-ready", "NoExecute")]),
                ready("True"),
                false,
                None,
            ),
            (json!([]), ready("True"), true, Some(vec![taint(CORDONED, "NoSchedule")])),
            (json!([taint(CORDONED, "NoSchedule")]), ready("True"), false, Some(vec![])),
        ] {
            let node = json!({"spec": {"taints": taints, "unschedulable": cordoned}, "status": {"conditions": conditions}});
            assert_eq!(decide(&node), expected, "{node}");
        }
    }
}
