//! The load itself.
//!
//! ```text
//! open loop:    pacer (a thread) ── ticket: intended time ──► queue ──► connections
//! closed loop:  each connection sends its next request when the last was answered
//! ```
//!
//! In the open loop a latency counts from the time at which the request was *meant* to be sent.
//! A service that stalls makes the requests behind it wait in the queue, and that wait is part of
//! their latency; leaving it out is what Gil Tene named coordinated omission.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Result;
use tokio::sync::{Mutex, mpsc};

use super::connection::{Connection, Target};
use super::histogram::Histogram;
use super::review::{Answer, Review, read_answer};
use crate::problem::Problem;

/// Requests that may wait for a connection in the open loop; what comes on top is not sent and
/// counts as an error.
const QUEUE: usize = 100_000;

/// How long a connection waits after an error, so that a dead service is not hammered.
const AFTER_ERROR: Duration = Duration::from_millis(10);

/// What to do to the service.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Requests per second in the open loop; `None`: closed loop.
    pub rate: Option<u32>,
    /// Connections that are kept open.
    pub connections: usize,
    /// How long requests are sent.
    pub duration: Duration,
    /// The most requests that are sent.
    pub max_requests: u64,
    /// How long one answer may take, from the time at which the request was really sent.
    pub timeout: Duration,
}

/// What came back.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// Latencies of the requests that were answered.
    pub latencies: Histogram,
    /// Answers that allowed and changed the object.
    pub patched: u64,
    /// Answers that allowed the object as it is.
    pub unchanged: u64,
    /// Answers that denied.
    pub denied: u64,
    /// Requests without a valid answer, by kind.
    pub errors: BTreeMap<String, u64>,
    /// From the first request to the last answer.
    pub elapsed: Duration,
}

impl Outcome {
    fn answered(&mut self, answer: Answer, latency: Duration) {
        self.latencies.record(latency);
        match answer {
            Answer::Patched => self.patched += 1,
            Answer::Unchanged => self.unchanged += 1,
            Answer::Denied => self.denied += 1,
        }
    }

    fn failed(&mut self, kind: &str, count: u64) {
        if count > 0 {
            *self.errors.entry(kind.to_owned()).or_default() += count;
        }
    }

    fn merge(&mut self, other: &Self) {
        self.latencies.merge(&other.latencies);
        self.patched += other.patched;
        self.unchanged += other.unchanged;
        self.denied += other.denied;
        for (kind, count) in &other.errors {
            self.failed(kind, *count);
        }
        self.elapsed = self.elapsed.max(other.elapsed);
    }
}

/// Where a connection gets its next request from.
enum Tickets {
    Open(Mutex<mpsc::Receiver<Instant>>),
    Closed { sent: AtomicU64, max: u64, end: Instant },
}

impl Tickets {
    /// When the next request is meant to be sent; `None` when the load is over.
    async fn next(&self) -> Option<Instant> {
        match self {
            Self::Open(queue) => queue.lock().await.recv().await,
            Self::Closed { sent, max, end } => {
                let now = Instant::now();
                (now < *end && sent.fetch_add(1, Ordering::Relaxed) < *max).then_some(now)
            }
        }
    }
}

/// Opens the connections, then loads the service as planned.
pub async fn run(plan: Plan, target: &Target, review: &Review) -> Result<Outcome> {
    let mut connections = Vec::with_capacity(plan.connections);
    for _ in 0..plan.connections {
        let connection = tokio::time::timeout(plan.timeout, target.connect()).await.unwrap_or(Err("timeout"));
        connections.push(connection.map_err(|wrong| {
            Problem::new(
                "connecting to the service",
                wrong,
                "check that it runs there, and its certificate authority",
            )
        })?);
    }
    let start = Instant::now();
    let end = start + plan.duration;
    let (tickets, pacer) = match plan.rate {
        Some(rate) => {
            let (sender, receiver) = mpsc::channel(QUEUE);
            // a thread, because timers of the runtime have a resolution of 1 ms
            let pacer = std::thread::spawn(move || pace(&sender, rate, start, end, plan.max_requests));
            (Tickets::Open(Mutex::new(receiver)), Some(pacer))
        }
        None => (Tickets::Closed { sent: AtomicU64::new(0), max: plan.max_requests, end }, None),
    };
    let shared = Arc::new((tickets, AtomicU64::new(0)));
    let mut workers = tokio::task::JoinSet::new();
    for connection in connections {
        let (target, review, shared) = (target.clone(), review.clone(), Arc::clone(&shared));
        workers.spawn(async move { work(plan, start, connection, &target, &review, &shared).await });
    }
    let mut outcome = Outcome::default();
    while let Some(done) = workers.join_next().await {
        outcome.merge(&done?);
    }
    if let Some(pacer) = pacer {
        let overflow = pacer.join().unwrap_or_default();
        outcome.failed("not sent: too many requests wait for an answer", overflow);
    }
    Ok(outcome)
}

/// Issues tickets at a fixed rate; returns how many the queue had no room for.
fn pace(queue: &mpsc::Sender<Instant>, rate: u32, start: Instant, end: Instant, max: u64) -> u64 {
    let mut overflow = 0;
    for n in 0..max {
        let intended = start + Duration::from_nanos(n * 1_000_000_000 / u64::from(rate.max(1)));
        if intended >= end {
            break;
        }
        std::thread::sleep(intended.saturating_duration_since(Instant::now()));
        match queue.try_send(intended) {
            Ok(()) => {}
            Err(mpsc::error::TrySendError::Full(_)) => overflow += 1,
            Err(mpsc::error::TrySendError::Closed(_)) => break,
        }
    }
    overflow
}

/// Serves one connection until the load is over; opens it again when it breaks.
async fn work(
    plan: Plan,
    start: Instant,
    connection: Connection,
    target: &Target,
    review: &Review,
    shared: &(Tickets, AtomicU64),
) -> Outcome {
    let (tickets, numbers) = shared;
    // what still waits that long after the end is not sent any more
    let give_up = start + plan.duration + plan.timeout;
    let mut connection = Some(connection);
    let mut outcome = Outcome::default();
    while let Some(intended) = tickets.next().await {
        if Instant::now() > give_up {
            outcome.failed("not sent: the service fell too far behind", 1);
            continue;
        }
        let number = numbers.fetch_add(1, Ordering::Relaxed);
        let exchange = exchange(&mut connection, target, review, number);
        let result =
            tokio::time::timeout(plan.timeout, exchange).await.unwrap_or_else(|_| Err("timeout".into()));
        outcome.elapsed = start.elapsed();
        match result {
            Ok(answer) => outcome.answered(answer, intended.elapsed()),
            Err(kind) => {
                outcome.failed(&kind, 1);
                connection = None;
                tokio::time::sleep(AFTER_ERROR).await;
            }
        }
    }
    outcome
}

async fn exchange(
    connection: &mut Option<Connection>,
    target: &Target,
    review: &Review,
    number: u64,
) -> Result<Answer, String> {
    let open = match connection {
        Some(open) => open,
        None => connection.insert(target.connect().await?),
    };
    let (body, uid) = review.body(number);
    let answer = open.post(body).await?;
    Ok(read_answer(&answer, &uid)?)
}
