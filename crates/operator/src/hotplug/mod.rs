//! The guard and the gate of hotplugged volumes, as webhooks.
//!
//! ```text
//!  review ─► what is asked ─► observe (live reads) ─► hotplug::guard / gate ─► answer
//!                │                  ▲                        │
//!                │                  └── read again ◄── 409 ──┤ record: grant or denial, in a Lease of
//!                └─ no reads where the pod itself decides    ┘ the launcher, by resourceVersion
//! ```
//!
//! Reads are live, since the defect to be repaired is a decision on a cache. Of two replicas that
//! grant at the same time one loses the write of the record and looks again.

mod answer;
mod ask;
mod lease;
mod observe;
mod sweep;

use std::sync::Arc;
use std::time::Duration;

use hotplug::policy::Limits;
use parking_lot::Mutex;
use serde_json::Value;

pub use answer::Answer;
use ask::{Ask, Question};
pub use observe::Unreadable;
pub use sweep::{follow_denials, heal};

use crate::clock::Clock;
use crate::kubernetes::Raw;
use crate::telemetry::Metrics;

/// The paths on the webhook port.
pub const GUARD: &str = "/guard";
/// See [`GUARD`].
pub const GATE: &str = "/gate";
/// See [`GUARD`].
pub const MOUNTS: &str = "/mounts";

/// How often a decision is made anew because another replica was faster.
const ATTEMPTS: usize = 5;

/// Decides about hotplugged volumes, with live reads.
pub struct Steward {
    api: Raw,
    clock: Clock,
    limits: Limits,
    metrics: Arc<Metrics>,
    classes: observe::ClassCache,
    denied: Mutex<sweep::Denied>,
    heals: bool,
}

impl Steward {
    /// A steward that reads and writes through `api`.
    pub fn new(api: Raw, clock: Clock, metrics: Arc<Metrics>, heals: bool) -> Self {
        Self {
            api,
            clock,
            limits: Limits::default(),
            metrics,
            classes: observe::ClassCache::default(),
            denied: Mutex::default(),
            heals,
        }
    }

    fn now(&self) -> hotplug::Seconds {
        (self.clock)().as_second()
    }

    /// Answers one review. What cannot be read within `limit` is an answer too.
    pub async fn answer(&self, path: &str, review: &Value, limit: Duration) -> Answer {
        let Some(ask) = Ask::read(path, review) else {
            return Answer::allow("not-concerned");
        };
        let decided = tokio::time::timeout(limit, self.decide(&ask)).await;
        let answer = match decided {
            Ok(Ok(answer)) => answer,
            Ok(Err(unreadable)) => Self::unread(&ask, &unreadable),
            Err(_) => Self::unread(&ask, &Unreadable::slow(limit)),
        };
        self.metrics.hotplug(ask.webhook(), answer.is_allowed(), answer.reason);
        if answer.is_allowed() && answer.reason == "break-glass" {
            tracing::info!(target: "audit", user = ask.user, object = %ask.name(), "break-glass: a guarded request was allowed");
        }
        if let Some(message) = &answer.denial {
            tracing::warn!(webhook = ask.webhook(), user = ask.user, object = %ask.name(), reason = answer.reason, message, decision = "denied");
        }
        answer
    }

    /// Without reads there is no verdict. A right that is missing would be missing for ever, and a
    /// guard that denies for ever wedges the cluster, so that is let through and counted.
    fn unread(ask: &Ask<'_>, why: &Unreadable) -> Answer {
        if why.is_for_good() {
            tracing::error!(webhook = ask.webhook(), object = %ask.name(), error = %why, "allowed without a verdict");
            return Answer::allow("blind");
        }
        Answer::deny(
            "unreadable",
            ask.code(),
            format!("{} cannot be judged now: {why}; try again in a moment", ask.name()),
        )
    }

    async fn decide(&self, ask: &Ask<'_>) -> Result<Answer, Unreadable> {
        match &ask.question {
            Question::Pod(pod) => self.pod(ask, pod).await,
            Question::EvictedPod(name) => match self.api.get(&ask.path("pods", name)).await {
                Ok(pod) => self.pod(ask, &pod).await,
                Err(error) if error.code() == Some(404) => Ok(Answer::allow("gone")),
                Err(error) => Err(error.into()),
            },
            Question::Launcher(pod) => self.launcher(ask, pod).await,
            Question::Namespace(namespace) => self.namespace(ask, namespace).await,
            Question::Volumes { old, new } => self.volumes(ask, old, new).await,
            Question::Migration(migration) => self.migration(ask, migration).await,
            Question::NewPod(pod) => self.mounts(ask, pod).await,
        }
    }
}
