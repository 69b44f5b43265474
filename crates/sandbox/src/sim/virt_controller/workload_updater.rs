//! The workload updater (`watch/workload-updater`, v1.9): VMIs whose CPUs, memory or launcher have to change
//! migrate, or are evicted where that is allowed, and a change that was withdrawn takes its migration along.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use apimachinery::tree::{Value, json};
use tokio_util::sync::CancellationToken;

use super::migration::decide::{is_final as migration_is_final, is_migrating, is_running};
use super::migration::{self, policy};
use super::vm::is_final;
use super::{Caches, PassError, vmi, volume_migration};
use crate::sim::events::{Note, Recorder};
use crate::sim::identity::Identity;
use crate::sim::json::{self, condition, has_condition, is_deleting, list, text};
use crate::sim::node::draw_text;
use crate::sim::queue::Queue;
use crate::sim::resource::{KUBEVIRTS, MIGRATIONS, PODS};
use crate::sim::write::{Op, Write, Writer};

const COMPONENT: &str = "workload-update-controller";
/// How long a change of a VMI waits until it is looked at, with whatever comes meanwhile.
const REACTION: Duration = Duration::from_secs(5);
/// While something is left to do, it is looked at again at once: v1.9 passes 30 nanoseconds where 30 seconds were
/// meant (`periodicReEnqueueIntervalSeconds`). The simulation takes a breath.
const AGAIN: Duration = Duration::from_millis(100);
const BY_UPDATE: &str = "kubevirt.io/workloadUpdateMigration";
const ABORT: &str = "kubevirt.io/testWorkloadUpdateMigrationAbortion";

/// What is to be done with which VMIs.
#[derive(Debug, Default)]
struct Work {
    outdated: usize,
    migrate: Vec<Arc<Value>>,
    evict: Vec<Arc<Value>>,
    abort: Vec<Arc<Value>>,
    /// Migrations that hold a place already.
    running: usize,
}

fn is_outdated(vmi: &Value) -> bool {
    json::map(vmi, "/metadata/labels")
        .is_some_and(|labels| labels.contains_key("kubevirt.io/outdatedLauncherImage"))
}

fn change_waits(vmi: &Value) -> bool {
    condition(vmi, "/status/conditions", "HotVCPUChange").is_some()
        || ["HotMemoryChange", "MigrationRequired", "VolumesChange"]
            .iter()
            .any(|kind| has_condition(vmi, kind, "True"))
}

/// Something about the VMI may concern this controller.
fn concerns(vmi: &Value) -> bool {
    is_outdated(vmi) || change_waits(vmi) || json::annotation(vmi, ABORT).is_some()
}

fn by_update<'a>(migrations: &'a [Arc<Value>], vmi: &'a Value) -> impl Iterator<Item = &'a Arc<Value>> {
    migrations.iter().filter(move |one| {
        !migration_is_final(one)
            && json::annotation(one, BY_UPDATE).is_some()
            && json::namespace(one) == json::namespace(vmi)
            && text(one, "/spec/vmiName") == json::name(vmi)
    })
}

/// The change that a migration was made for is withdrawn (`shouldAbortMigration`).
fn is_withdrawn(vmi: &Value, migrations: &[Arc<Value>]) -> bool {
    let arrived = !text(vmi, "/status/migrationState/targetNodeDomainReadyTimestamp").is_empty();
    let wanted = change_waits(vmi) || arrived;
    (json::annotation(vmi, ABORT).is_some() || !wanted) && by_update(migrations, vmi).next().is_some()
}

/// Sorts the VMIs (`getUpdateData`).
fn decide(kubevirt: &Value, vmis: Vec<Arc<Value>>, migrations: &[Arc<Value>]) -> Work {
    let busy = migration::unfinished(migrations);
    let may = |method: &str| {
        list(kubevirt, "/spec/workloadUpdateStrategy/workloadUpdateMethods").iter().any(|one| one == method)
    };
    let mut work =
        Work { running: migrations.iter().filter(|one| is_running(one)).count(), ..Work::default() };
    for vmi in vmis {
        if text(&vmi, "/status/phase") != "Running" || is_final(&vmi) || is_deleting(&vmi) {
            continue;
        }
        let outdated = is_outdated(&vmi);
        if !outdated && is_withdrawn(&vmi, migrations) {
            work.abort.push(vmi);
            continue;
        }
        let changes = change_waits(&vmi) && !is_migrating(&vmi) && json::annotation(&vmi, ABORT).is_none();
        if !outdated && !changes {
            continue;
        }
        work.outdated += 1;
        if is_migrating(&vmi) || busy.contains(&json::key(&vmi)) {
            continue;
        }
        let moved = list(&vmi, "/status/migratedVolumes");
        let takes_volumes = !moved.is_empty() && volume_migration::cannot_move(&vmi, moved).is_none();
        if may("LiveMigrate") && (takes_volumes || has_condition(&vmi, "LiveMigratable", "True")) {
            work.migrate.push(vmi);
        } else if may("Evict") {
            work.evict.push(vmi);
        }
    }
    work
}

fn migration_of(vmi: &Value) -> Write {
    let priority = if change_waits(vmi) { "user-triggered" } else { "system-critical" };
    let mut metadata = json!({"generateName": "kubevirt-workload-update-", "namespace": json::namespace(vmi),
        "annotations": {BY_UPDATE: ""}});
    if has_condition(vmi, "VolumesChange", "True") {
        let name = json::name(vmi);
        let label = if name.len() > 63 { json::uid(vmi) } else { name };
        metadata["labels"] = json!({"kubevirt.io/volume-update-in-progress": label});
    }
    Write::create(
        &MIGRATIONS,
        json!({"apiVersion": MIGRATIONS.api_version(), "kind": MIGRATIONS.kind, "metadata": metadata,
            "spec": {"priority": priority, "vmiName": json::name(vmi)}, "status": {}}),
    )
}

/// The controller.
pub struct WorkloadUpdater {
    seed: u64,
    who: Identity,
    writer: Writer,
    recorder: Recorder,
    caches: Caches,
    last_eviction: tokio::sync::Mutex<Option<tokio::time::Instant>>,
}

impl WorkloadUpdater {
    /// Starts the controller.
    pub fn start(seed: u64, writer: Writer, recorder: Recorder, caches: &Caches, stop: &CancellationToken) {
        let queue = Queue::default();
        let on_kubevirt = queue.clone();
        caches.kubevirts.on_change(move |change| on_kubevirt.add(change.key));
        let (on_vmi, kubevirts) = (queue.clone(), caches.kubevirts.clone());
        let concerned: Mutex<BTreeSet<String>> = Mutex::default();
        caches.vmis.on_change(move |change| {
            let now = change.new.is_some_and(|vmi| concerns(vmi));
            let before = {
                let mut concerned = concerned.lock().unwrap_or_else(PoisonError::into_inner);
                if now { !concerned.insert(change.key.to_owned()) } else { concerned.remove(change.key) }
            };
            if before || now {
                for kubevirt in kubevirts.all() {
                    on_vmi.add_after(&json::key(&kubevirt), REACTION);
                }
            }
        });
        let controller = Arc::new(Self {
            seed,
            who: Identity::virt_controller(),
            writer,
            recorder,
            caches: caches.clone(),
            last_eviction: tokio::sync::Mutex::default(),
        });
        queue.run("workload-update", 1, stop, move |key| {
            let controller = controller.clone();
            async move { controller.reconcile(&key).await }
        });
    }

    async fn reconcile(&self, key: &str) -> Result<Option<Duration>, PassError> {
        let Some(kubevirt) = self.caches.kubevirts.get(key) else { return Ok(None) };
        let deployed = text(&kubevirt, "/status/phase") == "Deployed"
            && text(&kubevirt, "/status/observedDeploymentID")
                == text(&kubevirt, "/status/targetDeploymentID");
        if !deployed {
            return Ok(None);
        }
        let migrations = self.caches.migrations.all();
        let vmis = self
            .caches
            .vmis
            .all()
            .into_iter()
            .filter(|vmi| concerns(vmi) || by_update(&migrations, vmi).next().is_some());
        let mut work = decide(&kubevirt, vmis.collect(), &migrations);
        self.count(&kubevirt, work.outdated).await?;
        let left = !(work.migrate.is_empty() && work.evict.is_empty() && work.abort.is_empty());
        // Not the same ones first every time.
        work.migrate.sort_by_key(|vmi| draw_text(self.seed, json::uid(vmi)));
        let limit = policy::limit(&self.caches.config().migrations, "parallelMigrationsPerCluster");
        let mut failure = None;
        for vmi in work.migrate.iter().take(limit.saturating_sub(work.running)) {
            failure = self.migrate(vmi).await.err().or(failure);
        }
        if let Some(batch) = self.batch(&kubevirt, work.evict.len()).await {
            for vmi in work.evict.iter().take(batch) {
                failure = self.evict(vmi).await.err().or(failure);
            }
        }
        for vmi in &work.abort {
            failure = self.abort(vmi, &migrations).await.err().or(failure);
        }
        match failure {
            Some(error) => Err(error),
            None => Ok(left.then_some(AGAIN)),
        }
    }

    async fn count(&self, kubevirt: &Value, outdated: usize) -> Result<(), PassError> {
        let path = "/status/outdatedVirtualMachineInstanceWorkloads";
        let patch = match kubevirt.pointer(path) {
            Some(have) if *have == json!(outdated) => return Ok(()),
            Some(have) => json!(Write::test_and_replace(path, have, &outdated.into())),
            None => json!([{"op": "add", "path": path, "value": outdated}]),
        };
        self.writer
            .write(&self.who, &Write::to(&KUBEVIRTS, kubevirt, "status", Op::JsonPatch(patch)))
            .await?;
        Ok(())
    }

    async fn migrate(&self, vmi: &Value) -> Result<(), PassError> {
        match self.writer.write(&self.who, &migration_of(vmi)).await {
            Ok(made) => {
                let message =
                    format!("Created Migration {} for automated workload update", json::name(&made));
                self.recorder.note(&self.who, COMPONENT, Note::normal(vmi, "SuccessfulCreate", message));
                Ok(())
            }
            Err(error) => {
                let why = error.message();
                let message = format!("Error creating a Migration for automated workload update: {why}");
                self.recorder.note(&self.who, COMPONENT, Note::warning(vmi, "FailedCreate", message));
                Err(error.into())
            }
        }
    }

    /// How many VMIs may be evicted now: a batch, then a pause (`batchEvictionSize`, `batchEvictionInterval`).
    async fn batch(&self, kubevirt: &Value, waiting: usize) -> Option<usize> {
        let strategy = &kubevirt["spec"]["workloadUpdateStrategy"];
        let size =
            strategy["batchEvictionSize"].as_u64().and_then(|size| usize::try_from(size).ok()).unwrap_or(10);
        let mut last = self.last_eviction.lock().await;
        let interval = Duration::from_mins(1);
        let due = last.is_none_or(|at| at.elapsed() >= interval);
        if waiting == 0 || !due {
            return None;
        }
        *last = Some(tokio::time::Instant::now());
        Some(size.min(waiting))
    }

    async fn evict(&self, vmi: &Value) -> Result<(), PassError> {
        let pods = self.caches.pods.indexed(json::uid(vmi));
        let seen = vmi::Observation { vmi, pods: &pods, has_owner: true, now: self.writer.client.now() };
        let Some(pod) = vmi::current_pod(&seen) else { return Ok(()) };
        let eviction = json!({"apiVersion": "policy/v1", "kind": "Eviction", "deleteOptions": {},
            "metadata": {"name": json::name(pod), "namespace": json::namespace(pod)}});
        match self.writer.write(&self.who, &Write::to(&PODS, pod, "eviction", Op::Create(eviction))).await {
            Err(error) if error.code() != 404 => {
                let message =
                    format!("Error deleting VMI during automated workload update: {}", error.message());
                self.recorder.note(&self.who, COMPONENT, Note::warning(vmi, "FailedEvict", message));
                Err(error.into())
            }
            _ => {
                // `%v` of no error is what Go prints there.
                let message = "Initiated eviction of VMI as part of automated workload update: <nil>";
                self.recorder.note(&self.who, COMPONENT, Note::normal(vmi, "SuccessfulEvict", message));
                Ok(())
            }
        }
    }

    async fn abort(&self, vmi: &Value, migrations: &[Arc<Value>]) -> Result<(), PassError> {
        for migration in by_update(migrations, vmi).filter(|one| !is_deleting(one)) {
            match self
                .writer
                .write(&self.who, &Write::to(&MIGRATIONS, migration, "", Op::Delete(Value::Null)))
                .await
            {
                Err(error) if error.code() != 404 => return Err(error.into()),
                _ => {
                    let message = format!("Aborted change for vmi: {}", json::name(vmi));
                    let note = Note::normal(vmi, "SuccessfulChangeAbortion", message);
                    self.recorder.note(&self.who, COMPONENT, note);
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kubevirt(methods: impl Into<Value>) -> Value {
        let methods: Value = methods.into();
        json!({"spec": {"workloadUpdateStrategy": {"workloadUpdateMethods": methods}}})
    }

    fn vmi(conditions: impl Into<Value>) -> Arc<Value> {
        let conditions: Value = conditions.into();
        Arc::new(json!({"metadata": {"name": "v", "namespace": "n"},
            "status": {"phase": "Running", "conditions": conditions}}))
    }

    fn sorted(methods: Value, vmi: &Arc<Value>, migrations: &[Arc<Value>]) -> (usize, usize, usize, usize) {
        let work = decide(&kubevirt(methods), vec![vmi.clone()], migrations);
        (work.outdated, work.migrate.len(), work.evict.len(), work.abort.len())
    }

    #[test]
    fn who_migrates_who_is_evicted_and_who_waits() {
        let able = json!({"type": "LiveMigratable", "status": "True"});
        let cpu = json!({"type": "HotVCPUChange", "status": "True"});
        let failed = json!({"type": "HotMemoryChange", "status": "False"});
        let both = json!(["LiveMigrate", "Evict"]);
        for (conditions, methods, expected) in [
            (json!([able]), both.clone(), (0, 0, 0, 0)),
            (json!([able, cpu]), both.clone(), (1, 1, 0, 0)),
            (json!([able, failed]), both.clone(), (0, 0, 0, 0)),
            (json!([cpu]), both.clone(), (1, 0, 1, 0)),
            (json!([cpu]), json!(["LiveMigrate"]), (1, 0, 0, 0)),
            (json!([able, cpu]), json!([]), (1, 0, 0, 0)),
        ] {
            assert_eq!(sorted(methods, &vmi(conditions.clone()), &[]), expected, "{conditions}");
        }
    }

    #[test]
    fn a_change_that_is_withdrawn_takes_its_migration_along() {
        let able = json!({"type": "LiveMigratable", "status": "True"});
        let cpu = json!({"type": "HotVCPUChange", "status": "True"});
        let methods = || json!(["LiveMigrate"]);
        let migration = |annotation: &str| {
            Arc::new(
                json!({"metadata": {"namespace": "n", "annotations": {annotation: ""}}, "spec": {"vmiName": "v"},
                "status": {"phase": "Pending"}}),
            )
        };
        let (ours, theirs) = (migration(BY_UPDATE), migration("other"));
        assert_eq!(
            sorted(methods(), &vmi(json!([able, cpu])), std::slice::from_ref(&ours)),
            (1, 0, 0, 0),
            "in flight"
        );
        assert_eq!(sorted(methods(), &vmi(json!([able])), std::slice::from_ref(&ours)), (0, 0, 0, 1));
        assert_eq!(sorted(methods(), &vmi(json!([able])), &[theirs]), (0, 0, 0, 0));
        let mut held = vmi(json!([able, cpu])).as_ref().clone();
        held["metadata"]["annotations"][ABORT] = "".into();
        let held = Arc::new(held);
        assert_eq!(sorted(methods(), &held, &[]), (0, 0, 0, 0), "held back");
        assert_eq!(sorted(methods(), &held, &[ours]), (0, 0, 0, 1), "and taken back");
    }
}
