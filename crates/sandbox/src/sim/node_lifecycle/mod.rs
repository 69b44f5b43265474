//! What kube-controller-manager does about nodes that are not well (`pkg/controller/nodelifecycle`, `tainteviction`
//! and `podgc`, 1.36).
//!
//! ```text
//!  Lease and status, renewed ──nothing for 50 s──► Ready=Unknown ──► taints unreachable:NoSchedule, :NoExecute
//!        ▲                                             │                      │ after tolerationSeconds
//!        └────────── taints are taken off ◄── heard of again          pods are deleted, and stay Terminating
//!                                                                             │ node deleted, or out of service
//!                                                                       podgc removes them
//! ```
//! The API server taints every new node as not ready; this takes the taint off again.

mod bound;
mod collector;
mod eviction;
mod health;
pub mod taints;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use apimachinery::tree::{Value, json};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::cache::Cache;
use super::client::ClientError;
use super::events::Recorder;
use super::identity::Identity;
use super::json::{label, text};
use super::queue::Queue;
use super::resource::NODES;
use super::write::{Op, Write, Writer};
use bound::Bound;
use taints::{Eviction, readiness};

/// The name of this controller in Events.
const COMPONENT: &str = "node-controller";
/// A zone loses the pods of one node in this time (`--node-eviction-rate=0.1`).
const EVICTION_INTERVAL: Duration = Duration::from_secs(10);
/// The same of a large zone that is in trouble (`--secondary-node-eviction-rate=0.01`); a small one loses none.
const SLOW_EVICTION_INTERVAL: Duration = Duration::from_secs(100);
/// Zones with more nodes are large (`--large-cluster-size-threshold`).
const LARGE: usize = 50;

/// How long is waited for nodes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Times {
    /// How often nodes are looked at (`--node-monitor-period`).
    pub monitor: Duration,
    /// A node that is not heard of for so long is lost (`--node-monitor-grace-period`).
    pub grace: Duration,
    /// virt-controller takes a node whose virt-handler is not heard of for so long out of its hands.
    pub heartbeat: Duration,
}

impl Default for Times {
    fn default() -> Self {
        Self {
            monitor: Duration::from_secs(5),
            grace: Duration::from_secs(50),
            heartbeat: Duration::from_mins(5),
        }
    }
}

/// Starts the controllers.
pub fn start(
    writer: &Writer,
    recorder: &Recorder,
    (nodes, leases, pods): (&Arc<Cache>, &Arc<Cache>, &Arc<Cache>),
    times: Times,
    stop: &CancellationToken,
) {
    let bound = Bound::follow(pods);
    let queue = Queue::default();
    let on_node = queue.clone();
    nodes.on_change(move |change| on_node.add(change.key));
    let tainter =
        Arc::new(Tainter { writer: writer.clone(), nodes: nodes.clone(), permits: Mutex::default() });
    let again = times.monitor;
    queue.run("node-lifecycle", 2, stop, move |key| {
        let tainter = tainter.clone();
        async move { Ok::<_, ClientError>(tainter.reconcile(&key).await?.then_some(again)) }
    });
    health::start(writer, recorder, (nodes, leases, pods), &bound, times, stop);
    eviction::start(writer, recorder, (nodes, pods), &bound, stop);
    collector::start(writer, (nodes, pods), &bound, stop);
}

struct Tainter {
    writer: Writer,
    nodes: Arc<Cache>,
    /// When the next node of a zone may lose its pods.
    permits: Mutex<HashMap<String, Instant>>,
}

impl Tainter {
    /// Whether to look again soon.
    async fn reconcile(&self, key: &str) -> Result<bool, ClientError> {
        let Some(node) = self.nodes.get(key) else { return Ok(false) };
        let lost = matches!(readiness(&node), "False" | "Unknown");
        let eviction = if lost { self.may_evict(&node) } else { Eviction::Later };
        if let Some(taints) = taints::decide(&node, eviction, self.writer.client.now()) {
            let version = text(&node, "/metadata/resourceVersion");
            let patch = json!({"metadata": {"resourceVersion": version}, "spec": {"taints": taints}});
            let write = Write::to(&NODES, &node, "", Op::MergePatch(patch));
            self.writer.write(&Identity::node_controller(), &write).await?;
        }
        Ok(lost)
    }

    /// Whether this node may lose its pods now; saying so costs the zone its turn.
    fn may_evict(&self, node: &Value) -> Eviction {
        if !taints::evicting(node).is_empty() {
            return if self.nodes.all().iter().any(|one| readiness(one) == "True") {
                Eviction::Later
            } else {
                Eviction::Never
            };
        }
        let zone = zone(node);
        let (mut well, mut lost, mut elsewhere) = (0, 0, false);
        for other in self.nodes.all() {
            match readiness(&other) == "True" {
                true if self::zone(&other) == zone => well += 1,
                true => elsewhere = true,
                false if self::zone(&other) == zone => lost += 1,
                false => {}
            }
        }
        let Some(interval) = interval(well, lost, elsewhere) else {
            return if well == 0 && !elsewhere { Eviction::Never } else { Eviction::Later };
        };
        let now = Instant::now();
        let mut permits = self.permits.lock().unwrap_or_else(PoisonError::into_inner);
        let next = permits.entry(zone).or_insert(now);
        if *next > now {
            return Eviction::Later;
        }
        *next = now + interval;
        Eviction::Begin
    }
}

fn zone(node: &Value) -> String {
    let part = |key: &str| label(node, key).to_owned();
    format!("{}:\0:{}", part("topology.kubernetes.io/region"), part("topology.kubernetes.io/zone"))
}

/// How long a zone has to wait between nodes that lose their pods; `None`: none does (`ComputeZoneState`,
/// `handleDisruption`). `elsewhere`: a node of another zone is ready.
fn interval(well: usize, lost: usize, elsewhere: bool) -> Option<Duration> {
    let unhealthy = lost > 2 && lost * 100 >= (well + lost) * 55;
    match (well, elsewhere) {
        (0, false) => None,
        (0, true) => Some(EVICTION_INTERVAL),
        _ if unhealthy => (well + lost > LARGE).then_some(SLOW_EVICTION_INTERVAL),
        _ => Some(EVICTION_INTERVAL),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_zone_in_trouble_loses_its_pods_slowly_or_not_at_all() {
        for (well, lost, elsewhere, expected) in [
            (2, 1, false, Some(EVICTION_INTERVAL)),
            (0, 1, false, None),
            (0, 5, true, Some(EVICTION_INTERVAL)),
            (2, 3, true, None),
            (1, 2, false, Some(EVICTION_INTERVAL)),
            (40, 60, false, Some(SLOW_EVICTION_INTERVAL)),
            (60, 40, false, Some(EVICTION_INTERVAL)),
        ] {
            assert_eq!(interval(well, lost, elsewhere), expected, "{well} well, {lost} lost");
        }
    }
}
