//! A storm: many VMs, each with changes of volumes, deletes by others, migrations and restarts of
//! controllers at random times, over a virtual clock. No network, no real time: the same seed gives
//! the same storm, with and without our program.
//!
//! What can happen next races as in a continuous-time Markov chain: each possible [`Action`] has a
//! rate, the next one is drawn by weight, and the clock moves on by the mean time to it.

use crate::action::Action;
use crate::memory::Remembering;
use crate::state::{Age, Guest, Migration, PodPhase, Setup, Uid, World};
use crate::steward::Steward;
use crate::volumes::Volumes;

/// What a storm is made of.
#[derive(Clone, Copy, Debug)]
pub struct Storm {
    /// Release, driver and guests.
    pub setup: Setup,
    /// VMs.
    pub vms: u32,
    /// Volumes that each may have.
    pub volumes: usize,
    /// Events from outside for each VM.
    pub events: u32,
}

/// What became of it.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Tally {
    /// VMs.
    pub vms: u64,
    /// VMs whose guest had an I/O error, and was paused with `PausedIOError`.
    pub io_errors: u64,
    /// VMs of which a disk was unplugged that nobody had asked for.
    pub unplugged: u64,
    /// VMs with a migration whose target had other disks.
    pub migrations: u64,
    /// VMs that did not come to rest: a request without an end.
    pub unfinished: u64,
    /// VMs whose deletion did not end.
    pub wedged: u64,
    /// VMs with any of these.
    pub broken: u64,
    /// VMs with a request that could not be served, and was taken back and reported.
    pub taken_back: u64,
    /// Events that happened.
    pub steps: u64,
    /// Deletes that were denied.
    pub denials: u64,
    /// Attachment pods that were created.
    pub pods: u64,
    /// Time that passed on the virtual clock, over all VMs, milliseconds.
    pub millis: u64,
}

impl Tally {
    /// Both together.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            vms: self.vms + other.vms,
            io_errors: self.io_errors + other.io_errors,
            unplugged: self.unplugged + other.unplugged,
            migrations: self.migrations + other.migrations,
            unfinished: self.unfinished + other.unfinished,
            wedged: self.wedged + other.wedged,
            broken: self.broken + other.broken,
            taken_back: self.taken_back + other.taken_back,
            steps: self.steps + other.steps,
            denials: self.denials + other.denials,
            pods: self.pods + other.pods,
            millis: self.millis + other.millis,
        }
    }
}

/// Steps after which a VM counts as never coming to rest. One with twelve events takes some
/// hundreds.
const MOST_STEPS: u64 = 20_000;

/// `SplitMix64` (Steele, Lea, Flood 2014): small, and good enough to shuffle events.
#[derive(Clone, Debug)]
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Below `bound`.
    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound.max(1)
    }

    fn index(&mut self, bound: usize) -> usize {
        usize::try_from(self.below(bound as u64)).unwrap_or_default()
    }
}

/// How often an action happens when it can, in thousandths of a second⁻¹: API round trips take
/// tens of milliseconds, kubelets and guests seconds.
const fn rate(action: Action) -> u64 {
    match action {
        Action::Observe | Action::Commit(_) => 50_000,
        // virt-handler is woken by each change of the VMI.
        Action::Sync | Action::Unmount(_) | Action::ReportMounted(_) => 20_000,
        Action::TakeOver | Action::Schedule(_) => 10_000,
        Action::Mount(_) | Action::MarkReady(_) | Action::Heal(_) => 2_000,
        Action::Attach(_) | Action::Detach(_) => 3_000,
        Action::BecomeReady(_) | Action::MakeTarget => 1_000,
        Action::Start(_) | Action::Unpublish(_) | Action::Fence(_) | Action::Collect(_) => 700,
        Action::Complete | Action::Abort | Action::GuestDown | Action::RollBack => 200,
        // Deadlines, when nothing else can happen.
        Action::Age(_) | Action::Overdue => 10,
        _ => 300,
    }
}

/// Deadlines, microseconds of the virtual clock. They pass also while something goes round in circles, such as a removed
/// volume that is mounted again and again (#18044).
const TRIED: u64 = 15_000_000;
const OLD: u64 = 120_000_000;
const HELD: u64 = 120_000_000;
/// After so long without an event from outside, a VM that has all that it wants has come to rest, whatever goes round.
const REST: u64 = 300_000_000;

/// Since when things wait.
#[derive(Default)]
struct Waiting {
    pods: Vec<(Uid, u64)>,
    change: Option<(Volumes, u64)>,
}

impl Waiting {
    /// The deadline that has passed.
    fn due(&mut self, world: &World, micros: u64) -> Option<Action> {
        let waits = |uid: Uid| world.pod(uid).is_some_and(|pod| pod.phase <= PodPhase::Scheduled);
        self.pods.retain(|(uid, _)| waits(*uid));
        for pod in world.pods.iter().filter(|pod| pod.phase <= PodPhase::Scheduled) {
            let known = self.pods.iter().find(|(uid, _)| *uid == pod.uid).map(|(_, since)| *since);
            let Some(since) = known else {
                self.pods.push((pod.uid, micros));
                continue;
            };
            let limit = match pod.age {
                Age::Fresh => TRIED,
                Age::Tried => OLD,
                Age::Old => continue,
            };
            if micros - since > limit {
                return Some(Action::Age(pod.uid));
            }
        }
        if !world.is_under_way() {
            self.change = None;
            return None;
        }
        let (spec, since) = *self.change.get_or_insert((world.spec, micros));
        if spec != world.spec {
            self.change = Some((world.spec, micros));
            return None;
        }
        (!world.overdue && micros - since > HELD).then_some(Action::Overdue)
    }
}

/// Runs one seed.
pub fn run(storm: &Storm, seed: u64, steward: &dyn Steward) -> Tally {
    let steward = Remembering::new(steward, storm.setup);
    (0..storm.vms)
        .fold(Tally::default(), |tally, vm| tally.plus(one_vm(storm, seed, vm, &steward, &mut |_, _| ())))
}

/// Runs one VM of a seed, and shows what happens to it and how the world is then.
pub fn one_vm(
    storm: &Storm,
    seed: u64,
    vm: u32,
    steward: &dyn Steward,
    show: &mut dyn FnMut(Action, &World),
) -> Tally {
    let chance = &mut Chance(seed.wrapping_mul(0x1000_0000_01b3).wrapping_add(u64::from(vm)));
    chance.next();
    let setup = storm.setup;
    let attached = Volumes::first(chance.index(storm.volumes.min(3) + 1));
    let mut world = World::settled(setup, attached);
    // Events from outside have a chance of their own, so that they are the same whatever our
    // program does.
    let mut outside = Chance(chance.next());
    let mut tally = Tally { vms: 1, ..Tally::default() };
    let mut left = storm.events;
    let (mut actions, mut micros, mut quiet_since) = (Vec::new(), 0, 0);
    let mut waiting = Waiting::default();
    while tally.steps < MOST_STEPS {
        tally.steps += 1;
        if let Some(action) = waiting.due(&world, micros) {
            world.apply(action, setup, steward);
            show(action, &world);
        }
        if left == 0 && micros - quiet_since > REST && has_what_it_wants(&world) {
            break;
        }
        actions.clear();
        world.inner_actions(setup, steward, &mut actions);
        let total: u64 = actions.iter().map(|action| rate(*action)).sum();
        // One event from outside every three seconds or so, and at once when nothing else happens.
        let from_outside = if left > 0 { 300 } else { 0 };
        if total + from_outside == 0 {
            break;
        }
        micros += 1_000_000_000 / (total + from_outside);
        let mut drawn = chance.below(total + from_outside);
        let chosen = actions.iter().copied().find(|action| {
            let hit = drawn < rate(*action);
            drawn = drawn.saturating_sub(rate(*action));
            hit
        });
        if let Some(action) = chosen {
            tally.taken_back = tally.taken_back.max(u64::from(action == Action::RollBack));
            world.apply(action, setup, steward);
            show(action, &world);
        } else {
            left -= 1;
            quiet_since = micros;
            if let Some(action) = event(storm, &world, &mut outside) {
                let denied = match action {
                    Action::Delete(uid) => !steward.may_delete(&world, setup, uid),
                    Action::Migrate => !steward.may_migrate(&world, setup),
                    _ => false,
                };
                tally.denials += u64::from(denied);
                if !denied {
                    world.apply(action, setup, steward);
                    show(action, &world);
                }
            }
        }
        if !world.harm.io_errors.is_empty() {
            // The guest is paused, and the story of this VM has ended.
            break;
        }
    }
    tally.millis = micros / 1000;
    judge(&world, &mut tally);
    tally
}

/// Virtual milliseconds from a request for `count` volumes to all of them in the guest: in one batch,
/// or one after the other, each when the last one has come to rest. `None`: never.
pub fn attach_millis(
    setup: Setup,
    count: usize,
    batch: bool,
    steward: &dyn Steward,
    seed: u64,
) -> Option<u64> {
    let mut chance = Chance(seed);
    let all = Volumes::first(count);
    let mut world = World::settled(setup, Volumes::NONE);
    let (mut actions, mut micros) = (Vec::new(), 0);
    for _ in 0..MOST_STEPS {
        if world.is_at_rest() {
            if world.wanted == all {
                return Some(micros / 1000);
            }
            world.wanted = if batch { all } else { Volumes::first(world.wanted.len() + 1) };
        }
        actions.clear();
        world.inner_actions(setup, steward, &mut actions);
        let total: u64 = actions.iter().map(|action| rate(*action)).sum();
        micros += 1_000_000_000 / total.max(1);
        let mut drawn = chance.below(total);
        let chosen = actions.iter().copied().find(|action| {
            let hit = drawn < rate(*action);
            drawn = drawn.saturating_sub(rate(*action));
            hit
        })?;
        world.apply(chosen, setup, steward);
    }
    None
}

/// One event from outside.
fn event(storm: &Storm, world: &World, chance: &mut Chance) -> Option<Action> {
    let (what, which) = (chance.below(100), chance.next());
    if world.guest != Guest::Running || world.deleting {
        return None;
    }
    let pods: Vec<_> =
        world.pods.iter().filter(|pod| pod.phase != PodPhase::Failed && !pod.granted).collect();
    let pick = usize::try_from(which % (pods.len().max(1) as u64)).unwrap_or_default();
    match what {
        // A user, a CSI driver, GitOps: any other set, one or several volumes at once.
        0..60 => {
            let mut wanted = Volumes::NONE;
            for volume in Volumes::first(storm.volumes).iter() {
                if which >> volume & 1 == 1 {
                    wanted = wanted.with(volume);
                }
            }
            Some(Action::Want(wanted))
        }
        // A drain that evicts, preemption, a user.
        60..75 => pods.get(pick).map(|pod| Action::Delete(pod.uid)),
        75..85 if world.migration == Migration::None => Some(Action::Migrate),
        75..95 => Some(Action::RestartController),
        _ => Some(Action::DeleteVmi),
    }
}

fn has_what_it_wants(world: &World) -> bool {
    world.wanted == world.spec && world.domain == world.spec
}

fn judge(world: &World, tally: &mut Tally) {
    let harm = world.harm;
    tally.pods = u64::from(world.uids);
    tally.io_errors = u64::from(!harm.io_errors.is_empty());
    tally.unplugged = u64::from(!harm.unplugged.is_empty());
    tally.migrations = u64::from(harm.migration);
    if tally.io_errors == 0 {
        let gone = world.guest == Guest::Down;
        tally.wedged = u64::from(gone && !world.pods.is_empty());
        tally.unfinished = u64::from(!gone && !has_what_it_wants(world));
    }
    let any = tally.io_errors + tally.unplugged + tally.migrations + tally.wedged + tally.unfinished;
    tally.broken = u64::from(any > 0);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Absent, Driver, Present, Release};

    fn storm(release: Release, driver: Driver) -> Storm {
        Storm { setup: Setup::new(release, driver), vms: 40, volumes: 8, events: 12 }
    }

    #[test]
    fn the_same_seed_is_the_same_storm() {
        let storm = storm(Release::Main, Driver::ForceTeardown);
        assert_eq!(run(&storm, 7, &Absent), run(&storm, 7, &Absent));
        assert_ne!(run(&storm, 7, &Absent), run(&storm, 8, &Absent));
    }

    /// A storm asks each question once; the answers are those of a steward that is asked every time.
    #[test]
    fn what_is_remembered_changes_nothing() {
        for driver in Driver::ALL {
            let (storm, present) = (storm(Release::Main, driver), Present::whole(driver));
            let asked = (0..storm.vms)
                .fold(Tally::default(), |sum, vm| sum.plus(one_vm(&storm, 3, vm, &present, &mut |_, _| ())));
            assert_eq!(run(&storm, 3, &present), asked, "{driver}");
        }
    }

    #[test]
    fn a_batch_takes_as_long_as_one_volume_and_the_gate_costs_nothing() {
        let setup = Setup::new(Release::Main, Driver::ForceTeardown);
        let mean = |count, batch, steward: &dyn Steward| {
            let times: Vec<u64> =
                (0..200).filter_map(|seed| attach_millis(setup, count, batch, steward, seed)).collect();
            assert_eq!(times.len(), 200);
            times.iter().sum::<u64>() / 200
        };
        let with = Present::whole(setup.driver);
        let (one, eight) = (mean(1, true, &with), mean(8, true, &with));
        let (in_turn, stock) = (mean(8, false, &with), mean(1, true, &Absent));
        println!("1: {one} ms, 8 in a batch: {eight} ms, in turn: {in_turn} ms, 1 without us: {stock} ms");
        for count in [1, 3, 8] {
            println!(
                "{count}: batch {} ms, in turn {} ms",
                mean(count, true, &with),
                mean(count, false, &with)
            );
        }
        assert!(eight < 2 * one && in_turn > 4 * one);
        assert!(one <= stock + stock / 20);
    }

    #[test]
    fn nothing_breaks_with_our_program_and_much_without() {
        for release in Release::ALL {
            let storm = storm(release, Driver::ForceTeardown);
            let (mut without, mut with) = (Tally::default(), Tally::default());
            for seed in 1..=3 {
                without = without.plus(run(&storm, seed, &Absent));
                with = with.plus(run(&storm, seed, &Present::whole(storm.setup.driver)));
            }
            println!("{release}: without {without:?}\n  with {with:?}");
            assert!(without.io_errors > 0, "{release}");
            assert_eq!((with.io_errors, with.wedged, with.unfinished), (0, 0, 0), "{release}");
        }
    }

    /// Storms that were not survived once: pins that kept the oldest pod although a volume had been taken from a younger one;
    /// a pod that made way for a replacement whose own delete had been granted; volumes that older virt-handlers looked for in
    /// a pod of before a migration, and circles in which no deadline passed.
    #[test]
    fn storms_that_once_broke_something_break_nothing() {
        let pins = (Driver::PerPublishDevice, Release::Main, &[28, 40, 45, 364][..]);
        let stale = [Release::V1_6, Release::V1_8]
            .map(|release| (Driver::ForceTeardown, release, &[88, 606, 767][..]));
        let doomed = (Driver::ExclusivePublish, Release::Pr18862, &[10][..]);
        let circles =
            [(Driver::ExclusivePublish, Release::V1_9_0), (Driver::PerPublishDevice, Release::V1_6)];
        let circles = circles.map(|(driver, release)| (driver, release, &[1][..]));
        for (driver, release, seeds) in [pins, doomed].into_iter().chain(stale).chain(circles) {
            let storm = storm(release, driver);
            for seed in seeds {
                let tally = run(&storm, *seed, &Present::whole(driver));
                assert_eq!(tally.broken, 0, "{release} {driver}, seed {seed}: {tally:?}");
            }
        }
        // A volume that nobody had was let go while another one was on its way in, which was unplugged.
        let driver = Driver::PerPublishDevice;
        for (seed, vm) in [(269, 60), (912, 189)] {
            let storm = storm(Release::V1_9_0, driver);
            let tally = one_vm(&storm, seed, vm, &Present::whole(driver), &mut |_, _| ());
            assert_eq!(tally.broken, 0, "seed {seed}, VM {vm}: {tally:?}");
        }
    }
}
