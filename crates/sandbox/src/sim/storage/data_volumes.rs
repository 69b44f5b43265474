//! `DataVolumes`: the part of CDI (v1.63) that VMs need. A claim of the same name is made, filled and handed over.
//!
//! ```text
//!  Pending ─► (claim waits for its first pod: WaitForFirstConsumer, PendingPopulation) ─► ImportScheduled ─►
//!  ImportInProgress 0…100 % ─► Succeeded          (http, registry, s3, gcs, imageio, vddk, blank)
//!          ─► CloneScheduled ─► CSICloneInProgress ─► Succeeded              (pvc, snapshot)
//!          ─► UploadScheduled ─► UploadReady                                 (upload)
//! ```
//!
//! What is imported is not fetched: the content follows from the claim's annotations ([`super::disks`]). With the
//! annotation [`BEHAVIOUR`] `fail` an import fails again and again, as one from a server that is away.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use apimachinery::tree::{Map, Value, json};
use jiff::Timestamp;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::StorageCaches;
use super::disks::{Disks, Source};
use crate::sim::cache::Change;
use crate::sim::client::ClientError;
use crate::sim::events::{Note, Recorder};
use crate::sim::identity::Identity;
use crate::sim::json::{self, annotation, is_deleting, list, text, time};
use crate::sim::queue::Queue;
use crate::sim::resource::{CLAIMS, DATA_SOURCES, DATA_VOLUMES, STORAGE_PROFILES, VOLUME_SNAPSHOTS};
use crate::sim::write::{Op, Write, Writer};

/// On a `DataVolume`: `fail`.
pub const BEHAVIOUR: &str = "sandbox.vm-feature-manager.io/import";
/// On a claim: the `DataVolume` that it was filled for by somebody else.
pub const POPULATED_FOR: &str = "cdi.kubevirt.io/storage.populatedFor";
/// On a `DataVolume`: its claim is there already, or will be, and is not CDI's to make.
pub const PREPOPULATED: &str = "cdi.kubevirt.io/storage.prePopulated";
const CONTENT_TYPE: &str = "cdi.kubevirt.io/storage.contentType";
const COMPONENT: &str = "datavolume-import-controller";
/// How long one step of an import takes.
const STEP: Duration = Duration::from_millis(150);
/// What an import has done after each step, percent.
const STEPS: [u32; 4] = [12, 48, 83, 100];

/// Fills `DataVolumes`.
pub struct DataVolumes {
    who: Identity,
    writer: Writer,
    recorder: Recorder,
    caches: StorageCaches,
    disks: Arc<Disks>,
    /// When the next step of a transfer is due: its own writes must not hurry it.
    due: Mutex<HashMap<String, Instant>>,
}

/// How a `DataVolume` comes to its content.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Way {
    Import,
    Clone,
    Upload,
}

impl Way {
    fn of(source: &Value) -> Self {
        if source.get("pvc").is_some() || source.get("snapshot").is_some() {
            Self::Clone
        } else if source.get("upload").is_some() {
            Self::Upload
        } else {
            Self::Import
        }
    }

    fn scheduled(self) -> &'static str {
        match self {
            Self::Import => "ImportScheduled",
            Self::Clone => "CloneScheduled",
            Self::Upload => "UploadScheduled",
        }
    }
}

impl DataVolumes {
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
        caches.data_volumes.on_change(move |change| adding.add(change.key));
        let adding = queue.clone();
        caches.claims.on_change(move |change: &Change<'_>| {
            let claim = change.object();
            let populated = annotation(claim, POPULATED_FOR).unwrap_or_default();
            let owners = list(claim, "/metadata/ownerReferences");
            let owner = owners.iter().find(|one| one["kind"] == DATA_VOLUMES.kind);
            for name in [owner.map_or("", |one| text(one, "/name")), populated] {
                if !name.is_empty() {
                    adding.add(&json::join_key(json::namespace(claim), name));
                }
            }
        });
        let volumes = Arc::new(Self {
            who: Identity::cdi(),
            writer,
            recorder,
            caches: caches.clone(),
            disks: disks.clone(),
            due: Mutex::default(),
        });
        queue.run("datavolumes", 4, stop, move |key| {
            let volumes = volumes.clone();
            async move { volumes.reconcile(&key).await }
        });
    }

    async fn reconcile(&self, key: &str) -> Result<Option<Duration>, ClientError> {
        let Some(volume) = self.caches.data_volumes.get(key).filter(|volume| !is_deleting(volume)) else {
            self.due().remove(key);
            return Ok(None);
        };
        let phase = text(&volume, "/status/phase");
        if matches!(phase, "Succeeded" | "UploadReady") {
            return self.finished(key, &volume).await;
        }
        let Some(claim) = self.claim_of(key, &volume).await? else { return Ok(None) };
        if annotation(&claim, POPULATED_FOR) == Some(json::name(&volume))
            || annotation(&volume, PREPOPULATED).is_some()
        {
            return self.succeed(&volume, "").await;
        }
        let source = self.source_of(&volume).await?;
        let way = Way::of(&source);
        if text(&claim, "/status/phase") != "Bound" {
            let class = self.caches.classes.get(text(&claim, "/spec/storageClassName"));
            let waits =
                class.is_some_and(|class| text(&class, "/volumeBindingMode") == "WaitForFirstConsumer");
            let phase = if waits { "WaitForFirstConsumer" } else { "Pending" };
            self.say(&volume, phase, "N/A", false).await?;
            return Ok(None);
        }
        let left = self.due().get(key).map(|due| due.saturating_duration_since(Instant::now()));
        if let Some(left) = left.filter(|left| !left.is_zero()) {
            return Ok(Some(left));
        }
        let next = self.step(&volume, &claim, &source, way).await?;
        match next {
            Some(after) => self.due().insert(key.to_owned(), Instant::now() + after),
            None => self.due().remove(key),
        };
        Ok(next)
    }

    fn due(&self) -> std::sync::MutexGuard<'_, HashMap<String, Instant>> {
        self.due.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One step of a transfer into a claim that is bound; how long the next one takes.
    async fn step(
        &self,
        volume: &Value,
        claim: &Value,
        source: &Value,
        way: Way,
    ) -> Result<Option<Duration>, ClientError> {
        match text(volume, "/status/phase") {
            "" | "Pending" | "WaitForFirstConsumer" | "PendingPopulation" => {
                self.note(
                    volume,
                    way.scheduled(),
                    &format!("{} into {} scheduled", verb(way), json::name(volume)),
                );
                self.say(volume, way.scheduled(), "N/A", true).await?;
                Ok(Some(STEP))
            }
            _ if way == Way::Upload => {
                self.fill(claim, Source::Blank).await;
                self.say(volume, "UploadReady", "N/A", true).await?;
                Ok(None)
            }
            _ if way == Way::Clone => self.clone_step(volume, claim, source).await,
            _ => self.import_step(volume, claim, source).await,
        }
    }

    /// One whose claim was taken away waits, or begins again.
    async fn finished(&self, key: &str, volume: &Value) -> Result<Option<Duration>, ClientError> {
        let claim_name = match text(volume, "/status/claimName") {
            "" => json::name(volume),
            name => name,
        };
        if self.caches.claims.get(&json::join_key(json::namespace(volume), claim_name)).is_some() {
            if let Some(claim) = self.caches.claims.get(key) {
                self.adopt(&claim, volume).await?;
            }
            return Ok(None);
        }
        Ok(None)
    }

    async fn import_step(
        &self,
        volume: &Value,
        claim: &Value,
        source: &Value,
    ) -> Result<Option<Duration>, ClientError> {
        if annotation(volume, BEHAVIOUR) == Some("fail") {
            let restarts = json::integer(volume, "/status/restartCount") + 1;
            let message = "Unable to connect to http data source: expected status code 200, got 503. Status: 503 Service Unavailable";
            let status = json!({"status": {"phase": "ImportInProgress", "progress": "N/A", "restartCount": restarts,
                "conditions": conditions(volume, "ImportInProgress", true, Some(message), self.writer.client.now())}});
            let write = Write::to(&DATA_VOLUMES, volume, "status", Op::MergePatch(status));
            self.writer.write(&self.who, &write).await?;
            self.recorder.note(&self.who, COMPONENT, Note::warning(volume, "Error", message));
            return Ok(Some(Duration::from_secs(u64::try_from(restarts.clamp(1, 300)).unwrap_or(300))));
        }
        let done = text(volume, "/status/progress").trim_end_matches('%').parse::<f64>().unwrap_or(0.0);
        if let Some(next) = STEPS.iter().find(|step| f64::from(**step) > done) {
            if text(volume, "/status/phase") != "ImportInProgress" {
                self.note(
                    volume,
                    "ImportInProgress",
                    &format!("Import into {} in progress", json::name(volume)),
                );
            }
            self.say(volume, "ImportInProgress", &format!("{next}.0%"), true).await?;
            return Ok(Some(STEP));
        }
        let content = if source.get("blank").is_some() { Source::Blank } else { Source::Own };
        if !self.fill(claim, content).await {
            return Ok(Some(STEP * 10));
        }
        let message = format!("Successfully imported into PVC {}", json::name(claim));
        self.note(volume, "ImportSucceeded", &message);
        self.succeed(volume, "100.0%").await
    }

    async fn clone_step(
        &self,
        volume: &Value,
        claim: &Value,
        source: &Value,
    ) -> Result<Option<Duration>, ClientError> {
        let named = source.get("pvc").or_else(|| source.get("snapshot")).cloned().unwrap_or_default();
        let namespace = match text(&named, "/namespace") {
            "" => json::namespace(volume),
            namespace => namespace,
        };
        let key = json::join_key(namespace, text(&named, "/name"));
        let from = if source.get("pvc").is_some() {
            self.caches
                .claims
                .get(&key)
                .filter(|one| text(one, "/status/phase") == "Bound")
                .map(Source::Claim)
        } else {
            let ready = |one: &Arc<Value>| one.pointer("/status/readyToUse") == Some(&Value::Bool(true));
            let snapshot = self.caches.volume_snapshots.get(&key).filter(ready);
            snapshot.map(|one| Source::Snapshot(super::snapshotter::handle_of(&one)))
        };
        let Some(from) = from else {
            let kind = if source.get("pvc").is_some() { CLAIMS.kind } else { VOLUME_SNAPSHOTS.kind };
            self.recorder.note(
                &self.who,
                COMPONENT,
                Note::warning(volume, "CloneWithoutSource", format!("The source {kind} {key} doesn't exist")),
            );
            return Ok(Some(STEP * 4));
        };
        if text(volume, "/status/phase") == "CloneScheduled" {
            self.note(volume, "CSICloneInProgress", &format!("CSI Volume clone in progress (for pvc {key})"));
            self.say(volume, "CSICloneInProgress", "N/A", true).await?;
            return Ok(Some(STEP));
        }
        if !self.fill(claim, from).await {
            return Ok(Some(STEP * 10));
        }
        self.note(
            volume,
            "CloneSucceeded",
            &format!("Successfully cloned from {key} into {}", json::key(claim)),
        );
        self.succeed(volume, "100.0%").await
    }

    async fn fill(&self, claim: &Value, source: Source) -> bool {
        let (disks, claim) = (self.disks.clone(), claim.clone());
        let filled = tokio::task::spawn_blocking(move || disks.populate(&claim, &source)).await;
        let filled = filled.map_err(std::io::Error::other).and_then(std::convert::identity);
        if let Err(error) = &filled {
            tracing::warn!(%error, "a disk of the sandbox was not filled");
        }
        filled.is_ok()
    }

    async fn succeed(&self, volume: &Value, progress: &str) -> Result<Option<Duration>, ClientError> {
        let progress = if progress.is_empty() { "N/A" } else { progress };
        let key = json::key(volume);
        if let Some(claim) = self.caches.claims.get(&key) {
            self.adopt(&claim, volume).await?;
        }
        self.say(volume, "Succeeded", progress, true).await?;
        Ok(None)
    }

    /// Makes a claim the volume's own when nobody owns it.
    async fn adopt(&self, claim: &Value, volume: &Value) -> Result<(), ClientError> {
        if !list(claim, "/metadata/ownerReferences").is_empty() {
            return Ok(());
        }
        let patch = json!({"metadata": {"ownerReferences": [owner(volume)]}});
        self.writer.write(&self.who, &Write::to(&CLAIMS, claim, "", Op::MergePatch(patch))).await?;
        Ok(())
    }

    /// The claim of a volume; it is made when it is CDI's to make.
    async fn claim_of(&self, key: &str, volume: &Value) -> Result<Option<Arc<Value>>, ClientError> {
        if let Some(claim) = self.caches.claims.get(key) {
            let owned = json::controller_uid(&claim) == json::uid(volume);
            let free = list(&claim, "/metadata/ownerReferences").is_empty()
                && annotation(&claim, POPULATED_FOR) == Some(json::name(volume));
            if owned || free || annotation(volume, PREPOPULATED).is_some() {
                return Ok(Some(claim));
            }
            let message = format!(
                "Resource \"{}\" already exists and is not managed by DataVolume",
                json::name(volume)
            );
            self.recorder.note(&self.who, COMPONENT, Note::warning(volume, "ErrResourceExists", message));
            return Ok(None);
        }
        if annotation(volume, PREPOPULATED).is_some() {
            return Ok(None);
        }
        let spec = match self.claim_spec(volume).await? {
            Ok(spec) => spec,
            Err(why) => {
                self.say(volume, "Pending", "N/A", false).await?;
                self.recorder.note(&self.who, COMPONENT, Note::warning(volume, "ErrClaimNotValid", why));
                return Ok(None);
            }
        };
        let mut annotations =
            volume.pointer("/metadata/annotations").and_then(Value::as_object).cloned().unwrap_or_default();
        annotations.retain(|key, _| key != "kubectl.kubernetes.io/last-applied-configuration");
        let content = match text(volume, "/spec/contentType") {
            "" => "kubevirt",
            content => content,
        };
        annotations.insert(CONTENT_TYPE.into(), content.into());
        let mut labels: Map =
            volume.pointer("/metadata/labels").and_then(Value::as_object).cloned().unwrap_or_default();
        for (key, value) in [
            ("app", "containerized-data-importer"),
            ("app.kubernetes.io/component", "storage"),
            ("app.kubernetes.io/managed-by", "cdi-controller"),
        ] {
            labels.insert(key.into(), value.into());
        }
        let claim = json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim",
            "metadata": {"name": json::name(volume), "namespace": json::namespace(volume), "labels": labels,
                "annotations": annotations, "ownerReferences": [owner(volume)]},
            "spec": spec});
        match self.writer.write(&self.who, &Write::create(&CLAIMS, claim)).await {
            Ok(claim) => {
                let why = format!("PVC {} Pending", json::name(&claim));
                self.note(volume, "Pending", &why);
                self.say(volume, "Pending", "N/A", false).await?;
                Ok(None)
            }
            Err(error) if error.code() == 409 => Ok(None),
            Err(error) if matches!(error.code(), 403 | 422) => {
                // Over quota, above all (`ErrExceededQuota`).
                let reason = if error.message().contains("exceeded quota") {
                    "ErrExceededQuota"
                } else {
                    "ErrClaimNotValid"
                };
                self.recorder.note(&self.who, COMPONENT, Note::warning(volume, reason, error.message()));
                self.say(volume, "Pending", "N/A", false).await?;
                Err(error)
            }
            Err(error) => Err(error),
        }
    }

    /// The spec of the claim: `spec.pvc` as it is, or `spec.storage` with what the storage profile knows.
    async fn claim_spec(&self, volume: &Value) -> Result<Result<Value, String>, ClientError> {
        if let Some(spec) = volume.pointer("/spec/pvc") {
            return Ok(Ok(spec.clone()));
        }
        let Some(mut spec) = volume.pointer("/spec/storage").cloned() else {
            return Ok(Err("neither spec.pvc nor spec.storage is set".into()));
        };
        let class = match text(&spec, "/storageClassName") {
            "" => self.caches.default_class().map(|class| json::name(&class).to_owned()),
            name => Some(name.to_owned()),
        };
        let Some(class) = class else {
            return Ok(Err(
                "no accessMode specified in StorageProfile, and there is no default storage class".into(),
            ));
        };
        spec["storageClassName"] = class.as_str().into();
        let profile = self.get(&STORAGE_PROFILES.path("", &class, "")).await?.unwrap_or_default();
        let first = profile.pointer("/status/claimPropertySets/0").cloned().unwrap_or_default();
        let modes_missing = list(&spec, "/accessModes").is_empty();
        if text(&spec, "/volumeMode").is_empty() {
            let wanted = spec.get("accessModes").cloned();
            let set = list(&profile, "/status/claimPropertySets")
                .iter()
                .find(|set| modes_missing || Some(&set["accessModes"]) == wanted.as_ref())
                .cloned()
                .unwrap_or_else(|| first.clone());
            spec["volumeMode"] = match text(&set, "/volumeMode") {
                "" => "Filesystem".into(),
                mode => mode.into(),
            };
        }
        if modes_missing {
            let modes = first.get("accessModes").cloned();
            let Some(modes) = modes else {
                return Ok(Err(format!("no accessMode specified in StorageProfile {class}")));
            };
            spec["accessModes"] = modes;
        }
        if spec.pointer("/resources/requests/storage").is_none() {
            // A clone takes the size of what it is a clone of.
            let source = self.source_of(volume).await?;
            let from = source.get("pvc").cloned().unwrap_or_default();
            let namespace = match text(&from, "/namespace") {
                "" => json::namespace(volume),
                namespace => namespace,
            };
            let claim = self.caches.claims.get(&json::join_key(namespace, text(&from, "/name")));
            let size = claim.and_then(|claim| claim.pointer("/status/capacity/storage").cloned());
            let Some(size) = size else {
                return Ok(Err("the size is not known: spec.storage.resources is missing".into()));
            };
            json::put(&mut spec, &["resources", "requests", "storage"], size);
        }
        Ok(Ok(spec))
    }

    /// `spec.source`, or what the `DataSource` of `spec.sourceRef` stands for.
    async fn source_of(&self, volume: &Value) -> Result<Value, ClientError> {
        if let Some(reference) = volume.pointer("/spec/sourceRef") {
            let namespace = match text(reference, "/namespace") {
                "" => json::namespace(volume),
                namespace => namespace,
            };
            let path = DATA_SOURCES.path(namespace, text(reference, "/name"), "");
            let source = self.get(&path).await?.unwrap_or_default();
            return Ok(source.pointer("/spec/source").cloned().unwrap_or_default());
        }
        Ok(volume.pointer("/spec/source").cloned().unwrap_or_default())
    }

    async fn get(&self, path: &str) -> Result<Option<Value>, ClientError> {
        match self.writer.client.get(Some(&self.who), path).await {
            Ok(object) => Ok(Some(object)),
            Err(error) if error.code() == 404 => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn say(&self, volume: &Value, phase: &str, progress: &str, bound: bool) -> Result<(), ClientError> {
        let mut status = json!({"phase": phase, "claimName": json::name(volume), "progress": progress,
            "conditions": conditions(volume, phase, bound, None, self.writer.client.now())});
        let same = |key: &str| volume.pointer(&format!("/status/{key}")) == status.get(key);
        if ["phase", "claimName", "progress", "conditions"].iter().all(|key| same(key)) {
            return Ok(());
        }
        if phase == "Succeeded" {
            status["restartCount"] = json::integer(volume, "/status/restartCount").into();
        }
        let write = Write::to(&DATA_VOLUMES, volume, "status", Op::MergePatch(json!({"status": status})));
        self.writer.write(&self.who, &write).await?;
        Ok(())
    }

    fn note(&self, volume: &Value, reason: &'static str, message: &str) {
        self.recorder.note(&self.who, COMPONENT, Note::normal(volume, reason, message));
    }
}

fn verb(way: Way) -> &'static str {
    match way {
        Way::Import => "Import",
        Way::Clone => "Cloning from source",
        Way::Upload => "Upload",
    }
}

fn owner(volume: &Value) -> Value {
    json!({"apiVersion": "cdi.kubevirt.io/v1beta1", "kind": "DataVolume", "name": json::name(volume),
        "uid": json::uid(volume), "controller": true, "blockOwnerDeletion": true})
}

/// `Bound`, `Running`, `Ready`, with the times of those that stay as they are.
fn conditions(volume: &Value, phase: &str, bound: bool, failure: Option<&str>, now: Timestamp) -> Value {
    let now = time(now);
    let name = json::name(volume);
    let done = matches!(phase, "Succeeded" | "UploadReady");
    let working =
        !matches!(phase, "Succeeded" | "" | "Pending" | "WaitForFirstConsumer" | "PendingPopulation");
    let wanted = [
        (
            "Bound",
            bound,
            if bound { "Bound" } else { "Pending" },
            format!("PVC {name} {}", if bound { "Bound" } else { "Pending" }),
        ),
        (
            "Running",
            working && failure.is_none(),
            match (failure, phase) {
                (Some(_), _) => "Error",
                (None, "Succeeded") => "Completed",
                _ if working => "Pod is running",
                _ => "",
            },
            failure.map_or_else(
                || if phase == "Succeeded" { "Import Complete".to_owned() } else { String::new() },
                str::to_owned,
            ),
        ),
        ("Ready", done, if done { "Ready" } else { "TransferRunning" }, String::new()),
    ];
    wanted
        .into_iter()
        .map(|(kind, on, reason, message)| {
            let status = if on { "True" } else { "False" };
            let known = json::condition(volume, "/status/conditions", kind);
            let since = known.filter(|one| one["status"] == status).map(|one| text(one, "/lastTransitionTime"));
            let since = since.filter(|at| !at.is_empty()).unwrap_or(&now);
            let heard = known.filter(|one| one["status"] == status).map(|one| text(one, "/lastHeartbeatTime"));
            let heard = heard.filter(|at| !at.is_empty()).unwrap_or(&now);
            let mut condition = json!({"type": kind, "status": status, "lastTransitionTime": since, "lastHeartbeatTime": heard});
            for (key, value) in [("reason", reason.to_owned()), ("message", message)] {
                if !value.is_empty() {
                    condition[key] = value.into();
                }
            }
            condition
        })
        .collect()
}

/// Whether a volume's content is all there, or will be when a pod uses it.
pub fn is_usable(volume: &Value) -> bool {
    matches!(text(volume, "/status/phase"), "Succeeded" | "WaitForFirstConsumer" | "PendingPopulation")
}
