//! Everything that can happen, when it can, and what it does.

use crate::controller;
use crate::node;
use crate::state::{Age, Guest, Migration, Phase, PodPhase, Setup, Uid, World};
use crate::steward::Steward;
use crate::volumes::{MOST_VOLUMES, Volume, Volumes};

/// One thing that happens. The first group is what the system does by itself; the second is done
/// to it from outside, and a driver decides whether and when.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Action {
    /// The VM controller writes the volumes of the VM into the VMI.
    TakeOver,
    /// virt-controller's cache of pods catches up.
    Observe,
    /// virt-controller looks at the VMI.
    Sync,
    /// The scheduler gives a pod to its node.
    Schedule(Uid),
    /// The kubelet publishes the volumes of a pod and starts it.
    Start(Uid),
    /// A pod becomes ready.
    BecomeReady(Uid),
    /// The kubelet takes down what it published for a pod that is gone.
    Unpublish(Uid),
    /// virt-handler makes a volume visible to the launcher.
    Mount(Volume),
    /// virt-handler reports a volume as mounted that has been there before.
    ReportMounted(Volume),
    /// virt-handler takes a volume from the launcher.
    Unmount(Volume),
    /// virt-launcher plugs a volume into the guest.
    Attach(Volume),
    /// virt-launcher unplugs a volume, and the guest lets go.
    Detach(Volume),
    /// virt-handler reports that the guest has a volume.
    MarkReady(Volume),
    /// An API server carries out a delete that was allowed.
    Commit(Uid),
    /// A guest that is shutting down is down.
    GuestDown,
    /// The target launcher of a migration, and its attachment pod, are made.
    MakeTarget,
    /// The guest moves to the target.
    Complete,
    /// A migration whose target has lost its attachment pod ends.
    Abort,
    /// Our program deletes a pod that KubeVirt left behind.
    Heal(Uid),
    /// Our program takes back additions that cannot settle.
    RollBack,
    /// A pod of a lost node is deleted by force: by the pod garbage collector, or by hand.
    Fence(Uid),
    /// The namespace controller deletes a pod, and asks nobody.
    Collect(Uid),
    /// A pod that cannot start has waited for longer: than a kubelet tries before it says so, then than any deadline.
    Age(Uid),
    /// A change of volumes has been held back, or on its way, for as long as that may last.
    Overdue,

    /// Somebody wants other volumes in the VM.
    Want(Volumes),
    /// Somebody other than virt-controller deletes or evicts a pod: a user, a drain, preemption.
    Delete(Uid),
    /// The kubelet evicts a pod: nobody is asked.
    KubeletEvict(Uid),
    /// A claim is no longer ready: its `DataVolume` has left `Succeeded`.
    ClaimFlap(Volume),
    /// It is ready again.
    ClaimReady(Volume),
    /// The VM is deleted.
    DeleteVmi,
    /// A migration is asked for, for example by a drain.
    Migrate,
    /// The node of the guest goes, and is fenced (`out-of-service`).
    LoseNode,
    /// The namespace is deleted.
    DeleteNamespace,
    /// virt-controller starts anew: its expectations are forgotten, its cache is fresh.
    RestartController,
}

impl Action {
    /// Whether the system does it by itself, sooner or later.
    pub const fn is_inner(self) -> bool {
        !matches!(
            self,
            Self::Want(_)
                | Self::Delete(_)
                | Self::KubeletEvict(_)
                | Self::ClaimFlap(_)
                | Self::ClaimReady(_)
                | Self::DeleteVmi
                | Self::Migrate
                | Self::LoseNode
                | Self::DeleteNamespace
                | Self::RestartController
        )
    }
}

impl World {
    /// What the system can do by itself now. Time passes ([`Action::Age`], [`Action::Overdue`])
    /// only when nothing else can happen: deadlines are long beside everything else.
    pub fn inner_actions(&self, setup: Setup, steward: &dyn Steward, actions: &mut Vec<Action>) {
        let begun = actions.len();
        if self.take_over(setup, steward).is_some() {
            actions.push(Action::TakeOver);
        }
        if self.cache != self.pods || self.awaits_a_pod_that_is_gone() {
            actions.push(Action::Observe);
        }
        if controller::would_do_something(self, setup, steward) {
            actions.push(Action::Sync);
        }
        for pod in self.pods.iter().filter(|pod| pod.granted) {
            actions.push(Action::Commit(pod.uid));
        }
        // An allowed delete is carried out within milliseconds: other deletes and virt-controller
        // can come in between, the seconds that kubelets and guests take can not.
        if self.pods.iter().any(|pod| pod.granted) {
            return;
        }
        self.end_actions(setup, steward, actions);
        if !self.lost {
            self.pod_actions(setup, actions);
            self.volume_actions(setup, actions);
        }
        if self.guest == Guest::ShuttingDown && !self.lost {
            actions.push(Action::GuestDown);
        }
        self.migration_actions(actions);
        if steward.suspects(self) {
            for uid in steward.heals(self, setup) {
                let fresh = self.pod(uid).is_some_and(|pod| !pod.granted);
                if fresh && steward.may_delete(self, setup, uid) {
                    actions.push(Action::Heal(uid));
                }
            }
        }
        if steward.takes_back(self, setup).is_some() {
            actions.push(Action::RollBack);
        }
        if actions.len() > begun {
            return;
        }
        for pod in &self.pods {
            if pod.phase <= PodPhase::Scheduled && pod.age < Age::Old {
                actions.push(Action::Age(pod.uid));
            }
        }
        // What waits for a pod is not given up before that has waited for as long as it may.
        let gives_up = self.spec != self.wanted || (actions.len() == begun && self.is_under_way());
        if !self.overdue && gives_up {
            actions.push(Action::Overdue);
        }
    }

    /// Whether a change has not arrived: it is held, or the guest does not have all of it.
    pub(crate) fn is_under_way(&self) -> bool {
        self.spec != self.wanted || (self.guest == Guest::Running && !self.spec.within(self.domain))
    }

    /// What ends with the node or the namespace.
    fn end_actions(&self, setup: Setup, steward: &dyn Steward, actions: &mut Vec<Action>) {
        for pod in &self.pods {
            if self.lost && steward.may_delete(self, setup, pod.uid) {
                actions.push(Action::Fence(pod.uid));
            }
            if self.terminating
                && (steward.exempts_namespace_controller() || steward.may_delete(self, setup, pod.uid))
            {
                actions.push(Action::Collect(pod.uid));
            }
        }
        if self.lost && self.guest != Guest::Down {
            actions.push(Action::GuestDown);
        }
    }

    fn pod_actions(&self, setup: Setup, actions: &mut Vec<Action>) {
        for pod in &self.pods {
            match pod.phase {
                PodPhase::Pending => actions.push(Action::Schedule(pod.uid)),
                PodPhase::Scheduled if node::can_start(self, setup, pod) => {
                    actions.push(Action::Start(pod.uid));
                }
                PodPhase::Running => actions.push(Action::BecomeReady(pod.uid)),
                _ => {}
            }
        }
        let left = self.published.iter().filter(|publication| node::is_left_over(self, publication));
        actions.extend(left.map(|publication| Action::Unpublish(publication.pod)));
    }

    fn volume_actions(&self, setup: Setup, actions: &mut Vec<Action>) {
        for volume in (0..8).filter(|volume| !node::is_at_rest(self, *volume)) {
            let possible = [
                (node::source(self, setup, volume).is_some(), Action::Mount(volume)),
                (node::is_still_mounted(self, volume), Action::ReportMounted(volume)),
                (node::can_unmount(self, setup, volume), Action::Unmount(volume)),
                (node::can_attach(self, volume), Action::Attach(volume)),
                (node::can_detach(self, setup, volume), Action::Detach(volume)),
                (node::can_mark_ready(self, volume), Action::MarkReady(volume)),
            ];
            actions.extend(possible.into_iter().filter(|(can, _)| *can).map(|(_, action)| action));
        }
    }

    fn migration_actions(&self, actions: &mut Vec<Action>) {
        match self.migration {
            Migration::None => {}
            // The migration controller waits for a hotplug that is going on (migration.go:759), as
            // far as it is in the status.
            Migration::Requested if self.guest == Guest::Running => actions.push(Action::MakeTarget),
            Migration::Target { launcher, volumes } if self.guest == Guest::Running => {
                let pod = self.pods.iter().find(|pod| pod.launcher == launcher);
                match pod {
                    // A migration takes longer than a cache.
                    Some(pod) if pod.phase == PodPhase::Ready && self.cache.contains(pod) => {
                        actions.push(Action::Complete);
                    }
                    None if volumes.is_empty() => actions.push(Action::Complete),
                    Some(pod) if pod.phase == PodPhase::Failed || pod.age == Age::Old => {
                        actions.push(Action::Abort);
                    }
                    None => actions.push(Action::Abort),
                    Some(_) => {}
                }
            }
            Migration::Requested | Migration::Target { .. } => actions.push(Action::Abort),
        }
    }

    /// Does it.
    pub fn apply(&mut self, action: Action, setup: Setup, steward: &dyn Steward) {
        match action {
            Action::TakeOver => {
                if let Some(spec) = self.take_over(setup, steward) {
                    self.learn(setup, steward);
                    for volume in spec.minus(self.spec).iter() {
                        self.taken[usize::from(volume) % MOST_VOLUMES] = 0;
                    }
                    self.spec = spec;
                    self.overdue = false;
                }
            }
            Action::Observe => {
                if self.awaits_a_pod_that_is_gone() {
                    self.expectation = crate::state::Expectation::None;
                }
                self.cache.clone_from(&self.pods);
            }
            Action::Sync => controller::sync(self, setup, steward),
            Action::Schedule(uid) => self.set_phase(uid, PodPhase::Scheduled),
            Action::Start(uid) => node::start(self, uid),
            Action::BecomeReady(uid) => self.set_phase(uid, PodPhase::Ready),
            Action::Unpublish(uid) => node::unpublish(self, setup, uid),
            Action::Mount(volume) => {
                if let Some(uid) = node::source(self, setup, volume) {
                    node::mount(self, volume, uid);
                }
            }
            Action::ReportMounted(volume) => self.status_mut(volume).phase = Phase::MountedToPod,
            Action::Unmount(volume) => node::unmount(self, volume),
            Action::Attach(volume) => self.domain = self.domain.with(volume),
            Action::Detach(volume) => node::detach(self, volume),
            Action::MarkReady(volume) => {
                let status = self.status_mut(volume);
                (status.phase, status.target) = (Phase::Ready, true);
            }
            Action::Commit(uid) => self.pods.retain(|pod| pod.uid != uid),
            Action::GuestDown => (self.guest, self.domain) = (Guest::Down, Volumes::NONE),
            Action::MakeTarget => self.make_target(),
            Action::Complete => self.complete(),
            Action::Abort => self.abort(),
            Action::RollBack => {
                if let Some(wanted) = steward.takes_back(self, setup) {
                    self.wanted = wanted;
                }
            }
            Action::Age(uid) => {
                let age = self.pod(uid).map_or(Age::Fresh, |pod| pod.age);
                let older = if age == Age::Fresh { Age::Tried } else { Age::Old };
                // Whatever was there before has been there for at least as long.
                for pod in self.pods.iter_mut().filter(|pod| pod.uid <= uid) {
                    pod.age = pod.age.max(older);
                }
            }
            Action::Overdue => self.overdue = true,
            Action::Want(volumes) => self.wanted = volumes,
            Action::Heal(uid) | Action::Delete(uid) => {
                self.learn(setup, steward);
                if steward.may_delete(self, setup, uid)
                    && let Some(pod) = self.pod_mut(uid)
                {
                    pod.granted = true;
                }
            }
            Action::KubeletEvict(uid) => self.set_phase(uid, PodPhase::Failed),
            Action::ClaimFlap(volume) => self.ready = self.ready.without(volume),
            Action::ClaimReady(volume) => self.ready = self.ready.with(volume),
            Action::DeleteVmi => {
                self.deleting = true;
                if self.guest == Guest::Running {
                    self.guest = Guest::ShuttingDown;
                }
            }
            Action::Migrate => self.migration = Migration::Requested,
            // Nothing runs there any more, so nothing is published, and nobody reads.
            Action::LoseNode => {
                self.lost = true;
                self.published.clear();
                self.domain = Volumes::NONE;
            }
            Action::DeleteNamespace => {
                self.terminating = true;
                self.deleting = true;
                if self.guest == Guest::Running {
                    self.guest = Guest::ShuttingDown;
                }
            }
            Action::Fence(uid) | Action::Collect(uid) => self.pods.retain(|pod| pod.uid != uid),
            Action::RestartController => {
                self.expectation = crate::state::Expectation::None;
                self.cache.clone_from(&self.pods);
            }
        }
    }

    /// An informer shows it come and go, in this order.
    fn awaits_a_pod_that_is_gone(&self) -> bool {
        matches!(self.expectation, crate::state::Expectation::Created(uid) if self.pod(uid).is_none())
    }

    /// Whatever our program is asked, it notes what it sees.
    pub(crate) fn learn(&mut self, setup: Setup, steward: &dyn Steward) {
        if let Some(taken) = steward.learn(self, setup) {
            self.taken = taken;
        }
    }

    fn set_phase(&mut self, uid: Uid, phase: PodPhase) {
        if let Some(pod) = self.pod_mut(uid) {
            pod.phase = phase;
        }
    }

    /// The set that the VM controller would write into the VMI: a name that left comes back only
    /// when its status entry has gone (hotplug.go:126-139, v1.9).
    fn take_over(&self, setup: Setup, steward: &dyn Steward) -> Option<Volumes> {
        let returning = self.wanted.minus(self.spec).minus(self.entries());
        let next = self.spec.and(self.wanted).or(returning);
        let possible = next != self.spec && self.guest == Guest::Running && !self.deleting;
        (possible && steward.may_change(self, setup, next)).then_some(next)
    }

    fn make_target(&mut self) {
        self.launchers += 1;
        let launcher = self.launchers;
        let volumes = self.spec;
        if !volumes.is_empty() {
            // Statuses are blanked for it, so it mounts filesystem volumes too (migration.go:1456).
            controller::create(self, launcher, volumes, volumes);
        }
        self.migration = Migration::Target { launcher, volumes };
    }

    fn complete(&mut self) {
        let Migration::Target { launcher, volumes } = self.migration else { return };
        let pod = self.pods.iter().find(|pod| pod.launcher == launcher).map_or(0, |pod| pod.uid);
        if !self.domain.within(volumes) || self.spec != volumes {
            self.harm.migration = true;
        }
        if !self.domain.within(volumes) {
            self.abort();
            return;
        }
        self.launcher = launcher;
        self.taken = Default::default();
        for volume in 0..8 {
            let device = if self.domain.has(volume) {
                crate::state::Device::From(pod)
            } else {
                crate::state::Device::None
            };
            *self.device_mut(volume) = device;
        }
        self.migration = Migration::None;
    }

    /// The target launcher is deleted, and its attachment pod with it by garbage collection.
    fn abort(&mut self) {
        if let Migration::Target { launcher, .. } = self.migration {
            self.pods.retain(|pod| pod.launcher != launcher);
        }
        self.migration = Migration::None;
    }
}
