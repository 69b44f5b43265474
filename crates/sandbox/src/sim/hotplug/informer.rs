//! Attachment pods as virt-controller knows them: a watch cache that is behind by a set time, and what it waits to see
//! there (`pkg/controller/expectations.go`).

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use apimachinery::tree::Value;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::is_attachment;
use crate::sim::cache::Cache;
use crate::sim::json;

/// What a VMI's controller waits to see before it acts on its pods again.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
enum Expectation {
    #[default]
    None,
    Created(String),
    Deleted(String),
}

#[derive(Default)]
struct State {
    /// By uid of the pod.
    pods: BTreeMap<String, Arc<Value>>,
    /// By key of the VMI.
    expected: BTreeMap<String, Expectation>,
    /// Uids that have been seen to go.
    gone: std::collections::BTreeSet<String>,
}

/// A cache of attachment pods that is behind.
#[derive(Clone, Default)]
pub struct Informer(Arc<Mutex<State>>);

/// A pod as it was at some time, or that it has gone.
type Event = (Instant, Arc<Value>, bool);

/// Uids of pods that have gone which are remembered.
const MOST: usize = 10_000;

impl Informer {
    /// Follows `pods`, and calls `tell` with each attachment pod when it is known here.
    pub fn start(
        pods: &Arc<Cache>,
        lag: Duration,
        stop: &CancellationToken,
        tell: impl Fn(&Value) + Send + Sync + 'static,
    ) -> Self {
        let informer = Self::default();
        if lag.is_zero() {
            let at_once = informer.clone();
            pods.on_change(move |change| {
                if let Some(pod) = change.newest().filter(|pod| is_attachment(pod)) {
                    at_once.take(pod, change.new.is_none());
                    tell(pod);
                }
            });
            return informer;
        }
        let (sender, mut events) = mpsc::unbounded_channel::<Event>();
        pods.on_change(move |change| {
            if let Some(pod) = change.newest().filter(|pod| is_attachment(pod)) {
                // The receiver ends with the simulation.
                let _ = sender.send((Instant::now() + lag, pod.clone(), change.new.is_none()));
            }
        });
        let (behind, stop) = (informer.clone(), stop.clone());
        tokio::spawn(async move {
            while let Some((due, pod, gone)) = events.recv().await {
                tokio::select! {
                    biased;
                    () = stop.cancelled() => return,
                    () = tokio::time::sleep_until(due) => {}
                }
                behind.take(&pod, gone);
                tell(&pod);
            }
        });
        informer
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self, pod: &Arc<Value>, gone: bool) {
        let mut state = self.state();
        if gone {
            state.pods.remove(json::uid(pod));
            if state.gone.len() >= MOST {
                state.gone.clear();
            }
            state.gone.insert(json::uid(pod).to_owned());
        } else {
            state.pods.insert(json::uid(pod).to_owned(), pod.clone());
        }
    }

    /// The attachment pods of a launcher pod, oldest first.
    pub fn of(&self, launcher: &str) -> Vec<Arc<Value>> {
        let state = self.state();
        let mut found: Vec<Arc<Value>> =
            state.pods.values().filter(|pod| json::controller_uid(pod) == launcher).cloned().collect();
        found.sort_by_key(|pod| crate::sim::cache::version(pod));
        found.sort_by_key(|pod| json::text(pod, "/metadata/creationTimestamp").to_owned());
        found
    }

    /// Whether the controller of a VMI has seen what it has done last.
    pub fn is_satisfied(&self, vmi: &str) -> bool {
        let state = self.state();
        match state.expected.get(vmi) {
            None | Some(Expectation::None) => true,
            Some(Expectation::Created(uid)) => state.pods.contains_key(uid) || state.gone.contains(uid),
            Some(Expectation::Deleted(uid)) => !state.pods.contains_key(uid),
        }
    }

    /// The controller of a VMI has created a pod.
    pub fn expect_created(&self, vmi: &str, pod: &str) {
        self.state().expected.insert(vmi.to_owned(), Expectation::Created(pod.to_owned()));
    }

    /// It is about to delete a pod. What it waited for before is forgotten, also when the delete is refused
    /// (`ExpectDeletions` is `SetExpectations(0, 1)`): a pod that it has created in the same pass may then be created
    /// again.
    pub fn expect_deleted(&self, vmi: &str, pod: &str) {
        self.state().expected.insert(vmi.to_owned(), Expectation::Deleted(pod.to_owned()));
    }

    /// A delete was refused.
    pub fn forget(&self, vmi: &str) {
        self.state().expected.remove(vmi);
    }
}

#[cfg(test)]
mod tests {
    use apimachinery::tree::json;

    use super::*;

    fn pod(uid: &str) -> Arc<Value> {
        Arc::new(json!({"metadata": {"uid": uid, "ownerReferences": [{"controller": true, "uid": "l"}]}}))
    }

    #[test]
    fn a_controller_waits_until_it_sees_what_it_did() {
        let informer = Informer::default();
        informer.expect_created("n/v", "a");
        assert!(!informer.is_satisfied("n/v"));
        informer.take(&pod("a"), false);
        assert!(informer.is_satisfied("n/v"));
        informer.expect_deleted("n/v", "a");
        assert!(!informer.is_satisfied("n/v"));
        informer.take(&pod("a"), true);
        assert!(informer.is_satisfied("n/v") && informer.of("l").is_empty());
    }

    #[test]
    fn a_refused_delete_makes_it_forget_what_it_created() {
        let informer = Informer::default();
        informer.expect_created("n/v", "new");
        informer.expect_deleted("n/v", "old");
        informer.forget("n/v");
        assert!(informer.is_satisfied("n/v"), "W8: the next pass does not know of the new pod");
    }

    #[test]
    fn a_pod_that_came_and_went_is_seen() {
        let informer = Informer::default();
        informer.expect_created("n/v", "a");
        informer.take(&pod("a"), true);
        assert!(informer.is_satisfied("n/v"));
    }
}
