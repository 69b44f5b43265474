//! What a VM costs beside its guest's memory (`pkg/hypervisor/kvm/hypervisorbackend.go`, v1.9).

use apimachinery::tree::Value;

use crate::sim::json::{list, text};
use apimachinery::quantity::units;

const MI: i64 = 1 << 20;
/// Monitor, launcher, virtlogd, virtqemud and QEMU.
const PROCESSES: i64 = (25 + 100 + 25 + 40 + 50) * MI;

/// The product of sockets, cores and threads; a zero counts as one.
pub fn vcpus(vmi: &Value) -> i64 {
    ["sockets", "cores", "threads"]
        .iter()
        .map(|key| {
            vmi.pointer(&format!("/spec/domain/cpu/{key}")).and_then(Value::as_i64).unwrap_or(1).max(1)
        })
        .product()
}

/// The memory overhead in bytes.
pub fn memory(vmi: &Value) -> i64 {
    let requested = vmi.pointer("/spec/domain/resources/requests/memory").and_then(units).unwrap_or(0);
    let devices = &vmi["spec"]["domain"]["devices"];
    let on = |pointer: &str| vmi.pointer(pointer) == Some(&Value::Bool(true));
    let passthrough = ["/gpus", "/hostDevices"].iter().any(|pointer| !list(devices, pointer).is_empty())
        || list(devices, "/interfaces").iter().any(|one| one.get("sriov").is_some());
    let guaranteed = || {
        let amount = |side: &str, name: &str| {
            vmi.pointer(&format!("/spec/domain/resources/{side}/{name}"))
                .filter(|value| units(value) > Some(0))
        };
        ["cpu", "memory"].iter().all(|name| {
            amount("limits", name).is_some() && amount("limits", name) == amount("requests", name)
        })
    };
    let probes: Vec<_> = ["/spec/livenessProbe/exec", "/spec/readinessProbe/exec"]
        .iter()
        .filter_map(|one| vmi.pointer(one))
        .collect();
    let mut total = requested / 512 + PROCESSES + 8 * MI * vcpus(vmi) + 8 * MI;
    for (applies, bytes) in [
        (devices.get("autoattachGraphicsDevice") != Some(&Value::Bool(false)), 32 * MI),
        (text(vmi, "/spec/architecture") == "arm64", 128 * MI),
        (passthrough, 1024 * MI),
        (list(vmi, "/spec/volumes").iter().any(|volume| volume.get("downwardMetrics").is_some()), MI),
        (vmi.pointer("/spec/domain/launchSecurity/sev").is_some(), 256 * MI),
        (vmi.pointer("/spec/domain/launchSecurity/snp").is_some(), 256 * MI),
        (devices.get("tpm").is_some_and(|tpm| tpm["enabled"] != false), 53 * MI),
        (on("/spec/domain/cpu/dedicatedCpuPlacement") || guaranteed(), 100 * MI),
        (!probes.is_empty(), 100 * MI),
    ] {
        total += if applies { bytes } else { 0 };
    }
    total += 10 * MI * i64::try_from(probes.len()).unwrap_or(0);
    let reserved =
        vmi.pointer("/spec/domain/memory/reservedOverhead/addedOverhead").and_then(units).unwrap_or(0);
    total + reserved
}

#[cfg(test)]
mod tests {
    use apimachinery::tree::json;

    use super::*;

    #[test]
    fn the_overhead_of_recorded_pods() {
        // Two and four vCPUs, recorded of virt-controller: 310378496 and 327155712 bytes.
        for (sockets, bytes) in [(2, 310_378_496), (4, 327_155_712)] {
            let vmi = json!({"spec": {"architecture": "amd64", "domain": {
                "cpu": {"cores": 1, "sockets": sockets, "threads": 1}, "devices": {}, "memory": {"guest": "1Gi"}}}});
            assert_eq!(memory(&vmi), bytes, "{sockets} sockets");
        }
    }

    #[test]
    fn what_adds_to_it() {
        let base = memory(&json!({"spec": {"domain": {"devices": {}}}}));
        for (spec, more) in [
            (json!({"domain": {"devices": {"autoattachGraphicsDevice": false}}}), -32 * MI),
            (json!({"domain": {"devices": {"gpus": [{}]}}}), 1024 * MI),
            (json!({"domain": {"devices": {"interfaces": [{"sriov": {}}]}}}), 1024 * MI),
            (json!({"domain": {"devices": {"tpm": {}}}}), 53 * MI),
            (json!({"domain": {"devices": {}, "resources": {"requests": {"memory": "1Gi"}}}}), 2 * MI),
            (json!({"domain": {"devices": {}, "cpu": {"dedicatedCpuPlacement": true}}}), 100 * MI),
            (json!({"domain": {"devices": {}}, "livenessProbe": {"exec": {}}}), 110 * MI),
        ] {
            assert_eq!(memory(&json!({"spec": spec})) - base, more, "{spec}");
        }
    }
}
