//! What VMs use, out of `metrics.k8s.io`: the CPU and memory of their launcher pods.
//!
//! The memory is that of QEMU and libvirt on the node, not what the guest counts as used; there is no
//! other source without the agent or KubeVirt's own metrics.

use apimachinery::quantity;
use serde::Serialize;
use serde_json::Value;

use crate::view::{list, text};

/// What one VM uses.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Usage {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// The launcher pod that was measured.
    pub pod: String,
    /// Thousandths of a CPU.
    pub cpu_milli: u64,
    /// Memory of the pod's `compute` container, bytes.
    pub memory_bytes: u64,
    /// When it was measured, RFC 3339.
    pub measured: String,
    /// Over how long, as Kubernetes writes it: `30s`.
    pub window: String,
    /// Where the figures are from.
    pub source: &'static str,
}

/// The one source so far.
pub const SOURCE: &str = "metrics.k8s.io";

/// Reads a `PodMetrics`; `None` for pods that run no VM.
pub fn of(metrics: &Value) -> Option<Usage> {
    let labels = metrics.pointer("/metadata/labels")?;
    // the domain label is cut at 63 characters, the annotation's is not there (v1.9)
    let name = ["vm.kubevirt.io/name", "kubevirt.io/domain"]
        .into_iter()
        .find_map(|label| labels.get(label).and_then(Value::as_str))?;
    let compute = list(metrics, "/containers").iter().find(|one| text(one, "/name") == "compute")?;
    let cpu = quantity::milli(compute.pointer("/usage/cpu")?)?;
    let memory = quantity::units(compute.pointer("/usage/memory")?)?;
    Some(Usage {
        namespace: text(metrics, "/metadata/namespace").into(),
        name: name.into(),
        pod: text(metrics, "/metadata/name").into(),
        cpu_milli: u64::try_from(cpu).ok()?,
        memory_bytes: u64::try_from(memory).ok()?,
        measured: text(metrics, "/timestamp").into(),
        window: text(metrics, "/window").into(),
        source: SOURCE,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_compute_container_is_the_vm() {
        let metrics = json!({"metadata": {"name": "virt-launcher-web-x", "namespace": "prod",
                "labels": {"kubevirt.io": "virt-launcher", "vm.kubevirt.io/name": "web"}},
            "timestamp": "2026-11-01T00:00:00Z", "window": "15s", "containers": [
                {"name": "guest-console-log", "usage": {"cpu": "1m", "memory": "1Mi"}},
                {"name": "compute", "usage": {"cpu": "250123456n", "memory": "524288Ki"}}]});
        let usage = of(&metrics).unwrap();
        assert_eq!((usage.name.as_str(), usage.cpu_milli, usage.memory_bytes), ("web", 251, 512 << 20));
        assert_eq!(of(&json!({"metadata": {"labels": {}}, "containers": []})), None);
    }
}
