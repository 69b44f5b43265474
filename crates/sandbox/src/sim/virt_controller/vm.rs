//! What virt-controller does about a `VirtualMachine` (`pkg/virt-controller/watch/vm`, v1.9):
//! annotations, finalizer, then the VMI that the run strategy wants.
//!
//! ```text
//!                start                       guest ends
//!  no VMI ─────────────────► VMI ───────────────────────► final VMI ──┐
//!    ▲                        │ stop                                  │ (Always; RerunOnFailure when failed)
//!    └────────────────────────┴─── VMI deleted ◄──────────────────────┘
//! ```

use std::time::Duration;

use apimachinery::tree::{Value, json};
use jiff::{SignedDuration, Timestamp};

use super::data_volumes::Volumes;
use super::{defaults, memory_dump};
use crate::sim::instancetype;
use crate::sim::json::{self, finalizers, integer, is_deleting, list, text};
use crate::sim::resource::{CONTROLLER_REVISIONS, VMIS, VMS};
use crate::sim::write::{Op, Write};

/// The finalizer of the VM controller, on VMs and on the VMIs that it makes.
pub const FINALIZER: &str = "kubevirt.io/virtualMachineControllerFinalize";
/// The longest delay between starts of a VM that fails early.
const MAX_CRASH_LOOP_DELAY: i64 = 300;

/// What the controller sees.
#[derive(Clone, Copy)]
pub struct Observation<'a> {
    pub vm: &'a Value,
    pub vmi: Option<&'a Value>,
    pub now: Timestamp,
    /// A number at random, for the jitter of start delays.
    pub dice: u64,
    pub volumes: &'a Volumes,
}

/// A VMI's creation or deletion that the caches do not show yet.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Expectation {
    #[default]
    None,
    Start,
    Stop,
}

/// What is to be done, in order.
#[derive(Debug, Default, PartialEq)]
pub struct Plan {
    pub writes: Vec<Write>,
    pub expects: Expectation,
    /// The status is written in the same pass; otherwise the next pass starts from the top.
    pub with_status: bool,
    pub after: Option<Duration>,
    /// The reason of the error condition when a write fails.
    pub failure_reason: &'static str,
}

impl Plan {
    fn only(write: Write) -> Self {
        Self { writes: vec![write], failure_reason: "FailedCreate", ..Self::default() }
    }

    /// The plan with the VM's own spec in its revision: instance types have revisions of their own.
    pub fn recorded(mut self, vm: &Value) -> Self {
        for write in self.writes.iter_mut().filter(|write| write.resource == &CONTROLLER_REVISIONS) {
            if let Op::Create(revision) = &mut write.op {
                revision["data"]["spec"] = instancetype::revisions::recorded(vm);
            }
        }
        self
    }

    fn nothing() -> Self {
        Self { with_status: true, failure_reason: "FailedCreate", ..Self::default() }
    }
}

/// The run strategy that a VM asks for; `None` when the spec says two things.
pub fn run_strategy(vm: &Value) -> Option<&str> {
    match (vm.pointer("/spec/running").and_then(Value::as_bool), text(vm, "/spec/runStrategy")) {
        (Some(_), strategy) if !strategy.is_empty() => None,
        (Some(true), _) => Some("Always"),
        (_, "") => Some("Halted"),
        (_, strategy) => Some(strategy),
    }
}

/// A VMI whose guest will not run again.
pub fn is_final(vmi: &Value) -> bool {
    matches!(text(vmi, "/status/phase"), "Succeeded" | "Failed")
}

/// The next pass.
pub fn decide(seen: &Observation<'_>) -> Plan {
    let vm = seen.vm;
    let snapshots = &seen.volumes.snapshots;
    if list(vm, "/status/volumeSnapshotStatuses") != snapshots.as_slice() {
        let mut status = vm.get("status").cloned().unwrap_or_else(|| json!({}));
        if text(&status, "/printableStatus").is_empty() {
            status["printableStatus"] = "Stopped".into();
        }
        status["volumeSnapshotStatuses"] = snapshots.clone().into();
        return Plan::only(status_write(vm, status));
    }
    if let Some(annotated) = with_observed_version(vm) {
        return Plan::only(Write::to(&VMS, vm, "", Op::Update(annotated)));
    }
    let own = finalizers(vm).contains(&FINALIZER);
    if is_deleting(vm) {
        return match seen.vmi {
            Some(vmi) => stop(vmi),
            None if own => Plan::only(without_finalizer(&VMS, vm)),
            None => Plan::nothing(),
        };
    }
    if !own {
        let old = vm.pointer("/metadata/finalizers").unwrap_or(&Value::Null);
        let mut new: Vec<Value> = list(vm, "/metadata/finalizers").to_vec();
        new.push(FINALIZER.into());
        let patch = Write::test_and_replace("/metadata/finalizers", old, &new.into());
        return Plan::only(Write::to(&VMS, vm, "", Op::JsonPatch(json!(patch))));
    }
    follow_run_strategy(seen)
}

fn follow_run_strategy(seen: &Observation<'_>) -> Plan {
    let (vm, vmi) = (seen.vm, seen.vmi);
    let request = list(vm, "/status/stateChangeRequests").first();
    let wants_start = request.is_some_and(|request| request["action"] == "Start");
    let wants_stop = |vmi: &Value| {
        request.is_some_and(|request| request["action"] == "Stop" && request["uid"] == json::uid(vmi))
    };
    match (run_strategy(vm), vmi) {
        (Some("Always"), Some(vmi)) if wants_stop(vmi) || is_final(vmi) => stop(vmi),
        (Some("Always" | "Once"), None) => start_with_backoff(seen),
        (Some("RerunOnFailure"), Some(vmi)) if !is_deleting(vmi) && (wants_stop(vmi) || is_final(vmi)) => {
            let mut plan = stop(vmi);
            if vmi["status"]["phase"] == "Failed" {
                plan.writes.push(start_request(vm));
            }
            plan
        }
        (Some(strategy @ "RerunOnFailure"), None)
            if wants_start || text(vm, "/status/runStrategy") != strategy =>
        {
            start_with_backoff(seen)
        }
        (Some("Manual"), Some(vmi)) if wants_stop(vmi) => stop(vmi),
        (Some("Manual"), None) if wants_start => start(seen),
        (Some("Halted"), Some(vmi)) => stop(vmi),
        (Some("Halted"), None) if wants_start => {
            let mut running = vm.clone();
            if text(vm, "/spec/runStrategy").is_empty() {
                running["spec"]["running"] = true.into();
            } else {
                running["spec"]["runStrategy"] = "Always".into();
            }
            Plan::only(Write::to(&VMS, vm, "", Op::Update(running)))
        }
        _ => Plan::nothing(),
    }
}

fn stop(vmi: &Value) -> Plan {
    if is_deleting(vmi) {
        return Plan::nothing();
    }
    Plan {
        writes: vec![Write::to(&VMIS, vmi, "", Op::Delete(Value::Null))],
        expects: Expectation::Stop,
        failure_reason: "VMIFailedDelete",
        ..Plan::nothing()
    }
}

fn start_request(vm: &Value) -> Write {
    let patch = if vm.pointer("/status/stateChangeRequests").is_some() {
        json!([{"op": "add", "path": "/status/stateChangeRequests/-", "value": {"action": "Start"}}])
    } else {
        json!([{"op": "add", "path": "/status/stateChangeRequests", "value": [{"action": "Start"}]}])
    };
    Write::to(&VMS, vm, "status", Op::JsonPatch(patch))
}

fn start_with_backoff(seen: &Observation<'_>) -> Plan {
    let retry_at = text(seen.vm, "/status/startFailure/retryAfterTimestamp").parse::<Timestamp>();
    match retry_at.map(|at| at.duration_since(seen.now)) {
        Ok(left) if left > SignedDuration::ZERO => {
            Plan { after: Duration::try_from(left).ok(), ..Plan::nothing() }
        }
        _ => start(seen),
    }
}

fn start(seen: &Observation<'_>) -> Plan {
    let vm = seen.vm;
    if json::has_condition(vm, "ManualRecoveryRequired", "True") {
        return Plan::nothing();
    }
    let generation = integer(vm, "/metadata/generation");
    let revision = format!("revision-start-vm-{}-{generation}", json::uid(vm));
    let owner = json!([{"apiVersion": "kubevirt.io/v1", "kind": "VirtualMachine", "name": json::name(vm),
        "uid": json::uid(vm), "controller": true, "blockOwnerDeletion": true}]);
    let snapshot = json!({
        "apiVersion": "apps/v1",
        "kind": "ControllerRevision",
        "metadata": {"name": revision, "namespace": json::namespace(vm), "ownerReferences": owner},
        "data": {"spec": vm["spec"]},
        "revision": generation,
    });
    let writes = vec![
        Write::create(&CONTROLLER_REVISIONS, snapshot),
        Write::create(&VMIS, vmi_of(vm, &owner, &revision)),
    ];
    Plan { writes, expects: Expectation::Start, ..Plan::nothing() }
}

/// The VMI that a VM's template makes (`SetupVMIFromVM`, `startVMI`).
fn vmi_of(vm: &Value, owner: &Value, revision: &str) -> Value {
    let template = &vm["spec"]["template"];
    let mut metadata =
        template.get("metadata").filter(|one| one.is_object()).cloned().unwrap_or_else(|| json!({}));
    json::remove(&mut metadata, &["generateName"]);
    json::remove(&mut metadata, &["creationTimestamp"]);
    metadata["name"] = json::name(vm).into();
    metadata["namespace"] = json::namespace(vm).into();
    metadata["ownerReferences"] = owner.clone();
    metadata["finalizers"] = json!([FINALIZER]);
    let generation = integer(vm, "/metadata/generation").to_string();
    json::put(&mut metadata, &["annotations", "kubevirt.io/vm-generation"], generation);
    let mut spec = template.get("spec").cloned().unwrap_or_else(|| json!({}));
    let request = &vm["status"]["stateChangeRequests"][0];
    if request["action"] == "Start" && request["data"]["paused"] == "true" {
        spec["startStrategy"] = "Paused".into();
    }
    if let Some(claim) = memory_dump::completed(vm) {
        memory_dump::remove_volume(&mut spec, claim);
    }
    defaults::disks_for_volumes(&mut spec);
    defaults::pod_network(&mut spec);
    json!({
        "apiVersion": "kubevirt.io/v1",
        "kind": "VirtualMachineInstance",
        "metadata": metadata,
        "spec": spec,
        "status": {"guestOSInfo": {}, "runtimeUser": 0, "virtualMachineRevisionName": revision},
    })
}

/// Takes the VM controller's finalizer off an object.
pub fn without_finalizer(resource: &'static crate::sim::resource::Resource, object: &Value) -> Write {
    let old = object.pointer("/metadata/finalizers").unwrap_or(&Value::Null);
    let new: Value =
        list(object, "/metadata/finalizers").iter().filter(|one| *one != FINALIZER).cloned().collect();
    let patch = Write::test_and_replace("/metadata/finalizers", old, &new);
    Write::to(resource, object, "", Op::JsonPatch(json!(patch)))
}

/// The object with the API versions that the controller has seen, when it does not have them yet.
pub fn with_observed_version(object: &Value) -> Option<Value> {
    let keys = ["kubevirt.io/latest-observed-api-version", "kubevirt.io/storage-observed-api-version"];
    if keys.iter().all(|key| json::annotation(object, key) == Some("v1")) {
        return None;
    }
    let mut annotated = object.clone();
    for key in keys {
        json::put(&mut annotated, &["metadata", "annotations", key], "v1");
    }
    Some(annotated)
}

/// The status as a write of the whole object.
pub fn status_write(vm: &Value, status: Value) -> Write {
    let mut object = vm.clone();
    object["status"] = status;
    Write::to(&VMS, vm, "status", Op::Update(object))
}

/// The seconds before the next start after `failures` early failures, with `dice` for the jitter
/// (`calculateStartBackoffTime`).
pub fn start_delay(failures: i64, dice: u64) -> i64 {
    let interval = (MAX_CRASH_LOOP_DELAY / 30).max(10);
    let delay = interval.saturating_mul(failures.max(1).saturating_mul(failures.max(1)));
    let jitter = i64::try_from(dice % delay.unsigned_abs().saturating_div(2).saturating_add(1)).unwrap_or(0);
    delay.saturating_add(jitter).min(MAX_CRASH_LOOP_DELAY)
}
