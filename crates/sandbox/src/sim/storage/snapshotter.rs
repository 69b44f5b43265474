//! `VolumeSnapshots`: what the snapshot controller and csi-snapshotter do (`kubernetes-csi/external-snapshotter`, v8).
//!
//! ```text
//!  VolumeSnapshot ──claim Bound, class found──► VolumeSnapshotContent ──file copied──► readyToUse
//!        └── deleted ──► content and copy go (policy Delete) ──► finalizers go
//! ```
//!
//! The annotation [`BEHAVIOUR`] of a claim lets its snapshots fail, wait, stay unready, or take their time.

use std::sync::Arc;
use std::time::Duration;

use apimachinery::quantity;
use apimachinery::tree::{Value, json};
use jiff::Timestamp;
use tokio_util::sync::CancellationToken;

use super::StorageCaches;
use super::binder::volume_name;
use super::disks::Disks;
use crate::sim::client::ClientError;
use crate::sim::events::{Note, Recorder};
use crate::sim::identity::Identity;
use crate::sim::json::{self, annotation, finalizers, is_deleting, text, time};
use crate::sim::queue::Queue;
use crate::sim::resource::{VOLUME_SNAPSHOT_CONTENTS, VOLUME_SNAPSHOTS};
use crate::sim::write::{Op, Write, Writer};

/// On a claim: `fail`, `hold` (the driver does not answer until this says something else), `never` (snapshots are cut, and
/// never ready), or seconds until they are ready.
pub const BEHAVIOUR: &str = "sandbox.vm-feature-manager.io/snapshot";
const FINALIZERS: [&str; 2] = [
    "snapshot.storage.kubernetes.io/volumesnapshot-as-source-protection",
    "snapshot.storage.kubernetes.io/volumesnapshot-bound-protection",
];
const COMPONENT: &str = "snapshot-controller";
/// How soon one is looked at again that failed or is held.
const AGAIN: Duration = Duration::from_secs(1);

/// Cuts snapshots of volumes.
pub struct Snapshotter {
    who: Identity,
    writer: Writer,
    recorder: Recorder,
    caches: StorageCaches,
    disks: Arc<Disks>,
}

/// Where the copy is that a snapshot stands for.
pub fn handle_of(snapshot: &Value) -> String {
    format!("snap-{}", json::uid(snapshot))
}

fn content_name(snapshot: &Value) -> String {
    format!("snapcontent-{}", json::uid(snapshot))
}

impl Snapshotter {
    /// Starts it.
    pub fn start(
        writer: Writer,
        recorder: Recorder,
        caches: &StorageCaches,
        disks: &Arc<Disks>,
        stop: &CancellationToken,
    ) {
        let queue = Queue::default();
        let adding = queue.clone();
        caches.volume_snapshots.on_change(move |change| adding.add(change.key));
        let snapshotter = Arc::new(Self {
            who: Identity::storage(),
            writer,
            recorder,
            caches: caches.clone(),
            disks: disks.clone(),
        });
        queue.run("snapshotter", 4, stop, move |key| {
            let snapshotter = snapshotter.clone();
            async move { snapshotter.reconcile(&key).await }
        });
    }

    async fn reconcile(&self, key: &str) -> Result<Option<Duration>, ClientError> {
        let Some(snapshot) = self.caches.volume_snapshots.get(key) else { return Ok(None) };
        if is_deleting(&snapshot) {
            self.release(&snapshot).await?;
            return Ok(None);
        }
        if snapshot.pointer("/status/readyToUse") == Some(&Value::Bool(true)) {
            return Ok(None);
        }
        self.cut(&snapshot).await
    }

    async fn cut(&self, snapshot: &Value) -> Result<Option<Duration>, ClientError> {
        let (namespace, name) = (json::namespace(snapshot), json::name(snapshot));
        let claim_name = text(snapshot, "/spec/source/persistentVolumeClaimName");
        let claim = self.caches.claims.get(&json::join_key(namespace, claim_name));
        let Some(claim) = claim.filter(|claim| text(claim, "/status/phase") == "Bound") else {
            let why = format!(
                "snapshot controller failed to update {name} on API server: cannot get claim from snapshot or the claim {claim_name} is not bound"
            );
            return self.fail(snapshot, &why).await;
        };
        let class = self.class_of(snapshot, &claim);
        let class = match class {
            Ok(class) => class,
            Err(why) => return self.fail(snapshot, &why).await,
        };
        let behaviour = annotation(&claim, BEHAVIOUR).unwrap_or_default();
        if behaviour == "fail" {
            let why = "Failed to check and update snapshot content: failed to take snapshot of the volume: \"rpc error: code = ResourceExhausted desc = no space left for snapshots\"";
            return self.fail(snapshot, why).await;
        }
        if behaviour == "hold" {
            return Ok(Some(AGAIN));
        }
        let mut object = snapshot.clone();
        if FINALIZERS.iter().any(|one| !finalizers(snapshot).contains(one)) {
            let patch = json!({"metadata": {"finalizers": FINALIZERS,
                "resourceVersion": snapshot["metadata"]["resourceVersion"]}});
            let write = Write::to(&VOLUME_SNAPSHOTS, snapshot, "", Op::MergePatch(patch));
            object = Arc::unwrap_or_clone(self.writer.write(&self.who, &write).await?);
        }
        let content = content(&object, &claim, &class);
        match self.writer.write(&self.who, &Write::create(&VOLUME_SNAPSHOT_CONTENTS, content.clone())).await {
            Ok(_) => {
                let message =
                    format!("Waiting for a snapshot {namespace}/{name} to be created by the CSI driver.");
                self.recorder.note(&self.who, COMPONENT, Note::normal(snapshot, "CreatingSnapshot", message));
            }
            Err(error) if error.code() != 409 => return Err(error),
            Err(_) => {}
        }
        let created = text(snapshot, "/status/creationTime").parse::<Timestamp>().ok();
        if created.is_none() {
            let (disks, handle, of) = (self.disks.clone(), handle_of(snapshot), claim.clone());
            let copied = tokio::task::spawn_blocking(move || disks.snapshot(&handle, &of)).await;
            let copied = copied.map_err(std::io::Error::other).and_then(std::convert::identity);
            if let Err(error) = copied {
                return self.fail(snapshot, &error.to_string()).await;
            }
        }
        let created = created.unwrap_or_else(|| self.writer.client.now());
        let after = behaviour.parse::<u64>().map(Duration::from_secs).unwrap_or_default();
        let passed = Duration::try_from(self.writer.client.now().duration_since(created)).unwrap_or_default();
        let ready = behaviour != "never" && passed >= after;
        let size = claim.pointer("/status/capacity/storage").cloned().unwrap_or_else(|| "1Gi".into());
        let bytes = quantity::units(&size).unwrap_or(0);
        let nanos = i64::try_from(created.as_nanosecond()).unwrap_or(i64::MAX);
        let of_content = json!({"status": {"creationTime": nanos, "readyToUse": ready, "restoreSize": bytes,
            "snapshotHandle": handle_of(snapshot)}});
        let write = Write::to(&VOLUME_SNAPSHOT_CONTENTS, &content, "status", Op::MergePatch(of_content));
        self.writer.write(&self.who, &write).await?;
        let status = json!({"status": {"boundVolumeSnapshotContentName": json::name(&content),
            "creationTime": time(created), "readyToUse": ready, "restoreSize": size, "error": null}});
        let write = Write::to(&VOLUME_SNAPSHOTS, snapshot, "status", Op::MergePatch(status));
        self.writer.write(&self.who, &write).await?;
        let note = |reason, message: String| {
            self.recorder.note(&self.who, COMPONENT, Note::normal(snapshot, reason, message));
        };
        if text(snapshot, "/status/creationTime").is_empty() {
            note(
                "SnapshotCreated",
                format!("Snapshot {namespace}/{name} was successfully created by the CSI driver."),
            );
        }
        if ready {
            note("SnapshotReady", format!("Snapshot {namespace}/{name} is ready to use."));
            return Ok(None);
        }
        Ok((behaviour != "never").then(|| after.saturating_sub(passed).max(Duration::from_millis(10))))
    }

    fn class_of(&self, snapshot: &Value, claim: &Value) -> Result<Arc<Value>, String> {
        let named = text(snapshot, "/spec/volumeSnapshotClassName");
        if !named.is_empty() {
            let class = self.caches.snapshot_classes.get(named);
            return class.ok_or_else(|| format!("Failed to get snapshot class with error volumesnapshotclass.snapshot.storage.k8s.io \"{named}\" not found"));
        }
        let class = self.caches.snapshot_class(text(claim, "/spec/storageClassName"))?;
        class.ok_or_else(|| {
            "Failed to set default snapshot class with error cannot find default snapshot class".into()
        })
    }

    async fn fail(&self, snapshot: &Value, why: &str) -> Result<Option<Duration>, ClientError> {
        if text(snapshot, "/status/error/message") != why {
            let error = json!({"message": why, "time": time(self.writer.client.now())});
            let status = json!({"status": {"readyToUse": false, "error": error}});
            let write = Write::to(&VOLUME_SNAPSHOTS, snapshot, "status", Op::MergePatch(status));
            self.writer.write(&self.who, &write).await?;
            self.recorder.note(
                &self.who,
                COMPONENT,
                Note::warning(snapshot, "SnapshotContentCreationFailed", why),
            );
        }
        Ok(Some(AGAIN))
    }

    async fn release(&self, snapshot: &Value) -> Result<(), ClientError> {
        if finalizers(snapshot).iter().all(|one| !FINALIZERS.contains(one)) {
            return Ok(());
        }
        let name = content_name(snapshot);
        let path = VOLUME_SNAPSHOT_CONTENTS.path("", &name, "");
        match self.writer.client.get(Some(&self.who), &path).await {
            Ok(content) if text(&content, "/spec/deletionPolicy") != "Retain" => {
                self.disks.forget_snapshot(&handle_of(snapshot));
                let write = Write::to(&VOLUME_SNAPSHOT_CONTENTS, &content, "", Op::Delete(Value::Null));
                match self.writer.write(&self.who, &write).await {
                    Err(error) if error.code() != 404 => return Err(error),
                    _ => {}
                }
            }
            Err(error) if error.code() != 404 => return Err(error),
            _ => {}
        }
        let kept: Vec<&str> =
            finalizers(snapshot).into_iter().filter(|one| !FINALIZERS.contains(one)).collect();
        let patch = json!({"metadata": {"finalizers": kept,
            "resourceVersion": snapshot["metadata"]["resourceVersion"]}});
        let write = Write::to(&VOLUME_SNAPSHOTS, snapshot, "", Op::MergePatch(patch));
        match self.writer.write(&self.who, &write).await {
            Err(error) if error.code() != 404 => Err(error),
            _ => Ok(()),
        }
    }
}

fn content(snapshot: &Value, claim: &Value, class: &Value) -> Value {
    let mode = match text(claim, "/spec/volumeMode") {
        "" => "Filesystem",
        mode => mode,
    };
    json!({"apiVersion": "snapshot.storage.k8s.io/v1", "kind": "VolumeSnapshotContent",
        "metadata": {"name": content_name(snapshot)},
        "spec": {"deletionPolicy": class["deletionPolicy"], "driver": class["driver"],
            "source": {"volumeHandle": volume_name(claim)}, "sourceVolumeMode": mode,
            "volumeSnapshotClassName": json::name(class),
            "volumeSnapshotRef": {"apiVersion": "snapshot.storage.k8s.io/v1", "kind": "VolumeSnapshot",
                "name": json::name(snapshot), "namespace": json::namespace(snapshot), "uid": json::uid(snapshot)}}})
}
