//! The migration controller: sees, decides, writes.

pub mod decide;
pub mod policy;
mod target_pod;

use std::sync::Arc;
use std::time::Duration;

use apimachinery::tree::Value;
use tokio_util::sync::CancellationToken;

use super::attachments::Attachments;
use super::doubts::Doubts;
use super::{Caches, PassError, WORKERS, networks, vmi};
use crate::sim::cache::Change;
use crate::sim::client::ClientError;
use crate::sim::cluster::ClusterConfig;
use crate::sim::events::{Note, Recorder};
use crate::sim::hotplug::{hotplugged, is_attachment};
use crate::sim::identity::Identity;
use crate::sim::json::{self, is_deleting, list, text};
use crate::sim::queue::Queue;
use crate::sim::resource::{MIGRATIONS, PODS};
use crate::sim::write::{Op, Write, Writer};
use decide::{Action, Attachment, JOB_LABEL, Observation, is_final, is_running};

const COMPONENT: &str = "virt-controller";
/// How long a migration waits when the VMI still has pods of an earlier one.
const ONE_SECOND: Duration = Duration::from_secs(1);

/// The controller.
pub struct Migrations {
    who: Identity,
    writer: Writer,
    recorder: Recorder,
    caches: Caches,
    hotplug: Attachments,
    queue: Queue,
    /// Held while the limits are looked at and a target pod is made (`migrationStartLock`).
    start: tokio::sync::Mutex<()>,
    /// About target pods of migrations.
    doubts: Doubts,
}

impl Migrations {
    /// Starts the controller.
    pub fn start(
        writer: Writer,
        recorder: Recorder,
        (caches, hotplug): (&Caches, &Attachments),
        stop: &CancellationToken,
    ) {
        let controller = Arc::new(Self {
            who: Identity::virt_controller(),
            writer,
            recorder,
            caches: caches.clone(),
            hotplug: hotplug.clone(),
            queue: Queue::default(),
            start: tokio::sync::Mutex::default(),
            doubts: Doubts::new(caches),
        });
        controller.listen();
        let queue = controller.queue.clone();
        queue.run("migration", WORKERS, stop, move |key| {
            let controller = controller.clone();
            async move { controller.reconcile(&key).await }
        });
    }

    fn listen(self: &Arc<Self>) {
        let on_migration = self.clone();
        self.caches.migrations.on_change(move |change| on_migration.queue.add(change.key));
        let on_vmi = self.clone();
        self.caches.vmis.on_change(move |change| {
            for migration in on_vmi.siblings(change.object()) {
                // One that is final may still have to be given its end, or its VMI is gone.
                if !is_final(&migration) || change.new.is_none() || !json::finalizers(&migration).is_empty() {
                    on_vmi.queue.add(&json::key(&migration));
                }
            }
        });
        let on_pod = self.clone();
        self.caches.pods.on_change(move |change| on_pod.pod_changed(change));
    }

    fn pod_changed(&self, change: &Change<'_>) {
        let pod = change.object();
        if let Some(name) = json::annotation(pod, "kubevirt.io/migrationJobName") {
            self.queue.add(&json::join_key(json::namespace(pod), name));
            return;
        }
        // The attachment pod of a target names its migration by uid alone.
        let uid = json::label(pod, JOB_LABEL);
        if !uid.is_empty() && is_attachment(pod) {
            for migration in self.caches.migrations.all().iter().filter(|one| json::uid(one) == uid) {
                self.queue.add(&json::key(migration));
            }
        }
    }

    /// Every migration of a VMI.
    fn siblings(&self, vmi: &Value) -> Vec<Arc<Value>> {
        let mut found = self.caches.migrations.indexed(json::name(vmi));
        found.retain(|one| json::namespace(one) == json::namespace(vmi));
        found
    }

    /// The pod that a guest moves into, if it is there.
    fn target_of(&self, migration: &Value, vmi: &Value) -> Option<Arc<Value>> {
        let pods = self.caches.pods.indexed(json::uid(vmi));
        pods.into_iter().find(|pod| {
            json::label(pod, JOB_LABEL) == json::uid(migration)
                && json::label(pod, "kubevirt.io") == "virt-launcher"
        })
    }

    async fn reconcile(&self, key: &str) -> Result<Option<Duration>, PassError> {
        let Some(migration) = self.caches.migrations.get(key) else { return Ok(None) };
        if let Some(write) = decide::with_labels(&migration) {
            self.writer.write(&self.who, &write).await?;
            return Ok(None);
        }
        let vmi_key = json::join_key(json::namespace(&migration), text(&migration, "/spec/vmiName"));
        let Some(vmi) = self.caches.vmis.get(&vmi_key) else { return self.orphaned(&migration).await };
        let config = self.caches.config();
        let (pods, siblings) = (self.caches.pods.indexed(json::uid(&vmi)), self.siblings(&vmi));
        let now = self.writer.client.now();
        let serving = vmi::Observation { vmi: &vmi, pods: &pods, has_owner: true, now };
        let (source, target) = (vmi::current_pod(&serving), self.target_of(&migration, &vmi));
        let namespace = self.caches.namespaces.get(json::namespace(&vmi));
        let policies = self.caches.policies.all();
        let configuration = policy::of_vmi(
            &config.migrations,
            policies.iter().map(AsRef::as_ref),
            &vmi,
            namespace.as_deref(),
        );
        let attachment = self.attachment(&vmi, source, target.as_deref());
        let seen = Observation {
            attachment: match &attachment {
                Volumes::None => Attachment::NotNeeded,
                Volumes::Some(None) => Attachment::Missing,
                Volumes::Some(Some(pod)) => Attachment::Pod(pod),
            },
            migration: &migration,
            vmi: &vmi,
            target: target.as_deref(),
            source,
            siblings: &siblings,
            configuration: &configuration,
            root: config.gate("Root"),
            now,
        };
        let acted = decide::act(&seen);
        let (after, refused) = match &acted {
            Ok(action) => self.carry_out(&seen, action, &config).await?,
            Err(why) => (None, Some(why.clone())),
        };
        self.follow_up(&seen, refused.as_deref()).await?;
        if is_final(&migration) {
            self.collect_garbage(&siblings).await?;
            self.wake_waiting();
        }
        match refused {
            Some(message) => Err(PassError::Sync(message)),
            None => Ok(after),
        }
    }

    /// A migration whose VMI is gone goes too.
    async fn orphaned(&self, migration: &Value) -> Result<Option<Duration>, PassError> {
        let write = if !is_deleting(migration) {
            Write::to(&MIGRATIONS, migration, "", Op::Delete(Value::Null))
        } else if json::finalizers(migration).contains(&decide::FINALIZER) {
            decide::without_finalizer(migration)
        } else {
            return Ok(None);
        };
        match self.writer.write(&self.who, &write).await {
            Err(error) if error.code() != 404 => Err(error.into()),
            _ => Ok(None),
        }
    }

    async fn carry_out(
        &self,
        seen: &Observation<'_>,
        action: &Action,
        config: &ClusterConfig,
    ) -> Result<(Option<Duration>, Option<String>), ClientError> {
        for write in &action.writes {
            match self.writer.write(&self.who, write).await {
                Err(error) if error.code() == 404 && matches!(write.op, Op::Delete(_)) => {}
                Err(error) => return Err(error),
                Ok(_) => {}
            }
        }
        for note in &action.notes {
            self.recorder.note(&self.who, COMPONENT, note.clone());
        }
        if let (true, Some(source), Some(target)) = (action.make_attachment, seen.source, seen.target) {
            let refused = self.hotplug.create_for_target(seen.migration, seen.vmi, source, target).await?;
            return Ok((action.after, refused));
        }
        if !action.make_target {
            return Ok((action.after, None));
        }
        let _start = self.start.lock().await;
        if let Some(wait) = self.no_place(seen, config) {
            return Ok((Some(wait), None));
        }
        Ok((None, self.make_target(seen, config).await?))
    }

    /// How long a migration has to wait because of the limits (`handleTargetPodCreation`).
    fn no_place(&self, seen: &Observation<'_>, config: &ClusterConfig) -> Option<Duration> {
        if active_pods(&self.caches.pods.indexed(json::uid(seen.vmi))) > 1 {
            return Some(ONE_SECOND);
        }
        let vmi_of = |migration: &Value| {
            let name = text(migration, "/spec/vmiName");
            self.caches.vmis.get(&json::join_key(json::namespace(migration), name))
        };
        let mut running = 0;
        let mut outbound = 0;
        let node = text(seen.vmi, "/status/nodeName");
        for migration in self.caches.migrations.all().iter().filter(|one| !is_final(one)) {
            let vmi = vmi_of(migration);
            let started = vmi.as_deref().is_some_and(|vmi| self.target_of(migration, vmi).is_some());
            if !is_running(migration) && !started {
                continue;
            }
            running += 1;
            let leaves = vmi.is_some_and(|vmi| {
                text(&vmi, "/status/nodeName") == node
                    || text(&vmi, "/status/migrationState/sourceNode") == node
            });
            outbound += usize::from(leaves);
        }
        let limit = |key| policy::limit(&config.migrations, key);
        let full = running >= limit("parallelMigrationsPerCluster")
            || outbound >= limit("parallelOutboundMigrationsPerNode");
        full.then(|| decide::urgency(seen.migration).1)
    }

    /// The attachment pod of a target, where the guest has hotplugged volumes.
    fn attachment(&self, vmi: &Value, source: Option<&Value>, target: Option<&Value>) -> Volumes {
        let none = source.is_none_or(|source| hotplugged(vmi, source).is_empty());
        if none {
            Volumes::None
        } else {
            Volumes::Some(target.and_then(|target| self.hotplug.first_of(target)))
        }
    }

    /// Makes the target pod; says why it could not.
    async fn make_target(
        &self,
        seen: &Observation<'_>,
        config: &ClusterConfig,
    ) -> Result<Option<String>, ClientError> {
        let (Some(source), "Running") = (seen.source, text(seen.vmi, "/status/phase")) else {
            return Ok(None);
        };
        let uid = json::uid(seen.migration);
        let with = (json::namespace(seen.vmi), JOB_LABEL, uid);
        let acting = (&self.writer, &self.caches, &self.who);
        let of_vmi = |pod: &Value| json::controller_uid(pod) == json::uid(seen.vmi);
        if self.doubts.settle(uid, with, acting, of_vmi).await?.is_some() {
            return Ok(None);
        }
        // What was written just before, the annotation among it, goes onto the pod.
        let vmi = self.caches.vmis.get(&json::key(seen.vmi));
        let vmi = vmi.as_deref().unwrap_or(seen.vmi);
        let node = self.caches.nodes.get(text(vmi, "/status/nodeName"));
        let rendered = match target_pod::render(seen.migration, vmi, source, node.as_deref(), config) {
            Ok(pod) => networks::attach(&self.writer.client, &self.who, vmi, pod).await?,
            Err(error) => Err(error),
        };
        let pod = match rendered {
            Ok(pod) => pod,
            Err(error) => return Ok(Some(error.message)),
        };
        match self.writer.write(&self.who, &Write::create(&PODS, pod)).await {
            Ok(pod) => {
                let message = format!("Created migration target pod {}", json::name(&pod));
                self.recorder.note(
                    &self.who,
                    COMPONENT,
                    Note::normal(seen.migration, "SuccessfulCreate", message),
                );
                Ok(None)
            }
            Err(error) if error.code() != 0 => {
                let message = format!("Error creating pod: {}", error.message());
                self.recorder.note(&self.who, COMPONENT, Note::warning(seen.vmi, "FailedCreate", message));
                Ok(Some(format!("failed to create vmi migration target pod: {}", error.message())))
            }
            Err(error) => {
                self.doubts.add(uid);
                Err(error)
            }
        }
    }

    async fn follow_up(&self, seen: &Observation<'_>, refused: Option<&str>) -> Result<(), ClientError> {
        let outcome = decide::follow_up(seen, refused);
        if let Some(write) = &outcome.before {
            self.writer.write(&self.who, write).await?;
        }
        for note in outcome.notes {
            self.recorder.note(&self.who, COMPONENT, note);
        }
        let mut written = None;
        if seen.migration.get("status") != Some(&outcome.status) {
            let mut object = seen.migration.clone();
            object["status"] = outcome.status;
            let write = Write::to(&MIGRATIONS, seen.migration, "status", Op::Update(object));
            written = Some(self.writer.write(&self.who, &write).await?);
        }
        if outcome.drop_finalizer {
            let write = decide::without_finalizer(written.as_deref().unwrap_or(seen.migration));
            match self.writer.write(&self.who, &write).await {
                Err(error) if error.code() != 404 => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    async fn collect_garbage(&self, siblings: &[Arc<Value>]) -> Result<(), ClientError> {
        for write in decide::garbage(siblings) {
            match self.writer.write(&self.who, &write).await {
                Err(error) if error.code() != 404 => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    /// A place is free: the most urgent of those that wait look again
    /// (`reEnqueueHighestPriorityPendingMigrations`).
    fn wake_waiting(&self) {
        let mut waiting: Vec<Arc<Value>> = self.caches.migrations.all();
        waiting.retain(|one| decide::phase(one) == "Pending");
        waiting.sort_by_key(|one| std::cmp::Reverse(decide::urgency(one).0));
        let limit = policy::limit(&self.caches.config().migrations, "parallelMigrationsPerCluster");
        for migration in waiting.iter().take(limit) {
            self.queue.add(&json::key(migration));
        }
    }
}

/// Whether a guest has hotplugged volumes, and the pod that holds them for the target.
enum Volumes {
    None,
    Some(Option<Arc<Value>>),
}

/// The migrations among a list that are not over, by the key of their VMI.
pub fn unfinished(migrations: &[Arc<Value>]) -> std::collections::HashSet<String> {
    migrations
        .iter()
        .filter(|one| !is_final(one))
        .map(|one| json::join_key(json::namespace(one), text(one, "/spec/vmiName")))
        .collect()
}

/// How many launcher pods of a VMI are not down.
pub fn active_pods(pods: &[Arc<Value>]) -> usize {
    let launcher =
        |pod: &&Arc<Value>| json::label(pod, "kubevirt.io") == "virt-launcher" && !vmi::pod_is_down(pod);
    pods.iter().filter(launcher).count()
}

/// Whether a node has the taint of a drain as KubeVirt first did it.
pub fn drained_by_taint(node: &Value, key: &str) -> bool {
    list(node, "/spec/taints").iter().any(|taint| taint["key"] == key && taint["effect"] == "NoSchedule")
}
