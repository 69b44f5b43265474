//! The row of a pod: what it is doing in one word (`printPod`).

use apimachinery::tree::{Value, json};
use jiff::Timestamp;

use super::{Column, age, items, name, or_none, since};

pub const COLUMNS: &[Column] = &[
    ("Name", "string", 0),
    ("Ready", "string", 0),
    ("Status", "string", 0),
    ("Restarts", "string", 0),
    ("Age", "string", 0),
    ("IP", "string", 1),
    ("Node", "string", 1),
    ("Nominated Node", "string", 1),
    ("Readiness Gates", "string", 1),
];

pub fn row(pod: &Value, now: Timestamp) -> Vec<Value> {
    let statuses = || items(&pod["status"]["containerStatuses"]);
    let up = |status: &&Value| status["ready"] == true && !status["state"]["running"].is_null();
    let ready = statuses().filter(up).count() + sidecar_statuses(pod).filter(up).count();
    let total = items(&pod["spec"]["containers"]).count() + sidecars(pod).count();
    let counted = statuses().chain(sidecar_statuses(pod));
    let restarts: i64 = counted.filter_map(|status| status["restartCount"].as_i64()).sum();
    let last = statuses().filter_map(|status| status["lastState"]["terminated"]["finishedAt"].as_str()).max();
    let restarts = match last {
        Some(last) if restarts > 0 => {
            format!("{restarts} ({} ago)", since(&last.into(), now).as_str().unwrap_or_default())
        }
        _ => restarts.to_string(),
    };
    vec![
        name(pod),
        format!("{ready}/{total}").into(),
        doing(pod).into(),
        restarts.into(),
        age(pod, now),
        or_none(&pod["status"]["podIP"]),
        or_none(&pod["spec"]["nodeName"]),
        or_none(&pod["status"]["nominatedNodeName"]),
        gates(pod),
    ]
}

/// Init containers that go on running count as containers.
fn sidecars(pod: &Value) -> impl Iterator<Item = &Value> {
    items(&pod["spec"]["initContainers"]).filter(|container| container["restartPolicy"] == "Always")
}

fn sidecar_statuses(pod: &Value) -> impl Iterator<Item = &Value> {
    let is_one = |status: &&Value| sidecars(pod).any(|container| container["name"] == status["name"]);
    items(&pod["status"]["initContainerStatuses"]).filter(is_one)
}

/// The reason that a container gives for not running.
fn reason(state: &Value) -> Option<String> {
    let terminated = &state["terminated"];
    if let Some(waiting) = state["waiting"]["reason"].as_str().filter(|reason| !reason.is_empty()) {
        return Some(waiting.into());
    }
    if terminated.is_null() {
        return None;
    }
    if let Some(reason) = terminated["reason"].as_str().filter(|reason| !reason.is_empty()) {
        return Some(reason.into());
    }
    let signal = terminated["signal"].as_i64().unwrap_or_default();
    let code = terminated["exitCode"].as_i64().unwrap_or_default();
    Some(if signal != 0 { format!("Signal:{signal}") } else { format!("ExitCode:{code}") })
}

fn doing(pod: &Value) -> String {
    let status = &pod["status"];
    let mut word = status["phase"].as_str().unwrap_or_default().to_owned();
    if let Some(reason) = status["reason"].as_str().filter(|reason| !reason.is_empty()) {
        reason.clone_into(&mut word);
    }
    if items(&status["conditions"])
        .any(|one| one["type"] == "PodScheduled" && one["reason"] == "SchedulingGated")
    {
        word = "SchedulingGated".into();
    }
    let mut initializing = false;
    for (index, container) in items(&status["initContainerStatuses"]).enumerate() {
        let state = &container["state"];
        if state["terminated"]["exitCode"] == 0 || container["started"] == true {
            continue;
        }
        initializing = true;
        let total = items(&pod["spec"]["initContainers"]).count();
        word = match reason(state) {
            Some(reason) if reason != "PodInitializing" => format!("Init:{reason}"),
            _ => format!("Init:{index}/{total}"),
        };
        break;
    }
    if !initializing {
        let mut running = false;
        let containers: Vec<&Value> = items(&status["containerStatuses"]).collect();
        for container in containers.iter().rev() {
            match reason(&container["state"]) {
                Some(reason) => word = reason,
                None => running |= container["ready"] == true && !container["state"]["running"].is_null(),
            }
        }
        if word == "Completed" && running {
            word = if super::super::subresource::is_ready(pod) { "Running" } else { "NotReady" }.into();
        }
    }
    if !pod["metadata"]["deletionTimestamp"].is_null() {
        if status["reason"] == "NodeLost" {
            return "Unknown".into();
        }
        if !matches!(status["phase"].as_str(), Some("Failed" | "Succeeded")) {
            return "Terminating".into();
        }
    }
    word
}

fn gates(pod: &Value) -> Value {
    let total = items(&pod["spec"]["readinessGates"]).count();
    if total == 0 {
        return "<none>".into();
    }
    let met = items(&pod["spec"]["readinessGates"])
        .filter(|gate| {
            items(&pod["status"]["conditions"])
                .any(|one| one["type"] == gate["conditionType"] && one["status"] == "True")
        })
        .count();
    json!(format!("{met}/{total}"))
}
