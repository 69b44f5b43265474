//! Drivers that publish a volume once (R1), or as a device of its own each time (W11): whether any order of requests serves
//! a wish while a guest keeps a volume. All orders of requests, deletes and restarts are visited; what is looked for is a
//! path, so finding none is the proof that there is none.

use handoff::{Absent, Action, Driver, Guest, Present, Release, Setup, Steward, Volumes, World};
use stateright::{Checker, Model, Property};

#[derive(Clone, Debug, Eq, Hash, PartialEq)]
struct State {
    world: World,
    /// Volume 1 has left the guest once.
    has_left: bool,
}

#[derive(Clone, Copy)]
struct Search {
    driver: Driver,
    /// What the guest has at first.
    attached: Volumes,
    /// Sets that may be asked for, in any order and as often as one likes.
    sets: &'static [&'static [u8]],
    /// Volume 1 has to leave and come back.
    comes_back: bool,
    /// Anybody deletes pods at any time, as far as it is let through.
    deletes: bool,
    with_our_program: bool,
}

impl Search {
    fn setup(&self) -> Setup {
        Setup::new(Release::Main, self.driver)
    }

    fn steward(&self) -> Box<dyn Steward> {
        if self.with_our_program {
            // Without the parts that end a hopeless wish: whether it is hopeless is the question.
            Box::new(Present { take_back: false, ..Present::whole(self.driver) })
        } else {
            Box::new(Absent)
        }
    }

    fn found(self) -> bool {
        let checker = self.checker().spawn_bfs().join();
        let found = checker.discovery("served").is_some();
        println!(
            "{:>9} states  {:?}, sets {:?}: found {found}",
            checker.unique_state_count(),
            self.driver,
            self.sets
        );
        found
    }
}

impl Model for Search {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![State { world: World::settled(self.setup(), self.attached), has_left: false }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        let world = &state.world;
        if !world.harm.io_errors.is_empty() || world.guest != Guest::Running {
            return;
        }
        let steward = self.steward();
        world.inner_actions(self.setup(), steward.as_ref(), actions);
        let wishes = self.sets.iter().map(|set| Volumes::of(set)).filter(|set| *set != world.wanted);
        actions.extend(wishes.map(Action::Want));
        let deletable = world.pods.iter().filter(|pod| self.deletes && !pod.granted);
        actions.extend(
            deletable
                .filter(|pod| steward.may_delete(world, self.setup(), pod.uid))
                .map(|pod| Action::Delete(pod.uid)),
        );
        actions.push(Action::RestartController);
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut next = last.clone();
        next.world.apply(action, self.setup(), self.steward().as_ref());
        next.has_left |= !next.world.domain.has(1) && self.attached.has(1);
        (next != *last).then_some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![Property::sometimes("served", |model: &Self, state: &State| {
            let world = &state.world;
            let both = Volumes::of(&[0, 1]);
            let served = world.wanted == both && world.spec == both && world.domain == both;
            // Nothing that is gone is still published, so that nothing is about to die.
            let quiet = world.published.iter().all(|one| world.pod(one.pod).is_some());
            served && quiet && world.harm.io_errors.is_empty() && (!model.comes_back || state.has_left)
        })]
    }

    fn within_boundary(&self, state: &State) -> bool {
        // With the guest's volume 0 gone once, it is another question.
        let kept = !self.sets.iter().all(|set| set.contains(&0)) || state.world.domain.has(0);
        kept && state.world.uids < 5
    }
}

const KEEPING: &[&[u8]] = &[&[0], &[0, 1]];
const DETACHING: &[&[u8]] = &[&[], &[0, 1]];

/// A second volume beside one that the guest keeps. KubeVirt alone never gets there. There is one way: the old pod goes when
/// its replacement has been given to the kubelet, which then does not unstage the volume; healing goes that way.
#[test]
fn a_driver_that_publishes_once_serves_a_second_volume_only_when_the_old_pod_makes_way() {
    let search = Search {
        driver: Driver::ExclusivePublish,
        attached: Volumes::of(&[0]),
        sets: KEEPING,
        comes_back: false,
        deletes: false,
        with_our_program: false,
    };
    assert!(!search.found());
    assert!(Search { with_our_program: true, ..search }.found());
    // The search itself finds what there is: another driver, the same wish.
    assert!(Search { driver: Driver::BusyCheck, ..search }.found());
}

/// A pinned pod lists what it had at first, and KubeVirt takes a name back only when no pod lists it. Without the pin every
/// way there takes the device from under the guest. So no order serves this wish while the guest keeps the other volume.
#[test]
fn a_name_that_left_a_pinned_pod_comes_back_only_when_the_pod_goes() {
    let search = Search {
        driver: Driver::PerPublishDevice,
        attached: Volumes::of(&[0, 1]),
        sets: KEEPING,
        comes_back: true,
        deletes: true,
        with_our_program: true,
    };
    assert!(!search.found());
    assert!(!Search { with_our_program: false, deletes: false, ..search }.found());
    // All away, then all at once (`--detach-others`): there is a way.
    assert!(Search { sets: DETACHING, ..search }.found());
    assert!(Search { driver: Driver::BusyCheck, ..search }.found());
}
