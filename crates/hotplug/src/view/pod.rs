//! Attachment pods and launcher pods.

use serde_json::Value;

use super::{at, list, says_true, text, time};
use crate::Seconds;
use crate::annotations::{ATTACHMENT, BREAK_GLASS, MIGRATION, TRIGGER};

/// `status.phase` of a pod.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum PodPhase {
    /// Not all containers run: not scheduled yet, or volumes or image are being fetched.
    Pending,
    /// The kubelet has published its volumes and started it.
    Running,
    /// Ended well.
    Succeeded,
    /// Ended badly, or was evicted by its kubelet.
    Failed,
}

impl PodPhase {
    fn read(pod: &Value) -> Self {
        match text(pod, &["status", "phase"]) {
            "Running" => Self::Running,
            "Succeeded" => Self::Succeeded,
            "Failed" => Self::Failed,
            _ => Self::Pending,
        }
    }

    /// No container will ever run again.
    pub fn is_final(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed)
    }
}

/// What a pod does with a volume that it lists. The kubelet ignores a volume that no container
/// uses (`desired_state_of_world_populator.go`, "Skipping unused volume").
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Usage {
    /// It only lists it: KubeVirt leaves the mount of a Ready filesystem volume out of the
    /// replacement (`skipMount`, template.go, since 2021).
    Listed,
    /// A container mounts it: a filesystem volume.
    Mounted,
    /// A container has it as a device: a block volume.
    Device,
}

/// One claim in an attachment pod.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct PodVolume<'a> {
    /// Name of the volume in the pod, which is its name in the VMI.
    pub name: &'a str,
    /// Name of the claim.
    pub claim: &'a str,
    /// What the pod does with it.
    pub usage: Usage,
}

/// A pod `hp-volume-*`.
#[allow(clippy::struct_excessive_bools, reason = "independent facts of an object")]
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct AttachmentPod<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its uid.
    pub uid: &'a str,
    /// Uid of the launcher pod that controls it.
    pub launcher: Option<&'a str>,
    /// Name of that launcher pod.
    pub launcher_name: &'a str,
    /// Its phase.
    pub phase: PodPhase,
    /// Every container is ready, and there is one.
    pub ready: bool,
    /// It has a `deletionTimestamp`.
    pub deleting: bool,
    /// The node that it was scheduled to; empty: none yet.
    pub node: &'a str,
    /// When it was created.
    pub created: Seconds,
    /// It only makes a claim bind.
    pub trigger: bool,
    /// The claims in it, in the order of its volumes.
    pub volumes: Vec<PodVolume<'a>>,
    /// Why it does not start, by a reason that does not pass by itself: `Unschedulable`,
    /// `ImagePullBackOff`, `ErrImagePull`, `CreateContainer…`; empty: none is known.
    pub trouble: &'a str,
    /// It carries [`BREAK_GLASS`].
    pub break_glass: bool,
}

impl<'a> AttachmentPod<'a> {
    /// Reads a pod; `None` when it is not an attachment pod controlled by a pod.
    pub fn read(pod: &'a Value) -> Option<Self> {
        if text(pod, &["metadata", "labels", ATTACHMENT.0]) != ATTACHMENT.1 {
            return None;
        }
        let owner = list(pod, &["metadata", "ownerReferences"])
            .iter()
            .find(|owner| owner["kind"] == "Pod" && owner["controller"] == true)?;
        Some(Self {
            name: text(pod, &["metadata", "name"]),
            uid: text(pod, &["metadata", "uid"]),
            launcher: owner["uid"].as_str(),
            launcher_name: text(owner, &["name"]),
            phase: PodPhase::read(pod),
            ready: is_ready(pod),
            deleting: at(pod, &["metadata", "deletionTimestamp"]).is_some(),
            node: text(pod, &["spec", "nodeName"]),
            created: time(pod, &["metadata", "creationTimestamp"]).unwrap_or_default(),
            trigger: at(pod, &["metadata", "annotations", TRIGGER]).is_some(),
            volumes: volumes(pod),
            trouble: trouble(pod),
            break_glass: says_true(pod, "annotations", BREAK_GLASS),
        })
    }

    /// What it does with a claim, when it lists it.
    pub fn usage(&self, claim: &str) -> Option<Usage> {
        self.volumes.iter().find(|volume| volume.claim == claim).map(|volume| volume.usage)
    }

    /// Whether it can serve a volume now: it runs, is ready and is not about to go.
    pub fn serves(&self) -> bool {
        self.phase == PodPhase::Running && self.ready && !self.deleting
    }
}

fn is_ready(pod: &Value) -> bool {
    let containers = list(pod, &["status", "containerStatuses"]);
    !containers.is_empty() && containers.iter().all(|container| container["ready"] == true)
}

fn volumes(pod: &Value) -> Vec<PodVolume<'_>> {
    let containers = || list(pod, &["spec", "containers"]).iter();
    let names = |field: &'static str, name: &str| {
        containers().any(|container| list(container, &[field]).iter().any(|used| used["name"] == name))
    };
    list(pod, &["spec", "volumes"])
        .iter()
        .filter_map(|volume| {
            let claim = at(volume, &["persistentVolumeClaim", "claimName"])?.as_str()?;
            let name = volume["name"].as_str()?;
            let usage = if names("volumeDevices", name) {
                Usage::Device
            } else if names("volumeMounts", name) {
                Usage::Mounted
            } else {
                Usage::Listed
            };
            Some(PodVolume { name, claim, usage })
        })
        .collect()
}

/// Reasons that do not pass by waiting a moment longer.
fn trouble(pod: &Value) -> &str {
    let unschedulable = list(pod, &["status", "conditions"])
        .iter()
        .any(|condition| condition["type"] == "PodScheduled" && condition["reason"] == "Unschedulable");
    if unschedulable {
        return "Unschedulable";
    }
    list(pod, &["status", "containerStatuses"])
        .iter()
        .map(|container| text(container, &["state", "waiting", "reason"]))
        .find(|reason| {
            matches!(*reason, "ImagePullBackOff" | "ErrImagePull" | "InvalidImageName")
                || reason.starts_with("CreateContainer")
        })
        .unwrap_or_default()
}

/// The launcher pod of a VMI.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Launcher<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its uid.
    pub uid: &'a str,
    /// It is final, or its `compute` container has ended: the guest does not run any more.
    pub down: bool,
    /// When a kubelet is expected to have ended it; the grace period is in it already.
    pub deletion: Option<Seconds>,
    /// Its node.
    pub node: &'a str,
    /// Uid of the migration that it is the target of; empty: none.
    pub migration: &'a str,
    /// How long it tolerates a node that is not ready or not reachable, in seconds; `None`: for
    /// ever.
    pub toleration: Option<Seconds>,
    /// Uid of the VMI that controls it.
    pub instance: &'a str,
    /// Name of that VMI.
    pub instance_name: &'a str,
}

impl<'a> Launcher<'a> {
    /// Reads a launcher pod.
    pub fn read(pod: &'a Value) -> Self {
        let ended = list(pod, &["status", "containerStatuses"]).iter().any(|container| {
            container["name"] == "compute" && at(container, &["state", "terminated"]).is_some()
        });
        let owner = list(pod, &["metadata", "ownerReferences"])
            .iter()
            .find(|owner| owner["kind"] == "VirtualMachineInstance" && owner["controller"] == true)
            .unwrap_or(&Value::Null);
        Self {
            name: text(pod, &["metadata", "name"]),
            uid: text(pod, &["metadata", "uid"]),
            down: PodPhase::read(pod).is_final() || ended,
            deletion: time(pod, &["metadata", "deletionTimestamp"]),
            node: text(pod, &["spec", "nodeName"]),
            migration: text(pod, &["metadata", "labels", MIGRATION]),
            toleration: toleration(pod),
            instance: text(owner, &["uid"]),
            instance_name: text(owner, &["name"]),
        }
    }
}

/// The least `tolerationSeconds` for a node that is away. The API server adds 300 s to pods that
/// say nothing (`DefaultTolerationSeconds`).
fn toleration(pod: &Value) -> Option<Seconds> {
    const AWAY: [&str; 2] = ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"];
    let tolerations = list(pod, &["spec", "tolerations"]);
    let of = |taint: &str| {
        let found = tolerations.iter().find(|toleration| toleration["key"] == taint);
        found.map_or(Some(300), |toleration| toleration["tolerationSeconds"].as_i64())
    };
    AWAY.into_iter().filter_map(of).min()
}
