//! The storage of the simulated cluster: classes, claims that bind, snapshots of volumes, `DataVolumes`. What a claim
//! holds is a sparse file ([`disks`]); clones and snapshots copy it, restores bring it back.
//!
//! ```text
//!  DataVolume ─cdi─► PersistentVolumeClaim ─binder─► PersistentVolume      file NAMESPACE_CLAIM
//!                          ▲        │                                        │ copy
//!                          │        └─ VolumeSnapshot ─snapshotter─► VolumeSnapshotContent   file snapshots/HANDLE
//!                          └── dataSource ──┘                                │ copy
//! ```
//!
//! | class | binds | snapshots | grows | shared between nodes |
//! |---|---|---|---|---|
//! | `standard` (default) | at once | yes | yes | yes |
//! | `local` | with its first pod | no | no | no |

pub mod binder;
pub mod data_volumes;
pub mod disks;
pub mod snapshotter;

use std::sync::Arc;

use apimachinery::tree::{Value, json};
use tokio_util::sync::CancellationToken;

use super::cache::Cache;
use super::events::Recorder;
use super::json::text;
use super::resource::{self, Resource};
use super::write::Writer;
use disks::Disks;

/// The CSI driver of the classes with snapshots.
pub const DRIVER: &str = "sandbox.vm-feature-manager.io";
/// The provisioner of volumes that stay on their node.
pub const LOCAL: &str = "local.sandbox.vm-feature-manager.io";
/// The class that claims get which name none.
pub const DEFAULT_CLASS: &str = "standard";
const IS_DEFAULT: &str = "storageclass.kubernetes.io/is-default-class";

/// The caches of what storage is made of.
#[derive(Clone)]
pub struct StorageCaches {
    pub claims: Arc<Cache>,
    pub classes: Arc<Cache>,
    pub snapshot_classes: Arc<Cache>,
    pub volume_snapshots: Arc<Cache>,
    pub data_volumes: Arc<Cache>,
}

impl StorageCaches {
    /// Empty ones, that somebody has to run.
    pub fn new() -> Self {
        Self {
            claims: Cache::new(&resource::CLAIMS, |_| ""),
            classes: Cache::new(&resource::STORAGE_CLASSES, |_| ""),
            snapshot_classes: Cache::new(&resource::VOLUME_SNAPSHOT_CLASSES, |_| ""),
            volume_snapshots: Cache::new(&resource::VOLUME_SNAPSHOTS, |_| ""),
            data_volumes: Cache::new(&resource::DATA_VOLUMES, |_| ""),
        }
    }

    /// All of them.
    pub fn all(&self) -> [Arc<Cache>; 5] {
        [&self.claims, &self.classes, &self.snapshot_classes, &self.volume_snapshots, &self.data_volumes]
            .map(Arc::clone)
    }

    /// The class for claims that name none.
    pub fn default_class(&self) -> Option<Arc<Value>> {
        let is_default = |class: &Arc<Value>| super::json::annotation(class, IS_DEFAULT) == Some("true");
        self.classes.all().into_iter().find(is_default)
    }

    /// The snapshot class for a storage class (`getVolumeSnapshotClassName`).
    ///
    /// # Errors
    /// Several match, and none of them is the default.
    pub fn snapshot_class(&self, storage_class: &str) -> Result<Option<Arc<Value>>, String> {
        let Some(class) = self.classes.get(storage_class) else { return Ok(None) };
        let mut matching = self.snapshot_classes.all();
        matching.retain(|one| text(one, "/driver") == text(&class, "/provisioner"));
        if matching.len() <= 1 {
            return Ok(matching.pop());
        }
        let count = matching.len();
        let default = "snapshot.storage.kubernetes.io/is-default-class";
        matching
            .into_iter()
            .find(|one| super::json::annotation(one, default).is_some())
            .map(Some)
            .ok_or_else(|| format!("{count} matching VolumeSnapshotClasses for {storage_class}"))
    }
}

/// What the cluster has from the start: classes, and what CDI knows of them.
pub fn objects() -> Vec<(&'static Resource, Value)> {
    let class = |name: &str, provisioner: &str, binding: &str, grows: bool, default: bool| {
        let mut class = json!({"apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": {"name": name},
            "provisioner": provisioner, "reclaimPolicy": "Delete", "volumeBindingMode": binding,
            "allowVolumeExpansion": grows});
        if default {
            class["metadata"]["annotations"] = json!({(IS_DEFAULT): "true"});
        }
        (&resource::STORAGE_CLASSES, class)
    };
    let profile = |name: &str, provisioner: &str, modes: Value, snapshots: Option<&str>| {
        let mut status = json!({"storageClass": name, "provisioner": provisioner,
            "cloneStrategy": if snapshots.is_some() { "csi-clone" } else { "copy" },
            "dataImportCronSourceFormat": if snapshots.is_some() { "snapshot" } else { "pvc" },
            "claimPropertySets": modes});
        if let Some(class) = snapshots {
            status["snapshotClass"] = class.into();
        }
        let profile = json!({"apiVersion": "cdi.kubevirt.io/v1beta1", "kind": "StorageProfile",
            "metadata": {"name": name}, "spec": {}, "status": status});
        (&resource::STORAGE_PROFILES, profile)
    };
    let set = |modes: &[&str], mode: &str| json!({"accessModes": modes, "volumeMode": mode});
    vec![
        class(DEFAULT_CLASS, DRIVER, "Immediate", true, true),
        class("local", LOCAL, "WaitForFirstConsumer", false, false),
        (
            &resource::VOLUME_SNAPSHOT_CLASSES,
            json!({"apiVersion": "snapshot.storage.k8s.io/v1", "kind": "VolumeSnapshotClass",
                "metadata": {"name": "standard-snapshots",
                    "annotations": {"snapshot.storage.kubernetes.io/is-default-class": "true"}},
                "driver": DRIVER, "deletionPolicy": "Delete"}),
        ),
        profile(
            DEFAULT_CLASS,
            DRIVER,
            json!([
                set(&["ReadWriteMany"], "Block"),
                set(&["ReadWriteOnce"], "Block"),
                set(&["ReadWriteOnce"], "Filesystem")
            ]),
            Some("standard-snapshots"),
        ),
        profile("local", LOCAL, json!([set(&["ReadWriteOnce"], "Filesystem")]), None),
        (
            &resource::CDIS,
            json!({"apiVersion": "cdi.kubevirt.io/v1beta1", "kind": "CDI", "metadata": {"name": "cdi"},
                "spec": {"config": {"featureGates": ["HonorWaitForFirstConsumer"]}},
                "status": {"phase": "Deployed", "observedVersion": "v1.63.1", "targetVersion": "v1.63.1"}}),
        ),
    ]
}

/// Starts everything that makes storage work.
pub fn start(
    writer: &Writer,
    recorder: &Recorder,
    (caches, pods): (&StorageCaches, &Arc<Cache>),
    disks: &Arc<Disks>,
    stop: &CancellationToken,
) {
    binder::Binder::start(writer.clone(), recorder.clone(), (caches, pods), disks, stop);
    snapshotter::Snapshotter::start(writer.clone(), recorder.clone(), caches, disks, stop);
    data_volumes::DataVolumes::start(writer.clone(), recorder.clone(), caches, disks, stop);
}

/// Whether the simulation provides a class.
pub fn is_ours(class: &Value) -> bool {
    matches!(text(class, "/provisioner"), DRIVER | LOCAL)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_class_with_snapshots_has_one_for_its_driver_and_the_other_none() {
        let caches = StorageCaches::new();
        for (resource, object) in objects() {
            let cache = [&caches.classes, &caches.snapshot_classes]
                .into_iter()
                .find(|one| one.resource() == resource);
            if let Some(cache) = cache {
                let mut object = object;
                object["metadata"]["resourceVersion"] = "1".into();
                cache.observe(object);
            }
        }
        let name = |class: &str| {
            let found = caches.snapshot_class(class).unwrap();
            found.map_or(String::new(), |one| super::super::json::name(&one).to_owned())
        };
        assert_eq!(
            (name("standard"), name("local"), name("none")),
            ("standard-snapshots".into(), String::new(), String::new())
        );
        assert_eq!(super::super::json::name(&caches.default_class().unwrap()), DEFAULT_CLASS);
        let second = json!({"metadata": {"name": "x", "resourceVersion": "2"}, "driver": DRIVER});
        caches.snapshot_classes.observe(second.clone());
        assert_eq!(name("standard"), "standard-snapshots", "the default of two");
    }
}
