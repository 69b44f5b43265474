//! One VM and everything around it, as small as it can be and still go wrong.

use std::fmt;

use resize::eligibility::Obstacle;
use resize::hook::{Facts, Passing, Ruling, judge};
use resize::ledger::{End, Ledger, Phase, Report, Wish};
use resize::machine::{Actuation, Pod, Seen, Step, Vmi, Waiting, Wanted, decide};
use resize::resources::{Demand, Follows, Rules, resized};
use resize::size::{Amount, Asked, Compute};
use resize::{Fallback, Policy, Size};
use stateright::Model;

const GI: u64 = 1 << 30;

/// Sockets of one vCPU, and GiB.
pub const fn size(sockets: u32, gib: u64) -> Size {
    Size { sockets, guest: gib * GI }
}

/// What kubelet says to a pod that is to grow.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Kubelet {
    Willing,
    Defers,
    Infeasible,
    Fails,
    /// Any of these, and another one the next time.
    AnyOf,
}

/// What can happen in one exploration.
#[derive(Clone, Copy, Debug)]
pub struct Setting {
    pub start: Size,
    pub wish: Size,
    /// What the owner may ask for afterwards, in this order.
    pub changes: &'static [Size],
    pub fallback: Fallback,
    pub kubelet: Kubelet,
    pub migratable: bool,
    pub may_declare: bool,
    /// How often agent or webhook go away.
    pub outages: u8,
    /// The quota may say no, and later yes.
    pub quota: bool,
    /// Drains that begin at any moment.
    pub migrations: u8,
    /// The guest does not give memory back.
    pub guest_keeps_memory: bool,
    /// How often the time that somebody waits for comes.
    pub ticks: u8,
}

impl Default for Setting {
    fn default() -> Self {
        Self {
            start: size(2, 1),
            wish: size(4, 2),
            changes: &[],
            fallback: Fallback::Migrate,
            kubelet: Kubelet::Willing,
            migratable: true,
            may_declare: false,
            outages: 0,
            quota: false,
            migrations: 0,
            guest_keeps_memory: false,
            ticks: 2,
        }
    }
}

impl Setting {
    /// The pod that virt-controller renders for a size.
    pub fn render(size: Size) -> Compute {
        let smallest = Compute {
            cpu: Amount { request: 100, limit: None },
            memory: Amount { request: GI + (300 << 20), limit: None },
        };
        let demand =
            |size| Demand { size, vcpus_per_socket: 1, asked: Asked::default(), overcommit_overhead: false };
        resized(smallest, &demand(Size { sockets: 1, guest: GI }), &demand(size), &Rules::default())
    }
}

#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct World {
    pub vm: Size,
    pub changes_left: u8,
    pub spec: Size,
    pub status: Size,
    pub ledger: Option<Ledger>,
    pub wish: Option<Wish>,
    pub report: Option<Report>,
    pub deleted: bool,
    pub pod: u8,
    pub pod_spec: Compute,
    pub pod_actual: Compute,
    pub pod_state: Actuation,
    pub vcpus: u32,
    pub requested: u64,
    pub current: u64,
    /// The target of a migration: its pod's resources, and whether the guest is on its way.
    pub migration: Option<(Compute, bool)>,
    pub migrations_left: u8,
    /// A migration has carried a grown guest into a pod that was rendered before (race R1).
    pub carried: bool,
    /// What the reconciler has decided and not done yet, and whether VMI or pod changed since.
    pub intent: Option<(Step, bool)>,
    pub agent_up: bool,
    pub hook_up: bool,
    pub outages_left: u8,
    /// What the agent has read and not done yet: a task, or just a look.
    pub task: Option<Option<Size>>,
    /// What it has done last.
    pub done: Option<Option<Size>>,
    pub quota_full: bool,
    pub quota_left: u8,
    pub now: i64,
    pub ticks_left: u8,
}

impl fmt::Display for World {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let gib = |bytes: u64| bytes / GI;
        writeln!(f, "vm {}/{}", self.vm.sockets, gib(self.vm.guest))?;
        writeln!(f, "spec {}/{}", self.spec.sockets, gib(self.spec.guest))?;
        writeln!(f, "status {}/{}", self.status.sockets, gib(self.status.guest))?;
        writeln!(f, "guest {}/{} of {}", self.vcpus, gib(self.current), gib(self.requested))?;
        writeln!(f, "{} {:?} {:?}", self.uid(), self.pod_spec, self.pod_state)?;
        writeln!(f, "actual {:?}", self.pod_actual)?;
        writeln!(f, "{:?} {:?} task {:?} done {:?}", self.wish, self.report, self.task, self.done)?;
        writeln!(f, "migration {:?}, now {}, intent {:?}", self.migration, self.now, self.intent)?;
        write!(f, "{:#?}", self.ledger)
    }
}

impl World {
    pub fn guest(&self) -> Size {
        Size { sockets: self.vcpus, guest: self.requested.max(self.current) }
    }

    /// virt-controller's patches pass unchanged.
    fn lets_pass(&self) -> bool {
        !self.hook_up || self.ledger.as_ref().is_some_and(|ledger| ledger.phase == Phase::Open)
    }

    /// The quota stays full, or the exploration has seen enough attempts.
    fn resting_on_quota(&self) -> bool {
        self.quota_full || self.ticks_left == 0
    }

    pub fn uid(&self) -> String {
        format!("pod-{}", self.pod)
    }

    fn vmi_changed(&mut self) {
        if let Some((Step::Record(_) | Step::Clear | Step::Declare(_), stale)) = &mut self.intent {
            *stale = true;
        }
    }

    pub fn seen(&self, setting: &Setting) -> Seen {
        let mut obstacles = Vec::new();
        if self.vm.sockets < self.spec.sockets {
            obstacles.push(Obstacle::FewerSockets);
        }
        if self.vm.guest != self.spec.guest && !setting.migratable && !setting.may_declare {
            obstacles.push(Obstacle::MemoryNeedsGrant);
        }
        Seen {
            wanted: Some(Wanted { size: self.vm, follows: Follows::default() }),
            vmi: Vmi {
                size: self.spec,
                status: self.status,
                vcpus_per_socket: 1,
                migratable: setting.migratable,
                stock_at_work: self.spec != self.status,
                ..Vmi::default()
            },
            pod: Some(Pod { uid: self.uid(), spec: self.pod_spec, state: self.pod_state.clone() }),
            migrating: self.migration.is_some(),
            report: self.report.clone(),
            ledger: self.ledger.clone(),
            wish: self.wish,
            obstacles,
            rules: Rules::default(),
            may_declare: setting.may_declare,
        }
    }

    pub fn decision(&self, setting: &Setting) -> Step {
        let policy = Policy { in_place: true, fallback: setting.fallback, deadline: 60 };
        decide(&self.seen(setting), &policy, self.now)
    }

    /// What the webhook says to a patch of virt-controller, or of somebody who acts as it.
    fn ruling(&self, to: Size, setting: &Setting) -> (Ruling, Ruling) {
        let policy = Policy { in_place: true, fallback: setting.fallback, deadline: 60 };
        let facts = Facts {
            policy: Some(policy),
            ledger: self.ledger.as_ref(),
            pod_is_active: self.ledger.as_ref().is_some_and(|ledger| ledger.pod == self.uid()),
            migrating: self.migration.as_ref().is_some_and(|(_, running)| *running),
        };
        let ruled = if self.hook_up { judge(self.spec, to, &facts) } else { Err(Passing::NotEnabled) };
        ruled.unwrap_or((Ruling::Pass, Ruling::Pass))
    }

    /// virt-controller writes a size, if the webhook lets it.
    fn patch(&mut self, to: Size, setting: &Setting) {
        let (sockets, guest) = self.ruling(to, setting);
        let mut wish = self.wish.unwrap_or_default();
        match sockets {
            Ruling::Hold => wish.sockets = Some(to.sockets),
            Ruling::Declare => (self.spec.sockets, self.status.sockets) = (to.sockets, to.sockets),
            Ruling::Pass => self.spec.sockets = to.sockets,
            Ruling::Same => {}
        }
        match guest {
            Ruling::Hold => wish.guest = Some(to.guest),
            Ruling::Declare => (self.spec.guest, self.status.guest) = (to.guest, to.guest),
            Ruling::Pass => self.spec.guest = to.guest,
            Ruling::Same => {}
        }
        if [sockets, guest].contains(&Ruling::Hold) {
            self.wish = Some(wish);
        }
    }

    fn resize_pod(&mut self, to: Compute) {
        let grows = !self.pod_spec.covers(to);
        if grows && self.quota_full {
            // The shell writes the refusal down, with the same guard as every other write.
            self.ledger = self.ledger.as_ref().map(|ledger| ledger.refused("exceeded quota", self.now));
            return;
        }
        self.pod_spec = to;
        self.pod_state = if to == self.pod_actual { Actuation::Done } else { Actuation::Pending };
    }

    /// Spec and status of a size in one patch; what the webhook holds of it is set back.
    fn declare(&mut self, to: Size, setting: &Setting) {
        let (sockets, guest) = self.ruling(to, setting);
        self.status = to;
        if sockets != Ruling::Hold {
            self.spec.sockets = to.sockets;
        }
        if guest != Ruling::Hold {
            self.spec.guest = to.guest;
        }
    }

    fn act(&mut self, step: Step, setting: &Setting) {
        match step {
            Step::Record(ledger) => self.ledger = Some(ledger),
            Step::Clear => (self.ledger, self.wish, self.report) = (None, None, None),
            Step::Resize(to) => self.resize_pod(to),
            Step::Declare(End { size, .. }) => self.declare(size, setting),
            Step::Idle | Step::Wait(..) => {}
        }
    }

    fn arrive(&mut self, target: Compute) {
        self.migration = None;
        self.pod += 1;
        (self.pod_spec, self.pod_actual, self.pod_state) = (target, target, Actuation::Done);
        (self.task, self.done) = (None, None);
        if self.spec != self.status {
            // finalizeMigration plugs what the spec says.
            self.vcpus = self.vcpus.max(self.spec.sockets);
            (self.requested, self.current) = (self.spec.guest, self.spec.guest);
            self.status = self.spec;
        }
        self.carried = !self.pod_spec.covers(Setting::render(self.guest()));
    }
}

#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub enum Event {
    // the owner
    Change,
    Delete,
    // virt-controller
    PatchSockets,
    PatchGuest,
    WorkloadUpdate,
    // migrations
    Drain,
    MigrationRuns,
    MigrationEnds,
    MigrationFails,
    // the reconciler
    Look,
    Act,
    Die,
    // kubelet
    Actuate,
    Say(Kubelet),
    // agent and guest
    AgentReads,
    AgentActs,
    AgentReports,
    AgentGoes,
    AgentComes,
    GuestFollows,
    // others
    HookGoes,
    HookComes,
    QuotaFills,
    QuotaFrees,
    Tick,
}

impl Event {
    /// It need not happen, so nothing may depend on it.
    pub fn is_fault(&self) -> bool {
        matches!(
            self,
            Self::Change
                | Self::Delete
                | Self::Drain
                | Self::MigrationFails
                | Self::Die
                | Self::AgentGoes
                | Self::HookGoes
                | Self::QuotaFills
                // A wait without an end.
                | Self::QuotaFrees
        )
    }
}

impl Model for Setting {
    type State = World;
    type Action = Event;

    fn init_states(&self) -> Vec<World> {
        let pod = Self::render(self.start);
        vec![World {
            vm: self.wish,
            changes_left: u8::try_from(self.changes.len()).unwrap_or(u8::MAX),
            spec: self.start,
            status: self.start,
            ledger: None,
            wish: None,
            report: None,
            deleted: false,
            pod: 0,
            pod_spec: pod,
            pod_actual: pod,
            pod_state: Actuation::Done,
            vcpus: self.start.sockets,
            requested: self.start.guest,
            current: self.start.guest,
            migration: None,
            migrations_left: self.migrations,
            carried: false,
            intent: None,
            agent_up: true,
            hook_up: true,
            outages_left: self.outages,
            task: None,
            done: None,
            quota_full: false,
            quota_left: u8::from(self.quota),
            now: 0,
            ticks_left: self.ticks,
        }]
    }

    fn actions(&self, world: &World, events: &mut Vec<Event>) {
        if world.deleted {
            return;
        }
        let mut when = |condition: bool, event: Event| {
            if condition {
                events.push(event);
            }
        };
        when(world.changes_left > 0, Event::Change);
        // Everything ends with it, so once is enough to try.
        when(self.changes.is_empty() && self.outages == 0, Event::Delete);
        // virt-controller
        let restart_required =
            world.vm.sockets < world.spec.sockets || (!self.migratable && world.vm.guest != world.spec.guest);
        let may_patch = !restart_required
            && world.spec == world.status
            // R4, a patch while a target pod is being scheduled, is KubeVirt's own race: it is held
            // by the webhook, and not followed where the webhook lets patches pass.
            && !world.migration.is_some_and(|(_, running)| running || world.lets_pass());
        when(may_patch && world.vm.sockets != world.spec.sockets, Event::PatchSockets);
        when(may_patch && self.migratable && world.vm.guest != world.spec.guest, Event::PatchGuest);
        let idle = world.migration.is_none();
        when(idle && self.migratable && world.spec != world.status, Event::WorkloadUpdate);
        when(idle && self.migratable && world.migrations_left > 0, Event::Drain);
        if let Some((_, running)) = world.migration {
            when(!running, Event::MigrationRuns);
            when(running, Event::MigrationEnds);
            when(running && world.migrations_left == 0 && world.spec == world.status, Event::MigrationFails);
        }
        // the reconciler
        when(world.intent.is_none(), Event::Look);
        when(world.intent.is_some(), Event::Act);
        when(world.intent.is_some(), Event::Die);
        // kubelet
        let grows = !world.pod_actual.covers(world.pod_spec);
        if world.pod_spec != world.pod_actual {
            let able = !grows || matches!(self.kubelet, Kubelet::Willing | Kubelet::AnyOf);
            when(able && !matches!(world.pod_state, Actuation::Infeasible(_)), Event::Actuate);
            for kubelet in [Kubelet::Defers, Kubelet::Infeasible, Kubelet::Fails] {
                when(grows && [kubelet, Kubelet::AnyOf].contains(&self.kubelet), Event::Say(kubelet));
            }
        }
        // agent and guest
        let asked = |ledger: &&Ledger| ledger.pod == world.uid() && ledger.asks_for_a_report();
        let task = world.ledger.as_ref().filter(asked).map(Ledger::task_now);
        when(world.agent_up && task.is_some() && task != world.done && task != world.task, Event::AgentReads);
        when(world.agent_up && world.task.is_some(), Event::AgentActs);
        when(world.agent_up && world.task.is_none() && world.done.is_some(), Event::AgentReports);
        when(world.agent_up && world.outages_left > 0, Event::AgentGoes);
        when(!world.agent_up, Event::AgentComes);
        let kept = self.guest_keeps_memory && world.requested < world.current;
        when(world.requested != world.current && !kept, Event::GuestFollows);
        when(world.hook_up && world.outages_left > 0, Event::HookGoes);
        when(!world.hook_up, Event::HookComes);
        when(!world.quota_full && world.quota_left > 0, Event::QuotaFills);
        when(world.quota_full, Event::QuotaFrees);
        let waits = matches!(world.decision(self), Step::Wait(_, Some(_)));
        when(waits && world.ticks_left > 0 && world.intent.is_none(), Event::Tick);
    }

    fn next_state(&self, before: &World, event: Event) -> Option<World> {
        let mut world = before.clone();
        match event {
            Event::Change => {
                let index = self.changes.len() - usize::from(world.changes_left);
                world.vm = *self.changes.get(index)?;
                world.changes_left -= 1;
            }
            Event::Delete => {
                world.deleted = true;
                world.intent = None;
            }
            Event::PatchSockets => {
                let to = Size { sockets: world.vm.sockets, ..world.spec };
                world.patch(to, self);
            }
            Event::PatchGuest => {
                let to = Size { guest: world.vm.guest, ..world.spec };
                world.patch(to, self);
            }
            Event::WorkloadUpdate => world.migration = Some((Self::render(world.spec), false)),
            Event::Drain => {
                world.migrations_left -= 1;
                world.migration = Some((Self::render(world.spec), false));
            }
            Event::MigrationRuns => world.migration = world.migration.map(|(pod, _)| (pod, true)),
            Event::MigrationEnds => {
                let (target, _) = world.migration?;
                world.arrive(target);
            }
            Event::MigrationFails => world.migration = None,
            Event::Look => {
                let step = world.decision(self);
                if matches!(step, Step::Idle | Step::Wait(..)) {
                    return None;
                }
                world.intent = Some((step, false));
            }
            Event::Act => {
                let (step, stale) = world.intent.take()?;
                // A write that is guarded by what was seen fails when that has changed.
                let other_pod = before.pod != world.pod;
                if !stale && !other_pod {
                    world.act(step, self);
                }
            }
            Event::Die => world.intent = None,
            Event::Actuate => {
                world.pod_actual = world.pod_spec;
                world.pod_state = Actuation::Done;
            }
            Event::Say(kubelet) => {
                world.pod_state = match kubelet {
                    Kubelet::Defers => Actuation::Deferred(String::new()),
                    Kubelet::Infeasible => Actuation::Infeasible(String::new()),
                    _ => Actuation::Error(String::new()),
                };
            }
            Event::AgentReads => world.task = Some(world.ledger.as_ref()?.task_now()),
            Event::AgentActs => {
                let task = world.task.take()?;
                if let Some(task) = task {
                    world.vcpus = world.vcpus.max(task.sockets);
                    world.requested = task.guest;
                }
                world.done = Some(task);
            }
            Event::AgentReports => {
                world.ledger.as_ref()?;
                world.report = Some(Report {
                    pod: world.uid(),
                    task: world.done?,
                    vcpus: world.vcpus,
                    requested: world.requested,
                    current: world.current,
                    trouble: None,
                });
            }
            Event::AgentGoes => {
                world.outages_left -= 1;
                world.agent_up = false;
                (world.task, world.done) = (None, None);
            }
            Event::AgentComes => world.agent_up = true,
            Event::GuestFollows => world.current = world.requested,
            Event::HookGoes => {
                world.outages_left -= 1;
                world.hook_up = false;
            }
            Event::HookComes => world.hook_up = true,
            Event::QuotaFills => {
                world.quota_left -= 1;
                world.quota_full = true;
            }
            Event::QuotaFrees => world.quota_full = false,
            Event::Tick => {
                let Step::Wait(_, Some(at)) = world.decision(self) else { return None };
                world.now = at;
                world.ticks_left -= 1;
            }
        }
        if world.pod_actual.covers(Self::render(world.guest())) {
            world.carried = false;
        }
        let vmi = |world: &World| {
            (world.spec, world.status, world.ledger.clone(), world.wish, world.report.clone())
        };
        if vmi(before) != vmi(&world) {
            world.vmi_changed();
        }
        if (before.pod, &before.pod_spec) != (world.pod, &world.pod_spec)
            && let Some((Step::Resize(_), stale)) = &mut world.intent
        {
            *stale = true;
        }
        (world != *before).then_some(world)
    }
}

/// Whether pod, VMI and guest agree.
pub fn agrees(setting: &Setting, world: &World) -> bool {
    if world.deleted {
        return true;
    }
    let guest = Size { sockets: world.vcpus, guest: world.current };
    let accounted = world.pod_spec == Setting::render(guest) && world.pod_actual == world.pod_spec;
    let declared = world.spec == world.status;
    let stranded = world.ledger.as_ref().is_some_and(|ledger| {
        ledger.is_stranded() && ledger.phase == Phase::Stopped && world.spec.guest == guest.guest
    });
    // A VM that cannot migrate and whose patch came while the webhook was away is in KubeVirt's own
    // dead end: nobody ever takes the condition away. With the grant we lead it out, if the node can.
    let can_heal = setting.may_declare
        && setting.kubelet == Kubelet::Willing
        && !world.quota_full
        && world.ledger.as_ref().is_none_or(|ledger| ledger.phase != Phase::Stopped)
        && world.vm.sockets >= world.spec.sockets;
    let dead_end = !setting.migratable
        && setting.outages > 0
        && !declared
        && !can_heal
        && (accounted || world.pod_spec == Setting::render(world.spec));
    match world.decision(setting) {
        Step::Idle | Step::Wait(Waiting::KubeVirt | Waiting::Ask | Waiting::Owner, _) if dead_end => true,
        Step::Idle => accounted && declared && world.spec == guest,
        // KubeVirt wants a restart.
        Step::Wait(Waiting::Ask, _) => {
            accounted
                && declared
                && world.spec == guest
                && world.ledger.is_none()
                && (!setting.migratable || world.vm.sockets < world.spec.sockets)
        }
        Step::Wait(Waiting::Owner, _) => accounted && declared && (world.spec == guest || stranded),
        // The guest keeps what it was asked to give back: the pod keeps it, too.
        Step::Wait(Waiting::Guest, _) => {
            setting.guest_keeps_memory && world.pod_spec.covers(Setting::render(world.guest()))
        }
        // KubeVirt wants a restart.
        Step::Wait(Waiting::KubeVirt, _) => {
            accounted && declared && world.spec == guest && world.vm.sockets < world.spec.sockets
        }
        Step::Wait(Waiting::Quota, _) => {
            world.resting_on_quota() && (world.carried || world.pod_spec == Setting::render(guest))
        }
        Step::Wait(Waiting::Kubelet, _) => {
            setting.fallback == Fallback::Wait && setting.kubelet != Kubelet::Willing
        }
        _ => false,
    }
}
