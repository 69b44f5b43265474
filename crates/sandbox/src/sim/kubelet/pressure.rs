//! Node-pressure eviction (`pkg/kubelet/eviction`, Kubernetes 1.36): a node that is short of memory or disk says so, and
//! its kubelet ends one pod after the other, without asking budgets, until it is not.
//!
//! That a node is short is said by the annotation `sandbox.vm-feature-manager.io/pressure: memory` or `disk`. What a pod
//! uses is little, or what its annotation `sandbox.vm-feature-manager.io/uses` says.

use apimachinery::quantity::units;
use apimachinery::tree::{Value, json};
use jiff::Timestamp;

use crate::sim::json::{self, condition, list, text, time};
use crate::sim::requests;

const PRESSURE: &str = "sandbox.vm-feature-manager.io/pressure";
const USES: &str = "sandbox.vm-feature-manager.io/uses";
/// What a pod uses that says nothing, bytes.
const LITTLE: i128 = 8 << 20;
/// Pods of this priority and above stay (`SystemCriticalPriority`).
const CRITICAL: i64 = 2_000_000_000;

/// What a node is short of.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Shortage {
    Memory,
    Disk,
}

/// What a node is short of, if anything.
pub fn of(node: &Value) -> Option<Shortage> {
    match json::annotation(node, PRESSURE)? {
        "memory" => Some(Shortage::Memory),
        "disk" => Some(Shortage::Disk),
        _ => None,
    }
}

impl Shortage {
    fn resource(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Disk => "ephemeral-storage",
        }
    }

    /// The hard threshold, and what is left (`memory.available<100Mi`, `nodefs.available<10%`).
    fn amounts(self, node: &Value) -> (String, String) {
        match self {
            Self::Memory => ("100Mi".into(), "64Mi".into()),
            Self::Disk => {
                let all = node.pointer("/status/capacity/ephemeral-storage").and_then(units).unwrap_or(0);
                (format!("{}Ki", all / 10 / 1024), format!("{}Ki", all / 20 / 1024))
            }
        }
    }
}

/// The conditions that have to be said anew.
pub fn conditions(node: &Value, shortage: Option<Shortage>, now: Timestamp) -> Option<Value> {
    let wanted = [
        match shortage {
            Some(Shortage::Memory) => (
                "MemoryPressure",
                "True",
                "KubeletHasInsufficientMemory",
                "kubelet has insufficient memory available",
            ),
            _ => (
                "MemoryPressure",
                "False",
                "KubeletHasSufficientMemory",
                "kubelet has sufficient memory available",
            ),
        },
        match shortage {
            Some(Shortage::Disk) => {
                ("DiskPressure", "True", "KubeletHasDiskPressure", "kubelet has disk pressure")
            }
            _ => ("DiskPressure", "False", "KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
        },
    ];
    let at = time(now);
    let changed: Vec<Value> = wanted
        .into_iter()
        .filter(|(kind, status, ..)| {
            condition(node, "/status/conditions", kind).is_some_and(|have| text(have, "/status") != *status)
        })
        .map(|(kind, status, reason, message)| {
            json!({"type": kind, "status": status, "reason": reason, "message": message,
                "lastHeartbeatTime": at, "lastTransitionTime": at})
        })
        .collect();
    (!changed.is_empty()).then(|| json!({"conditions": changed}))
}

/// What a pod uses and what it has asked for.
fn demand(pod: &Value, shortage: Shortage) -> (i128, i128) {
    // Amounts are counted in thousandths.
    let asked = requests::of_pod(pod).get(shortage.resource()).copied().unwrap_or(0) / 1000;
    let said = json::annotation(pod, USES).and_then(|text| units(&Value::from(text)));
    let used = said.map_or_else(|| if asked == 0 { LITTLE } else { asked.min(LITTLE) }, i128::from);
    (used, asked)
}

fn priority(pod: &Value) -> i64 {
    json::integer(pod, "/spec/priority")
}

/// The pod that goes next: those above their requests first, then those of low priority, then those that are most above
/// (`rankMemoryPressure`).
pub fn victim<'p>(pods: impl Iterator<Item = &'p Value>, shortage: Shortage) -> Option<&'p Value> {
    // Nobody would bring a DaemonSet's pod back here.
    let stays = |pod: &Value| priority(pod) >= CRITICAL || json::label(pod, "kubevirt.io") == "virt-handler";
    let candidates = pods.filter(|pod| !stays(pod) && !json::is_deleting(pod));
    candidates.min_by_key(|pod| {
        let (used, asked) = demand(pod, shortage);
        (used <= asked, priority(pod), asked - used, json::name(pod).to_owned())
    })
}

/// Why a pod had to go.
pub fn message(node: &Value, pod: &Value, shortage: Shortage) -> String {
    let (resource, (threshold, left)) = (shortage.resource(), shortage.amounts(node));
    let (used, asked) = demand(pod, shortage);
    let mut message = format!(
        "The node was low on resource: {resource}. Threshold quantity: {threshold}, available: {left}. "
    );
    if let Some(container) = list(pod, "/spec/containers").first().filter(|_| used > asked) {
        let asked = text(container, &format!("/resources/requests/{resource}"));
        let (name, asked) = (text(container, "/name"), if asked.is_empty() { "0" } else { asked });
        let used = format!("was using {}Ki, request is {asked}", used / 1024);
        message = format!("{message}Container {name} {used}, has larger consumption of {resource}. ");
    }
    message
}

/// The status of a pod that was ended.
pub fn evicted(pod: &Value, message: &str, now: Timestamp) -> Value {
    let mut status = super::decide::terminated(pod, true, now);
    status["reason"] = "Evicted".into();
    status["message"] = message.into();
    // It was killed.
    for container in status["containerStatuses"].as_array_mut().into_iter().flatten() {
        if let Some(ended) = container.pointer_mut("/state/terminated") {
            ended["exitCode"] = 137.into();
        }
    }
    if let Some(conditions) = status["conditions"].as_array_mut() {
        conditions
            .push(json!({"type": "DisruptionTarget", "status": "True", "reason": "TerminationByKubelet",
            "message": message, "lastProbeTime": null, "lastTransitionTime": time(now)}));
    }
    status
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(name: &str, memory: &str, priority: i64, uses: &str) -> Value {
        let requests = if memory.is_empty() { json!({}) } else { json!({"memory": memory}) };
        let mut pod = json!({"metadata": {"name": name, "annotations": {}},
            "spec": {"priority": priority, "containers": [{"name": "c", "resources": {"requests": requests}}]},
            "status": {"containerStatuses": [{"name": "c", "state": {"running": {"startedAt": ""}}}]}});
        if !uses.is_empty() {
            pod["metadata"]["annotations"][USES] = uses.into();
        }
        pod
    }

    #[test]
    fn who_uses_more_than_was_asked_for_goes_first_then_who_matters_least() {
        let mut pods = vec![
            pod("critical", "", CRITICAL, ""),
            pod("important", "64Mi", 10, ""),
            pod("large", "1Gi", 0, ""),
            pod("small", "16Mi", 0, ""),
            pod("asked-for-nothing", "", 0, ""),
            pod("hungry", "64Mi", 5, "1Gi"),
        ];
        let mut order = Vec::new();
        while let Some(next) = victim(pods.iter(), Shortage::Memory).map(|pod| json::name(pod).to_owned()) {
            pods.retain(|pod| json::name(pod) != next);
            order.push(next);
        }
        assert_eq!(
            order,
            ["asked-for-nothing", "hungry", "small", "large", "important"],
            "the critical one stays"
        );
    }

    #[test]
    fn what_is_said_of_node_and_pod() {
        let annotated = |what: &str| {
            json!({"metadata": {"annotations": {PRESSURE: what}},
            "status": {"capacity": {"ephemeral-storage": "100Gi"},
                "conditions": crate::sim::node::conditions(Timestamp::UNIX_EPOCH)}})
        };
        let (memory, disk, neither) = (annotated("memory"), annotated("disk"), annotated(""));
        assert_eq!(
            (of(&memory), of(&disk), of(&neither)),
            (Some(Shortage::Memory), Some(Shortage::Disk), None)
        );
        let said = conditions(&memory, of(&memory), Timestamp::UNIX_EPOCH).unwrap();
        assert_eq!(said["conditions"][0]["reason"], "KubeletHasInsufficientMemory");
        assert_eq!(said["conditions"].as_array().unwrap().len(), 1, "the other one is what it was");
        assert_eq!(conditions(&neither, None, Timestamp::UNIX_EPOCH), None);
        let hungry = pod("hungry", "64Mi", 0, "1Gi");
        assert_eq!(
            message(&memory, &hungry, Shortage::Memory),
            "The node was low on resource: memory. Threshold quantity: 100Mi, available: 64Mi. Container c was using \
             1048576Ki, request is 64Mi, has larger consumption of memory. "
        );
        let status = evicted(&hungry, "why", Timestamp::UNIX_EPOCH);
        assert_eq!((text(&status, "/phase"), text(&status, "/reason")), ("Failed", "Evicted"));
        assert_eq!(status["containerStatuses"][0]["state"]["terminated"]["exitCode"], 137);
        assert_eq!(status["conditions"][2]["reason"], "TerminationByKubelet");
    }
}
