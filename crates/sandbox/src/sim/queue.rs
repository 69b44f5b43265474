//! A work queue with the rules of client-go's: a key waits at most once, is never worked on by two
//! workers at the same time, and comes back after a failure with an exponential delay.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// The delay after the first failure (client-go `DefaultTypedControllerRateLimiter`).
const BASE_DELAY: Duration = Duration::from_millis(5);
/// The longest delay (the same).
const MAX_DELAY: Duration = Duration::from_secs(1000);

/// Keys to be worked on.
#[derive(Clone, Default)]
pub struct Queue(Arc<Shared>);

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    ready: Notify,
}

#[derive(Default)]
struct State {
    order: VecDeque<String>,
    dirty: HashSet<String>,
    working: HashSet<String>,
    failures: HashMap<String, u32>,
    /// The earliest time at which a delayed key comes back.
    delayed: HashMap<String, Instant>,
}

/// The delay before the next try after `failures` failures in a row (1 or more).
pub fn backoff(failures: u32) -> Duration {
    BASE_DELAY
        .checked_mul(1u32.checked_shl(failures.saturating_sub(1)).unwrap_or(u32::MAX))
        .map_or(MAX_DELAY, |delay| delay.min(MAX_DELAY))
}

impl Queue {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks for work on a key. A key that is being worked on is worked on again afterwards.
    pub fn add(&self, key: &str) {
        let mut state = self.state();
        if !state.dirty.insert(key.to_owned()) || state.working.contains(key) {
            return;
        }
        state.order.push_back(key.to_owned());
        drop(state);
        self.0.ready.notify_one();
    }

    /// Asks for work on a key after a delay; of two such wishes the earlier one counts.
    pub fn add_after(&self, key: &str, delay: Duration) {
        let due = Instant::now() + delay;
        {
            let mut state = self.state();
            if state.delayed.get(key).is_some_and(|have| *have <= due) {
                return;
            }
            state.delayed.insert(key.to_owned(), due);
        }
        let (queue, key) = (self.clone(), key.to_owned());
        tokio::spawn(async move {
            tokio::time::sleep_until(due).await;
            let mut state = queue.state();
            if state.delayed.get(&key) == Some(&due) {
                state.delayed.remove(&key);
                drop(state);
                queue.add(&key);
            }
        });
    }

    /// Asks for work on a key that failed, with the delay that its failures in a row call for.
    pub fn retry(&self, key: &str) {
        let mut state = self.state();
        let failures = state.failures.entry(key.to_owned()).or_default();
        *failures = failures.saturating_add(1);
        let delay = backoff(*failures);
        drop(state);
        self.add_after(key, delay);
    }

    /// A key succeeded: its next failure counts as the first.
    pub fn forget(&self, key: &str) {
        self.state().failures.remove(key);
    }

    async fn next(&self) -> String {
        loop {
            {
                let mut state = self.state();
                if let Some(key) = state.order.pop_front() {
                    state.dirty.remove(&key);
                    state.working.insert(key.clone());
                    let more = !state.order.is_empty();
                    drop(state);
                    if more {
                        self.0.ready.notify_one();
                    }
                    return key;
                }
            }
            self.0.ready.notified().await;
        }
    }

    fn done(&self, key: &str) {
        let mut state = self.state();
        state.working.remove(key);
        if state.dirty.contains(key) {
            state.order.push_back(key.to_owned());
            drop(state);
            self.0.ready.notify_one();
        }
    }

    /// Works on keys with `workers` workers until `stop`. `work` says when the key is to come back:
    /// `Ok(None)`: when something changes.
    pub fn run<W, F, E>(&self, name: &'static str, workers: usize, stop: &CancellationToken, work: W)
    where
        W: Fn(String) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = Result<Option<Duration>, E>> + Send,
        E: std::fmt::Display + Send,
    {
        for _ in 0..workers {
            let (queue, work, stop) = (self.clone(), work.clone(), stop.clone());
            tokio::spawn(async move {
                loop {
                    let key = tokio::select! {
                        biased;
                        () = stop.cancelled() => return,
                        key = queue.next() => key,
                    };
                    // A stop ends work where it waits: as a process that dies does, between two writes if need be.
                    let result = tokio::select! {
                        biased;
                        () = stop.cancelled() => return,
                        result = work(key.clone()) => result,
                    };
                    match result {
                        Ok(after) => {
                            queue.forget(&key);
                            if let Some(delay) = after {
                                queue.add_after(&key, delay);
                            }
                        }
                        Err(error) => {
                            tracing::debug!(controller = name, key, %error, "trying again later");
                            queue.retry(&key);
                        }
                    }
                    queue.done(&key);
                }
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn delays_double_from_5_ms_to_1000_s() {
        for (failures, millis) in
            [(1, 5), (2, 10), (3, 20), (8, 640), (18, 655_360), (19, 1_000_000), (99, 1_000_000)]
        {
            assert_eq!(backoff(failures), Duration::from_millis(millis), "{failures}");
        }
    }

    #[tokio::test]
    async fn a_key_waits_once_and_is_never_worked_on_twice_at_once() {
        let queue = Queue::default();
        for _ in 0..10 {
            queue.add("a");
        }
        assert_eq!(queue.state().order.len(), 1);
        let (running, runs) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let stop = CancellationToken::new();
        let done = Arc::new(Notify::new());
        let work = {
            let (queue, running, runs, done) = (queue.clone(), running.clone(), runs.clone(), done.clone());
            move |key: String| {
                let (queue, running, runs, done) =
                    (queue.clone(), running.clone(), runs.clone(), done.clone());
                async move {
                    assert_eq!(running.fetch_add(1, Ordering::SeqCst), 0, "two workers on one key");
                    let turn = runs.fetch_add(1, Ordering::SeqCst);
                    if turn == 0 {
                        queue.add(&key);
                    }
                    tokio::task::yield_now().await;
                    running.fetch_sub(1, Ordering::SeqCst);
                    if turn == 2 {
                        done.notify_one();
                    }
                    if turn == 1 { Err("once") } else { Ok(None) }
                }
            }
        };
        queue.run("test", 4, &stop, work);
        done.notified().await;
        stop.cancel();
        assert_eq!(runs.load(Ordering::SeqCst), 3, "first, asked again while working, failed and retried");
    }
}
