//! Conditions in words: what each means for the person who runs the VM. Types and reasons are those of
//! `staging/src/kubevirt.io/api/core/v1/types.go`, v1.9.

use serde::Serialize;
use serde_json::Value;

use super::json::{list, text};

/// A condition and what it means.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Explained {
    /// The type, as in `LiveMigratable`.
    #[serde(rename = "type")]
    pub kind: String,
    /// `True`, `False` or `Unknown`.
    pub status: String,
    /// KubeVirt's reason, as in `DisksNotLiveMigratable`.
    pub reason: String,
    /// KubeVirt's message.
    pub message: String,
    /// What it means, and what to do where something is to be done.
    pub meaning: String,
}

/// All conditions of a VM and of its VMI; those that virt-controller copies to the VM appear once.
pub fn explain(vm: &Value, vmi: Option<&Value>) -> Vec<Explained> {
    let mut found: Vec<Explained> = Vec::new();
    let instance = vmi.map(|vmi| list(vmi, "/status/conditions")).unwrap_or_default();
    for condition in list(vm, "/status/conditions").iter().chain(instance) {
        let (kind, status) = (text(condition, "/type"), text(condition, "/status"));
        if found.iter().any(|one| one.kind == kind) {
            continue;
        }
        let reason = text(condition, "/reason");
        found.push(Explained {
            kind: kind.into(),
            status: status.into(),
            reason: reason.into(),
            message: text(condition, "/message").into(),
            meaning: meaning(kind, status == "True", reason).into(),
        });
    }
    found
}

/// What a condition means; empty for conditions of other makers.
fn meaning(kind: &str, holds: bool, reason: &str) -> &'static str {
    match (kind, holds) {
        ("Ready", true) => "the guest runs and its readiness probe, if any, passes",
        ("Ready", false) if reason == "VMINotExists" => "the VM is off",
        ("Ready", false) => "the guest does not run yet, or its readiness probe fails",
        ("Failure", true) => "the controller could not do what the spec asks for; the message says why",
        ("Paused", true) => "the guest's CPUs stand still; `virt-steward vm unpause` lets them go on",
        ("RestartRequired", true) => {
            "a change of the spec takes effect only after a restart: `virt-steward vm restart`"
        }
        ("ManualRecoveryRequired", true) => {
            "a volume migration broke off; repair the volumes in the spec before the next start"
        }
        ("LiveMigratable", true) => "it can move to another node while it runs",
        ("LiveMigratable", false) => blocker(reason),
        ("StorageLiveMigratable", true) => "its disks can move to other claims while it runs",
        ("StorageLiveMigratable", false) => "its disks cannot move while it runs",
        ("AgentConnected", true) => "the guest agent answers: guest data and consistent snapshots work",
        ("AgentConnected", false) => "no guest agent: snapshots are crash-consistent, guest data is missing",
        ("AccessCredentialsSynchronized", true) => "keys and passwords are in the guest",
        ("HotVCPUChange", true) => "CPUs are being added; a migration completes it",
        ("HotMemoryChange", true) => "memory is being added; a migration completes it",
        ("VolumesChange", true) => "volumes are moving to other claims",
        ("MigrationRequired", true) => "a change waits for a migration",
        ("EvictionRequested", true) => "its node is being drained; it is about to move",
        ("SoftwareEmulation", true) => "no hardware virtualisation: it is slow",
        _ => "",
    }
}

/// Why a VM cannot be migrated, by the reason of `LiveMigratable` False (types.go, v1.9).
pub fn blocker(reason: &str) -> &'static str {
    match reason {
        "DisksNotLiveMigratable" => {
            "a disk is on a claim that only one node can mount; use a claim with ReadWriteMany"
        }
        "InterfaceNotLiveMigratable" => {
            "the pod network is bridged; use masquerade, or a Multus network for the bridge"
        }
        "HostDeviceNotLiveMigratable" => "it owns a host device; detach it first",
        "HotplugNotLiveMigratable" => {
            "a hotplugged volume cannot be mounted on another node; detach it first"
        }
        "CPUModeLiveMigratable" => "its CPU is the host's; choose a CPU model that other nodes have",
        "VirtIOFSNotLiveMigratable" => "it shares a file system with the host",
        "SEVNotLiveMigratable" | "SecureExecutionNotLiveMigratable" | "TDXNotLiveMigratable" => {
            "its memory is encrypted for this node"
        }
        "HypervPassthroughNotLiveMigratable" => "its Hyper-V features are those of this host",
        "PRNotLiveMigratable" => "a disk holds a persistent SCSI reservation",
        "RebootPolicyNotLiveMigratable" => "its reboot policy does not allow it",
        _ => "it cannot be migrated; the message says why",
    }
}

/// Whether a condition is there and True.
pub fn holds(object: &Value, kind: &str) -> bool {
    super::json::holds(object, kind)
}

/// The message of a condition that is True.
pub fn message<'a>(object: &'a Value, kind: &str) -> Option<&'a str> {
    let condition = super::json::condition(object, kind).filter(|one| text(one, "/status") == "True")?;
    Some(text(condition, "/message"))
}
