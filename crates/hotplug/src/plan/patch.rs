//! One JSON patch for many volumes, on the VM's `spec.template.spec`, with the arrays guarded by
//! `test` as virt-api does it (volumes.go:184-212, v1.9): of two clients that change the same VM
//! one is told, and looks again.

use std::str::FromStr;

use serde_json::{Value, json};

use crate::view::{SpecVolume, at, list};

const VOLUMES: &str = "/spec/template/spec/volumes";
const DISKS: &str = "/spec/template/spec/domain/devices/disks";

/// Names are DNS labels, since they become names of volumes in a pod.
const MOST_NAME: usize = 63;

/// Why a wish cannot be written.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum PlanError {
    /// The name is taken by something else.
    #[error(
        "volume \"{0}\" is in the VM already, with another source; remove it first, or choose another name"
    )]
    NameTaken(String),
    /// The claim is attached under another name.
    #[error("claim \"{claim}\" is in the VM already, as volume \"{volume}\"")]
    ClaimTaken {
        /// The claim.
        claim: String,
        /// Its name there.
        volume: String,
    },
    /// It was there when the VM started.
    #[error(
        "volume \"{0}\" is not hotpluggable: it can only be removed while the VM is stopped, by editing the VM"
    )]
    NotHotpluggable(String),
    /// There is no such volume.
    #[error("there is no volume \"{0}\" in the VM")]
    NotThere(String),
    /// The name is not usable.
    #[error("\"{0}\" cannot be the name of a volume: 1 to 63 of a-z, 0-9 and -, no - at either end")]
    Name(String),
    /// KubeVirt does not hotplug it.
    #[error("bus \"{bus}\" cannot be hotplugged as {kind}; choose {choice}")]
    Bus {
        /// What was asked for.
        bus: String,
        /// As what.
        kind: &'static str,
        /// What is possible.
        choice: &'static str,
    },
}

/// Where a volume comes from.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Source {
    /// `persistentVolumeClaim`
    Claim(String),
    /// `dataVolume`
    DataVolume(String),
}

/// What the guest sees.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum DiskKind {
    /// A disk.
    #[default]
    Disk,
    /// A LUN, with SCSI passthrough.
    Lun,
    /// A CD-ROM: the drive stays when the medium goes.
    Cdrom,
}

/// The controller that the disk hangs on.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Bus {
    /// SCSI, KubeVirt's default for hotplug.
    #[default]
    Scsi,
    /// virtio; each takes a `PCIe` port.
    Virtio,
    /// SATA, for CD-ROM drives only.
    Sata,
}

impl Bus {
    const fn name(self) -> &'static str {
        match self {
            Self::Scsi => "scsi",
            Self::Virtio => "virtio",
            Self::Sata => "sata",
        }
    }
}

impl FromStr for Bus {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "scsi" => Ok(Self::Scsi),
            "virtio" => Ok(Self::Virtio),
            "sata" => Ok(Self::Sata),
            other => Err(format!("\"{other}\" is none of scsi, virtio, sata")),
        }
    }
}

/// A volume to be added.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Addition {
    /// Its name in the VM.
    pub name: String,
    /// Where it comes from.
    pub source: Source,
    /// What the guest sees.
    pub kind: DiskKind,
    /// On which bus; `None`: SCSI, or SATA for a CD-ROM.
    pub bus: Option<Bus>,
    /// Serial number of the disk.
    pub serial: Option<String>,
    /// `none`, `writethrough`, `writeback`
    pub cache: Option<String>,
    /// The guest cannot write to it.
    pub read_only: bool,
    /// Volume and disk as they stood in a VM: written back as they were, whatever else is said here.
    pub given: Option<(Value, Value)>,
}

impl Addition {
    /// A disk of a claim, named after it.
    pub fn claim(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            source: Source::Claim(name.to_owned()),
            kind: DiskKind::Disk,
            bus: None,
            serial: None,
            cache: None,
            read_only: false,
            given: None,
        }
    }

    /// The hotplugged volumes of a VM, to be attached again as they are.
    pub fn hotplugged_in(vm: &Value) -> Vec<Self> {
        let hotplugged = volumes(vm).iter().filter_map(|volume| {
            let view = SpecVolume::read(volume).filter(|view| view.hotplug && !view.utility)?;
            let disk = named(disks(vm), view.name).cloned().unwrap_or_else(|| json!({"name": view.name}));
            let source = if volume.get("dataVolume").is_some() {
                Source::DataVolume(view.claim.to_owned())
            } else {
                Source::Claim(view.claim.to_owned())
            };
            let kind = if disk.get("cdrom").is_some() { DiskKind::Cdrom } else { DiskKind::Disk };
            let given = Some((volume.clone(), disk));
            Some(Self { source, kind, given, ..Self::claim(view.name) })
        });
        hotplugged.collect()
    }

    /// The claim behind it: a `DataVolume` has one of its own name.
    pub fn claim_name(&self) -> &str {
        let (Source::Claim(name) | Source::DataVolume(name)) = &self.source;
        name
    }

    fn volume(&self) -> Value {
        if let Some((volume, _)) = &self.given {
            return volume.clone();
        }
        match &self.source {
            Source::Claim(claim) => {
                json!({"name": self.name, "persistentVolumeClaim": {"claimName": claim, "hotpluggable": true}})
            }
            Source::DataVolume(name) => {
                json!({"name": self.name, "dataVolume": {"name": name, "hotpluggable": true}})
            }
        }
    }

    /// KubeVirt hotplugs disks on SCSI or virtio and LUNs on SCSI (storagehotplug.go:68-101, v1.9);
    /// a CD-ROM drive has to be there from the start.
    ///
    /// # Errors
    /// [`PlanError::Bus`]
    pub fn disk(&self) -> Result<Value, PlanError> {
        if let Some((_, disk)) = &self.given {
            return Ok(disk.clone());
        }
        let refuse = |bus: Bus, kind, choice| PlanError::Bus { bus: bus.name().into(), kind, choice };
        let bus = self.bus.unwrap_or(if self.kind == DiskKind::Cdrom { Bus::Sata } else { Bus::Scsi });
        let (field, mut target) = match (self.kind, bus) {
            (DiskKind::Disk, Bus::Sata) => return Err(refuse(bus, "a disk", "scsi or virtio")),
            (DiskKind::Lun, Bus::Sata | Bus::Virtio) => return Err(refuse(bus, "a LUN", "scsi")),
            (DiskKind::Cdrom, Bus::Virtio) => return Err(refuse(bus, "a CD-ROM", "sata or scsi")),
            (DiskKind::Disk, _) => ("disk", json!({"bus": bus.name()})),
            (DiskKind::Lun, _) => ("lun", json!({"bus": bus.name()})),
            (DiskKind::Cdrom, _) => ("cdrom", json!({"bus": bus.name()})),
        };
        if self.read_only {
            target["readonly"] = true.into();
        }
        let mut disk = json!({"name": self.name, field: target});
        if let Some(serial) = &self.serial {
            disk["serial"] = serial.as_str().into();
        }
        if let Some(cache) = &self.cache {
            disk["cache"] = cache.as_str().into();
        }
        Ok(disk)
    }
}

fn volumes(vm: &Value) -> &[Value] {
    list(vm, &["spec", "template", "spec", "volumes"])
}

fn disks(vm: &Value) -> &[Value] {
    list(vm, &["spec", "template", "spec", "domain", "devices", "disks"])
}

fn named<'v>(list: &'v [Value], name: &str) -> Option<&'v Value> {
    list.iter().find(|entry| entry["name"] == name)
}

/// Whether the VM has a volume of this name.
pub(super) fn has_volume(vm: &Value, name: &str) -> bool {
    named(volumes(vm), name).is_some()
}

/// Whether the VM has this very volume.
pub(super) fn has_source(vm: &Value, addition: &Addition) -> bool {
    named(volumes(vm), &addition.name)
        .and_then(SpecVolume::read)
        .is_some_and(|volume| volume.claim == addition.claim_name())
}

/// The patch that adds and removes volumes. A CD-ROM drive stays when its medium is removed, and a
/// medium goes into the drive of its name. On a VM that lacks one of the arrays the whole object
/// is guarded instead, by its `resourceVersion`.
pub fn changes(vm: &Value, adds: &[&Addition], removes: &[&str]) -> Result<Vec<Value>, PlanError> {
    let (mut new_volumes, mut new_disks) = (volumes(vm).to_vec(), disks(vm).to_vec());
    for name in removes {
        let volume = named(&new_volumes, name).ok_or_else(|| PlanError::NotThere((*name).to_owned()))?;
        if !SpecVolume::read(volume).is_some_and(|volume| volume.hotplug) {
            return Err(PlanError::NotHotpluggable((*name).to_owned()));
        }
        new_volumes.retain(|volume| volume["name"] != *name);
        new_disks.retain(|disk| disk["name"] != *name || disk.get("cdrom").is_some());
    }
    for addition in adds {
        check(&new_volumes, addition)?;
        new_volumes.push(addition.volume());
        let drive = named(&new_disks, &addition.name);
        match (drive, addition.kind) {
            (Some(drive), DiskKind::Cdrom) if drive.get("cdrom").is_some() => {}
            (Some(_), _) => return Err(PlanError::NameTaken(addition.name.clone())),
            (None, _) => new_disks.push(addition.disk()?),
        }
    }
    let mut tests = Vec::new();
    let mut patch = Vec::new();
    let mut whole = false;
    for (path, old, new) in [(VOLUMES, volumes(vm), new_volumes), (DISKS, disks(vm), new_disks)] {
        if old == new.as_slice() {
            continue;
        }
        if old.is_empty() {
            whole = true;
        } else {
            tests.push(json!({"op": "test", "path": path, "value": old}));
        }
        patch.push(json!({"op": "add", "path": path, "value": new}));
    }
    if whole && let Some(version) = at(vm, &["metadata", "resourceVersion"]) {
        tests.push(json!({"op": "test", "path": "/metadata/resourceVersion", "value": version}));
    }
    tests.append(&mut patch);
    Ok(tests)
}

fn check(present: &[Value], addition: &Addition) -> Result<(), PlanError> {
    let name = addition.name.as_str();
    let legal = (1..=MOST_NAME).contains(&name.len())
        && !name.starts_with('-')
        && !name.ends_with('-')
        && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-');
    if !legal {
        return Err(PlanError::Name(name.chars().take(80).collect()));
    }
    if named(present, name).is_some() {
        return Err(PlanError::NameTaken(name.to_owned()));
    }
    let claim = addition.claim_name();
    let taken = present.iter().filter_map(SpecVolume::read).find(|volume| volume.claim == claim);
    match taken {
        Some(volume) => {
            Err(PlanError::ClaimTaken { claim: claim.to_owned(), volume: volume.name.to_owned() })
        }
        None => Ok(()),
    }
}
