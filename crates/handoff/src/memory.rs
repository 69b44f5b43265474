//! A steward that remembers its answers. They depend on nothing but what it sees of a world, and a storm asks again at each
//! step, of which most change something that no steward sees: a cache, a publication, the time.

use std::cell::RefCell;

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

#[derive(Clone, Copy, Eq, PartialEq)]
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
#[allow(clippy::struct_excessive_bools, reason = "independent events")]
#[derive(Clone, Copy, Eq, PartialEq)]
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
struct Mix(u64);

impl Mix {
    const fn word(&mut self, word: u64) {
        self.0 = (self.0.rotate_left(5) ^ word).wrapping_mul(0x517c_c1b7_2722_0a95);
    }

    /// Eight small numbers in a word.
    const fn bytes(&mut self, bytes: [u8; 8]) {
        self.word(u64::from_le_bytes(bytes));
    }
}

/// Where an answer is looked for. Most of a storm's time goes here, so what belongs together is put into one word.
fn slot_of(question: Question, rest: &Rest, pods: &[Pod]) -> usize {
    let mut mix = Mix(0);
    let (kind, about) = match question {
        Question::MayDelete(uid) => (0, u64::from(uid)),
        Question::MayChange(volumes) => (1, u64::from(volumes.bits())),
        Question::MayMigrate => (2, 0),
        Question::Learn => (3, 0),
        Question::Heals => (4, 0),
    };
    mix.word(kind << 16 | about);
    let (launcher, volumes) = match rest.migration {
        Migration::None => (0, Volumes::NONE),
        Migration::Requested => (1, Volumes::NONE),
        Migration::Target { launcher, volumes } => (launcher, volumes),
    };
    let flags = [rest.deleting, rest.overdue, rest.lost, rest.terminating];
    let flags = flags.into_iter().fold(0, |all, flag| all << 1 | u8::from(flag));
    mix.bytes([rest.spec.bits(), rest.launcher, rest.guest as u8, launcher, volumes.bits(), flags, 0, 0]);
    for (status, device) in rest.status.iter().zip(&rest.device) {
        let from = match device {
            Device::None => 0,
            Device::Dead => 1 << 16,
            Device::From(uid) => 2 << 16 | u64::from(*uid),
        };
        let known = u64::from(status.pod) << 8 | (status.phase as u64) << 1 | u64::from(status.target);
        mix.word(known << 32 | from);
    }
    for four in rest.taken.chunks(4) {
        mix.word(four.iter().fold(0, |word, uid| word << 16 | u64::from(*uid)));
    }
    for pod in pods {
        let [low, high] = pod.uid.to_le_bytes();
        let granted = u8::from(pod.granted);
        let (phase, age) = (pod.phase as u8, pod.age as u8);
        mix.bytes([low, high, pod.launcher, pod.volumes.bits(), pod.used.bits(), phase, age, granted]);
    }
    usize::try_from(mix.0 >> 40).unwrap_or_default() % SLOTS
}

impl<'s> Remembering<'s> {
    pub(crate) fn new(steward: &'s dyn Steward, setup: Setup) -> Self {
        Self { steward, setup, slots: RefCell::new((0..SLOTS).map(|_| None).collect()) }
    }

    fn answer(&self, world: &World, setup: Setup, question: Question) -> Answer {
        if setup != self.setup || !self.steward.is_slow() {
            return ask(self.steward, world, setup, question);
        }
        let rest = Rest::of(world);
        let mut slots = self.slots.borrow_mut();
        let Some(slot) = slots.get_mut(slot_of(question, &rest, &world.pods)) else {
            return ask(self.steward, world, setup, question);
        };
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

    fn is_slow(&self) -> bool {
        false
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

    fn notes_sources(&self) -> bool {
        self.steward.notes_sources()
    }

    fn learn(&self, world: &World, setup: Setup) -> Option<[Uid; MOST_VOLUMES]> {
        if !self.notes_sources() {
            return None;
        }
        match self.answer(world, setup, Question::Learn) {
            Answer::Taken(taken) => taken,
            Answer::Verdict(_) | Answer::Pods(_) => None,
        }
    }

    fn suspects(&self, world: &World) -> bool {
        self.steward.suspects(world)
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
