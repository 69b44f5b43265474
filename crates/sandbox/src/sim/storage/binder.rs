//! Claims become volumes: what kube-controller-manager's volume binder, an external provisioner and an external
//! resizer do, in one (`pkg/controller/volume/persistentvolume`, csi-provisioner, csi-resizer).
//!
//! ```text
//!  Pending ──class binds at once, or a pod on a node uses it──► content copied from dataSource ──► Bound ──larger
//!  request──► Bound with more capacity
//! ```

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use apimachinery::quantity;
use apimachinery::tree::{Value, json};
use tokio_util::sync::CancellationToken;

use super::disks::{Disks, Source};
use super::{StorageCaches, is_ours};
use crate::sim::cache::{Cache, Change};
use crate::sim::client::ClientError;
use crate::sim::events::{Note, Recorder};
use crate::sim::identity::Identity;
use crate::sim::json::{self, is_deleting, list, text};
use crate::sim::queue::Queue;
use crate::sim::resource::{CLAIMS, VOLUMES};
use crate::sim::virt_controller::launcher_pod::claim_of;
use crate::sim::write::{Op, Write, Writer};

const WORKERS: usize = 8;
/// How soon a claim is looked at again whose source is not ready.
const AGAIN: Duration = Duration::from_millis(200);
const CONTROLLER: &str = "persistentvolume-controller";

/// Binds claims, lets volumes go, and grows them.
pub struct Binder {
    who: Identity,
    writer: Writer,
    recorder: Recorder,
    caches: StorageCaches,
    disks: Arc<Disks>,
    queue: Queue,
    /// Claims that a pod on a node uses, with the uids of those pods.
    consumers: Mutex<HashMap<String, HashSet<String>>>,
    /// Claims that had one, for which the scheduler has chosen a node then.
    selected: Mutex<HashSet<String>>,
}

impl Binder {
    /// Starts it.
    pub fn start(
        writer: Writer,
        recorder: Recorder,
        (caches, pods): (&StorageCaches, &Arc<Cache>),
        disks: &Arc<Disks>,
        stop: &CancellationToken,
    ) {
        let binder = Arc::new(Self {
            who: Identity::storage(),
            writer,
            recorder,
            caches: caches.clone(),
            disks: disks.clone(),
            queue: Queue::default(),
            consumers: Mutex::default(),
            selected: Mutex::default(),
        });
        let released = Queue::default();
        let (on_claim, release) = (binder.clone(), released.clone());
        caches.claims.on_change(move |change| {
            on_claim.queue.add(change.key);
            if change.new.is_none() {
                on_claim.disks.forget(change.key);
                on_claim.selected().remove(change.key);
                let volume = text(change.object(), "/spec/volumeName");
                if !volume.is_empty() {
                    release.add(volume);
                }
            }
        });
        let on_pod = binder.clone();
        pods.on_change(move |change| on_pod.pod_changed(change));
        let (queue, working) = (binder.queue.clone(), binder.clone());
        queue.run("binder", WORKERS, stop, move |key| {
            let binder = working.clone();
            async move { binder.reconcile(&key).await }
        });
        released.run("reclaim", 2, stop, move |volume| {
            let binder = binder.clone();
            async move { binder.reclaim(&volume).await }
        });
    }

    fn consumers(&self) -> MutexGuard<'_, HashMap<String, HashSet<String>>> {
        self.consumers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn selected(&self) -> MutexGuard<'_, HashSet<String>> {
        self.selected.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pod_changed(&self, change: &Change<'_>) {
        let pod = change.object();
        if text(pod, "/spec/nodeName").is_empty() {
            return;
        }
        let over = change.new.is_none() || matches!(text(pod, "/status/phase"), "Succeeded" | "Failed");
        for claim in list(pod, "/spec/volumes").iter().filter_map(claim_of) {
            let key = json::join_key(json::namespace(pod), claim);
            let mut all = self.consumers();
            let first = if over {
                if let Some(pods) = all.get_mut(&key) {
                    pods.remove(json::uid(pod));
                    if pods.is_empty() {
                        all.remove(&key);
                    }
                }
                false
            } else {
                all.entry(key.clone()).or_default().insert(json::uid(pod).to_owned())
            };
            drop(all);
            if first {
                self.selected().insert(key.clone());
                self.queue.add(&key);
            }
        }
    }

    async fn reconcile(&self, key: &str) -> Result<Option<Duration>, ClientError> {
        let Some(claim) = self.caches.claims.get(key).filter(|claim| !is_deleting(claim)) else {
            return Ok(None);
        };
        if claim.pointer("/spec/storageClassName").is_none_or(Value::is_null) {
            // Claims made before there was a default get it later (`assignDefaultStorageClass`).
            let Some(class) = self.caches.default_class() else { return Ok(None) };
            let patch = json!({"spec": {"storageClassName": json::name(&class)}});
            self.patch(&claim, "", patch).await?;
            return Ok(Some(Duration::ZERO));
        }
        let class = self.caches.classes.get(text(&claim, "/spec/storageClassName"));
        let Some(class) = class.filter(|class| is_ours(class)) else { return Ok(None) };
        if text(&claim, "/status/phase") == "Bound" {
            self.expand(key, &claim, &class).await
        } else {
            self.provision(key, &claim, &class).await
        }
    }

    async fn patch(&self, claim: &Value, subresource: &'static str, patch: Value) -> Result<(), ClientError> {
        self.writer.write(&self.who, &Write::to(&CLAIMS, claim, subresource, Op::MergePatch(patch))).await?;
        Ok(())
    }

    async fn provision(
        &self,
        key: &str,
        claim: &Value,
        class: &Value,
    ) -> Result<Option<Duration>, ClientError> {
        let waits = text(class, "/volumeBindingMode") == "WaitForFirstConsumer";
        if waits && !self.selected().contains(key) {
            let message = "waiting for first consumer to be created before binding";
            self.recorder.note(&self.who, CONTROLLER, Note::normal(claim, "WaitForFirstConsumer", message));
            return Ok(None);
        }
        let source = match self.source_of(claim) {
            Ok(source) => source,
            Err(why) => {
                let message =
                    format!("failed to provision volume with StorageClass \"{}\": {why}", json::name(class));
                self.recorder.note(
                    &self.who,
                    text_of_driver(class),
                    Note::warning(claim, "ProvisioningFailed", message),
                );
                return Ok(Some(AGAIN));
            }
        };
        if let Some(source) = source {
            let (disks, into) = (self.disks.clone(), claim.clone());
            let copied = tokio::task::spawn_blocking(move || disks.populate(&into, &source)).await;
            let failed = match copied {
                Ok(Ok(())) => None,
                Ok(Err(error)) => Some(error.to_string()),
                Err(error) => Some(error.to_string()),
            };
            if let Some(why) = failed {
                self.recorder.note(
                    &self.who,
                    text_of_driver(class),
                    Note::warning(claim, "ProvisioningFailed", why),
                );
                return Ok(Some(AGAIN));
            }
        }
        let name = volume_name(claim);
        let note = |reason, message: String| {
            self.recorder.note(&self.who, text_of_driver(class), Note::normal(claim, reason, message));
        };
        note("Provisioning", format!("External provisioner is provisioning volume for claim \"{key}\""));
        let volume = persistent_volume(claim, class, &name);
        match self.writer.write(&self.who, &Write::create(&VOLUMES, volume.clone())).await {
            Err(error) if error.code() != 409 => return Err(error),
            _ => {}
        }
        let bound = json!({"status": {"phase": "Bound"}});
        self.writer.write(&self.who, &Write::to(&VOLUMES, &volume, "status", Op::MergePatch(bound))).await?;
        let annotations = json!({"pv.kubernetes.io/bind-completed": "yes",
            "pv.kubernetes.io/bound-by-controller": "yes",
            "volume.kubernetes.io/storage-provisioner": class["provisioner"]});
        self.patch(
            claim,
            "",
            json!({"metadata": {"annotations": annotations}, "spec": {"volumeName": name}}),
        )
        .await?;
        let status = json!({"status": {"phase": "Bound", "accessModes": claim["spec"]["accessModes"],
            "capacity": {"storage": requested(claim)}}});
        self.patch(claim, "status", status).await?;
        note("ProvisioningSucceeded", format!("Successfully provisioned volume {name}"));
        Ok(None)
    }

    /// What a claim is a copy of; `None`: nothing, it starts with what it holds.
    ///
    /// # Errors
    /// The source is not there, or not ready.
    fn source_of(&self, claim: &Value) -> Result<Option<Source>, String> {
        let source = ["/spec/dataSource", "/spec/dataSourceRef"]
            .iter()
            .find_map(|pointer| claim.pointer(pointer).filter(|source| source.is_object()));
        let Some(source) = source else { return Ok(None) };
        let namespace = match text(source, "/namespace") {
            "" => json::namespace(claim),
            namespace => namespace,
        };
        let key = json::join_key(namespace, text(source, "/name"));
        match text(source, "/kind") {
            "VolumeSnapshot" => {
                let snapshot = self.caches.volume_snapshots.get(&key).ok_or_else(|| {
                    format!("error getting snapshot {} from api server: not found", text(source, "/name"))
                })?;
                if snapshot.pointer("/status/readyToUse") != Some(&Value::Bool(true)) {
                    return Err(format!("snapshot {} is not Ready", json::name(&snapshot)));
                }
                Ok(Some(Source::Snapshot(super::snapshotter::handle_of(&snapshot))))
            }
            "PersistentVolumeClaim" => {
                let source =
                    self.caches.claims.get(&key).filter(|claim| text(claim, "/status/phase") == "Bound");
                let source = source.ok_or_else(|| {
                    format!("error getting PVC {key} from api server: not found or not bound")
                })?;
                Ok(Some(Source::Claim(source)))
            }
            // A populator fills it, which here is CDI's.
            _ => Ok(None),
        }
    }

    async fn expand(&self, key: &str, claim: &Value, class: &Value) -> Result<Option<Duration>, ClientError> {
        let bytes = |pointer: &str| claim.pointer(pointer).and_then(quantity::units).unwrap_or(0);
        let pending = "FileSystemResizePending";
        let (asked, have) = (bytes("/spec/resources/requests/storage"), bytes("/status/capacity/storage"));
        if asked <= have || class["allowVolumeExpansion"] != true {
            return Ok(None);
        }
        let name = text(claim, "/spec/volumeName").to_owned();
        let volume = json!({"metadata": {"name": name}});
        let grown = json!({"spec": {"capacity": {"storage": requested(claim)}}});
        self.writer.write(&self.who, &Write::to(&VOLUMES, &volume, "", Op::MergePatch(grown))).await?;
        let (disks, grows) = (self.disks.clone(), claim.clone());
        if let Ok(Err(error)) = tokio::task::spawn_blocking(move || disks.grow(&grows)).await {
            let message = format!(
                "resize volume \"{name}\" by resizer \"{}\" failed: {error}",
                text(class, "/provisioner")
            );
            self.recorder.note(
                &self.who,
                text_of_driver(class),
                Note::warning(claim, "VolumeResizeFailed", message),
            );
            return Ok(Some(AGAIN));
        }
        let file_system = text(claim, "/spec/volumeMode") != "Block";
        let waiting = json::condition(claim, "/status/conditions", pending).is_some();
        if file_system && self.consumers().contains_key(key) && !waiting {
            // The node's kubelet grows the file system, which the next pass is for.
            let condition = json!({"type": pending, "status": "True", "lastProbeTime": null,
                "lastTransitionTime": json::time(self.writer.client.now()),
                "message": "Waiting for user to (re-)start a pod to finish file system resize of volume on node."});
            self.patch(claim, "status", json!({"status": {"conditions": [condition]}})).await?;
            return Ok(Some(AGAIN));
        }
        let status = json!({"status": {"capacity": {"storage": requested(claim)}, "conditions": null}});
        self.patch(claim, "status", status).await?;
        let (component, reason, message) = if file_system {
            ("kubelet", "FileSystemResizeSuccessful", "MountVolume.NodeExpandVolume succeeded for volume")
        } else {
            (text_of_driver(class), "VolumeResizeSuccessful", "Resize volume succeeded")
        };
        self.recorder.note(&self.who, component, Note::normal(claim, reason, message));
        Ok(None)
    }

    /// The claim of a volume has gone: so does the volume, as its policy says.
    async fn reclaim(&self, name: &str) -> Result<Option<Duration>, ClientError> {
        let volume = match self.writer.client.get(Some(&self.who), &VOLUMES.path("", name, "")).await {
            Ok(volume) => volume,
            Err(error) if error.code() == 404 => return Ok(None),
            Err(error) => return Err(error),
        };
        let claim = self.caches.claims.get(&json::join_key(
            text(&volume, "/spec/claimRef/namespace"),
            text(&volume, "/spec/claimRef/name"),
        ));
        if claim.is_some_and(|claim| json::uid(&claim) == text(&volume, "/spec/claimRef/uid")) {
            return Ok(None);
        }
        // As long as it is bound it does not go.
        let released = json!({"status": {"phase": "Released"}});
        let mut writes = vec![Write::to(&VOLUMES, &volume, "status", Op::MergePatch(released))];
        if text(&volume, "/spec/persistentVolumeReclaimPolicy") == "Delete" {
            writes.push(Write::to(&VOLUMES, &volume, "", Op::Delete(Value::Null)));
        }
        for write in writes {
            match self.writer.write(&self.who, &write).await {
                Err(error) if error.code() != 404 => return Err(error),
                _ => {}
            }
        }
        Ok(None)
    }
}

/// The name of a class's provisioner, as a component of events.
fn text_of_driver(class: &Value) -> &'static str {
    if text(class, "/provisioner") == super::LOCAL { super::LOCAL } else { super::DRIVER }
}

/// The name of the volume behind a claim.
pub fn volume_name(claim: &Value) -> String {
    match text(claim, "/spec/volumeName") {
        "" => format!("pvc-{}", json::uid(claim)),
        name => name.to_owned(),
    }
}

fn requested(claim: &Value) -> Value {
    claim.pointer("/spec/resources/requests/storage").cloned().unwrap_or_else(|| "1Gi".into())
}

fn persistent_volume(claim: &Value, class: &Value, name: &str) -> Value {
    let mode = match text(claim, "/spec/volumeMode") {
        "" => "Filesystem",
        mode => mode,
    };
    json!({"apiVersion": "v1", "kind": "PersistentVolume",
        "metadata": {"name": name, "annotations": {"pv.kubernetes.io/provisioned-by": class["provisioner"]}},
        "spec": {"capacity": {"storage": requested(claim)}, "accessModes": claim["spec"]["accessModes"],
            "volumeMode": mode, "persistentVolumeReclaimPolicy": class["reclaimPolicy"],
            "storageClassName": json::name(class), "csi": {"driver": class["provisioner"], "volumeHandle": name},
            "claimRef": {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "namespace": json::namespace(claim),
                "name": json::name(claim), "uid": json::uid(claim)}}})
}
