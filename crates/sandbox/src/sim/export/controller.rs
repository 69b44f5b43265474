//! The controller: observes an export with its source, decides, writes its status, tells the server.

use std::sync::Arc;
use std::time::Duration;

use apimachinery::tree::{Value, json};
use tokio_util::sync::CancellationToken;

use super::super::SimError;
use super::super::backup::{Sources, guests::Guests};
use super::super::cache::Cache;
use super::super::client::{Client, ClientError};
use super::super::identity::Identity;
use super::super::json::{annotation, join_key, key, list, name, namespace, remove, text, uid};
use super::super::queue::Queue;
use super::super::resource::{
    BACKUP_TRACKERS, BACKUPS, CLAIMS, EXPORTS, EXPORTS_V1BETA1, SECRETS, SNAPSHOT_CONTENTS, SNAPSHOTS,
};
use super::super::storage::disks::Disks;
use super::super::write::{Op, Write, Writer};
use super::decide::{Observation, claims_of, decide};
use super::server::{Exports, Served, Tunnel};

/// How soon an export is looked at again while it waits for something that has no cache.
const AGAIN: Duration = Duration::from_millis(250);

/// Every export has this as its second key in the cache.
const ALL: &str = "all";

/// Starts controller and server. Disks are made below `directory`.
pub async fn start(
    writer: Writer,
    sources: &Sources<'_>,
    guests: Arc<Guests>,
    stop: &CancellationToken,
) -> Result<Exports, SimError> {
    let setup = |error: Box<dyn std::error::Error + Send + Sync>| SimError::Setup(error);
    let exports = Exports::start(writer.client.network(), stop).await.map_err(setup)?;
    let (vms, vmis) = (sources.vms, sources.vmis);
    let served = if sources.release.serves_export_v1() { &EXPORTS } else { &EXPORTS_V1BETA1 };
    let cache = Cache::new(served, |_| ALL);
    let controller = Arc::new(Controller {
        client: writer.client.clone(),
        writer,
        cache: cache.clone(),
        vms: vms.clone(),
        vmis: vmis.clone(),
        disks: sources.disks.clone(),
        guests,
        exports: exports.clone(),
        who: Identity::virt_controller(),
    });
    let queue = Queue::default();
    let (adding, all) = (queue.clone(), cache.clone());
    cache.on_change(move |change| adding.add(change.key));
    for source in [vms, vmis] {
        let (adding, all) = (queue.clone(), all.clone());
        source.on_change(move |change| {
            // A VM that starts ends its export, one that stops lets it begin.
            let mentioned = |export: &Value| {
                namespace(export) == namespace(change.object())
                    && (text(export, "/spec/source/name") == name(change.object())
                        || text(export, "/status/virtualMachineName") == name(change.object()))
            };
            for export in all.indexed(ALL).iter().filter(|export| mentioned(export)) {
                adding.add(&key(export));
            }
        });
    }
    let (rotated, listening, adding) = (exports.clone(), stop.clone(), queue.clone());
    tokio::spawn(async move {
        loop {
            tokio::select! {
                biased;
                () = listening.cancelled() => return,
                () = rotated.rotated() => all.indexed(ALL).iter().for_each(|export| adding.add(&key(export))),
            }
        }
    });
    tokio::spawn(cache.run(controller.client.clone(), stop.clone()));
    queue.run("export", 2, stop, move |key| {
        let controller = controller.clone();
        async move { controller.reconcile(&key).await }
    });
    Ok(exports)
}

struct Controller {
    client: Client,
    writer: Writer,
    cache: Arc<Cache>,
    vms: Arc<Cache>,
    vmis: Arc<Cache>,
    disks: Arc<Disks>,
    guests: Arc<Guests>,
    exports: Exports,
    who: Identity,
}

impl Controller {
    async fn reconcile(&self, key: &str) -> Result<Option<Duration>, ClientError> {
        let Some(export) = self.cache.get(key) else {
            self.exports.forget(key);
            return Ok(None);
        };
        let ns = namespace(&export);
        let source = &export["spec"]["source"];
        let snapshot = match text(source, "/kind") {
            "VirtualMachineSnapshot" => self.read(&SNAPSHOTS.path(ns, text(source, "/name"), "")).await?,
            _ => None,
        };
        let backup = match text(source, "/kind") {
            "VirtualMachineBackup" => self.read(&BACKUPS.path(ns, text(source, "/name"), "")).await?,
            _ => None,
        };
        let vm_name = match &snapshot {
            Some(snapshot) => text(snapshot, "/spec/source/name"),
            None => text(source, "/name"),
        };
        let (vm, vmi) = match text(source, "/kind") {
            "PersistentVolumeClaim" | "VirtualMachineBackup" => (None, None),
            _ => (self.vms.get(&join_key(ns, vm_name)), self.vmis.get(&join_key(ns, vm_name))),
        };
        let claims = if let Some(snapshot) = &snapshot {
            self.restored(&export, snapshot).await?
        } else {
            let mut claims = Vec::new();
            for claim in claims_of(source, vm.as_deref()) {
                let found = self.read(&CLAIMS.path(ns, &claim, "")).await?;
                claims.push((claim, found));
            }
            claims
        };
        let (token_secret, secret) = self.secret(&export).await?;
        let token = secret.as_ref().and_then(token_of);
        let (url, ca) = self.exports.address();
        let seen = Observation {
            export: &export,
            vm: vm.as_deref(),
            vmi: vmi.as_deref(),
            snapshot: snapshot.as_ref(),
            backup: backup.as_ref(),
            claims: &claims,
            token_secret: &token_secret,
            has_token: token.is_some(),
            url: &url,
            ca: &ca,
        };
        let decision = decide(&seen, self.client.now());
        if decision.delete {
            self.exports.forget(key);
            let write = Write::to(self.cache.resource(), &export, "", Op::Delete(Value::Null));
            self.writer.write(&self.who, &write).await?;
            return Ok(None);
        }
        match &backup {
            Some(backup) => self.serve_backup(key, &export, backup, token).await?,
            None => self.serve(key, &decision.serve, &claims, token),
        }
        if export.get("status") != Some(&decision.status) {
            let body = json!({"metadata": {"resourceVersion": export["metadata"]["resourceVersion"]},
                "status": decision.status});
            let write = Write::to(self.cache.resource(), &export, "status", Op::MergePatch(body));
            let answer = self.writer.write(&self.who, &write).await?;
            self.cache.observe(answer);
        }
        let waiting = decision.status["phase"] == "Pending" || decision.status["phase"] == "Skipped";
        // A Ready one is looked at for its TTL, and for a token that was changed.
        Ok(Some(if waiting { AGAIN } else { AGAIN * 4 }))
    }

    fn serve(
        &self,
        key: &str,
        volumes: &[(String, String)],
        claims: &[(String, Option<Value>)],
        token: Option<String>,
    ) {
        let Some(token) = token.filter(|_| !volumes.is_empty()) else {
            self.exports.forget(key);
            return;
        };
        let volumes = volumes.iter().filter_map(|(volume, claim)| {
            let object = claims.iter().find(|(name, _)| name == claim)?.1.clone()?;
            Some((volume.clone(), object))
        });
        let (volumes, disks) = (volumes.collect(), self.disks.clone());
        self.exports.serve(key, Served { token, volumes, disks, backup: Tunnel::No });
    }

    /// The disks of a backup, as long as the launcher's tunnel leads to this export.
    async fn serve_backup(
        &self,
        key: &str,
        export: &Value,
        backup: &Value,
        token: Option<String>,
    ) -> Result<(), ClientError> {
        let ns = namespace(backup);
        let mut vm = text(backup, "/spec/source/name").to_owned();
        if text(backup, "/spec/source/kind") == "VirtualMachineBackupTracker" {
            let tracker = self.read(&BACKUP_TRACKERS.path(ns, &vm, "")).await?.unwrap_or_default();
            text(&tracker, "/spec/source/name").clone_into(&mut vm);
        }
        let dialled = text(backup, "/status/exportUID") == uid(export);
        let job = self.guests.job(&join_key(ns, &vm));
        let job = job.filter(|job| dialled && job.backup == name(backup));
        match token {
            Some(token) => {
                let (volumes, disks) = (std::collections::HashMap::new(), self.disks.clone());
                self.exports.serve(
                    key,
                    Served { token, volumes, disks, backup: job.map_or(Tunnel::Waiting, Tunnel::To) },
                );
            }
            None => self.exports.forget(key),
        }
        Ok(())
    }

    /// The Secret with the token: the one that the export names, which may come later, or one that is made for it
    /// (`export.go`, `getExportSecretName`).
    async fn secret(&self, export: &Value) -> Result<(String, Option<Value>), ClientError> {
        let ns = namespace(export);
        let named = text(export, "/spec/tokenSecretRef");
        let secret =
            if named.is_empty() { format!("export-token-{}", name(export)) } else { named.to_owned() };
        let mut found = self.read(&SECRETS.path(ns, &secret, "")).await?;
        if found.is_none() && named.is_empty() {
            // 20 letters and digits that follow from the seed
            let token: String = uid(export).chars().filter(char::is_ascii_alphanumeric).take(20).collect();
            let object = json!({"apiVersion": "v1", "kind": "Secret", "type": "Opaque",
                "metadata": {"name": secret, "namespace": ns, "ownerReferences": [self.owner(export)]},
                "stringData": {"token": token}});
            found = Some(Arc::unwrap_or_clone(
                self.writer.write(&self.who, &Write::create(&SECRETS, object)).await?,
            ));
        }
        Ok((secret, found))
    }

    fn owner(&self, export: &Value) -> Value {
        json!({"apiVersion": self.cache.resource().api_version(), "kind": "VirtualMachineExport",
            "name": name(export), "uid": uid(export), "controller": true, "blockOwnerDeletion": true})
    }

    /// The claims of a snapshot's export: one out of each `VolumeSnapshot`, the export's own
    /// (`vmsnapshot-source.go`).
    async fn restored(
        &self,
        export: &Value,
        snapshot: &Value,
    ) -> Result<Vec<(String, Option<Value>)>, ClientError> {
        let ns = namespace(export);
        if snapshot.pointer("/status/readyToUse") != Some(&Value::Bool(true)) {
            return Ok(Vec::new());
        }
        let content = text(snapshot, "/status/virtualMachineSnapshotContentName");
        let content = self.read(&SNAPSHOT_CONTENTS.path(ns, content, "")).await?.unwrap_or_default();
        let mut claims = Vec::new();
        for backup in list(&content, "/spec/volumeBackups") {
            let original = &backup["persistentVolumeClaim"];
            let claim_name = format!("{}-{}", name(export), text(original, "/metadata/name"));
            let mut found = self.read(&CLAIMS.path(ns, &claim_name, "")).await?;
            if found.is_none() {
                let source = json!({"apiGroup": "snapshot.storage.k8s.io", "kind": "VolumeSnapshot",
                    "name": backup["volumeSnapshotName"]});
                let mut spec = original["spec"].clone();
                for key in ["volumeName", "dataSource", "dataSourceRef"] {
                    remove(&mut spec, &[key]);
                }
                spec["dataSource"] = source.clone();
                spec["dataSourceRef"] = source;
                let kind = "cdi.kubevirt.io/storage.contentType";
                let annotations = match annotation(original, kind) {
                    Some(content) => json!({(kind): content}),
                    None => json!({}),
                };
                let claim = json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim",
                    "metadata": {"name": claim_name, "namespace": ns, "annotations": annotations,
                        "ownerReferences": [self.owner(export)]},
                    "spec": spec});
                found = Some(Arc::unwrap_or_clone(
                    self.writer.write(&self.who, &Write::create(&CLAIMS, claim)).await?,
                ));
            }
            claims.push((claim_name, found.filter(|claim| text(claim, "/status/phase") == "Bound")));
        }
        Ok(claims)
    }

    /// `None`: it is not there.
    async fn read(&self, path: &str) -> Result<Option<Value>, ClientError> {
        match self.client.get(Some(&self.who), path).await {
            Ok(object) => Ok(Some(object)),
            Err(error) if error.code() == 404 => Ok(None),
            Err(error) => Err(error),
        }
    }
}

fn token_of(secret: &Value) -> Option<String> {
    use base64::Engine as _;
    let raw = base64::prelude::BASE64_STANDARD.decode(text(secret, "/data/token")).ok()?;
    String::from_utf8(raw).ok().filter(|token| !token.is_empty())
}
