//! Whether to take a Lease, renew it or wait. Pure.

use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Value, json};

/// How a Lease is held; the defaults of client-go (`tools/leaderelection`, v0.34).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Terms {
    /// How long a Lease that is not renewed stays its holder's.
    pub duration: Duration,
    /// A holder that could not renew for so long stops working; less than `duration`, so that two
    /// never work at once.
    pub deadline: Duration,
    /// Between two attempts.
    pub retry: Duration,
}

impl Default for Terms {
    fn default() -> Self {
        Self {
            duration: Duration::from_secs(15),
            deadline: Duration::from_secs(10),
            retry: Duration::from_secs(2),
        }
    }
}

/// A Lease as it was read, and for how long it has looked like that **here**: clocks of other
/// machines are not believed, so `renewTime` is compared with nothing.
#[derive(Clone, Debug, PartialEq)]
pub struct Seen {
    /// The object.
    pub lease: Value,
    /// Since this `resourceVersion` was first read.
    pub unchanged: Duration,
}

/// What to do next.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Step {
    /// There is none: create it, held by us.
    Create,
    /// It is free, or its holder is gone: write ourselves into it.
    Take,
    /// It is ours: say so again.
    Renew,
    /// It is another's.
    Follow,
}

/// Decides what `me` does about a Lease.
pub fn decide(seen: Option<&Seen>, me: &str) -> Step {
    let Some(seen) = seen else { return Step::Create };
    let spec = &seen.lease["spec"];
    match spec["holderIdentity"].as_str() {
        None | Some("") => Step::Take,
        Some(holder) if holder == me => Step::Renew,
        Some(_) if seen.unchanged >= granted(spec) => Step::Take,
        Some(_) => Step::Follow,
    }
}

/// How long its holder has asked for. A Lease without a duration was not written by an election;
/// it is nobody's after the usual time.
fn granted(spec: &Value) -> Duration {
    spec["leaseDurationSeconds"].as_u64().map_or(Terms::default().duration, Duration::from_secs)
}

/// The `spec` that [`Step::Create`], [`Step::Take`] and [`Step::Renew`] write.
pub fn held(seen: Option<&Seen>, me: &str, terms: &Terms, now: Timestamp) -> Value {
    let before = seen.map_or(&Value::Null, |seen| &seen.lease["spec"]);
    let now = format!("{now:.6}");
    let transitions = before["leaseTransitions"].as_u64().unwrap_or_default();
    if before["holderIdentity"] == me {
        return json!({"renewTime": now, "leaseDurationSeconds": terms.duration.as_secs()});
    }
    json!({
        "holderIdentity": me,
        "leaseDurationSeconds": terms.duration.as_secs(),
        "acquireTime": now,
        "renewTime": now,
        "leaseTransitions": if seen.is_some() { transitions + 1 } else { 0 },
    })
}

/// The `spec` that lets go, so that another need not wait (as client-go's `ReleaseOnCancel`).
pub fn released(now: Timestamp) -> Value {
    json!({"holderIdentity": "", "leaseDurationSeconds": 1, "renewTime": format!("{now:.6}")})
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(spec: &Value, seconds: u64) -> Seen {
        Seen { lease: json!({"spec": spec}), unchanged: Duration::from_secs(seconds) }
    }

    #[test]
    fn a_lease_is_taken_when_it_is_free_or_has_not_changed_for_its_duration() {
        for (spec, seconds, step) in [
            (json!({}), 0, Step::Take),
            (json!({"holderIdentity": ""}), 0, Step::Take),
            (json!({"holderIdentity": "a", "leaseDurationSeconds": 15}), 100, Step::Renew),
            (json!({"holderIdentity": "b", "leaseDurationSeconds": 15}), 14, Step::Follow),
            (json!({"holderIdentity": "b", "leaseDurationSeconds": 15}), 15, Step::Take),
            (json!({"holderIdentity": "b", "leaseDurationSeconds": 60}), 59, Step::Follow),
            (json!({"holderIdentity": "b"}), 15, Step::Take),
            (json!({"holderIdentity": "b", "leaseDurationSeconds": "soon"}), 1, Step::Follow),
        ] {
            assert_eq!(decide(Some(&seen(&spec, seconds)), "a"), step, "{spec} for {seconds} s");
        }
        assert_eq!(decide(None, "a"), Step::Create);
    }

    #[test]
    fn what_is_written_says_who_holds_it_since_when() {
        let now: Timestamp = "2026-01-02T03:04:05.678901Z".parse().unwrap();
        let terms = Terms::default();
        let fresh = held(None, "a", &terms, now);
        assert_eq!(fresh["renewTime"], "2026-01-02T03:04:05.678901Z");
        assert_eq!((&fresh["holderIdentity"], &fresh["leaseTransitions"]), (&json!("a"), &json!(0)));
        let others = seen(&json!({"holderIdentity": "b", "leaseTransitions": 4}), 20);
        assert_eq!(held(Some(&others), "a", &terms, now)["leaseTransitions"], 5);
        let ours = seen(&json!({"holderIdentity": "a", "leaseTransitions": 4}), 1);
        let renewed = held(Some(&ours), "a", &terms, now);
        assert!(renewed.get("acquireTime").is_none() && renewed.get("leaseTransitions").is_none());
    }

    #[test]
    fn a_holder_stops_before_another_may_start() {
        let terms = Terms::default();
        assert!(terms.deadline + terms.retry < terms.duration);
    }
}
