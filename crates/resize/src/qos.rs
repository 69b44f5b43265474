//! The `qosClass` of a pod (`ComputePodQOS`, Kubernetes 1.36). It is fixed for life: the API server
//! refuses a resize that would change it.

use std::fmt;

use serde_json::Value;

use crate::quantity;
use crate::size::Compute;

/// How the node treats a pod when memory runs out.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Qos {
    /// Every container has limits for both, and requests just that.
    Guaranteed,
    /// Something between.
    Burstable,
    /// Nobody asks for anything.
    BestEffort,
}

impl fmt::Display for Qos {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Guaranteed => "Guaranteed",
            Self::Burstable => "Burstable",
            Self::BestEffort => "BestEffort",
        })
    }
}

/// One container's requests and limits, thousandths of CPUs and bytes.
struct Share {
    cpu: (Option<u64>, Option<u64>),
    memory: (Option<u64>, Option<u64>),
}

/// The class that a pod has when its container `compute` is given other resources.
pub fn class_with(pod: &Value, compute: Compute) -> Qos {
    let shares: Vec<Share> = ["initContainers", "containers"]
        .iter()
        .filter_map(|list| pod.get("spec")?.get(list)?.as_array())
        .flatten()
        .map(|container| {
            if container.get("name").and_then(Value::as_str) == Some("compute") {
                let some = |value: u64| Some(value).filter(|value| *value > 0);
                Share {
                    cpu: (some(compute.cpu.request), compute.cpu.limit.and_then(some)),
                    memory: (some(compute.memory.request), compute.memory.limit.and_then(some)),
                }
            } else {
                share(container)
            }
        })
        .collect();
    class(&shares)
}

fn share(container: &Value) -> Share {
    let read = |side: &str, name: &str, of: fn(&Value) -> Option<u64>| {
        container.get("resources")?.get(side)?.get(name).and_then(of).filter(|value| *value > 0)
    };
    let both = |name: &str, of: fn(&Value) -> Option<u64>| {
        let limit = read("limits", name, of);
        // The API server defaults requests to limits.
        (read("requests", name, of).or(limit), limit)
    };
    Share { cpu: both("cpu", quantity::millis), memory: both("memory", quantity::bytes) }
}

fn class(shares: &[Share]) -> Qos {
    let nothing = |(request, limit): (Option<u64>, Option<u64>)| request.is_none() && limit.is_none();
    let exact = |(request, limit): (Option<u64>, Option<u64>)| limit.is_some() && request == limit;
    if shares.iter().all(|share| nothing(share.cpu) && nothing(share.memory)) {
        Qos::BestEffort
    } else if shares.iter().all(|share| exact(share.cpu) && exact(share.memory)) {
        Qos::Guaranteed
    } else {
        Qos::Burstable
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::size::Amount;

    #[test]
    fn classes_are_those_of_kubernetes() {
        let pod = |side: Value| json!({"spec": {"containers": [{"name": "compute"}, {"name": "side", "resources": side}]}});
        let amount = |request, limit| Amount { request, limit };
        let guaranteed = Compute { cpu: amount(2000, Some(2000)), memory: amount(5, Some(5)) };
        let burstable = Compute { cpu: amount(200, None), memory: amount(5, None) };
        let full = json!({"limits": {"cpu": "1", "memory": "1Gi"}});
        for (side, compute, expected) in [
            (full.clone(), guaranteed, Qos::Guaranteed),
            (full.clone(), Compute { cpu: amount(1000, Some(2000)), ..guaranteed }, Qos::Burstable),
            (json!({}), guaranteed, Qos::Burstable),
            (full, burstable, Qos::Burstable),
            (json!({}), Compute::default(), Qos::BestEffort),
            (json!({"requests": {"cpu": 0}}), Compute::default(), Qos::BestEffort),
        ] {
            assert_eq!(class_with(&pod(side.clone()), compute), expected, "{side} {compute:?}");
        }
    }
}
