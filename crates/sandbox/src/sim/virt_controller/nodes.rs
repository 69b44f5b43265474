//! Nodes whose virt-handler is not heard of (`pkg/virt-controller/watch/node`, v1.9): no guest is started there, and
//! VMIs on them that have no pod any more have failed.

use std::sync::Arc;
use std::time::Duration;

use apimachinery::tree::{Value, json};
use jiff::{SignedDuration, Timestamp};
use tokio_util::sync::CancellationToken;

use super::Caches;
use super::vm::is_final;
use super::vmi::pod_is_down;
use crate::sim::client::ClientError;
use crate::sim::events::{Note, Recorder};
use crate::sim::identity::Identity;
use crate::sim::json::{self, list, name, text};
use crate::sim::queue::Queue;
use crate::sim::resource::{NODES, VMIS};
use crate::sim::virt_handler::heartbeat::{HEARTBEAT, SCHEDULABLE};
use crate::sim::write::{Op, Write, Writer};

const COMPONENT: &str = "node-controller";
const UNRESPONSIVE: &str = "NodeUnresponsive";
/// How often a node is looked at, whatever happens to it.
const INTERVAL: Duration = Duration::from_mins(1);

struct Nodes {
    writer: Writer,
    recorder: Recorder,
    caches: Caches,
    timeout: SignedDuration,
    who: Identity,
}

/// Looks at nodes until `stop`; without a heartbeat for `timeout` they are unresponsive.
pub fn start(
    writer: Writer,
    recorder: Recorder,
    caches: &Caches,
    timeout: Duration,
    stop: &CancellationToken,
) {
    let queue = Queue::default();
    let on_node = queue.clone();
    caches.nodes.on_change(move |change| on_node.add(change.key));
    let timeout = SignedDuration::try_from(timeout).unwrap_or(SignedDuration::MAX);
    let nodes = Arc::new(Nodes {
        writer,
        recorder,
        caches: caches.clone(),
        timeout,
        who: Identity::virt_controller(),
    });
    queue.run("node", 2, stop, move |key| {
        let nodes = nodes.clone();
        async move { nodes.reconcile(&key).await }
    });
}

impl Nodes {
    async fn reconcile(&self, key: &str) -> Result<Option<Duration>, ClientError> {
        let Some(node) = self.caches.nodes.get(key) else { return Ok(None) };
        if is_unresponsive(&node, self.timeout, self.writer.client.now()) {
            if json::label(&node, SCHEDULABLE) == "true" {
                let message = "virt-handler is not responsive, marking node as unresponsive";
                self.recorder.note(&self.who, COMPONENT, Note::normal(&node, UNRESPONSIVE, message));
                let body = json!({"metadata": {"labels": {SCHEDULABLE: "false"}}});
                let write = Write::to(&NODES, &node, "", Op::StrategicPatch(body));
                self.writer.write(&self.who, &write).await?;
            }
            self.fail_stuck(name(&node)).await?;
        }
        Ok(Some(INTERVAL))
    }

    /// Marks VMIs as failed that are said to run on a node and have no launcher there.
    async fn fail_stuck(&self, node: &str) -> Result<(), ClientError> {
        for vmi in self.caches.vmis.indexed(node) {
            let pods = self.caches.pods.indexed(json::uid(&vmi));
            if is_final(&vmi) || pods.iter().any(|pod| lives_on(pod, node)) {
                continue;
            }
            let message = format!("virt-handler on node {node} is not responsive, marking VMI as failed");
            self.recorder.note(&self.who, COMPONENT, Note::normal(&vmi, UNRESPONSIVE, message));
            let mut patch =
                Write::test_and_replace("/status/phase", &vmi["status"]["phase"], &"Failed".into()).to_vec();
            if text(&vmi, "/status/reason").is_empty() {
                patch.push(json!({"op": "add", "path": "/status/reason", "value": UNRESPONSIVE}));
            }
            let write = Write::to(&VMIS, &vmi, "", Op::JsonPatch(patch.into()));
            match self.writer.write(&self.who, &write).await {
                // Gone, or changed: the next look comes in a minute.
                Err(error) if matches!(error.code(), 404 | 409 | 422) => {}
                other => drop(other?),
            }
        }
        Ok(())
    }
}

/// A node without a heartbeat has never had a virt-handler, and is nobody's business.
fn is_unresponsive(node: &Value, timeout: SignedDuration, now: Timestamp) -> bool {
    let heard = json::annotation(node, HEARTBEAT).and_then(|at| at.parse::<Timestamp>().ok());
    heard.is_some_and(|at| now.duration_since(at) > timeout)
}

/// A pod that has not ended, nor all of its containers: those of a lost node often hang while they are deleted.
fn lives_on(pod: &Value, node: &str) -> bool {
    let containers = list(pod, "/status/containerStatuses");
    let all_ended = !containers.is_empty()
        && containers.iter().all(|one| one.pointer("/state/terminated").is_some_and(Value::is_object));
    text(pod, "/spec/nodeName") == node && !pod_is_down(pod) && !all_ended
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_unresponsive_five_minutes_after_its_last_heartbeat() {
        let now: Timestamp = "2026-01-01T00:10:00Z".parse().unwrap();
        let timeout = SignedDuration::from_mins(5);
        for (heartbeat, expected) in [
            (json!({}), false),
            (json!({HEARTBEAT: "2026-01-01T00:05:00Z"}), false),
            (json!({HEARTBEAT: "2026-01-01T00:04:59Z"}), true),
            (json!({HEARTBEAT: "yesterday"}), false),
        ] {
            let node = json!({"metadata": {"annotations": heartbeat}});
            assert_eq!(is_unresponsive(&node, timeout, now), expected, "{node}");
        }
    }

    #[test]
    fn a_pod_lives_until_its_containers_have_ended() {
        let pod = |phase: &str, state: Value| json!({"spec": {"nodeName": "n"}, "status": {"phase": phase, "containerStatuses": [{"state": state}]}});
        assert!(lives_on(&pod("Running", json!({"running": {}})), "n"));
        assert!(!lives_on(&pod("Running", json!({"running": {}})), "other"));
        assert!(!lives_on(&pod("Running", json!({"terminated": {}})), "n"));
        assert!(!lives_on(&pod("Failed", json!({"running": {}})), "n"));
    }
}
