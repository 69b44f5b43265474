//! Snapshots of VMs and their restores (`pkg/storage/snapshot`, v1.9): three controllers over
//! `VirtualMachineSnapshot`, its content, and `VirtualMachineRestore`.
//!
//! ```text
//!  snapshot ──VM locked──► content ──guest frozen, a VolumeSnapshot per claim, guest thawed──► Succeeded, readyToUse
//!  restore ──VM stopped──► claims from VolumeSnapshots ──► DataVolumes ──► VM created or replaced ──► complete
//! ```

mod content;
mod restore;
mod restored_vm;
mod snapshots;
mod source;
pub mod state;

use std::sync::Arc;

use apimachinery::tree::{Value, json};
use jiff::Timestamp;
use tokio_util::sync::CancellationToken;

use super::{Caches, PassError};
use crate::sim::client::ClientError;
use crate::sim::events::{Note, Recorder};
use crate::sim::identity::Identity;
use crate::sim::json::{self, annotation, finalizers, list, text};
use crate::sim::queue::Queue;
use crate::sim::resource::Resource;
use crate::sim::storage::StorageCaches;
use crate::sim::write::{Op, Write, Writer};

const COMPONENT: &str = "snapshot-controller";
const RESTORES_COMPONENT: &str = "restore-controller";
const WORKERS: usize = 4;
/// On claims and `DataVolumes`: the restore that made them.
pub const RESTORE_NAME: &str = "restore.kubevirt.io/name";

/// The controllers.
pub struct Snapshots {
    who: Identity,
    writer: Writer,
    recorder: Recorder,
    caches: Caches,
    snapshot_queue: Queue,
    content_queue: Queue,
    restore_queue: Queue,
}

impl Snapshots {
    /// Starts them.
    pub fn start(writer: Writer, recorder: Recorder, caches: &Caches, stop: &CancellationToken) {
        let snapshots = Arc::new(Self {
            who: Identity::virt_controller(),
            writer,
            recorder,
            caches: caches.clone(),
            snapshot_queue: Queue::default(),
            content_queue: Queue::default(),
            restore_queue: Queue::default(),
        });
        snapshots.listen();
        let one = snapshots.clone();
        snapshots.snapshot_queue.run("vmsnapshot", WORKERS, stop, move |key| {
            let one = one.clone();
            async move { one.reconcile_snapshot(&key).await }
        });
        let one = snapshots.clone();
        snapshots.content_queue.run("vmsnapshotcontent", WORKERS, stop, move |key| {
            let one = one.clone();
            async move { one.reconcile_content(&key).await }
        });
        let one = snapshots.clone();
        snapshots.restore_queue.run("vmrestore", WORKERS, stop, move |key| {
            let one = one.clone();
            async move { one.reconcile_restore(&key).await }
        });
    }

    fn listen(self: &Arc<Self>) {
        let me = self.clone();
        self.caches.snapshots.on_change(move |change| {
            me.snapshot_queue.add(change.key);
            let namespace = json::namespace(change.object());
            me.content_queue.add(&json::join_key(namespace, &state::content_name(change.object())));
        });
        let me = self.clone();
        self.caches.contents.on_change(move |change| {
            me.content_queue.add(change.key);
            let content = change.object();
            let snapshot = text(content, "/spec/virtualMachineSnapshotName");
            me.snapshot_queue.add(&json::join_key(json::namespace(content), snapshot));
        });
        let me = self.clone();
        self.caches.storage.volume_snapshots.on_change(move |change| {
            let snapshot = change.object();
            let owners = list(snapshot, "/metadata/ownerReferences");
            if let Some(owner) = owners.iter().find(|one| one["kind"] == "VirtualMachineSnapshotContent") {
                me.content_queue.add(&json::join_key(json::namespace(snapshot), text(owner, "/name")));
            }
        });
        let me = self.clone();
        self.caches.restores.on_change(move |change| me.restore_queue.add(change.key));
        for cache in [&self.caches.vms, &self.caches.vmis] {
            let me = self.clone();
            cache.on_change(move |change| {
                // Nobody has snapshots of most VMs: two look-ups in empty maps.
                let (namespace, name) = (json::namespace(change.object()), json::name(change.object()));
                let here = |one: &&Arc<Value>| json::namespace(one) == namespace;
                for snapshot in me.caches.snapshots.indexed(name).iter().filter(here) {
                    me.snapshot_queue.add(&json::key(snapshot));
                }
                for restore in me.caches.restores.indexed(name).iter().filter(here) {
                    me.restore_queue.add(&json::key(restore));
                }
            });
        }
        for cache in [&self.caches.storage.claims, &self.caches.storage.data_volumes] {
            let me = self.clone();
            cache.on_change(move |change| {
                let object = change.object();
                if let Some(restore) = annotation(object, RESTORE_NAME) {
                    me.restore_queue.add(&json::join_key(json::namespace(object), restore));
                }
            });
        }
    }

    fn note(&self, about: &Value, reason: &'static str, message: String) {
        self.recorder.note(&self.who, COMPONENT, Note::normal(about, reason, message));
    }

    /// The object with a finalizer.
    async fn guarded(
        &self,
        resource: &'static Resource,
        object: &Value,
        finalizer: &str,
    ) -> Result<Value, ClientError> {
        if finalizers(object).contains(&finalizer) {
            return Ok(object.clone());
        }
        let mut new = list(object, "/metadata/finalizers").to_vec();
        new.push(finalizer.into());
        self.set_finalizers(resource, object, new).await
    }

    /// The object without it.
    async fn released(
        &self,
        resource: &'static Resource,
        object: &Value,
        finalizer: &str,
    ) -> Result<Value, ClientError> {
        if !finalizers(object).contains(&finalizer) {
            return Ok(object.clone());
        }
        let new = list(object, "/metadata/finalizers").iter().filter(|one| *one != finalizer);
        self.set_finalizers(resource, object, new.cloned().collect()).await
    }

    async fn set_finalizers(
        &self,
        resource: &'static Resource,
        object: &Value,
        new: Vec<Value>,
    ) -> Result<Value, ClientError> {
        let old = object.pointer("/metadata/finalizers").unwrap_or(&Value::Null);
        let patch = Write::test_and_replace("/metadata/finalizers", old, &new.into());
        let write = Write::to(resource, object, "", Op::JsonPatch(json!(patch)));
        self.writer.write(&self.who, &write).await.map(Arc::unwrap_or_clone)
    }

    /// Writes a status that differs.
    async fn say(
        &self,
        resource: &'static Resource,
        object: &Value,
        status: &Value,
    ) -> Result<bool, ClientError> {
        if object.get("status") == Some(status) {
            return Ok(false);
        }
        let mut new = object.clone();
        new["status"] = status.clone();
        self.writer.write(&self.who, &Write::to(resource, object, "status", Op::Update(new))).await?;
        Ok(true)
    }

    fn storage(&self) -> &StorageCaches {
        &self.caches.storage
    }
}

fn failed(message: impl Into<String>) -> PassError {
    PassError::Sync(message.into())
}

/// A condition of this API group: its words stand in the reason.
fn set_condition(conditions: &mut Vec<Value>, kind: &str, status: &str, reason: &str, now: Timestamp) {
    json::update_condition(
        conditions,
        json!({"type": kind, "status": status, "reason": reason, "lastProbeTime": null,
            "lastTransitionTime": json::time(now)}),
    );
}

/// The volumes of a VM that are claims: name of the volume, name of the claim (`GetPVCsFromVolumes`).
pub fn claims_of(vm: &Value) -> Vec<(&str, &str)> {
    list(vm, "/spec/template/spec/volumes")
        .iter()
        .filter_map(|volume| {
            let claim = super::launcher_pod::claim_of(volume)?;
            Some((text(volume, "/name"), claim))
        })
        .collect()
}

/// Which volumes of a VM can be snapshotted, and why not (`getVolumeSnapshotStatus`).
pub fn volume_statuses(vm: &Value, storage: &StorageCaches) -> Vec<Value> {
    let claims = claims_of(vm);
    list(vm, "/spec/template/spec/volumes")
        .iter()
        .map(|volume| {
            let name = text(volume, "/name");
            let refused = |reason: String| json!({"enabled": false, "name": name, "reason": reason});
            let Some((_, claim)) = claims.iter().find(|(volume, _)| *volume == name) else {
                return refused(format!("Snapshot is not supported for this volumeSource type [{name}]"));
            };
            let Some(class) = storage_class(vm, claim, storage) else { return refused("PVC not found".into()) };
            match storage.snapshot_class(&class) {
                Err(why) => refused(why),
                Ok(Some(_)) => json!({"enabled": true, "name": name}),
                Ok(None) => refused(format!(
                    "No VolumeSnapshotClass: Volume snapshots are not configured for this StorageClass [{class}] [{name}]"
                )),
            }
        })
        .collect()
}

/// The class of a claim, or of what it will be made of.
fn storage_class(vm: &Value, claim: &str, storage: &StorageCaches) -> Option<String> {
    let key = json::join_key(json::namespace(vm), claim);
    if let Some(volume) = storage.data_volumes.get(&key) {
        let named = ["/spec/pvc/storageClassName", "/spec/storage/storageClassName"]
            .iter()
            .map(|pointer| text(&volume, pointer))
            .find(|name| !name.is_empty());
        if let Some(named) = named {
            return Some(named.to_owned());
        }
    }
    storage.claims.get(&key).map(|claim| text(&claim, "/spec/storageClassName").to_owned())
}
