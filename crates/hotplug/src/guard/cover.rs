//! Which volumes of a pod are in use, and whether another pod serves them.

use super::pass::{Standing, standing};
use super::{Loss, LostVolume, Observation};
use crate::Seconds;
use crate::policy::{Class, Limits};
use crate::record::Record;
use crate::view::{AttachmentPod, Instance, Phase, PodPhase, PodVolume, Usage};

/// What would become of the volumes of a pod.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Coverage {
    /// In use, and served by no other pod.
    pub lost: Vec<LostVolume>,
    /// Some would be lost, and are let go because their driver leaves no choice.
    pub excused: bool,
}

/// Whether the guest has a volume of the pod, or is about to get it.
///
/// `target` comes from the domain XML and is the truth in every version. `UnMountedFromPod` is not
/// asked for: up to v1.5 virt-handler unmounts only after the pod has gone, so waiting for it
/// would last for ever.
pub fn in_use(instance: &Instance<'_>, pod: &AttachmentPod<'_>, volume: &str) -> bool {
    instance.status_of(volume).is_some_and(|status| {
        !status.target.is_empty()
            || matches!(status.phase, Phase::MountedToPod | Phase::Ready | Phase::MemoryDumpInProgress)
            || (status.phase == Phase::AttachedToNode && status.attach_pod == pod.uid && pod.ready)
    })
}

/// Looks at each volume of the pod.
pub(super) fn coverage(seen: &Observation<'_>, record: &Record, limits: &Limits, now: Seconds) -> Coverage {
    let mut coverage = Coverage::default();
    let (Some(instance), Some(launcher)) = (&seen.instance, &seen.launcher) else { return coverage };
    let target = standing(launcher, instance) == Standing::Target;
    let look = Look { seen, instance, record, limits, now, node: launcher.node };
    for volume in &seen.pod.volumes {
        // A target serves no guest yet; it will serve whatever the source serves now.
        let wanted = target && instance.volumes.iter().any(|listed| listed.name == volume.name);
        if !wanted && !in_use(instance, &seen.pod, volume.name) {
            continue;
        }
        let Some((loss, waits_for)) = look.loss(volume) else { continue };
        let loss = if target { Loss::MigrationTarget } else { loss };
        if look.is_excused(volume) {
            coverage.excused = true;
            continue;
        }
        coverage.lost.push(LostVolume {
            volume: volume.name.to_owned(),
            claim: volume.claim.to_owned(),
            loss,
            waits_for: waits_for.map(|pod| pod.name.to_owned()),
        });
    }
    coverage
}

/// The pod that a volume depends on.
#[derive(Clone, Copy, Eq, PartialEq)]
enum Source<'s> {
    /// Any that serves it.
    Any,
    /// The one that is to be deleted.
    Here,
    /// This one, by uid.
    Elsewhere(&'s str),
}

struct Look<'s, 'a> {
    seen: &'s Observation<'a>,
    instance: &'s Instance<'a>,
    record: &'s Record,
    limits: &'s Limits,
    now: Seconds,
    node: &'a str,
}

impl<'s, 'a> Look<'s, 'a> {
    fn class(&self, claim: &str) -> Class {
        self.seen.classes.get(claim).copied().unwrap_or_default()
    }

    /// Other pods of the launcher with the claim.
    fn others(&self, claim: &'s str) -> impl Iterator<Item = (&'s AttachmentPod<'a>, Usage)> {
        self.seen
            .siblings
            .iter()
            .filter(|other| other.uid != self.seen.pod.uid)
            .filter_map(move |other| Some((other, other.usage(claim)?)))
    }

    /// Why the volume would be lost, with the pod that comes closest to serving it; `None`: it is
    /// served by another pod.
    fn loss(&self, volume: &'s PodVolume<'a>) -> Option<(Loss, Option<&'s AttachmentPod<'a>>)> {
        let class = self.class(volume.claim);
        let source = self.source(volume, class);
        if source == Source::Here {
            return Some((Loss::Pinned, None));
        }
        let mut nearest: Option<(Loss, &AttachmentPod<'_>)> = None;
        for (other, usage) in self.others(volume.claim) {
            if matches!(source, Source::Elsewhere(uid) if uid != other.uid) {
                continue;
            }
            match self.shortfall(volume, class, other, usage) {
                None => return None,
                Some(loss) if nearest.is_none_or(|(known, _)| rank(loss) < rank(known)) => {
                    nearest = Some((loss, other));
                }
                Some(_) => {}
            }
        }
        let in_spec = self.instance.volumes.iter().any(|listed| listed.name == volume.name);
        Some(match nearest {
            Some((loss, other)) => (loss, Some(other)),
            None if in_spec => (Loss::NoReplacement, None),
            None => (Loss::GuestHolds, None),
        })
    }

    /// What another pod lacks to serve the volume; `None`: nothing.
    fn shortfall(
        &self,
        volume: &PodVolume<'_>,
        class: Class,
        other: &AttachmentPod<'_>,
        usage: Usage,
    ) -> Option<Loss> {
        let granted = self.record.is_granted(other.uid, self.now, self.limits.grant);
        if other.deleting || other.phase.is_final() || granted {
            return Some(Loss::Doomed);
        }
        if other.phase != PodPhase::Running || other.node != self.node {
            return Some(Loss::NotRunning);
        }
        if !other.ready {
            return Some(Loss::NotReady);
        }
        match (volume.usage, usage) {
            (Usage::Device, Usage::Device) | (_, Usage::Mounted) => None,
            (Usage::Device, _) => Some(Loss::NotMounted),
            (Usage::Listed | Usage::Mounted, _) if class.strict => Some(Loss::NotMounted),
            (Usage::Listed | Usage::Mounted, _) => None,
        }
    }

    /// Which pod has to stay for a volume. What is not known (nobody looked while only one pod could be the source) may be
    /// this one, so each pod that is ready and uses it stays.
    fn source(&self, volume: &PodVolume<'a>, class: Class) -> Source<'s> {
        if !class.pin {
            return Source::Any;
        }
        let pod = &self.seen.pod;
        match self.record.taken.get(volume.name) {
            Some(uid) if uid == pod.uid => Source::Here,
            Some(uid) if self.seen.siblings.iter().any(|other| other.uid == uid) => Source::Elsewhere(uid),
            _ if pod.ready && volume.usage != Usage::Listed => Source::Here,
            _ => Source::Any,
        }
    }

    /// A driver that refuses a second pod on the node leaves no choice but a gap, once the
    /// replacement has tried long enough (#10275, #18862).
    fn is_excused(&self, volume: &'s PodVolume<'a>) -> bool {
        self.class(volume.claim).exclusive_publish
            && self.others(volume.claim).any(|(other, _)| {
                other.phase == PodPhase::Pending
                    && !other.deleting
                    // It would go as well, and then nobody keeps the volume on the node.
                    && !self.record.is_granted(other.uid, self.now, self.limits.grant)
                    && other.node == self.node
                    && self.now.saturating_sub(other.created) > self.limits.exclusive
                    && self.seen.unmountable.contains(&(other.uid, volume.name))
            })
    }
}

/// How far a pod is from serving; the nearest is named in the denial.
const fn rank(loss: Loss) -> u8 {
    match loss {
        Loss::NotReady => 0,
        Loss::NotRunning => 1,
        Loss::NotMounted => 2,
        Loss::Pinned => 3,
        _ => 4,
    }
}
