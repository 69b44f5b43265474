//! Random lives of one VM, with every kind of fault at once and far beyond what can be explored:
//! several outages, drains, changes of mind and refusals in one resize.

use resize::{Fallback, Size};
use stateright::Model;

use super::search::broken;
use super::world::{Event, Kubelet, Setting, World, agrees, size};

/// Events of a life in which anything may happen.
const STORMY: usize = 160;
/// No life takes longer to come to rest once nothing fails any more.
const CALM: usize = 20_000;
/// How often the time that somebody waits for comes, in the stormy part and in the calm one.
const TICKS: u8 = 24;

/// `SplitMix64`: a seed decides everything.
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Less than `bound`, which is not 0.
    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % bound as u64).unwrap()
    }

    fn one_in(&mut self, count: usize) -> bool {
        self.below(count) == 0
    }

    fn of<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.below(all.len())]
    }

    fn size(&mut self) -> Size {
        size(self.of(&[1, 2, 3, 4]), self.of(&[1, 2, 3]))
    }

    fn setting(&mut self) -> Setting {
        let changes: Vec<Size> = (0..self.below(5)).map(|_| self.size()).collect();
        let migratable = !self.one_in(3);
        let (start, mut wish) = (self.size(), self.size());
        while wish == start {
            wish = self.size();
        }
        Setting {
            start,
            wish,
            changes: Box::leak(changes.into_boxed_slice()),
            fallback: self.of(&[Fallback::Wait, Fallback::Migrate, Fallback::Revert]),
            kubelet: self.of(&[
                Kubelet::Willing,
                Kubelet::Willing,
                Kubelet::Defers,
                Kubelet::Infeasible,
                Kubelet::Fails,
                Kubelet::AnyOf,
            ]),
            migratable,
            may_declare: self.one_in(2),
            outages: self.of(&[0, 1, 4]),
            quota: self.one_in(3),
            migrations: self.of(&[0, 1, 3]),
            guest_keeps_memory: self.one_in(5),
            ticks: TICKS,
        }
    }
}

/// What came of one life.
pub struct Life {
    pub events: usize,
    pub deleted: bool,
}

/// Lives one life.
///
/// # Errors
/// The setting, the events and the state in which something does not hold.
pub fn live(seed: u64) -> Result<Life, String> {
    let mut dice = Dice::new(seed);
    let setting = dice.setting();
    let [mut world] = <[World; 1]>::try_from(setting.init_states()).unwrap();
    let mut way: Vec<Event> = Vec::new();
    let fail = |what: &str, way: &[Event], world: &World| {
        let events: Vec<String> = way.iter().map(|event| format!("{event:?}")).collect();
        Err(format!("seed {seed}: {what}\n{setting:?}\n{}\n{world}", events.join(" ")))
    };
    for calm in [false, true] {
        // Waiting for a time costs nothing, so that no life ends for want of it.
        world.ticks_left = TICKS;
        for step in 0.. {
            if step == if calm { CALM } else { STORMY } {
                if calm {
                    return fail("it never rests", &way, &world);
                }
                break;
            }
            let Some((event, next)) = happening(&setting, &world, calm, &mut dice) else { break };
            way.push(event);
            world = next;
            if let Some(what) = broken(&setting, &world) {
                return fail(what, &way, &world);
            }
        }
    }
    if !agrees(&setting, &world) {
        let what = format!("it rests in disagreement, deciding {:?}", world.decision(&setting));
        return fail(&what, &way, &world);
    }
    Ok(Life { events: way.len(), deleted: world.deleted })
}

/// Something that changes the world; nothing when it rests.
fn happening(setting: &Setting, world: &World, calm: bool, dice: &mut Dice) -> Option<(Event, World)> {
    let mut events = Vec::new();
    setting.actions(world, &mut events);
    if calm {
        events.retain(|event| !event.is_fault());
    } else if !world.deleted && dice.one_in(400) {
        return setting.next_state(world, Event::Delete).map(|after| (Event::Delete, after));
    } else {
        // It has many more chances otherwise than anything else.
        events.retain(|event| *event != Event::Delete);
    }
    while !events.is_empty() {
        let event = events.swap_remove(dice.below(events.len()));
        if let Some(after) = setting.next_state(world, event.clone()) {
            return Some((event, after));
        }
    }
    None
}
