//! Volumes of VMs: listed, changed in one step, made larger.

use std::time::Duration;

use ::volumes::{Change, Machine, Outcome, Pace, Stand};
use hotplug::plan::{Addition, Bus, DiskKind, PlanError, Source};
use http::Method;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::Provider;
use super::objects::{CLAIMS, STORAGE_CLASSES, dry};
use super::waiting::until;
use crate::view::summary::bytes;
use crate::view::volume::{Claim, Volume, claim_name, join};
use crate::view::{VmDetail, text};
use crate::wait::Progress;
use crate::{Error, Kind, VmId};

/// A volume to attach.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Attach {
    /// Its name in the VM.
    pub name: String,
    /// The claim; the name when neither is given.
    #[serde(default)]
    pub claim: Option<String>,
    /// The data volume, instead of a claim.
    #[serde(default)]
    pub data_volume: Option<String>,
    /// `scsi`, `virtio` or `sata`.
    #[serde(default)]
    pub bus: Option<String>,
    /// `disk`, `lun` or `cdrom`.
    #[serde(default)]
    pub device: Option<String>,
    /// Its serial number.
    #[serde(default)]
    pub serial: Option<String>,
    /// `none`, `writethrough` or `writeback`.
    #[serde(default)]
    pub cache: Option<String>,
    /// The guest may not write.
    #[serde(default)]
    pub read_only: bool,
}

/// What to change.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct VolumeChange {
    /// Volumes to attach.
    pub add: Vec<Attach>,
    /// Volumes to detach, by name.
    pub remove: Vec<String>,
}

/// How far a change of volumes is.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Changed {
    /// `written`, `done`, or `held` when something else goes first.
    pub state: &'static str,
    /// Volumes that are being attached.
    pub adds: Vec<String>,
    /// Volumes that are being detached.
    pub removes: Vec<String>,
    /// What goes first, or is waited for.
    pub waits: Vec<String>,
}

/// The growth of a volume.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Expansion {
    /// The claim's namespace.
    pub namespace: String,
    /// The claim.
    pub claim: String,
    /// What it asked for before, bytes.
    pub from_bytes: u64,
    /// What it asks for now, bytes.
    pub to_bytes: u64,
}

impl Attach {
    fn addition(&self) -> Result<Addition, Error> {
        let doing = format!("attaching volume `{}`", self.name);
        let wrong = |wrong: &str, remedy: &str| Error::new(Kind::InvalidArgument, &doing, wrong, remedy);
        let source = match (&self.claim, &self.data_volume) {
            (Some(_), Some(_)) => {
                return Err(wrong("it names a claim and a data volume", "give one of them"));
            }
            (_, Some(name)) => Source::DataVolume(name.clone()),
            (claim, None) => Source::Claim(claim.clone().unwrap_or_else(|| self.name.clone())),
        };
        let bus = match self.bus.as_deref() {
            None => None,
            Some("scsi") => Some(Bus::Scsi),
            Some("virtio") => Some(Bus::Virtio),
            Some("sata") => Some(Bus::Sata),
            Some(_) => return Err(wrong("there is no such bus", "choose scsi, virtio or sata")),
        };
        let kind = match self.device.as_deref() {
            None | Some("disk") => DiskKind::Disk,
            Some("lun") => DiskKind::Lun,
            Some("cdrom") => DiskKind::Cdrom,
            Some(_) => return Err(wrong("there is no such device", "choose disk, lun or cdrom")),
        };
        if let Some(cache) = self.cache.as_deref()
            && !["none", "writethrough", "writeback"].contains(&cache)
        {
            return Err(wrong("there is no such cache mode", "choose none, writethrough or writeback"));
        }
        let (Source::Claim(claim) | Source::DataVolume(claim)) = &source;
        crate::identity::subdomain("claim", claim)?;
        Ok(Addition {
            name: self.name.clone(),
            source,
            kind,
            bus,
            serial: self.serial.clone(),
            cache: self.cache.clone(),
            read_only: self.read_only,
            given: None,
        })
    }
}

impl VolumeChange {
    fn wish(&self, vm: &VmId) -> Result<Change, Error> {
        if self.add.is_empty() && self.remove.is_empty() {
            let remedy = "name volumes in `add` or `remove`";
            return Err(Error::new(Kind::InvalidArgument, doing(vm), "nothing is to be changed", remedy));
        }
        let add: Result<Vec<Addition>, Error> = self.add.iter().map(Attach::addition).collect();
        Ok(Change { add: add?, remove: self.remove.clone(), detach_others: false })
    }
}

impl Changed {
    fn at(state: &'static str) -> Self {
        Self { state, adds: Vec::new(), removes: Vec::new(), waits: Vec::new() }
    }
}

/// Whose locks of claims these are: no other call has the same.
fn unique_holder(vm: &VmId) -> String {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    format!("{vm} ({:x}-{:x})", std::process::id(), since.as_nanos())
}

fn doing(vm: &VmId) -> String {
    format!("changing the volumes of VM `{vm}`")
}

/// What went wrong with the volumes of a VM, in the words of this crate.
#[allow(clippy::needless_pass_by_value, reason = "it is what `map_err` hands over")]
pub fn failure(doing: &str, vm: &VmId, error: ::volumes::Error) -> Error {
    use ::volumes::Error as Wrong;
    let status = format!("`virt-steward volume status {vm}`");
    let say = |kind, wrong: String, remedy: String| Error::new(kind, doing, wrong, remedy);
    match error {
        Wrong::Api { code: 0, wrong, .. } => {
            say(Kind::Cluster, wrong, "check that the API server runs: `kubectl cluster-info`".into())
        }
        Wrong::Api { wrong, code, .. } => Error::refused(doing, code, "", &wrong),
        Wrong::NoSuchMachine(_) => {
            let wrong = format!("virtualmachines.kubevirt.io \"{}\" not found", vm.name());
            Error::refused(doing, 404, "NotFound", &wrong)
        }
        Wrong::NoKubeVirt => {
            let wrong = "the cluster has no KubeVirt object".into();
            say(Kind::MissingCapability, wrong, "install KubeVirt".into())
        }
        Wrong::SwitchedOff { gate } => super::capabilities::gate_is_off(gate, doing),
        Wrong::Plan { source, .. } => say(plan_kind(&source), source.to_string(), format!("see {status}")),
        Wrong::Contended(_) => {
            let wrong = "somebody else changes the VM all the time".into();
            say(Kind::Conflict, wrong, "nothing was written: find out who does, then try again".into())
        }
        Wrong::NotSettled { limit, waits, .. } => {
            let wrong = format!("it did not come to rest within {limit} s: {waits}");
            say(Kind::Timeout, wrong, format!("give it more time; see {status}"))
        }
    }
}

/// Which kind of failure it is that a change cannot be written.
const fn plan_kind(error: &PlanError) -> Kind {
    match error {
        PlanError::NameTaken(_) | PlanError::ClaimTaken { .. } => Kind::AlreadyExists,
        PlanError::NotHotpluggable(_) => Kind::WrongState,
        PlanError::NotThere(_) => Kind::NotFound,
        PlanError::Name(_) | PlanError::Bus { .. } => Kind::InvalidArgument,
    }
}

impl Provider {
    /// The volumes of a VM, with the claims behind them.
    pub async fn volumes(&self, vm: &VmId) -> Result<Vec<Volume>, Error> {
        let doing = format!("reading the volumes of VM `{vm}`");
        let (object, instance) = self.observe(vm, &doing).await?;
        let disks = VmDetail::of(&object, instance.as_ref(), &[], &[]).disks;
        let mut claims = Vec::new();
        if disks.iter().any(|disk| claim_name(disk).is_some()) {
            claims = self.all(&CLAIMS, Some(vm.namespace()), "").await?;
        }
        Ok(join(disks, &claims))
    }

    fn machine(&self, vm: &VmId) -> Machine {
        Machine::new(self.client.clone(), vm.namespace(), vm.name()).with_headers(self.identity.clone())
    }

    /// The next step of a change: written when the VM is at rest, held otherwise. Detaching goes first. Ask
    /// again until it is done.
    pub async fn step_volumes(
        &self,
        vm: &VmId,
        change: &VolumeChange,
        dry_run: bool,
    ) -> Result<Changed, Error> {
        let wish = change.wish(vm)?;
        // Every call about this VM goes on with the locks of the one before.
        let holder = format!("{vm} (step by step)");
        let stand = self.machine(vm).step(&wish, &holder, dry_run).await;
        let stand = stand.map_err(|error| failure(&doing(vm), vm, error))?;
        Ok(match stand {
            Stand::Done => Changed::at("done"),
            Stand::Written { adds, removes } => Changed { adds, removes, ..Changed::at("written") },
            Stand::Waiting(waits) => Changed { waits, ..Changed::at("held") },
        })
    }

    /// Carries a change out. What has not reached the guest when the time is up is taken back, and the bad volumes are
    /// searched for and named.
    pub async fn change_volumes(
        &self,
        vm: &VmId,
        change: &VolumeChange,
        timeout: Duration,
        note: &mut (dyn FnMut(&str) + Send),
    ) -> Result<Changed, Error> {
        let wish = change.wish(vm)?;
        let limit = i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX);
        let pace = Pace { limit, holder: unique_holder(vm), ..Pace::default() };
        let outcome = self.machine(vm).change(wish, &pace, note).await;
        match outcome.map_err(|error| failure(&doing(vm), vm, error))? {
            Outcome::Done | Outcome::Planned(_) => Ok(Changed::at("done")),
            Outcome::TakenBack(volumes) => {
                let wrong = format!(
                    "volume {} did not reach the guest within {limit} s and was taken back",
                    volumes.join(", ")
                );
                let remedy = "look at its claim and the attachment pod, or give it more time";
                Err(Error::new(Kind::Timeout, doing(vm), wrong, remedy))
            }
        }
    }

    /// Makes the claim of a volume larger, once; the guest sees it while it runs (`ExpandDisks`, v1.9).
    pub async fn expand_volume(
        &self,
        vm: &VmId,
        volume: &str,
        size: &str,
        dry_run: bool,
    ) -> Result<Expansion, Error> {
        let doing = format!("expanding volume `{volume}` of VM `{vm}`");
        let fail = |kind, wrong: String, remedy: &str| Err(Error::new(kind, doing.as_str(), wrong, remedy));
        let Some(to) = bytes(size).filter(|size| *size > 0) else {
            return fail(Kind::InvalidArgument, format!("`{size}` is no size"), "write a size as in `20Gi`");
        };
        let (object, instance) = self.observe(vm, &doing).await?;
        let disks = VmDetail::of(&object, instance.as_ref(), &[], &[]).disks;
        let names: Vec<&str> = disks.iter().map(|disk| disk.name.as_str()).collect();
        let Some(disk) = disks.iter().find(|disk| disk.name == volume) else {
            let wrong = format!("it has no such volume; it has {}", names.join(", "));
            return fail(Kind::NotFound, wrong, "name one of these");
        };
        let Some(name) = claim_name(disk) else {
            let wrong = format!("it is a {} and has no claim", disk.source);
            return fail(Kind::WrongState, wrong, "only volumes on claims can be expanded");
        };
        let path = CLAIMS.object(vm.namespace(), name);
        let claim = self.get(&path, &doing).await?;
        let from = Claim::of(&claim).requested_bytes.unwrap_or_default();
        if to <= from {
            let wrong = format!("it has {from} bytes already, and claims cannot shrink");
            return fail(Kind::InvalidArgument, wrong, "give a larger size");
        }
        let class = text(&claim, "/spec/storageClassName");
        // who may not read storage classes is told by the API server
        if let Ok(Some(object)) = self.find(&STORAGE_CLASSES.cluster_object(class), &doing).await
            && object["allowVolumeExpansion"] != true
        {
            let wrong = format!("storage class `{class}` does not allow it");
            let remedy = "have `allowVolumeExpansion: true` set, or move the volume to another class";
            return fail(Kind::MissingCapability, wrong, remedy);
        }
        let at = "/spec/resources/requests/storage";
        let patch = json!([
            {"op": "test", "path": at, "value": claim.pointer(at).cloned().unwrap_or(Value::Null)},
            {"op": "replace", "path": at, "value": size},
        ]);
        let dry = dry(dry_run);
        self.write(Method::PATCH, &format!("{path}{dry}"), super::networks::JSON_PATCH, &patch, &doing)
            .await?;
        let (namespace, claim) = (vm.namespace().to_owned(), name.to_owned());
        Ok(Expansion { namespace, claim, from_bytes: from, to_bytes: to })
    }

    /// Waits until the claim has what it asks for.
    pub async fn wait_expansion(
        &self,
        expansion: &Expansion,
        timeout: Duration,
        note: &mut (dyn FnMut(&str) + Send),
    ) -> Result<(), Error> {
        let doing = format!("expanding claim `{}/{}`", expansion.namespace, expansion.claim);
        let (doing, path) = (doing.as_str(), CLAIMS.object(&expansion.namespace, &expansion.claim));
        let path = path.as_str();
        until(doing, timeout, note, || async move {
            let claim = self.get(path, doing).await?;
            let conditions = crate::view::list(&claim, "/status/conditions");
            let resizing = conditions.iter().map(|one| text(one, "/type")).find(|kind| !kind.is_empty());
            let has = Claim::of(&claim).capacity_bytes.unwrap_or_default();
            Ok((
                if has >= expansion.to_bytes {
                    Progress::Done
                } else {
                    Progress::Waiting(resizing.unwrap_or("waiting for the storage").into())
                },
                (),
            ))
        })
        .await
    }
}
