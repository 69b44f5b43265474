//! L4: two VMs on two nodes exchange claims that only one node may have. Each keeps a volume of
//! its own, so KubeVirt keeps each old pod until the new one runs, and the new one waits for the
//! claim that the other old pod holds (R2). In two steps, with `claims::holders` asked before each
//! attachment, it ends in every order of events.

use handoff::{Action, Driver, MOST_VOLUMES, Present, Release, Setup, Volumes, World};
use hotplug::claims::{Move, holders, lock_order};
use stateright::{Checker, Model, Property};

/// Volume 0 is each VM's own; 1 and 2 are the claims that change places.
const OWN: u8 = 0;
const SHARED: [u8; 2] = [1, 2];
const NAMES: [&str; 2] = ["a", "b"];

#[derive(Clone, Debug, Eq, Hash, PartialEq)]
struct State {
    vms: [World; 2],
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Exchange {
    /// Both VMs want the other's claim at once, or first give theirs away.
    in_two_steps: bool,
}

const PROGRAM: Present = Present {
    guard: true,
    grants: true,
    gate: true,
    heal: true,
    // What waits for a claim is not to be taken back here.
    take_back: false,
    protect: false,
    class: hotplug::policy::Class { strict: false, exclusive_publish: false, pin: false },
    completes_mounts: false,
};

fn published(world: &World) -> Volumes {
    world.published.iter().fold(Volumes::NONE, |set, publication| set.or(publication.volumes))
}

impl Exchange {
    /// What the other VM's node has cannot be published here.
    fn setup(state: &State, vm: usize) -> Setup {
        let taken = published(&state.vms[1 - vm]).without(OWN);
        Setup { broken: taken, ..Setup::new(Release::Main, Driver::ForceTeardown) }
    }

    fn goal(vm: usize) -> Volumes {
        Volumes::of(&[OWN, SHARED[1 - vm]])
    }

    /// What a VM should want next.
    fn wish(self, state: &State, vm: usize) -> Option<Volumes> {
        let world = &state.vms[vm];
        if world.wanted == Self::goal(vm) {
            return None;
        }
        if !self.in_two_steps {
            return Some(Self::goal(vm));
        }
        let given = SHARED[vm];
        if world.wanted.has(given) {
            return Some(world.wanted.without(given));
        }
        let (mine, own_pods) = handoff::views(world, Self::setup(state, vm), NAMES[vm]);
        let (other, pods) = handoff::views(&state.vms[1 - vm], Self::setup(state, 1 - vm), NAMES[1 - vm]);
        let claim = handoff::claim(SHARED[1 - vm]);
        let still = published(&state.vms[1 - vm]).has(SHARED[1 - vm]);
        let attached: &[&str] = if still { &["another node"] } else { &[] };
        let reported = other.status.iter().any(|status| status.name == mine_name(SHARED[1 - vm]));
        let free = holders(claim, &mine, &[other], &pods, attached).is_empty() && !reported;
        let rest = hotplug::settle::is_settled(&mine, &own_pods);
        (free && rest).then(|| Self::goal(vm))
    }
}

fn mine_name(volume: u8) -> &'static str {
    ["a", "b", "c"][usize::from(volume)]
}

impl Model for Exchange {
    type State = State;
    type Action = (usize, Action);

    fn init_states(&self) -> Vec<State> {
        let setup = Setup::new(Release::Main, Driver::ForceTeardown);
        let vm = |at: usize| World::settled(setup, Volumes::of(&[OWN, SHARED[at]]));
        vec![State { vms: [vm(0), vm(1)] }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<(usize, Action)>) {
        for vm in 0..2 {
            let mut own = Vec::new();
            state.vms[vm].inner_actions(Self::setup(state, vm), &PROGRAM, &mut own);
            // Deadlines are for later: nothing here is hopeless.
            own.retain(|action| !matches!(action, Action::Age(_) | Action::Overdue));
            own.extend(self.wish(state, vm).map(Action::Want));
            actions.extend(own.into_iter().map(|action| (vm, action)));
        }
    }

    fn next_state(&self, last: &State, (vm, action): (usize, Action)) -> Option<State> {
        let mut next = last.clone();
        next.vms[vm].apply(action, Self::setup(last, vm), &PROGRAM);
        (next != *last).then_some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("L4 the exchange ends", |model: &Self, state: &State| {
                let done =
                    (0..2).all(|vm| state.vms[vm].is_at_rest() && state.vms[vm].domain == Self::goal(vm));
                let mut actions = Vec::new();
                model.actions(state, &mut actions);
                done || !actions.is_empty()
            }),
            Property::always("S5 no claim is in guests of two nodes", |_: &Self, state: &State| {
                let [one, other] = &state.vms;
                one.domain.and(other.domain).within(Volumes::of(&[OWN]))
            }),
            Property::always("S1 no I/O error", |_: &Self, state: &State| {
                state.vms.iter().all(|vm| vm.harm.io_errors.is_empty())
            }),
        ]
    }

    fn within_boundary(&self, state: &State) -> bool {
        state.vms.iter().all(|vm| vm.uids < 8) && MOST_VOLUMES > 2
    }
}

fn violated(model: Exchange) -> Vec<&'static str> {
    let checker = model.checker().spawn_bfs().join();
    println!("{:>9} states  {model:?}", checker.unique_state_count());
    let mut names: Vec<_> = checker.discoveries().keys().copied().collect();
    names.sort_unstable();
    names
}

#[test]
fn an_exchange_in_one_step_deadlocks() {
    assert_eq!(violated(Exchange { in_two_steps: false }), ["L4 the exchange ends"]);
}

#[test]
fn an_exchange_in_two_steps_ends() {
    assert_eq!(violated(Exchange { in_two_steps: true }), Vec::<&str>::new());
    let moves = [("pvc-b", "a", "b"), ("pvc-c", "b", "a")].map(|(claim, from, to)| Move {
        claim: claim.into(),
        from: from.into(),
        to: to.into(),
    });
    assert_eq!(lock_order(&moves), ["pvc-b", "pvc-c"]);
}
