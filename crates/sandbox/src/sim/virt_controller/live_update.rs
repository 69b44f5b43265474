//! What of a running VM's template reaches its VMI (`handleCPUChangeRequest`, `handleMemoryHotplugRequest`,
//! `handleAffinityChangeRequest`, `handleTolerationsChangeRequest`, `syncRestartRequired` in `watch/vm/vm.go`, v1.9):
//! sockets, guest memory, node selector, affinity and tolerations do; everything else waits for a restart.
//!
//! A pure function. It sees the template with instance type and preference laid over it.

use apimachinery::quantity::{self, milli, units};
use apimachinery::tree::{Map, Value, json};

use super::launcher_pod::disk_claim_of;
use super::migration::decide::is_migrating;
use super::nics;
use super::vm_status::SyncError;
use crate::sim::cluster::ClusterConfig;
use crate::sim::hotplug::is_marked as hotplugged;
use crate::sim::json::{self, condition, has_condition, is_deleting, list, text};
use crate::sim::resource::VMIS;
use crate::sim::write::{Op, Write};

/// What is looked at.
pub struct Observation<'a> {
    /// `spec.template.spec` of the VM as it is now, expanded.
    pub wanted: &'a Value,
    /// The same when the VMI was started, expanded.
    pub started: &'a Value,
    pub vmi: &'a Value,
    pub config: &'a ClusterConfig,
    /// The VM's volumes move to other claims (`updateVolumesStrategy: Migration`).
    pub moves_volumes: bool,
}

/// One part of an update: its write, and the reason of the `Failure` condition when the write fails.
#[derive(Debug, PartialEq)]
pub struct Part {
    pub write: Write,
    pub reason: &'static str,
    pub doing: &'static str,
}

/// What follows.
#[derive(Debug, Default, PartialEq)]
pub struct Update {
    pub parts: Vec<Part>,
    /// The message of the `RestartRequired` condition; `None`: the condition goes.
    pub restart: Option<String>,
    /// Parts after this one were not looked at.
    pub error: Option<SyncError>,
}

/// Reason of the `Failure` condition, and what its message begins with.
type Doing = (&'static str, &'static str);

const INTERFACES: Doing = ("HotPlugNetworkInterfaceError", "error encountered when trying to patch vmi");
const CPU: Doing = ("HotPlugCPUError", "Error encountered while handling CPU change request");
const AFFINITY: Doing =
    ("AffinityChangeError", "Error encountered while handling node affinity change request");
const TOLERATIONS: Doing =
    ("TolerationsChangeError", "Error encountered while handling tolerations change request");
const MEMORY: Doing = ("HotPlugMemoryError", "error encountered while handling memory hotplug requests");

/// GA in v1.4.
const NIC_GATE: &str = "HotplugNICs";

/// Looks at one kind of change.
type Handler = fn(&Observation<'_>) -> Verdict;

/// How one kind of change ends.
enum Verdict {
    Nothing,
    Patch(Vec<Value>),
    Restart(String),
    Later(&'static str),
}

/// Decides about a VMI that is there.
pub fn decide(seen: &Observation<'_>) -> Update {
    let mut update = Update::default();
    if is_deleting(seen.vmi) {
        return update;
    }
    if needs_restart(seen) {
        update.restart = Some("a non-live-updatable field was changed in the template spec".into());
        return update;
    }
    if !seen.config.live_update {
        return update;
    }
    let handlers: [(Doing, Handler); 5] = [
        (INTERFACES, interfaces),
        (CPU, cpu),
        (AFFINITY, affinity),
        (TOLERATIONS, tolerations),
        (MEMORY, memory),
    ];
    for ((reason, doing), handler) in handlers {
        match handler(seen) {
            Verdict::Nothing => {}
            Verdict::Patch(patch) => {
                let write = Write::to(&VMIS, seen.vmi, "", Op::JsonPatch(patch.into()));
                update.parts.push(Part { write, reason, doing });
            }
            Verdict::Restart(message) => update.restart = Some(message),
            Verdict::Later(why) => {
                update.error = Some(SyncError { reason, message: format!("{doing}: {why}") });
                break;
            }
        }
    }
    update
}

/// Whether a template names other sockets or memory than the VMI has: it does although it is again the one that
/// the VMI was started with, when the VMI was changed in between.
pub fn has_other_size(vm: &Value, vmi: &Value) -> bool {
    let differs = |part: &str, amount: fn(&Value) -> Option<i128>| {
        let of = |object: &Value, prefix: &str| {
            object.pointer(&format!("{prefix}/domain/{part}")).and_then(amount)
        };
        of(vm, "/spec/template/spec").is_some_and(|wanted| of(vmi, "/spec").is_some_and(|has| has != wanted))
    };
    differs("cpu/sockets", |sockets| sockets.as_i64().map(i128::from)) || differs("memory/guest", milli)
}

/// A field was changed that the guest cannot follow while it runs (`syncRestartRequired`).
fn needs_restart(seen: &Observation<'_>) -> bool {
    let (mut before, mut after) = (seen.started.clone(), seen.wanted.clone());
    if volumes_follow(&before, &after, seen.moves_volumes) {
        for spec in [&mut before, &mut after] {
            json::remove(spec, &["volumes"]);
        }
    }
    if disks_follow(seen.started, seen.wanted) {
        for spec in [&mut before, &mut after] {
            json::remove(spec, &["domain", "devices", "disks"]);
        }
    }
    if seen.config.live_update {
        for spec in [&mut before, &mut after] {
            json::remove(spec, &["domain", "cpu", "sockets"]);
            json::remove(spec, &["domain", "memory", "guest"]);
            for key in ["nodeSelector", "affinity", "tolerations"] {
                json::remove(spec, &[key]);
            }
        }
    }
    if seen.config.gate(NIC_GATE) {
        if nics::need_restart(seen.started, seen.wanted, seen.vmi) {
            return true;
        }
        for spec in [&mut before, &mut after] {
            json::remove(spec, &["domain", "devices", "interfaces"]);
            json::remove(spec, &["networks"]);
        }
    }
    // A UUID that was written into the template after the start is the guest's own.
    let uuid = |spec: &Value| spec.pointer("/domain/firmware/uuid").cloned();
    if uuid(&after).is_some() && uuid(&after) == uuid(&seen.vmi["spec"]) {
        for spec in [&mut before, &mut after] {
            json::remove(spec, &["domain", "firmware", "uuid"]);
        }
    }
    without_empty(&mut before);
    without_empty(&mut after);
    before != after
}

/// An absent object and an empty one are the same to Go's `omitempty`.
fn without_empty(value: &mut Value) {
    if let Value::Object(map) = value {
        map.retain(|_, value| {
            without_empty(value);
            !(value.is_null() || value.as_object().is_some_and(Map::is_empty))
        });
    }
}

fn named<'a>(entries: &'a [Value], name: &Value) -> Option<&'a Value> {
    entries.iter().find(|one| one["name"] == *name)
}

/// Only hotplugged volumes came, went or changed, and claims where they move (`validLiveUpdateVolumes`).
fn volumes_follow(before: &Value, after: &Value, moves: bool) -> bool {
    let (old, new) = (list(before, "/volumes"), list(after, "/volumes"));
    let kept = new.iter().all(|volume| {
        let had = named(old, &volume["name"]);
        let moved = moves && had.is_some() && disk_claim_of(volume).is_some();
        hotplugged(volume) || moved || had == Some(volume)
    });
    let gone = old.iter().filter(|volume| named(new, &volume["name"]).is_none());
    kept && gone.into_iter().all(hotplugged)
}

/// The same for their disks; a CD-ROM drive stays (`validLiveUpdateDisks`).
fn disks_follow(before: &Value, after: &Value) -> bool {
    let path = "/domain/devices/disks";
    let (old, new) = (list(before, path), list(after, path));
    let of = |spec: &Value, disk: &Value| named(list(spec, "/volumes"), &disk["name"]).cloned();
    let kept = new.iter().all(|disk| {
        of(after, disk).is_some_and(|volume| hotplugged(&volume)) || named(old, &disk["name"]) == Some(disk)
    });
    let gone = old.iter().filter(|disk| named(new, &disk["name"]).is_none());
    kept && gone
        .into_iter()
        .all(|disk| of(before, disk).is_none_or(|volume| hotplugged(&volume)) && disk.get("cdrom").is_none())
}

fn vcpus(cpu: &Value) -> i64 {
    ["sockets", "cores", "threads"].iter().map(|key| cpu[*key].as_i64().unwrap_or(1).max(1)).product()
}

/// The patch of a quantity by a difference, when the template says something about it and it is not zero.
fn adjusted(seen: &Observation<'_>, side: &str, name: &str, new: impl FnOnce(i128) -> String) -> Vec<Value> {
    let pointer = format!("/domain/resources/{side}/{name}");
    let asked = |spec: &Value| spec.pointer(&pointer).and_then(milli).unwrap_or(0);
    let own = if name == "memory" && side == "requests" { &seen.vmi["spec"] } else { seen.wanted };
    if asked(own) == 0 {
        return Vec::new();
    }
    let have = seen.vmi["spec"].pointer(&pointer).cloned().unwrap_or_else(|| "0".into());
    let new = new(asked(&seen.vmi["spec"]));
    Write::test_and_replace(&format!("/spec{pointer}"), &have, &new.into()).into()
}

fn interfaces(seen: &Observation<'_>) -> Verdict {
    if !seen.config.gate(NIC_GATE) {
        return Verdict::Nothing;
    }
    match nics::patch(seen.wanted, seen.vmi) {
        Some(Value::Array(patch)) => Verdict::Patch(patch.into_iter().collect()),
        _ => Verdict::Nothing,
    }
}

fn cpu(seen: &Observation<'_>) -> Verdict {
    let (wanted, have) = (&seen.wanted["domain"]["cpu"], &seen.vmi["spec"]["domain"]["cpu"]);
    if !wanted.is_object() || !have.is_object() || wanted.get("sockets").is_none() {
        return Verdict::Nothing;
    }
    let sockets = |cpu: &Value| cpu["sockets"].as_i64().unwrap_or(0);
    if sockets(wanted) == sockets(have) {
        return Verdict::Nothing;
    }
    if has_condition(seen.vmi, "HotVCPUChange", "True") {
        return Verdict::Later("another CPU hotplug is in progress");
    }
    if is_migrating(seen.vmi) {
        return Verdict::Later("CPU hotplug is not allowed while VMI is migrating");
    }
    if sockets(wanted) > have["maxSockets"].as_i64().unwrap_or(0) {
        let message = "CPU sockets updated in template spec to a value higher than what's available";
        return Verdict::Restart(message.into());
    }
    if sockets(wanted) < sockets(have) {
        return Verdict::Restart("Reduction of CPU socket count requires a restart".into());
    }
    if text(seen.wanted, "/architecture") == "arm64" {
        return Verdict::Restart("ARM doesn't support CPU hotplug".into());
    }
    let mut patch: Vec<Value> =
        Write::test_and_replace("/spec/domain/cpu/sockets", &have["sockets"], &wanted["sockets"]).into();
    // Integer division, as in Go: a ratio of 3 makes 333 thousandths of a vCPU.
    let per_vcpu = 1000 / seen.config.cpu_allocation_ratio.max(1);
    let delta = i128::from((vcpus(wanted) - vcpus(have)).saturating_mul(per_vcpu));
    for side in ["requests", "limits"] {
        let cpu = |have: i128| quantity::cpu(i64::try_from(have + delta).unwrap_or(i64::MAX));
        patch.extend(adjusted(seen, side, "cpu", cpu));
    }
    Verdict::Patch(patch)
}

/// The patch that makes a part of the VMI's spec what the template says.
fn copied(seen: &Observation<'_>, key: &str) -> Vec<Value> {
    let path = format!("/spec/{key}");
    match (seen.wanted.get(key), seen.vmi["spec"].get(key)) {
        (new, old) if new == old => Vec::new(),
        (Some(new), None) => vec![json!({"op": "add", "path": path, "value": new})],
        (Some(new), Some(old)) => Write::test_and_replace(&path, old, new).into(),
        (None, _) => vec![json!({"op": "remove", "path": path})],
    }
}

fn affinity(seen: &Observation<'_>) -> Verdict {
    let mut patch = copied(seen, "affinity");
    patch.extend(copied(seen, "nodeSelector"));
    moved_or(seen, patch, "Node affinity should not be changed during VMI migration")
}

fn tolerations(seen: &Observation<'_>) -> Verdict {
    moved_or(seen, copied(seen, "tolerations"), "tolerations should not be changed during VMI migration")
}

fn moved_or(seen: &Observation<'_>, patch: Vec<Value>, why: &'static str) -> Verdict {
    if patch.is_empty() {
        Verdict::Nothing
    } else if is_migrating(seen.vmi) {
        Verdict::Later(why)
    } else {
        Verdict::Patch(patch)
    }
}

fn memory(seen: &Observation<'_>) -> Verdict {
    let bytes = |value: Option<&Value>| value.and_then(units);
    let spec = &seen.vmi["spec"];
    let (Some(wanted), Some(have), Some(current)) = (
        bytes(seen.wanted.pointer("/domain/memory/guest")),
        bytes(spec.pointer("/domain/memory/guest")),
        bytes(seen.vmi.pointer("/status/memory/guestCurrent")),
    ) else {
        return Verdict::Nothing;
    };
    let restart = |why: &str| Verdict::Restart(format!("memory updated in template spec{why}"));
    if has_condition(seen.vmi, "HotMemoryChange", "False") {
        return restart(". Memory-hotplug failed and is not available for this VM configuration");
    }
    if wanted == have {
        return Verdict::Nothing;
    }
    if !has_condition(seen.vmi, "LiveMigratable", "True") {
        return restart(". Memory-hotplug is only available for migratable VMs");
    }
    let Some(most) = bytes(spec.pointer("/domain/memory/maxGuest")) else {
        return restart(". Memory-hotplug is not available for this VM configuration");
    };
    if condition(seen.vmi, "/status/conditions", "HotMemoryChange").is_some() {
        return Verdict::Later("another memory hotplug is in progress");
    }
    if is_migrating(seen.vmi) {
        return Verdict::Later("memory hotplug is not allowed while VMI is migrating");
    }
    if let Some(why) = memory_cannot_change(seen.wanted, wanted, most) {
        return Verdict::Restart(format!("memory hotplug not supported, {why}"));
    }
    if bytes(seen.vmi.pointer("/status/memory/guestAtBoot")).is_some_and(|boot| wanted < boot) {
        return restart(" to a value lower than what the VM started with");
    }
    if wanted > most {
        return restart(" to a value higher than what's available");
    }
    let guest = &seen.wanted["domain"]["memory"]["guest"];
    let mut patch: Vec<Value> =
        Write::test_and_replace("/spec/domain/memory/guest", &spec["domain"]["memory"]["guest"], guest)
            .into();
    // From what the guest has at the moment, not from what it was promised: after a reset both differ, and the
    // limits go wrong with it.
    let mut delta = wanted - current;
    let mut requests = 0;
    patch.extend(adjusted(seen, "requests", "memory", |have| {
        requests = i64::try_from(have / 1000).unwrap_or(i64::MAX).saturating_add(delta);
        quantity::bytes(requests.max(wanted))
    }));
    if requests != 0 && requests < wanted {
        delta = 0;
    }
    patch.extend(adjusted(seen, "limits", "memory", |have| {
        quantity::bytes(i64::try_from(have / 1000).unwrap_or(i64::MAX).saturating_add(delta))
    }));
    Verdict::Patch(patch)
}

/// Why memory cannot be changed at all (`pkg/liveupdate/memory.ValidateLiveUpdateMemory`).
fn memory_cannot_change(spec: &Value, guest: i64, most: i64) -> Option<String> {
    let huge = text(spec, "/domain/memory/hugepages/pageSize") == "1Gi";
    let block: i64 = if huge { 1 << 30 } else { 2 << 20 };
    let aligned = if huge { "1Gi" } else { "2Mi" };
    let has = |pointer: &str| spec.pointer(pointer).is_some_and(|value| !value.is_null());
    if has("/domain/cpu/realtime") {
        Some("Memory hotplug is not compatible with realtime VMs".into())
    } else if has("/domain/cpu/numa/guestMappingPassthrough") {
        Some("Memory hotplug is not compatible with guest mapping passthrough".into())
    } else if has("/domain/launchSecurity") {
        Some("Memory hotplug is not compatible with encrypted VMs".into())
    } else if guest > most {
        None // told in other words
    } else if guest % block != 0 {
        Some(format!("Guest memory must be {aligned} aligned"))
    } else if most % block != 0 {
        Some(format!("MaxGuest must be {aligned} aligned"))
    } else if !matches!(text(spec, "/architecture"), "amd64" | "") {
        Some(format!("Memory hotplug is not available for architecture {}", text(spec, "/architecture")))
    } else if guest < 1 << 30 {
        Some("Memory hotplug is only available for VMs with at least 1Gi of guest memory".into())
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn template(domain: impl Into<Value>) -> Value {
        let domain: Value = domain.into();
        json!({"architecture": "amd64", "domain": domain, "volumes": [{"name": "root", "containerDisk": {}}]})
    }

    fn domain(sockets: i64, guest: &str) -> Value {
        json!({"cpu": {"sockets": sockets, "cores": 1, "threads": 1}, "memory": {"guest": guest}})
    }

    fn vmi() -> Value {
        let mut spec = template(domain(2, "1Gi"));
        spec["domain"]["cpu"]["maxSockets"] = 8.into();
        spec["domain"]["memory"]["maxGuest"] = "4Gi".into();
        json!({"metadata": {"name": "v", "namespace": "n"}, "spec": spec, "status": {
            "memory": {"guestAtBoot": "1Gi", "guestCurrent": "1Gi", "guestRequested": "1Gi"},
            "conditions": [{"type": "LiveMigratable", "status": "True"}]}})
    }

    fn decided(wanted: &Value, vmi: &Value) -> Update {
        let config = ClusterConfig::of(&Value::Null);
        let started = template(domain(2, "1Gi"));
        decide(&Observation { wanted, started: &started, vmi, config: &config, moves_volumes: false })
    }

    fn patches(update: &Update) -> Vec<Value> {
        update
            .parts
            .iter()
            .map(|part| match &part.write.op {
                Op::JsonPatch(patch) => patch.clone(),
                other => panic!("{other:?}"),
            })
            .collect()
    }

    #[test]
    fn the_recorded_change_of_cpu_and_memory() {
        let update = decided(&template(domain(4, "2Gi")), &vmi());
        assert_eq!((update.restart.as_deref(), update.error.is_none()), (None, true));
        assert_eq!(
            patches(&update),
            [
                json!([{"op": "test", "path": "/spec/domain/cpu/sockets", "value": 2},
                    {"op": "replace", "path": "/spec/domain/cpu/sockets", "value": 4}]),
                json!([{"op": "test", "path": "/spec/domain/memory/guest", "value": "1Gi"},
                    {"op": "replace", "path": "/spec/domain/memory/guest", "value": "2Gi"}]),
            ]
        );
        assert_eq!(decided(&template(domain(2, "1Gi")), &vmi()), Update::default());
    }

    #[test]
    fn requests_and_limits_grow_along() {
        let resources =
            json!({"requests": {"cpu": "500m", "memory": "1Gi"}, "limits": {"cpu": "2", "memory": "2Gi"}});
        let (mut wanted, mut vmi) = (template(domain(4, "2Gi")), vmi());
        wanted["domain"]["resources"] = resources.clone();
        vmi["spec"]["domain"]["resources"] = resources.clone();
        let config = ClusterConfig::of(&Value::Null);
        let mut started = template(domain(2, "1Gi"));
        started["domain"]["resources"] = resources;
        let seen = Observation {
            wanted: &wanted,
            started: &started,
            vmi: &vmi,
            config: &config,
            moves_volumes: false,
        };
        let got: Vec<String> = patches(&decide(&seen))
            .iter()
            .flat_map(|patch| patch.as_array().unwrap().clone())
            .filter(|one| one["op"] == "replace" && text(one, "/path").contains("resources"))
            .map(|one| {
                format!(
                    "{} {}",
                    text(&one, "/path").rsplit_once("resources/").unwrap().1,
                    text(&one, "/value")
                )
            })
            .collect();
        assert_eq!(
            got,
            ["requests/cpu 700m", "limits/cpu 2200m", "requests/memory 2Gi", "limits/memory 3Gi"]
        );
        // The known defect: what is plugged already does not count into the limit a second time.
        let mut plugged = vmi.clone();
        plugged["status"]["memory"]["guestCurrent"] = "2Gi".into();
        let seen = Observation { vmi: &plugged, ..seen };
        let limit = patches(&decide(&seen)).pop().unwrap();
        assert_eq!(limit[5]["value"], "2Gi", "{limit}");
    }

    #[test]
    fn what_waits_and_what_needs_a_restart() {
        let with = |kind: &str, status: &str| {
            let mut vmi = vmi();
            vmi["status"]["conditions"].as_array_mut().unwrap().push(json!({"type": kind, "status": status}));
            vmi
        };
        let stuck = || {
            let mut vmi = vmi();
            vmi["status"]["conditions"][0]["status"] = "False".into();
            vmi
        };
        let moving = || {
            let mut vmi = vmi();
            vmi["status"]["migrationState"] = json!({"startTimestamp": "t"});
            vmi
        };
        for (domain, vmi, restart, error) in [
            (
                domain(9, "1Gi"),
                vmi(),
                "CPU sockets updated in template spec to a value higher than what's available",
                "",
            ),
            (domain(1, "1Gi"), vmi(), "Reduction of CPU socket count requires a restart", ""),
            (
                domain(2, "8Gi"),
                vmi(),
                "memory updated in template spec to a value higher than what's available",
                "",
            ),
            (
                domain(2, "2Gi"),
                stuck(),
                "memory updated in template spec. Memory-hotplug is only available for migratable VMs",
                "",
            ),
            (
                domain(2, "2Gi"),
                with("HotMemoryChange", "False"),
                "memory updated in template spec. Memory-hotplug failed and is not available for this VM configuration",
                "",
            ),
            (
                domain(2, "1025Mi"),
                vmi(),
                "memory hotplug not supported, Guest memory must be 2Mi aligned",
                "",
            ),
            (domain(4, "1Gi"), with("HotVCPUChange", "True"), "", "another CPU hotplug is in progress"),
            (domain(4, "1Gi"), moving(), "", "CPU hotplug is not allowed while VMI is migrating"),
            (domain(2, "2Gi"), with("HotMemoryChange", "True"), "", "another memory hotplug is in progress"),
            (
                json!({"cpu": {"sockets": 2, "cores": 2, "threads": 1}, "memory": {"guest": "1Gi"}}),
                vmi(),
                "a non-live-updatable field was changed in the template spec",
                "",
            ),
        ] {
            let update = decided(&template(domain.clone()), &vmi);
            assert_eq!(update.restart.as_deref().unwrap_or_default(), restart, "{domain}");
            let message = update.error.map(|error| error.message).unwrap_or_default();
            assert_eq!(message.rsplit(": ").next().unwrap_or_default(), error, "{domain}");
        }
    }

    #[test]
    fn a_change_that_cannot_be_made_now_holds_back_those_after_it() {
        let mut busy = vmi();
        busy["status"]["conditions"]
            .as_array_mut()
            .unwrap()
            .push(json!({"type": "HotVCPUChange", "status": "True"}));
        let update = decided(&template(domain(4, "2Gi")), &busy);
        assert!(update.parts.is_empty(), "the memory waits behind the CPUs");
        assert_eq!(update.error.unwrap().reason, "HotPlugCPUError");
    }

    #[test]
    fn hotplugged_volumes_selectors_and_tolerations_need_no_restart() {
        let mut wanted = template(domain(2, "1Gi"));
        wanted["volumes"]
            .as_array_mut()
            .unwrap()
            .push(json!({"name": "data", "persistentVolumeClaim": {"claimName": "c", "hotpluggable": true}}));
        wanted["domain"]["devices"]["disks"] = json!([{"name": "data", "disk": {"bus": "scsi"}}]);
        wanted["nodeSelector"] = json!({"zone": "a"});
        wanted["tolerations"] = json!([{"key": "x"}]);
        let update = decided(&wanted, &vmi());
        assert_eq!(update.restart, None);
        assert_eq!(
            patches(&update),
            [
                json!([{"op": "add", "path": "/spec/nodeSelector", "value": {"zone": "a"}}]),
                json!([{"op": "add", "path": "/spec/tolerations", "value": [{"key": "x"}]}]),
            ]
        );
        wanted["volumes"][0]["containerDisk"]["image"] = "another".into();
        assert!(decided(&wanted, &vmi()).restart.is_some());
    }
}
