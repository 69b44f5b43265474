//! What a pod asks of a node: the sum that scheduler and kubelet count with
//! (`k8s.io/component-helpers/resource PodRequests`, Kubernetes 1.36).

use std::collections::BTreeMap;

use apimachinery::tree::{Map, Value};

use super::json::{list, map};
use apimachinery::quantity::milli;

/// Resources by name, in thousandths.
pub type Amounts = BTreeMap<String, i128>;

/// A pod's requests: the larger of what its containers and restartable init containers need
/// together, and what each init container needs while it runs; plus the overhead.
pub fn of_pod(pod: &Value) -> Amounts {
    let mut running = Amounts::new();
    for container in list(pod, "/spec/containers") {
        add(&mut running, &of_container(container));
    }
    let (mut sidecars, mut peak) = (Amounts::new(), Amounts::new());
    for container in list(pod, "/spec/initContainers") {
        let own = of_container(container);
        if container["restartPolicy"] == "Always" {
            add(&mut running, &own);
            add(&mut sidecars, &own);
            maximum(&mut peak, &sidecars);
        } else {
            let mut together = sidecars.clone();
            add(&mut together, &own);
            maximum(&mut peak, &together);
        }
    }
    maximum(&mut running, &peak);
    if let Some(overhead) = map(pod, "/spec/overhead") {
        for (name, value) in overhead {
            *running.entry(name.to_string()).or_default() += milli(value).unwrap_or_default();
        }
    }
    running
}

/// A container's requests; a limit counts where there is no request.
fn of_container(container: &Value) -> Amounts {
    let mut amounts = Amounts::new();
    for pointer in ["/resources/limits", "/resources/requests"] {
        for (name, value) in map(container, pointer).into_iter().flatten() {
            if let Some(amount) = milli(value) {
                amounts.insert(name.to_string(), amount);
            }
        }
    }
    amounts
}

/// The amounts of a `ResourceList`.
pub fn of_list(resources: Option<&Map>) -> Amounts {
    resources
        .into_iter()
        .flatten()
        .filter_map(|(name, value)| Some((name.to_string(), milli(value)?)))
        .collect()
}

pub fn add(to: &mut Amounts, more: &Amounts) {
    for (name, amount) in more {
        *to.entry(name.clone()).or_default() += amount;
    }
}

pub fn subtract(from: &mut Amounts, less: &Amounts) {
    for (name, amount) in less {
        *from.entry(name.clone()).or_default() -= amount;
    }
}

fn maximum(of: &mut Amounts, other: &Amounts) {
    for (name, amount) in other {
        let have = of.entry(name.clone()).or_default();
        *have = (*have).max(*amount);
    }
}

/// A pod that still holds its resources: it has not ended.
pub fn holds(pod: &Value) -> bool {
    !matches!(super::json::text(pod, "/status/phase"), "Succeeded" | "Failed")
}

#[cfg(test)]
mod tests {
    use apimachinery::tree::json;

    use super::*;

    #[test]
    fn sidecars_add_up_and_init_containers_peak() {
        let pod = json!({"spec": {
            "overhead": {"memory": "10"},
            "initContainers": [
                {"restartPolicy": "Always", "resources": {"requests": {"cpu": "5m", "memory": "35"}}},
                {"resources": {"requests": {"cpu": "900m", "memory": "1"}}},
            ],
            "containers": [{"resources": {"requests": {"cpu": "200m", "memory": "1000"},
                "limits": {"devices.kubevirt.io/kvm": "1"}}}],
        }});
        let amounts = of_pod(&pod);
        assert_eq!(amounts["cpu"], 905, "the init container runs beside the sidecar that started before it");
        assert_eq!(amounts["memory"], 1_045_000);
        assert_eq!(amounts["devices.kubevirt.io/kvm"], 1000, "a limit counts where there is no request");
    }
}
