//! What the operator does next about a `VMExportJob`.
//!
//! ```text
//!            mistake in the spec ─► Invalid
//!  new ─┬─► (no schedule) ─► Running ─► Succeeded | Failed
//!       ├─► (schedule) ─► Scheduled ─due─► Running ─► Scheduled, the outcome in `lastRun` …
//!       └─► suspend ─► Suspended; what was under way is ended
//!
//!  in a run, each VM:  Pending ─Job made─► Running ─► Succeeded | Failed
//! ```
//!
//! Everything is read from the object and from the Jobs that carry its label, so a crash between any
//! two writes is harmless. Names of Jobs follow from the run and the VM: none is made twice.

use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::pod::{self, Image};
use super::spec::Spec;

/// Runs that are remembered.
const HISTORY: usize = 10;
/// A run under way is looked at this often, whatever the watches say.
const LOOK: Duration = Duration::from_secs(30);

/// What is known.
#[derive(Clone, Debug)]
pub struct Seen<'a> {
    /// The `VMExportJob`.
    pub object: &'a Value,
    /// The VMs that the source names, sorted; `Err`: why they are not known.
    pub vms: Result<Vec<String>, String>,
    /// The Jobs with its label.
    pub jobs: &'a [Value],
    /// Whether the service account may be used, and if not, why.
    pub account: Result<(), String>,
    /// What pods run.
    pub image: &'a Image,
}

/// What happens for people to read.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Note {
    /// It is bad news.
    pub warning: bool,
    /// One word.
    pub reason: &'static str,
    /// The text.
    pub message: String,
}

/// What to do, in this order: events, status, Jobs to make and to remove.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// A merge patch of the status; null: nothing changes.
    pub status: Value,
    /// Jobs to make.
    pub create: Vec<Value>,
    /// Names of Jobs to remove, with their pods.
    pub delete: Vec<String>,
    /// Events.
    pub notes: Vec<Note>,
    /// When to look again.
    pub again: Option<Duration>,
}

/// How the export of a VM is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Phase {
    Pending,
    Running,
    Succeeded,
    Failed,
}

impl Phase {
    fn name(self) -> &'static str {
        match self {
            Self::Pending => "Pending",
            Self::Running => "Running",
            Self::Succeeded => "Succeeded",
            Self::Failed => "Failed",
        }
    }

    fn read(text: &str) -> Self {
        match text {
            "Running" => Self::Running,
            "Succeeded" => Self::Succeeded,
            "Failed" => Self::Failed,
            _ => Self::Pending,
        }
    }

    fn is_over(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed)
    }
}

/// See the module.
pub fn decide(seen: &Seen<'_>, now: Timestamp) -> Plan {
    let object = seen.object;
    if !object["metadata"]["deletionTimestamp"].is_null() {
        return Plan::default(); // Jobs go with their owner
    }
    let mut draft = Draft::of(object, now);
    let spec = match Spec::read(object) {
        Ok(spec) => spec,
        Err(mistake) => {
            draft.phase("Invalid");
            draft.accept("False", "InvalidSpec", &mistake.0);
            return draft.plan();
        }
    };
    if let Err(why) = &seen.account {
        draft.phase("Invalid");
        draft.accept("False", "ServiceAccountNotAllowed", why);
        // Nobody tells when a label is put on an account.
        draft.plan.again = Some(LOOK);
        return draft.plan();
    }
    draft.accept("True", "Accepted", "");
    draft.begin(seen, &spec);
    draft.follow(seen, &spec);
    draft.rest(&spec);
    draft.plan()
}

/// A status on its way.
struct Draft<'a> {
    before: &'a Value,
    object: &'a Value,
    status: Value,
    plan: Plan,
    now: Timestamp,
}

impl<'a> Draft<'a> {
    fn of(object: &'a Value, now: Timestamp) -> Self {
        let before = &object["status"];
        let mut status = if before.is_object() { before.clone() } else { json!({}) };
        status["observedGeneration"] = object["metadata"]["generation"].clone();
        Self { before, object, status, plan: Plan::default(), now }
    }

    fn phase(&mut self, phase: &str) {
        self.status["phase"] = phase.into();
    }

    fn accept(&mut self, status: &str, reason: &str, message: &str) {
        let was = condition(self.before, "Accepted");
        if status == "False" && (was["status"] != "False" || was["message"] != message) {
            self.note(true, "Invalid", message.to_owned());
        }
        self.condition("Accepted", status, reason, message);
    }

    fn note(&mut self, warning: bool, reason: &'static str, message: String) {
        self.plan.notes.push(Note { warning, reason, message });
    }

    fn condition(&mut self, kind: &str, status: &str, reason: &str, message: &str) {
        let mut wanted = json!({"type": kind, "status": status, "reason": reason, "message": message,
            "lastTransitionTime": shown(self.now)});
        if !self.status["conditions"].is_array() {
            self.status["conditions"] = json!([]);
        }
        let Some(all) = self.status["conditions"].as_array_mut() else { return };
        match all.iter_mut().find(|one| one["type"] == kind) {
            Some(found) => {
                if found["status"] == wanted["status"] {
                    wanted["lastTransitionTime"] = found["lastTransitionTime"].clone();
                }
                *found = wanted;
            }
            None => all.push(wanted),
        }
    }

    /// The id of the run that is under way.
    fn run(&self) -> Option<String> {
        let run = &self.status["run"];
        let under_way = run["completionTime"].is_null();
        run["id"].as_str().filter(|_| under_way).map(str::to_owned)
    }

    /// Begins a run when one is due.
    fn begin(&mut self, seen: &Seen<'_>, spec: &Spec) {
        if spec.suspend || self.run().is_some() {
            return;
        }
        let due = match spec.schedule() {
            Ok(Some(schedule)) => {
                let since = ["/status/lastScheduleTime", "/metadata/creationTimestamp"]
                    .into_iter()
                    .find_map(|pointer| self.object.pointer(pointer)?.as_str()?.parse::<Timestamp>().ok());
                let due = schedule.last_due(since.unwrap_or(self.now), self.now);
                due.filter(|due| {
                    let late = self.now.as_second() - due.as_second();
                    late <= i64::from(spec.starting_deadline_seconds)
                })
            }
            // Once.
            _ => self.status["run"]["id"].is_null().then_some(self.now),
        };
        let Some(due) = due else { return };
        let vms = match &seen.vms {
            Ok(vms) => vms.clone(),
            Err(why) => {
                self.condition("Progressing", "False", "SourceUnknown", why);
                self.plan.again = Some(LOOK);
                return;
            }
        };
        let id = due.strftime("%Y%m%d-%H%M%S").to_string();
        if spec.schedule.is_some() {
            self.status["lastScheduleTime"] = shown(due).into();
        }
        // A merge patch keeps what it does not name.
        self.status["run"] = json!({"id": id, "startTime": shown(self.now), "vms": vms, "completionTime": null, "phase": null});
        let earlier: Vec<String> =
            self.status["exports"].as_object().into_iter().flatten().map(|(vm, _)| vm.clone()).collect();
        let mut exports = Map::new();
        for vm in earlier {
            exports.insert(vm, Value::Null);
        }
        for vm in &vms {
            exports.insert(
                vm.clone(),
                json!({"phase": "Pending", "progress": null, "message": null,
                "startTime": null, "completionTime": null, "job": null}),
            );
        }
        self.status["exports"] = exports.into();
        self.note(false, "RunStarted", format!("run {id} of {} VMs", vms.len()));
    }

    /// Looks at the Jobs of the run, makes those that are next, and ends the run with the last.
    fn follow(&mut self, seen: &Seen<'_>, spec: &Spec) {
        let Some(run) = self.run() else { return };
        let vms: Vec<String> = self.status["run"]["vms"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|vm| vm.as_str().map(str::to_owned))
            .collect();
        let owner = self.object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        let mut phases = Vec::new();
        for vm in &vms {
            let name = pod::name(&owner, &run, vm);
            let found = seen.jobs.iter().find(|job| job["metadata"]["name"] == name);
            let before = Phase::read(self.status["exports"][vm]["phase"].as_str().unwrap_or_default());
            let phase = match found {
                // Over, and the Job is gone by its TTL.
                None if before.is_over() => before,
                None => Phase::Pending,
                Some(job) => self.of_job(vm, job),
            };
            phases.push((vm.clone(), name, phase));
        }
        if spec.suspend {
            self.end_all(seen, &mut phases);
        } else {
            self.start_next(seen, spec, &run, &mut phases);
        }
        let exports = &mut self.status["exports"];
        for (vm, name, phase) in &phases {
            exports[vm]["phase"] = phase.name().into();
            if *phase != Phase::Pending {
                exports[vm]["job"] = name.as_str().into();
            }
        }
        self.total(&phases);
        if !spec.suspend && phases.iter().all(|(_, _, phase)| phase.is_over()) {
            self.finish(&run, &phases);
        } else {
            self.plan.again = Some(self.plan.again.map_or(LOOK, |again| again.min(LOOK)));
        }
    }

    /// The phase that a Job says, with its times and its reason.
    fn of_job(&mut self, vm: &str, job: &Value) -> Phase {
        let is = |kind: &str| condition(&job["status"], kind)["status"] == "True";
        let phase = if is("Complete") {
            Phase::Succeeded
        } else if is("Failed") {
            Phase::Failed
        } else {
            Phase::Running
        };
        let export = &mut self.status["exports"][vm];
        for key in ["startTime", "completionTime"] {
            if !job["status"][key].is_null() {
                export[key] = job["status"][key].clone();
            }
        }
        let before = Phase::read(export["phase"].as_str().unwrap_or_default());
        if phase == Phase::Failed && !before.is_over() {
            let failed = condition(&job["status"], "Failed");
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            // What the pod said itself is better than that it was tried often enough.
            let said = text(&export["progress"]["error"]);
            let why = if said.is_empty() { text(&failed["message"]) } else { said };
            export["message"] = why.as_str().into();
            export["completionTime"] = failed["lastTransitionTime"].clone();
            self.note(true, "ExportFailed", format!("{vm}: {why}"));
        } else if phase == Phase::Succeeded && !before.is_over() {
            self.note(false, "ExportSucceeded", format!("{vm} is exported"));
        }
        phase
    }

    fn start_next(
        &mut self,
        seen: &Seen<'_>,
        spec: &Spec,
        run: &str,
        phases: &mut [(String, String, Phase)],
    ) {
        let running = phases.iter().filter(|(_, _, phase)| *phase == Phase::Running).count();
        let mut room = (spec.concurrency as usize).saturating_sub(running);
        for (vm, _, phase) in phases.iter_mut().filter(|(_, _, phase)| *phase == Phase::Pending) {
            if room == 0 {
                break;
            }
            room -= 1;
            self.plan.create.push(pod::manifest(seen.object, spec, run, vm, seen.image));
            *phase = Phase::Running;
        }
    }

    /// Ends what is under way; it begins again, where it was, when the job is no longer suspended.
    fn end_all(&mut self, seen: &Seen<'_>, phases: &mut [(String, String, Phase)]) {
        for (_, name, phase) in phases.iter_mut().filter(|(_, _, phase)| *phase == Phase::Running) {
            let deleting = seen.jobs.iter().any(|job| {
                job["metadata"]["name"] == *name && !job["metadata"]["deletionTimestamp"].is_null()
            });
            if !deleting {
                self.plan.delete.push(name.clone());
            }
            *phase = Phase::Pending;
        }
    }

    /// The sums over the run.
    fn total(&mut self, phases: &[(String, String, Phase)]) {
        let count = |wanted: Phase| phases.iter().filter(|(_, _, phase)| *phase == wanted).count();
        let (mut size, mut done, mut stored, mut eta) = (0, 0, 0, 0);
        for (vm, _, phase) in phases {
            let progress = &self.status["exports"][vm]["progress"];
            let number = |key: &str| progress[key].as_u64().unwrap_or(0);
            size += number("size");
            done +=
                if *phase == Phase::Succeeded { number("size") } else { number("done").min(number("size")) };
            stored += number("stored");
            if *phase == Phase::Running {
                eta = eta.max(number("etaSeconds"));
            }
        }
        // VMs that have not begun have no size yet: each counts as much as one that has.
        let known =
            phases.iter().filter(|(vm, _, _)| !self.status["exports"][vm]["progress"]["size"].is_null());
        let known = u64::try_from(known.count()).unwrap_or(0).max(1);
        let all = u64::try_from(phases.len()).unwrap_or(0).max(1);
        let whole = u128::from(size) * u128::from(all) / u128::from(known);
        let percent = if phases.iter().all(|(_, _, phase)| phase.is_over()) {
            100
        } else {
            u64::try_from((u128::from(done) * 100).checked_div(whole).unwrap_or(0)).unwrap_or(0).min(99)
        };
        let waiting = u64::try_from(count(Phase::Pending)).unwrap_or(0);
        let running = u64::try_from(count(Phase::Running)).unwrap_or(0).max(1);
        self.status["progress"] = json!({
            "vms": phases.len(), "pending": waiting, "running": count(Phase::Running),
            "succeeded": count(Phase::Succeeded), "failed": count(Phase::Failed),
            "percent": percent, "sizeBytes": size, "doneBytes": done, "storedBytes": stored,
            "etaSeconds": eta + eta * waiting / running,
        });
        self.phase("Running");
        let message = format!("{} of {} VMs", count(Phase::Succeeded) + count(Phase::Failed), phases.len());
        self.condition("Progressing", "True", "RunUnderWay", &message);
    }

    fn finish(&mut self, run: &str, phases: &[(String, String, Phase)]) {
        let failed = phases.iter().filter(|(_, _, phase)| *phase == Phase::Failed).count();
        let good = failed == 0 && !phases.is_empty();
        let outcome = if good { "Succeeded" } else { "Failed" };
        let message = if phases.is_empty() {
            "no VM matches the source".to_owned()
        } else if good {
            format!("{} VMs exported", phases.len())
        } else {
            format!("{failed} of {} exports failed", phases.len())
        };
        let end = shown(self.now);
        self.status["run"]["completionTime"] = end.as_str().into();
        self.status["run"]["phase"] = outcome.into();
        self.status["progress"]["etaSeconds"] = 0.into();
        let entry = json!({"id": run, "phase": outcome, "startTime": self.status["run"]["startTime"],
            "completionTime": end, "vms": phases.len(), "failed": failed,
            "storedBytes": self.status["progress"]["storedBytes"]});
        let mut history = self.status["history"].as_array().cloned().unwrap_or_default();
        history.insert(0, entry);
        history.truncate(HISTORY);
        self.status["history"] = history.into();
        if good {
            self.status["lastSuccessfulTime"] = end.into();
        }
        self.phase(outcome);
        self.condition("Progressing", "False", "RunEnded", &message);
        self.condition(
            "Succeeded",
            if good { "True" } else { "False" },
            if good { "AllExported" } else { "ExportsFailed" },
            &message,
        );
        self.note(!good, if good { "RunSucceeded" } else { "RunFailed" }, format!("run {run}: {message}"));
    }

    /// What a job without a run under way waits for.
    fn rest(&mut self, spec: &Spec) {
        if spec.suspend {
            self.phase("Suspended");
            self.condition("Progressing", "False", "Suspended", "spec.suspend is true");
            self.status["nextScheduleTime"] = Value::Null;
            return;
        }
        let Ok(Some(schedule)) = spec.schedule() else { return };
        let next = schedule.after(self.now);
        self.status["nextScheduleTime"] = next.map_or(Value::Null, |next| shown(next).into());
        if self.run().is_none() {
            self.phase("Scheduled");
        }
        if let Some(next) = next {
            let left = u64::try_from(next.as_second() - self.now.as_second()).unwrap_or(0).max(1);
            let left = Duration::from_secs(left);
            self.plan.again = Some(self.plan.again.map_or(left, |again| again.min(left)));
        }
    }

    fn plan(mut self) -> Plan {
        self.plan.status = difference(self.before, &self.status);
        self.plan
    }
}

/// The merge patch from one value to another; null when there is no difference.
fn difference(before: &Value, after: &Value) -> Value {
    let Some(after) = after.as_object() else { return Value::Null };
    let mut out = Map::new();
    for (key, value) in after {
        let old = &before[key];
        if old == value {
            continue;
        }
        if value.is_object() && old.is_object() {
            let inner = difference(old, value);
            if !inner.is_null() {
                out.insert(key.clone(), inner);
            }
        } else {
            out.insert(key.clone(), value.clone());
        }
    }
    if out.is_empty() { Value::Null } else { out.into() }
}

fn condition<'a>(status: &'a Value, kind: &str) -> &'a Value {
    static NOTHING: Value = Value::Null;
    status["conditions"].as_array().into_iter().flatten().find(|one| one["type"] == kind).unwrap_or(&NOTHING)
}

fn shown(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may fail by panicking")]
mod tests {
    use super::*;

    const START: &str = "2026-11-29T22:00:00Z";

    /// An operator's world: the object, its Jobs, and a clock.
    struct World {
        object: Value,
        jobs: Vec<Value>,
        vms: Vec<String>,
        now: Timestamp,
        notes: Vec<&'static str>,
    }

    impl World {
        fn new(spec: &Value, vms: &[&str]) -> Self {
            let object = json!({"metadata": {"name": "nightly", "namespace": "shop", "uid": "u",
                "generation": 1, "creationTimestamp": START}, "spec": spec});
            let vms = vms.iter().map(|vm| (*vm).to_owned()).collect();
            Self { object, jobs: Vec::new(), vms, now: START.parse().unwrap(), notes: Vec::new() }
        }

        /// Reconciles until nothing changes.
        fn settle(&mut self) -> Plan {
            let image = Image { name: "virt-steward".into(), pull_policy: "IfNotPresent".into() };
            for _ in 0..8 {
                let seen = Seen {
                    object: &self.object,
                    vms: Ok(self.vms.clone()),
                    jobs: &self.jobs,
                    account: Ok(()),
                    image: &image,
                };
                let plan = decide(&seen, self.now);
                let jobs = self.jobs.len();
                self.notes.extend(plan.notes.iter().map(|note| note.reason));
                merge(&mut self.object["status"], &plan.status);
                for job in &plan.create {
                    if !self.jobs.iter().any(|known| known["metadata"]["name"] == job["metadata"]["name"]) {
                        self.jobs.push(job.clone());
                    }
                }
                self.jobs.retain(|job| !plan.delete.iter().any(|name| job["metadata"]["name"] == **name));
                if plan.status.is_null() && self.jobs.len() == jobs {
                    return plan;
                }
            }
            panic!("it does not settle");
        }

        fn end(&mut self, vm: &str, kind: &str) {
            let job = self.jobs.iter_mut().find(|job| {
                job["metadata"]["annotations"][super::super::ANNOTATION_VM] == vm && job["status"].is_null()
            });
            job.unwrap()["status"] =
                json!({"conditions": [{"type": kind, "status": "True", "message": "why"}]});
        }

        fn phase(&self) -> &str {
            self.object["status"]["phase"].as_str().unwrap_or_default()
        }

        fn active(&self) -> usize {
            self.jobs.iter().filter(|job| job["status"].is_null()).count()
        }
    }

    fn merge(into: &mut Value, patch: &Value) {
        let Some(patch) = patch.as_object() else { return };
        if !into.is_object() {
            *into = json!({});
        }
        for (key, value) in patch {
            if value.is_null() {
                into.as_object_mut().unwrap().remove(key);
            } else if value.is_object() {
                merge(&mut into[key], value);
            } else {
                into[key] = value.clone();
            }
        }
    }

    fn spec(more: &Value) -> Value {
        let mut spec = json!({"source": {"selector": {}}, "destination": {"url": "s3://b/x"}});
        merge(&mut spec, more);
        spec
    }

    #[test]
    fn a_job_without_schedule_runs_once_with_so_many_at_a_time() {
        let mut world = World::new(&spec(&json!({"concurrency": 2})), &["a", "b", "c"]);
        world.settle();
        assert_eq!((world.phase(), world.active()), ("Running", 2));
        world.end("a", "Complete");
        world.settle();
        assert_eq!(world.active(), 2, "the next one begins when there is room");
        world.end("b", "Failed");
        world.end("c", "Complete");
        world.settle();
        assert_eq!(world.phase(), "Failed");
        assert_eq!(world.object["status"]["exports"]["b"]["message"], "why");
        assert_eq!(world.object["status"]["history"][0]["failed"], 1);
        world.now = world.now.checked_add(jiff::SignedDuration::from_hours(48)).unwrap();
        world.settle();
        assert_eq!(world.jobs.len(), 3, "once");
        assert_eq!(
            world.notes,
            ["RunStarted", "ExportSucceeded", "ExportFailed", "ExportSucceeded", "RunFailed"]
        );
    }

    #[test]
    fn a_schedule_begins_a_run_when_it_is_due_and_never_two_at_once() {
        let mut world = World::new(&spec(&json!({"schedule": "0 2 * * *"})), &["a"]);
        let plan = world.settle();
        assert_eq!(
            (world.phase(), world.active(), plan.again),
            ("Scheduled", 0, Some(Duration::from_hours(4)))
        );
        world.now = "2026-11-30T02:00:01Z".parse().unwrap();
        world.settle();
        assert_eq!((world.phase(), world.active()), ("Running", 1));
        assert_eq!(world.object["status"]["run"]["id"], "20261130-020000");
        world.now = "2026-12-01T02:00:01Z".parse().unwrap();
        world.settle();
        assert_eq!(world.active(), 1, "the run before is not over");
        world.end("a", "Complete");
        world.settle();
        assert_eq!(world.object["status"]["run"]["id"], "20261201-020000", "what was missed is made up for");
        world.end("a", "Complete");
        world.settle();
        assert_eq!((world.phase(), world.active()), ("Scheduled", 0));
        // A night that the operator slept through is left out.
        world.now = "2026-12-02T09:00:00Z".parse().unwrap();
        world.settle();
        assert_eq!(world.active(), 0);
        assert_eq!(world.object["status"]["history"].as_array().unwrap().len(), 2);
    }

    #[test]
    fn suspending_ends_what_is_under_way_and_it_goes_on_later() {
        let mut world = World::new(&spec(&json!({})), &["a"]);
        world.settle();
        world.object["spec"]["suspend"] = true.into();
        world.settle();
        assert_eq!((world.phase(), world.jobs.len()), ("Suspended", 0));
        world.object["spec"]["suspend"] = false.into();
        world.settle();
        assert_eq!((world.phase(), world.active()), ("Running", 1));
        world.end("a", "Complete");
        world.settle();
        assert_eq!(world.phase(), "Succeeded");
    }

    #[test]
    fn the_pods_progress_becomes_percent_and_time_left() {
        let mut world = World::new(&spec(&json!({"concurrency": 1})), &["a", "b"]);
        world.settle();
        world.object["status"]["exports"]["a"]["progress"] =
            json!({"size": 1000, "done": 500, "stored": 100, "etaSeconds": 10});
        world.settle();
        let progress = &world.object["status"]["progress"];
        assert_eq!((&progress["percent"], &progress["etaSeconds"]), (&json!(25), &json!(20)));
        world.end("a", "Complete");
        world.settle();
        assert_eq!(world.object["status"]["progress"]["percent"], 50);
    }

    #[test]
    fn what_cannot_run_says_why_and_makes_nothing() {
        let mut wrong = World::new(&json!({"source": {}}), &["a"]);
        wrong.settle();
        assert_eq!((wrong.phase(), wrong.jobs.len()), ("Invalid", 0));
        assert_eq!(wrong.notes, ["Invalid"], "said once");
        let mut nobody = World::new(&spec(&json!({})), &[]);
        nobody.settle();
        assert_eq!(nobody.phase(), "Failed");
        let world = World::new(&spec(&json!({})), &["a"]);
        let image = Image { name: "i".into(), pull_policy: "Never".into() };
        let account = Err("no label".to_owned());
        let seen =
            Seen { object: &world.object, vms: Ok(world.vms.clone()), jobs: &[], account, image: &image };
        let plan = decide(&seen, world.now);
        assert_eq!((plan.create.len(), &plan.status["phase"]), (0, &json!("Invalid")));
    }

    #[test]
    fn a_crash_before_any_write_changes_nothing_in_the_end() {
        // The status of a plan is written before its Jobs are made: lose the Jobs each first time.
        let mut world = World::new(&spec(&json!({"concurrency": 3})), &["a", "b"]);
        let image = Image { name: "i".into(), pull_policy: "Never".into() };
        let seen = Seen {
            object: &world.object,
            vms: Ok(world.vms.clone()),
            jobs: &[],
            account: Ok(()),
            image: &image,
        };
        let plan = decide(&seen, world.now);
        assert_eq!(plan.create.len(), 2);
        merge(&mut world.object["status"], &plan.status);
        world.settle();
        assert_eq!(world.active(), 2);
    }
}
