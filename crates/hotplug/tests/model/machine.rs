//! The machine as stateright sees it.

use std::fmt::Write as _;

use handoff::{
    Action, Guest, MOST_VOLUMES, Migration, Pod, PodPhase, Present, Setup, Steward, Uid, Volumes, World,
};
use stateright::{Checker, Model, Property};

/// The world, and what may still be done to it from outside.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct State {
    world: World,
    wanted: usize,
    left: Events,
}

/// How often each event from outside happens, at any time, or not at all.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub struct Events {
    /// Deletes and evictions by others than virt-controller.
    pub deletes: u8,
    /// Deletes by somebody who has made sure that another pod serves everything.
    pub careful_deletes: u8,
    /// Evictions by the kubelet, which no webhook sees. They take volumes away, so S1 is not asked.
    pub kubelet_evictions: u8,
    /// Claims that are not ready for a while.
    pub claim_flaps: u8,
    /// Live migrations.
    pub migrations: u8,
    /// Deletions of the VM.
    pub deletions: u8,
    /// Losses of the node.
    pub node_losses: u8,
    /// Deletions of the namespace.
    pub namespace_deletions: u8,
    /// Starts of virt-controller.
    pub restarts: u8,
}

/// Which program works in the cluster.
#[derive(Clone, Copy)]
pub enum Program {
    Absent,
    Present(Present),
    Strange(Strange),
}

/// A guard with a rule that one might think of, and that wedges.
#[derive(Clone, Copy)]
pub struct Strange {
    pub present: Present,
    pub rule: fn(&World, &Pod) -> bool,
}

impl Steward for Strange {
    fn may_delete(&self, world: &World, _: Setup, uid: Uid) -> bool {
        world.pod(uid).is_none_or(|pod| (self.rule)(world, pod))
    }

    fn exempts_namespace_controller(&self) -> bool {
        false
    }

    fn may_change(&self, world: &World, setup: Setup, volumes: Volumes) -> bool {
        self.present.may_change(world, setup, volumes)
    }

    fn suspects(&self, world: &World) -> bool {
        self.present.suspects(world)
    }

    fn heals(&self, world: &World, setup: Setup) -> Vec<Uid> {
        self.present.heals(world, setup)
    }

    fn takes_back(&self, world: &World, setup: Setup) -> Option<Volumes> {
        self.present.takes_back(world, setup)
    }
}

/// What is run, and what it is expected to show.
#[derive(Clone)]
pub struct Scenario {
    pub name: &'static str,
    pub setup: Setup,
    pub attached: Volumes,
    /// Each of them comes from a pod of its own, as claims that were not ready for a while leave them.
    pub split: bool,
    /// Sets of volumes that users want, one after the other, at any time.
    pub wants: Vec<Volumes>,
    pub events: Events,
    pub program: Program,
    /// Pods that may be created before it counts as endless.
    pub most_pods: u16,
    pub violates: &'static [&'static str],
}

/// What a run showed.
pub struct Outcome {
    pub states: usize,
    pub violated: Vec<&'static str>,
    pub trace: String,
}

impl Scenario {
    pub fn explore(&self) -> Outcome {
        let checker = self.clone().checker().target_state_count(2_000_000).spawn_bfs().join();
        let found = checker.discoveries();
        let mut violated: Vec<&'static str> = found.keys().copied().collect();
        violated.sort_unstable();
        let mut trace = String::new();
        for (property, path) in found {
            let _ = writeln!(trace, "  {property}: {:?}", path.clone().into_actions());
            let _ = writeln!(trace, "    {:?}", path.last_state());
        }
        Outcome { states: checker.unique_state_count(), violated, trace }
    }

    fn steward(&self) -> &dyn Steward {
        match &self.program {
            Program::Absent => &handoff::Absent,
            Program::Present(present) => present,
            Program::Strange(strange) => strange,
        }
    }

    fn inner(&self, state: &State) -> Vec<Action> {
        let mut actions = Vec::new();
        state.world.inner_actions(self.setup, self.steward(), &mut actions);
        actions
    }
}

impl Model for Scenario {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let world = if self.split {
            World::split(self.setup, self.attached)
        } else {
            World::settled(self.setup, self.attached)
        };
        vec![State { world, wanted: 0, left: self.events }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        let world = &state.world;
        // What comes after harm shows nothing more.
        if !world.harm.io_errors.is_empty() && self.events.kubelet_evictions == 0 {
            return;
        }
        world.inner_actions(self.setup, self.steward(), actions);
        let running = world.guest == Guest::Running && !world.deleting && !world.lost;
        if let Some(wanted) = self.wants.get(state.wanted).filter(|_| running) {
            actions.push(Action::Want(*wanted));
        }
        let left = &state.left;
        for pod in &world.pods {
            let live = pod.phase != PodPhase::Failed;
            if left.deletes > 0
                && live
                && !pod.granted
                && self.steward().may_delete(world, self.setup, pod.uid)
            {
                actions.push(Action::Delete(pod.uid));
            }
            if left.careful_deletes > 0 && live && !pod.granted && others_serve(world, *pod) {
                actions.push(Action::Delete(pod.uid));
            }
            if left.kubelet_evictions > 0 && live && pod.phase >= PodPhase::Running {
                actions.push(Action::KubeletEvict(pod.uid));
            }
        }
        for volume in 0..8 {
            if !world.ready.has(volume) {
                actions.push(Action::ClaimReady(volume));
            } else if left.claim_flaps > 0 && world.spec.has(volume) {
                actions.push(Action::ClaimFlap(volume));
            }
        }
        let steward = self.steward();
        let may_migrate = left.migrations > 0
            && running
            && world.migration == Migration::None
            && steward.may_migrate(world, self.setup);
        let may_end =
            left.namespace_deletions > 0 && !world.terminating && steward.may_delete_namespace(world);
        let possible = [
            (may_migrate, Action::Migrate),
            (left.node_losses > 0 && !world.lost && world.guest != Guest::Down, Action::LoseNode),
            (may_end, Action::DeleteNamespace),
            (left.deletions > 0 && running, Action::DeleteVmi),
            (left.restarts > 0, Action::RestartController),
        ];
        actions.extend(possible.into_iter().filter(|(can, _)| *can).map(|(_, action)| action));
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut next = last.clone();
        next.world.apply(action, self.setup, self.steward());
        let left = &mut next.left;
        match action {
            Action::Want(_) => next.wanted += 1,
            Action::Delete(_) => {
                left.deletes = left.deletes.saturating_sub(1);
                left.careful_deletes = left.careful_deletes.saturating_sub(1);
            }
            Action::LoseNode => left.node_losses -= 1,
            Action::DeleteNamespace => left.namespace_deletions -= 1,
            Action::KubeletEvict(_) => left.kubelet_evictions -= 1,
            Action::ClaimFlap(_) => left.claim_flaps -= 1,
            Action::Migrate => left.migrations -= 1,
            Action::DeleteVmi => left.deletions -= 1,
            Action::RestartController => left.restarts -= 1,
            _ => {}
        }
        (next != *last).then_some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("S1 no I/O error", |model: &Self, state: &State| {
                model.events.kubelet_evictions > 0 || state.world.harm.io_errors.is_empty()
            }),
            Property::always("S2 every volume in the guest has a pod", |model: &Self, state: &State| {
                is_referred_to(model, state, |_| true)
            }),
            // As if every delete that was allowed had been carried out.
            Property::always("S3 allowed deletes leave every volume a pod", |model: &Self, state: &State| {
                is_referred_to(model, state, |pod| !pod.granted)
            }),
            Property::always("S4 no spurious unplug", |_, state: &State| {
                state.world.harm.unplugged.is_empty()
            }),
            Property::always("S6 what must pass passes", must_pass),
            Property::always("S7 no duplicate for good", |model: &Self, state: &State| {
                let twins = state.world.pods.iter().any(|pod| {
                    let same = |other: &&handoff::Pod| {
                        other.launcher == pod.launcher && other.volumes == pod.volumes && other.uid != pod.uid
                    };
                    state.world.pods.iter().any(|other| same(&other))
                });
                !twins || !model.is_over(state)
            }),
            Property::always("S8 the set is constant during a migration", |_, state: &State| {
                !state.world.harm.migration
            }),
            // Claims that come and go leave pods behind that no change has thrown away.
            Property::always(
                "W6 no handoff is thrown away for the next change",
                |model: &Self, state: &State| model.events.claim_flaps > 0 || !state.world.harm.wasted,
            ),
            Property::always("no removed volume is mounted again", |_, state: &State| {
                state.world.harm.remounted.is_empty()
            }),
            Property::always("L1 every request ends", |model: &Self, state: &State| {
                model.has_what_it_wants(&state.world) || !model.is_over(state)
            }),
            Property::always("L2 every pod that may go goes", |model: &Self, state: &State| {
                model.has_no_pod_too_many(&state.world) || !model.is_over(state)
            }),
            Property::always("L3 deletions and drains end", |model: &Self, state: &State| {
                let world = &state.world;
                let gone = world.pods.is_empty() && world.published.is_empty();
                world.guest != Guest::Down || gone || !model.is_over(state)
            }),
            Property::always("L6 one bad volume does not stop others", |model: &Self, state: &State| {
                let good = model.wants.last().copied().unwrap_or_default().minus(model.setup.broken);
                let concerned = !model.setup.broken.is_empty() && state.world.guest == Guest::Running;
                !concerned || good.within(state.world.domain) || !model.is_over(state)
            }),
            Property::always("L5 pods are not created for ever", |model: &Self, state: &State| {
                state.world.uids < model.most_pods
            }),
        ]
    }

    fn within_boundary(&self, state: &State) -> bool {
        state.world.uids <= self.most_pods
    }
}

impl Scenario {
    /// Nothing happens any more by itself, and everything from outside has been used up.
    fn is_over(&self, state: &State) -> bool {
        let running = state.world.guest == Guest::Running && !state.world.deleting && !state.world.lost;
        let wanted = state.wanted >= self.wants.len() || !running;
        wanted && state.world.ready == Volumes::first(MOST_VOLUMES) && self.inner(state).is_empty()
    }

    /// The guest has what is wanted, and nothing else. One that keeps a removed volume has the others.
    fn has_what_it_wants(&self, world: &World) -> bool {
        let kept = world.domain.minus(world.spec);
        world.guest == Guest::Down
            || (world.wanted == world.spec
                && world.spec.within(world.domain)
                && kept.within(self.setup.stubborn)
                && world.migration == Migration::None)
    }

    /// One pod with the set, all volumes reported ready. A pin keeps a pod, and so does a guest that keeps a volume.
    fn has_no_pod_too_many(&self, world: &World) -> bool {
        let pinned = matches!(self.program, Program::Present(present) if present.class.pin);
        let kept = !world.domain.minus(world.spec).is_empty();
        world.guest == Guest::Down || pinned || kept || world.is_at_rest() || !self.has_what_it_wants(world)
    }
}

/// Whether other ready pods use everything of a pod that the guest has.
fn others_serve(world: &World, pod: Pod) -> bool {
    let others = world
        .pods
        .iter()
        .filter(|other| {
            other.uid != pod.uid
                && other.launcher == pod.launcher
                && other.phase == PodPhase::Ready
                && !other.granted
        })
        .fold(Volumes::NONE, |set, other| set.or(other.used));
    world.domain.and(pod.volumes).within(others)
}

/// S2 and S3: a volume in the guest is listed by a pod of its node that has not ended, for a filesystem
/// volume, and used by one, for a block volume. Only pods that `counts` says yes to are looked at.
fn is_referred_to(model: &Scenario, state: &State, counts: fn(&Pod) -> bool) -> bool {
    let world = &state.world;
    if world.guest != Guest::Running || world.lost || model.events.kubelet_evictions > 0 {
        return true;
    }
    let own = |pod: &&Pod| pod.launcher == world.launcher && pod.is_wanted_on_node() && counts(pod);
    let pods = world.pods.iter().filter(own);
    let (listed, used) = pods.fold((Volumes::NONE, Volumes::NONE), |(listed, used), pod| {
        (listed.or(pod.volumes), used.or(pod.used))
    });
    let filesystem = world.domain.and(model.setup.filesystem);
    filesystem.within(listed) && world.domain.minus(filesystem).within(used)
}

/// S6: whatever else is going on, a delete passes when the guest is down, when the launcher is not
/// the one of the guest, when the pod has ended, and when it never ran.
fn must_pass(model: &Scenario, state: &State) -> bool {
    let world = &state.world;
    let target = match world.migration {
        Migration::Target { launcher, .. } => launcher,
        Migration::None | Migration::Requested => 0,
    };
    world.pods.iter().all(|pod| {
        let must = world.guest == Guest::Down
            || world.lost
            || world.terminating
            || (pod.launcher != world.launcher && pod.launcher != target)
            || matches!(pod.phase, PodPhase::Failed | PodPhase::Pending);
        !must || model.steward().may_delete(world, model.setup, pod.uid)
    })
}
