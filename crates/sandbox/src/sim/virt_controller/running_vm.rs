//! What of a VM reaches its running guest: the writes that [`live_update`], [`volume_migration`] and [`memory_dump`]
//! decide on, and what they have to know of the VM's past.

use std::sync::{Arc, PoisonError};

use apimachinery::tree::{Value, json};
use jiff::Timestamp;

use super::vm_status::SyncError;
use super::{REVISIONS, VirtController, live_update, memory_dump, vm, volume_migration};
use crate::sim::client::ClientError;
use crate::sim::instancetype;
use crate::sim::json::{self, is_deleting, text};
use crate::sim::resource::{CONTROLLER_REVISIONS, VMIS, VMS};
use crate::sim::write::{Op, Write};

impl VirtController {
    /// Follows a request to dump the guest's memory. True: the VM itself was written.
    pub(super) async fn dump_memory(
        &self,
        vm: &Value,
        key: &str,
    ) -> Result<Result<bool, SyncError>, ClientError> {
        let name = text(vm, "/status/memoryDumpRequest/claimName");
        let claim = self.caches.storage.claims.get(&json::join_key(json::namespace(vm), name));
        // The volumes of a VMI may have been written just now.
        let vmi = self.vmi_of(key, vm);
        let failed = |why: &str| {
            let message = format!("{}: {why}", memory_dump::DOING);
            Ok(Err(SyncError { reason: memory_dump::REASON, message }))
        };
        let mut wrote = false;
        let writes = match memory_dump::handle(vm, vmi.as_deref(), claim.as_deref()) {
            Ok(writes) => writes,
            Err(why) => return failed(&why),
        };
        for write in &writes {
            match self.writer.write(&self.who, write).await {
                Ok(_) => wrote |= write.resource == &VMS,
                Err(error) if error.code() == 0 => return Err(error),
                Err(error) if write.resource == &VMS => {
                    let message = format!(
                        "Error encountered when trying to update vm according to add volume and/or memory dump requests: {}",
                        error.message()
                    );
                    return Ok(Err(SyncError { reason: "FailedUpdateError", message }));
                }
                Err(error) => return failed(&error.message()),
            }
        }
        Ok(Ok(wrote))
    }

    /// Brings what can follow of a changed template to the VMI, and marks the VM when it needs a restart.
    pub(super) async fn update_live(
        &self,
        vm: &mut Value,
        vmi: Option<&Value>,
        now: Timestamp,
    ) -> Result<Option<SyncError>, ClientError> {
        const KIND: &str = "RestartRequired";
        let mut conditions = json::list(vm, "/status/conditions").to_vec();
        let Some(vmi) = vmi.filter(|vmi| !vm::is_final(vmi)) else {
            json::remove_condition(&mut conditions, KIND);
            if vm.pointer("/status/conditions").is_some() {
                json::put(vm, &["status", "conditions"], conditions);
            }
            return Ok(None);
        };
        let started = json::annotation(vmi, "kubevirt.io/vm-generation");
        let is_newest = started == Some(json::integer(vm, "/metadata/generation").to_string().as_str());
        let looks_same = is_newest
            && !instancetype::is_matched(vm)
            && !live_update::has_other_size(vm, vmi)
            && !volume_migration::concerns(vm, vmi);
        if is_deleting(vm) || looks_same {
            return Ok(None);
        }
        let Some(started) = self.started_with(vmi).await? else { return Ok(None) };
        let config = self.config();
        // What cannot be expanded is left alone, with the condition that it has.
        let Some((started, wanted)) = self.expanded(vm, &started).await? else { return Ok(None) };
        let update = live_update::decide(&live_update::Observation {
            wanted: &wanted,
            started: &started,
            vmi,
            config: &config,
            moves_volumes: volume_migration::moves(vm),
        });
        let mut restart = update.restart;
        let mut moved = volume_migration::Plan::default();
        if restart.is_none() && update.error.is_none() && config.live_update {
            moved = volume_migration::decide(vm, vmi, &self.caches.storage, &config, now);
            restart = moved.restart.take();
        }
        if let Some(volumes) = moved.moving {
            let path = ["status", "volumeUpdateState", "volumeMigrationState", "migratedVolumes"];
            json::put(vm, &path, volumes);
        }
        match restart {
            Some(message) => {
                let mut condition = json::new_condition(KIND, "True", "", &message, now);
                condition["lastProbeTime"] = Value::Null;
                json::update_condition(&mut conditions, condition);
            }
            None => json::remove_condition(&mut conditions, KIND),
        }
        json::put(vm, &["status", "conditions"], conditions);
        for part in update.parts {
            if let Err(error) = self.writer.write(&self.who, &part.write).await {
                let message = format!("{}: {}", part.doing, error.message());
                return Ok(Some(SyncError { reason: part.reason, message }));
            }
        }
        for write in &moved.writes {
            match self.writer.write(&self.who, write).await {
                Err(error) if error.code() == 0 => return Err(error),
                Err(error) => return Ok(Some(volume_migration::Plan::failed(&error.message()))),
                Ok(_) => {}
            }
        }
        Ok(update.error.or(moved.error))
    }

    /// A VMI whose template is again what it was started with runs the newest generation
    /// (`conditionallyBumpGenerationAnnotationOnVmi`).
    pub(super) async fn bump_generation(&self, vm: &Value, vmi: Option<&Value>) -> Result<(), ClientError> {
        const KEY: &str = "kubevirt.io/vm-generation";
        let Some(vmi) = vmi.filter(|vmi| !vm::is_final(vmi) && !is_deleting(vmi)) else { return Ok(()) };
        let generation = json::integer(vm, "/metadata/generation").to_string();
        let known = json::annotation(vmi, KEY);
        if is_deleting(vm) || known.is_none() || known == Some(generation.as_str()) {
            return Ok(());
        }
        let started = self.started_with(vmi).await?;
        if started.as_ref().map(|spec| &spec["template"]["spec"]) != vm.pointer("/spec/template/spec") {
            return Ok(());
        }
        let old = &vmi["metadata"]["annotations"];
        let mut new = old.clone();
        new[KEY] = generation.into();
        let patch = json!(Write::test_and_replace("/metadata/annotations", old, &new));
        match self.writer.write(&self.who, &Write::to(&VMIS, vmi, "", Op::JsonPatch(patch))).await {
            Err(error) if error.code() == 0 => Err(error),
            // It has changed meanwhile: the next pass looks again.
            _ => Ok(()),
        }
    }

    /// The templates of a VM when it was started and now, with instance types and preferences laid over them.
    pub(super) async fn expanded(
        &self,
        vm: &Value,
        started: &Value,
    ) -> Result<Option<(Value, Value)>, ClientError> {
        let then = json!({"metadata": vm["metadata"], "spec": started});
        let mut specs = Vec::new();
        for vm in [&then, vm] {
            let applied = if instancetype::is_matched(vm) {
                match self.finder().apply(vm, instancetype::IN_VMI).await {
                    Ok(applied) => applied,
                    Err(instancetype::Error::Find(_, silence)) if silence.code() == 0 => return Err(silence),
                    Err(_) => return Ok(None),
                }
            } else {
                vm.clone()
            };
            specs.push(applied.pointer("/spec/template/spec").cloned().unwrap_or_default());
        }
        let now = specs.pop().unwrap_or_default();
        Ok(specs.pop().map(|then| (then, now)))
    }

    /// The VM's spec that a VMI was started with, out of its revision.
    pub(super) async fn started_with(&self, vmi: &Value) -> Result<Option<Arc<Value>>, ClientError> {
        let name = text(vmi, "/status/virtualMachineRevisionName");
        let key = json::join_key(json::namespace(vmi), name);
        if name.is_empty() {
            return Ok(None);
        }
        if let Some(known) = self.revisions().get(&key) {
            return Ok(Some(known.clone()));
        }
        let path = CONTROLLER_REVISIONS.path(json::namespace(vmi), name, "");
        let revision = match self.writer.client.get(Some(&self.who), &path).await {
            Ok(revision) => revision,
            Err(error) if error.code() == 404 => return Ok(None),
            Err(error) => return Err(error),
        };
        let spec = Arc::new(revision.pointer("/data/spec").cloned().unwrap_or_default());
        let mut revisions = self.revisions();
        if revisions.len() >= REVISIONS {
            revisions.clear();
        }
        revisions.insert(key, spec.clone());
        Ok(Some(spec))
    }

    pub(super) fn revisions(
        &self,
    ) -> std::sync::MutexGuard<'_, std::collections::HashMap<String, Arc<Value>>> {
        self.revisions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
