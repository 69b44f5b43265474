//! The taints that follow from what is known of a node (`TaintNodesByCondition`, `processTaintBaseEviction`).

use apimachinery::tree::{Value, json};
use jiff::Timestamp;

use crate::sim::json::{self, list, text, time};

/// A condition's status and the taint that goes with it.
const TAINTS: [(&str, &str, &str); 6] = [
    ("Ready", "False", NOT_READY),
    ("Ready", "Unknown", UNREACHABLE),
    ("MemoryPressure", "True", "node.kubernetes.io/memory-pressure"),
    ("DiskPressure", "True", "node.kubernetes.io/disk-pressure"),
    ("PIDPressure", "True", "node.kubernetes.io/pid-pressure"),
    ("NetworkUnavailable", "True", "node.kubernetes.io/network-unavailable"),
];
const NOT_READY: &str = "node.kubernetes.io/not-ready";
const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
const CORDONED: &str = "node.kubernetes.io/unschedulable";
/// Somebody vouches that nothing runs on the node any more.
const OUT_OF_SERVICE: &str = "node.kubernetes.io/out-of-service";

/// Whether pods may be driven off a node that is not ready.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Eviction {
    /// They may.
    Begin,
    /// Not now: too many nodes were lost at once.
    Later,
    /// No node is ready, so it is the control plane that is cut off.
    Never,
}

/// The status of `Ready`; empty when nothing was ever said.
pub fn readiness(node: &Value) -> &str {
    json::condition(node, "/status/conditions", "Ready").map_or("", |one| text(one, "/status"))
}

/// Whether a node said so itself, or somebody else, that nothing runs on it.
pub fn is_out_of_service(node: &Value) -> bool {
    readiness(node) != "True" && list(node, "/spec/taints").iter().any(|taint| taint["key"] == OUT_OF_SERVICE)
}

/// Taints that drive pods off the node.
pub fn evicting(node: &Value) -> Vec<Value> {
    list(node, "/spec/taints").iter().filter(|taint| taint["effect"] == "NoExecute").cloned().collect()
}

/// The taints that a node should have, if it has others. A node without conditions is not ready.
pub fn decide(node: &Value, eviction: Eviction, now: Timestamp) -> Option<Vec<Value>> {
    let old = list(node, "/spec/taints");
    let mut new = repelling(node, old);
    drive_off(&mut new, readiness(node), eviction, now);
    (new != old).then_some(new)
}

/// `NoSchedule`: no pod is put there.
fn repelling(node: &Value, old: &[Value]) -> Vec<Value> {
    let status = |kind: &str| {
        json::condition(node, "/status/conditions", kind)
            .map_or(if kind == "Ready" { "False" } else { "" }, |one| text(one, "/status"))
    };
    let mut wanted: Vec<&str> =
        TAINTS.iter().filter(|(kind, bad, _)| status(kind) == *bad).map(|(_, _, taint)| *taint).collect();
    if node.pointer("/spec/unschedulable") == Some(&Value::Bool(true)) {
        wanted.push(CORDONED);
    }
    // Those of others stay as they are.
    let ours = |taint: &&Value| {
        let key = text(taint, "/key");
        taint["effect"] == "NoSchedule" && (key == CORDONED || TAINTS.iter().any(|(_, _, one)| *one == key))
    };
    let mut new: Vec<Value> =
        old.iter().filter(|taint| !ours(taint) || wanted.contains(&text(taint, "/key"))).cloned().collect();
    for key in wanted {
        if !new.iter().any(|taint| ours(&taint) && taint["key"] == key) {
            new.push(json!({"key": key, "effect": "NoSchedule"}));
        }
    }
    new
}

/// `NoExecute`: pods that do not tolerate it have to go.
fn drive_off(taints: &mut Vec<Value>, ready: &str, eviction: Eviction, now: Timestamp) {
    let wanted = match ready {
        "False" => Some(NOT_READY),
        "Unknown" => Some(UNREACHABLE),
        "True" => None,
        _ => return,
    };
    let ours = |taint: &Value| {
        taint["effect"] == "NoExecute" && matches!(text(taint, "/key"), NOT_READY | UNREACHABLE)
    };
    let wanted = wanted.filter(|_| eviction != Eviction::Never);
    let there = taints.iter().any(ours);
    taints.retain(|taint| !ours(taint) || wanted.is_some_and(|wanted| taint["key"] == wanted));
    let Some(wanted) = wanted.filter(|_| !taints.iter().any(ours)) else { return };
    // One kind of trouble becomes another: that is no new eviction.
    if there || eviction == Eviction::Begin {
        taints.push(json!({"key": wanted, "effect": "NoExecute", "timeAdded": time(now)}));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taint(key: &str, effect: &str) -> Value {
        json!({"key": key, "effect": effect})
    }

    #[test]
    fn taints_follow_conditions_and_those_of_others_stay() {
        let not_ready = || taint(NOT_READY, "NoSchedule");
        let ready = |status: &str| json!([{"type": "Ready", "status": status}]);
        for (taints, conditions, cordoned, expected) in [
            (json!([not_ready()]), ready("True"), false, Some(vec![])),
            (json!([not_ready()]), ready("False"), false, None),
            (json!([]), json!([]), false, Some(vec![not_ready()])),
            (json!([]), ready("Unknown"), false, Some(vec![taint(UNREACHABLE, "NoSchedule")])),
            (json!([taint("mine", "NoSchedule"), taint("mine", "NoExecute")]), ready("True"), false, None),
            (json!([]), ready("True"), true, Some(vec![taint(CORDONED, "NoSchedule")])),
            (json!([taint(CORDONED, "NoSchedule")]), ready("True"), false, Some(vec![])),
        ] {
            let node = json!({"spec": {"taints": taints, "unschedulable": cordoned}, "status": {"conditions": conditions}});
            assert_eq!(decide(&node, Eviction::Later, Timestamp::UNIX_EPOCH), expected, "{node}");
        }
    }

    #[test]
    fn pods_are_driven_off_when_that_is_allowed_and_no_longer_when_the_node_is_back() {
        let keys = |taints: &[Value], ready: &str, eviction| {
            let mut taints = taints.to_vec();
            drive_off(&mut taints, ready, eviction, Timestamp::UNIX_EPOCH);
            taints.iter().map(|taint| text(taint, "/key").to_owned()).collect::<Vec<_>>()
        };
        let none = Vec::<String>::new();
        let lost = [taint(UNREACHABLE, "NoExecute")];
        assert_eq!(keys(&[], "Unknown", Eviction::Begin), [UNREACHABLE]);
        assert_eq!(keys(&[], "False", Eviction::Begin), [NOT_READY]);
        assert_eq!(keys(&[], "Unknown", Eviction::Later), none);
        assert_eq!(keys(&lost, "Unknown", Eviction::Later), [UNREACHABLE], "what has begun goes on");
        assert_eq!(keys(&lost, "False", Eviction::Later), [NOT_READY], "and is the same under another name");
        assert_eq!(keys(&lost, "Unknown", Eviction::Never), none);
        assert_eq!(keys(&lost, "True", Eviction::Begin), none);
        assert_eq!(
            keys(&lost, "", Eviction::Begin),
            [UNREACHABLE],
            "of a node that said nothing, nothing is known"
        );
    }
}
