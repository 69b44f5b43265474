//! A restore: waits for its target to stop, brings the claims back, then the VM (`updateVMRestore`, v1.9).

use std::sync::Arc;
use std::time::Duration;

use apimachinery::tree::{Value, json};
use jiff::Timestamp;

use super::restored_vm::{self, is_marked, owner_of, template};
use super::{Snapshots, failed, set_condition, state};
use crate::sim::client::ClientError;
use crate::sim::events::Note;
use crate::sim::json::{self, annotation, is_deleting, list, text, time};
use crate::sim::resource::{CLAIMS, CONTROLLER_REVISIONS, DATA_VOLUMES, RESTORES, VMS};
use crate::sim::storage::data_volumes::{POPULATED_FOR, PREPOPULATED, is_usable};
use crate::sim::virt_controller::PassError;
use crate::sim::write::{Op, Write};

const FINALIZER: &str = "snapshot.kubevirt.io/vmrestore-protection";
const OWNED_BY_VM: &str = "restore.kubevirt.io/owned-by-vm";
const WAITS_FOR_EVER: &str =
    "Waiting for target VM to be powered off. Please stop the restore target to proceed with restore";
const WAITS: &str = "Waiting for target VM to be powered off. Please stop the restore target to proceed with restore, or the operation will fail after 5m0s";
const WAITED: &str =
    "Restore target failed to be ready within 5m0s. Please power off the target VM before attempting restore";
const STOPS: &str = "Automatically stopping restore target for restore operation";
const STILL_RUNS: &str =
    "Restore target VMI still exists, please stop the restore target to proceed with restore";
const MUST_BE_OFF: &str = "Restore target VMI must be powered off before restore operation";
const OTHER_TARGET: &str =
    "restore source and restore target are different but restore target already exists";

/// How far a pass came.
enum Step {
    /// Something was done or is awaited; what the conditions say meanwhile.
    Waiting(&'static str, &'static str),
    Done,
}

impl Snapshots {
    fn target(&self, restore: &Value) -> Option<Arc<Value>> {
        self.caches.vms.get(&json::join_key(json::namespace(restore), text(restore, "/spec/target/name")))
    }

    pub(super) async fn reconcile_restore(&self, key: &str) -> Result<Option<Duration>, PassError> {
        let Some(restore) = self.caches.restores.get(key) else { return Ok(None) };
        let now = self.writer.client.now();
        if restore.get("status").is_none() {
            let mut conditions = Vec::new();
            let why = "Initializing VirtualMachineRestore";
            set_condition(&mut conditions, "Progressing", "True", why, now);
            set_condition(&mut conditions, "Ready", "False", why, now);
            self.say(&RESTORES, &restore, &json!({"complete": false, "conditions": conditions})).await?;
            return Ok(None);
        }
        let target = self.target(&restore);
        if is_deleting(&restore) {
            return self.delete_restore(&restore, target.as_deref(), now).await;
        }
        if !state::is_restoring(&restore) {
            return Ok(None);
        }
        let restore = self.own_restore(&restore, target.as_deref()).await?;
        if target.is_some()
            && self
                .caches
                .vmis
                .get(&json::join_key(json::namespace(&restore), text(&restore, "/spec/target/name")))
                .is_some()
        {
            return self.wait_for_target(&restore, now).await;
        }
        let result = self.restore(&restore, target.as_deref()).await;
        let (restore, step) = match result {
            Ok(done) => done,
            Err(PassError::Sync(message)) => {
                self.say_error(&restore, &message, false, now).await?;
                return Err(failed(message));
            }
            Err(PassError::Client(error)) if error.code() == 0 || error.code() == 409 => {
                return Err(error.into());
            }
            Err(PassError::Client(error)) => {
                self.say_error(&restore, &error.message(), false, now).await?;
                return Err(error.into());
            }
        };
        let original = self.caches.restores.get(key).unwrap_or_else(|| Arc::new(restore.clone()));
        let mut status = restore["status"].clone();
        let mut conditions = list(&status, "/conditions").to_vec();
        match step {
            Step::Waiting(progressing, ready) => {
                set_condition(&mut conditions, "Progressing", "True", progressing, now);
                set_condition(&mut conditions, "Ready", "False", ready, now);
            }
            Step::Done => {
                let message =
                    format!("Successfully completed VirtualMachineRestore {}", json::name(&restore));
                let note = Note::normal(&restore, "VirtualMachineRestoreComplete", message);
                self.recorder.note(&self.who, super::RESTORES_COMPONENT, note);
                status["complete"] = true.into();
                status["restoreTime"] = time(now).into();
                set_condition(&mut conditions, "Progressing", "False", "Operation complete", now);
                set_condition(&mut conditions, "Ready", "True", "Operation complete", now);
            }
        }
        status["conditions"] = conditions.into();
        let changed = self.say(&RESTORES, &original, &status).await?;
        // What is awaited tells of itself; another pass makes sure that nothing was missed.
        Ok((!changed && matches!(step, Step::Waiting(..))).then_some(Duration::from_millis(500)))
    }

    /// The restore with its finalizer, and the VM as its owner when there is one.
    async fn own_restore(&self, restore: &Value, target: Option<&Value>) -> Result<Value, ClientError> {
        let mut new = restore.clone();
        if list(restore, "/metadata/ownerReferences").is_empty()
            && let Some(vm) = target
        {
            new["metadata"]["ownerReferences"] = json!([owner_of(vm)]);
        }
        let mut finalizers = list(restore, "/metadata/finalizers").to_vec();
        if !finalizers.iter().any(|one| one == FINALIZER) {
            finalizers.push(FINALIZER.into());
            new["metadata"]["finalizers"] = finalizers.into();
        }
        if new["metadata"] == restore["metadata"] {
            return Ok(new);
        }
        let write = Write::to(&RESTORES, restore, "", Op::Update(new));
        self.writer.write(&self.who, &write).await.map(Arc::unwrap_or_clone)
    }

    async fn delete_restore(
        &self,
        restore: &Value,
        target: Option<&Value>,
        now: Timestamp,
    ) -> Result<Option<Duration>, PassError> {
        if !json::finalizers(restore).contains(&FINALIZER) {
            return Ok(None);
        }
        if let Some(vm) = target {
            self.end_on(restore, vm).await?;
        }
        let mut status = restore["status"].clone();
        let mut conditions = list(&status, "/conditions").to_vec();
        for kind in ["Progressing", "Ready"] {
            set_condition(&mut conditions, kind, "False", "VM restore is deleting", now);
        }
        status["conditions"] = conditions.into();
        if self.say(&RESTORES, restore, &status).await? {
            return Ok(Some(Duration::ZERO));
        }
        match self.released(&RESTORES, restore, FINALIZER).await {
            Err(error) if error.code() != 404 => Err(error.into()),
            _ => Ok(None),
        }
    }

    async fn wait_for_target(&self, restore: &Value, now: Timestamp) -> Result<Option<Duration>, PassError> {
        let warn = |message: &str| {
            let note = Note::warning(restore, "RestoreTargetNotReady", message);
            self.recorder.note(&self.who, super::RESTORES_COMPONENT, note);
        };
        let created: Timestamp = text(restore, "/metadata/creationTimestamp").parse().unwrap_or(now);
        let left = state::GRACE.checked_sub(now.duration_since(created)).unwrap_or_default();
        let (reason, event, after) = match text(restore, "/spec/targetReadinessPolicy") {
            "WaitEventually" => (WAITS_FOR_EVER, STILL_RUNS, None),
            "FailImmediate" => {
                self.say_error(restore, MUST_BE_OFF, true, now).await?;
                return Ok(None);
            }
            "StopTarget" => {
                let vm = text(restore, "/spec/target/name");
                let path = format!(
                    "/apis/subresources.kubevirt.io/v1/namespaces/{}/virtualmachines/{vm}/stop",
                    json::namespace(restore)
                );
                let body = json!({});
                let stopped = self.writer.client.send(
                    Some(&self.who),
                    http::Method::PUT,
                    &path,
                    "application/json",
                    &body,
                );
                match stopped.await {
                    // It was stopped before, and is about to end.
                    Err(error) if error.code() == 409 => {}
                    Err(ClientError::Garbled { .. }) | Ok(_) => {}
                    Err(error) => return Err(error.into()),
                }
                (STOPS, STOPS, None)
            }
            _ if left.is_negative() => {
                self.say_error(restore, WAITED, true, now).await?;
                return Ok(None);
            }
            _ => (WAITS, STILL_RUNS, Duration::try_from(left).ok()),
        };
        let mut status = restore["status"].clone();
        let mut conditions = list(&status, "/conditions").to_vec();
        for kind in ["Progressing", "Ready"] {
            set_condition(&mut conditions, kind, "False", reason, now);
        }
        status["conditions"] = conditions.into();
        if self.say(&RESTORES, restore, &status).await? {
            warn(event);
        }
        Ok(after.map(|after| after + Duration::from_millis(10)))
    }

    async fn say_error(
        &self,
        restore: &Value,
        why: &str,
        fail: bool,
        now: Timestamp,
    ) -> Result<(), ClientError> {
        let mut status = restore["status"].clone();
        let mut conditions = list(&status, "/conditions").to_vec();
        for kind in ["Progressing", "Ready"] {
            set_condition(&mut conditions, kind, "False", why, now);
        }
        let (reason, message) = if fail {
            set_condition(&mut conditions, "Failure", "True", why, now);
            ("Operation failed", format!("VirtualMachineRestore failed {why}"))
        } else {
            ("VirtualMachineRestoreError", format!("VirtualMachineRestore encountered error {why}"))
        };
        status["conditions"] = conditions.into();
        self.recorder.note(&self.who, super::RESTORES_COMPONENT, Note::warning(restore, reason, message));
        let current = self.caches.restores.get(&json::key(restore));
        let current = current.as_deref().unwrap_or(restore);
        status["restores"] = current["status"]["restores"].clone();
        if status["restores"].is_null() {
            json::remove(&mut status, &["restores"]);
        }
        self.say(&RESTORES, current, &status).await?;
        Ok(())
    }

    /// One pass over volumes and VM. Returns the restore with the status as it should be.
    async fn restore(&self, restore: &Value, target: Option<&Value>) -> Result<(Value, Step), PassError> {
        let snapshot_key =
            json::join_key(json::namespace(restore), text(restore, "/spec/virtualMachineSnapshotName"));
        let snapshot = self.caches.snapshots.get(&snapshot_key);
        let snapshot = snapshot.ok_or_else(|| failed(format!("VMSnapshot {snapshot_key} does not exist")))?;
        if state::has_failed(&snapshot) {
            return Err(failed(format!("VMSnapshot {snapshot_key} failed and is invalid to use")));
        }
        if !state::is_ready(&snapshot) {
            return Err(failed(format!("VMSnapshot {snapshot_key} not ready")));
        }
        let content = self.content_of(&snapshot).filter(|content| state::is_ready(content));
        let content = content.ok_or_else(|| {
            failed(format!(
                "VMSnapshotContent {}/{} not ready",
                json::namespace(restore),
                state::content_name(&snapshot)
            ))
        })?;
        if let Some(vm) = target.filter(|vm| !is_marked(restore, vm)) {
            if text(&snapshot, "/status/sourceUID") != json::uid(vm) {
                return Err(failed(OTHER_TARGET));
            }
            self.begin_on(restore, vm).await?;
        }
        let target = self.target(restore);
        let source_vm = &content["spec"]["source"]["virtualMachine"];
        let mut restore = restore.clone();
        if self.restore_volumes(&mut restore, target.as_deref(), &content).await? {
            return Ok((restore, Step::Waiting("Creating new PVCs", "Waiting for new PVCs")));
        }
        let restored = target.as_deref().is_some_and(|vm| is_marked(&restore, vm));
        if !restored && self.restore_vm(&mut restore, target.as_deref(), source_vm).await? {
            return Ok((restore, Step::Waiting("Updating target spec", "Waiting for target update")));
        }
        for name in list(&restore, "/status/deletedDataVolumes").iter().filter_map(Value::as_str) {
            let Some(volume) =
                self.storage().data_volumes.get(&json::join_key(json::namespace(&restore), name))
            else {
                continue;
            };
            match self
                .writer
                .write(&self.who, &Write::to(&DATA_VOLUMES, &volume, "", Op::Delete(Value::Null)))
                .await
            {
                Err(error) if error.code() != 404 => return Err(error.into()),
                _ => {}
            }
        }
        let target = self.target(&restore).ok_or_else(|| failed("At this point target should exist"))?;
        self.end_on(&restore, &target).await?;
        Ok((restore, Step::Done))
    }

    /// Marks the VM: nobody starts it meanwhile.
    async fn begin_on(&self, restore: &Value, vm: &Value) -> Result<(), PassError> {
        let other = text(vm, "/status/restoreInProgress");
        if other == json::name(restore) {
            return Ok(());
        }
        if !other.is_empty() {
            return Err(failed(format!("vm restore {other} in progress")));
        }
        let mut marked = vm.clone();
        json::put(&mut marked, &["status", "restoreInProgress"], json::name(restore));
        self.writer.write(&self.who, &Write::to(&VMS, vm, "status", Op::Update(marked))).await?;
        Ok(())
    }

    async fn end_on(&self, restore: &Value, vm: &Value) -> Result<(), ClientError> {
        if text(vm, "/status/restoreInProgress") != json::name(restore) {
            return Ok(());
        }
        let mut free = vm.clone();
        json::remove(&mut free, &["status", "restoreInProgress"]);
        json::remove(&mut free, &["status", "memoryDumpRequest"]);
        self.writer.write(&self.who, &Write::to(&VMS, vm, "status", Op::Update(free))).await?;
        Ok(())
    }

    /// Makes the claims. True: something was done, or is not there yet (`reconcileVolumeRestores`).
    async fn restore_volumes(
        &self,
        restore: &mut Value,
        target: Option<&Value>,
        content: &Value,
    ) -> Result<bool, PassError> {
        let namespace = json::namespace(restore).to_owned();
        let source_vm = &content["spec"]["source"]["virtualMachine"];
        let dumps = |volume: &str| {
            let volumes = list(source_vm, "/spec/template/spec/volumes");
            volumes.iter().any(|one| one["name"] == volume && one.get("memoryDump").is_some())
        };
        let known = list(restore, "/status/restores").to_vec();
        let wanted: Vec<Value> = list(content, "/spec/volumeBackups")
            .iter()
            .filter(|backup| !dumps(text(backup, "/volumeName")))
            .map(|backup| {
                let volume = text(backup, "/volumeName");
                known.iter().find(|one| one["volumeName"] == volume).cloned().unwrap_or_else(|| {
                    let claim = text(backup, "/persistentVolumeClaim/metadata/name");
                    json!({"volumeName": volume, "volumeSnapshotName": backup["volumeSnapshotName"],
                        "persistentVolumeClaimName": restored_vm::volume_name(restore, volume, claim)})
                })
            })
            .collect();
        if wanted != known {
            restore["status"]["restores"] = wanted.into();
            return Ok(true);
        }
        let in_place = text(restore, "/spec/volumeRestorePolicy") == "InPlace";
        let mut waits = false;
        for (index, one) in wanted.iter().enumerate() {
            let key = json::join_key(&namespace, text(one, "/persistentVolumeClaimName"));
            let Some(claim) = self.storage().claims.get(&key) else {
                self.create_claim(restore, target, content, one).await?;
                waits = true;
                continue;
            };
            if in_place && !is_marked(restore, &claim) {
                waits = true;
                if is_deleting(&claim) {
                    continue;
                }
                let owners = list(&claim, "/metadata/ownerReferences");
                let owner =
                    owners.iter().find(|owner| owner["controller"] == true && owner["kind"] == "DataVolume");
                if let Some(owner) = owner {
                    let name = text(owner, "/name");
                    if text(one, "/dataVolumeName").is_empty() {
                        restore["status"]["restores"][index]["dataVolumeName"] = name.into();
                        continue;
                    }
                    // CDI would make the claim anew otherwise.
                    self.prepopulate(&namespace, name, json::name(restore)).await?;
                }
                match self
                    .writer
                    .write(&self.who, &Write::to(&CLAIMS, &claim, "", Op::Delete(Value::Null)))
                    .await
                {
                    Err(error) if error.code() != 404 => return Err(error.into()),
                    _ => {}
                }
            } else if text(&claim, "/status/phase") != "Bound" {
                let class = self.storage().classes.get(text(&claim, "/spec/storageClassName"));
                waits |=
                    class.is_none_or(|class| text(&class, "/volumeBindingMode") != "WaitForFirstConsumer");
            }
        }
        Ok(waits)
    }

    async fn prepopulate(&self, namespace: &str, name: &str, restore: &str) -> Result<(), ClientError> {
        let volume = json!({"metadata": {"namespace": namespace, "name": name}});
        let patch =
            json!({"metadata": {"annotations": {(PREPOPULATED): "true", (super::RESTORE_NAME): restore}}});
        self.writer.write(&self.who, &Write::to(&DATA_VOLUMES, &volume, "", Op::MergePatch(patch))).await?;
        Ok(())
    }

    async fn create_claim(
        &self,
        restore: &Value,
        target: Option<&Value>,
        content: &Value,
        one: &Value,
    ) -> Result<(), PassError> {
        let backup = list(content, "/spec/volumeBackups")
            .iter()
            .find(|backup| backup["volumeName"] == one["volumeName"]);
        let backup =
            backup.ok_or_else(|| failed(format!("missing volume backup {}", text(one, "/volumeName"))))?;
        let snapshot_name = text(backup, "/volumeSnapshotName");
        let key = json::join_key(json::namespace(restore), snapshot_name);
        let snapshot = self.storage().volume_snapshots.get(&key);
        let snapshot = snapshot.ok_or_else(|| failed(format!("missing volumeSnapshot {snapshot_name}")))?;
        let source_vm = &content["spec"]["source"]["virtualMachine"];
        let data_volume = Some(text(one, "/dataVolumeName")).filter(|name| !name.is_empty());
        let name = text(one, "/persistentVolumeClaimName");
        let mut claim =
            restored_vm::claim(restore, backup, &snapshot, name, source_vm, (target, data_volume));
        let owners = list(backup, "/persistentVolumeClaim/metadata/ownerReferences");
        let was_owned = owners
            .iter()
            .any(|one| one["kind"] == "VirtualMachine" && one["uid"] == source_vm["metadata"]["uid"]);
        if target.is_none()
            && data_volume.is_none()
            && was_owned
            && text(restore, "/spec/volumeOwnershipPolicy") != "None"
        {
            claim["metadata"]["annotations"][OWNED_BY_VM] = json::name(restore).into();
        }
        match self.writer.write(&self.who, &Write::create(&CLAIMS, claim)).await {
            // The last pass made it, and the cache does not show it yet.
            Err(error) if error.code() == 409 => Ok(()),
            Err(error) => Err(error.into()),
            Ok(_) => Ok(()),
        }
    }

    /// Brings the VM and its `DataVolumes` to where the snapshot was. True: not finished.
    async fn restore_vm(
        &self,
        restore: &mut Value,
        target: Option<&Value>,
        source_vm: &Value,
    ) -> Result<bool, PassError> {
        if self.hand_to_data_volumes(restore, source_vm).await? {
            return Ok(true);
        }
        let mut vm = restored_vm::restored(restore, source_vm, target);
        if self.restore_data_volumes(restore, &vm, target).await? {
            return Ok(true);
        }
        for field in ["instancetype", "preference"] {
            let name = text(&vm, &format!("/spec/{field}/revisionName")).to_owned();
            if !name.is_empty() {
                let restored = self.restore_revision(restore, &vm, &name, target).await?;
                vm["spec"][field]["revisionName"] = restored.into();
            }
        }
        let write = if let Some(target) = target {
            Write::to(&VMS, target, "", Op::Update(vm))
        } else {
            let vm = restored_vm::patched(&vm, list(restore, "/spec/patches"))
                .map_err(|why| failed(format!("error patching VM {}: {why}", json::name(&vm))))?;
            Write::create(&VMS, vm)
        };
        let vm = self.writer.write(&self.who, &write).await?;
        self.claim_ownership(restore, &vm).await?;
        Ok(true)
    }

    /// Claims whose volume was a `DataVolume` of a template become that of the new one.
    async fn hand_to_data_volumes(&self, restore: &mut Value, source_vm: &Value) -> Result<bool, PassError> {
        let mut restores = list(restore, "/status/restores").to_vec();
        for one in &mut restores {
            let volumes = list(source_vm, "/spec/template/spec/volumes");
            let volume = volumes.iter().find(|volume| volume["name"] == one["volumeName"]);
            let old = volume.map_or("", |volume| text(volume, "/dataVolume/name")).to_owned();
            if old.is_empty() || template(source_vm, &old).is_none() {
                continue;
            }
            let name = restored_vm::volume_name(restore, text(one, "/volumeName"), &old);
            let key = json::join_key(json::namespace(restore), text(one, "/persistentVolumeClaimName"));
            let claim = self.storage().claims.get(&key);
            let claim = claim.ok_or_else(|| failed(format!("pvc {key} does not exist and should")))?;
            if annotation(&claim, POPULATED_FOR) != Some(name.as_str()) {
                let mut new = claim.as_ref().clone();
                json::put(&mut new, &["metadata", "annotations", POPULATED_FOR], name.as_str());
                json::remove(&mut new, &["metadata", "ownerReferences"]);
                self.writer.write(&self.who, &Write::to(&CLAIMS, &claim, "", Op::Update(new))).await?;
            }
            one["dataVolumeName"] = name.into();
        }
        if list(restore, "/status/restores") == restores.as_slice() {
            return Ok(false);
        }
        restore["status"]["restores"] = restores.into();
        Ok(true)
    }

    async fn restore_data_volumes(
        &self,
        restore: &mut Value,
        vm: &Value,
        target: Option<&Value>,
    ) -> Result<bool, PassError> {
        let namespace = json::namespace(restore).to_owned();
        let mut waits = false;
        for wanted in list(vm, "/spec/dataVolumeTemplates") {
            let name = text(wanted, "/metadata/name");
            let key = json::join_key(&namespace, name);
            if let Some(volume) = self.storage().data_volumes.get(&key) {
                waits |= !is_usable(&volume);
                continue;
            }
            let claim = self.storage().claims.get(&key);
            let claim = claim.ok_or_else(|| {
                failed(format!("when creating restore dv pvc {key} does not exist and should"))
            })?;
            if annotation(&claim, POPULATED_FOR) != Some(name)
                || !list(&claim, "/metadata/ownerReferences").is_empty()
            {
                continue;
            }
            let mut volume = crate::sim::virt_controller::data_volumes::of_template(wanted, &namespace);
            json::put(&mut volume, &["metadata", "annotations", super::RESTORE_NAME], json::name(restore));
            json::put(&mut volume, &["metadata", "annotations", PREPOPULATED], "true");
            match self.writer.write(&self.who, &Write::create(&DATA_VOLUMES, volume)).await {
                Err(error) if error.code() != 409 => {
                    return Err(failed(format!("Failed to create restore DataVolume: {}", error.message())));
                }
                _ => waits = true,
            }
        }
        if let Some(target) = target {
            let deleted: Vec<Value> = list(target, "/spec/dataVolumeTemplates")
                .iter()
                .map(|one| text(one, "/metadata/name"))
                .filter(|name| template(vm, name).is_none())
                .map(Value::from)
                .collect();
            if list(restore, "/status/deletedDataVolumes") != deleted.as_slice() {
                restore["status"]["deletedDataVolumes"] = deleted.into();
                return Ok(true);
            }
        }
        Ok(waits)
    }

    async fn restore_revision(
        &self,
        restore: &Value,
        vm: &Value,
        name: &str,
        target: Option<&Value>,
    ) -> Result<String, PassError> {
        let namespace = json::namespace(vm);
        let kept = self.revision(namespace, name).await?;
        let kept =
            kept.ok_or_else(|| failed(format!("Unable to find ControllerRevision {namespace}/{name}")))?;
        let restored = name.replacen(text(restore, "/spec/virtualMachineSnapshotName"), json::name(vm), 1);
        if target.is_some()
            && let Some(existing) = self.revision(namespace, &restored).await?
        {
            if existing["data"]["spec"] == kept["data"]["spec"] {
                return Ok(restored);
            }
            let write = Write::to(&CONTROLLER_REVISIONS, &existing, "", Op::Delete(Value::Null));
            self.writer.write(&self.who, &write).await?;
        }
        self.copy_revision(&kept, &restored, target).await?;
        Ok(restored)
    }

    /// Gives claims that the old VM owned to the new one, and the revisions of its instance type.
    async fn claim_ownership(&self, restore: &Value, vm: &Value) -> Result<(), PassError> {
        for field in ["instancetype", "preference"] {
            let name = text(vm, &format!("/spec/{field}/revisionName"));
            if name.is_empty() {
                continue;
            }
            if let Some(revision) = self.revision(json::namespace(vm), name).await?
                && json::controller_uid(&revision) != json::uid(vm)
            {
                let patch = json!({"metadata": {"ownerReferences": [owner_of(vm)]}});
                self.writer
                    .write(&self.who, &Write::to(&CONTROLLER_REVISIONS, &revision, "", Op::MergePatch(patch)))
                    .await?;
            }
        }
        for one in list(restore, "/status/restores") {
            let key = json::join_key(json::namespace(restore), text(one, "/persistentVolumeClaimName"));
            let Some(claim) = self.storage().claims.get(&key) else { continue };
            if annotation(&claim, OWNED_BY_VM) == Some(json::name(restore))
                && list(&claim, "/metadata/ownerReferences").is_empty()
            {
                let patch = json!({"metadata": {"ownerReferences": [owner_of(vm)], "annotations": {(OWNED_BY_VM): null}}});
                self.writer.write(&self.who, &Write::to(&CLAIMS, &claim, "", Op::MergePatch(patch))).await?;
            }
        }
        Ok(())
    }
}
