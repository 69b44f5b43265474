//! Notes which nodes are heard of, by their Lease or their status, and says of the others that nothing is known of them
//! (`monitorNodeHealth`).

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use apimachinery::tree::{Value, json};
use jiff::Timestamp;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::bound::Bound;
use super::taints::readiness;
use super::{COMPONENT, Times};
use crate::sim::cache::Cache;
use crate::sim::events::{Note, Recorder};
use crate::sim::identity::Identity;
use crate::sim::json::{self, is_deleting, join_key, list, name, put, text, time};
use crate::sim::resource::{NODES, PODS};
use crate::sim::write::{Op, Write, Writer};

/// Where kubelets have their Leases.
const NAMESPACE: &str = "kube-node-lease";
/// What nothing is known of when a node is lost.
const CONDITIONS: [&str; 4] = ["Ready", "MemoryPressure", "DiskPressure", "PIDPressure"];

/// What was seen of one node.
struct Seen {
    /// The times in its Lease and in its `Ready` condition: they need not be right, they have to change.
    signs: (String, String),
    at: Instant,
    was_ready: bool,
}

struct Monitor {
    writer: Writer,
    recorder: Recorder,
    nodes: Arc<Cache>,
    leases: Arc<Cache>,
    pods: Arc<Cache>,
    bound: Arc<Bound>,
    times: Times,
    seen: HashMap<String, Seen>,
}

/// Looks at the nodes until `stop`.
pub fn start(
    writer: &Writer,
    recorder: &Recorder,
    (nodes, leases, pods): (&Arc<Cache>, &Arc<Cache>, &Arc<Cache>),
    bound: &Arc<Bound>,
    times: Times,
    stop: &CancellationToken,
) {
    let mut monitor = Monitor {
        writer: writer.clone(),
        recorder: recorder.clone(),
        nodes: nodes.clone(),
        leases: leases.clone(),
        pods: pods.clone(),
        bound: bound.clone(),
        times,
        seen: HashMap::new(),
    };
    let stop = stop.clone();
    tokio::spawn(async move {
        let mut last = Instant::now();
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = tokio::time::sleep(times.monitor) => {}
            }
            let late = last.elapsed().saturating_sub(times.monitor);
            last = Instant::now();
            monitor.look(late).await;
        }
    });
}

impl Monitor {
    /// Looks at every node. `late`: this look is overdue by so much, because the machine stood still or had too much to
    /// do; the kubelets were in the same place, so that time does not count against them.
    async fn look(&mut self, late: Duration) {
        for seen in self.seen.values_mut() {
            seen.at += late;
        }
        let nodes = self.nodes.all();
        self.seen.retain(|key, _| nodes.iter().any(|node| name(node) == key));
        for node in nodes {
            let silent = self.hear(&node);
            let lost = silent > self.times.grace;
            let unknown = if lost { unknown(&node, self.writer.client.now()) } else { None };
            let current = match unknown {
                None => node.clone(),
                Some(status) => match self.give_up(&node, status).await {
                    Some(node) => node,
                    // Somebody else wrote, or nobody answers: the next look comes soon.
                    None => continue,
                },
            };
            self.note(&current).await;
        }
    }

    /// How long nothing was heard of a node.
    fn hear(&mut self, node: &Value) -> Duration {
        let lease = self.leases.get(&join_key(NAMESPACE, name(node)));
        let renewed = lease.as_deref().map_or("", |lease| text(lease, "/spec/renewTime")).to_owned();
        let ready = json::condition(node, "/status/conditions", "Ready");
        let reported = ready.map_or("", |one| text(one, "/lastHeartbeatTime")).to_owned();
        let signs = (renewed, reported);
        let now = Instant::now();
        let seen = self.seen.entry(name(node).to_owned()).or_insert_with(|| Seen {
            signs: signs.clone(),
            at: now,
            was_ready: readiness(node) == "True",
        });
        if seen.signs != signs {
            seen.signs = signs;
            seen.at = now;
        }
        now.saturating_duration_since(seen.at)
    }

    async fn give_up(&self, node: &Arc<Value>, conditions: Vec<Value>) -> Option<Arc<Value>> {
        let mut lost = node.as_ref().clone();
        put(&mut lost, &["status", "conditions"], conditions);
        let write = Write::to(&NODES, node, "status", Op::Update(lost));
        match self.writer.write(&Identity::node_controller(), &write).await {
            Ok(written) => Some(written),
            Err(error) => {
                tracing::debug!(node = name(node), %error, "a lost node is not marked yet");
                None
            }
        }
    }

    /// Tells of a node that is not ready any more, and of its pods.
    async fn note(&mut self, node: &Value) {
        let is_ready = readiness(node) == "True";
        let Some(seen) = self.seen.get_mut(name(node)) else { return };
        if !std::mem::replace(&mut seen.was_ready, is_ready) || is_ready {
            return;
        }
        let who = Identity::node_controller();
        let message = format!("Node {} status is now: NodeNotReady", name(node));
        self.recorder.note(&who, COMPONENT, Note::normal(node, "NodeNotReady", message));
        for pod in self.bound.on(name(node), &self.pods) {
            let Some(unready) = unready(&pod, self.writer.client.now()) else { continue };
            let write = Write::to(&PODS, &pod, "status", Op::Update(unready));
            match self.writer.write(&who, &write).await {
                Ok(_) => {
                    let note = Note::warning(&pod, "NodeNotReady", "Node is not ready");
                    self.recorder.note(&who, COMPONENT, note);
                }
                Err(error) => {
                    tracing::debug!(pod = json::key(&pod), %error, "a pod on a lost node is not marked");
                }
            }
        }
    }
}

/// The conditions of a node that is not heard of, if they do not say so yet.
fn unknown(node: &Value, now: Timestamp) -> Option<Vec<Value>> {
    let mut conditions = list(node, "/status/conditions").to_vec();
    let before = conditions.clone();
    for kind in CONDITIONS {
        match conditions.iter_mut().find(|one| one["type"] == kind) {
            Some(there) if there["status"] == "Unknown" => {}
            Some(there) => {
                there["status"] = "Unknown".into();
                there["reason"] = "NodeStatusUnknown".into();
                there["message"] = "Kubelet stopped posting node status.".into();
                there["lastTransitionTime"] = time(now).into();
            }
            None => conditions.push(json!({"type": kind, "status": "Unknown", "reason": "NodeStatusNeverUpdated",
                "message": "Kubelet never posted node status.", "lastHeartbeatTime": text(node, "/metadata/creationTimestamp"),
                "lastTransitionTime": time(now)})),
        }
    }
    (conditions != before).then_some(conditions)
}

/// A pod that was ready, with `Ready` taken back (`MarkPodsNotReady`).
fn unready(pod: &Value, now: Timestamp) -> Option<Value> {
    if is_deleting(pod) && list(pod, "/status/conditions").is_empty() {
        return None;
    }
    let mut pod = pod.clone();
    let conditions = pod.pointer_mut("/status/conditions")?.as_array_mut()?;
    let ready = conditions.iter_mut().find(|one| one["type"] == "Ready" && one["status"] == "True")?;
    ready["status"] = "False".into();
    ready["lastTransitionTime"] = time(now).into();
    Some(pod)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_known_of_a_lost_node_and_that_is_said_once() {
        let now = Timestamp::UNIX_EPOCH;
        let node = json!({"metadata": {"creationTimestamp": "c"}, "status": {"conditions": [
            {"type": "Ready", "status": "True", "reason": "KubeletReady", "lastHeartbeatTime": "h"},
            {"type": "Mine", "status": "True"}]}});
        let conditions = unknown(&node, now).unwrap();
        let of = |kind: &str| conditions.iter().find(|one| one["type"] == kind).unwrap();
        assert_eq!(of("Mine")["status"], "True", "what is not kubelet's stays");
        assert_eq!(of("Ready")["reason"], "NodeStatusUnknown");
        assert_eq!(of("Ready")["lastHeartbeatTime"], "h", "it shows when it was heard of last");
        assert_eq!(of("DiskPressure")["reason"], "NodeStatusNeverUpdated");
        assert_eq!(unknown(&json!({"status": {"conditions": conditions}}), now), None);
    }

    #[test]
    fn only_pods_that_were_ready_are_marked() {
        let now = Timestamp::UNIX_EPOCH;
        let pod = |status: &str| json!({"status": {"conditions": [{"type": "Ready", "status": status}]}});
        let marked = unready(&pod("True"), now).unwrap();
        assert!(json::has_condition(&marked, "Ready", "False"));
        assert_eq!(unready(&pod("False"), now), None);
        assert_eq!(unready(&json!({}), now), None);
    }
}
