//! Where our program comes in: the guard, the gate, healing and taking back, as an API server and
//! the operator ask for them. What they see of the world is put into the views that the shipped
//! functions take, and nothing else of the world is shown to them.

use std::sync::OnceLock;

use hotplug::gate;
use hotplug::guard::{self, Observation};
use hotplug::heal::{self, Blocked};
use hotplug::policy::{Class, Classes, Limits};
use hotplug::record::Record;
use hotplug::view::{
    AttachmentPod, Instance, Launcher, Migration as MigrationView, Node, PodVolume, SpecVolume, Usage,
    VolumeStatus,
};
use hotplug::view::{Phase as PhaseView, PodPhase as PodPhaseView};

use crate::drivers::Driver;
use crate::state::{Age, Device, Guest, Migration, Phase, Pod, PodPhase, Setup, Uid, World};
use crate::volumes::{MOST_VOLUMES, Volume, Volumes};

/// What is asked before something happens.
pub trait Steward {
    /// Whether it takes its time, so that its answers are worth remembering.
    fn is_slow(&self) -> bool {
        true
    }
    /// Whether a pod may be deleted or evicted.
    fn may_delete(&self, world: &World, setup: Setup, pod: Uid) -> bool;
    /// Whether the VMI may get another set of volumes.
    fn may_change(&self, world: &World, setup: Setup, volumes: Volumes) -> bool;
    /// Whether a migration may be asked for.
    fn may_migrate(&self, _: &World, _: Setup) -> bool {
        true
    }
    /// Whether the namespace controller deletes pods without asking.
    fn exempts_namespace_controller(&self) -> bool {
        true
    }
    /// Whether the namespace may be deleted.
    fn may_delete_namespace(&self, _: &World) -> bool {
        true
    }
    /// What a new pod uses of the volumes that it lists. KubeVirt leaves out filesystem volumes
    /// that the launcher has already.
    fn uses(&self, setup: Setup, volumes: Volumes, in_guest: Volumes) -> Volumes {
        volumes.minus(setup.filesystem.and(in_guest))
    }
    /// Whether it notes which pod each volume was taken from.
    fn notes_sources(&self) -> bool {
        false
    }
    /// Which pod each volume was taken from, as far as our program can tell when it is asked something.
    fn learn(&self, _: &World, _: Setup) -> Option<[Uid; MOST_VOLUMES]> {
        None
    }
    /// Whether it is worth a look which pods should go.
    fn suspects(&self, world: &World) -> bool;
    /// Pods that should go.
    fn heals(&self, world: &World, setup: Setup) -> Vec<Uid>;
    /// What the VM should have instead, when additions cannot settle.
    fn takes_back(&self, world: &World, setup: Setup) -> Option<Volumes>;
}

/// A cluster without our program.
#[derive(Clone, Copy, Debug)]
pub struct Absent;

impl Steward for Absent {
    fn is_slow(&self) -> bool {
        false
    }

    fn may_delete(&self, _: &World, _: Setup, _: Uid) -> bool {
        true
    }

    fn may_change(&self, _: &World, _: Setup, _: Volumes) -> bool {
        true
    }

    fn suspects(&self, _: &World) -> bool {
        false
    }

    fn heals(&self, _: &World, _: Setup) -> Vec<Uid> {
        Vec::new()
    }

    fn takes_back(&self, _: &World, _: Setup) -> Option<Volumes> {
        None
    }
}

/// A cluster with our program, whole or in parts.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[allow(clippy::struct_excessive_bools, reason = "independent parts, switched off one by one by tests")]
pub struct Present {
    /// The guard is asked about deletes.
    pub guard: bool,
    /// Grants are remembered.
    pub grants: bool,
    /// The gate is asked about changes of volumes.
    pub gate: bool,
    /// Pods that KubeVirt leaves behind are deleted.
    pub heal: bool,
    /// Additions that cannot settle are taken back.
    pub take_back: bool,
    /// The namespace asks for protection while VMs run in it.
    pub protect: bool,
    /// What the storage class opts for.
    pub class: Class,
    /// The replacement uses every volume that it lists.
    pub completes_mounts: bool,
}

impl Present {
    /// All parts, with the opt-ins that the documentation names for a driver.
    pub fn whole(driver: Driver) -> Self {
        let class = Class {
            strict: driver == Driver::ForceTeardown,
            exclusive_publish: driver == Driver::ExclusivePublish,
            pin: driver == Driver::PerPublishDevice,
        };
        Self {
            guard: true,
            grants: true,
            gate: true,
            heal: true,
            take_back: true,
            protect: false,
            class,
            completes_mounts: class.strict,
        }
    }
}

/// The clock of the machine: everything that is not old is of this moment.
const NOW: i64 = 1_000_000;

const NAMES: [&str; 8] = ["a", "b", "c", "d", "e", "f", "g", "h"];
const CLAIMS: [&str; 8] = ["pvc-a", "pvc-b", "pvc-c", "pvc-d", "pvc-e", "pvc-f", "pvc-g", "pvc-h"];

fn name(volume: Volume) -> &'static str {
    NAMES.get(usize::from(volume)).copied().unwrap_or_default()
}

/// The claim behind a volume.
pub fn claim(volume: Volume) -> &'static str {
    CLAIMS.get(usize::from(volume)).copied().unwrap_or_default()
}

/// Uids and names of launchers as text, which views borrow: made once.
struct Texts {
    uids: Vec<String>,
    launchers: Vec<String>,
}

impl Texts {
    fn get() -> &'static Self {
        static TEXTS: OnceLock<Texts> = OnceLock::new();
        TEXTS.get_or_init(|| Self {
            // As long as each other, so that they sort as numbers do.
            uids: (0..=Uid::MAX).map(|uid| format!("{uid:05}")).collect(),
            launchers: (0..=u8::MAX).map(|launcher| format!("l{launcher}")).collect(),
        })
    }

    fn uid(&self, uid: Uid) -> &str {
        if uid == 0 { "" } else { self.uids.get(usize::from(uid)).map_or("", String::as_str) }
    }

    fn launcher(&self, launcher: u8) -> &str {
        self.launchers.get(usize::from(launcher)).map_or("", String::as_str)
    }

    fn pod<'t>(&'t self, setup: Setup, pod: &Pod) -> AttachmentPod<'t> {
        let volumes = pod.volumes.iter().map(|volume| PodVolume {
            name: name(volume),
            claim: claim(volume),
            usage: match (pod.used.has(volume), setup.filesystem.has(volume)) {
                (false, _) => Usage::Listed,
                (true, true) => Usage::Mounted,
                (true, false) => Usage::Device,
            },
        });
        AttachmentPod {
            name: self.uid(pod.uid),
            uid: self.uid(pod.uid),
            launcher: Some(self.launcher(pod.launcher)),
            launcher_name: self.launcher(pod.launcher),
            phase: match pod.phase {
                PodPhase::Pending | PodPhase::Scheduled => PodPhaseView::Pending,
                PodPhase::Running | PodPhase::Ready => PodPhaseView::Running,
                PodPhase::Failed => PodPhaseView::Failed,
            },
            ready: pod.phase == PodPhase::Ready,
            deleting: false,
            node: if pod.phase == PodPhase::Pending { "" } else { self.launcher(pod.launcher) },
            // Of those of one second the uid tells the order.
            created: match pod.age {
                Age::Old => 0,
                Age::Tried => NOW - 60,
                Age::Fresh => NOW,
            },
            trigger: false,
            volumes: volumes.collect(),
            trouble: "",
            break_glass: false,
        }
    }

    fn pods(&self, world: &World, setup: Setup, launcher: u8) -> Vec<AttachmentPod<'_>> {
        world.pods.iter().filter(|pod| pod.launcher == launcher).map(|pod| self.pod(setup, pod)).collect()
    }

    fn instance(&self, world: &World, spec: Volumes) -> Instance<'_> {
        let status = world.entries().iter().map(|volume| {
            let state = world.status_of(volume);
            VolumeStatus {
                name: name(volume),
                phase: match state.phase {
                    Phase::Absent => PhaseView::Unknown,
                    Phase::Bound => PhaseView::Bound,
                    Phase::AttachedToNode => PhaseView::AttachedToNode,
                    Phase::MountedToPod => PhaseView::MountedToPod,
                    Phase::Ready => PhaseView::Ready,
                    Phase::UnMountedFromPod => PhaseView::UnMountedFromPod,
                    Phase::Detaching => PhaseView::Detaching,
                },
                attach_pod: self.uid(state.pod),
                target: if state.target { "sda" } else { "" },
                message: "",
            }
        });
        let migration = match world.migration {
            Migration::Target { launcher, .. } => Some(MigrationView {
                uid: self.launcher(launcher),
                completed: false,
                failed: false,
                source_pod: self.launcher(world.launcher),
                target_pod: self.launcher(launcher),
                target_node: self.launcher(launcher),
            }),
            Migration::None | Migration::Requested => None,
        };
        Instance {
            name: "vm",
            uid: "v",
            running: world.guest != Guest::Down,
            is_final: world.guest == Guest::Down,
            deletion: world.deleting.then_some(NOW),
            termination_grace: 30,
            node: self.launcher(world.launcher),
            volumes: spec
                .iter()
                .map(|volume| SpecVolume {
                    name: name(volume),
                    claim: claim(volume),
                    hotplug: true,
                    utility: false,
                })
                .collect(),
            status: status.collect(),
            migration,
            evacuating: false,
            io_error: false,
            migrating_volumes: false,
            break_glass: false,
        }
    }

    fn launcher_view(&self, world: &World, launcher: u8) -> Launcher<'_> {
        let is_target =
            matches!(world.migration, Migration::Target { launcher: target, .. } if target == launcher);
        Launcher {
            name: self.launcher(launcher),
            uid: self.launcher(launcher),
            down: world.guest == Guest::Down || (launcher != world.launcher && !is_target),
            deletion: None,
            node: self.launcher(launcher),
            migration: if launcher > 1 { self.launcher(launcher) } else { "" },
            toleration: Some(300),
            instance: "v",
            instance_name: "vm",
        }
    }
}

/// The VMI and its attachment pods as our program sees them, under a name and uid of choice.
pub fn views(
    world: &World,
    setup: Setup,
    uid: &'static str,
) -> (Instance<'static>, Vec<AttachmentPod<'static>>) {
    let texts = Texts::get();
    let instance = Instance { name: uid, uid, ..texts.instance(world, world.spec) };
    (instance, texts.pods(world, setup, world.launcher))
}

impl Steward for Present {
    fn may_delete(&self, world: &World, setup: Setup, uid: Uid) -> bool {
        let Some(pod) = world.pod(uid).filter(|_| self.guard) else { return true };
        let texts = Texts::get();
        let seen = self.observe(world, setup, texts, pod);
        let mut record = self.record(world, texts, pod.launcher);
        if let Some(instance) = &seen.instance {
            record.learn(instance, &seen.siblings, &seen.classes);
        }
        guard::decide(&seen, &record, &Limits::default(), NOW).is_allowed()
    }

    fn notes_sources(&self) -> bool {
        self.class.pin
    }

    fn learn(&self, world: &World, setup: Setup) -> Option<[Uid; MOST_VOLUMES]> {
        if !self.notes_sources() {
            return None;
        }
        let texts = Texts::get();
        let mut record = self.record(world, texts, world.launcher);
        let instance = texts.instance(world, world.spec);
        record.learn(&instance, &texts.pods(world, setup, world.launcher), &self.classes());
        let mut taken = [0; MOST_VOLUMES];
        for (volume, at) in (0..).zip(&mut taken) {
            *at = record.taken.get(name(volume)).and_then(|uid| uid.parse().ok()).unwrap_or_default();
        }
        Some(taken)
    }

    fn may_change(&self, world: &World, setup: Setup, volumes: Volumes) -> bool {
        if !self.gate {
            return true;
        }
        let texts = Texts::get();
        let change = gate::Change {
            old: texts.instance(world, world.spec),
            new: texts.instance(world, volumes),
            pods: texts.pods(world, setup, world.launcher),
            migrating: world.migration != Migration::None,
        };
        // The gate lets a volume come back only after two seconds, which is longer than
        // virt-handler takes for an unmount that it has been woken for.
        let returning = volumes.minus(world.spec).iter();
        if returning.into_iter().any(|volume| world.device_of(volume) != Device::None) {
            return false;
        }
        let limits = Limits::default();
        let held = if world.overdue { NOW - limits.gate - 1 } else { NOW };
        let record = Record { held: Some(held), ..Record::default() };
        matches!(gate::decide(&change, &record, &limits, NOW), gate::Verdict::Allow(_))
    }

    fn uses(&self, setup: Setup, volumes: Volumes, in_guest: Volumes) -> Volumes {
        if self.completes_mounts { volumes } else { volumes.minus(setup.filesystem.and(in_guest)) }
    }

    /// A migration takes the set of its start along, so it waits for a guest that lets go of a volume.
    fn may_migrate(&self, world: &World, setup: Setup) -> bool {
        if !self.gate {
            return true;
        }
        let texts = Texts::get();
        let held = if world.overdue { Some(NOW - Limits::default().gate - 1) } else { None };
        let record = Record { departs: held, ..Record::default() };
        let instance = texts.instance(world, world.spec);
        let pods = texts.pods(world, setup, world.launcher);
        gate::decide_migration(&instance, &pods, &record, &Limits::default(), NOW).is_none()
    }

    fn may_delete_namespace(&self, world: &World) -> bool {
        let instance = Texts::get().instance(world, world.spec);
        !self.protect || guard::decide_namespace(false, &[instance], &Limits::default(), NOW).is_empty()
    }

    /// One pod that has started needs no healing.
    fn suspects(&self, world: &World) -> bool {
        let ails = |pod: &Pod| {
            pod.phase == PodPhase::Failed || (pod.age > Age::Fresh && pod.phase <= PodPhase::Scheduled)
        };
        self.heal && (world.pods.len() > 1 || world.pods.iter().any(ails))
    }

    fn heals(&self, world: &World, setup: Setup) -> Vec<Uid> {
        if !self.suspects(world) {
            return Vec::new();
        }
        let texts = Texts::get();
        let ailing = heal::decide(
            &texts.instance(world, world.spec),
            &texts.launcher_view(world, world.launcher),
            &texts.pods(world, setup, world.launcher),
            &Blocked { classes: self.classes(), unmountable: unmountable(world, texts) },
            &Limits::default(),
            NOW,
        );
        ailing.into_iter().filter_map(|(name, _)| name.parse().ok()).collect()
    }

    /// What the orchestrator does at its deadline, after its search for the bad ones: additions that
    /// have not reached the guest, while a pod that holds them is stuck, leave the VM again.
    fn takes_back(&self, world: &World, setup: Setup) -> Option<Volumes> {
        if !self.take_back || world.deleting {
            return None;
        }
        let stuck = world
            .pods
            .iter()
            .filter(|pod| {
                pod.launcher == world.launcher && pod.age == Age::Old && pod.phase <= PodPhase::Scheduled
            })
            .fold(Volumes::NONE, |set, pod| set.or(pod.volumes))
            .minus(world.domain);
        let bad = stuck.and(setup.broken);
        let back = world.wanted.minus(if bad.is_empty() { stuck } else { bad });
        if back != world.wanted {
            return Some(back);
        }
        // What KubeVirt does not take over within the time, because the name is still held, or because the driver
        // cannot serve it, is taken back and reported.
        // What has been taken over and does not reach the guest is the same: up to v1.8 virt-handler looks for it in the pod
        // that the first status entry names (mount.go:354-356, v1.3.1), which may be one that is pinned.
        let waiting = world.wanted.minus(world.spec.and(world.domain));
        (world.overdue && !waiting.is_empty()).then(|| world.wanted.minus(waiting))
    }
}

/// What kubelets report about pods that they could not start for a while.
fn unmountable<'t>(world: &World, texts: &'t Texts) -> Vec<(&'t str, &'t str)> {
    world
        .pods
        .iter()
        .filter(|other| other.phase == PodPhase::Scheduled && other.age > Age::Fresh)
        .flat_map(|other| other.used.iter().map(move |volume| (texts.uid(other.uid), name(volume))))
        .collect()
}

impl Present {
    fn classes(&self) -> Classes<'static> {
        if self.class.is_plain() {
            return Classes::new();
        }
        (0..8).map(|volume| (claim(volume), self.class)).collect()
    }

    /// The record of a launcher.
    fn record(&self, world: &World, texts: &Texts, launcher: u8) -> Record {
        let mut record = Record::default();
        let noted = (0..).zip(world.taken).filter(|(_, uid)| *uid != 0 && launcher == world.launcher);
        record.taken =
            noted.map(|(volume, uid)| (name(volume).to_owned(), texts.uid(uid).to_owned())).collect();
        for pod in world.pods.iter().filter(|pod| pod.granted && self.grants) {
            record.grant(texts.uid(pod.uid), NOW);
        }
        record
    }

    fn observe<'t>(&self, world: &World, setup: Setup, texts: &'t Texts, pod: &Pod) -> Observation<'t> {
        let siblings = texts.pods(world, setup, pod.launcher);
        let classes = self.classes();
        let unmountable = unmountable(world, texts);
        Observation {
            pod: texts.pod(setup, pod),
            namespace_terminating: world.terminating,
            namespace_break_glass: false,
            launcher: Some(texts.launcher_view(world, pod.launcher)),
            instance: Some(texts.instance(world, world.spec)),
            siblings,
            node: Some(Node {
                name: texts.launcher(pod.launcher),
                away_since: None,
                out_of_service: world.lost,
            }),
            classes,
            unmountable,
        }
    }
}
