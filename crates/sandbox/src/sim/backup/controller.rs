//! Carries backups out: as virt-controller, with what virt-handler and the launcher do for it.

use std::sync::Arc;
use std::time::Duration;

use apimachinery::tree::{Value, json};
use tokio_util::sync::CancellationToken;

use super::decide::{self, FINALIZER, set_condition};
use super::guests::{Guests, Wish};
use super::tracking;
use crate::sim::cache::Cache;
use crate::sim::client::ClientError;
use crate::sim::events::{Note, Recorder};
use crate::sim::identity::Identity;
use crate::sim::json::{self, finalizers, is_deleting, join_key, key, name, namespace, text, time, uid};
use crate::sim::queue::Queue;
use crate::sim::resource::{BACKUP_TRACKERS, BACKUPS, CLAIMS, EXPORTS, EXPORTS_V1BETA1, Resource, VMIS};
use crate::sim::storage::disks::Disks;
use crate::sim::version::Release;
use crate::sim::write::{Op, Write, Writer};

const COMPONENT: &str = "vmbackup-controller";
/// How soon something is looked at again that has no cache here.
const AGAIN: Duration = Duration::from_millis(250);

/// What backups are made of.
pub struct Sources<'a> {
    pub vms: &'a Arc<Cache>,
    pub vmis: &'a Arc<Cache>,
    pub disks: &'a Arc<Disks>,
    pub release: Release,
}

/// The controller, and what guests keep for it.
pub struct Backups {
    writer: Writer,
    recorder: Recorder,
    who: Identity,
    vms: Arc<Cache>,
    vmis: Arc<Cache>,
    own: Arc<Cache>,
    trackers: Arc<Cache>,
    exports: &'static Resource,
    guests: Arc<Guests>,
}

impl Backups {
    /// Starts it where the release serves backups; answers what guests keep.
    pub fn start(
        writer: Writer,
        recorder: Recorder,
        sources: &Sources<'_>,
        stop: &CancellationToken,
    ) -> Arc<Guests> {
        let guests = Arc::new(Guests::new(sources.disks.clone()));
        if !sources.release.serves_backups() {
            return guests;
        }
        let controller = Arc::new(Self {
            who: Identity::virt_controller(),
            writer,
            recorder,
            vms: sources.vms.clone(),
            vmis: sources.vmis.clone(),
            // Indexed by the tracker or the VM that they name, and by the VM.
            own: Cache::new(&BACKUPS, |one| text(one, "/spec/source/name")),
            trackers: Cache::new(&BACKUP_TRACKERS, |one| text(one, "/spec/source/name")),
            exports: if sources.release.serves_export_v1() { &EXPORTS } else { &EXPORTS_V1BETA1 },
            guests: guests.clone(),
        });
        controller.listen(stop);
        for cache in [&controller.own, &controller.trackers] {
            tokio::spawn(cache.clone().run(controller.writer.client.clone(), stop.clone()));
        }
        guests
    }

    fn listen(self: &Arc<Self>, stop: &CancellationToken) {
        let (backups, trackers, vmis) = (Queue::default(), Queue::default(), Queue::default());
        let adding = backups.clone();
        self.own.on_change(move |change| adding.add(change.key));
        let (adding, all, of_trackers) = (backups.clone(), self.own.clone(), trackers.clone());
        self.trackers.on_change(move |change| {
            of_trackers.add(change.key);
            for backup in all.indexed(name(change.object())) {
                adding.add(&key(&backup));
            }
        });
        let (adding, all, of_vmis, guests) =
            (backups.clone(), self.own.clone(), vmis.clone(), self.guests.clone());
        self.vmis.on_change(move |change| {
            let ended = |vmi: Option<&Arc<Value>>| match vmi.map(|vmi| text(vmi, "/status/phase")) {
                Some("Failed") => Some(true),
                Some("Succeeded") | None => Some(false),
                Some(_) => None,
            };
            if let Some(crashed) = ended(change.new) {
                guests.ended(change.key, crashed);
            }
            let tracked = !tracking::state(change.object()).is_empty();
            if tracked {
                of_vmis.add(change.key);
                for backup in all.all() {
                    adding.add(&key(&backup));
                }
            }
        });
        let work = self.clone();
        backups.run("backup", 2, stop, move |key| {
            let controller = work.clone();
            async move { controller.backup(&key).await }
        });
        let work = self.clone();
        trackers.run("backup-tracker", 1, stop, move |key| {
            let controller = work.clone();
            async move { controller.tracker(&key).await }
        });
        let work = self.clone();
        vmis.run("change-tracking", 1, stop, move |key| {
            let controller = work.clone();
            async move { controller.guest(&key).await }
        });
    }

    /// virt-handler's part: a guest whose disks have their overlays is tracked, once the trackers know that it is
    /// another one (`HandleChangedBlockTracking`).
    async fn guest(&self, key: &str) -> Result<Option<Duration>, ClientError> {
        let Some(vmi) = self.vmis.get(key) else { return Ok(None) };
        let running = text(&vmi, "/status/phase") == "Running" && !is_deleting(&vmi);
        if !running || tracking::state(&vmi) != tracking::INITIALIZING {
            return Ok(None);
        }
        let who = Identity::virt_handler(text(&vmi, "/status/nodeName"));
        for tracker in self.trackers.indexed(name(&vmi)) {
            let known = text(&tracker, "/status/latestCheckpoint/name");
            let marked =
                tracker.pointer("/status/checkpointRedefinitionRequired") == Some(&Value::Bool(true));
            if namespace(&tracker) == namespace(&vmi) && !known.is_empty() && !marked {
                let patch = json!({"status": {"checkpointRedefinitionRequired": true}});
                self.write(&who, &Write::to(&BACKUP_TRACKERS, &tracker, "status", Op::MergePatch(patch)))
                    .await?;
            }
        }
        let mut updated = vmi.as_ref().clone();
        json::put(&mut updated, &["status", "changedBlockTracking", "state"], tracking::ENABLED);
        self.writer.write(&who, &Write::to(&VMIS, &vmi, "", Op::Update(updated))).await?;
        Ok(None)
    }

    /// Tells a new guest of a tracker's checkpoint (`handleCheckpointRedefinition`).
    async fn tracker(&self, key: &str) -> Result<Option<Duration>, ClientError> {
        let Some(tracker) = self.trackers.get(key).filter(|tracker| decide::needs_redefinition(tracker))
        else {
            return Ok(None);
        };
        let vm = join_key(namespace(&tracker), text(&tracker, "/spec/source/name"));
        if self.vmis.get(&vm).is_none() {
            return Ok(Some(AGAIN));
        }
        let checkpoint = text(&tracker, "/status/latestCheckpoint/name");
        let mut status = json!({"checkpointRedefinitionRequired": null});
        if !self.guests.has(&vm, checkpoint) {
            let why = format!(
                "Failed to redefine checkpoint {checkpoint}: the server rejected our request due to an error in our \
                 request (422 Unprocessable Entity): no disks found with checkpoint bitmap {checkpoint}. Checkpoint \
                 cleared, next backup will be full."
            );
            self.recorder.note(
                &self.who,
                COMPONENT,
                Note::warning(&tracker, "CheckpointRedefinitionFailed", why),
            );
            status["latestCheckpoint"] = Value::Null;
        }
        let patch = Op::MergePatch(json!({"status": status}));
        self.write(&self.who, &Write::to(&BACKUP_TRACKERS, &tracker, "status", patch)).await?;
        Ok(None)
    }

    async fn backup(&self, key: &str) -> Result<Option<Duration>, ClientError> {
        let Some(backup) = self.own.get(key) else { return Ok(None) };
        let mut status = backup.get("status").cloned().unwrap_or_else(|| json!({}));
        let again = self.sync(&backup, &mut status).await?;
        if backup.get("status") != Some(&status) && status != json!({}) {
            let patch = Op::MergePatch(json!({"metadata": {"uid": uid(&backup)}, "status": status}));
            self.write(&self.who, &Write::to(&BACKUPS, &backup, "status", patch)).await?;
        }
        Ok(again)
    }

    /// `sync`
    async fn sync(&self, backup: &Value, status: &mut Value) -> Result<Option<Duration>, ClientError> {
        let (now, ns) = (self.writer.client.now(), namespace(backup));
        if decide::is_terminal(backup) {
            if is_deleting(backup) {
                self.finalizer(backup, false).await?;
            }
            return Ok(None);
        }
        let of_tracker = text(backup, "/spec/source/kind") == "VirtualMachineBackupTracker";
        let named = text(backup, "/spec/source/name");
        let tracker = if of_tracker { self.trackers.get(&join_key(ns, named)) } else { None };
        if of_tracker && tracker.is_none() {
            let why = format!("BackupTracker {named} does not exist");
            set_condition(status, ("Progressing", "True"), "Initializing", &why, now);
            return Ok(None);
        }
        let source =
            tracker.as_deref().map_or(named, |tracker| text(tracker, "/spec/source/name")).to_owned();
        let vm_key = join_key(ns, &source);
        let vmi = self.vmis.get(&vm_key);
        let of_vmi = vmi
            .as_deref()
            .map_or(Value::Null, |vmi| vmi["status"]["changedBlockTracking"]["backupStatus"].clone());
        if of_vmi.is_object()
            && let Some(vmi) = vmi.as_deref()
        {
            return self.follow(backup, status, vmi, tracker.as_deref(), &of_vmi).await;
        }
        if is_deleting(backup) {
            self.clean(backup, vmi.as_deref()).await?;
            if vmi.is_none() {
                self.finalizer(backup, false).await?;
            } else {
                decide::failed(status, "DeletedDuringInit", "backup was deleted during initialization", now);
            }
            return Ok(None);
        }
        if !text(backup, "/status/type").is_empty() {
            self.clean(backup, vmi.as_deref()).await?;
            let why =
                if vmi.is_none() { "VMI was deleted during backup" } else { "VMI backup status was lost" };
            self.fail(backup, status, "SourceLost", why);
            return Ok(None);
        }
        let vm = self.vms.get(&vm_key);
        let scratch = self.read(&CLAIMS, ns, text(backup, "/spec/pvcName")).await?;
        let seen = (vm.as_deref(), vmi.as_deref());
        if let Some(why) = decide::obstacle(backup, seen, tracker.as_deref(), scratch.as_ref(), &source) {
            set_condition(status, ("Progressing", "True"), "Initializing", &why, now);
            return Ok(Some(AGAIN));
        }
        let Some(vmi) = vmi else { return Ok(None) };
        self.begin(backup, status, &vmi, tracker.as_deref()).await
    }

    /// `startBackup`, and the launcher's `BackupVirtualMachine`.
    async fn begin(
        &self,
        backup: &Value,
        status: &mut Value,
        vmi: &Value,
        tracker: Option<&Value>,
    ) -> Result<Option<Duration>, ClientError> {
        self.finalizer(backup, true).await?;
        let since = decide::since(backup, tracker);
        let kind = if since.is_some() { "Incremental" } else { "Full" };
        let checkpoint = decide::checkpoint(backup);
        let mut volumes = Vec::new();
        for (volume, claim) in tracking::volumes(vmi) {
            let Some(claim) = self.read(&CLAIMS, namespace(vmi), &claim).await? else { continue };
            volumes.push((volume, claim));
        }
        let included: Vec<Value> = volumes.iter().map(|(volume, _)| json!({"volumeName": volume})).collect();
        let (guests, vm, backup_name) = (self.guests.clone(), key(vmi), name(backup).to_owned());
        let wished = checkpoint.clone();
        let begun = tokio::task::spawn_blocking(move || {
            guests.begin(&vm, Wish { backup: &backup_name, checkpoint: wished, since, volumes })
        });
        if let Err(error) = begun.await.map_err(std::io::Error::other).flatten() {
            // Tried again, and only the controller's log says why.
            tracing::debug!(backup = name(backup), %error, "failed to send Start backup command");
            return Ok(Some(AGAIN));
        }
        let quiesce = if backup.pointer("/spec/skipQuiesce") == Some(&Value::Bool(true)) {
            "Skipped"
        } else {
            "Succeeded"
        };
        let started = json!({"backupName": name(backup), "startTimestamp": backup["metadata"]["creationTimestamp"],
            "checkpointName": checkpoint, "volumes": included, "quiesceStatus": quiesce});
        self.of_vmi(vmi, started).await?;
        let now = self.writer.client.now();
        set_condition(status, ("Progressing", "True"), "Initiated", "Backup is in progress", now);
        status["type"] = kind.into();
        Ok(None)
    }

    /// `reconcileActive` and `reconcileCompleted`
    async fn follow(
        &self,
        backup: &Value,
        status: &mut Value,
        vmi: &Value,
        tracker: Option<&Value>,
        of_vmi: &Value,
    ) -> Result<Option<Duration>, ClientError> {
        let now = self.writer.client.now();
        if text(of_vmi, "/backupName") != name(backup) {
            // Another one is under way; the webhook lets only one of each source through.
            return Ok(Some(AGAIN));
        }
        if of_vmi["completed"] == true {
            if let Some(tracker) = tracker {
                let latest = json!({"name": of_vmi["checkpointName"], "creationTime": of_vmi["startTimestamp"],
                    "volumes": of_vmi["volumes"]});
                let patch = Op::MergePatch(json!({"status": {"latestCheckpoint": latest}}));
                self.write(&self.who, &Write::to(&BACKUP_TRACKERS, tracker, "status", patch)).await?;
            }
            self.clean(backup, Some(vmi)).await?;
            decide::completed(status, now);
            let message = "Successfully completed VirtualMachineBackup";
            let note = Note::normal(backup, "VirtualMachineBackupCompletedSuccessfully", message);
            self.recorder.note(&self.who, COMPONENT, note);
            return Ok(None);
        }
        if text(vmi, "/status/phase") != "Running" || is_deleting(vmi) {
            self.clean(backup, Some(vmi)).await?;
            let why = format!("VMI is not in a running state: {}", text(vmi, "/status/phase"));
            self.fail(backup, status, "SourceUnhealthy", &why);
            return Ok(None);
        }
        if status.get("includedVolumes").is_none() {
            status["includedVolumes"] = of_vmi["volumes"].clone();
            status["checkpointName"] = of_vmi["checkpointName"].clone();
        }
        let quiesced = text(of_vmi, "/quiesceStatus");
        let (value, words) = if quiesced == "Succeeded" {
            ("True", "successfully quiesced")
        } else {
            ("False", "quiesce was skipped")
        };
        let words = match value {
            "True" => format!("Guest filesystem was {words}"),
            _ => format!("Guest filesystem {words}"),
        };
        set_condition(status, ("Quiesced", value), &format!("Quiesce{quiesced}"), &words, now);
        let expired = decide::is_expired(backup, now);
        if is_deleting(backup) || expired {
            let mut message = "Backup is aborting".to_owned();
            if expired {
                message = format!("pull mode backup TTL has expired: {message}");
            }
            self.recorder.note(
                &self.who,
                COMPONENT,
                Note::normal(backup, "VirtualMachineBackupAborting", message.clone()),
            );
            set_condition(status, ("Progressing", "True"), "Aborting", &message, now);
            // An aborted pull has not failed: its checkpoint stays (`HandleBackupJobCompletedEvent`).
            self.guests.end(&key(vmi));
            let ended = json!({"completed": true, "endTimestamp": time(now)});
            self.of_vmi(vmi, ended).await?;
            return Ok(None);
        }
        self.pull(backup, status).await
    }

    /// `handlePullMode`
    async fn pull(&self, backup: &Value, status: &mut Value) -> Result<Option<Duration>, ClientError> {
        let (now, ns) = (self.writer.client.now(), namespace(backup));
        let Some(export) = self.read(self.exports, ns, name(backup)).await? else {
            let owner = json!([{"apiVersion": BACKUPS.api_version(), "kind": BACKUPS.kind, "name": name(backup),
                "uid": uid(backup), "controller": true, "blockOwnerDeletion": true}]);
            let export = json!({"apiVersion": self.exports.api_version(), "kind": self.exports.kind,
                "metadata": {"name": name(backup), "namespace": ns, "ownerReferences": owner},
                "spec": {"tokenSecretRef": backup["spec"]["tokenSecretRef"],
                    "ttlDuration": decide::remaining(backup, now),
                    "source": {"apiGroup": BACKUPS.group, "kind": BACKUPS.kind, "name": name(backup)}}});
            self.write(&self.who, &Write::create(self.exports, export)).await?;
            let message = "Backup export is being initialized";
            set_condition(status, ("Progressing", "True"), "PreparingExport", message, now);
            status["endpointCert"] = Value::Null;
            return Ok(Some(AGAIN));
        };
        if json::controller_uid(&export) != uid(backup) {
            return Ok(Some(AGAIN));
        }
        if text(status, "/exportUID") != uid(&export) {
            if !text(&export, "/status/serviceName").is_empty() {
                // The launcher dials the exporter pod.
                status["exportUID"] = uid(&export).into();
            }
            return Ok(Some(AGAIN));
        }
        decide::links(status, &export, now);
        Ok(Some(AGAIN))
    }

    /// `cleanupVMIState`
    async fn clean(&self, backup: &Value, vmi: Option<&Value>) -> Result<(), ClientError> {
        let ns = namespace(backup);
        let export = self.read(self.exports, ns, name(backup)).await?;
        if let Some(export) = export.filter(|export| json::controller_uid(export) == uid(backup)) {
            self.write(&self.who, &Write::to(self.exports, &export, "", Op::Delete(Value::Null))).await?;
        }
        match vmi {
            Some(vmi) => self.of_vmi(vmi, Value::Null).await,
            None => Ok(()),
        }
    }

    /// Writes what a VMI says about the backup under way.
    async fn of_vmi(&self, vmi: &Value, part: Value) -> Result<(), ClientError> {
        let patch = json!({"status": {"changedBlockTracking": {"backupStatus": part}}});
        self.write(&self.who, &Write::to(&VMIS, vmi, "", Op::MergePatch(patch))).await
    }

    fn fail(&self, backup: &Value, status: &mut Value, reason: &str, why: &str) {
        decide::failed(status, reason, why, self.writer.client.now());
        self.recorder.note(&self.who, COMPONENT, Note::warning(backup, "VirtualMachineBackupFailed", why));
    }

    async fn finalizer(&self, backup: &Value, wanted: bool) -> Result<(), ClientError> {
        let has = finalizers(backup).contains(&FINALIZER);
        if has == wanted {
            return Ok(());
        }
        let mut all: Vec<&str> = finalizers(backup).into_iter().filter(|one| *one != FINALIZER).collect();
        all.extend(wanted.then_some(FINALIZER));
        let patch = Op::MergePatch(json!({"metadata": {"finalizers": all, "uid": uid(backup)}}));
        self.write(&self.who, &Write::to(&BACKUPS, backup, "", patch)).await
    }

    /// Writes; what is gone already needs no write. The answer is in the caches here, too.
    async fn write(&self, who: &Identity, write: &Write) -> Result<(), ClientError> {
        match self.writer.write(who, write).await {
            Ok(answer) => {
                let gone = matches!(write.op, Op::Delete(_));
                for cache in [&self.own, &self.trackers] {
                    if !gone && cache.resource() == write.resource && !finalized(&answer) {
                        cache.observe(answer.clone());
                    }
                }
                Ok(())
            }
            Err(error) if error.code() == 404 => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// `None`: it is not there.
    async fn read(
        &self,
        resource: &Resource,
        namespace: &str,
        name: &str,
    ) -> Result<Option<Value>, ClientError> {
        match self.writer.client.get(Some(&self.who), &resource.path(namespace, name, "")).await {
            Ok(object) => Ok(Some(object)),
            Err(error) if error.code() == 404 => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// The answer to taking the last finalizer off an object that is being deleted: it is gone.
fn finalized(answer: &Value) -> bool {
    is_deleting(answer) && finalizers(answer).is_empty()
}
