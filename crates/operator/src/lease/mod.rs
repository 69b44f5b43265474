//! One worker among the replicas: the holder of a Lease (`coordination.k8s.io/v1`).
//!
//! ```text
//!            free, or unchanged for its duration
//!  follow ────────────────────────────────────────► take ── written ──► hold ──► work
//!    ▲                                                │                  │ renew every `retry`
//!    └──────────── somebody was faster (409) ─────────┘                  │
//!    └──────────── taken over, or not renewed for `deadline`: work ends ◄┘
//! ```
//!
//! Every write carries the `resourceVersion` that was read, so of two that try one is refused.

mod decide;

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

pub use decide::{Seen, Step, Terms, decide, held, released};

use crate::clock::Clock;
use crate::kubernetes::{Raw, RawError};

/// How long a worker may take to end once it has lost the Lease or is told to stop.
const PATIENCE: Duration = Duration::from_secs(5);

/// A Lease and the replica that wants it.
pub struct Lease {
    api: Raw,
    namespace: String,
    name: String,
    me: String,
    terms: Terms,
    clock: Clock,
}

impl Lease {
    /// The Lease `namespace/name`, for the replica called `me` (a pod's name).
    pub fn new(api: Raw, namespace: String, name: String, me: String, terms: Terms, clock: Clock) -> Self {
        Self { api, namespace, name, me, terms, clock }
    }

    /// Does `work` whenever the Lease is ours, until `stop`. The token that `work` gets is cancelled
    /// when the Lease is lost or `stop` comes; `work` has to end then, and is dropped if it does not.
    pub async fn lead<F>(&self, stop: &CancellationToken, mut work: impl FnMut(CancellationToken) -> F)
    where
        F: Future<Output = ()>,
    {
        let mut seen = Memory::default();
        while !stop.is_cancelled() {
            if self.attempt(&mut seen).await {
                tracing::info!(lease = self.name, identity = self.me, "leading");
                let leading = CancellationToken::new();
                let mut working = std::pin::pin!(work(leading.clone()));
                let ended = tokio::select! {
                    () = &mut working => true,
                    () = self.keep(&mut seen) => false,
                    () = stop.cancelled() => false,
                };
                leading.cancel();
                if !ended {
                    let _ = tokio::time::timeout(PATIENCE, working).await;
                }
                tracing::info!(lease = self.name, identity = self.me, "no longer leading");
                if stop.is_cancelled() {
                    self.release(&mut seen).await;
                }
            }
            tokio::select! {
                () = stop.cancelled() => {}
                () = tokio::time::sleep(self.terms.retry) => {}
            }
        }
    }

    /// Renews until the Lease is another's, or could not be renewed for too long.
    async fn keep(&self, seen: &mut Memory) {
        let mut renewed = Instant::now();
        while renewed.elapsed() < self.terms.deadline {
            tokio::time::sleep(self.terms.retry).await;
            if tokio::time::timeout(self.terms.deadline, self.attempt(seen)).await.unwrap_or(false) {
                renewed = Instant::now();
            } else if seen
                .latest
                .as_ref()
                .is_some_and(|(lease, _)| lease["spec"]["holderIdentity"] != *self.me)
            {
                return;
            }
        }
    }

    /// Reads the Lease and writes what has to be written; whether it is ours afterwards.
    async fn attempt(&self, seen: &mut Memory) -> bool {
        match self.try_once(seen).await {
            Ok(ours) => ours,
            Err(error) => {
                tracing::debug!(lease = self.name, %error, "the lease could not be written");
                false
            }
        }
    }

    async fn try_once(&self, memory: &mut Memory) -> Result<bool, RawError> {
        let now = (self.clock)();
        let found = match self.api.get(&self.path()).await {
            Ok(lease) => Some(lease),
            Err(error) if error.code() == Some(404) => None,
            Err(error) => return Err(error),
        };
        let seen = memory.note(found, Instant::now());
        let spec = held(seen.as_ref(), &self.me, &self.terms, now);
        let written = match decide(seen.as_ref(), &self.me) {
            Step::Follow => return Ok(false),
            Step::Create => {
                let lease = json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
                    "metadata": {"name": self.name, "namespace": self.namespace}, "spec": spec});
                self.api.create(&self.collection(), &lease).await?
            }
            Step::Take | Step::Renew => self.api.merge(&self.path(), &guarded(seen.as_ref(), &spec)).await?,
        };
        memory.note(Some(written), Instant::now());
        Ok(true)
    }

    async fn release(&self, memory: &mut Memory) {
        let Some((lease, _)) = memory.latest.take() else { return };
        let seen = Seen { lease, unchanged: Duration::ZERO };
        let patch = guarded(Some(&seen), &released((self.clock)()));
        // when it fails, the next holder waits for the duration
        let _ = tokio::time::timeout(PATIENCE, self.api.merge(&self.path(), &patch)).await;
    }

    fn collection(&self) -> String {
        format!("/apis/coordination.k8s.io/v1/namespaces/{}/leases", self.namespace)
    }

    fn path(&self) -> String {
        format!("{}/{}", self.collection(), self.name)
    }
}

fn guarded(seen: Option<&Seen>, spec: &Value) -> Value {
    let version = seen.map_or(&Value::Null, |seen| &seen.lease["metadata"]["resourceVersion"]);
    json!({"metadata": {"resourceVersion": version}, "spec": spec})
}

/// The Lease as it was last read, and when it was first read so.
#[derive(Default)]
struct Memory {
    latest: Option<(Value, Instant)>,
}

impl Memory {
    fn note(&mut self, found: Option<Value>, now: Instant) -> Option<Seen> {
        let version = |lease: &Value| lease["metadata"]["resourceVersion"].clone();
        let since = match (&self.latest, &found) {
            (Some((known, since)), Some(found)) if version(known) == version(found) => *since,
            _ => now,
        };
        self.latest = found.map(|lease| (lease, since));
        self.latest
            .as_ref()
            .map(|(lease, since)| Seen { lease: lease.clone(), unchanged: now.duration_since(*since) })
    }
}
