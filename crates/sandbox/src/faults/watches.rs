//! Faults of watches: of those that begin while a fault is active, and of those that run when it is added.
//!
//! ```text
//!  watch begins ──┐
//!                 ├─► drawn once for this watch and this fault ─► its slot: lag, or so many events to go
//!  fault added ───┘                                                    │
//!                                     cleared, or over ─► taken out    └─► the watch's stream looks before each event
//! ```
//! A fault that is added is drawn for the watches that run in the order in which they began.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use super::{Active, Faults, Kind, State};
use crate::attributes::Attributes;

/// What a fault does to one watch.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Does {
    /// Each event waits so long.
    Lag(Duration),
    /// The watch breaks off when so many more events have gone out.
    Drop(u64),
}

#[derive(Clone, Copy, Debug)]
struct Hit {
    fault: u64,
    does: Does,
    ends: Option<Instant>,
}

/// A watch that runs, and what has hit it.
#[derive(Debug)]
pub(super) struct Slot {
    attributes: Attributes,
    hits: Mutex<Vec<Hit>>,
    /// There are hits; without any an event costs one load.
    is_hit: AtomicBool,
    changed: Notify,
}

impl Slot {
    fn hits(&self) -> MutexGuard<'_, Vec<Hit>> {
        self.hits.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, hit: Hit) {
        self.hits().push(hit);
        self.is_hit.store(true, Ordering::Relaxed);
        self.changed.notify_one();
    }

    /// A fault is over, or all are.
    pub(super) fn release(&self, fault: Option<u64>) {
        let mut hits = self.hits();
        hits.retain(|hit| fault.is_some_and(|fault| fault != hit.fault));
        self.is_hit.store(!hits.is_empty(), Ordering::Relaxed);
    }
}

impl Hit {
    /// Of a fault about watches.
    fn of(active: &Active) -> Option<Self> {
        let does = match active.fault.kind {
            Kind::WatchLag { delay } => Does::Lag(delay),
            Kind::WatchDrop { events } => Does::Drop(events),
            _ => return None,
        };
        Some(Self { fault: active.id, does, ends: active.ends })
    }
}

/// A watch as faults see it; it is forgotten when this is dropped.
#[derive(Debug)]
pub struct RunningWatch {
    faults: Arc<Faults>,
    id: u64,
    slot: Arc<Slot>,
}

impl Drop for RunningWatch {
    fn drop(&mut self) {
        self.faults.state().watches.remove(&self.id);
    }
}

impl RunningWatch {
    /// Whether anything has hit it.
    pub fn is_hit(&self) -> bool {
        self.slot.is_hit.load(Ordering::Relaxed)
    }

    /// The hits whose faults are not over.
    fn hits(&self) -> MutexGuard<'_, Vec<Hit>> {
        let now = Instant::now();
        let mut hits = self.slot.hits();
        hits.retain(|hit| hit.ends.is_none_or(|ends| ends > now));
        self.slot.is_hit.store(!hits.is_empty(), Ordering::Relaxed);
        hits
    }

    /// How long the next event waits.
    pub fn lag(&self) -> Duration {
        let hits = self.hits();
        hits.iter().map(|hit| if let Does::Lag(lag) = hit.does { lag } else { Duration::ZERO }).sum()
    }

    /// Whether it breaks off now.
    pub fn is_cut(&self) -> bool {
        self.is_hit() && self.hits().iter().any(|hit| hit.does == Does::Drop(0))
    }

    /// An event goes out.
    pub fn passes(&self) {
        for hit in self.hits().iter_mut() {
            if let Does::Drop(left) = &mut hit.does {
                *left = left.saturating_sub(1);
            }
        }
    }

    /// Waits until something else hits it.
    pub async fn changed(&self) {
        self.slot.changed.notified().await;
    }
}

impl Faults {
    /// A watch begins.
    pub fn watch(self: &Arc<Self>, attributes: Attributes) -> RunningWatch {
        let slot = Arc::new(Slot {
            attributes,
            hits: Mutex::default(),
            is_hit: AtomicBool::new(false),
            changed: Notify::new(),
        });
        let mut state = self.state();
        self.expire(&mut state);
        let mut lines = Vec::new();
        for active in &mut state.active {
            lines.extend(self.strike(&slot, active));
        }
        state.remember(lines);
        let id = state.next_watch;
        state.next_watch += 1;
        state.watches.insert(id, slot.clone());
        drop(state);
        RunningWatch { faults: self.clone(), id, slot }
    }

    /// A fault is added while watches run.
    pub(super) fn strike_running(&self, state: &mut State, active: &mut Active) {
        let lines = state.watches.values().filter_map(|slot| self.strike(slot, active)).collect();
        state.remember(lines);
    }

    /// Draws whether a fault hits a watch; the line of the log when it does.
    fn strike(&self, slot: &Slot, active: &mut Active) -> Option<apimachinery::tree::Value> {
        let hit = Hit::of(active)?;
        let count = self.strikes(active, &slot.attributes)?;
        slot.add(hit);
        Some(self.told(active, &slot.attributes, count).1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::SystemClock;

    fn watch(faults: &Arc<Faults>, resource: &str) -> RunningWatch {
        faults.watch(Attributes { verb: "watch".into(), resource: resource.into(), ..Attributes::default() })
    }

    #[tokio::test(start_paused = true)]
    async fn a_fault_hits_watches_that_run_and_those_that_begin_until_it_is_over() {
        let faults = Faults::new(1, Arc::new(SystemClock));
        let (running, other) = (watch(&faults, "pods"), watch(&faults, "nodes"));
        let added = faults.add("watch-lag:ms=5,resource=pods,for=60".parse().unwrap()).unwrap();
        assert_eq!(added["injected"], 1);
        running.changed().await;
        let later = watch(&faults, "pods");
        assert_eq!((running.lag(), later.lag()), (Duration::from_millis(5), Duration::from_millis(5)));
        assert!(!other.is_hit());
        tokio::time::advance(Duration::from_secs(61)).await;
        assert_eq!((running.lag(), running.is_hit()), (Duration::ZERO, false));

        faults.add("watch-drop:events=2".parse().unwrap()).unwrap();
        for passed in 0..3 {
            assert_eq!(running.is_cut(), passed == 2);
            running.passes();
        }
        faults.clear(None);
        assert!(!running.is_cut() && !other.is_hit());
        let log = faults.log();
        assert_eq!(log.iter().filter(|line| line["verb"] == "watch").count(), 5);
    }

    #[test]
    fn the_seed_decides_which_running_watches_are_hit() {
        let hit = |seed| {
            let faults = Faults::new(seed, Arc::new(SystemClock));
            let watches: Vec<RunningWatch> = (0..64).map(|_| watch(&faults, "pods")).collect();
            faults.add("watch-drop:rate=0.5".parse().unwrap()).unwrap();
            watches.iter().map(RunningWatch::is_cut).collect::<Vec<_>>()
        };
        assert_eq!(hit(3), hit(3));
        assert_ne!(hit(3), hit(4));
        let count = hit(3).iter().filter(|hit| **hit).count();
        assert!((16..48).contains(&count), "{count} of 64");
    }

    #[test]
    fn a_watch_that_has_ended_is_forgotten() {
        let faults = Faults::new(1, Arc::new(SystemClock));
        drop(watch(&faults, "pods"));
        assert!(faults.state().watches.is_empty());
        assert_eq!(faults.add("watch-drop".parse().unwrap()).unwrap()["matched"], 0);
    }
}
