//! What stands against resizing a VM in place. Each case says what is wrong and what to do.
//!
//! From KubeVirt v1.9 (`watch/vm/vm.go`, `liveupdate/memory/memory.go`), Kubernetes 1.33 to 1.36
//! (`ValidatePodResize`, kubelet's `allocation/handlers.go`) and KEP-1287.

use std::fmt;

use serde_json::Value;

use crate::json::{at, flag, has_condition, list, text};
use crate::machine::Vmi;
use crate::qos::{self, Qos};
use crate::quantity::{self, show_bytes};
use crate::size::{Compute, Size};

/// virtio-mem grows in blocks of this size, bytes.
const BLOCK: u64 = 2 << 20;
/// KubeVirt plugs memory only into guests with at least so much, bytes.
const SMALLEST_GUEST: u64 = 1 << 30;
/// In-place pod resize is on by default from this minor version of Kubernetes on.
pub const FIRST_KUBERNETES: u32 = 33;
/// From here on memory limits may be lowered in place.
const LOWER_LIMITS: u32 = 34;
/// Up to here a container with `resources.claims` is refused (kubernetes PR 138641).
const CLAIMS_REFUSED: u32 = 35;

/// One thing that stands in the way.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub enum Obstacle {
    /// `dedicatedCpuPlacement`: the CPU manager has pinned the pod's CPUs.
    DedicatedCpus,
    /// A Guaranteed pod on a node whose CPU manager is static, and CPU changes.
    StaticCpuManager,
    /// A Guaranteed pod on a node whose memory manager is static, and memory changes.
    StaticMemoryManager,
    /// Memory from hugepages cannot be resized.
    Hugepages,
    /// A container of the pod uses a dynamic resource claim, refused up to Kubernetes 1.35.
    ResourceClaims,
    /// The node swaps, and the pod's memory request changes (with vCPUs, too: their overhead).
    Swap,
    /// Sockets are never taken away from a running guest.
    FewerSockets,
    /// More sockets than the guest was started for.
    AboveMaxSockets(u32),
    /// The guest was started without room for more sockets.
    NoMaxSockets,
    /// More memory than the guest was started for, bytes.
    AboveMaxGuest(u64),
    /// The guest was started without room for more memory.
    NoMaxGuest,
    /// Less memory than the guest was started with, bytes.
    BelowBoot(u64),
    /// `realtime`
    Realtime,
    /// `numa.guestMappingPassthrough`
    NumaPassthrough,
    /// SEV, SNP or TDX.
    LaunchSecurity,
    /// arm64 guests have neither CPU nor memory hotplug.
    Arm64,
    /// Another architecture than amd64, and memory changes.
    NoMemoryHotplug,
    /// The guest has less than 1 GiB.
    SmallGuest,
    /// The amount is no multiple of 2 MiB.
    Misaligned,
    /// The VM cannot migrate, so KubeVirt asks for a restart, and the grant to declare it is absent.
    MemoryNeedsGrant,
    /// The cluster's `vmRolloutStrategy` is not `LiveUpdate`.
    NotLiveUpdate,
    /// Kubernetes is too old: its minor version.
    OldKubernetes(u32),
    /// The node does not report what containers really have.
    NodeWithoutResize,
    /// The pod has pod-level resources.
    PodLevelResources,
    /// Lowering a memory limit needs a newer Kubernetes: the minor version that runs.
    LowerLimit(u32),
    /// The class of service (`qosClass`) would change.
    QosChange(String),
    /// The VMI is paused.
    Paused,
    /// The VMI is migrating.
    Migrating,
    /// The VMI does not run (yet).
    NotRunning,
    /// The VMI is being deleted.
    Deleting,
}

impl Obstacle {
    /// It passes by itself: patches stay held until then.
    pub fn is_temporary(&self) -> bool {
        matches!(self, Self::Paused | Self::Migrating | Self::NotRunning | Self::Deleting)
    }
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::DedicatedCpus => f.write_str(
                "dedicatedCpuPlacement pins the pod's CPUs: they cannot change in place, migrate or restart instead",
            ),
            Self::StaticCpuManager => f.write_str(
                "the pod is Guaranteed and its node has a static CPU manager: migrate to a node without one",
            ),
            Self::StaticMemoryManager => f.write_str(
                "the pod is Guaranteed and its node has a static memory manager: migrate to a node without one",
            ),
            Self::Hugepages => f.write_str("memory from hugepages cannot change in place: migrate or restart"),
            Self::ResourceClaims => {
                f.write_str("the pod uses dynamic resource claims: Kubernetes resizes it from 1.36 on")
            }
            Self::Swap => f.write_str(
                "the node swaps, and kubelet refuses to change the memory of containers that may: migrate to a node without swap",
            ),
            Self::FewerSockets => f.write_str("sockets are never taken from a running guest: restart the VM"),
            Self::AboveMaxSockets(most) => write!(
                f,
                "the guest was started for at most {most} sockets: raise spec.template.spec.domain.cpu.maxSockets and restart the VM"
            ),
            Self::NoMaxSockets => f.write_str(
                "the guest was started without maxSockets: set it, or vmRolloutStrategy LiveUpdate, and restart the VM",
            ),
            Self::AboveMaxGuest(most) => write!(
                f,
                "the guest was started for at most {}: raise spec.template.spec.domain.memory.maxGuest and restart the VM",
                show_bytes(*most)
            ),
            Self::NoMaxGuest => f.write_str(
                "the guest was started without maxGuest: set it, or vmRolloutStrategy LiveUpdate, and restart the VM",
            ),
            Self::BelowBoot(least) => write!(
                f,
                "the guest was started with {}, which it keeps: restart the VM for less",
                show_bytes(*least)
            ),
            Self::Realtime => f.write_str("realtime guests take no memory while they run: restart the VM"),
            Self::NumaPassthrough => {
                f.write_str("numa.guestMappingPassthrough fixes the guest's memory: restart the VM")
            }
            Self::LaunchSecurity => {
                f.write_str("the memory of confidential guests is measured at start: restart the VM")
            }
            Self::Arm64 => f.write_str("arm64 guests have no CPU hotplug: restart the VM"),
            Self::NoMemoryHotplug => f.write_str("only amd64 guests have memory hotplug: restart the VM"),
            Self::SmallGuest => f.write_str("guests with less than 1Gi take no memory while they run: restart the VM"),
            Self::Misaligned => f.write_str("guest memory grows in steps of 2Mi (1Gi with hugepages of 1Gi): round it"),
            Self::MemoryNeedsGrant => f.write_str(
                "the VM cannot migrate, so KubeVirt waits for a restart: install the chart with resize.declareMemory=true, or restart the VM",
            ),
            Self::NotLiveUpdate => {
                f.write_str("the KubeVirt CR's vmRolloutStrategy is not LiveUpdate: set it, or restart the VM")
            }
            Self::OldKubernetes(minor) => {
                write!(f, "Kubernetes 1.{minor} does not resize pods: it is on from 1.{FIRST_KUBERNETES} on")
            }
            Self::NodeWithoutResize => f.write_str(
                "the node does not report resources of running containers: its kubelet or container runtime is too old",
            ),
            Self::PodLevelResources => f.write_str("the pod has pod-level resources, which are not resized: remove them"),
            Self::LowerLimit(minor) => write!(
                f,
                "Kubernetes 1.{minor} does not lower memory limits of running pods: it does from 1.{LOWER_LIMITS} on"
            ),
            Self::QosChange(how) => {
                write!(f, "the pod's QoS class would change ({how}), which Kubernetes refuses: keep requests and limits alike")
            }
            Self::Paused => f.write_str("the VM is paused: unpause it"),
            Self::Migrating => f.write_str("the VM is migrating: it is resized afterwards"),
            Self::NotRunning => f.write_str("the VM does not run"),
            Self::Deleting => f.write_str("the VM is being deleted"),
        }
    }
}

/// What a VMI itself tells, without a look at anything else.
pub fn of_vmi(vmi: &Value, to: Size) -> Vec<Obstacle> {
    let mut found = Vec::new();
    if at(vmi, "/metadata/deletionTimestamp").is_some() {
        found.push(Obstacle::Deleting);
    }
    if text(vmi, "/status/phase") != "Running" {
        found.push(Obstacle::NotRunning);
    }
    if has_condition(vmi, "Paused") {
        found.push(Obstacle::Paused);
    }
    if is_migrating(vmi) {
        found.push(Obstacle::Migrating);
    }
    let from = crate::view::spec_size(vmi);
    if flag(vmi, "/spec/domain/cpu/dedicatedCpuPlacement") {
        found.push(Obstacle::DedicatedCpus);
    }
    if to.sockets != from.sockets {
        cpu(vmi, from, to, &mut found);
    }
    if to.guest != from.guest {
        memory(vmi, to, &mut found);
    }
    found
}

/// `IsMigrating` (`pkg/util/migrations`, v1.9): started, not ended.
pub fn is_migrating(vmi: &Value) -> bool {
    at(vmi, "/status/migrationState/startTimestamp").is_some()
        && at(vmi, "/status/migrationState/endTimestamp").is_none()
}

fn cpu(vmi: &Value, from: Size, to: Size, found: &mut Vec<Obstacle>) {
    if text(vmi, "/spec/architecture") == "arm64" {
        found.push(Obstacle::Arm64);
    }
    if to.sockets < from.sockets {
        found.push(Obstacle::FewerSockets);
    }
    match at(vmi, "/spec/domain/cpu/maxSockets").and_then(Value::as_u64) {
        None | Some(0) => found.push(Obstacle::NoMaxSockets),
        Some(most) if u64::from(to.sockets) > most => {
            found.push(Obstacle::AboveMaxSockets(u32::try_from(most).unwrap_or(u32::MAX)));
        }
        Some(_) => {}
    }
}

fn memory(vmi: &Value, to: Size, found: &mut Vec<Obstacle>) {
    for (pointer, obstacle) in [
        ("/spec/domain/memory/hugepages", Obstacle::Hugepages),
        ("/spec/domain/cpu/realtime", Obstacle::Realtime),
        ("/spec/domain/cpu/numa/guestMappingPassthrough", Obstacle::NumaPassthrough),
        ("/spec/domain/launchSecurity", Obstacle::LaunchSecurity),
    ] {
        if at(vmi, pointer).is_some_and(|value| !value.is_null()) {
            found.push(obstacle);
        }
    }
    if !matches!(text(vmi, "/spec/architecture"), "" | "amd64") {
        found.push(Obstacle::NoMemoryHotplug);
    }
    let amount = |pointer| at(vmi, pointer).and_then(quantity::bytes);
    let boot = amount("/status/memory/guestAtBoot");
    match amount("/spec/domain/memory/maxGuest") {
        Some(most) if to.guest > most => found.push(Obstacle::AboveMaxGuest(most)),
        Some(most) if boot.is_some_and(|boot| most > boot) => {}
        _ => found.push(Obstacle::NoMaxGuest),
    }
    if let Some(boot) = boot
        && to.guest < boot
    {
        found.push(Obstacle::BelowBoot(boot));
    }
    if boot.is_some_and(|boot| boot < SMALLEST_GUEST) || to.guest < SMALLEST_GUEST {
        found.push(Obstacle::SmallGuest);
    }
    if !to.guest.is_multiple_of(BLOCK) {
        found.push(Obstacle::Misaligned);
    }
}

/// What the cluster tells.
#[derive(Clone, Copy, Debug)]
pub struct Surroundings<'a> {
    /// The launcher pod.
    pub pod: &'a Value,
    /// The node that it runs on; null when it is not known.
    pub node: &'a Value,
    /// The minor version of Kubernetes.
    pub kubernetes_minor: u32,
    /// `vmRolloutStrategy` is `LiveUpdate`.
    pub live_update: bool,
    /// The grant to declare memory is there.
    pub may_declare: bool,
}

/// What pod, node and cluster tell. `larger` is what the pod has for a while, `last` what it ends
/// with.
pub fn of_surroundings(
    vmi: &Vmi,
    to: Size,
    (larger, last): (Compute, Compute),
    around: &Surroundings<'_>,
) -> Vec<Obstacle> {
    let mut found = Vec::new();
    let (pod, minor) = (around.pod, around.kubernetes_minor);
    if minor < FIRST_KUBERNETES {
        found.push(Obstacle::OldKubernetes(minor));
    }
    if !around.live_update {
        found.push(Obstacle::NotLiveUpdate);
    }
    if to.guest != vmi.size.guest && !vmi.migratable && !around.may_declare {
        found.push(Obstacle::MemoryNeedsGrant);
    }
    if at(pod, "/spec/resources").is_some_and(|value| value.as_object().is_some_and(|map| !map.is_empty())) {
        found.push(Obstacle::PodLevelResources);
    }
    let claims = |container: &Value| !list(container, "/resources/claims").is_empty();
    if minor <= CLAIMS_REFUSED && list(pod, "/spec/containers").iter().any(claims) {
        found.push(Obstacle::ResourceClaims);
    }
    let reported = list(pod, "/status/containerStatuses")
        .iter()
        .any(|status| text(status, "/name") == "compute" && at(status, "/resources").is_some());
    if !reported {
        found.push(Obstacle::NodeWithoutResize);
    }
    let now = crate::view::pod_compute(pod);
    if last.memory.limit < now.memory.limit && minor < LOWER_LIMITS {
        found.push(Obstacle::LowerLimit(minor));
    }
    let is = qos::class_with(pod, now);
    if let Some(other) =
        [larger, last].iter().map(|compute| qos::class_with(pod, *compute)).find(|class| *class != is)
    {
        found.push(Obstacle::QosChange(format!("{is} to {other}")));
    }
    on_node(now, larger, is, around.node, &mut found);
    found
}

fn on_node(now: Compute, larger: Compute, class: Qos, node: &Value, found: &mut Vec<Obstacle>) {
    let label = |name: &str| {
        at(node, "/metadata/labels").and_then(|labels| labels.get(name)?.as_str()).unwrap_or_default()
    };
    let guaranteed = class == Qos::Guaranteed;
    // virt-handler's heartbeat writes this label when kubelet's CPU manager is static.
    if guaranteed && larger.cpu != now.cpu && label("cpumanager") == "true" {
        found.push(Obstacle::StaticCpuManager);
    }
    // Nobody reports the memory manager; administrators may.
    if guaranteed && larger.memory != now.memory && label("vm-feature-manager.io/memory-manager") == "Static"
    {
        found.push(Obstacle::StaticMemoryManager);
    }
    let swap = at(node, "/status/nodeInfo/swap/capacity").and_then(Value::as_u64).unwrap_or(0);
    if swap > 0 && larger.memory.request != now.memory.request {
        found.push(Obstacle::Swap);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::size::Amount;
    use crate::view;

    const GI: u64 = 1 << 30;

    fn vmi(changes: &[(&str, Value)]) -> Value {
        let mut vmi = json!({
            "metadata": {},
            "spec": {"architecture": "amd64", "domain": {
                "cpu": {"sockets": 2, "cores": 1, "threads": 1, "maxSockets": 8, "realtime": null, "numa": {}},
                "memory": {"guest": "2Gi", "maxGuest": "8Gi"}, "resources": {}}},
            "status": {"phase": "Running", "memory": {"guestAtBoot": "2Gi"}, "conditions": []},
        });
        for (pointer, value) in changes {
            let (parent, key) = pointer.rsplit_once('/').unwrap();
            vmi.pointer_mut(parent).unwrap()[key] = value.clone();
        }
        vmi
    }

    /// Every case that a VMI itself shows, with the change that it stands against.
    #[test]
    fn what_a_vmi_shows() {
        let (cpu, memory) = (Size { sockets: 4, guest: 2 * GI }, Size { sockets: 2, guest: 4 * GI });
        let domain = |rest: &str| format!("/spec/domain/{rest}");
        let started = json!({"startTimestamp": "2026-01-01T00:00:00Z"});
        for (pointer, value, to, expected) in [
            (domain("cpu/dedicatedCpuPlacement"), json!(true), cpu, vec![Obstacle::DedicatedCpus]),
            (domain("cpu/dedicatedCpuPlacement"), json!(true), memory, vec![Obstacle::DedicatedCpus]),
            (domain("cpu/sockets"), json!(6), cpu, vec![Obstacle::FewerSockets]),
            (domain("cpu/maxSockets"), json!(3), cpu, vec![Obstacle::AboveMaxSockets(3)]),
            (domain("cpu/maxSockets"), json!(0), cpu, vec![Obstacle::NoMaxSockets]),
            (domain("cpu/maxSockets"), json!(3), memory, vec![]),
            (domain("memory/maxGuest"), json!("3Gi"), memory, vec![Obstacle::AboveMaxGuest(3 * GI)]),
            (domain("memory/maxGuest"), Value::Null, memory, vec![Obstacle::NoMaxGuest]),
            (domain("memory/hugepages"), json!({"pageSize": "2Mi"}), memory, vec![Obstacle::Hugepages]),
            (domain("memory/hugepages"), json!({"pageSize": "2Mi"}), cpu, vec![]),
            (domain("cpu/realtime"), json!({}), memory, vec![Obstacle::Realtime]),
            (
                domain("cpu/numa"),
                json!({"guestMappingPassthrough": {}}),
                memory,
                vec![Obstacle::NumaPassthrough],
            ),
            (domain("launchSecurity"), json!({"sev": {}}), memory, vec![Obstacle::LaunchSecurity]),
            ("/spec/architecture".into(), json!("arm64"), cpu, vec![Obstacle::Arm64]),
            ("/spec/architecture".into(), json!("s390x"), memory, vec![Obstacle::NoMemoryHotplug]),
            ("/status/memory/guestAtBoot".into(), json!("5Gi"), memory, vec![Obstacle::BelowBoot(5 * GI)]),
            ("/status/memory/guestAtBoot".into(), json!("512Mi"), memory, vec![Obstacle::SmallGuest]),
            ("/status/phase".into(), json!("Scheduled"), cpu, vec![Obstacle::NotRunning]),
            ("/status/migrationState".into(), started, cpu, vec![Obstacle::Migrating]),
            (
                "/metadata/deletionTimestamp".into(),
                json!("2026-01-01T00:00:00Z"),
                cpu,
                vec![Obstacle::Deleting],
            ),
            (
                "/status/conditions".into(),
                json!([{"type": "Paused", "status": "True"}]),
                cpu,
                vec![Obstacle::Paused],
            ),
            ("/status/phase".into(), json!("Running"), cpu, vec![]),
            ("/status/phase".into(), json!("Running"), memory, vec![]),
        ] {
            assert_eq!(of_vmi(&vmi(&[(&pointer, value.clone())]), to), expected, "{pointer} {value}");
        }
        let odd = Size { sockets: 2, guest: 4 * GI + 1 };
        assert_eq!(of_vmi(&vmi(&[]), odd), [Obstacle::Misaligned]);
    }

    fn amount(request: u64, limit: Option<u64>) -> Amount {
        Amount { request, limit }
    }

    #[test]
    fn what_pod_node_and_cluster_show() {
        let burstable = json!({"requests": {"cpu": "200m", "memory": "1320Mi"}});
        let guaranteed =
            json!({"requests": {"cpu": "2", "memory": "2Gi"}, "limits": {"cpu": "2", "memory": "2Gi"}});
        let pod = |resources: &Value, claims: Value, status: Value| {
            let mut container = json!({"name": "compute", "resources": resources});
            container["resources"]["claims"] = claims;
            json!({"spec": {"containers": [container]}, "status": {"containerStatuses": [status]}})
        };
        let reported = json!({"name": "compute", "resources": {}});
        let plain = pod(&burstable, json!([]), reported.clone());
        let exact = pod(&guaranteed, json!([]), reported.clone());
        let node = |labels: Value, swap: u64| json!({"metadata": {"labels": labels}, "status": {"nodeInfo": {"swap": {"capacity": swap}}}});
        let grown = |pod: &Value| {
            let now = view::pod_compute(pod);
            let more = |one: Amount| amount(one.request * 2, one.limit.map(|limit| limit * 2));
            Compute { cpu: more(now.cpu), memory: more(now.memory) }
        };
        let mut with_pod_resources = plain.clone();
        with_pod_resources["spec"]["resources"] = json!({"limits": {"cpu": "4"}});
        let quiet = node(json!({}), 0);
        let fixed = node(json!({"cpumanager": "true", "vm-feature-manager.io/memory-manager": "Static"}), 0);
        for (what, pod, node, minor, live, expected) in [
            ("all well", &plain, &quiet, 36, true, vec![]),
            ("Burstable on a static node", &plain, &fixed, 36, true, vec![]),
            (
                "Guaranteed on a static node",
                &exact,
                &fixed,
                36,
                true,
                vec![Obstacle::StaticCpuManager, Obstacle::StaticMemoryManager],
            ),
            ("swap", &plain, &node(json!({}), 1 << 30), 36, true, vec![Obstacle::Swap]),
            ("old", &plain, &quiet, 32, true, vec![Obstacle::OldKubernetes(32)]),
            ("no live update", &plain, &quiet, 36, false, vec![Obstacle::NotLiveUpdate]),
            (
                "claims",
                &pod(&burstable, json!([{"name": "gpu"}]), reported.clone()),
                &quiet,
                35,
                true,
                vec![Obstacle::ResourceClaims],
            ),
            ("claims, newer", &pod(&burstable, json!([{"name": "gpu"}]), reported), &quiet, 36, true, vec![]),
            (
                "no report",
                &pod(&burstable, json!([]), json!({"name": "compute"})),
                &quiet,
                36,
                true,
                vec![Obstacle::NodeWithoutResize],
            ),
            ("pod level", &with_pod_resources, &quiet, 36, true, vec![Obstacle::PodLevelResources]),
        ] {
            let around =
                Surroundings { pod, node, kubernetes_minor: minor, live_update: live, may_declare: false };
            let vmi = Vmi { migratable: true, ..Vmi::default() };
            let got = of_surroundings(&vmi, vmi.size, (grown(pod), grown(pod)), &around);
            assert_eq!(got, expected, "{what}");
        }
    }

    #[test]
    fn classes_limits_and_grants() {
        let pod = json!({"spec": {"containers": [{"name": "compute",
            "resources": {"requests": {"cpu": "2", "memory": "2Gi"}, "limits": {"cpu": "2", "memory": "2Gi"}}}]},
            "status": {"containerStatuses": [{"name": "compute", "resources": {}}]}});
        let around = Surroundings {
            pod: &pod,
            node: &Value::Null,
            kubernetes_minor: 33,
            live_update: true,
            may_declare: false,
        };
        let vmi = Vmi::default();
        let to = Size { guest: 5 * GI, ..vmi.size };
        let uneven = Compute { cpu: amount(2000, Some(2000)), memory: amount(GI, Some(2 * GI)) };
        let lower = Compute { cpu: amount(2000, Some(2000)), memory: amount(GI, Some(GI)) };
        assert_eq!(
            of_surroundings(&vmi, to, (uneven, lower), &around),
            [
                Obstacle::MemoryNeedsGrant,
                Obstacle::LowerLimit(33),
                Obstacle::QosChange("Guaranteed to Burstable".into())
            ]
        );
    }

    #[test]
    fn every_obstacle_says_what_to_do_and_only_states_pass_by_themselves() {
        for temporary in [Obstacle::Paused, Obstacle::Migrating, Obstacle::NotRunning, Obstacle::Deleting] {
            assert!(temporary.is_temporary());
        }
        for lasting in [Obstacle::DedicatedCpus, Obstacle::Swap, Obstacle::AboveMaxGuest(8 * GI)] {
            assert!(!lasting.is_temporary());
            assert!(lasting.to_string().contains(':'), "{lasting}");
        }
        assert!(Obstacle::AboveMaxGuest(8 * GI).to_string().contains("8Gi"));
    }
}
