//! What kubelet makes of a pod whose resources were changed while it runs (KEP-1287, kubelet 1.36:
//! `allocation_manager.go`, recorded order of status writes).
//!
//! ```text
//!  spec differs ─► more than the node has:  PodResizePending, Infeasible (till the spec changes)
//!              ├─► no room now:             PodResizePending, Deferred   (tried again)
//!              └─► allocated, PodResizeInProgress ─► resources as the spec says, conditions gone
//!                                              └─► PodResizeInProgress, Error
//! ```

use apimachinery::tree::{Map, Value, json};
use jiff::Timestamp;

use crate::sim::json::{self, list, text, time};
use crate::sim::requests::{self, Amounts};

/// On a pod or its node: `Defer`, `Infeasible`, `Error`, or `Slow` (kubelet never gets to it), for
/// trying out what others do then.
pub const FAULT: &str = "sandbox.vm-feature-manager.io/resize";

/// What a kubelet has to know.
pub struct Node<'a> {
    /// Its object.
    pub object: &'a Value,
    /// Allocatable.
    pub allocatable: &'a Amounts,
    /// Promised to the other pods.
    pub others: &'a Amounts,
}

/// The next status of a running pod whose resources differ from what it has; nothing when there is
/// nothing to do.
pub fn decide(pod: &Value, node: &Node<'_>, now: Timestamp) -> Option<Value> {
    let generation = pod.pointer("/metadata/generation").and_then(Value::as_i64).unwrap_or(1);
    let allocated = differs(pod, "/allocatedResources", false);
    let actual = differs(pod, "/resources", true);
    if !allocated && !actual {
        return settled(pod, generation);
    }
    let fault =
        [pod, node.object].iter().find_map(|object| json::annotation(object, FAULT)).unwrap_or_default();
    if fault == "Slow" && grows(pod) {
        return None;
    }
    let condition = |kind: &str, reason: &str, message: &str| {
        json!({"type": kind, "status": "True", "reason": reason, "message": message,
            "observedGeneration": generation, "lastProbeTime": null, "lastTransitionTime": time(now)})
    };
    if allocated {
        if let Some((reason, message)) = refusal(pod, node, fault) {
            return changed(pod, generation, &condition("PodResizePending", reason, &message), None);
        }
        let running = condition("PodResizeInProgress", "", "");
        return changed(pod, generation, &running, Some(statuses(pod, false)));
    }
    if fault == "Error" && grows(pod) {
        let failed =
            condition("PodResizeInProgress", "Error", "the container runtime refused the new limits");
        return changed(pod, generation, &failed, None);
    }
    Some(json!({
        "observedGeneration": generation,
        "conditions": [{"$patch": "delete", "type": "PodResizeInProgress"}, {"$patch": "delete", "type": "PodResizePending"}],
        "containerStatuses": statuses(pod, true),
    }))
}

/// Whether what a pod may have and its spec are not the same.
fn differs(pod: &Value, pointer: &str, with_limits: bool) -> bool {
    let amounts = |value: Option<&Value>| requests::of_list(value.and_then(Value::as_object));
    list(pod, "/spec/containers").iter().any(|container| {
        let Some(status) = status_of(pod, container) else { return false };
        let wanted = resizable(amounts(container.pointer("/resources/requests")));
        if with_limits {
            let limits = resizable(amounts(container.pointer("/resources/limits")));
            resizable(amounts(status.pointer(&format!("{pointer}/requests")))) != wanted
                || resizable(amounts(status.pointer(&format!("{pointer}/limits")))) != limits
        } else {
            resizable(amounts(status.pointer(pointer))) != wanted
        }
    })
}

fn resizable(mut amounts: Amounts) -> Amounts {
    amounts.retain(|name, _| matches!(name.as_str(), "cpu" | "memory"));
    amounts
}

fn status_of<'a>(pod: &'a Value, container: &Value) -> Option<&'a Value> {
    // Without a report there is nothing to resize.
    list(pod, "/status/containerStatuses")
        .iter()
        .find(|status| status["name"] == container["name"] && status.get("allocatedResources").is_some())
}

/// Whether any container is to get more than it has.
fn grows(pod: &Value) -> bool {
    list(pod, "/spec/containers").iter().any(|container| {
        let Some(status) = status_of(pod, container) else { return false };
        let of = |value: Option<&Value>| resizable(requests::of_list(value.and_then(Value::as_object)));
        let has = of(status.pointer("/resources/requests"));
        of(container.pointer("/resources/requests"))
            .iter()
            .any(|(name, wanted)| *wanted > has.get(name).copied().unwrap_or(0))
    })
}

fn refusal(pod: &Value, node: &Node<'_>, fault: &str) -> Option<(&'static str, String)> {
    if !grows(pod) {
        return None;
    }
    match fault {
        "Defer" => return Some(("Deferred", "Node didn't have enough resource: memory".into())),
        "Infeasible" => {
            return Some(("Infeasible", "In-place resize of this pod is not supported on this node".into()));
        }
        _ => {}
    }
    let wanted = resizable(requests::of_pod(pod));
    for (name, wanted) in &wanted {
        let capacity = node.allocatable.get(name).copied().unwrap_or(0);
        let used = node.others.get(name).copied().unwrap_or(0);
        let unit = if name == "cpu" { 1 } else { 1000 };
        let told = |used: i128| {
            format!(
                "Node didn't have enough {}: {name}, requested: {}, used: {}, capacity: {}",
                if used == 0 { "capacity" } else { "resource" },
                wanted / unit,
                used / unit,
                capacity / unit
            )
        };
        if *wanted > capacity {
            return Some(("Infeasible", told(0)));
        }
        if wanted + used > capacity {
            return Some(("Deferred", told(used)));
        }
    }
    None
}

/// Container statuses with the spec's requests allocated, or with everything as the spec says.
fn statuses(pod: &Value, actuated: bool) -> Value {
    list(pod, "/spec/containers")
        .iter()
        .filter_map(|container| {
            let mut status = status_of(pod, container)?.clone();
            let requests: Map = container
                .pointer("/resources/requests")
                .and_then(Value::as_object)?
                .iter()
                .filter(|(name, _)| matches!(name.as_str(), "cpu" | "memory"))
                .map(|(name, value)| (name.clone(), value.clone()))
                .collect();
            status["allocatedResources"] = requests.into();
            if actuated {
                status["resources"] = container["resources"].clone();
            }
            Some(status)
        })
        .collect()
}

fn settled(pod: &Value, generation: i64) -> Option<Value> {
    let observed = pod.pointer("/status/observedGeneration").and_then(Value::as_i64);
    let pending = ["PodResizePending", "PodResizeInProgress"]
        .iter()
        .filter(|kind| json::condition(pod, "/status/conditions", kind).is_some())
        .map(|kind| json!({"$patch": "delete", "type": kind}))
        .collect::<Vec<_>>();
    if pending.is_empty() {
        // Nobody asks for the generation of a pod that was never resized.
        return (generation > 1 && observed != Some(generation))
            .then(|| json!({"observedGeneration": generation}));
    }
    Some(json!({"observedGeneration": generation, "conditions": pending}))
}

/// A status with a condition, unless it is said already.
fn changed(pod: &Value, generation: i64, condition: &Value, containers: Option<Value>) -> Option<Value> {
    let kind = text(condition, "/type");
    let same = |have: &Value| {
        ["reason", "message", "observedGeneration"].iter().all(|key| have.get(*key) == condition.get(*key))
    };
    if containers.is_none() && json::condition(pod, "/status/conditions", kind).is_some_and(same) {
        return None;
    }
    let mut conditions = vec![condition.clone()];
    if kind == "PodResizeInProgress"
        && json::condition(pod, "/status/conditions", "PodResizePending").is_some()
    {
        conditions.push(json!({"$patch": "delete", "type": "PodResizePending"}));
    }
    let mut status = json!({"observedGeneration": generation, "conditions": conditions});
    if let Some(containers) = containers {
        status["containerStatuses"] = containers;
    }
    Some(status)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(wanted: &str, allocated: &str, actual: &str) -> Value {
        let memory = |amount: &str| json!({"cpu": "100m", "memory": amount});
        json!({"metadata": {"generation": 2},
            "spec": {"containers": [{"name": "compute", "resources": {"requests": memory(wanted)}}]},
            "status": {"containerStatuses": [{"name": "compute", "allocatedResources": memory(allocated),
                "resources": {"requests": memory(actual)}}]}})
    }

    fn step(pod: &Value, node: &Value) -> Option<Value> {
        let gib = |count: i128| {
            Amounts::from([("memory".to_owned(), (count << 30) * 1000), ("cpu".to_owned(), 4_000)])
        };
        let none = Amounts::from([("memory".to_owned(), (4 << 30) * 1000)]);
        decide(pod, &Node { object: node, allocatable: &gib(8), others: &none }, Timestamp::UNIX_EPOCH)
    }

    #[test]
    fn a_resize_is_allocated_then_actuated() {
        let node = json!({});
        let first = step(&pod("2Gi", "1Gi", "1Gi"), &node).unwrap();
        assert_eq!(first["conditions"][0]["type"], "PodResizeInProgress");
        assert_eq!(first["containerStatuses"][0]["allocatedResources"]["memory"], "2Gi");
        assert_eq!(first["containerStatuses"][0]["resources"]["requests"]["memory"], "1Gi");
        let second = step(&pod("2Gi", "2Gi", "1Gi"), &node).unwrap();
        assert_eq!(second["containerStatuses"][0]["resources"]["requests"]["memory"], "2Gi");
        assert_eq!(second["conditions"][0], json!({"$patch": "delete", "type": "PodResizeInProgress"}));
        assert_eq!(step(&pod("2Gi", "2Gi", "2Gi"), &node), Some(json!({"observedGeneration": 2})));
    }

    #[test]
    fn what_the_node_cannot_give_waits_or_never_comes() {
        for (wanted, node, reason) in [
            ("9Gi", json!({}), "Infeasible"),
            ("5Gi", json!({}), "Deferred"),
            ("2Gi", json!({"metadata": {"annotations": {FAULT: "Defer"}}}), "Deferred"),
            ("2Gi", json!({"metadata": {"annotations": {FAULT: "Infeasible"}}}), "Infeasible"),
        ] {
            let pod = pod(wanted, "1Gi", "1Gi");
            let status = step(&pod, &node).unwrap();
            assert_eq!(text(&status, "/conditions/0/reason"), reason, "{wanted}");
            let mut told = pod.clone();
            told["status"]["conditions"] = status["conditions"].clone();
            assert_eq!(step(&told, &node), None, "said once");
        }
        let failing = json!({"metadata": {"annotations": {FAULT: "Error"}}});
        let status = step(&pod("2Gi", "2Gi", "1Gi"), &failing).unwrap();
        assert_eq!(text(&status, "/conditions/0/reason"), "Error");
        let slow = json!({"metadata": {"annotations": {FAULT: "Slow"}}});
        assert_eq!(step(&pod("2Gi", "1Gi", "1Gi"), &slow), None);
        assert!(step(&pod("1Gi", "2Gi", "2Gi"), &slow).is_some(), "less is always given");
    }
}
