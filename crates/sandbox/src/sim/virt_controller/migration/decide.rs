//! What virt-controller does about a `VirtualMachineInstanceMigration` (`watch/migration`, v1.9): first
//! it acts on what the phase asks for, then it writes the phase that follows.
//!
//! ```text
//!  (none) ─► Pending ─target pod made─► Scheduling ─pod ready─► Scheduled ─handed over─► PreparingTarget
//!                                                                                            │ address known
//!            Succeeded ◄─guest runs on the target─ Running ◄─source has started─ TargetReady ◄┘
//!
//!  any of them ─cancelled, pod lost, VMI ended or taken over, source reports so─► Failed
//! ```

use std::sync::Arc;
use std::time::Duration;

use apimachinery::quantity;
use apimachinery::tree::{Value, json};
use jiff::{SignedDuration, Timestamp};

use crate::sim::events::Note;
use crate::sim::json::{self, finalizers, is_deleting, list, text, time};
use crate::sim::resource::{MIGRATIONS, PODS, VMIS};
use crate::sim::virt_controller::vm::is_final as vmi_is_final;
use crate::sim::virt_controller::vmi::{pod_is_down, pod_is_ready};
use crate::sim::write::{Op, Write};

/// Keeps a migration until its end is written down.
pub const FINALIZER: &str = "kubevirt.io/migrationJobFinalize";
/// On pods: the uid of the migration that they are the target of.
pub const JOB_LABEL: &str = "kubevirt.io/migrationJobUID";
/// On VMIs: the node that prepares to receive the guest.
pub const TARGET_NODE_LABEL: &str = "kubevirt.io/migrationTargetNodeName";
/// On VMIs under way: what the target pod asks for.
pub const MEMORY_LABEL: &str = "kubevirt.io/vmi-pod-memory-resource-requests";
/// On VMIs with dedicated CPUs under way: the CPUs that the target pod may use.
pub const CPU_LABEL: &str = "kubevirt.io/vmi-pod-cpu-resource-limits";
const READY_AT: &str = "kubevirt.io/migration-target-ready-timestamp";
const EVACUATION: &str = "kubevirt.io/evacuationMigration";
const WORKLOAD_UPDATE: &str = "kubevirt.io/workloadUpdateMigration";
/// A target pod that fits nowhere is given up after this time.
const UNSCHEDULABLE: i64 = 5 * 60;
/// A target pod that does not start, for whatever reason, is given up after this time.
const PENDING: i64 = 15 * 60;
/// The first pause after a failed migration that a controller asked for; it doubles.
const BACKOFF: i64 = 20;

/// What the controller sees.
pub struct Observation<'a> {
    pub migration: &'a Value,
    pub vmi: &'a Value,
    /// The target pod.
    pub target: Option<&'a Value>,
    /// The pod that holds hotplugged volumes for the target.
    pub attachment: Attachment<'a>,
    /// The pod that the guest runs in.
    pub source: Option<&'a Value>,
    /// Every migration of this VMI, this one too.
    pub siblings: &'a [Arc<Value>],
    /// The cluster's configuration with the policy that fits, and the policy's name.
    pub configuration: &'a (Value, Option<String>),
    /// The feature gate `Root`.
    pub root: bool,
    pub now: Timestamp,
}

/// The pod that holds hotplugged volumes for the target.
#[derive(Clone, Copy, Debug)]
pub enum Attachment<'a> {
    /// The guest has none.
    NotNeeded,
    Missing,
    Pod(&'a Value),
}

impl Attachment<'_> {
    fn is_missing(self) -> bool {
        matches!(self, Self::Missing)
    }

    fn is_ready(self) -> bool {
        match self {
            Self::NotNeeded => true,
            Self::Missing => false,
            Self::Pod(pod) => pod_is_ready(pod),
        }
    }

    fn is_down(self) -> bool {
        matches!(self, Self::Pod(pod) if pod_is_down(pod))
    }

    fn uid(&self) -> Option<&str> {
        match self {
            Self::Pod(pod) => Some(json::uid(pod)),
            Self::NotNeeded | Self::Missing => None,
        }
    }
}

/// What is to be done before the status.
#[derive(Debug, Default, PartialEq)]
pub struct Action {
    pub writes: Vec<Write>,
    pub notes: Vec<Note>,
    /// A target pod is to be made, if the limits allow it.
    pub make_target: bool,
    /// The target pod is ready, and needs its attachment pod.
    pub make_attachment: bool,
    pub after: Option<Duration>,
}

/// The status as it should be.
#[derive(Debug, PartialEq)]
pub struct Outcome {
    pub status: Value,
    pub notes: Vec<Note>,
    /// A write that has to come before the status.
    pub before: Option<Write>,
    pub drop_finalizer: bool,
}

/// Over, one way or the other.
pub fn is_final(migration: &Value) -> bool {
    matches!(phase(migration), "Succeeded" | "Failed")
}

/// It holds a place among the parallel migrations.
pub fn is_running(migration: &Value) -> bool {
    !is_final(migration) && !matches!(phase(migration), "" | "Pending")
}

pub fn phase(migration: &Value) -> &str {
    text(migration, "/status/phase")
}

/// The VMI is between start and end of a migration.
pub fn is_migrating(vmi: &Value) -> bool {
    !text(vmi, "/status/migrationState/startTimestamp").is_empty()
        && text(vmi, "/status/migrationState/endTimestamp").is_empty()
}

/// How urgent it is, with the time after which one that had to wait looks again.
pub fn urgency(migration: &Value) -> (u8, Duration) {
    match text(migration, "/spec/priority") {
        "system-critical" => (3, Duration::from_secs(1)),
        "" | "user-triggered" => (2, Duration::from_secs(3)),
        _ => (1, Duration::from_secs(5)),
    }
}

/// The first write to a new migration: versions seen, and the label that finds it by its VMI.
pub fn with_labels(migration: &Value) -> Option<Write> {
    let mut annotated = super::super::vm::with_observed_version(migration)?;
    let vmi = text(migration, "/spec/vmiName").to_owned();
    if json::label(migration, "kubevirt.io/vmi-name").is_empty() {
        json::put(&mut annotated, &["metadata", "labels", "kubevirt.io/vmi-name"], vmi);
    }
    Some(Write::to(&MIGRATIONS, migration, "", Op::Update(annotated)))
}

impl Observation<'_> {
    fn uid(&self) -> &str {
        json::uid(self.migration)
    }

    fn state(&self) -> Option<&Value> {
        self.vmi.pointer("/status/migrationState").filter(|state| state.is_object())
    }

    /// The VMI's migration state, when it is about this migration.
    fn own_state(&self) -> Option<&Value> {
        self.state().filter(|state| state["migrationUid"] == self.uid())
    }

    /// No other migration of the VMI is under way (`canMigrateVMI`).
    fn may_migrate(&self) -> bool {
        let Some(current) = self.state().map(|state| text(state, "/migrationUid")) else { return true };
        current.is_empty()
            || current == self.uid()
            || self.siblings.iter().all(|one| json::uid(one) != current || is_final(one))
    }
}

/// What the phase asks for (`sync`).
///
/// # Errors
/// Another migration of the VMI runs.
pub fn act(seen: &Observation<'_>) -> Result<Action, String> {
    let mut action = Action::default();
    if is_deleting(seen.vmi) || seen.own_state().is_some_and(|state| state["completed"] == true) {
        return Ok(action);
    }
    if !seen.may_migrate() {
        return Err("vmi is ineligible for migration because another migration job is running".into());
    }
    let cancelled = is_deleting(seen.migration);
    let handed_over = seen.own_state().is_some();
    match (phase(seen.migration), seen.target) {
        ("Pending" | "Scheduling", target) if cancelled => cancel(seen, target, &mut action),
        ("Scheduled", target) if cancelled && !handed_over => cancel(seen, target, &mut action),
        ("Pending", None) => {
            if let Some(left) = backoff(seen) {
                let message = format!("backoff migrating vmi {}", json::key(seen.vmi));
                action.notes.push(Note::warning(seen.vmi, "MigrationBackoff", message));
                action.after = Some(left);
            } else if seen.source.is_some() {
                action.writes.extend(runtime_user(seen));
                action.make_target = true;
            }
        }
        ("Pending" | "Scheduling", Some(pod)) => {
            // The set of this moment is the set of the migration (migration.go:1855-1865).
            action.make_attachment = seen.attachment.is_missing() && pod_is_ready(pod);
            pending_timeout(seen, pod, &mut action);
        }
        ("Scheduled", Some(pod)) if pod_is_ready(pod) && seen.attachment.is_ready() && !handed_over => {
            action.writes.push(hand_over(seen, pod));
            let message = "Migration target pod is ready for preparation by virt-handler.";
            action.notes.push(Note::normal(seen.migration, "SuccessfulHandOver", message));
        }
        ("PreparingTarget" | "TargetReady", target) => {
            let lost = target.is_none_or(pod_is_down);
            let waiting = seen.own_state().is_some_and(|state| text(state, "/startTimestamp").is_empty());
            if lost && waiting {
                mark_failed(seen, &mut action);
            }
        }
        ("Failed", _) if seen.own_state().is_some_and(|state| state["failed"] != true) => {
            mark_failed(seen, &mut action);
        }
        ("Running", _)
            if cancelled && seen.own_state().is_some_and(|state| state["abortRequested"] != true) =>
        {
            let mut status = seen.vmi["status"].clone();
            status["migrationState"]["abortRequested"] = true.into();
            let patch = Write::test_and_replace("/status", &seen.vmi["status"], &status);
            action.writes.push(Write::to(&VMIS, seen.vmi, "", Op::JsonPatch(json!(patch))));
            let message = "Migration is ready to be canceled by virt-handler.";
            action.notes.push(Note::normal(seen.migration, "SuccessfulAbort", message));
        }
        _ => {}
    }
    Ok(action)
}

/// A migration that is given up before the nodes know of it takes its pod along.
fn cancel(seen: &Observation<'_>, target: Option<&Value>, action: &mut Action) {
    let Some(pod) = target.filter(|pod| !is_deleting(pod)) else { return };
    action.writes.push(Write::to(&PODS, pod, "", Op::Delete(Value::Null)));
    let message = format!("migration canceled and pod {} is deleted", json::key(pod));
    action.notes.push(Note::normal(seen.migration, "SuccessfulDelete", message));
}

/// How long a migration that a controller asked for has to wait after failures (`handleMigrationBackoff`).
fn backoff(seen: &Observation<'_>) -> Option<Duration> {
    let by_controller = |migration: &Value| {
        [EVACUATION, WORKLOAD_UPDATE].iter().any(|key| json::annotation(migration, key).is_some())
    };
    let ignored =
        json::annotation(seen.migration, "kubevirt.io/func-test-ignore-migration-backoff").is_some();
    if ignored || !by_controller(seen.migration) {
        return None;
    }
    let mut newest_first: Vec<&Arc<Value>> = seen.siblings.iter().filter(|one| by_controller(one)).collect();
    newest_first.sort_by_key(|one| (text(one, "/metadata/creationTimestamp"), json::name(one)));
    newest_first.reverse();
    let (first, older) = newest_first.split_first()?;
    if json::uid(first) != seen.uid() {
        return None;
    }
    let mut pause = 0_i64;
    for migration in older {
        match phase(migration) {
            "Succeeded" => break,
            "Failed" if !is_deleting(migration) => {
                pause = if pause == 0 { BACKOFF } else { pause.saturating_mul(2) };
            }
            _ => {}
        }
    }
    let failed_at: Timestamp = list(older.first()?, "/status/phaseTransitionTimestamps")
        .iter()
        .find(|one| one["phase"] == "Failed")
        .and_then(|one| text(one, "/phaseTransitionTimestamp").parse().ok())?;
    let until = failed_at.checked_add(SignedDuration::from_secs(pause)).ok()?;
    let left = until.duration_since(seen.now);
    (pause > 0 && left > SignedDuration::ZERO).then(|| Duration::try_from(left).unwrap_or_default())
}

/// Guests of older releases ran as root; the annotation is still written (`setupVMIRuntimeUser`).
fn runtime_user(seen: &Observation<'_>) -> Option<Write> {
    const KEY: &str = "kubevirt.io/nonroot";
    let wanted = if seen.root { 0 } else { 107 };
    let mut patch = Vec::new();
    if seen.vmi["status"]["runtimeUser"].as_i64().unwrap_or(0) != wanted {
        patch.push(json!({"op": "replace", "path": "/status/runtimeUser", "value": wanted}));
    }
    let marked = json::annotation(seen.vmi, KEY).is_some();
    let path = "/metadata/annotations/kubevirt.io~1nonroot";
    match (seen.root, marked, json::map(seen.vmi, "/metadata/annotations")) {
        (false, false, Some(_)) => patch.push(json!({"op": "add", "path": path, "value": "true"})),
        (false, false, None) => {
            patch.push(json!({"op": "add", "path": "/metadata/annotations", "value": {KEY: "true"}}));
        }
        (true, true, _) => patch.push(json!({"op": "remove", "path": path})),
        _ => {}
    }
    (!patch.is_empty()).then(|| Write::to(&VMIS, seen.vmi, "", Op::JsonPatch(patch.into())))
}

/// Gives a pod up that does not start (`handlePendingPodTimeout`).
fn pending_timeout(seen: &Observation<'_>, pod: &Value, action: &mut Action) {
    let Ok(made) = text(pod, "/metadata/creationTimestamp").parse::<Timestamp>() else { return };
    if text(pod, "/status/phase") != "Pending" || is_deleting(pod) {
        return;
    }
    let limit = |key: &str, usual: i64| {
        json::annotation(seen.migration, key).and_then(|text| text.parse().ok()).unwrap_or(usual)
    };
    let waited = seen.now.duration_since(made).as_secs().max(0);
    let unschedulable = json::condition(pod, "/status/conditions", "PodScheduled")
        .is_some_and(|one| one["status"] == "False" && one["reason"] == "Unschedulable");
    let mut limits = vec![(limit("kubevirt.io/migrationPendingPodTimeoutSeconds", PENDING), "pending")];
    if unschedulable {
        let message =
            format!("Migration target pod for VMI [{}] is currently unschedulable.", json::key(seen.vmi));
        action.notes.push(Note::warning(seen.migration, "migrationTargetPodUnschedulable", message));
        let seconds = limit("kubevirt.io/migrationUnschedulablePodTimeoutSeconds", UNSCHEDULABLE);
        limits.insert(0, (seconds, "unschedulable"));
    }
    for (seconds, what) in limits {
        if waited >= seconds {
            action.writes.push(Write::to(&PODS, pod, "", Op::Delete(Value::Null)));
            let message = format!("{what} pod {} timeout period exceeded", json::key(pod));
            action.notes.push(Note::normal(seen.migration, "SuccessfulDelete", message));
            return;
        }
        let left = Duration::from_secs(u64::try_from(seconds.saturating_sub(waited)).unwrap_or_default());
        action.after = Some(action.after.map_or(left, |after| after.min(left)));
    }
}

/// Tells the nodes: migration state and labels of the VMI (`handleTargetPodHandoff`).
fn hand_over(seen: &Observation<'_>, pod: &Value) -> Write {
    let (configuration, policy) = seen.configuration;
    let mut state = json!({
        "migrationUid": seen.uid(),
        "targetNode": text(pod, "/spec/nodeName"),
        "sourceNode": text(seen.vmi, "/status/nodeName"),
        "targetPod": json::name(pod),
        "migrationConfiguration": configuration,
    });
    if let Some(source) = seen.migration.pointer("/status/migrationState/sourcePod") {
        state["sourcePod"] = source.clone();
    }
    if let Some(policy) = policy {
        state["migrationPolicyName"] = policy.as_str().into();
    }
    if let Some(uid) = seen.attachment.uid() {
        state["targetAttachmentPodUID"] = uid.into();
    }
    let overhead =
        json::annotation(pod, "kubevirt.io/memory-overhead-bytes").and_then(|text| text.parse().ok());
    if let Some(overhead) = overhead {
        state["targetMemoryOverhead"] = quantity::bytes(overhead).into();
    }
    let labels = seen.vmi.pointer("/metadata/labels").cloned().unwrap_or(Value::Null);
    let mut new_labels = if labels.is_object() { labels.clone() } else { json!({}) };
    new_labels[TARGET_NODE_LABEL] = text(pod, "/spec/nodeName").into();
    let compute = list(pod, "/spec/containers").iter().find(|one| one["name"] == "compute");
    let has = |kind: &str| json::condition(seen.vmi, "/status/conditions", kind).is_some();
    if has("HotVCPUChange")
        && seen.vmi.pointer("/spec/domain/cpu/dedicatedCpuPlacement") == Some(&Value::Bool(true))
        && let Some(limit) = compute.and_then(|one| one.pointer("/resources/limits/cpu"))
    {
        new_labels[CPU_LABEL] = quantity::units(limit).unwrap_or_default().to_string().into();
    }
    if has("HotMemoryChange")
        && let Some(request) = compute.and_then(|one| one.pointer("/resources/requests/memory"))
    {
        new_labels[MEMORY_LABEL] = request.clone();
    }
    let path = "/status/migrationState";
    let old = seen.vmi.pointer(path).cloned().unwrap_or(Value::Null);
    let op = if old.is_null() { "add" } else { "replace" };
    let patch = json!([
        {"op": "test", "path": path, "value": old},
        {"op": op, "path": path, "value": state},
        {"op": "test", "path": "/metadata/labels", "value": labels},
        {"op": "replace", "path": "/metadata/labels", "value": new_labels},
    ]);
    Write::to(&VMIS, seen.vmi, "", Op::JsonPatch(patch))
}

/// Writes the failure down on the VMI, for nobody else will (`handleMarkMigrationFailedOnVMI`).
fn mark_failed(seen: &Observation<'_>, action: &mut Action) {
    let Some(state) = seen.own_state() else { return };
    let at = |field: &str| format!("/status/migrationState/{field}");
    let mut patch = vec![
        json!({"op": "test", "path": at("migrationUid"), "value": seen.uid()}),
        json!({"op": "add", "path": at("failed"), "value": true}),
        json!({"op": "add", "path": at("completed"), "value": true}),
    ];
    for field in ["endTimestamp", "startTimestamp"] {
        if text(state, &format!("/{field}")).is_empty() {
            patch.push(json!({"op": "add", "path": at(field), "value": time(seen.now)}));
        }
    }
    if text(state, "/failureReason").is_empty() {
        patch.push(json!({"op": "add", "path": at("failureReason"), "value": "Target pod is down"}));
    }
    action.writes.push(Write::to(&VMIS, seen.vmi, "", Op::JsonPatch(patch.into())));
    let message =
        format!("VirtualMachineInstance migration uid {} failed. reason: Target pod is down", seen.uid());
    action.notes.push(Note::warning(seen.vmi, "FailedMigration", message));
}

/// The status that follows (`updateStatus`). `refused`: why the target pod could not be made.
pub fn follow_up(seen: &Observation<'_>, refused: Option<&str>) -> Outcome {
    let migration = seen.migration;
    let mut status = migration.get("status").cloned().unwrap_or_else(|| json!({}));
    let mut outcome = Outcome { status: Value::Null, notes: Vec::new(), before: None, drop_finalizer: false };
    let created = !matches!(phase(migration), "" | "Pending");
    let handed_over = created && !matches!(phase(migration), "Scheduling" | "Scheduled");
    let failure = if is_final(migration) {
        if let Some(state) = seen.own_state() {
            status["migrationState"] = state.clone();
        }
        outcome.drop_finalizer = finalizers(migration).contains(&FINALIZER);
        None
    } else if vmi_is_final(seen.vmi) {
        Some("Migration failed vmi shutdown during migration.")
    } else if is_deleting(migration) && seen.own_state().is_none() {
        request_abort(&mut status, seen.now);
        Some("Migration failed due to being canceled")
    } else if seen.target.is_some_and(pod_is_down) {
        Some("Migration failed because target pod shutdown during migration")
    } else if seen.attachment.is_down() {
        Some("Migration failed because target attachment pod shutdown during migration")
    } else if created && seen.target.is_none() {
        Some("Migration target pod was removed during active migration.")
    } else if handed_over && seen.state().is_none() {
        Some("VMI's migration state was cleared during the active migration.")
    } else if handed_over && seen.own_state().is_none() {
        Some("VMI's migration state was taken over by another migration job during active migration.")
    } else if seen.own_state().is_some_and(|state| state["failed"] == true) {
        Some("source node reported migration failed")
    } else {
        if is_deleting(migration) {
            request_abort(&mut status, seen.now);
        }
        next_phase(seen, refused, &mut status, &mut outcome)
    };
    if let Some(message) = failure {
        status["phase"] = "Failed".into();
        outcome.notes.push(Note::warning(migration, "FailedMigration", message));
    }
    transition(&mut status, seen.now);
    if status["phase"] == "Pending"
        && let Some(source) = seen.source
    {
        json::put(&mut status, &["migrationState", "sourcePod"], json::name(source));
    }
    outcome.status = status;
    outcome
}

/// `processMigrationPhase`; a failure's message when there is one.
fn next_phase(
    seen: &Observation<'_>,
    refused: Option<&str>,
    status: &mut Value,
    outcome: &mut Outcome,
) -> Option<&'static str> {
    let state = seen.own_state().unwrap_or(&Value::Null);
    let given = |pointer: &str| !text(state, pointer).is_empty();
    let next = match phase(seen.migration) {
        "" if !seen.may_migrate() => {
            return Some("VMI is not eligible for migration because another migration job is in progress.");
        }
        "" => "Pending",
        "Pending" if seen.target.is_some() && !seen.attachment.is_missing() => "Scheduling",
        "Pending" => {
            if refused.is_some_and(|why| why.contains("exceeded quota")) {
                add_condition(status, "migrationRejectedByResourceQuota", seen.now);
            }
            "Pending"
        }
        "Scheduling" => {
            let mut conditions = list(status, "/conditions").to_vec();
            json::remove_condition(&mut conditions, "migrationRejectedByResourceQuota");
            if status.get("conditions").is_some() {
                status["conditions"] = conditions.into();
            }
            let ready = seen.target.is_some_and(pod_is_ready) && seen.attachment.is_ready();
            if ready { "Scheduled" } else { "Scheduling" }
        }
        "Scheduled" if given("/targetNode") => "PreparingTarget",
        "PreparingTarget" if given("/targetNode") && given("/targetNodeAddress") => "TargetReady",
        "TargetReady" if given("/startTimestamp") => "Running",
        "Running" => {
            if let Some(pod) = seen.target.filter(|pod| json::annotation(pod, READY_AT).is_none())
                && given("/targetNodeDomainReadyTimestamp")
            {
                outcome.before = Some(ready_at(pod, text(state, "/targetNodeDomainReadyTimestamp")));
            }
            let has = |kind: &str| json::condition(seen.vmi, "/status/conditions", kind).is_some();
            let on = |kind: &str| json::has_condition(seen.vmi, kind, "True");
            let done = state["completed"] == true
                && !has("HotVCPUChange")
                && !on("HotMemoryChange")
                && !on("MigrationRequired");
            if done {
                let message = "Source node reported migration succeeded";
                outcome.notes.push(Note::normal(seen.migration, "SuccessfulMigration", message));
            }
            if done { "Succeeded" } else { "Running" }
        }
        same => same,
    };
    let next = next.to_owned();
    status["phase"] = next.into();
    None
}

fn request_abort(status: &mut Value, now: Timestamp) {
    add_condition(status, "migrationAbortRequested", now);
}

fn add_condition(status: &mut Value, kind: &str, now: Timestamp) {
    let mut conditions = list(status, "/conditions").to_vec();
    if conditions.iter().all(|one| one["type"] != kind) {
        conditions.push(
            json!({"type": kind, "status": "True", "lastProbeTime": time(now), "lastTransitionTime": null}),
        );
        status["conditions"] = conditions.into();
    }
}

/// When the guest was ready on the target, as Go prints a time: CNI plugins read it.
fn ready_at(pod: &Value, timestamp: &str) -> Write {
    let shown = timestamp
        .parse::<Timestamp>()
        .map_or_else(|_| timestamp.to_owned(), |at| at.strftime("%Y-%m-%d %H:%M:%S +0000 UTC").to_string());
    let path = format!("/metadata/annotations/{}", READY_AT.replace('/', "~1"));
    Write::to(&PODS, pod, "", Op::JsonPatch(json!([{"op": "add", "path": path, "value": shown}])))
}

/// Notes when the migration came into its phase.
fn transition(status: &mut Value, now: Timestamp) {
    let phase = text(status, "/phase").to_owned();
    let mut times = list(status, "/phaseTransitionTimestamps").to_vec();
    if phase.is_empty() || times.iter().any(|one| one["phase"] == phase.as_str()) {
        return;
    }
    times.push(json!({"phase": phase, "phaseTransitionTimestamp": time(now)}));
    status["phaseTransitionTimestamps"] = times.into();
}

/// The migration without its finalizer.
pub fn without_finalizer(migration: &Value) -> Write {
    let mut free = migration.clone();
    let keep: Vec<Value> =
        finalizers(migration).into_iter().filter(|one| *one != FINALIZER).map(Value::from).collect();
    if keep.is_empty() {
        json::remove(&mut free, &["metadata", "finalizers"]);
    } else {
        json::put(&mut free, &["metadata", "finalizers"], keep);
    }
    Write::to(&MIGRATIONS, migration, "", Op::Update(free))
}

/// The deletions that keep at most five finished migrations of a VMI, with the pods that they left
/// behind (`garbageCollectFinalizedMigrations`).
pub fn garbage(siblings: &[Arc<Value>]) -> Vec<Write> {
    const KEPT: usize = 5;
    let mut over: Vec<&Arc<Value>> =
        siblings.iter().filter(|one| is_final(one) && !is_deleting(one)).collect();
    over.sort_by_key(|one| (text(one, "/metadata/creationTimestamp"), json::name(one)));
    let surplus = over.len().saturating_sub(KEPT);
    let mut writes = Vec::new();
    for migration in over.into_iter().take(surplus) {
        let state = &migration["status"]["migrationState"];
        let pod = match (state["failed"] == true, state["completed"] == true) {
            (true, _) => text(state, "/targetPod"),
            (false, true) => text(state, "/sourcePod"),
            _ => "",
        };
        if !pod.is_empty() {
            writes.push(Write {
                resource: &PODS,
                namespace: json::namespace(migration).into(),
                name: pod.into(),
                subresource: "",
                op: Op::Delete(Value::Null),
            });
        }
        writes.push(Write::to(&MIGRATIONS, migration, "", Op::Delete(Value::Null)));
    }
    writes
}
