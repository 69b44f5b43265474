//! `VirtualMachineInstance`: its volumes, where each of them stands, and its migration.

use serde_json::Value;

use super::{at, list, says_true, text, time};
use crate::Seconds;
use crate::annotations::BREAK_GLASS;

/// `status.volumeStatus[].phase` (`kubevirt.io/api/core/v1/types.go`).
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Phase {
    /// Its claim is not bound.
    Pending,
    /// Its claim is bound, and no attachment pod matches.
    Bound,
    /// An attachment pod that matches the set exists, not necessarily running.
    AttachedToNode,
    /// virt-handler has made it visible to the launcher.
    MountedToPod,
    /// The guest has it.
    Ready,
    /// virt-handler has taken it from the launcher.
    UnMountedFromPod,
    /// It is on its way out.
    Detaching,
    /// A memory dump is being written to it.
    MemoryDumpInProgress,
    /// A memory dump has ended, well or badly.
    MemoryDumpEnded,
    /// Nothing, or a phase of the future.
    Unknown,
}

impl Phase {
    fn read(text: &str) -> Self {
        match text {
            "Pending" => Self::Pending,
            "Bound" => Self::Bound,
            "AttachedToNode" => Self::AttachedToNode,
            "MountedToPod" => Self::MountedToPod,
            "Ready" => Self::Ready,
            "UnMountedFromPod" => Self::UnMountedFromPod,
            "Detaching" => Self::Detaching,
            "MemoryDumpInProgress" => Self::MemoryDumpInProgress,
            "MemoryDumpCompleted" | "MemoryDumpFailed" => Self::MemoryDumpEnded,
            _ => Self::Unknown,
        }
    }

    /// What KubeVirt calls it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pending => "Pending",
            Self::Bound => "Bound",
            Self::AttachedToNode => "AttachedToNode",
            Self::MountedToPod => "MountedToPod",
            Self::Ready => "Ready",
            Self::UnMountedFromPod => "UnMountedFromPod",
            Self::Detaching => "Detaching",
            Self::MemoryDumpInProgress => "MemoryDumpInProgress",
            Self::MemoryDumpEnded => "MemoryDumpCompleted",
            Self::Unknown => "Unknown",
        }
    }
}

/// A volume of a VMI's spec that a claim stands behind.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct SpecVolume<'a> {
    /// Its name.
    pub name: &'a str,
    /// The claim; that of a `dataVolume` has the same name.
    pub claim: &'a str,
    /// It says `hotpluggable: true`, or is a memory dump or a utility volume.
    pub hotplug: bool,
    /// It is mounted into the launcher and never reaches the guest (VEP 86).
    pub utility: bool,
}

impl<'a> SpecVolume<'a> {
    /// Reads one entry of `spec.volumes`; `None` when no claim stands behind it.
    pub fn read(volume: &'a Value) -> Option<Self> {
        let name = volume["name"].as_str()?;
        let hotpluggable = |source: &str| at(volume, &[source, "hotpluggable"]) == Some(&Value::Bool(true));
        [("persistentVolumeClaim", "claimName"), ("dataVolume", "name"), ("memoryDump", "claimName")]
            .into_iter()
            .find_map(|(source, field)| {
                let claim = at(volume, &[source, field])?.as_str()?;
                Some(Self {
                    name,
                    claim,
                    hotplug: source == "memoryDump" || hotpluggable(source),
                    utility: false,
                })
            })
    }
}

/// `status.volumeStatus[]` of a hotplugged volume.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct VolumeStatus<'a> {
    /// Its name.
    pub name: &'a str,
    /// Where it stands.
    pub phase: Phase,
    /// Uid of the attachment pod that virt-controller wants it to be taken from; empty: none. With
    /// a batch that is only half ready it names a pod that is gone.
    pub attach_pod: &'a str,
    /// The device in the guest, from the domain XML; empty: the guest does not have it.
    pub target: &'a str,
    /// What KubeVirt says about it.
    pub message: &'a str,
}

/// `status.migrationState`
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Migration<'a> {
    /// Uid of the `VirtualMachineInstanceMigration`.
    pub uid: &'a str,
    /// It has ended.
    pub completed: bool,
    /// It has ended badly.
    pub failed: bool,
    /// Name of the launcher that the guest leaves.
    pub source_pod: &'a str,
    /// Name of the launcher that it goes to.
    pub target_pod: &'a str,
    /// The node that it goes to.
    pub target_node: &'a str,
}

impl Migration<'_> {
    /// Whether it is still going on.
    pub fn is_running(&self) -> bool {
        !self.completed && !self.failed
    }
}

/// A VMI.
#[allow(clippy::struct_excessive_bools, reason = "independent facts of an object")]
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Instance<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its uid.
    pub uid: &'a str,
    /// It runs: `status.phase` is `Running`.
    pub running: bool,
    /// It has ended: `Succeeded` or `Failed`.
    pub is_final: bool,
    /// When its deletion was asked for.
    pub deletion: Option<Seconds>,
    /// How long its guest may take to shut down.
    pub termination_grace: Seconds,
    /// The node that its guest runs on.
    pub node: &'a str,
    /// The volumes of its spec that claims stand behind.
    pub volumes: Vec<SpecVolume<'a>>,
    /// Where its hotplugged volumes stand.
    pub status: Vec<VolumeStatus<'a>>,
    /// Its last migration.
    pub migration: Option<Migration<'a>>,
    /// A drain has asked for it to leave its node.
    pub evacuating: bool,
    /// Its guest was stopped by an I/O error.
    pub io_error: bool,
    /// Volumes are being moved to other claims by a migration (`status.migratedVolumes`).
    pub migrating_volumes: bool,
    /// It carries [`BREAK_GLASS`].
    pub break_glass: bool,
}

/// What a VMI says that nothing says (`defaults.DefaultGracePeriodSeconds` of KubeVirt is 30; its
/// API server writes 180 into new ones).
const TERMINATION_GRACE: Seconds = 180;

impl<'a> Instance<'a> {
    /// Reads a VMI.
    pub fn read(vmi: &'a Value) -> Self {
        let phase = text(vmi, &["status", "phase"]);
        let utility = list(vmi, &["spec", "utilityVolumes"]).iter().filter_map(|volume| {
            Some(SpecVolume {
                name: volume["name"].as_str()?,
                claim: volume["claimName"].as_str()?,
                hotplug: true,
                utility: true,
            })
        });
        Self {
            name: text(vmi, &["metadata", "name"]),
            uid: text(vmi, &["metadata", "uid"]),
            running: phase == "Running",
            is_final: matches!(phase, "Succeeded" | "Failed"),
            deletion: time(vmi, &["metadata", "deletionTimestamp"]),
            termination_grace: at(vmi, &["spec", "terminationGracePeriodSeconds"])
                .and_then(Value::as_i64)
                .unwrap_or(TERMINATION_GRACE),
            node: text(vmi, &["status", "nodeName"]),
            volumes: list(vmi, &["spec", "volumes"])
                .iter()
                .filter_map(SpecVolume::read)
                .chain(utility)
                .collect(),
            status: list(vmi, &["status", "volumeStatus"]).iter().filter_map(status).collect(),
            migration: at(vmi, &["status", "migrationState"]).map(migration),
            evacuating: !text(vmi, &["status", "evacuationNodeName"]).is_empty(),
            io_error: list(vmi, &["status", "conditions"])
                .iter()
                .any(|condition| condition["type"] == "Paused" && condition["reason"] == "PausedIOError"),
            migrating_volumes: !list(vmi, &["status", "migratedVolumes"]).is_empty(),
            break_glass: says_true(vmi, "annotations", BREAK_GLASS),
        }
    }

    /// Where a volume stands.
    pub fn status_of(&self, volume: &str) -> Option<&VolumeStatus<'a>> {
        self.status.iter().find(|status| status.name == volume)
    }

    /// The hotplugged volumes of its spec.
    pub fn hotplugged(&self) -> impl Iterator<Item = &SpecVolume<'a>> {
        self.volumes.iter().filter(|volume| volume.hotplug)
    }
}

fn status(entry: &Value) -> Option<VolumeStatus<'_>> {
    let hotplug = at(entry, &["hotplugVolume"])?;
    Some(VolumeStatus {
        name: entry["name"].as_str()?,
        phase: Phase::read(text(entry, &["phase"])),
        attach_pod: text(hotplug, &["attachPodUID"]),
        target: text(entry, &["target"]),
        message: text(entry, &["message"]),
    })
}

fn migration(state: &Value) -> Migration<'_> {
    let flag = |field: &str| state[field] == true;
    Migration {
        uid: text(state, &["migrationUid"]),
        completed: flag("completed"),
        failed: flag("failed"),
        source_pod: text(state, &["sourcePod"]),
        target_pod: text(state, &["targetPod"]),
        target_node: text(state, &["targetNode"]),
    }
}
