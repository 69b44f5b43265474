//! virt-controller: which attachment pods it creates and deletes (`volume-hotplug.go`), and what
//! it writes into the volume status (`storage.go`). It decides on its cache of pods, creates
//! before it cleans up, and stops cleaning up at the first delete that is refused.

use crate::release::Release;
use crate::state::{Age, Expectation, Guest, Migration, Phase, Pod, PodPhase, Setup, Uid, World};
use crate::steward::Steward;
use crate::volumes::{Volume, Volumes};

/// What one pass decides about pods, in the order in which it is done.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Plan {
    /// A pod with these volumes is created.
    pub create: Option<Volumes>,
    /// These pods are deleted, until one delete is refused.
    pub delete: Vec<Uid>,
}

/// `cleanupAttachmentPods` and what leads to it, for the pods of one launcher as a cache has them.
pub fn plan(release: Release, spec: Volumes, ready: Volumes, in_guest: Volumes, pods: &[Pod]) -> Plan {
    let set = spec.and(ready);
    let matches = |pod: &&Pod| pod.volumes == set;
    // The last match is the current pod; a second one is neither current nor old.
    let current = pods.iter().rev().find(matches).filter(|_| !set.is_empty());
    let old: Vec<&Pod> = pods.iter().filter(|pod| set.is_empty() || !matches(pod)).collect();
    if current.is_some() && pods.len() == 1 {
        return Plan::default();
    }
    let pending = old.iter().any(|pod| pod.phase <= PodPhase::Scheduled);
    let create = (current.is_none() && !set.is_empty() && !pending).then_some(set);
    let replacement = current.map(|pod| pod.phase).or(create.map(|_| PodPhase::Pending));
    let replaced = match replacement {
        None => false,
        Some(PodPhase::Running | PodPhase::Ready) => true,
        Some(phase) => release.pending_is_enough() && phase != PodPhase::Failed,
    };
    let mut delete = Vec::new();
    let mut kept = false;
    for pod in old.iter().rev() {
        let needed = !release.keeps_only_what_is_needed() || !pod.volumes.and(spec.or(in_guest)).is_empty();
        let runs = matches!(pod.phase, PodPhase::Running | PodPhase::Ready);
        if !kept && runs && !set.is_empty() && !replaced && needed {
            kept = true;
            continue;
        }
        if release.waits_for_unplug() && !pod.volumes.minus(spec).and(in_guest).is_empty() {
            continue;
        }
        delete.push(pod.uid);
    }
    Plan { create, delete }
}

/// Volumes whose status says that the launcher or the guest has them.
fn in_guest(world: &World) -> Volumes {
    let held = |volume: &Volume| matches!(world.status_of(*volume).phase, Phase::Ready | Phase::MountedToPod);
    (0..8).filter(held).fold(Volumes::NONE, Volumes::with)
}

/// One pass over a VMI: pods, then status.
pub(crate) fn sync(world: &mut World, setup: Setup, steward: &dyn Steward) {
    if is_satisfied(world) {
        let retried = matches!(world.expectation, Expectation::Forgotten(_));
        world.expectation = Expectation::None;
        sync_pods(world, setup, steward);
        if let Expectation::Forgotten(uid) = world.expectation
            && retried
        {
            world.expectation = Expectation::Created(uid);
        }
    }
    report(world, setup);
}

/// Whether a look at the VMI can change anything: in a VM at rest, with one pod of the set in both the API and the cache,
/// it cannot, and most looks are at those.
pub(crate) fn may_do_something(world: &World) -> bool {
    let [pod] = world.cache.as_slice() else { return true };
    let at_rest = pod.phase == PodPhase::Ready
        && pod.launcher == world.launcher
        && pod.volumes == world.spec
        && world.entries() == world.spec
        && world.guest == Guest::Running
        && !world.deleting
        && !world.lost;
    let reported = |volume: Volume| {
        let status = world.status_of(volume);
        status.pod == pod.uid
            && !matches!(status.phase, Phase::Bound | Phase::Detaching | Phase::UnMountedFromPod)
    };
    !(at_rest && world.spec.iter().all(reported)) || world.expectation != Expectation::None
}

fn is_satisfied(world: &World) -> bool {
    let cached = |uid: Uid| world.cache.iter().any(|pod| pod.uid == uid);
    match world.expectation {
        Expectation::Created(uid) => cached(uid),
        Expectation::None | Expectation::Forgotten(_) => true,
        Expectation::Deleted(uid) => !cached(uid),
    }
}

fn sync_pods(world: &mut World, setup: Setup, steward: &dyn Steward) {
    let target = match world.migration {
        Migration::Target { launcher, .. } => launcher,
        Migration::None | Migration::Requested => 0,
    };
    // Pods of launchers that are down, such as the source of a migration.
    let orphans: Vec<Uid> = world
        .cache
        .iter()
        .filter(|pod| pod.launcher != world.launcher && pod.launcher != target)
        .map(|pod| pod.uid)
        .collect();
    delete_all(world, setup, steward, &orphans);
    let own: Vec<Pod> = world.cache.iter().filter(|pod| pod.launcher == world.launcher).copied().collect();
    let all: Vec<Uid> = own.iter().map(|pod| pod.uid).collect();
    if world.guest == Guest::Down || (world.deleting && setup.release.deletes_with_the_vmi()) {
        delete_all(world, setup, steward, &all);
        return;
    }
    if world.deleting || world.guest != Guest::Running || world.lost {
        return;
    }
    let pending = |uid: Uid, world: &World| {
        world.pod(uid).is_some_and(|pod| {
            pod.phase <= PodPhase::Scheduled && pod.age < Age::Old && !world.spec.within(pod.volumes)
        })
    };
    let plan = plan(setup.release, world.spec, world.ready, in_guest(world), &own);
    if let Some(set) = plan.create {
        let held = in_guest(world);
        world.harm.duplicate |=
            world.pods.iter().any(|pod| pod.launcher == world.launcher && pod.volumes == set);
        let uid = create(world, world.launcher, set, steward.uses(setup, set, held));
        world.expectation = Expectation::Created(uid);
    }
    let wasted = plan.delete.iter().any(|uid| pending(*uid, world));
    delete_all(world, setup, steward, &plan.delete);
    world.harm.wasted |= wasted;
}

/// Creates a pod and returns its uid.
pub(crate) fn create(world: &mut World, launcher: u8, volumes: Volumes, used: Volumes) -> Uid {
    world.uids += 1;
    world.pods.push(Pod {
        uid: world.uids,
        launcher,
        volumes,
        used,
        phase: PodPhase::Pending,
        age: Age::Fresh,
        granted: false,
    });
    world.uids
}

fn delete_all(world: &mut World, setup: Setup, steward: &dyn Steward, uids: &[Uid]) {
    for uid in uids {
        // Gone already: a success to virt-controller.
        if world.pod(*uid).is_none() {
            continue;
        }
        world.learn(setup, steward);
        if !steward.may_delete(world, setup, *uid) {
            // The expectation of a pod created in the same pass is lost with the refusal
            // (expectations.go), so that the next pass may not know of it.
            world.expectation = match world.expectation {
                Expectation::Created(uid) => Expectation::Forgotten(uid),
                _ => Expectation::None,
            };
            return;
        }
        world.pods.retain(|pod| pod.uid != *uid);
        world.expectation = Expectation::Deleted(*uid);
    }
}

/// `updateVolumeStatus`
fn report(world: &mut World, setup: Setup) {
    if world.guest != Guest::Running {
        return;
    }
    let own = |pod: &&Pod| pod.launcher == world.launcher;
    // Against the full set, while pods are made of the ready ones: the mixed-readiness trap.
    let matching = world.cache.iter().filter(own).rev().find(|pod| pod.volumes == world.spec).copied();
    let listed = world.cache.iter().filter(own).fold(Volumes::NONE, |set, pod| set.or(pod.volumes));
    for volume in world.spec.or(world.entries()).iter() {
        let mut status = world.status_of(volume);
        if world.spec.has(volume) {
            match matching {
                Some(pod) => {
                    status.pod = if pod.phase == PodPhase::Ready { pod.uid } else { 0 };
                    if matches!(
                        status.phase,
                        Phase::Absent | Phase::Bound | Phase::Detaching | Phase::UnMountedFromPod
                    ) {
                        status.phase = Phase::AttachedToNode;
                    }
                }
                None if status.phase == Phase::Ready => {}
                None => {
                    status.phase = Phase::Bound;
                    status.pod = 0;
                }
            }
        } else {
            let held = matches!(status.phase, Phase::Ready | Phase::MountedToPod);
            // Whatever it says, an entry goes when no pod lists the volume: after a migration none may.
            if !listed.has(volume) {
                status.phase = Phase::Absent;
            } else if !setup.release.waits_for_unplug() || !held {
                status.phase = Phase::Detaching;
            }
            if status.phase == Phase::Absent {
                status.pod = 0;
                status.target = false;
            }
        }
        *world.status_mut(volume) = status;
    }
}
