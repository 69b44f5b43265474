//! What virt-controller does about a `VirtualMachineInstance` and its launcher pod
//! (`pkg/virt-controller/watch/vmi`, v1.9).
//!
//! ```text
//!  Pending ──pod made──► Scheduling ──pod ready──► Scheduled ──(virt-handler)──► Running
//!     │                      │ pod down                │ pod gone                   │ pod gone
//!     └──────────────────────┴────────► Failed ◄───────┴────────────────────────────┘
//! ```
//!
//! Up to `Scheduled` virt-controller owns the VMI and updates it whole; from then on it patches,
//! because virt-handler owns it.

use apimachinery::tree::{Map, Value, json};
use jiff::Timestamp;

use super::vm::is_final;
use super::vm_status::SyncError;
use crate::sim::hotplug::pod::is_temporary;
use crate::sim::json::{
    self, finalizers, is_deleting, list, map, new_condition, put, remove_condition, text, time,
    update_condition,
};
use crate::sim::resource::{PODS, VMIS};
use crate::sim::write::{Op, Write};
use apimachinery::quantity;

/// The finalizer that keeps a VMI until its pods are gone.
pub const FINALIZER: &str = "kubevirt.io/foregroundDeleteVirtualMachine";
const UNPAUSED: &str = "kubevirt.io/virtual-machine-unpaused";

/// What the controller sees.
pub struct Observation<'a> {
    pub vmi: &'a Value,
    /// Every pod that the VMI owns.
    pub pods: &'a [std::sync::Arc<Value>],
    /// The VM that owns the VMI is there.
    pub has_owner: bool,
    pub now: Timestamp,
}

/// The launcher pod that serves the VMI: the newest on its node, and not a migration's target
/// before the migration is done (`CurrentVMIPod`).
pub fn current_pod<'a>(seen: &Observation<'a>) -> Option<&'a Value> {
    let node = text(seen.vmi, "/status/nodeName");
    seen.pods
        .iter()
        .map(std::convert::AsRef::as_ref)
        .filter(|pod| json::label(pod, "kubevirt.io") == "virt-launcher" && !is_temporary(pod))
        .filter(|pod| {
            let target = !json::label(pod, "kubevirt.io/migrationJobUID").is_empty();
            if node.is_empty() { !target } else { text(pod, "/spec/nodeName") == node }
        })
        // Simulated guests move there and back within a second, which is all that timestamps tell.
        .max_by_key(|pod| (text(pod, "/metadata/creationTimestamp"), !pod_is_down(pod), json::name(pod)))
}

/// A pod that has ended.
pub fn pod_is_down(pod: &Value) -> bool {
    matches!(text(pod, "/status/phase"), "Succeeded" | "Failed")
}

fn compute_ended(pod: &Value) -> bool {
    list(pod, "/status/containerStatuses")
        .iter()
        .any(|one| one["name"] == "compute" && one.pointer("/state/terminated").is_some_and(Value::is_object))
}

fn pod_is_going_down(pod: &Value) -> bool {
    pod_is_down(pod) || is_deleting(pod) || compute_ended(pod)
}

/// All containers of a pod run and are ready.
pub fn pod_is_ready(pod: &Value) -> bool {
    let statuses = list(pod, "/status/containerStatuses");
    !pod_is_going_down(pod)
        && text(pod, "/status/phase") == "Running"
        && !statuses.is_empty()
        && statuses.iter().all(|one| one["ready"] == true)
}

/// Whether a launcher pod has to be made now.
pub fn needs_pod(seen: &Observation<'_>) -> bool {
    !is_deleting(seen.vmi)
        && !is_final(seen.vmi)
        && matches!(text(seen.vmi, "/status/phase"), "" | "Pending")
        && current_pod(seen).is_none()
}

/// The deletions of pods that a VMI which goes away asks for.
pub fn pods_to_delete(seen: &Observation<'_>) -> Vec<Write> {
    if !is_deleting(seen.vmi) {
        return Vec::new();
    }
    seen.pods
        .iter()
        .filter(|pod| !is_deleting(pod))
        .map(|pod| Write::to(&PODS, pod, "", Op::Delete(Value::Null)))
        .collect()
}

/// What the pod has to be told about its VMI: that the guest is (not) paused, and labels.
pub fn pod_writes(vmi: &Value, pod: &Value, now: Timestamp) -> Vec<Write> {
    let mut writes = Vec::new();
    let paused = json::has_condition(vmi, "Paused", "True");
    let unpaused = json::has_condition(pod, UNPAUSED, "True");
    let condition = if paused && unpaused {
        Some(new_condition(UNPAUSED, "False", "Paused", "the virtual machine is paused", now))
    } else if !paused && !unpaused {
        Some(new_condition(UNPAUSED, "True", "NotPaused", "the virtual machine is not paused", now))
    } else {
        None
    };
    if let Some(condition) = condition {
        let body = json!({"status": {"conditions": [condition]}});
        writes.push(Write::to(&PODS, pod, "status", Op::StrategicPatch(body)));
    }
    let old = pod.pointer("/metadata/labels").cloned().unwrap_or_else(|| json!({}));
    let mut new = old.clone();
    for key in ["kubevirt.io/nodeName", "kubevirt.io/outdatedLauncherImage"] {
        match map(vmi, "/metadata/labels").and_then(|labels| labels.get(key)) {
            Some(value) => new[key] = value.clone(),
            None => json::remove(&mut new, &[key]),
        }
    }
    if new != old {
        let patch = Write::test_and_replace("/metadata/labels", &old, &new);
        writes.push(Write::to(&PODS, pod, "", Op::JsonPatch(json!(patch))));
    }
    writes
}

/// The write that brings the VMI up to date, if it is not (`updateStatus`). `pod` may be newer
/// than what the observation has.
pub fn status_write(
    seen: &Observation<'_>,
    pod: Option<&Value>,
    volumes: Option<Vec<Value>>,
    error: Option<&SyncError>,
) -> Option<Write> {
    let old = seen.vmi;
    let mut vmi = old.clone();
    if let Some(volumes) = volumes {
        put(&mut vmi, &["status", "volumeStatus"], volumes);
    }
    let phase = text(old, "/status/phase").to_owned();
    let active: Map = seen.pods.iter().map(|pod| (json::uid(pod), text(pod, "/spec/nodeName"))).collect();
    if !active.is_empty() {
        put(&mut vmi, &["status", "activePods"], active);
    } else if old.pointer("/status/activePods").is_some() {
        json::remove(&mut vmi, &["status", "activePods"]);
    }
    let mut conditions = list(&vmi, "/status/conditions").to_vec();
    if let Some(ready) = ready_condition(old, pod, seen.now) {
        update_condition(&mut conditions, ready);
    }
    if let Some(pod) = pod {
        describe_pod(&mut vmi, pod);
    }
    match phase.as_str() {
        "" | "Pending" => {
            let next = if pod.is_some() {
                "Scheduling"
            } else if is_deleting(old) {
                "Failed"
            } else {
                "Pending"
            };
            put(&mut vmi, &["status", "phase"], next);
            provision(seen, &mut conditions);
        }
        "Scheduling" => {
            remove_condition(&mut conditions, "Provisioning");
            schedule(&mut vmi, &mut conditions, pod);
        }
        "Succeeded" | "Failed" => finish(&mut vmi, seen),
        "Running" => {
            if pod.is_none() {
                put(&mut vmi, &["status", "phase"], "Failed");
            } else {
                want_hotplug(old, &mut conditions);
                if super::volume_migration::has_changed(&vmi) {
                    let mut moves = new_condition("VolumesChange", "True", "", "migrate volumes", seen.now);
                    moves["lastProbeTime"] = Value::Null;
                    conditions.push(moves);
                }
                super::nics::require_migration(old, &mut conditions, seen.now);
            }
        }
        _ => {
            if pod.is_none() {
                put(&mut vmi, &["status", "phase"], "Failed");
            }
        }
    }
    evacuation(old, &mut conditions, seen.now);
    let handed_over = matches!(phase.as_str(), "Scheduled" | "Running");
    if !handed_over {
        synchronized(&mut conditions, error, seen.now);
    }
    if !conditions.is_empty() || old.pointer("/status/conditions").is_some() {
        put(&mut vmi, &["status", "conditions"], conditions);
    }
    if handed_over {
        return patch(old, &vmi);
    }
    record_phase(&mut vmi, seen.now);
    (vmi != *old).then(|| Write::to(&VMIS, old, "", Op::Update(vmi)))
}

/// Notes when a VMI came into its phase (`SetVMIPhaseTransitionTimestamp`).
pub fn record_phase(vmi: &mut Value, now: Timestamp) {
    let phase = text(vmi, "/status/phase").to_owned();
    let mut times = list(vmi, "/status/phaseTransitionTimestamps").to_vec();
    if phase.is_empty() || times.iter().any(|one| one["phase"] == phase.as_str()) {
        return;
    }
    times.push(json!({"phase": phase, "phaseTransitionTimestamp": time(now)}));
    put(vmi, &["status", "phaseTransitionTimestamps"], times);
}

fn ready_condition(vmi: &Value, pod: Option<&Value>, now: Timestamp) -> Option<Value> {
    let not = |reason: &str, message: &str| Some(new_condition("Ready", "False", reason, message, now));
    let Some(pod) = pod else {
        return not("PodNotExists", "virt-launcher pod has not yet been scheduled");
    };
    if pod_is_going_down(pod) {
        return not("PodTerminating", "virt-launcher pod is terminating");
    }
    if text(vmi, "/status/phase") != "Running" {
        return not("GuestNotRunning", "Guest VM is not reported as running");
    }
    match json::condition(pod, "/status/conditions", "Ready") {
        Some(ready) => {
            let mut ready = ready.clone();
            json::remove(&mut ready, &["observedGeneration"]);
            Some(ready)
        }
        None => not("PodConditionMissing", "virt-launcher pod is missing the Ready condition"),
    }
}

fn describe_pod(vmi: &mut Value, pod: &Value) {
    let image = list(pod, "/spec/containers")
        .iter()
        .find(|one| one["name"] == "compute")
        .map(|one| text(one, "/image"));
    if let Some(image) = image.filter(|_| !is_final(vmi)) {
        put(vmi, &["status", "launcherContainerImageVersion"], image);
    }
    let overhead =
        json::annotation(pod, "kubevirt.io/memory-overhead-bytes").and_then(|text| text.parse().ok());
    if let Some(overhead) = overhead {
        put(vmi, &["status", "memory", "memoryOverhead"], quantity::bytes(overhead));
    }
}

/// `Provisioning` while a pod without a guest gets the claims bound, and what the scheduler says of that pod.
fn provision(seen: &Observation<'_>, conditions: &mut Vec<Value>) {
    let Some(pod) = seen.pods.iter().find(|pod| is_temporary(pod)) else { return };
    if conditions.iter().all(|one| one["type"] != "Provisioning") {
        conditions.push(json!({"type": "Provisioning", "status": "True", "lastProbeTime": null,
            "lastTransitionTime": null}));
    }
    scheduled(conditions, pod);
}

/// The pod's `PodScheduled`, as long as it is `False`.
fn scheduled(conditions: &mut Vec<Value>, pod: &Value) {
    remove_condition(conditions, "PodScheduled");
    if let Some(waits) =
        json::condition(pod, "/status/conditions", "PodScheduled").filter(|one| one["status"] == "False")
    {
        let mut waits = waits.clone();
        json::remove(&mut waits, &["observedGeneration"]);
        conditions.push(waits);
    }
}

fn schedule(vmi: &mut Value, conditions: &mut Vec<Value>, pod: Option<&Value>) {
    let Some(pod) = pod else {
        put(vmi, &["status", "phase"], "Failed");
        return;
    };
    match text(pod, "/status/qosClass") {
        "" => json::remove(vmi, &["status", "qosClass"]),
        class => put(vmi, &["status", "qosClass"], class),
    }
    scheduled(conditions, pod);
    if pod_is_ready(pod) && !is_deleting(vmi) {
        hand_over(vmi, pod);
    } else if pod_is_going_down(pod) {
        put(vmi, &["status", "phase"], "Failed");
    }
}

/// Gives the VMI to the virt-handler of the pod's node.
fn hand_over(vmi: &mut Value, pod: &Value) {
    let node = text(pod, "/spec/nodeName");
    let volumes: Value = list(vmi, "/spec/volumes")
        .iter()
        .map(|volume| json!({"name": text(volume, "/name"), "target": ""}))
        .collect();
    let interfaces: Value = list(vmi, "/spec/networks")
        .iter()
        .enumerate()
        .map(|(index, network)| {
            let device = if network.get("pod").is_some() { "eth0".to_owned() } else { format!("net{index}") };
            json!({"name": text(network, "/name"), "podInterfaceName": device})
        })
        .collect();
    for (key, value) in [("volumeStatus", volumes), ("interfaces", interfaces)] {
        if value.as_array().is_some_and(|list| !list.is_empty()) {
            put(vmi, &["status", key], value);
        }
    }
    put(vmi, &["metadata", "labels", "kubevirt.io/nodeName"], node);
    put(vmi, &["status", "nodeName"], node);
    put(vmi, &["status", "phase"], "Scheduled");
    if json::annotation(pod, "kubevirt.io/migrationTransportUnix").is_some() {
        put(vmi, &["status", "migrationTransport"], "Unix");
    }
}

/// Lets a final VMI go when its pods are gone.
fn finish(vmi: &mut Value, seen: &Observation<'_>) {
    let mut keep: Vec<Value> = finalizers(vmi).into_iter().map(Value::from).collect();
    if seen.pods.is_empty() {
        keep.retain(|one| one != FINALIZER);
        json::remove(vmi, &["status", "launcherContainerImageVersion"]);
    }
    if !seen.has_owner {
        keep.retain(|one| one != super::vm::FINALIZER);
    }
    if keep.len() == finalizers(vmi).len() {
        return;
    }
    if keep.is_empty() {
        json::remove(vmi, &["metadata", "finalizers"]);
    } else {
        put(vmi, &["metadata", "finalizers"], keep);
    }
}

/// `HotVCPUChange` and `HotMemoryChange` when the spec asks for more than the guest has.
fn want_hotplug(vmi: &Value, conditions: &mut Vec<Value>) {
    let count = |pointer: &str| {
        let topology = vmi.pointer(pointer)?;
        Some(
            ["sockets", "cores", "threads"]
                .iter()
                .map(|key| topology[*key].as_i64().unwrap_or(1).max(1))
                .product::<i64>(),
        )
    };
    let (wanted, have) = (count("/spec/domain/cpu"), count("/status/currentCPUTopology"));
    let limited = vmi.pointer("/spec/domain/cpu/maxSockets").and_then(Value::as_i64).unwrap_or(0) != 0;
    let mut ask = |kind: &str| {
        if !conditions.iter().any(|one| one["type"] == kind) {
            conditions.push(
                json!({"type": kind, "status": "True", "lastProbeTime": null, "lastTransitionTime": null}),
            );
        }
    };
    if limited && have.is_some() && wanted != have {
        ask("HotVCPUChange");
    }
    let bytes = |pointer: &str| vmi.pointer(pointer).and_then(quantity::units);
    let (guest, requested) = (bytes("/spec/domain/memory/guest"), bytes("/status/memory/guestRequested"));
    if bytes("/spec/domain/memory/maxGuest").is_some() && requested.is_some() && guest != requested {
        ask("HotMemoryChange");
    }
}

fn evacuation(vmi: &Value, conditions: &mut Vec<Value>, now: Timestamp) {
    if text(vmi, "/status/evacuationNodeName").is_empty() {
        remove_condition(conditions, "EvictionRequested");
    } else if !conditions.iter().any(|one| one["type"] == "EvictionRequested") {
        conditions.push(new_condition(
            "EvictionRequested",
            "True",
            "EvictionRequested",
            "VMI is marked for eviction",
            now,
        ));
    }
}

/// `Synchronized=False` while virt-controller cannot do what the VMI asks (`CheckFailure`).
fn synchronized(conditions: &mut Vec<Value>, error: Option<&SyncError>, now: Timestamp) {
    let Some(error) = error else {
        remove_condition(conditions, "Synchronized");
        return;
    };
    let known = conditions.iter().any(|one| one["type"] == "Synchronized" && one["reason"] == error.reason);
    if !known {
        remove_condition(conditions, "Synchronized");
        let mut condition = new_condition("Synchronized", "False", error.reason, &error.message, now);
        condition["lastProbeTime"] = Value::Null;
        conditions.push(condition);
    }
}

/// The difference as virt-controller patches it while virt-handler owns the VMI (`prepareVMIPatch`).
fn patch(old: &Value, new: &Value) -> Option<Write> {
    let mut operations = Vec::new();
    for path in ["/status/volumeStatus", "/status/conditions", "/status/activePods", "/status/phase"] {
        let (before, after) = (old.pointer(path), new.pointer(path));
        if before != after {
            let null = Value::Null;
            operations.extend(Write::test_and_replace(path, before.unwrap_or(&null), after.unwrap_or(&null)));
        }
    }
    let path = "/status/launcherContainerImageVersion";
    match (old.pointer(path), new.pointer(path)) {
        (None, Some(image)) => operations.push(json!({"op": "add", "path": path, "value": image})),
        (Some(before), Some(after)) if before != after => {
            operations.extend(Write::test_and_replace(path, before, after));
        }
        _ => {}
    }
    (!operations.is_empty()).then(|| Write::to(&VMIS, old, "", Op::JsonPatch(operations.into())))
}
