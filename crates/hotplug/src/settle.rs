//! Whether the last change of a VMI's volumes has come to rest (rule O1): one attachment pod, with
//! exactly the claims of the spec, ready, and every volume in the guest from that very pod.

use serde::Serialize;

use crate::Seconds;
use crate::view::{AttachmentPod, Instance, Phase, PodPhase, SpecVolume, VolumeStatus};

/// One thing that a VMI waits for.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "camelCase", tag = "wait")]
pub enum Wait {
    /// There are hotplugged volumes and no attachment pod.
    NoPod,
    /// There is more than one attachment pod: a handoff is going on.
    Handoff {
        /// Their names.
        pods: Vec<String>,
    },
    /// The attachment pod is not ready.
    PodNotReady {
        /// Its name.
        pod: String,
        /// Why, as far as it says.
        why: String,
    },
    /// The attachment pod has other claims than the spec.
    PodDiffers {
        /// Its name.
        pod: String,
    },
    /// There are no hotplugged volumes, and an attachment pod is still there.
    PodLeftOver {
        /// Its name.
        pod: String,
    },
    /// A volume of the spec is not in the guest.
    Volume {
        /// Its name.
        volume: String,
        /// Where it stands.
        phase: &'static str,
        /// What KubeVirt says.
        message: String,
    },
    /// The status of a volume names a pod that is gone.
    Stale {
        /// Its name.
        volume: String,
    },
    /// KubeVirt has noted a request for a volume, and not served it.
    Requested {
        /// Its name.
        volume: String,
    },
    /// A volume that has just left is to come back.
    Returning {
        /// Its name.
        volume: String,
    },
    /// A volume that is not in the spec any more has not left.
    Leaving {
        /// Its name.
        volume: String,
        /// Where it stands.
        phase: &'static str,
        /// The guest has it still.
        in_guest: bool,
    },
}

impl Wait {
    /// In words, for people.
    pub fn words(&self) -> String {
        match self {
            Self::NoPod => "KubeVirt has not created an attachment pod yet".into(),
            Self::Handoff { pods } => format!("a handoff between attachment pods {}", pods.join(", ")),
            Self::PodNotReady { pod, why } => format!("attachment pod {pod} is not ready: {why}"),
            Self::PodDiffers { pod } => {
                format!("attachment pod {pod} holds other claims than the VMI; KubeVirt will replace it")
            }
            Self::PodLeftOver { pod } => format!("attachment pod {pod} is no longer needed and has not gone"),
            Self::Volume { volume, phase, message } if message.is_empty() => {
                format!("volume {volume} is {phase}, not Ready")
            }
            Self::Volume { volume, phase, message } => {
                format!("volume {volume} is {phase}, not Ready: {message}")
            }
            Self::Stale { volume } => {
                format!("volume {volume} still refers to an attachment pod that is gone")
            }
            Self::Requested { volume } => {
                format!("KubeVirt has noted the request for volume {volume}, and not served it yet")
            }
            Self::Returning { volume } => {
                format!("volume {volume} has just left, and comes back in a moment")
            }
            Self::Leaving { volume, in_guest: true, .. } => {
                format!("the guest has not let go of volume {volume}")
            }
            Self::Leaving { volume, phase, .. } => {
                format!("volume {volume} is {phase}; its attachment pod has to go first")
            }
        }
    }
}

/// What is waited for; nothing: the VMI is settled. `pods` are the attachment pods of the active
/// launcher.
pub fn waits(instance: &Instance<'_>, pods: &[AttachmentPod<'_>]) -> Vec<Wait> {
    let live: Vec<&AttachmentPod<'_>> = pods.iter().filter(|pod| !pod.trigger).collect();
    let wanted = instance.hotplugged().count();
    let mut waits = Vec::new();
    match (wanted, live.as_slice()) {
        (0, []) => {}
        (0, left) => waits.extend(left.iter().map(|pod| Wait::PodLeftOver { pod: pod.name.into() })),
        (_, []) => waits.push(Wait::NoPod),
        (_, [pod]) => {
            waits.extend(pod_waits(instance, pod));
            let volumes = instance.hotplugged();
            waits.extend(
                volumes.filter_map(|volume| volume_wait(volume, instance.status_of(volume.name), pod)),
            );
        }
        (_, several) => {
            waits.push(Wait::Handoff { pods: several.iter().map(|pod| pod.name.to_owned()).collect() });
        }
    }
    waits.extend(instance.status.iter().filter_map(|status| leaving(instance, status)));
    waits
}

/// How long several pods have to stand beside each other before they count as at rest, in seconds: KubeVirt deletes what it
/// may within moments.
const AT_REST: Seconds = 30;

/// Whether all is in the guest and several pods stay on purpose: pins of a driver with a device for each publication. One of
/// them has exactly the claims of the spec; what has left the guest keeps its status entry as long as a pod lists it.
pub fn is_at_rest_with_several(instance: &Instance<'_>, pods: &[AttachmentPod<'_>], now: Seconds) -> bool {
    let live: Vec<&AttachmentPod<'_>> = pods.iter().filter(|pod| !pod.trigger).collect();
    let there = |volume: &SpecVolume<'_>| {
        instance
            .status_of(volume.name)
            .is_some_and(|status| status.phase == Phase::Ready && !status.target.is_empty())
    };
    let gone = |status: &VolumeStatus<'_>| {
        status.target.is_empty() || instance.volumes.iter().any(|volume| volume.name == status.name)
    };
    live.len() > 1
        && live.iter().all(|pod| pod.serves() && now.saturating_sub(pod.created) > AT_REST)
        && live.iter().any(|pod| pod_waits(instance, pod).is_none())
        && instance.hotplugged().all(there)
        && instance.status.iter().all(gone)
}

/// Whether nothing is waited for.
pub fn is_settled(instance: &Instance<'_>, pods: &[AttachmentPod<'_>]) -> bool {
    waits(instance, pods).is_empty()
}

fn pod_waits(instance: &Instance<'_>, pod: &AttachmentPod<'_>) -> Option<Wait> {
    let same = pod.volumes.len() == instance.hotplugged().count()
        && instance.hotplugged().all(|volume| pod.usage(volume.claim).is_some());
    if !same {
        return Some(Wait::PodDiffers { pod: pod.name.into() });
    }
    (!pod.serves()).then(|| Wait::PodNotReady { pod: pod.name.into(), why: why_not_ready(pod) })
}

/// What keeps a pod from serving.
pub fn why_not_ready(pod: &AttachmentPod<'_>) -> String {
    match pod.phase {
        _ if pod.deleting => "it is being deleted".into(),
        PodPhase::Failed | PodPhase::Succeeded => "it has ended, and KubeVirt does not replace it".into(),
        PodPhase::Pending if !pod.trouble.is_empty() => pod.trouble.into(),
        PodPhase::Pending if pod.node.is_empty() => "it is not scheduled yet".into(),
        PodPhase::Pending => "its kubelet is fetching volumes or the image".into(),
        PodPhase::Running => "its container is not ready yet".into(),
    }
}

fn volume_wait(
    volume: &SpecVolume<'_>,
    status: Option<&VolumeStatus<'_>>,
    pod: &AttachmentPod<'_>,
) -> Option<Wait> {
    let name = volume.name;
    let not_there = |phase: Phase, message: &str| {
        Some(Wait::Volume { volume: name.into(), phase: phase.name(), message: message.into() })
    };
    let Some(status) = status else { return not_there(Phase::Unknown, "") };
    let arrived = match status.phase {
        Phase::Ready => !status.target.is_empty(),
        Phase::MemoryDumpEnded => true,
        // Utility volumes never reach the guest.
        Phase::MountedToPod => volume.utility,
        _ => false,
    };
    if !arrived {
        return not_there(status.phase, status.message);
    }
    (status.attach_pod != pod.uid).then(|| Wait::Stale { volume: name.into() })
}

fn leaving(instance: &Instance<'_>, status: &VolumeStatus<'_>) -> Option<Wait> {
    let gone = !instance.volumes.iter().any(|volume| volume.name == status.name);
    gone.then(|| Wait::Leaving {
        volume: status.name.into(),
        phase: status.phase.name(),
        in_guest: !status.target.is_empty(),
    })
}
