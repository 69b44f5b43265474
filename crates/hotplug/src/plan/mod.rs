//! The next step of a wish for volumes: one patch for all of them, and no patch before the last
//! one has come to rest (rules O1 to O7).
//!
//! ```text
//!          ┌── hold: migration, backup, paused … ──┐
//!  wish ──►│   wait: not settled, claims not ready │──► patch removals ─► settled ─► patch
//!          └── late: roll back, bisect ────────────┘    additions ─► settled ─► done
//! ```
//!
//! Removals come first and are waited for, also for the same name: KubeVirt adds a name again only
//! when its old status entry has gone (hotplug.go:126-139, v1.9). A step is computed anew from what
//! is seen; there is no memory that a crash could lose.

mod bisect;
mod claim;
mod patch;

pub use bisect::Bisection;
pub use claim::{Claim, ClaimTrouble};
pub use patch::{Addition, Bus, DiskKind, PlanError, Source, changes};

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Value;

use crate::Seconds;
use crate::settle::{Wait, is_at_rest_with_several, waits};
use crate::view::{AttachmentPod, Instance, SpecVolume, list, text};

/// A wish for volumes of one VM.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Wish {
    /// What it should get.
    pub add: Vec<Addition>,
    /// What it should lose, by name.
    pub remove: Vec<String>,
    /// When the wish was made.
    pub since: Seconds,
    /// How long it may take.
    pub limit: Seconds,
}

/// What was read before a step.
#[derive(Clone, Debug)]
pub struct Seen<'a> {
    /// The `VirtualMachine`.
    pub vm: &'a Value,
    /// Its VMI; `None`: it does not run.
    pub instance: Option<Instance<'a>>,
    /// The attachment pods of the active launcher.
    pub pods: Vec<AttachmentPod<'a>>,
    /// The claims of the additions, by name; a missing one is not there.
    pub claims: BTreeMap<String, Claim>,
    /// What else goes on.
    pub circumstances: Circumstances,
}

/// What else goes on around a VM.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Circumstances {
    /// A migration of it that has not ended, by name.
    pub migration: Option<String>,
    /// A snapshot of it that has not ended, by name.
    pub snapshot: Option<String>,
    /// A backup of it that has not ended, by name.
    pub backup: Option<String>,
    /// Its launcher is not ready.
    pub launcher_not_ready: bool,
    /// Its node is not ready.
    pub node_not_ready: bool,
}

/// Why nothing is done now.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", tag = "hold")]
pub enum Hold {
    /// A migration is under way: its target gets the set of volumes that there was at its start.
    Migration {
        /// Its name; empty: only the VMI tells.
        name: String,
    },
    /// A drain wants the VM to leave its node.
    Evacuating,
    /// A snapshot is being taken.
    Snapshot {
        /// Its name.
        name: String,
    },
    /// A backup is being taken.
    Backup {
        /// Its name.
        name: String,
    },
    /// The VM is starting or ending.
    NotRunning,
    /// The guest was stopped by an I/O error.
    IoError,
    /// Its launcher is not ready.
    Launcher,
    /// Its node is not ready.
    Node,
    /// Volumes are being moved to other claims.
    VolumeMigration,
}

impl Hold {
    /// In words, for people.
    pub fn words(&self) -> String {
        match self {
            Self::Migration { name } if name.is_empty() => "a migration is under way".into(),
            Self::Migration { name } => format!("migration {name} is under way"),
            Self::Evacuating => "a drain has asked the VM to leave its node".into(),
            Self::Snapshot { name } => format!("snapshot {name} is being taken"),
            Self::Backup { name } => format!("backup {name} is being taken"),
            Self::NotRunning => "the VM is starting or ending".into(),
            Self::IoError => "the guest is paused by an I/O error; look at its volumes first".into(),
            Self::Launcher => "its launcher pod is not ready".into(),
            Self::Node => "its node is not ready".into(),
            Self::VolumeMigration => "volumes are being moved to other claims".into(),
        }
    }
}

/// What to do next.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// Something else goes first.
    Hold(Vec<Hold>),
    /// The last change has not come to rest.
    Wait(Vec<Wait>),
    /// Claims are not ready to be attached.
    Claims(Vec<ClaimTrouble>),
    /// Write this.
    Patch {
        /// JSON patch of the VM.
        patch: Vec<Value>,
        /// Volumes that it adds.
        adds: Vec<String>,
        /// Volumes that it removes.
        removes: Vec<String>,
    },
    /// It took too long: take these volumes away again, since they never got ready.
    RollBack {
        /// JSON patch of the VM.
        patch: Vec<Value>,
        /// The volumes.
        volumes: Vec<String>,
    },
    /// It took too long, and there is nothing to take back.
    GiveUp(Vec<Wait>),
    /// All is as wished.
    Done,
}

/// Decides the next step.
pub fn next(wish: &Wish, seen: &Seen<'_>, now: Seconds) -> Result<Step, PlanError> {
    let late = now.saturating_sub(wish.since) > wish.limit;
    let removes: Vec<&str> =
        wish.remove.iter().map(String::as_str).filter(|name| patch::has_volume(seen.vm, name)).collect();
    let adds: Vec<&Addition> = wish.add.iter().filter(|one| !patch::has_source(seen.vm, one)).collect();
    // What can never be written is said at once, not when holds and waits have ended.
    changes(seen.vm, &adds, &removes)?;
    let Some(instance) = seen.instance.as_ref().filter(|instance| !instance.is_final) else {
        // Nothing runs: the spec is all there is, and one patch does it.
        return write(seen.vm, &adds, &removes);
    };
    let holds = holds(instance, &seen.circumstances);
    if !holds.is_empty() {
        return Ok(if late { Step::GiveUp(Vec::new()) } else { Step::Hold(holds) });
    }
    let mut waits = unsettled(seen.vm, instance, &seen.pods);
    if is_at_rest_with_several(instance, &seen.pods, now) {
        // What is on its way from the VM to the VMI is waited for all the same.
        waits.retain(|wait| matches!(wait, Wait::Volume { .. } | Wait::Requested { .. }));
    }
    if !waits.is_empty() {
        return if late { too_late(wish, seen.vm, instance, waits) } else { Ok(Step::Wait(waits)) };
    }
    if !removes.is_empty() {
        return write(seen.vm, &[], &removes);
    }
    let (ready, trouble) = claim::ready(&adds, &seen.claims);
    if ready.is_empty() && !trouble.is_empty() {
        return Ok(if late { Step::GiveUp(Vec::new()) } else { Step::Claims(trouble) });
    }
    write(seen.vm, &ready, &[])
}

fn write(vm: &Value, adds: &[&Addition], removes: &[&str]) -> Result<Step, PlanError> {
    if adds.is_empty() && removes.is_empty() {
        return Ok(Step::Done);
    }
    Ok(Step::Patch {
        patch: changes(vm, adds, removes)?,
        adds: adds.iter().map(|one| one.name.clone()).collect(),
        removes: removes.iter().map(|name| (*name).to_owned()).collect(),
    })
}

/// What goes first, whatever the wish (rule O6).
pub fn holds(instance: &Instance<'_>, around: &Circumstances) -> Vec<Hold> {
    let named = |name: &Option<String>, hold: fn(String) -> Hold| name.clone().map(hold);
    let going = instance.migration.is_some_and(|migration| migration.is_running());
    let migration = around.migration.clone().or_else(|| going.then(String::new));
    [
        migration.map(|name| Hold::Migration { name }),
        instance.evacuating.then_some(Hold::Evacuating),
        named(&around.snapshot, |name| Hold::Snapshot { name }),
        named(&around.backup, |name| Hold::Backup { name }),
        (!instance.running || instance.deletion.is_some()).then_some(Hold::NotRunning),
        instance.io_error.then_some(Hold::IoError),
        around.launcher_not_ready.then_some(Hold::Launcher),
        around.node_not_ready.then_some(Hold::Node),
        instance.migrating_volumes.then_some(Hold::VolumeMigration),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// What has not come to rest, the way from the VM to the VMI included.
pub fn unsettled(vm: &Value, instance: &Instance<'_>, pods: &[AttachmentPod<'_>]) -> Vec<Wait> {
    let wanted: Vec<SpecVolume<'_>> =
        list(vm, &["spec", "template", "spec", "volumes"]).iter().filter_map(SpecVolume::read).collect();
    let mut found = waits(instance, pods);
    let missing = wanted.iter().filter(|volume| volume.hotplug && !instance.volumes.contains(volume));
    found.extend(missing.map(|volume| Wait::Volume {
        volume: volume.name.to_owned(),
        phase: "requested",
        message: "KubeVirt has not taken it over into the VMI yet".into(),
    }));
    let requests = list(vm, &["status", "volumeRequests"]).iter();
    let named = requests.filter_map(|request| {
        ["addVolumeOptions", "removeVolumeOptions"]
            .iter()
            .map(|kind| text(request, &[*kind, "name"]))
            .find(|name| !name.is_empty())
    });
    found.extend(named.map(|volume| Wait::Requested { volume: volume.to_owned() }));
    let going = instance.hotplugged().filter(|volume| !volume.utility && !wanted.contains(volume));
    found.extend(going.filter(|volume| !volume_only_in_vmi(vm, volume)).map(|volume| Wait::Leaving {
        volume: volume.name.to_owned(),
        phase: "in the VMI still",
        in_guest: instance.status_of(volume.name).is_some_and(|status| !status.target.is_empty()),
    }));
    found.sort();
    found.dedup();
    found
}

/// A memory dump, and what was hotplugged into the VMI alone, never stands in the VM.
fn volume_only_in_vmi(vm: &Value, volume: &SpecVolume<'_>) -> bool {
    let requested = crate::view::at(vm, &["status", "memoryDumpRequest", "claimName"]);
    requested.is_some_and(|claim| claim == volume.claim)
}

/// The deadline has passed: what never got ready is taken back (rule O7).
fn too_late(wish: &Wish, vm: &Value, instance: &Instance<'_>, waits: Vec<Wait>) -> Result<Step, PlanError> {
    let failed: Vec<&str> = wish
        .add
        .iter()
        .filter(|one| patch::has_source(vm, one))
        .map(|one| one.name.as_str())
        .filter(|name| instance.status_of(name).is_none_or(|status| status.target.is_empty()))
        .collect();
    if failed.is_empty() {
        return Ok(Step::GiveUp(waits));
    }
    Ok(Step::RollBack {
        patch: changes(vm, &[], &failed)?,
        volumes: failed.iter().map(|name| (*name).to_owned()).collect(),
    })
}
