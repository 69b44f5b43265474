//! Volumes of VMs: listed, changed in one step, made larger.

use std::time::Duration;

use hotplug::plan::{Addition, Bus, DiskKind, Hold, Source, Step, Wish, next};
use hotplug::settle::Wait;
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
        Ok(Addition {
            name: self.name.clone(),
            source,
            kind,
            bus,
            serial: self.serial.clone(),
            cache: None,
            read_only: self.read_only,
            given: None,
        })
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

    /// The next step of a change: written when the VM is at rest, held otherwise. Detaching goes first. Ask
    /// again until it is done.
    pub async fn step_volumes(
        &self,
        vm: &VmId,
        change: &VolumeChange,
        dry_run: bool,
    ) -> Result<Changed, Error> {
        let add: Result<Vec<Addition>, Error> = change.add.iter().map(Attach::addition).collect();
        let wish = Wish { add: add?, remove: change.remove.clone(), since: 0, limit: i64::MAX };
        if wish.add.is_empty() && wish.remove.is_empty() {
            let remedy = "name volumes in `add` or `remove`";
            let doing = format!("changing the volumes of VM `{vm}`");
            return Err(Error::new(Kind::InvalidArgument, doing, "nothing is to be changed", remedy));
        }
        let way = self.hotplug_way().await?;
        let snapshot = self.observe_volumes(vm, &wish.add).await?;
        let step = next(&wish, &snapshot.seen(), 0).map_err(|error| {
            let doing = format!("changing the volumes of VM `{vm}`");
            Error::new(Kind::InvalidArgument, doing, error.to_string(), "see `virt-steward volume status`")
        })?;
        let held =
            |waits: Vec<String>| Changed { state: "held", adds: Vec::new(), removes: Vec::new(), waits };
        Ok(match step {
            Step::Patch { patch, adds, removes } => {
                if !dry_run && !self.write_volumes(vm, way, &wish, &patch, (&adds, &removes)).await? {
                    return Ok(held(vec!["somebody else changed the VM meanwhile".into()]));
                }
                Changed { state: "written", adds, removes, waits: Vec::new() }
            }
            Step::Done => Changed { state: "done", adds: Vec::new(), removes: Vec::new(), waits: Vec::new() },
            Step::Hold(holds) => held(holds.iter().map(Hold::words).collect()),
            Step::Wait(waits) | Step::GiveUp(waits) => held(waits.iter().map(Wait::words).collect()),
            Step::Claims(trouble) => {
                held(trouble.iter().map(|one| format!("claim {}: {}", one.claim, one.why)).collect())
            }
            Step::RollBack { volumes, .. } => held(volumes),
        })
    }

    /// Takes steps until the change is done.
    pub async fn change_volumes(
        &self,
        vm: &VmId,
        change: &VolumeChange,
        timeout: Duration,
        note: &mut (dyn FnMut(&str) + Send),
    ) -> Result<Changed, Error> {
        let doing = format!("changing the volumes of VM `{vm}`");
        until(&doing, timeout, note, || async move {
            let step = self.step_volumes(vm, change, false).await?;
            let progress = match step.state {
                "done" => Progress::Done,
                "written" => Progress::Waiting("KubeVirt has the change".into()),
                _ => Progress::Waiting(step.waits.join("; ")),
            };
            Ok((progress, step))
        })
        .await
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
