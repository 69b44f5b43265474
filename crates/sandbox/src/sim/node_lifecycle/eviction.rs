//! Pods that do not tolerate a `NoExecute` taint of their node, or not for ever, are deleted (`tainteviction`).

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use apimachinery::tree::{Value, json};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::bound::Bound;
use super::taints::evicting;
use crate::sim::cache::Cache;
use crate::sim::client::ClientError;
use crate::sim::events::{Note, Recorder};
use crate::sim::identity::Identity;
use crate::sim::json::{self, is_deleting, list, text, time};
use crate::sim::queue::Queue;
use crate::sim::resource::PODS;
use crate::sim::write::{Op, Write, Writer};

const COMPONENT: &str = "taint-eviction-controller";

/// What a pod thinks of the taints of its node.
#[derive(Debug, Eq, PartialEq)]
enum Patience {
    /// It stays.
    Endless,
    /// It goes after this time.
    For(Duration),
}

struct Evictor {
    writer: Writer,
    recorder: Recorder,
    nodes: Arc<Cache>,
    pods: Arc<Cache>,
    bound: Arc<Bound>,
    /// By node.
    since: Mutex<HashMap<String, Since>>,
}

/// Since when pods bear with their node, by key and uid.
type Since = BTreeMap<(String, String), Instant>;

/// Deletes pods until `stop`.
pub fn start(
    writer: &Writer,
    recorder: &Recorder,
    (nodes, pods): (&Arc<Cache>, &Arc<Cache>),
    bound: &Arc<Bound>,
    stop: &CancellationToken,
) {
    let queue = Queue::default();
    let tainted: Arc<Mutex<HashSet<String>>> = Arc::default();
    let locked = |set: &Mutex<HashSet<String>>, work: &mut dyn FnMut(&mut HashSet<String>) -> bool| {
        work(&mut set.lock().unwrap_or_else(PoisonError::into_inner))
    };
    let (on_node, marked) = (queue.clone(), tainted.clone());
    nodes.on_change(move |change| {
        let bad = change.new.is_some_and(|node| !evicting(node).is_empty());
        let changed = locked(&marked, &mut |set| {
            if bad { set.insert(change.key.to_owned()) } else { set.remove(change.key) }
        });
        if bad || changed {
            on_node.add(change.key);
        }
    });
    let on_pod = queue.clone();
    pods.on_change(move |change| {
        let node = change.new.map_or("", |pod| text(pod, "/spec/nodeName"));
        if locked(&tainted, &mut |set| set.contains(node)) {
            on_pod.add(node);
        }
    });
    let evictor = Arc::new(Evictor {
        writer: writer.clone(),
        recorder: recorder.clone(),
        nodes: nodes.clone(),
        pods: pods.clone(),
        bound: bound.clone(),
        since: Mutex::default(),
    });
    queue.run(COMPONENT, 2, stop, move |node| {
        let evictor = evictor.clone();
        async move { evictor.reconcile(&node).await }
    });
}

impl Evictor {
    fn since(&self) -> MutexGuard<'_, HashMap<String, Since>> {
        self.since.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn reconcile(&self, node: &str) -> Result<Option<Duration>, ClientError> {
        let taints = self.nodes.get(node).map(|node| evicting(&node)).unwrap_or_default();
        if taints.is_empty() {
            for ((key, uid), _) in self.since().remove(node).unwrap_or_default() {
                self.cancelled(&key, &uid);
            }
            return Ok(None);
        }
        let mut next: Option<Duration> = None;
        for pod in self.bound.on(node, &self.pods) {
            if is_deleting(&pod) {
                continue;
            }
            let id = (json::key(&pod), json::uid(&pod).to_owned());
            let Patience::For(patience) = patience(&pod, &taints) else {
                if self.since().get_mut(node).and_then(|pods| pods.remove(&id)).is_some() {
                    self.cancelled(&id.0, &id.1);
                }
                continue;
            };
            let begun =
                *self.since().entry(node.to_owned()).or_default().entry(id).or_insert_with(Instant::now);
            let left = patience.saturating_sub(begun.elapsed());
            if left.is_zero() {
                self.evict(&pod).await?;
            } else {
                next = Some(next.map_or(left, |next| next.min(left)));
            }
        }
        Ok(next)
    }

    async fn evict(&self, pod: &Value) -> Result<(), ClientError> {
        let who = Identity::node_controller();
        let message = format!("Marking for deletion Pod {}", json::key(pod));
        self.recorder.note(&who, COMPONENT, Note::normal(pod, "TaintManagerEviction", message));
        let condition = json!({"type": "DisruptionTarget", "status": "True", "reason": "DeletionByTaintManager",
            "message": "Taint manager: deleting due to NoExecute taint",
            "lastProbeTime": null, "lastTransitionTime": time(self.writer.client.now())});
        let body = json!({"metadata": {"uid": json::uid(pod)}, "status": {"conditions": [condition]}});
        for write in [
            Write::to(&PODS, pod, "status", Op::StrategicPatch(body)),
            Write::to(&PODS, pod, "", Op::Delete(Value::Null)),
        ] {
            match self.writer.write(&who, &write).await {
                // Gone, or another pod of the same name.
                Err(error) if matches!(error.code(), 404 | 409) => return Ok(()),
                other => other?,
            };
        }
        Ok(())
    }

    fn cancelled(&self, key: &str, uid: &str) {
        let Some(pod) = self.pods.get(key).filter(|pod| json::uid(pod) == uid && !is_deleting(pod)) else {
            return;
        };
        let note = Note::normal(&pod, "TaintManagerEviction", format!("Cancelling deletion of Pod {key}"));
        self.recorder.note(&Identity::node_controller(), COMPONENT, note);
    }
}

/// How long a pod bears with taints: as long as the least of the tolerations that it needs for them.
fn patience(pod: &Value, taints: &[Value]) -> Patience {
    let tolerations = list(pod, "/spec/tolerations");
    let mut least: Option<u64> = None;
    for taint in taints {
        let Some(toleration) = tolerations.iter().find(|toleration| tolerates(toleration, taint)) else {
            return Patience::For(Duration::ZERO);
        };
        if let Some(seconds) = toleration["tolerationSeconds"].as_i64() {
            let seconds = u64::try_from(seconds).unwrap_or(0);
            least = Some(least.map_or(seconds, |least| least.min(seconds)));
        }
    }
    least.map_or(Patience::Endless, |seconds| Patience::For(Duration::from_secs(seconds)))
}

fn tolerates(toleration: &Value, taint: &Value) -> bool {
    let (key, effect) = (text(toleration, "/key"), text(toleration, "/effect"));
    let exists = text(toleration, "/operator") == "Exists";
    (effect.is_empty() || taint["effect"] == effect)
        && (taint["key"] == key || (key.is_empty() && exists))
        && (exists || text(toleration, "/value") == text(taint, "/value"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_bears_with_taints_as_long_as_it_says() {
        let taint = |key: &str| json!({"key": key, "effect": "NoExecute"});
        let bears = |key: &str, seconds: Option<i64>| {
            let mut toleration = json!({"key": key, "operator": "Exists", "effect": "NoExecute"});
            if let Some(seconds) = seconds {
                toleration["tolerationSeconds"] = seconds.into();
            }
            toleration
        };
        let now = || Patience::For(Duration::ZERO);
        let for_secs = |seconds| Patience::For(Duration::from_secs(seconds));
        for (tolerations, taints, expected) in [
            (json!([]), vec![taint("a")], now()),
            (json!([bears("a", Some(300))]), vec![taint("a")], for_secs(300)),
            (json!([bears("a", None)]), vec![taint("a")], Patience::Endless),
            (json!([bears("a", Some(300)), bears("b", Some(7))]), vec![taint("a"), taint("b")], for_secs(7)),
            (json!([bears("a", None)]), vec![taint("a"), taint("b")], now()),
            (json!([bears("a", Some(-1))]), vec![taint("a")], now()),
            (json!([{"operator": "Exists"}]), vec![taint("a"), taint("b")], Patience::Endless),
            (json!([{"key": "a", "value": "x"}]), vec![taint("a")], now()),
        ] {
            let pod = json!({"spec": {"tolerations": tolerations}});
            assert_eq!(patience(&pod, &taints), expected, "{pod}");
        }
    }
}
