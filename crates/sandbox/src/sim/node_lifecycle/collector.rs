//! Takes pods away whose node cannot do it any more (`pkg/controller/podgc`): it is gone, or somebody says that nothing
//! runs there.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use apimachinery::tree::{Value, json};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::bound::Bound;
use super::taints::is_out_of_service;
use crate::sim::cache::Cache;
use crate::sim::client::ClientError;
use crate::sim::identity::Identity;
use crate::sim::json::{self, is_deleting, text, time};
use crate::sim::resource::{NODES, PODS};
use crate::sim::write::{Op, Write, Writer};

/// How often pods are looked at.
const PERIOD: Duration = Duration::from_secs(20);
/// A node that is gone may come back within this time.
const QUARANTINE: Duration = Duration::from_secs(40);

/// Takes pods away until `stop`.
pub fn start(
    writer: &Writer,
    (nodes, pods): (&Arc<Cache>, &Arc<Cache>),
    bound: &Arc<Bound>,
    stop: &CancellationToken,
) {
    let mut collector = Collector {
        writer: writer.clone(),
        nodes: nodes.clone(),
        pods: pods.clone(),
        bound: bound.clone(),
        missing: HashMap::new(),
    };
    let stop = stop.clone();
    tokio::spawn(async move {
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = tokio::time::sleep(PERIOD) => {}
            }
            if let Err(error) = collector.look().await {
                tracing::debug!(%error, "pods of nodes that are gone stay for now");
            }
        }
    });
}

struct Collector {
    writer: Writer,
    nodes: Arc<Cache>,
    pods: Arc<Cache>,
    bound: Arc<Bound>,
    /// Nodes that pods are bound to and that are not there, and since when that is known.
    missing: HashMap<String, Instant>,
}

impl Collector {
    async fn look(&mut self) -> Result<(), ClientError> {
        let bound = self.bound.to_nodes();
        self.missing.retain(|node, _| bound.contains(node));
        for name in bound {
            if let Some(node) = self.nodes.get(&name) {
                self.missing.remove(&name);
                if is_out_of_service(&node) {
                    for pod in self.bound.on(&name, &self.pods).iter().filter(|pod| is_deleting(pod)) {
                        self.take_away(pod, None).await?;
                    }
                }
                continue;
            }
            let since = *self.missing.entry(name.clone()).or_insert_with(Instant::now);
            if since.elapsed() < QUARANTINE || self.is_there(&name).await? {
                continue;
            }
            for pod in self.bound.on(&name, &self.pods) {
                self.take_away(&pod, Some("PodGC: node no longer exists")).await?;
            }
        }
        Ok(())
    }

    /// Whether the node is there after all: the cache may be behind.
    async fn is_there(&self, name: &str) -> Result<bool, ClientError> {
        match self.writer.client.get(None, &NODES.path("", name, "")).await {
            Ok(_) => Ok(true),
            Err(error) if error.code() == 404 => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Marks a pod as failed, unless it has ended, and deletes it at once.
    async fn take_away(&self, pod: &Value, disrupted: Option<&str>) -> Result<(), ClientError> {
        let mut writes = Vec::new();
        if !matches!(text(pod, "/status/phase"), "Succeeded" | "Failed") {
            let mut status = json!({"phase": "Failed"});
            if let Some(message) = disrupted {
                status["conditions"] = json!([{"type": "DisruptionTarget", "status": "True", "reason": "DeletionByPodGC",
                    "message": message, "lastProbeTime": null,
                    "lastTransitionTime": time(self.writer.client.now())}]);
            }
            let body = json!({"metadata": {"uid": json::uid(pod)}, "status": status});
            writes.push(Write::to(&PODS, pod, "status", Op::StrategicPatch(body)));
        }
        let options = json!({"kind": "DeleteOptions", "apiVersion": "v1", "gracePeriodSeconds": 0,
            "preconditions": {"uid": json::uid(pod)}});
        writes.push(Write::to(&PODS, pod, "", Op::Delete(options)));
        for write in writes {
            match self.writer.write(&Identity::pod_collector(), &write).await {
                // Gone, or another pod of the same name.
                Err(error) if matches!(error.code(), 404 | 409) => return Ok(()),
                other => other?,
            };
        }
        Ok(())
    }
}
