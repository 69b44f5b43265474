//! What a snapshot, its content, and a restore are at: predicates over the raw objects.

use std::time::Duration;

use apimachinery::tree::Value;
use jiff::{SignedDuration, Timestamp};

use crate::sim::json::{self, go_duration, is_deleting, text};

/// How long a snapshot may take when it does not say.
pub const DEFAULT_DEADLINE: Duration = Duration::from_mins(5);
/// How long a restore waits for its target to stop (`DefaultGracePeriod`).
pub const GRACE: SignedDuration = SignedDuration::from_mins(5);

/// The name of a snapshot's content.
pub fn content_name(snapshot: &Value) -> String {
    match text(snapshot, "/status/virtualMachineSnapshotContentName") {
        "" => format!("vmsnapshot-content-{}", json::uid(snapshot)),
        name => name.to_owned(),
    }
}

/// `status.readyToUse`, of a snapshot or a content.
pub fn is_ready(object: &Value) -> bool {
    object.pointer("/status/readyToUse") == Some(&Value::Bool(true))
}

pub fn has_failed(snapshot: &Value) -> bool {
    text(snapshot, "/status/phase") == "Failed"
}

pub fn has_succeeded(snapshot: &Value) -> bool {
    text(snapshot, "/status/phase") == "Succeeded"
}

pub fn is_progressing(snapshot: &Value) -> bool {
    !has_failed(snapshot) && !has_succeeded(snapshot)
}

/// `spec.failureDeadline`; zero: none.
pub fn deadline(snapshot: &Value) -> Duration {
    match text(snapshot, "/spec/failureDeadline") {
        "" => DEFAULT_DEADLINE,
        stated => go_duration(stated).unwrap_or(DEFAULT_DEADLINE),
    }
}

/// The time until the deadline; `None`: there is none.
pub fn time_left(snapshot: &Value, now: Timestamp) -> Option<SignedDuration> {
    let deadline = deadline(snapshot);
    let created: Timestamp = text(snapshot, "/metadata/creationTimestamp").parse().ok()?;
    let at = created.checked_add(SignedDuration::try_from(deadline).ok()?).ok()?;
    (!deadline.is_zero()).then(|| at.duration_since(now))
}

pub fn is_past_deadline(snapshot: &Value, now: Timestamp) -> bool {
    has_failed(snapshot)
        || (is_progressing(snapshot) && time_left(snapshot, now).is_some_and(|left| left.is_negative()))
}

/// It is deleted, or has failed.
pub fn is_terminating(snapshot: &Value, now: Timestamp) -> bool {
    is_deleting(snapshot) || is_past_deadline(snapshot, now)
}

/// The content goes with the snapshot.
pub fn deletes_content(snapshot: &Value, content: &Value) -> bool {
    matches!(text(snapshot, "/spec/deletionPolicy"), "" | "Delete") || !is_ready(content)
}

/// The VM can be let go.
pub fn unlocks(snapshot: &Value, content: Option<&Value>, now: Timestamp) -> bool {
    !is_progressing(snapshot)
        || (is_terminating(snapshot, now)
            && content.is_none_or(|content| !deletes_content(snapshot, content)))
}

/// A restore goes on.
pub fn is_restoring(restore: &Value) -> bool {
    restore.pointer("/status/complete") != Some(&Value::Bool(true))
        && json::condition(restore, "/status/conditions", "Failure").is_none()
}

#[cfg(test)]
mod tests {
    use apimachinery::tree::json;

    use super::*;

    #[test]
    fn a_snapshot_has_five_minutes_unless_it_says_otherwise() {
        let snapshot = |deadline: Value| json!({"metadata": {"creationTimestamp": "2026-01-01T00:00:00Z"}, "spec": {"failureDeadline": deadline}});
        let at = |text: &str| text.parse::<Timestamp>().unwrap();
        for (deadline, when, past) in [
            (Value::Null, "2026-01-01T00:04:59Z", false),
            (Value::Null, "2026-01-01T00:05:01Z", true),
            (json!("1m0s"), "2026-01-01T00:01:01Z", true),
            (json!("0s"), "2027-01-01T00:00:00Z", false),
        ] {
            assert_eq!(is_past_deadline(&snapshot(deadline.clone()), at(when)), past, "{deadline} {when}");
        }
        let mut done = snapshot(Value::Null);
        done["status"]["phase"] = "Succeeded".into();
        assert!(!is_past_deadline(&done, at("2027-01-01T00:00:00Z")));
    }

    #[test]
    fn a_content_that_is_not_ready_goes_whatever_the_policy_says() {
        for (policy, ready, goes) in
            [("Retain", true, false), ("Retain", false, true), ("Delete", true, true), ("", true, true)]
        {
            let (snapshot, content) =
                (json!({"spec": {"deletionPolicy": policy}}), json!({"status": {"readyToUse": ready}}));
            assert_eq!(deletes_content(&snapshot, &content), goes, "{policy} {ready}");
        }
    }
}
