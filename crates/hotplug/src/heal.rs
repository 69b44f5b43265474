//! Attachment pods that KubeVirt leaves behind (rule O8), and that a delete puts right: the guard
//! is asked for each of them like for any other.

use serde::Serialize;

use crate::Seconds;
use crate::policy::{Classes, Limits};
use crate::view::{AttachmentPod, Instance, Launcher, PodPhase};

/// Why a pod should go.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ailment {
    /// It has ended, for example by an eviction of its kubelet, and virt-controller takes it for
    /// the current one as long as its volumes match (volume-hotplug.go:41-50, v1.9).
    Ended,
    /// It does not get to run, and nobody wants its set of claims any more; virt-controller creates
    /// no other meanwhile. One with the set that is wanted would only come back.
    Stuck,
    /// Another pod has the same claims; virt-controller takes neither for old.
    Duplicate,
    /// Its replacement has been given to the kubelet, and the driver refuses a volume to it because this pod has it (R1:
    /// #10275, #18862). virt-controller waits for the replacement to run, so somebody else has to end it. The kubelet counts
    /// the replacement, so it does not unstage the volume in between.
    InTheWay,
}

/// Why replacements do not start; empty where no class is exclusive-publish.
#[derive(Clone, Debug, Default)]
pub struct Blocked<'a> {
    /// The opt-ins of claims.
    pub classes: Classes<'a>,
    /// Volumes that a pod (by uid) cannot mount, from its events.
    pub unmountable: Vec<(&'a str, &'a str)>,
}

/// The pods that should go, with the reason.
pub fn decide<'a>(
    instance: &Instance<'a>,
    launcher: &Launcher<'a>,
    pods: &[AttachmentPod<'a>],
    blocked: &Blocked<'a>,
    limits: &Limits,
    now: Seconds,
) -> Vec<(&'a str, Ailment)> {
    let active = instance.running && !launcher.down && launcher.deletion.is_none();
    if !active || instance.deletion.is_some() {
        return Vec::new();
    }
    let live = || pods.iter().filter(|pod| !pod.deleting && !pod.trigger);
    let mut ailing: Vec<(&str, Ailment)> = live()
        .filter_map(|pod| {
            let old = now.saturating_sub(pod.created) > limits.pending;
            match pod.phase {
                PodPhase::Failed | PodPhase::Succeeded => Some((pod.name, Ailment::Ended)),
                PodPhase::Pending if old && !is_wanted(instance, pod) => Some((pod.name, Ailment::Stuck)),
                PodPhase::Running if is_in_the_way(instance, pod, pods, blocked, limits, now) => {
                    Some((pod.name, Ailment::InTheWay))
                }
                _ => None,
            }
        })
        .collect();
    let well: Vec<&AttachmentPod<'a>> =
        live().filter(|pod| !ailing.iter().any(|(name, _)| *name == pod.name)).collect();
    for (at, pod) in well.iter().enumerate() {
        let twins = || well.iter().enumerate().filter(|(_, other)| same_claims(pod, other));
        // The twin that most volumes refer to stays; then the one that serves; then the first.
        let best = twins()
            .max_by_key(|(at, twin)| (references(instance, twin), twin.serves(), std::cmp::Reverse(*at)));
        // Only beside one that serves: what is deleted now may come into use in this very moment.
        if best.is_some_and(|(best, twin)| best != at && twin.serves()) {
            ailing.push((pod.name, Ailment::Duplicate));
        }
    }
    ailing
}

fn is_in_the_way(
    instance: &Instance<'_>,
    pod: &AttachmentPod<'_>,
    pods: &[AttachmentPod<'_>],
    blocked: &Blocked<'_>,
    limits: &Limits,
    now: Seconds,
) -> bool {
    let exclusive = |claim: &str| blocked.classes.get(claim).is_some_and(|class| class.exclusive_publish);
    let refused = |replacement: &AttachmentPod<'_>| {
        pod.volumes.iter().any(|volume| {
            exclusive(volume.claim)
                && replacement.usage(volume.claim).is_some()
                && blocked.unmountable.contains(&(replacement.uid, volume.name))
        })
    };
    !is_wanted(instance, pod)
        && pods.iter().any(|other| {
            other.phase == PodPhase::Pending
                && !other.deleting
                && !other.node.is_empty()
                && other.node == pod.node
                && is_wanted(instance, other)
                && now.saturating_sub(other.created) > limits.exclusive
                && refused(other)
        })
}

fn is_wanted(instance: &Instance<'_>, pod: &AttachmentPod<'_>) -> bool {
    pod.volumes.len() == instance.hotplugged().count()
        && instance.hotplugged().all(|volume| pod.usage(volume.claim).is_some())
}

fn references(instance: &Instance<'_>, pod: &AttachmentPod<'_>) -> usize {
    instance.status.iter().filter(|status| status.attach_pod == pod.uid).count()
}

fn same_claims(one: &AttachmentPod<'_>, other: &AttachmentPod<'_>) -> bool {
    one.volumes.len() == other.volumes.len()
        && one.volumes.iter().all(|volume| other.usage(volume.claim).is_some())
}
