//! From raw objects to what a decision looks at.

use serde_json::Value;

use crate::json::{at, condition, flag, has_condition, list, text};
use crate::machine::{Actuation, Pod, Vmi, Wanted};
use crate::quantity::{bytes, millis};
use crate::resources::{Follows, Rules};
use crate::size::{Amount, Asked, Compute, Size};

/// kubelet's systemd driver rounds CPU quotas to 10 ms of a period of 100 ms.
const CPU_ROUNDING: u64 = 100;

fn number(object: &Value, pointer: &str) -> Option<u32> {
    u32::try_from(at(object, pointer)?.as_u64()?).ok()
}

/// The size in the spec of a VMI, or below `spec.template` of a VM.
fn size(object: &Value, prefix: &str) -> Size {
    Size {
        sockets: number(object, &format!("{prefix}/domain/cpu/sockets")).unwrap_or(1).max(1),
        guest: at(object, &format!("{prefix}/domain/memory/guest")).and_then(bytes).unwrap_or(0),
    }
}

/// `spec` of a VMI.
pub fn spec_size(vmi: &Value) -> Size {
    size(vmi, "/spec")
}

/// What a VM asks for. `vm` is one with its instancetype expanded (subresource `expand-spec`);
/// nothing when it names no guest memory, which then is not ours to change.
pub fn wanted(vm: &Value) -> Option<Wanted> {
    let domain = at(vm, "/spec/template/spec/domain")?;
    let names = |pointer: &str| at(domain, pointer).is_some();
    let size = size(vm, "/spec/template/spec");
    (size.guest > 0).then_some(Wanted {
        size,
        follows: Follows {
            cpu_request: names("/resources/requests/cpu"),
            cpu_limit: names("/resources/limits/cpu"),
            memory_limit: names("/resources/limits/memory"),
        },
    })
}

/// The parts of a VMI that a resize looks at.
pub fn vmi(vmi: &Value) -> Vmi {
    let asked = |pointer: &str, read: fn(&Value) -> Option<u64>| at(vmi, pointer).and_then(read);
    let spec = spec_size(vmi);
    let per = |name: &str| number(vmi, &format!("/spec/domain/cpu/{name}")).unwrap_or(1).max(1);
    Vmi {
        size: spec,
        status: Size {
            sockets: number(vmi, "/status/currentCPUTopology/sockets").unwrap_or(spec.sockets),
            guest: at(vmi, "/status/memory/guestRequested").and_then(bytes).unwrap_or(spec.guest),
        },
        asked: Asked {
            cpu_request: asked("/spec/domain/resources/requests/cpu", millis),
            cpu_limit: asked("/spec/domain/resources/limits/cpu", millis),
            memory_request: asked("/spec/domain/resources/requests/memory", bytes),
            memory_limit: asked("/spec/domain/resources/limits/memory", bytes),
        },
        vcpus_per_socket: per("cores").saturating_mul(per("threads")),
        overcommit_overhead: flag(vmi, "/spec/domain/resources/overcommitGuestOverhead"),
        migratable: has_condition(vmi, "LiveMigratable"),
        stock_at_work: condition(vmi, "HotVCPUChange").is_some() || has_condition(vmi, "HotMemoryChange"),
    }
}

/// Requests and limits of the container `compute`.
pub fn pod_compute(pod: &Value) -> Compute {
    let container =
        list(pod, "/spec/containers").iter().find(|container| text(container, "/name") == "compute");
    container
        .map(|container| compute(container, "/resources/requests", "/resources/limits"))
        .unwrap_or_default()
}

fn compute(object: &Value, requests: &str, limits: &str) -> Compute {
    let read = |side: &str, name: &str, of: fn(&Value) -> Option<u64>| {
        at(object, side).and_then(|side| side.get(name)).and_then(of)
    };
    let amount = |name: &str, of: fn(&Value) -> Option<u64>| {
        let limit = read(limits, name, of);
        Amount { request: read(requests, name, of).or(limit).unwrap_or(0), limit }
    };
    Compute { cpu: amount("cpu", millis), memory: amount("memory", bytes) }
}

/// The launcher pod with what kubelet has made of its spec.
pub fn pod(pod: &Value) -> Pod {
    Pod { uid: text(pod, "/metadata/uid").to_owned(), spec: pod_compute(pod), state: actuation(pod) }
}

/// KEP-1287's rule for "done", and what else it may be. Conditions alone do not tell: right after
/// a patch there are none yet.
fn actuation(pod: &Value) -> Actuation {
    let message = |condition: &Value| text(condition, "/message").to_owned();
    if let Some(pending) = condition(pod, "PodResizePending").filter(|one| text(one, "/status") == "True") {
        return match text(pending, "/reason") {
            "Infeasible" => Actuation::Infeasible(message(pending)),
            _ => Actuation::Deferred(message(pending)),
        };
    }
    if let Some(running) = condition(pod, "PodResizeInProgress").filter(|one| text(one, "/status") == "True")
    {
        return match text(running, "/reason") {
            "Error" => Actuation::Error(message(running)),
            _ => Actuation::Pending,
        };
    }
    let generation = at(pod, "/metadata/generation").and_then(Value::as_i64).unwrap_or(0);
    let observed = at(pod, "/status/observedGeneration").and_then(Value::as_i64);
    // Kubelets before 1.34 do not write observedGeneration; the amounts below tell as well.
    if observed.is_some_and(|observed| observed < generation) {
        return Actuation::Pending;
    }
    let Some(status) =
        list(pod, "/status/containerStatuses").iter().find(|status| text(status, "/name") == "compute")
    else {
        return Actuation::Pending;
    };
    let spec = pod_compute(pod);
    let allocated = compute(status, "/allocatedResources", "/none");
    let actual = compute(status, "/resources/requests", "/resources/limits");
    let same_requests =
        allocated.cpu.request == spec.cpu.request && allocated.memory.request == spec.memory.request;
    let same_limits = actual.memory.limit == spec.memory.limit && near(actual.cpu.limit, spec.cpu.limit);
    if same_requests && same_limits { Actuation::Done } else { Actuation::Pending }
}

fn near(one: Option<u64>, other: Option<u64>) -> bool {
    match (one, other) {
        (Some(one), Some(other)) => one.abs_diff(other) < CPU_ROUNDING,
        (one, other) => one == other,
    }
}

/// Whether a pod can be the one that the guest runs in: of this VMI, on its node, alive.
pub fn is_active_launcher(pod: &Value, vmi: &Value) -> bool {
    let owner = list(pod, "/metadata/ownerReferences")
        .iter()
        .any(|owner| text(owner, "/uid") == text(vmi, "/metadata/uid") && flag(owner, "/controller"));
    owner
        && at(pod, "/metadata/deletionTimestamp").is_none()
        && text(pod, "/status/phase") == "Running"
        && text(pod, "/metadata/labels/kubevirt.io") == "virt-launcher"
        && text(pod, "/spec/nodeName") == text(vmi, "/status/nodeName")
        && !text(pod, "/spec/nodeName").is_empty()
}

/// What the cluster's `KubeVirt` object configures.
pub fn rules(kubevirt: &Value) -> Rules {
    let default = Rules::default();
    let configured = |pointer: &str, default: u32| {
        number(kubevirt, &format!("/spec/configuration/{pointer}"))
            .filter(|value| *value > 0)
            .unwrap_or(default)
    };
    let ratio = at(kubevirt, "/spec/configuration/additionalGuestMemoryOverheadRatio").and_then(millis);
    Rules {
        cpu_allocation_ratio: configured(
            "developerConfiguration/cpuAllocationRatio",
            default.cpu_allocation_ratio,
        ),
        memory_overcommit: configured("developerConfiguration/memoryOvercommit", default.memory_overcommit),
        overhead_ratio: ratio
            .and_then(|ratio| u32::try_from(ratio).ok())
            .filter(|ratio| *ratio > 0)
            .unwrap_or(default.overhead_ratio),
    }
}

/// Whether sockets and memory of running VMs change at all: `vmRolloutStrategy`.
pub fn is_live_update(kubevirt: &Value) -> bool {
    matches!(text(kubevirt, "/spec/configuration/vmRolloutStrategy"), "" | "LiveUpdate")
}

/// A guest as its launcher shows it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Guest {
    /// vCPUs that are enabled.
    pub vcpus: u32,
    /// Boot memory and what virtio-mem was asked for, bytes.
    pub requested: u64,
    /// Boot memory and what virtio-mem gives, bytes.
    pub current: u64,
}

/// The guest, from the JSON of the launcher's `GetDomain`. Nothing while there is no domain or it
/// does not run: what a domain that is off says of its memory is not to be relied on.
pub fn guest(domain: &Value, boot_memory: u64) -> Option<Guest> {
    if !matches!(text(domain, "/Status/Status"), "Running" | "Paused") {
        return None;
    }
    let enabled = list(domain, "/Spec/VCPUs/VCPU")
        .iter()
        .filter(|vcpu| text(vcpu, "/Enabled").eq_ignore_ascii_case("yes"))
        .count();
    let vcpus = match u32::try_from(enabled).ok()? {
        // A domain without the list has all of them on.
        0 => number(domain, "/Spec/VCPU/CPUs")?,
        some => some,
    };
    let device = at(domain, "/Spec/Devices/Memory/Target");
    let plugged = |name: &str| device.map_or(Some(0), |device| amount(device.get(name)?));
    Some(Guest {
        vcpus,
        // Not CurrentMemory: libvirt 11.3 counts it up at every guest reset.
        requested: boot_memory.checked_add(plugged("Requested")?)?,
        current: boot_memory.checked_add(plugged("Current")?)?,
    })
}

/// `{"Value": 524288, "Unit": "KiB"}`
fn amount(value: &Value) -> Option<u64> {
    let number = value.get("Value")?.as_u64()?;
    let unit = match text(value, "/Unit") {
        "" | "b" | "bytes" => 1,
        "k" | "KiB" => 1 << 10,
        "M" | "MiB" => 1 << 20,
        "G" | "GiB" => 1 << 30,
        _ => return None,
    };
    number.checked_mul(unit)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[allow(clippy::needless_pass_by_value, reason = "short tables")]
    fn pod_with(generation: i64, conditions: Value, status: Value) -> Value {
        json!({"metadata": {"uid": "u", "generation": generation},
            "spec": {"containers": [{"name": "side"}, {"name": "compute", "resources":
                {"requests": {"cpu": "400m", "memory": "2Gi"}, "limits": {"cpu": "2", "memory": "4Gi"}}}]},
            "status": {"observedGeneration": 2, "conditions": conditions, "containerStatuses": [status]}})
    }

    fn status(cpu: &str, memory: &str, cpu_limit: &str) -> Value {
        json!({"name": "compute", "allocatedResources": {"cpu": cpu, "memory": memory},
            "resources": {"requests": {"cpu": cpu}, "limits": {"cpu": cpu_limit, "memory": "4Gi"}}})
    }

    #[test]
    fn a_resize_is_done_when_everything_says_so() {
        let done = || status("400m", "2Gi", "2");
        let waiting = |reason: &str| json!([{"type": "PodResizePending", "status": "True", "reason": reason, "message": "m"}]);
        let running = |reason: &str| json!([{"type": "PodResizeInProgress", "status": "True", "reason": reason, "message": "m"}]);
        for (what, pod, expected) in [
            ("all alike", pod_with(2, json!([]), done()), Actuation::Done),
            (
                "CPU quota in steps of 10 ms",
                pod_with(2, json!([]), status("400m", "2Gi", "1990m")),
                Actuation::Done,
            ),
            ("not seen yet", pod_with(3, json!([]), done()), Actuation::Pending),
            ("not allocated", pod_with(2, json!([]), status("200m", "2Gi", "2")), Actuation::Pending),
            ("limit not there", pod_with(2, json!([]), status("400m", "2Gi", "1")), Actuation::Pending),
            ("no report", pod_with(2, json!([]), json!({})), Actuation::Pending),
            ("deferred", pod_with(2, waiting("Deferred"), done()), Actuation::Deferred("m".into())),
            ("infeasible", pod_with(2, waiting("Infeasible"), done()), Actuation::Infeasible("m".into())),
            ("in progress", pod_with(2, running(""), done()), Actuation::Pending),
            ("failed", pod_with(2, running("Error"), done()), Actuation::Error("m".into())),
        ] {
            assert_eq!(super::pod(&pod).state, expected, "{what}");
        }
    }

    /// As a launcher of KubeVirt v1.9 with libvirt 11.3 shows it.
    #[test]
    fn a_guest_is_counted_by_its_vcpus_and_its_virtio_mem_device() {
        let vcpu = |enabled: &str| json!({"Enabled": enabled});
        let kib = |value: u64| json!({"Value": value, "Unit": "KiB"});
        let mut domain = json!({"Status": {"Status": "Running"}, "Spec": {
            "CurrentMemory": kib(8 << 20), "VCPU": {"CPUs": 4},
            "VCPUs": {"VCPU": [vcpu("yes"), vcpu("yes"), vcpu("yes"), vcpu("no")]},
            "Devices": {"Memory": {"Target": {"Size": kib(3 << 20), "Requested": kib(1 << 20), "Current": kib(512 << 10)}}}}});
        let boot = 1 << 30;
        let expected = Guest { vcpus: 3, requested: 2 << 30, current: 3 << 29 };
        assert_eq!(guest(&domain, boot), Some(expected), "CurrentMemory drifts and is not looked at");
        domain["Spec"]["Devices"]["Memory"] = Value::Null;
        assert_eq!(guest(&domain, boot), Some(Guest { requested: boot, current: boot, ..expected }));
        domain["Status"]["Status"] = "Shutoff".into();
        assert_eq!(guest(&domain, boot), None);
        assert_eq!(guest(&json!({}), boot), None);
    }

    #[test]
    fn a_vmi_and_its_vm_are_read() {
        let vmi = super::vmi(&json!({"spec": {"domain": {"cpu": {"sockets": 2, "cores": 2, "threads": 2},
            "memory": {"guest": "1Gi"}, "resources": {"requests": {"memory": "1Gi"}, "limits": {"cpu": "500m"}}}},
            "status": {"currentCPUTopology": {"sockets": 1}, "memory": {"guestRequested": "2Gi"},
                "conditions": [{"type": "LiveMigratable", "status": "True"}, {"type": "HotVCPUChange", "status": "False"}]}}));
        assert_eq!(vmi.size, Size { sockets: 2, guest: 1 << 30 });
        assert_eq!(vmi.status, Size { sockets: 1, guest: 2 << 30 });
        assert_eq!((vmi.vcpus_per_socket, vmi.migratable, vmi.stock_at_work), (4, true, true));
        assert_eq!((vmi.asked.memory_request, vmi.asked.cpu_limit), (Some(1 << 30), Some(500)));
        let vm = json!({"spec": {"template": {"spec": {"domain": {"memory": {"guest": "2Gi"},
            "resources": {"limits": {"memory": "3Gi"}}}}}}});
        let wanted = wanted(&vm).unwrap();
        assert_eq!(wanted.size, Size { sockets: 1, guest: 2 << 30 });
        assert!(wanted.follows.memory_limit && !wanted.follows.cpu_limit);
        assert_eq!(super::wanted(&json!({})), None);
    }

    #[test]
    fn the_cluster_configures_ratios() {
        let kubevirt = json!({"spec": {"configuration": {"additionalGuestMemoryOverheadRatio": "1.5",
            "vmRolloutStrategy": "Stage",
            "developerConfiguration": {"cpuAllocationRatio": 4, "memoryOvercommit": 150}}}});
        let expected = Rules { cpu_allocation_ratio: 4, memory_overcommit: 150, overhead_ratio: 1500 };
        assert_eq!(rules(&kubevirt), expected);
        assert!(!is_live_update(&kubevirt));
        assert_eq!(rules(&Value::Null), Rules::default());
        assert!(is_live_update(&Value::Null));
    }
}
