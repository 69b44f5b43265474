//! The node: kubelet and storage driver, virt-handler, virt-launcher and the guest.

use crate::drivers::Driver;
use crate::state::{Device, Guest, Phase, Pod, PodPhase, Publication, Setup, Uid, World};
use crate::volumes::{Volume, Volumes};

/// Whether a scheduled pod can be started: everything that it uses can be published.
pub(crate) fn can_start(world: &World, setup: Setup, pod: &Pod) -> bool {
    let taken = world
        .published
        .iter()
        .filter(|other| other.launcher == pod.launcher && other.pod != pod.uid)
        .fold(Volumes::NONE, |set, other| set.or(other.volumes));
    let refused = setup.driver == Driver::ExclusivePublish && !taken.and(pod.used).is_empty();
    pod.phase == PodPhase::Scheduled && pod.used.and(setup.broken).is_empty() && !refused
}

/// The kubelet publishes the volumes of a pod and starts it.
pub(crate) fn start(world: &mut World, uid: Uid) {
    let Some(pod) = world.pod_mut(uid) else { return };
    pod.phase = PodPhase::Running;
    let publication = Publication { pod: uid, launcher: pod.launcher, volumes: pod.used };
    world.published.push(publication);
}

/// Whether the kubelet has something to take down for a pod: it is gone from the API, or has ended.
pub(crate) fn is_left_over(world: &World, publication: &Publication) -> bool {
    world.pod(publication.pod).is_none_or(|pod| pod.phase == PodPhase::Failed)
}

/// The kubelet takes down what it published for a pod. A volume that no pod of the node uses any
/// more is unstaged; what the driver does then decides over the guest.
pub(crate) fn unpublish(world: &mut World, setup: Setup, uid: Uid) {
    let Some(at) = world.published.iter().position(|publication| publication.pod == uid) else { return };
    let gone = world.published.remove(at);
    let here = gone.launcher;
    let still = world
        .published
        .iter()
        .filter(|other| other.launcher == here)
        .map(|other| other.volumes)
        // The kubelet counts pods that it has been given, started or not; unscheduled ones not.
        .chain(
            world
                .pods
                .iter()
                .filter(|pod| pod.launcher == here && pod.uid != uid && pod.is_wanted_on_node())
                .map(|pod| pod.used),
        )
        .fold(Volumes::NONE, Volumes::or);
    for volume in gone.volumes.iter() {
        let dies = match setup.driver {
            Driver::BusyCheck => false,
            Driver::ForceTeardown | Driver::ExclusivePublish => !still.has(volume),
            Driver::PerPublishDevice => world.device_of(volume) == Device::From(uid),
        };
        let served = here == world.launcher && world.device_of(volume) != Device::None;
        if dies && served {
            *world.device_mut(volume) = Device::Dead;
            if world.domain.has(volume) {
                world.harm.io_errors = world.harm.io_errors.with(volume);
            }
        }
    }
}

/// Whether nothing can happen to a volume: nobody knows of it, or the guest has it and should.
pub(crate) fn is_at_rest(world: &World, volume: Volume) -> bool {
    let (status, device) = (world.status_of(volume), world.device_of(volume));
    let unknown = status.phase == Phase::Absent && device == Device::None && !world.domain.has(volume);
    let served = status.phase == Phase::Ready
        && status.target
        && device != Device::None
        && world.domain.has(volume)
        && world.spec.has(volume);
    unknown || served
}

/// The pod that virt-handler mounts a volume from; `None`: it does not.
pub(crate) fn source(world: &World, setup: Setup, volume: Volume) -> Option<Uid> {
    let own = world.status_of(volume).pod;
    if world.guest != Guest::Running
        || own == 0
        || world.device_of(volume) != Device::None
        || world.domain.has(volume)
    {
        return None;
    }
    let listed = if setup.release.mounts_by_spec() { world.spec } else { world.spec.or(world.entries()) };
    if !listed.has(volume) {
        return None;
    }
    let uid = if setup.release.mounts_by_volume() {
        own
    } else {
        listed.iter().map(|volume| world.status_of(volume).pod).find(|uid| *uid != 0)?
    };
    let published = world.published.iter().any(|publication| {
        publication.pod == uid
            && publication.launcher == world.launcher
            && publication.volumes.has(volume)
            && !is_left_over(world, publication)
    });
    published.then_some(uid)
}

/// virt-handler makes a volume visible to the launcher.
pub(crate) fn mount(world: &mut World, volume: Volume, from: Uid) {
    *world.device_mut(volume) = Device::From(from);
    world.status_mut(volume).phase = Phase::MountedToPod;
    if !world.spec.has(volume) {
        world.harm.remounted = world.harm.remounted.with(volume);
    }
}

/// Whether the launcher has a volume from an earlier time that the status does not know of: the
/// node is never made anew, and it is enough that it is there (`IsMounted`, mount.go:879, v1.9).
pub(crate) fn is_still_mounted(world: &World, volume: Volume) -> bool {
    let status = world.status_of(volume);
    world.guest == Guest::Running
        && world.spec.has(volume)
        && !status.target
        && matches!(status.phase, Phase::AttachedToNode | Phase::Bound)
        && world.device_of(volume) != Device::None
}

/// Whether virt-handler takes a volume from the launcher.
pub(crate) fn can_unmount(world: &World, setup: Setup, volume: Volume) -> bool {
    let done = if setup.release.unmounts_by_spec() {
        !world.spec.has(volume)
    } else {
        world.status_of(volume).phase == Phase::Absent
    };
    done && !world.domain.has(volume) && world.device_of(volume) != Device::None
}

/// virt-handler takes a volume from the launcher.
pub(crate) fn unmount(world: &mut World, volume: Volume) {
    *world.device_mut(volume) = Device::None;
    let status = world.status_mut(volume);
    if status.phase != Phase::Absent && status.phase != Phase::Detaching {
        status.phase = Phase::UnMountedFromPod;
    }
}

/// Phases with which virt-launcher has a disk in the domain (configurator.go:123, v1.9).
fn is_in_domain_spec(world: &World, volume: Volume) -> bool {
    let phase = world.status_of(volume).phase;
    world.spec.has(volume) && matches!(phase, Phase::MountedToPod | Phase::Ready)
}

/// Whether virt-launcher plugs a volume in.
pub(crate) fn can_attach(world: &World, volume: Volume) -> bool {
    world.guest == Guest::Running
        && is_in_domain_spec(world, volume)
        && !world.domain.has(volume)
        && matches!(world.device_of(volume), Device::From(_))
}

/// Whether virt-launcher unplugs a volume, and the guest lets go of it.
pub(crate) fn can_detach(world: &World, setup: Setup, volume: Volume) -> bool {
    world.guest == Guest::Running
        && !is_in_domain_spec(world, volume)
        && world.domain.has(volume)
        && !setup.stubborn.has(volume)
}

/// The guest lets go of a volume, and virt-handler sees it in the domain XML.
pub(crate) fn detach(world: &mut World, volume: Volume) {
    world.domain = world.domain.without(volume);
    world.status_mut(volume).target = false;
    if world.spec.has(volume) {
        world.harm.unplugged = world.harm.unplugged.with(volume);
    }
}

/// Whether virt-handler has to report that the guest has a volume.
pub(crate) fn can_mark_ready(world: &World, volume: Volume) -> bool {
    let status = world.status_of(volume);
    world.domain.has(volume)
        && world.spec.has(volume)
        && (status.phase != Phase::Ready || !status.target)
        && status.phase != Phase::Absent
}
