//! virt-handler's part in a live migration (`migration-source.go`, `migration-target.go`, v1.9): each
//! function is what one node writes when it looks at the VMI.
//!
//! ```text
//!  target: address known ─► source: started ─► (memory goes over) ─► target: guest runs, VMI is mine
//!                                │                                        └─► plugged, completed ─► tidy
//!                                └─► aborted, timed out, target lost: failed
//! ```

use std::time::Duration;

use apimachinery::quantity;
use apimachinery::tree::{Value, json};
use jiff::{SignedDuration, Timestamp};

use super::guest::machine::{Answer, Machine};
use super::json::{self, condition, put, remove, remove_condition, time};
use super::launcher::Domain;
use super::virt_controller::migration::decide::{CPU_LABEL, MEMORY_LABEL, TARGET_NODE_LABEL};

/// What goes over in a second when the bandwidth is not limited: about a 25 Gbit/s network.
const BYTES_PER_SECOND: u64 = 3 << 30;

/// What the source's node does next.
#[derive(Clone, Debug, PartialEq)]
pub enum SourceStep {
    Nothing,
    /// Write this, and look again.
    Write(Value),
    /// Memory goes over: look again then.
    Wait(Duration),
    /// Everything is over there: the guest goes on there.
    HandOver,
}

fn state(vmi: &Value) -> Option<&Value> {
    vmi.pointer("/status/migrationState").filter(|state| state.is_object())
}

fn given(state: &Value, key: &str) -> bool {
    state.get(key).and_then(Value::as_str).is_some_and(|text| !text.is_empty())
}

/// The migration is neither completed nor failed.
fn under_way(state: &Value) -> bool {
    state["completed"] != true && state["failed"] != true && given(state, "migrationUid")
}

/// The size of the claims that a guest's volumes move to, bytes (`GetTotalSizeMigratedVolumes`).
fn moving_bytes(vmi: &Value) -> i64 {
    json::list(vmi, "/status/migratedVolumes")
        .iter()
        .filter_map(|one| one.pointer("/destinationPVCInfo/requests/storage").and_then(quantity::units))
        .fold(0, i64::saturating_add)
}

/// How long the guest's memory, and the volumes that move with it, take on their way.
pub fn transfer_time(vmi: &Value) -> Duration {
    let volumes = u64::try_from(moving_bytes(vmi)).unwrap_or(0);
    let memory = vmi
        .pointer("/status/memory/guestCurrent")
        .or(vmi.pointer("/spec/domain/memory/guest"))
        .and_then(quantity::units)
        .and_then(|bytes| u64::try_from(bytes).ok())
        .unwrap_or(1 << 30);
    let limit = vmi
        .pointer("/status/migrationState/migrationConfiguration/bandwidthPerMigration")
        .and_then(quantity::units)
        .and_then(|bytes| u64::try_from(bytes).ok())
        .filter(|bytes| *bytes > 0);
    let rate = limit.unwrap_or(BYTES_PER_SECOND).min(BYTES_PER_SECOND);
    Duration::from_millis(memory.saturating_add(volumes).saturating_mul(1000) / rate)
}

/// The time after which a migration is too slow (`completionTimeoutPerGiB`).
fn patience(vmi: &Value, configuration: &Value) -> Option<i64> {
    let per_gib = configuration["completionTimeoutPerGiB"].as_i64().filter(|seconds| *seconds > 0)?;
    let bytes = vmi.pointer("/spec/domain/memory/guest").and_then(quantity::units)?;
    let bytes = bytes.saturating_add(moving_bytes(vmi));
    let gib = bytes.div_euclid(1 << 30) + i64::from(bytes.rem_euclid(1 << 30) != 0);
    Some(per_gib.saturating_mul(gib))
}

/// The next step of the node that the guest leaves. `began`: when the transfer started here.
/// `target_alive`: the target pod is there and not down.
pub fn source(
    vmi: &Value,
    node: &str,
    began: Option<Timestamp>,
    target_alive: bool,
    now: Timestamp,
) -> SourceStep {
    let Some(migration) = state(vmi)
        .filter(|state| under_way(state) && state["sourceNode"] == node && vmi["status"]["nodeName"] == node)
    else {
        return SourceStep::Nothing;
    };
    let with = |change: &dyn Fn(&mut Value)| {
        let mut new = vmi.clone();
        change(&mut new["status"]["migrationState"]);
        SourceStep::Write(new)
    };
    let failed = |reason: &str, abort: Option<&str>| {
        with(&|state| {
            state["failed"] = true.into();
            state["completed"] = true.into();
            state["failureReason"] = reason.into();
            state["endTimestamp"] = time(now).into();
            if let Some(status) = abort {
                state["abortStatus"] = status.into();
            }
            if state.get("startTimestamp").is_none() {
                state["startTimestamp"] = time(now).into();
            }
        })
    };
    if !given(migration, "targetNodeAddress") {
        return SourceStep::Nothing;
    }
    if migration["abortRequested"] == true {
        return failed("Live migration has been aborted", Some("Succeeded"));
    }
    if !given(migration, "startTimestamp") {
        return with(&|state| {
            state["mode"] = "PreCopy".into();
            state["startTimestamp"] = time(now).into();
        });
    }
    if given(migration, "endTimestamp") {
        return SourceStep::Nothing;
    }
    if !target_alive {
        return failed("Live migration failed: the target virt-launcher is gone", None);
    }
    let Some(began) = began else { return SourceStep::Wait(Duration::ZERO) };
    let configuration = &migration["migrationConfiguration"];
    let elapsed = now.duration_since(began);
    let needed = SignedDuration::try_from(transfer_time(vmi)).unwrap_or(SignedDuration::MAX);
    let limit = patience(vmi, configuration);
    if limit.is_some_and(|limit| needed.as_secs() >= limit && elapsed.as_secs() >= limit) {
        let limit = limit.unwrap_or_default();
        // Post-copy and a paused guest end every migration, at a price.
        let mode = if configuration["allowPostCopy"] == true {
            Some("PostCopy")
        } else {
            (configuration["allowWorkloadDisruption"] == true).then_some("Paused")
        };
        return match mode {
            Some(mode) if migration["mode"] != mode => with(&|state| state["mode"] = mode.into()),
            Some(_) => SourceStep::HandOver,
            None => failed(
                &format!("Live migration is not completed after {limit} seconds and has been aborted"),
                Some("Succeeded"),
            ),
        };
    }
    if elapsed >= needed {
        return SourceStep::HandOver;
    }
    let end = limit.map_or(needed, |limit| needed.min(SignedDuration::from_secs(limit)));
    SourceStep::Wait(Duration::try_from(end.saturating_sub(elapsed)).unwrap_or_default())
}

/// What the node writes that the guest comes to; `None`: nothing. `domain`: the guest in the target pod.
pub fn target(
    vmi: &Value,
    node: &str,
    address: &str,
    domain: Option<Domain>,
    now: Timestamp,
) -> Option<Value> {
    if json::label(vmi, TARGET_NODE_LABEL) != node {
        return None;
    }
    let migration = state(vmi).filter(|state| state["targetNode"] == node && state["failed"] != true)?;
    let mut new = vmi.clone();
    if migration["completed"] == true {
        // Once more, to let the VMI go as one that is not migrating.
        remove(&mut new, &["metadata", "labels", TARGET_NODE_LABEL]);
        return Some(new);
    }
    if given(migration, "endTimestamp") {
        plug(&mut new);
        put(&mut new, &["status", "migrationState", "completed"], true);
        return Some(new);
    }
    if domain == Some(Domain::Running) {
        receive(&mut new, node, now);
        return Some(new);
    }
    if !given(migration, "targetNodeAddress") {
        let state = &mut new["status"]["migrationState"];
        state["targetNodeAddress"] = address.into();
        state["targetDirectMigrationNodePorts"] = json!({"49152": 0});
        return Some(new);
    }
    None
}

/// The guest runs here: the VMI is this node's now (`ackMigrationCompletion`).
fn receive(vmi: &mut Value, node: &str, now: Timestamp) {
    let state = &mut vmi["status"]["migrationState"];
    state["targetNodeDomainDetected"] = true.into();
    state["targetNodeDomainReadyTimestamp"] = time(now).into();
    state["endTimestamp"] = time(now).into();
    let overhead = state.get("targetMemoryOverhead").cloned();
    put(vmi, &["metadata", "labels", "kubevirt.io/nodeName"], node);
    remove(vmi, &["metadata", "labels", "kubevirt.io/outdatedLauncherImage"]);
    remove(vmi, &["metadata", "annotations", "kubevirt.io/eviction-source"]);
    remove(vmi, &["status", "launcherContainerImageVersion"]);
    remove(vmi, &["status", "evacuationNodeName"]);
    put(vmi, &["status", "nodeName"], node);
    put(vmi, &["status", "migrationTransport"], "Unix");
    if let Some(overhead) = overhead {
        put(vmi, &["status", "memory", "memoryOverhead"], overhead);
    }
    let mut conditions = json::list(vmi, "/status/conditions").to_vec();
    remove_condition(&mut conditions, "MigrationRequired");
    put(vmi, &["status", "conditions"], conditions);
}

/// CPUs and memory that were waiting for the migration (`finalizeMigration`: `hotplugCPU`, `hotplugMemory`).
fn plug(vmi: &mut Value) {
    let has = |kind: &str| condition(vmi, "/status/conditions", kind).is_some();
    let (cpus, memory) = (has("HotVCPUChange"), has("HotMemoryChange"));
    if cpus {
        let cpu = vmi["spec"]["domain"]["cpu"].clone();
        for key in ["sockets", "cores", "threads"] {
            put(vmi, &["status", "currentCPUTopology", key], cpu[key].as_i64().unwrap_or(0));
        }
    }
    if memory && enough_memory(vmi) {
        let guest = vmi["spec"]["domain"]["memory"]["guest"].clone();
        put(vmi, &["status", "memory", "guestRequested"], guest);
    }
    let mut conditions = json::list(vmi, "/status/conditions").to_vec();
    for kind in ["HotVCPUChange", "HotMemoryChange", "VolumesChange"] {
        remove_condition(&mut conditions, kind);
    }
    put(vmi, &["status", "conditions"], conditions);
    for label in [CPU_LABEL, MEMORY_LABEL, "kubevirt.io/memory-hotplug-overhead-ratio"] {
        remove(vmi, &["metadata", "labels", label]);
    }
    remove(vmi, &["status", "migratedVolumes"]);
}

/// The calls to the launcher that go with it; memory is there at once.
pub fn plug_guest(machine: &mut Machine, vmi: &Value) {
    let has = |kind: &str| condition(vmi, "/status/conditions", kind).is_some();
    if has("HotVCPUChange") {
        // What the launcher says is logged by virt-handler, and changes nothing.
        machine.sync_cpus(vmi);
    }
    if has("HotMemoryChange") && enough_memory(vmi) && machine.sync_memory(vmi) == Answer::Success {
        machine.follow(i64::MAX);
    }
}

/// Whether a write is the one that ends a migration.
pub fn completes(before: &Value, after: &Value) -> bool {
    let completed = |vmi: &Value| state(vmi).is_some_and(|state| state["completed"] == true);
    !completed(before) && completed(after)
}

/// The target pod asks for what the larger guest needs; without that the change is given up, with no
/// word about it in the VMI.
fn enough_memory(vmi: &Value) -> bool {
    let bytes = |value: Option<&Value>| value.and_then(quantity::units);
    let asked = bytes(vmi.pointer("/metadata/labels").and_then(|labels| labels.get(MEMORY_LABEL)));
    let overhead = bytes(vmi.pointer("/status/migrationState/targetMemoryOverhead")).unwrap_or(0);
    let requested = bytes(vmi.pointer("/spec/domain/resources/requests/memory")).unwrap_or(0);
    asked.is_some_and(|asked| asked >= overhead.saturating_add(requested))
}

/// The memory that libvirt counts (`guestCurrent` is its `currentMemory`).
pub fn grow(vmi: &mut Value, counted: i64) {
    let path = |name: &str| format!("/status/memory/{name}");
    let bytes = |vmi: &Value, name: &str| vmi.pointer(&path(name)).and_then(quantity::units);
    if vmi.pointer(&path("guestRequested")).is_none() || counted <= 0 {
        return;
    }
    let moving = state(vmi).is_some_and(|state| under_way(state) && given(state, "startTimestamp"))
        || !json::label(vmi, TARGET_NODE_LABEL).is_empty();
    if moving || bytes(vmi, "guestCurrent") == Some(counted) {
        return;
    }
    let as_requested =
        vmi.pointer(&path("guestRequested")).filter(|_| bytes(vmi, "guestRequested") == Some(counted));
    let value = as_requested.cloned().unwrap_or_else(|| quantity::bytes(counted).into());
    put(vmi, &["status", "memory", "guestCurrent"], value);
}

/// Whether the target pod of a VMI is of no use any more, because the migration failed.
pub fn target_is_left(vmi: &Value, node: &str) -> bool {
    state(vmi).is_some_and(|state| {
        state["targetNode"] == node && state["failed"] == true && vmi["status"]["nodeName"] != node
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::json::text;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn vmi(migration: Value) -> Value {
        let mut migration = migration;
        for (key, value) in [("migrationUid", "m"), ("sourceNode", "n1"), ("targetNode", "n2")] {
            migration[key] = value.into();
        }
        json!({"metadata": {"name": "v", "labels": {"kubevirt.io/nodeName": "n1", TARGET_NODE_LABEL: "n2",
                MEMORY_LABEL: "2360Mi"}},
            "spec": {"domain": {"cpu": {"sockets": 4, "cores": 1, "threads": 1}, "memory": {"guest": "2Gi"}}},
            "status": {"nodeName": "n1", "phase": "Running", "memory": {"guestCurrent": "1Gi", "guestRequested": "1Gi"},
                "migrationState": migration, "evacuationNodeName": "n1", "conditions": [
                    {"type": "HotVCPUChange", "status": "True"}, {"type": "HotMemoryChange", "status": "True"}]}})
    }

    #[test]
    fn a_migration_as_both_nodes_write_it() {
        let mut vmi = vmi(json!({"targetMemoryOverhead": "312Mi"}));
        assert_eq!(source(&vmi, "n1", None, true, at(0)), SourceStep::Nothing, "the target is not ready");
        assert_eq!(target(&vmi, "n1", "a", None, at(0)), None, "another node");
        vmi = target(&vmi, "n2", "198.18.0.2", None, at(0)).unwrap();
        assert_eq!(vmi["status"]["migrationState"]["targetNodeAddress"], "198.18.0.2");
        assert_eq!(target(&vmi, "n2", "198.18.0.2", None, at(0)), None, "said once");
        let SourceStep::Write(started) = source(&vmi, "n1", None, true, at(1)) else { panic!() };
        vmi = started;
        assert_eq!(vmi["status"]["migrationState"]["mode"], "PreCopy");
        let SourceStep::Wait(left) = source(&vmi, "n1", Some(at(1)), true, at(1)) else { panic!() };
        assert_eq!(left, transfer_time(&vmi));
        assert_eq!(source(&vmi, "n1", Some(at(1)), true, at(2)), SourceStep::HandOver);
        vmi = target(&vmi, "n2", "198.18.0.2", Some(Domain::Running), at(2)).unwrap();
        assert_eq!(
            (&vmi["status"]["nodeName"], &vmi["metadata"]["labels"]["kubevirt.io/nodeName"]),
            (&json!("n2"), &json!("n2"))
        );
        assert_eq!(vmi["status"].get("evacuationNodeName"), None);
        assert_eq!(vmi["status"]["memory"]["memoryOverhead"], "312Mi");
        vmi = target(&vmi, "n2", "198.18.0.2", Some(Domain::Running), at(3)).unwrap();
        let status = &vmi["status"];
        assert_eq!(
            (&status["migrationState"]["completed"], &status["conditions"]),
            (&json!(true), &json!([]))
        );
        assert_eq!(
            (&status["currentCPUTopology"]["sockets"], &status["memory"]["guestRequested"]),
            (&json!(4), &json!("2Gi"))
        );
        assert_eq!(json::label(&vmi, MEMORY_LABEL), "");
        vmi = target(&vmi, "n2", "198.18.0.2", Some(Domain::Running), at(3)).unwrap();
        assert_eq!(json::label(&vmi, TARGET_NODE_LABEL), "");
        assert_eq!(target(&vmi, "n2", "198.18.0.2", Some(Domain::Running), at(3)), None);
        grow(&mut vmi, 2 << 30);
        assert_eq!(vmi["status"]["memory"]["guestCurrent"], "2Gi");
    }

    #[test]
    fn how_a_migration_fails() {
        let running = || {
            let mut vmi = vmi(json!({"targetNodeAddress": "a", "startTimestamp": "t",
                "migrationConfiguration": {"bandwidthPerMigration": "1Mi", "completionTimeoutPerGiB": 10}}));
            vmi["status"]["migrationState"]["mode"] = "PreCopy".into();
            vmi
        };
        let reason = |step: SourceStep| match step {
            SourceStep::Write(vmi) => text(&vmi, "/status/migrationState/failureReason").to_owned(),
            other => format!("{other:?}"),
        };
        let mut aborted = running();
        aborted["status"]["migrationState"]["abortRequested"] = true.into();
        assert_eq!(
            reason(source(&aborted, "n1", Some(at(0)), true, at(1))),
            "Live migration has been aborted"
        );
        let gone = reason(source(&running(), "n1", Some(at(0)), false, at(1)));
        assert_eq!(gone, "Live migration failed: the target virt-launcher is gone");
        let slow = source(&running(), "n1", Some(at(0)), true, at(20));
        assert_eq!(reason(slow), "Live migration is not completed after 20 seconds and has been aborted");
        let mut forced = running();
        forced["status"]["migrationState"]["migrationConfiguration"]["allowPostCopy"] = true.into();
        let SourceStep::Write(switched) = source(&forced, "n1", Some(at(0)), true, at(20)) else { panic!() };
        assert_eq!(switched["status"]["migrationState"]["mode"], "PostCopy");
        assert_eq!(source(&switched, "n1", Some(at(0)), true, at(20)), SourceStep::HandOver);
        let mut failed = running();
        failed["status"]["migrationState"]["failed"] = true.into();
        assert!(target_is_left(&failed, "n2") && !target_is_left(&failed, "n1"));
        assert_eq!(target(&failed, "n2", "a", None, at(0)), None);
    }

    #[test]
    fn a_target_pod_that_is_too_small_gets_no_memory() {
        let mut vmi = vmi(json!({"targetMemoryOverhead": "312Mi", "endTimestamp": "t"}));
        vmi["spec"]["domain"]["resources"] = json!({"requests": {"memory": "4Gi"}});
        let vmi = target(&vmi, "n2", "a", Some(Domain::Running), at(0)).unwrap();
        assert_eq!(vmi["status"]["memory"]["guestRequested"], "1Gi");
        assert_eq!(vmi["status"]["currentCPUTopology"]["sockets"], 4);
    }
}
