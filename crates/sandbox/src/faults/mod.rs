//! Faults that the API server injects into itself, so that what runs against it can be seen to bear
//! them: by `--fault`, and at run time through `/sandbox/v1/faults`.
//!
//! ```text
//! a request that matches ─► draw(seed, fault, how many matched before) < rate? ─► it happens, is counted and logged
//! ```
//! The draw depends on nothing but the seed, so the same requests in the same order meet the same
//! faults. Requests to the faults themselves are never hit.

mod spec;
mod watches;

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use apimachinery::Status;
use apimachinery::tree::{Value, json};
use jiff::{SignedDuration, Timestamp};
use tokio::sync::broadcast;
use tokio::time::Instant;

use crate::attributes::Attributes;
use crate::clock::{Clock, seconds};

pub use spec::{Fault, KINDS, Kind, Scope, SpecError};
pub use watches::RunningWatch;
use watches::Slot;

/// Faults at once.
const FAULTS_MAX: usize = 64;
/// Injections that are remembered.
const LOG_MAX: usize = 1000;
/// Crashes that nobody has taken notice of yet.
const CRASHES: usize = 16;

/// Everything that is to go wrong in one API server.
pub struct Faults {
    seed: u64,
    clock: Arc<dyn Clock>,
    state: Mutex<State>,
    /// There is something to look at; without faults a request costs one load.
    armed: AtomicBool,
    /// Nanoseconds that the clock is off.
    skew: AtomicI64,
    crashes: broadcast::Sender<String>,
}

impl std::fmt::Debug for Faults {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Faults").field("seed", &self.seed).finish_non_exhaustive()
    }
}

#[derive(Default)]
struct State {
    next: u64,
    active: Vec<Active>,
    /// Clients that died: user, and when they are back.
    down: Vec<(String, Instant)>,
    log: VecDeque<Value>,
    /// Watches that run, in the order in which they began.
    watches: BTreeMap<u64, Arc<Slot>>,
    next_watch: u64,
}

struct Active {
    id: u64,
    fault: Fault,
    since: Timestamp,
    ends: Option<Instant>,
    matched: u64,
    injected: u64,
}

/// What is to happen to a request.
#[derive(Debug, Default)]
pub struct Fate {
    /// It waits first.
    pub delay: Duration,
    /// And ends like this.
    pub end: End,
    /// What the audit log says about it.
    pub notes: Vec<String>,
}

/// How a request ends.
#[derive(Debug, Default)]
pub enum End {
    /// As always.
    #[default]
    Answered,
    /// With a refusal; nothing is done.
    Refused(Status),
    /// Without an answer; nothing is done.
    Broken,
    /// It is carried out, but the answer is lost.
    Lost,
    /// It is carried out, but who asked is dead.
    Crash {
        /// For so long.
        down: Duration,
    },
}

/// What is to happen to a question to a webhook.
#[derive(Debug, Default)]
pub struct WebhookFate {
    /// It waits first.
    pub delay: Duration,
    /// And then: no connection, or nonsense.
    pub end: Option<WebhookEnd>,
}

/// How a question to a webhook ends.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum WebhookEnd {
    /// The connection is refused.
    Down,
    /// The answer is no review.
    Garbage,
}

/// A fault that was not added.
#[derive(Debug, thiserror::Error)]
#[error("{FAULTS_MAX} faults are active, more are not taken: clear some")]
pub struct TooMany;

/// 64 bits that look random and depend on these three alone (splitmix64's finaliser).
fn draw(seed: u64, id: u64, count: u64) -> u64 {
    let mut mixed = seed ^ id.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ count.wrapping_mul(0xD1B5_4A32_D192_ED03);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    mixed ^ (mixed >> 31)
}

/// Whether what has this rate happens on this draw.
fn happens(rate: f64, drawn: u64) -> bool {
    // 53 bits are what a double holds exactly
    #[expect(clippy::cast_precision_loss, reason = "53 bits fit")]
    let fraction = (drawn >> 11) as f64 / (1_u64 << 53) as f64;
    fraction < rate
}

impl State {
    fn remember(&mut self, lines: Vec<Value>) {
        self.log.extend(lines);
        while self.log.len() > LOG_MAX {
            self.log.pop_front();
        }
    }
}

impl Faults {
    /// None yet.
    pub fn new(seed: u64, clock: Arc<dyn Clock>) -> Arc<Self> {
        Arc::new(Self {
            seed,
            clock,
            state: Mutex::default(),
            armed: AtomicBool::new(false),
            skew: AtomicI64::new(0),
            crashes: broadcast::Sender::new(CRASHES),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets a fault happen from now on; returns it as [`Faults::list`] shows it.
    ///
    /// # Errors
    /// [`TooMany`]
    pub fn add(&self, fault: Fault) -> Result<Value, TooMany> {
        let mut state = self.state();
        self.expire(&mut state);
        if state.active.len() >= FAULTS_MAX {
            return Err(TooMany);
        }
        state.next += 1;
        let ends = fault.lasts.map(|lasts| Instant::now() + lasts);
        tracing::info!(seed = self.seed, id = state.next, %fault, "a fault is active");
        let since = self.clock.now();
        if matches!(fault.kind, Kind::ClockSkew { .. }) {
            // It is nobody's request that it happens to.
            let about = Attributes { verb: "begins".into(), ..Attributes::default() };
            let line = self.line(state.next, &fault, &about, 0);
            state.remember(vec![line]);
        }
        let mut active = Active { id: state.next, fault, since, ends, matched: 0, injected: 0 };
        self.strike_running(&mut state, &mut active);
        let shown = self.shown(&active);
        state.active.push(active);
        self.settle(&state);
        Ok(shown)
    }

    /// Ends a fault, or all of them; how many.
    pub fn clear(&self, id: Option<u64>) -> usize {
        let mut state = self.state();
        let before = state.active.len();
        state.active.retain(|active| id.is_some_and(|id| id != active.id));
        for slot in state.watches.values() {
            slot.release(id);
        }
        if id.is_none() {
            state.down.clear();
        }
        self.settle(&state);
        before - state.active.len()
    }

    /// The active faults with what they did so far.
    pub fn list(&self) -> Vec<Value> {
        let mut state = self.state();
        self.expire(&mut state);
        state.active.iter().map(|active| self.shown(active)).collect()
    }

    /// How often those that are active have happened.
    pub fn happened(&self) -> u64 {
        self.state().active.iter().map(|active| active.injected).sum()
    }

    /// What was injected, oldest first; the last 1000.
    pub fn log(&self) -> Vec<Value> {
        self.state().log.iter().cloned().collect()
    }

    fn shown(&self, active: &Active) -> Value {
        json!({"id": active.id, "fault": active.fault.to_string(), "seed": self.seed,
            "since": seconds(active.since), "matched": active.matched, "injected": active.injected})
    }

    fn expire(&self, state: &mut State) {
        let now = Instant::now();
        let before = (state.active.len(), state.down.len());
        state.active.retain(|active| active.ends.is_none_or(|ends| ends > now));
        state.down.retain(|(_, back)| *back > now);
        if before != (state.active.len(), state.down.len()) {
            self.settle(state);
        }
    }

    /// Brings what is read without the lock up to date.
    fn settle(&self, state: &State) {
        self.armed.store(!state.active.is_empty() || !state.down.is_empty(), Ordering::Relaxed);
        let skew = state.active.iter().filter_map(|active| match active.fault.kind {
            Kind::ClockSkew { seconds } => Some(seconds.saturating_mul(1_000_000_000)),
            _ => None,
        });
        self.skew.store(skew.fold(0, i64::saturating_add), Ordering::Relaxed);
    }

    /// Runs over the faults that are about a request, and says which happen.
    fn injected(
        &self,
        attributes: &Attributes,
        concerns: impl Fn(&Fault) -> bool,
        mut happen: impl FnMut(&Kind, u64),
    ) -> Vec<String> {
        if !self.armed.load(Ordering::Relaxed) {
            return Vec::new();
        }
        let mut notes = Vec::new();
        let mut state = self.state();
        self.expire(&mut state);
        let mut lines = Vec::new();
        for active in state.active.iter_mut().filter(|active| concerns(&active.fault)) {
            let Some(count) = self.strikes(active, attributes) else { continue };
            happen(&active.fault.kind, draw(self.seed, active.id ^ u64::MAX, count));
            let (note, line) = self.told(active, attributes, count);
            lines.push(line);
            notes.push(note);
        }
        state.remember(lines);
        notes
    }

    /// Whether a fault happens to somebody, and the how manieth it is that it could have happened to.
    fn strikes(&self, active: &mut Active, attributes: &Attributes) -> Option<u64> {
        if !active.fault.scope.matches(attributes) {
            return None;
        }
        let count = active.matched;
        active.matched += 1;
        let spent = active.fault.times.is_some_and(|times| active.injected >= times);
        if spent || !happens(active.fault.rate, draw(self.seed, active.id, count)) {
            return None;
        }
        active.injected += 1;
        Some(count)
    }

    /// Says that a fault has happened: for the audit log, and for the log of faults.
    fn told(&self, active: &Active, attributes: &Attributes, count: u64) -> (String, Value) {
        let note = format!("{} #{count} id={} seed={}", active.fault, active.id, self.seed);
        tracing::info!(
            user = attributes.user.name,
            verb = attributes.verb,
            resource = attributes.resource,
            subresource = attributes.subresource,
            namespace = attributes.namespace,
            name = attributes.name,
            "fault {note}"
        );
        (note, self.line(active.id, &active.fault, attributes, count))
    }

    /// A line of the log of faults.
    fn line(&self, id: u64, fault: &Fault, attributes: &Attributes, count: u64) -> Value {
        json!({"id": id, "fault": fault.to_string(), "seed": self.seed,
            "number": count, "at": crate::clock::micros(self.clock.now()),
            "user": attributes.user.name, "verb": attributes.verb, "resource": attributes.resource,
            "subresource": attributes.subresource, "namespace": attributes.namespace,
            "name": attributes.name})
    }

    /// What happens to a request.
    pub fn of_request(&self, attributes: &Attributes) -> Fate {
        let mut fate = Fate::default();
        if !self.armed.load(Ordering::Relaxed) {
            return fate;
        }
        let dead = self
            .state()
            .down
            .iter()
            .any(|(user, back)| *user == attributes.user.name && *back > Instant::now());
        if dead {
            fate.end = End::Broken;
            return fate;
        }
        let concerns = |fault: &Fault| {
            matches!(
                fault.kind,
                Kind::Latency { .. }
                    | Kind::Error { .. }
                    | Kind::LostAnswer
                    | Kind::Partition
                    | Kind::Crash { .. }
            )
        };
        let (mut delay, mut end) = (Duration::ZERO, End::Answered);
        fate.notes = self.injected(attributes, concerns, |kind, drawn| match kind {
            Kind::Latency { delay: least, jitter } => {
                let extra = u64::try_from(jitter.as_micros()).unwrap_or(u64::MAX).saturating_add(1);
                delay += *least + Duration::from_micros(drawn % extra);
            }
            // Of several ends the first added counts.
            _ if !matches!(end, End::Answered) => {}
            Kind::Error { code } => end = End::Refused(refusal(*code, attributes)),
            Kind::LostAnswer => end = End::Lost,
            Kind::Partition => end = End::Broken,
            Kind::Crash { down } => end = End::Crash { down: *down },
            _ => {}
        });
        (fate.delay, fate.end) = (delay, end);
        fate
    }

    /// Whether the version or page that a request names is said to be too old.
    pub fn is_gone(&self, attributes: &Attributes) -> bool {
        let mut gone = false;
        self.injected(attributes, |fault| fault.kind == Kind::Gone, |_, _| gone = true);
        gone
    }

    /// What happens to a question to a webhook about a request.
    pub fn of_webhook(&self, webhook: &str, attributes: &Attributes) -> WebhookFate {
        let mut fate = WebhookFate::default();
        let concerns = |fault: &Fault| {
            matches!(fault.kind, Kind::WebhookSlow { .. } | Kind::WebhookDown | Kind::WebhookGarbage)
                && fault.scope.matches_webhook(webhook)
        };
        self.injected(attributes, concerns, |kind, _| match kind {
            Kind::WebhookSlow { delay } => fate.delay += *delay,
            Kind::WebhookDown => fate.end = Some(WebhookEnd::Down),
            Kind::WebhookGarbage => fate.end = Some(WebhookEnd::Garbage),
            _ => {}
        });
        fate
    }

    /// Whether there is no space for what a write would add.
    pub fn is_full(&self, attributes: impl FnOnce() -> Attributes) -> bool {
        self.is_so(&Kind::DiskFull, attributes)
    }

    /// Whether etcd does not tell a watch how far it is.
    pub fn lacks_progress(&self, attributes: impl FnOnce() -> Attributes) -> bool {
        self.is_so(&Kind::NoProgress, attributes)
    }

    /// Whether the server is in a state that a request suffers from.
    fn is_so(&self, kind: &Kind, attributes: impl FnOnce() -> Attributes) -> bool {
        if !self.armed.load(Ordering::Relaxed) {
            return false;
        }
        let mut is_so = false;
        self.injected(&attributes(), |fault| fault.kind == *kind, |_, _| is_so = true);
        is_so
    }

    /// A client died: its requests break until it is back.
    pub fn crash(&self, user: &str, down: Duration) {
        let mut state = self.state();
        state.down.push((user.to_owned(), Instant::now() + down));
        self.settle(&state);
        drop(state);
        // Nobody needs to listen.
        let _ = self.crashes.send(user.to_owned());
    }

    /// Hears of clients that die, by user name.
    pub fn crashes(&self) -> broadcast::Receiver<String> {
        self.crashes.subscribe()
    }

    /// The server's clock, as far off as the faults want it.
    pub fn now(&self) -> Timestamp {
        let now = self.clock.now();
        let skew = self.skew.load(Ordering::Relaxed);
        now.checked_add(SignedDuration::from_nanos(skew)).unwrap_or(now)
    }
}

/// The clock that the faults put off.
#[derive(Debug)]
pub struct SkewedClock(pub Arc<Faults>);

impl Clock for SkewedClock {
    fn now(&self) -> Timestamp {
        self.0.now()
    }
}

/// The answer of a real server that refuses for such a reason.
fn refusal(code: u16, attributes: &Attributes) -> Status {
    let wait = |status: Status| Status { details: Some(json!({"retryAfterSeconds": 1})), ..status };
    match code {
        409 => {
            let why =
                "the object has been modified; please apply your changes to the latest version and try again";
            Status::conflict(&attributes.group, &attributes.resource, &attributes.name, why)
        }
        429 => wait(Status::new(
            429,
            "TooManyRequests",
            "the server has received too many requests and has asked us to try again later",
        )),
        503 => wait(Status::new(
            503,
            "ServiceUnavailable",
            "the server is currently unable to handle the request",
        )),
        504 => {
            wait(Status::new(504, "Timeout", "Timeout: request did not complete within requested timeout"))
        }
        _ => Status::internal("etcdserver: request timed out"),
    }
}

/// `500 etcdserver: mvcc: database space exceeded`, as a full etcd makes a server answer.
pub fn no_space() -> Status {
    Status::new(500, "", "etcdserver: mvcc: database space exceeded")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::SystemClock;

    fn get() -> Attributes {
        Attributes { verb: "get".into(), resource: "pods".into(), ..Attributes::default() }
    }

    fn pattern(seed: u64, spec: &str) -> Vec<bool> {
        let faults = Faults::new(seed, Arc::new(SystemClock));
        faults.add(spec.parse().unwrap()).unwrap();
        (0..200).map(|_| !matches!(faults.of_request(&get()).end, End::Answered)).collect()
    }

    #[test]
    fn the_seed_alone_decides_which_requests_are_hit() {
        let some = pattern(7, "error:rate=0.25");
        assert_eq!(some, pattern(7, "error:rate=0.25"));
        assert_ne!(some, pattern(8, "error:rate=0.25"));
        let hits = some.iter().filter(|hit| **hit).count();
        assert!((30..70).contains(&hits), "{hits} of 200 at a rate of 0.25");
    }

    #[test]
    fn a_fault_ends_after_its_times_and_when_it_is_cleared() {
        assert_eq!(pattern(1, "error:times=3").iter().filter(|hit| **hit).count(), 3);
        let faults = Faults::new(1, Arc::new(SystemClock));
        let added = faults.add("disk-full".parse().unwrap()).unwrap();
        faults.add("clock-skew:seconds=3600".parse().unwrap()).unwrap();
        let ahead = faults.now().duration_since(Timestamp::now()).as_secs();
        assert!((3590..=3600).contains(&ahead), "{ahead}");
        assert!(faults.is_full(get));
        assert_eq!(faults.clear(added["id"].as_u64()), 1);
        assert!(!faults.is_full(get));
        assert_eq!((faults.clear(None), faults.list().len()), (1, 0));
        assert!(faults.now().duration_since(Timestamp::now()).as_secs() < 2);
    }

    #[test]
    fn everything_that_happens_is_written_down_with_the_seed() {
        let faults = Faults::new(42, Arc::new(SystemClock));
        faults.add("error:code=503,resource=pods".parse().unwrap()).unwrap();
        let fate = faults.of_request(&get());
        assert!(matches!(fate.end, End::Refused(status) if status.code == 503));
        assert_eq!(fate.notes, ["error:code=503,resource=pods #0 id=1 seed=42"]);
        let log = faults.log();
        assert_eq!((log[0]["seed"].as_u64(), log[0]["verb"].as_str()), (Some(42), Some("get")));
        assert_eq!(faults.list()[0]["injected"], 1);
        // What is about the whole server, too: whom it hit, or that it began.
        faults.add("disk-full".parse().unwrap()).unwrap();
        faults.add("clock-skew:seconds=5".parse().unwrap()).unwrap();
        assert!(faults.is_full(get) && !faults.lacks_progress(get));
        let log = faults.log();
        let told: Vec<_> =
            log[1..].iter().map(|line| (line["fault"].as_str(), line["verb"].as_str())).collect();
        assert_eq!(told, [(Some("clock-skew:seconds=5"), Some("begins")), (Some("disk-full"), Some("get"))]);
        assert!(log.iter().all(|line| line["seed"] == 42));
    }

    #[test]
    fn a_dead_client_is_not_heard_until_it_is_back() {
        let faults = Faults::new(1, Arc::new(SystemClock));
        let mut died = faults.crashes();
        faults.crash("", Duration::from_mins(1));
        assert_eq!(died.try_recv().unwrap(), "");
        assert!(matches!(faults.of_request(&get()).end, End::Broken));
        faults.clear(None);
        assert!(matches!(faults.of_request(&get()).end, End::Answered));
    }
}
