//! The state of one VM and of all that serves its hotplugged volumes.

use crate::drivers::Driver;
use crate::release::Release;
use crate::volumes::{MOST_VOLUMES, Volume, Volumes};

/// Uid of a pod, counted up; 0 is none.
pub type Uid = u16;

/// What does not change in a run.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Setup {
    /// The rules of virt-controller and virt-handler.
    pub release: Release,
    /// The rules of the storage driver.
    pub driver: Driver,
    /// Volumes with a filesystem; the others are block volumes.
    pub filesystem: Volumes,
    /// Volumes that can never be published.
    pub broken: Volumes,
    /// Volumes that the guest never lets go of.
    pub stubborn: Volumes,
}

impl Setup {
    /// A release and a driver, with block volumes and a guest that works.
    pub const fn new(release: Release, driver: Driver) -> Self {
        Self { release, driver, filesystem: Volumes::NONE, broken: Volumes::NONE, stubborn: Volumes::NONE }
    }
}

/// `volumeStatus[].phase`
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub enum Phase {
    /// There is no entry.
    #[default]
    Absent,
    /// No pod matches.
    Bound,
    /// A pod matches.
    AttachedToNode,
    /// virt-handler has mounted it.
    MountedToPod,
    /// The guest has it.
    Ready,
    /// virt-handler has unmounted it.
    UnMountedFromPod,
    /// It is on its way out.
    Detaching,
}

/// `volumeStatus[]`
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub struct VolumeState {
    /// Where it stands.
    pub phase: Phase,
    /// `hotplugVolume.attachPodUID`
    pub pod: Uid,
    /// `target` is set.
    pub target: bool,
}

/// How far a pod is.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum PodPhase {
    /// Not scheduled.
    Pending,
    /// On a node, not started.
    Scheduled,
    /// Started, not ready.
    Running,
    /// Started and ready.
    Ready,
    /// Ended.
    Failed,
}

/// How long a pod has been there.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Age {
    /// A moment.
    #[default]
    Fresh,
    /// Long enough for its kubelet to have reported what it cannot mount.
    Tried,
    /// Longer than any deadline.
    Old,
}

/// An attachment pod.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct Pod {
    /// Its uid.
    pub uid: Uid,
    /// The launcher that it belongs to, which also stands for a node.
    pub launcher: u8,
    /// The volumes that it lists.
    pub volumes: Volumes,
    /// Those of them that its container uses.
    pub used: Volumes,
    /// How far it is.
    pub phase: PodPhase,
    /// How long it has been there.
    pub age: Age,
    /// Its delete was allowed, and has not been carried out.
    pub granted: bool,
}

impl Pod {
    /// Whether the kubelet keeps its volumes.
    pub fn is_wanted_on_node(&self) -> bool {
        matches!(self.phase, PodPhase::Scheduled | PodPhase::Running | PodPhase::Ready)
    }
}

/// What a kubelet has published for a pod, which may be gone from the API.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct Publication {
    /// The pod.
    pub pod: Uid,
    /// Its launcher, which stands for the node.
    pub launcher: u8,
    /// The volumes.
    pub volumes: Volumes,
}

/// What the launcher has of a volume.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub enum Device {
    /// Nothing.
    #[default]
    None,
    /// A device node or bind mount, taken from a pod.
    From(Uid),
    /// The same, with nothing behind it any more.
    Dead,
}

/// What virt-controller waits to see in its cache.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub enum Expectation {
    /// Nothing.
    #[default]
    None,
    /// A pod that it has created.
    Created(Uid),
    /// The end of a pod that it has deleted.
    Deleted(Uid),
    /// It has forgotten a pod that it has created, since a delete in the same pass was refused: one
    /// pass, after 5 ms, may not know of it. The next ones come later than a cache takes.
    Forgotten(Uid),
}

/// The guest.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub enum Guest {
    /// It does I/O on all its disks.
    #[default]
    Running,
    /// It is flushing.
    ShuttingDown,
    /// It is down, and its launcher has ended.
    Down,
}

/// A live migration.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub enum Migration {
    /// There is none.
    #[default]
    None,
    /// It was asked for.
    Requested,
    /// The target launcher is there, and its attachment pod was made from this set.
    Target {
        /// The launcher.
        launcher: u8,
        /// The set at that moment.
        volumes: Volumes,
    },
}

/// The state.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
#[allow(clippy::struct_excessive_bools, reason = "independent events")]
pub struct World {
    /// The volumes of the VM.
    pub wanted: Volumes,
    /// The volumes of the VMI.
    pub spec: Volumes,
    /// Volumes whose claims are ready.
    pub ready: Volumes,
    /// Where each stands.
    pub status: [VolumeState; MOST_VOLUMES],
    /// Attachment pods, oldest first.
    pub pods: Vec<Pod>,
    /// Attachment pods as virt-controller's cache has them.
    pub cache: Vec<Pod>,
    /// What it waits to see there.
    pub expectation: Expectation,
    /// What kubelets have published.
    pub published: Vec<Publication>,
    /// What the launcher has.
    pub device: [Device; MOST_VOLUMES],
    /// What the guest has.
    pub domain: Volumes,
    /// The active launcher.
    pub launcher: u8,
    /// The guest.
    pub guest: Guest,
    /// The VMI is to be deleted.
    pub deleting: bool,
    /// The last change of volumes has been held back, or on its way, for as long as that may last.
    pub overdue: bool,
    /// A live migration.
    pub migration: Migration,
    /// The node of the guest has gone, and somebody has fenced it.
    pub lost: bool,
    /// The namespace is being deleted.
    pub terminating: bool,
    /// The pod that our program has noted each volume to be taken from; 0: none.
    pub taken: [Uid; MOST_VOLUMES],
    /// The last uid given.
    pub uids: Uid,
    /// The last launcher.
    pub launchers: u8,
    /// What went wrong, for ever.
    pub harm: Harm,
}

/// What must not happen.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub struct Harm {
    /// Volumes whose device died under the guest (S1).
    pub io_errors: Volumes,
    /// Volumes that were unplugged although they are wanted (S4).
    pub unplugged: Volumes,
    /// Volumes that were mounted again after they had left the spec.
    pub remounted: Volumes,
    /// A migration failed, or its target missed a disk, because the set had changed (S8).
    pub migration: bool,
    /// virt-controller has thrown a pod away that had not run yet, for a set with more volumes (W6).
    pub wasted: bool,
}

impl World {
    /// A VM whose volumes came from one pod each, and no pod has all of them.
    pub fn split(setup: Setup, attached: Volumes) -> Self {
        let mut world = Self::settled(setup, attached);
        let (pod, publication) = (world.pods.remove(0), world.published.remove(0));
        for (at, volume) in attached.iter().enumerate() {
            let (uid, volumes) = (Uid::try_from(at).unwrap_or_default() + 1, Volumes::of(&[volume]));
            world.pods.push(Pod { uid, volumes, used: volumes, ..pod });
            world.published.push(Publication { pod: uid, volumes, ..publication });
            *world.device_mut(volume) = Device::From(uid);
            world.status_mut(volume).pod = uid;
            world.uids = uid;
        }
        world.cache.clone_from(&world.pods);
        world
    }

    /// A VM whose volumes have come to rest: all of `attached` are in the guest, from one pod.
    pub fn settled(setup: Setup, attached: Volumes) -> Self {
        let mut world = Self {
            wanted: attached,
            spec: attached,
            ready: Volumes::first(MOST_VOLUMES),
            status: Default::default(),
            pods: Vec::new(),
            cache: Vec::new(),
            expectation: Expectation::None,
            published: Vec::new(),
            device: Default::default(),
            domain: attached,
            launcher: 1,
            guest: Guest::Running,
            deleting: false,
            overdue: false,
            migration: Migration::None,
            lost: false,
            terminating: false,
            taken: Default::default(),
            uids: 1,
            launchers: 1,
            harm: Harm::default(),
        };
        if attached.is_empty() {
            world.uids = 0;
            return world;
        }
        for volume in attached.iter() {
            *world.status_mut(volume) = VolumeState { phase: Phase::Ready, pod: 1, target: true };
            *world.device_mut(volume) = Device::From(1);
        }
        let pod = Pod {
            uid: 1,
            launcher: 1,
            volumes: attached,
            used: attached.minus(setup.broken),
            phase: PodPhase::Ready,
            age: Age::Old,
            granted: false,
        };
        world.pods.push(pod);
        world.cache.push(pod);
        world.published.push(Publication { pod: 1, launcher: 1, volumes: attached });
        world
    }

    /// Where a volume stands.
    pub fn status_of(&self, volume: Volume) -> VolumeState {
        self.status.get(usize::from(volume)).copied().unwrap_or_default()
    }

    pub(crate) fn status_mut(&mut self, volume: Volume) -> &mut VolumeState {
        &mut self.status[usize::from(volume) % MOST_VOLUMES]
    }

    /// What the launcher has of a volume.
    pub fn device_of(&self, volume: Volume) -> Device {
        self.device.get(usize::from(volume)).copied().unwrap_or_default()
    }

    pub(crate) fn device_mut(&mut self, volume: Volume) -> &mut Device {
        &mut self.device[usize::from(volume) % MOST_VOLUMES]
    }

    /// A pod of the API.
    pub fn pod(&self, uid: Uid) -> Option<&Pod> {
        self.pods.iter().find(|pod| pod.uid == uid)
    }

    pub(crate) fn pod_mut(&mut self, uid: Uid) -> Option<&mut Pod> {
        self.pods.iter_mut().find(|pod| pod.uid == uid)
    }

    /// Volumes with a status entry.
    pub fn entries(&self) -> Volumes {
        (0..8)
            .filter(|volume| self.status_of(*volume).phase != Phase::Absent)
            .fold(Volumes::NONE, Volumes::with)
    }

    /// Every volume that is wanted is in the guest, none that is not, from one pod.
    pub fn is_at_rest(&self) -> bool {
        let there = |volume: Volume| {
            let status = self.status_of(volume);
            status.phase == Phase::Ready && status.target && self.domain.has(volume)
        };
        let one_pod = match self.pods.as_slice() {
            [] => self.spec.is_empty(),
            [pod] => pod.volumes == self.spec && pod.phase == PodPhase::Ready,
            _ => false,
        };
        one_pod
            && self.wanted == self.spec
            && self.entries() == self.spec
            && self.domain == self.spec
            && self.spec.iter().all(there)
            && self.migration == Migration::None
    }
}
