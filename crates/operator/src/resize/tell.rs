//! What is told of resizes: Events on VMIs, and metrics.

use std::collections::HashMap;
use std::sync::Arc;

use jiff::Timestamp;
use parking_lot::Mutex;
use resize::ledger::{Ledger, Phase};
use resize::notice::{Notice, Outcome};
use serde_json::{Value, json};

use super::worker::Key;
use crate::kubernetes::Raw;
use crate::telemetry::Metrics;

/// The longest message of an Event that the API server takes, characters.
const MESSAGE: usize = 1024;

/// Tells, and remembers what is under way.
pub struct Teller {
    api: Raw,
    metrics: Arc<Metrics>,
    ledgers: Mutex<HashMap<Key, (Phase, i64)>>,
}

impl Teller {
    pub fn new(api: Raw, metrics: Arc<Metrics>) -> Self {
        Self { api, metrics, ledgers: Mutex::default() }
    }

    /// What a VMI's ledger says now; nothing when there is none.
    pub fn note(&self, key: &Key, ledger: Option<&Ledger>) {
        let mut ledgers = self.ledgers.lock();
        let now = ledger.map(|ledger| (ledger.phase, ledger.begun));
        let before = match now {
            Some(now) => ledgers.insert(key.clone(), now),
            None => ledgers.remove(key),
        };
        if before == now {
            return;
        }
        for phase in Phase::ALL {
            let count = ledgers.values().filter(|(one, _)| *one == phase).count();
            self.metrics.resizes(phase.name(), i64::try_from(count).unwrap_or(i64::MAX));
        }
        let under_way = ledgers.values().filter(|(phase, _)| phase.is_under_way());
        self.metrics.resize_oldest_begun(under_way.map(|(_, begun)| *begun).min().unwrap_or(0));
    }

    /// An Event of the VMI and the metrics of it. Nothing depends on the Event.
    pub async fn tell(&self, key: &Key, vmi: &Value, begun: i64, notice: &Notice, now: i64) {
        tracing::info!(vmi = %key, reason = notice.reason, message = notice.message, "resize");
        if let Some(cause) = notice.cause {
            self.metrics.resize_cause(cause.name());
        }
        if let Some(outcome) = notice.outcome {
            self.metrics.resize_outcome(outcome.name());
            if outcome == Outcome::Done && begun > 0 {
                self.metrics.resize_took(now.saturating_sub(begun));
            }
        }
        let path = format!("/api/v1/namespaces/{}/events", key.namespace);
        if let Err(error) = self.api.create(&path, &event(key, vmi, notice, now)).await {
            tracing::debug!(vmi = %key, %error, "no event was written");
        }
    }
}

fn event(key: &Key, vmi: &Value, notice: &Notice, now: i64) -> Value {
    let at = Timestamp::from_second(now).unwrap_or_default().to_string();
    let message: String = notice.message.chars().take(MESSAGE).collect();
    json!({
        "apiVersion": "v1", "kind": "Event", "reason": notice.reason, "message": message,
        "type": if notice.warning { "Warning" } else { "Normal" },
        "metadata": {"generateName": format!("{}-", key.name), "namespace": key.namespace},
        "involvedObject": {"apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstance", "name": key.name,
            "namespace": key.namespace, "uid": vmi["metadata"]["uid"]},
        "source": {"component": "virt-steward"},
        "firstTimestamp": at, "lastTimestamp": at, "count": 1,
    })
}
