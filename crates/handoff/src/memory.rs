//! A steward that remembers its answers. They depend on nothing but what it sees of a world, and a storm asks again at each
//! step, of which most change something that no steward sees: a cache, a publication, the time.

use std::cell::RefCell;
use std::hash::{Hash, Hasher};

use crate::state::{Device, Guest, Migration, Pod, Setup, Uid, VolumeState, World};
use crate::steward::Steward;
use crate::volumes::{MOST_VOLUMES, Volumes};

/// Answers that are remembered: a newer one takes the place of an older one of the same slot.
const SLOTS: usize = 1 << 11;

/// Asks a steward once for each question about a world.
pub(crate) struct Remembering<'s> {
    steward: &'s dyn Steward,
    setup: Setup,
    slots: RefCell<Vec<Option<Entry>>>,
}

struct Entry {
    question: Question,
    seen: Seen,
    answer: Answer,
}

#[derive(Clone, Copy, Eq, Hash, PartialEq)]
enum Question {
    MayDelete(Uid),
    MayChange(Volumes),
    MayMigrate,
    Learn,
    Heals,
}

#[derive(Clone)]
enum Answer {
    Verdict(bool),
    Taken(Option<[Uid; MOST_VOLUMES]>),
    Pods(Vec<Uid>),
}

/// All that a steward sees of a world, but its pods.
#[derive(Clone, Copy, Eq, Hash, PartialEq)]
struct Rest {
    spec: Volumes,
    launcher: u8,
    guest: Guest,
    migration: Migration,
    deleting: bool,
    overdue: bool,
    lost: bool,
    terminating: bool,
    status: [VolumeState; MOST_VOLUMES],
    device: [Device; MOST_VOLUMES],
    taken: [Uid; MOST_VOLUMES],
}

struct Seen {
    rest: Rest,
    pods: Vec<Pod>,
}

impl Rest {
    const fn of(world: &World) -> Self {
        Self {
            spec: world.spec,
            launcher: world.launcher,
            guest: world.guest,
            migration: world.migration,
            deleting: world.deleting,
            overdue: world.overdue,
            lost: world.lost,
            terminating: world.terminating,
            status: world.status,
            device: world.device,
            taken: world.taken,
        }
    }
}

/// Multiplies and rotates, as the hash of rustc does: short keys, and nobody who chooses them.
#[derive(Default)]
struct Mix(u64);

impl Mix {
    const fn word(&mut self, word: u64) {
        self.0 = (self.0.rotate_left(5) ^ word).wrapping_mul(0x517c_c1b7_2722_0a95);
    }
}

impl Hasher for Mix {
    fn finish(&self) -> u64 {
        self.0 >> 32
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.word(u64::from(*byte));
        }
    }

    fn write_u8(&mut self, value: u8) {
        self.word(u64::from(value));
    }

    fn write_u16(&mut self, value: u16) {
        self.word(u64::from(value));
    }

    fn write_usize(&mut self, value: usize) {
        self.word(value as u64);
    }

    fn write_isize(&mut self, value: isize) {
        self.word(value.cast_unsigned() as u64);
    }
}

impl<'s> Remembering<'s> {
    pub(crate) fn new(steward: &'s dyn Steward, setup: Setup) -> Self {
        Self { steward, setup, slots: RefCell::new((0..SLOTS).map(|_| None).collect()) }
    }

    fn answer(&self, world: &World, setup: Setup, question: Question) -> Answer {
        if setup != self.setup {
            return ask(self.steward, world, setup, question);
        }
        let rest = Rest::of(world);
        let mut mix = Mix::default();
        (question, rest, &world.pods).hash(&mut mix);
        let mut slots = self.slots.borrow_mut();
        let at = usize::try_from(mix.finish()).unwrap_or_default() % SLOTS;
        let Some(slot) = slots.get_mut(at) else { return ask(self.steward, world, setup, question) };
        match slot {
            Some(entry)
                if entry.question == question && entry.seen.rest == rest && entry.seen.pods == world.pods =>
            {
                entry.answer.clone()
            }
            _ => {
                let answer = ask(self.steward, world, setup, question);
                // The list of the entry that goes is filled anew.
                let mut pods = slot.take().map(|entry| entry.seen.pods).unwrap_or_default();
                pods.clone_from(&world.pods);
                *slot = Some(Entry { question, seen: Seen { rest, pods }, answer: answer.clone() });
                answer
            }
        }
    }

    fn verdict(&self, world: &World, setup: Setup, question: Question) -> bool {
        matches!(self.answer(world, setup, question), Answer::Verdict(true))
    }
}

fn ask(steward: &dyn Steward, world: &World, setup: Setup, question: Question) -> Answer {
    match question {
        Question::MayDelete(pod) => Answer::Verdict(steward.may_delete(world, setup, pod)),
        Question::MayChange(volumes) => Answer::Verdict(steward.may_change(world, setup, volumes)),
        Question::MayMigrate => Answer::Verdict(steward.may_migrate(world, setup)),
        Question::Learn => Answer::Taken(steward.learn(world, setup)),
        Question::Heals => Answer::Pods(steward.heals(world, setup)),
    }
}

impl Steward for Remembering<'_> {
    fn may_delete(&self, world: &World, setup: Setup, pod: Uid) -> bool {
        self.verdict(world, setup, Question::MayDelete(pod))
    }

    fn may_change(&self, world: &World, setup: Setup, volumes: Volumes) -> bool {
        self.verdict(world, setup, Question::MayChange(volumes))
    }

    fn may_migrate(&self, world: &World, setup: Setup) -> bool {
        self.verdict(world, setup, Question::MayMigrate)
    }

    fn exempts_namespace_controller(&self) -> bool {
        self.steward.exempts_namespace_controller()
    }

    fn may_delete_namespace(&self, world: &World) -> bool {
        self.steward.may_delete_namespace(world)
    }

    fn uses(&self, setup: Setup, volumes: Volumes, in_guest: Volumes) -> Volumes {
        self.steward.uses(setup, volumes, in_guest)
    }

    fn learn(&self, world: &World, setup: Setup) -> Option<[Uid; MOST_VOLUMES]> {
        match self.answer(world, setup, Question::Learn) {
            Answer::Taken(taken) => taken,
            Answer::Verdict(_) | Answer::Pods(_) => None,
        }
    }

    fn heals(&self, world: &World, setup: Setup) -> Vec<Uid> {
        match self.answer(world, setup, Question::Heals) {
            Answer::Pods(pods) => pods,
            Answer::Verdict(_) | Answer::Taken(_) => Vec::new(),
        }
    }

    fn takes_back(&self, world: &World, setup: Setup) -> Option<Volumes> {
        self.steward.takes_back(world, setup)
    }
}
