//! A running VM through a `VirtualMachineBackup` in Pull mode (backup.kubevirt.io/v1alpha1, `KubeVirt` 1.9): an
//! extent map that knows holes and, since an earlier checkpoint, changes; and the disks as they were when it began.
//!
//! ```text
//!  Tracker (per chain) ─► VirtualMachineBackup ─► Initializing ─► Initiated ─► ExportReady ─┐
//!        ▲                       waits for: tracking, the scratch claim, migrations         │ maps, data
//!        │                                                                                  ▼
//!        └── latestCheckpoint ◄── Complete ◄── aborted: deleted by us when all is safe, or by its TTL
//! ```
//!
//! The checkpoint moves on whenever a backup ends, also when nobody read it to its end: so an export remembers
//! the checkpoint that it ends at, and the next one is incremental only if the tracker still has that very one.

use std::cmp::Ordering;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use http::{Response, StatusCode};
use hyper::body::Incoming;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::Source;
use super::buffers::Buffers;
use super::extents::{Extent, Map, Page};
use super::http::{Access, Connection, Directory, Secret, body, exactly, persist, refusal};
use super::objects::Objects;
use super::vmexport::{TOKEN_HEADER, token, token_of, token_secret};
use crate::retry::{Looks, pause};
use crate::{Error, Result};

const GROUP: &str = "/apis/backup.kubevirt.io/v1alpha1";
/// Extents that are asked for at once.
const PAGE: usize = 16_384;
/// The longest page, in bytes.
const PAGE_BYTES: usize = 8 << 20;
/// Pieces that are so close are asked for at once, in bytes.
const NEAR: u64 = 256 << 10;

/// Bytes at the end of a disk that are asked for to find out whether it is the end …
const EDGE: u64 = 512;
/// … with so many behind it.
const BEYOND: u64 = 64 << 10;

/// How a backup is set up.
#[derive(Clone, Debug)]
pub struct Setup {
    /// Of the VM and everything that is made for it.
    pub namespace: String,
    /// The VM.
    pub vm: String,
    /// The name of the backup, its export and its Secret.
    pub name: String,
    /// The tracker that remembers where the last backup of a chain ended; without one it is a full backup that
    /// nothing builds on.
    pub tracker: Option<String>,
    /// Go on with the backup of an earlier run.
    pub again: bool,
    /// Where QEMU keeps what the guest overwrites meanwhile.
    pub scratch: Scratch,
    /// It ends by itself after this time.
    pub ttl: Duration,
    /// How long it may take to be ready.
    pub ready_within: Duration,
}

/// A claim with a file system.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Scratch {
    /// One that is there.
    Claim(String),
    /// One that is made for the backup, so many bytes, of a storage class or the default one.
    New {
        /// Its size; the guest may overwrite everything.
        bytes: u64,
        /// The storage class.
        class: Option<String>,
    },
}

/// A backup of a VM.
pub struct Backup {
    objects: Objects,
    setup: Setup,
}

/// What a backup offers once it is ready.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Ready {
    /// It holds what changed since the tracker's checkpoint; otherwise everything.
    pub incremental: bool,
    /// Where it ends.
    pub checkpoint: Option<String>,
    /// Whom to trust, PEM.
    cert: String,
    /// Names of volumes, with the URLs of data and map.
    volumes: Vec<(String, String, String)>,
}

impl Ready {
    /// The names of the volumes in it.
    pub fn volumes(&self) -> impl Iterator<Item = &str> {
        self.volumes.iter().map(|(name, _, _)| name.as_str())
    }
}

/// How far a backup is.
#[derive(Clone, Debug, Eq, PartialEq)]
enum State {
    Waiting(String),
    Ready(Ready),
    Ended(String),
}

impl std::fmt::Debug for Backup {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Backup").field("name", &self.setup.name).finish_non_exhaustive()
    }
}

impl Backup {
    /// A backup that is not begun yet.
    pub fn new(client: kube::Client, setup: Setup) -> Self {
        Self { objects: Objects::new(client, &setup.namespace), setup }
    }

    fn path(&self, resource: &str, name: &str) -> String {
        self.objects.path(GROUP, resource, name)
    }

    fn own(&self) -> String {
        self.path("virtualmachinebackups", &self.setup.name)
    }

    fn object(&self) -> String {
        format!("VirtualMachineBackup {}/{}", self.objects.namespace, self.setup.name)
    }

    fn claim(&self) -> &str {
        match &self.setup.scratch {
            Scratch::Claim(name) => name,
            Scratch::New { .. } => &self.setup.name,
        }
    }

    fn source(&self) -> Value {
        match &self.setup.tracker {
            Some(tracker) => json!({"apiGroup": "backup.kubevirt.io", "kind": "VirtualMachineBackupTracker",
                "name": tracker}),
            None => json!({"apiGroup": "kubevirt.io", "kind": "VirtualMachine", "name": self.setup.vm}),
        }
    }

    /// Removes what an earlier run left, unless this one goes on with it. Afterwards the tracker knows where the
    /// last backup ended.
    ///
    /// # Errors
    /// What the API refuses, and when it does not go away.
    pub async fn clear(&self) -> Result<()> {
        let Some(found) = self.objects.get(&self.own(), &self.object()).await? else { return Ok(()) };
        let same =
            found["spec"]["source"] == self.source() && found["metadata"]["deletionTimestamp"].is_null();
        if self.setup.again && same && !matches!(state(&found), State::Ended(_)) {
            return Ok(());
        }
        self.remove().await
    }

    /// The checkpoint that the tracker has; makes the tracker if there is none.
    ///
    /// # Errors
    /// What the API refuses, and a tracker of another VM.
    pub async fn latest_checkpoint(&self) -> Result<Option<String>> {
        let Some(tracker) = &self.setup.tracker else { return Ok(None) };
        let what = format!("VirtualMachineBackupTracker {}/{tracker}", self.objects.namespace);
        let vm = json!({"apiGroup": "kubevirt.io", "kind": "VirtualMachine", "name": self.setup.vm});
        let object = json!({"apiVersion": "backup.kubevirt.io/v1alpha1", "kind": "VirtualMachineBackupTracker",
            "metadata": {"name": tracker, "namespace": self.objects.namespace,
                "labels": {"app.kubernetes.io/managed-by": "virt-steward"}},
            "spec": {"source": vm}});
        if self.objects.create(&self.path("virtualmachinebackuptrackers", ""), &what, &object).await? {
            return Ok(None);
        }
        let found = self.objects.get(&self.path("virtualmachinebackuptrackers", tracker), &what).await?;
        let found = found.unwrap_or_default();
        if found["spec"]["source"]["name"] != self.setup.vm {
            let wrong = format!("it is of {}; delete it", found["spec"]["source"]["name"]);
            return Err(Error::Object { object: what, wrong });
        }
        let name = &found["status"]["latestCheckpoint"]["name"];
        Ok(name.as_str().filter(|name| !name.is_empty()).map(str::to_owned))
    }

    /// Begins, or goes on, and waits until the disks can be read. `full`: everything, whatever the tracker has.
    ///
    /// # Errors
    /// What the API refuses, and why the backup does not become ready.
    pub async fn start(&self, full: bool) -> Result<Ready> {
        let found = self.objects.get(&self.own(), &self.object()).await?;
        // Not tried and left to a 409: KubeVirt's webhook refuses a second one of the name with a 422.
        let goes_on = found.as_ref().is_some_and(|found| {
            !full || found["spec"]["forceFullBackup"] == true || found["status"]["type"] == "Full"
        });
        if goes_on {
            return self.ready().await;
        }
        if found.is_some() {
            self.remove().await?;
        }
        let secret = token_secret(&self.objects, &self.setup.name, &Secret(token()?));
        let what = format!("Secret {}/{}", self.objects.namespace, self.setup.name);
        // A Secret of an earlier run is kept: its token is read back when the disks are accessed.
        self.objects.create(&self.objects.path("/api/v1", "secrets", ""), &what, &secret).await?;
        if let Scratch::New { bytes, class } = &self.setup.scratch {
            let path = self.objects.path("/api/v1", "secrets", &self.setup.name);
            let secret = self.objects.get(&path, &what).await?.unwrap_or_default();
            self.make_claim(*bytes, class.as_deref(), &secret["metadata"]["uid"]).await?;
        }
        let backup = json!({"apiVersion": "backup.kubevirt.io/v1alpha1", "kind": "VirtualMachineBackup",
            "metadata": {"name": self.setup.name, "namespace": self.objects.namespace,
                "labels": {"app.kubernetes.io/managed-by": "virt-steward"}},
            "spec": {"source": self.source(), "mode": "Pull", "pvcName": self.claim(),
                "tokenSecretRef": self.setup.name, "forceFullBackup": full,
                "ttlDuration": format!("{}s", self.setup.ttl.as_secs())}});
        self.objects.create(&self.path("virtualmachinebackups", ""), &self.object(), &backup).await?;
        self.ready().await
    }

    /// Makes the scratch claim. It goes with the Secret that owns it, so that nobody who exports needs the right to
    /// delete claims.
    async fn make_claim(&self, bytes: u64, class: Option<&str>, secret: &Value) -> Result<()> {
        let mut claim = json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim",
            "metadata": {"name": self.claim(), "namespace": self.objects.namespace,
                "labels": {"app.kubernetes.io/managed-by": "virt-steward"},
                "ownerReferences": [{"apiVersion": "v1", "kind": "Secret", "name": self.setup.name,
                    "uid": secret}]},
            "spec": {"accessModes": ["ReadWriteOnce"], "volumeMode": "Filesystem",
                "resources": {"requests": {"storage": bytes.to_string()}}}});
        if let Some(class) = class {
            claim["spec"]["storageClassName"] = class.into();
        }
        let what = format!("PersistentVolumeClaim {}/{}", self.objects.namespace, self.claim());
        let path = self.objects.path("/api/v1", "persistentvolumeclaims", "");
        self.objects.create(&path, &what, &claim).await.map(|_| ())
    }

    async fn ready(&self) -> Result<Ready> {
        let end = Instant::now() + self.setup.ready_within;
        let mut looks = Looks::default();
        let mut failures = 0;
        loop {
            let found = match self.objects.get(&self.own(), &self.object()).await {
                Err(error) if error.is_passing() && failures < 8 => {
                    failures += 1;
                    tokio::time::sleep(pause(failures, 3)).await;
                    continue;
                }
                other => other?,
            };
            let Some(found) = found else {
                let wrong = "it was deleted while it was waited for; export again".to_owned();
                return Err(Error::Object { object: self.object(), wrong });
            };
            match state(&found) {
                State::Ready(ready) => return Ok(ready),
                State::Ended(why) => {
                    let wrong = format!("it has ended ({why}); export again");
                    return Err(Error::Object { object: self.object(), wrong });
                }
                State::Waiting(why) if Instant::now() >= end => {
                    let why = if why.is_empty() { String::new() } else { format!(" ({why})") };
                    let wrong = format!(
                        "it is not ready after {} s{why}; --no-backup exports from a snapshot instead",
                        self.setup.ready_within.as_secs()
                    );
                    return Err(Error::Object { object: self.object(), wrong });
                }
                State::Waiting(_) => tokio::time::sleep(looks.next()).await,
            }
        }
    }

    /// Ends the backup and removes its Secret, with which the scratch claim goes. The tracker's checkpoint is where it ended: the answer
    /// is that checkpoint, when there is a tracker that has it.
    ///
    /// # Errors
    /// What the API refuses.
    pub async fn finish(&self) -> Result<Option<String>> {
        self.remove().await?;
        let secret = self.objects.path("/api/v1", "secrets", &self.setup.name);
        self.objects.delete(&secret, &format!("Secret {}", self.setup.name)).await?;
        self.latest_checkpoint().await
    }

    /// Deletes the backup and waits until `KubeVirt` has let go of it.
    async fn remove(&self) -> Result<()> {
        self.objects.delete(&self.own(), &self.object()).await?;
        let end = Instant::now() + self.setup.ready_within;
        let mut looks = Looks::default();
        while self.objects.get(&self.own(), &self.object()).await?.is_some() {
            if Instant::now() >= end {
                let wrong = format!("it does not end within {} s", self.setup.ready_within.as_secs());
                return Err(Error::Object { object: self.object(), wrong });
            }
            tokio::time::sleep(looks.next()).await;
        }
        Ok(())
    }
}

/// How far a backup is, by its conditions.
fn state(backup: &Value) -> State {
    let status = &backup["status"];
    let condition = |kind: &str| {
        status["conditions"].as_array().into_iter().flatten().find(|condition| condition["type"] == kind)
    };
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    for kind in ["Failed", "Complete"] {
        if let Some(ended) = condition(kind).filter(|condition| condition["status"] == "True") {
            return State::Ended(text(&ended["message"]));
        }
    }
    let Some(progress) = condition("Progressing") else { return State::Waiting(String::new()) };
    if progress["reason"] == "Aborting" {
        return State::Ended(text(&progress["message"]));
    }
    let volumes: Vec<_> = status["includedVolumes"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|volume| {
            let part = |key: &str| volume[key].as_str().filter(|text| !text.is_empty()).map(str::to_owned);
            Some((part("volumeName")?, part("dataEndpoint")?, part("mapEndpoint")?))
        })
        .collect();
    // Volumes are known before their endpoints are; the certificate comes with these.
    let Some(cert) = status["endpointCert"].as_str().filter(|_| progress["reason"] == "ExportReady") else {
        return State::Waiting(text(&progress["message"]));
    };
    State::Ready(Ready {
        incremental: status["type"] == "Incremental",
        checkpoint: status["checkpointName"].as_str().map(str::to_owned),
        cert: cert.to_owned(),
        volumes,
    })
}

#[async_trait]
impl Directory for Backup {
    /// `volume` is `NAME/map` or `NAME/data`.
    async fn access(&self, volume: &str) -> Result<Access> {
        let ready = self.ready().await?;
        let (name, end) = volume.rsplit_once('/').unwrap_or((volume, "data"));
        let found = ready.volumes.iter().find(|(candidate, _, _)| candidate == name);
        let Some((_, data, map)) = found else {
            let wrong = format!("the volume {name} is not in it");
            return Err(Error::Object { object: self.object(), wrong });
        };
        let url = if end == "map" { map } else { data }.clone();
        let token = token_of(&self.objects, &self.setup.name).await?;
        Ok(Access { url, ca: ready.cert, headers: vec![(TOKEN_HEADER.to_owned(), token)] })
    }
}

/// A disk in a backup.
pub struct BackupSource {
    name: String,
    map: Map,
    connection: Connection,
    buffers: Buffers,
}

impl std::fmt::Debug for BackupSource {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("BackupSource").field("name", &self.name).finish_non_exhaustive()
    }
}

impl BackupSource {
    /// Reads the map of a volume of a [`Backup`].
    ///
    /// # Errors
    /// When it cannot be read, is none, or ends before the disk does.
    pub async fn open(
        name: &str,
        volume: &str,
        backup: Arc<dyn Directory>,
        incremental: bool,
    ) -> Result<Self> {
        persist(|| async {
            let connection = Connection::open(&format!("{volume}/map"), backup.clone()).await?;
            let map = read_map(name, &connection, incremental).await?;
            let connection = Connection::open(&format!("{volume}/data"), backup.clone()).await?;
            let source = Self { name: name.into(), map, connection, buffers: Buffers::default() };
            source.check_end().await?;
            Ok(source)
        })
        .await
    }

    /// A map that ends early looks like a smaller disk, and nothing else here states the size. But a range of data is
    /// cut off where the disk ends (nbdclient.go, `clampLength`): of more than there is, what there is comes.
    async fn check_end(&self) -> Result<()> {
        let what = format!("looking for the end of {}", self.name);
        let answer = |wrong: String| Error::Answer { what: what.clone(), wrong, again: true };
        let size = self.map.size;
        if size == 0 {
            return Err(answer("its extent map is empty, and no disk is".into()));
        }
        let edge = size.min(EDGE);
        let (start, length) = (size - edge, edge + BEYOND);
        let current = self.connection.current();
        let request = current.query(&format!("offset={start}&length={length}"))?;
        let most = usize::try_from(length).unwrap_or(usize::MAX);
        let taking = async |response: Response<Incoming>| match response.status() {
            StatusCode::OK => body(&what, response.into_body(), most).await,
            _ => Err(refusal(&what, response).await),
        };
        let got = current.lanes.ask(&what, request, taking).await?.len() as u64;
        match got.cmp(&edge) {
            Ordering::Equal => Ok(()),
            Ordering::Greater => {
                Err(answer(format!("its extent map ends at {size} bytes, and the disk goes on behind that")))
            }
            Ordering::Less => Err(answer(format!("{got} bytes come of its last {edge}, from {start} on"))),
        }
    }

    /// What changed since the checkpoint before, in guest bytes; of a full backup, everything.
    pub fn changed(&self) -> &[Range<u64>] {
        &self.map.changed
    }

    async fn fetch(&self, range: Range<u64>) -> Result<Bytes> {
        let what = format!("reading bytes {} to {} of {}", range.start, range.end, self.name);
        let wanted = range.end - range.start;
        let current = self.connection.current();
        // No `Range` header here, and nothing that states a length (exportserver.go, backupDataHandler).
        let request = current.query(&format!("offset={}&length={wanted}", range.start))?;
        let length = usize::try_from(wanted).unwrap_or(usize::MAX);
        let taking = async |response: Response<Incoming>| match response.status() {
            StatusCode::OK => exactly(&what, response.into_body(), length, &self.buffers).await,
            _ => Err(refusal(&what, response).await),
        };
        current.lanes.ask(&what, request, taking).await
    }
}

async fn read_map(name: &str, connection: &Connection, incremental: bool) -> Result<Map> {
    let what = format!("reading the extent map of {name}");
    let broken = |wrong: String| Error::Answer { what: what.clone(), wrong, again: false };
    let current = connection.current();
    let mut extents: Vec<Extent> = Vec::new();
    let mut offset = 0;
    loop {
        let request = current.query(&format!("offset={offset}&page_size={PAGE}"))?;
        let taking = async |response: Response<Incoming>| match response.status() {
            StatusCode::OK => body(&what, response.into_body(), PAGE_BYTES).await,
            _ => Err(refusal(&what, response).await),
        };
        let text = current.lanes.ask(&what, request, taking).await?;
        let page: Page = serde_json::from_slice(&text).map_err(|error| broken(error.to_string()))?;
        extents.extend(page.extents.into_iter().flatten());
        match page.next_offset {
            None => return Map::of(&extents, incremental).map_err(broken),
            Some(next) if next > offset => offset = next,
            Some(next) => return Err(broken(format!("it goes back from {offset} to {next}"))),
        }
    }
}

#[async_trait]
impl Source for BackupSource {
    fn name(&self) -> &str {
        &self.name
    }

    fn size(&self) -> u64 {
        self.map.size
    }

    /// What need not be read is zeros here: an incremental image does not hold it.
    async fn read(&self, range: Range<u64>) -> Result<Bytes> {
        let parts: Vec<Range<u64>> = self.map.parts(&range).collect();
        if let [part] = parts.as_slice()
            && *part == range
        {
            return self.fetch(range).await;
        }
        let mut out = BytesMut::zeroed(usize::try_from(range.end - range.start).unwrap_or(0));
        for group in parts.chunk_by(|left, right| right.start - left.end <= NEAR) {
            let (Some(first), Some(last)) = (group.first(), group.last()) else { continue };
            let data = self.fetch(first.start..last.end).await?;
            for part in group {
                let within = |base: u64| {
                    let at = |offset: u64| usize::try_from(offset - base).unwrap_or(usize::MAX);
                    at(part.start)..at(part.end)
                };
                if let (Some(to), Some(from)) =
                    (out.get_mut(within(range.start)), data.get(within(first.start)))
                {
                    to.copy_from_slice(from);
                }
            }
        }
        Ok(out.freeze())
    }

    async fn next_data(&self, offset: u64) -> Result<Option<Range<u64>>> {
        Ok(self.map.parts(&(offset..self.map.size)).next())
    }

    async fn refresh(&self) -> Result<()> {
        self.connection.refresh().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backup_is_ready_when_its_endpoints_are_known() {
        let condition = |kind: &str, status: &str, reason: &str| json!({"type": kind, "status": status, "reason": reason, "message": "why"});
        let volumes =
            json!([{"volumeName": "root", "dataEndpoint": "https://d", "mapEndpoint": "https://m"}]);
        let backup = |conditions: Value, cert: Value, volumes: &Value| {
            json!({"status": {"type": "Incremental", "checkpointName": "c2", "conditions": conditions,
                "endpointCert": cert, "includedVolumes": volumes}})
        };
        let progress = |reason| json!([condition("Progressing", "True", reason)]);
        assert_eq!(state(&json!({})), State::Waiting(String::new()));
        for reason in ["Initializing", "Initiated", "PreparingExport"] {
            assert_eq!(state(&backup(progress(reason), Value::Null, &volumes)), State::Waiting("why".into()));
        }
        // The certificate of an export that is made anew is gone, whatever the reason still says.
        assert_eq!(
            state(&backup(progress("ExportReady"), Value::Null, &volumes)),
            State::Waiting("why".into())
        );
        let State::Ready(ready) = state(&backup(progress("ExportReady"), "CA".into(), &volumes)) else {
            panic!("it is ready");
        };
        assert!(ready.incremental && ready.volumes().eq(["root"]));
        for ended in [
            json!([condition("Progressing", "False", "Failed"), condition("Failed", "True", "SourceLost")]),
            json!([condition("Complete", "True", "Completed")]),
            progress("Aborting"),
        ] {
            assert_eq!(state(&backup(ended, "CA".into(), &volumes)), State::Ended("why".into()));
        }
    }
}
