//! virt-controller: which attachment pods it creates and deletes (`volume-hotplug.go`), and what
//! it writes into the volume status (`storage.go`). It decides on its cache of pods, creates
//! before it cleans up, and stops cleaning up at the first delete that is refused.

use crate::release::Release;
use crate::state::{
    Age, Expectation, Guest, Migration, Phase, Pod, PodPhase, Setup, Uid, VolumeState, World,
};
use crate::steward::Steward;
use crate::volumes::{MOST_VOLUMES, Volume, Volumes};

/// What one pass decides about pods, in the order in which it is done.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Plan {
    /// A pod with these volumes is created.
    pub create: Option<Volumes>,
    /// These pods are deleted, until one delete is refused.
    pub delete: Vec<Uid>,
}

/// `cleanupAttachmentPods` and what leads to it, for the pods of one launcher as a cache has them, oldest first.
pub fn plan<'p>(
    release: Release,
    spec: Volumes,
    ready: Volumes,
    in_guest: Volumes,
    pods: impl DoubleEndedIterator<Item = &'p Pod> + Clone,
) -> Plan {
    // A single pod with the whole set is not looked at, whatever claims are ready (needsHandleHotplug, volume-hotplug.go:41-50,
    // v1.9).
    let mut all = pods.clone();
    if let (Some(only), None) = (all.next(), all.next())
        && only.volumes == spec
    {
        return Plan::default();
    }
    let set = spec.and(ready);
    let matches = |pod: &&Pod| pod.volumes == set && !set.is_empty();
    // The last match is the current pod; a second one is neither current nor old.
    let current = pods.clone().rev().find(matches);
    let old = pods.filter(|pod| !matches(pod));
    let pending = old.clone().any(|pod| pod.phase <= PodPhase::Scheduled);
    let create = (current.is_none() && !set.is_empty() && !pending).then_some(set);
    let replacement = current.map(|pod| pod.phase).or(create.map(|_| PodPhase::Pending));
    let replaced = match replacement {
        None => false,
        Some(PodPhase::Running | PodPhase::Ready) => true,
        Some(phase) => release.pending_is_enough() && phase != PodPhase::Failed,
    };
    let mut delete = Vec::new();
    let mut kept = false;
    for pod in old.rev() {
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
    world.status = reported(world, setup);
}

/// Whether a pass would change anything. What a refusal makes virt-controller forget is no change of its own.
pub(crate) fn would_do_something(world: &World, setup: Setup, steward: &dyn Steward) -> bool {
    reported(world, setup) != world.status
        || (is_satisfied(world) && would_change_pods(world, setup, steward))
}

fn would_change_pods(world: &World, setup: Setup, steward: &dyn Steward) -> bool {
    if would_delete(world, setup, steward, orphans(world)) {
        return true;
    }
    match Duty::of(world, setup) {
        Duty::EndAll => would_delete(world, setup, steward, own(world).map(|pod| pod.uid)),
        Duty::Nothing => false,
        Duty::Serve => {
            let plan = plan(setup.release, world.spec, world.ready, in_guest(world), own(world));
            plan.create.is_some()
                || (!world.harm.wasted && wastes(world, &plan))
                || would_delete(world, setup, steward, plan.delete.iter().copied())
        }
    }
}

/// Deletes go on until one is refused, so the first of a pod that is there decides.
fn would_delete(
    world: &World,
    setup: Setup,
    steward: &dyn Steward,
    mut uids: impl Iterator<Item = Uid>,
) -> bool {
    let first = uids.find(|uid| world.pod(*uid).is_some());
    first.is_some_and(|uid| {
        let learns = steward.learn(world, setup).is_some_and(|taken| taken != world.taken);
        learns || steward.may_delete(world, setup, uid)
    })
}

fn is_satisfied(world: &World) -> bool {
    let cached = |uid: Uid| world.cache.iter().any(|pod| pod.uid == uid);
    match world.expectation {
        Expectation::Created(uid) => cached(uid),
        Expectation::None | Expectation::Forgotten(_) => true,
        Expectation::Deleted(uid) => !cached(uid),
    }
}

/// Pods of the guest's launcher, as the cache has them.
fn own(world: &World) -> impl DoubleEndedIterator<Item = &Pod> + Clone {
    world.cache.iter().filter(|pod| pod.launcher == world.launcher)
}

/// Pods of launchers that are down, such as the source of a migration.
fn orphans(world: &World) -> impl Iterator<Item = Uid> {
    let target = match world.migration {
        Migration::Target { launcher, .. } => launcher,
        Migration::None | Migration::Requested => 0,
    };
    let orphan = move |pod: &&Pod| pod.launcher != world.launcher && pod.launcher != target;
    world.cache.iter().filter(orphan).map(|pod| pod.uid)
}

/// What virt-controller has to do about the pods of a VMI.
enum Duty {
    /// All of them go.
    EndAll,
    /// They stay as they are.
    Nothing,
    /// The set is served.
    Serve,
}

impl Duty {
    fn of(world: &World, setup: Setup) -> Self {
        if world.guest == Guest::Down || (world.deleting && setup.release.deletes_with_the_vmi()) {
            return Self::EndAll;
        }
        if world.deleting || world.guest != Guest::Running || world.lost {
            Self::Nothing
        } else {
            Self::Serve
        }
    }
}

/// Whether a pod is thrown away that has not run yet, for a set with more volumes.
fn wastes(world: &World, plan: &Plan) -> bool {
    plan.delete
        .iter()
        .filter_map(|uid| world.pod(*uid))
        .any(|pod| pod.phase <= PodPhase::Scheduled && pod.age < Age::Old && !world.spec.within(pod.volumes))
}

fn sync_pods(world: &mut World, setup: Setup, steward: &dyn Steward) {
    let orphans: Vec<Uid> = orphans(world).collect();
    delete_all(world, setup, steward, &orphans);
    match Duty::of(world, setup) {
        Duty::Nothing => {}
        Duty::EndAll => {
            let all: Vec<Uid> = own(world).map(|pod| pod.uid).collect();
            delete_all(world, setup, steward, &all);
        }
        Duty::Serve => {
            let held = in_guest(world);
            let plan = plan(setup.release, world.spec, world.ready, held, own(world));
            if let Some(set) = plan.create {
                let uid = create(world, world.launcher, set, steward.uses(setup, set, held));
                world.expectation = Expectation::Created(uid);
            }
            let wasted = wastes(world, &plan);
            delete_all(world, setup, steward, &plan.delete);
            world.harm.wasted |= wasted;
        }
    }
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
fn reported(world: &World, setup: Setup) -> [VolumeState; MOST_VOLUMES] {
    let mut all = world.status;
    if world.guest != Guest::Running {
        return all;
    }
    // Against the full set, while pods are made of the ready ones: the mixed-readiness trap.
    let matching = own(world).rev().find(|pod| pod.volumes == world.spec);
    let listed = own(world).fold(Volumes::NONE, |set, pod| set.or(pod.volumes));
    for (volume, status) in (0..).zip(&mut all) {
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
        } else if status.phase != Phase::Absent {
            let held = matches!(status.phase, Phase::Ready | Phase::MountedToPod);
            // Whatever it says, an entry goes when no pod lists the volume: after a migration none may.
            if !listed.has(volume) {
                *status = VolumeState::default();
            } else if !setup.release.waits_for_unplug() || !held {
                status.phase = Phase::Detaching;
            }
        }
    }
    all
}
