//! The status of a `VirtualMachine`, out of its VMI (`updateStatus` in `watch/vm/vm.go`, v1.9).

use apimachinery::tree::{Value, json};
use jiff::{SignedDuration, Timestamp};

use super::vm::{Expectation, Observation, is_final, run_strategy, start_delay};
use super::{memory_dump, volume_migration};
use crate::sim::json::{
    self, has_condition, integer, is_deleting, list, new_condition, remove_condition, text, update_condition,
};

/// Why a pass failed: reason and message of the `Failure` condition.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct SyncError {
    pub reason: &'static str,
    pub message: String,
}

/// The status that the VM should have; equal to the present one when nothing is to be written.
pub fn status(seen: &Observation<'_>, expects: Expectation, error: Option<&SyncError>) -> Value {
    let (vm, vmi) = (seen.vm, seen.vmi);
    let old = vm.get("status").cloned().unwrap_or_else(|| json!({}));
    let mut status = old.clone();
    flag(&mut status, "created", vmi.is_some());
    flag(&mut status, "ready", vmi.is_some_and(|vmi| has_condition(vmi, "Ready", "True")));
    if let Some(vmi) = vmi {
        status["desiredGeneration"] = integer(vm, "/metadata/generation").into();
        let observed =
            json::annotation(vmi, "kubevirt.io/vm-generation").and_then(|text| text.parse::<i64>().ok());
        if let Some(observed) = observed {
            status["observedGeneration"] = observed.into();
        }
    }
    if vmi.is_some() || !text(&old, "/runStrategy").is_empty() {
        status["runStrategy"] = run_strategy(vm).unwrap_or_default().into();
    }
    memory_dump::advance(&mut status, vm, vmi);
    trim_state_change(&mut status, vmi);
    sync_start_failure(&mut status, seen);
    volume_migration::sync(&mut status, vm, vmi, seen.now);
    sync_conditions(&mut status, vmi, error, seen.now);
    let printable = printable_status(seen, &status, expects);
    status["printableStatus"] = printable.into();
    status
}

fn flag(status: &mut Value, key: &str, on: bool) {
    if on {
        status[key] = true.into();
    } else {
        json::remove(status, &[key]);
    }
}

/// Drops the first state change request once it is done (`isTrimFirstChangeRequestNeeded`).
fn trim_state_change(status: &mut Value, vmi: Option<&Value>) {
    let Some(requests) = status.get_mut("stateChangeRequests").and_then(Value::as_array_mut) else { return };
    let Some(request) = requests.first() else { return };
    let done = match (text(request, "/action"), vmi) {
        ("Stop", None) => true,
        ("Stop", Some(vmi)) => request["uid"] != json::uid(vmi),
        ("Start", Some(vmi)) => !is_deleting(vmi) && !is_final(vmi),
        _ => false,
    };
    if done {
        requests.remove(0);
        if requests.is_empty() {
            json::remove(status, &["stateChangeRequests"]);
        }
    }
}

fn was_running(vmi: &Value) -> bool {
    list(vmi, "/status/phaseTransitionTimestamps").iter().any(|one| one["phase"] == "Running")
}

/// Counts starts that never got to Running (`syncStartFailureStatus`).
fn sync_start_failure(status: &mut Value, seen: &Observation<'_>) {
    let restarts = matches!(run_strategy(seen.vm), Some("Always" | "RerunOnFailure" | "Once"));
    if !restarts || seen.vmi.is_some_and(was_running) {
        json::remove(status, &["startFailure"]);
        return;
    }
    let Some(vmi) = seen.vmi.filter(|vmi| is_final(vmi)) else { return };
    if text(status, "/startFailure/lastFailedVMIUID") == json::uid(vmi) {
        return;
    }
    let count = integer(status, "/startFailure/consecutiveFailCount") + 1;
    let retry_at = seen.now.saturating_add(SignedDuration::from_secs(start_delay(count, seen.dice)));
    status["startFailure"] = json!({
        "consecutiveFailCount": count,
        "lastFailedVMIUID": json::uid(vmi),
        "retryAfterTimestamp": json::time(retry_at.unwrap_or(seen.now)),
    });
}

fn sync_conditions(status: &mut Value, vmi: Option<&Value>, error: Option<&SyncError>, now: Timestamp) {
    let mut conditions = list(status, "/conditions").to_vec();
    let ready = match vmi.map(|vmi| json::condition(vmi, "/status/conditions", "Ready")) {
        None => new_condition("Ready", "False", "VMINotExists", "VMI does not exist", now),
        Some(None) => {
            new_condition("Ready", "False", "VMIConditionMissing", "VMI is missing the Ready condition", now)
        }
        Some(Some(ready)) => ready.clone(),
    };
    update_condition(&mut conditions, ready);
    match error {
        Some(error) => {
            let mut failure = new_condition("Failure", "True", error.reason, &error.message, now);
            failure["lastProbeTime"] = Value::Null;
            update_condition(&mut conditions, failure);
        }
        None => remove_condition(&mut conditions, "Failure"),
    }
    if let Some(vmi) = vmi {
        let own = |kind: &str| matches!(kind, "Ready" | "Failure" | "RestartRequired");
        let theirs = list(vmi, "/status/conditions");
        for condition in theirs.iter().filter(|condition| !own(text(condition, "/type"))) {
            update_condition(&mut conditions, condition.clone());
        }
        conditions.retain(|condition| {
            own(text(condition, "/type")) || theirs.iter().any(|one| one["type"] == condition["type"])
        });
    }
    status["conditions"] = conditions.into();
}

/// Somebody wants the VM to run (`isSetToStart`).
fn is_set_to_start(seen: &Observation<'_>) -> bool {
    let request = list(seen.vm, "/status/stateChangeRequests").first();
    let asked = |action: &str| request.is_some_and(|request| request["action"] == action);
    match (run_strategy(seen.vm), seen.vmi) {
        (Some("Always"), _) | (Some("Once"), None) => true,
        (Some("Manual"), Some(_)) => !asked("Stop"),
        (Some("Manual"), None) => asked("Start"),
        (Some("RerunOnFailure"), Some(vmi)) => text(vmi, "/status/phase") != "Succeeded",
        (Some("RerunOnFailure"), None) => {
            asked("Start") || text(seen.vm, "/status/runStrategy") != "RerunOnFailure"
        }
        _ => false,
    }
}

/// What `kubectl get vm` shows: the first that holds (`setPrintableStatus`).
fn printable_status(seen: &Observation<'_>, status: &Value, expects: Expectation) -> &'static str {
    let (vm, vmi) = (seen.vm, seen.vmi);
    let phase = vmi.map_or("", |vmi| text(vmi, "/status/phase"));
    let is = |kind: &str, wanted: &str| vmi.is_some_and(|vmi| has_condition(vmi, kind, wanted));
    let because = |kind: &str, reason: &str| {
        vmi.and_then(|vmi| json::condition(vmi, "/status/conditions", kind))
            .is_some_and(|condition| condition["status"] == "False" && condition["reason"] == reason)
    };
    let ended = vmi.is_some_and(is_final);
    let migrating = vmi.is_some_and(|vmi| {
        let state = &vmi["status"]["migrationState"];
        !text(state, "/startTimestamp").is_empty() && text(state, "/endTimestamp").is_empty()
    });
    let failing = integer(status, "/startFailure/consecutiveFailCount") > 0
        && matches!(run_strategy(vm), Some("Always" | "RerunOnFailure" | "Once"));
    let starting = match vmi {
        None => expects == Expectation::Start,
        Some(_) => matches!(phase, "" | "Pending" | "Scheduling" | "Scheduled"),
    };
    if is_deleting(vm) {
        "Terminating"
    } else if vmi.is_some_and(|vmi| !ended && (is_deleting(vmi) || expects == Expectation::Stop)) {
        "Stopping"
    } else if migrating {
        "Migrating"
    } else if phase == "Running" {
        if is("Paused", "True") { "Paused" } else { "Running" }
    } else if because("Synchronized", "FailedPvcNotFound") {
        "ErrorPvcNotFound"
    } else if seen.volumes.broken {
        "DataVolumeError"
    } else if because("PodScheduled", "Unschedulable") {
        "ErrorUnschedulable"
    } else if seen.volumes.provisioning {
        "Provisioning"
    } else if seen.volumes.unbound && is_set_to_start(seen) {
        "WaitingForVolumeBinding"
    } else if because("Synchronized", "ErrImagePull") {
        "ErrImagePull"
    } else if because("Synchronized", "ImagePullBackOff") {
        "ImagePullBackOff"
    } else if starting {
        "Starting"
    } else if failing && expects != Expectation::Start {
        "CrashLoopBackOff"
    } else if vmi.is_none() || ended {
        "Stopped"
    } else {
        "Unknown"
    }
}
