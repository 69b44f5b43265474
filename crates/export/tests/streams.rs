//! The number of streams follows what the server can take.

#![allow(clippy::unwrap_used, reason = "a test may fail by panicking")]

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use export::source::Source;
use export::{Error, Prefetch, Window};

/// A disk of zeros behind a long line: each stream brings as much as the one before. Zeros wait for nobody to
/// read them.
struct Slow {
    at_once: AtomicUsize,
    most: AtomicUsize,
    fails: AtomicBool,
}

/// One that goes out of scope is over, whatever became of it.
struct Reading<'a>(&'a Slow);

impl Drop for Reading<'_> {
    fn drop(&mut self) {
        self.0.at_once.fetch_sub(1, Ordering::SeqCst);
    }
}

#[async_trait]
impl Source for Slow {
    fn name(&self) -> &'static str {
        "slow"
    }

    fn size(&self) -> u64 {
        1 << 50
    }

    async fn read(&self, range: Range<u64>) -> export::Result<Bytes> {
        let now = self.at_once.fetch_add(1, Ordering::SeqCst) + 1;
        let _reading = Reading(self);
        self.most.fetch_max(now, Ordering::SeqCst);
        tokio::time::sleep(Duration::from_millis(40)).await;
        if self.fails.load(Ordering::SeqCst) {
            let (what, wrong) = ("reading".into(), "503".into());
            return Err(Error::Answer { what, wrong, again: true });
        }
        Ok(vec![0; usize::try_from(range.end - range.start).unwrap()].into())
    }
}

/// Waits until something holds, for a minute at the most.
async fn until(holds: impl Fn() -> bool) -> bool {
    for _ in 0..6000 {
        if holds() {
            return true;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    false
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_are_added_while_they_bring_more_and_taken_away_when_the_server_fails() {
    let (at_once, most, fails) = Default::default();
    let slow = Arc::new(Slow { at_once, most, fails });
    let window = Window { streams: 1, most_streams: 16, chunks: 16, tries: 1000, ..Window::default() };
    let prefetch = Prefetch::start(slow.clone(), 0, window);
    assert!(until(|| slow.most.load(Ordering::SeqCst) >= 3).await, "it stays with one stream");
    // A stream that fails waits before it asks again: those that ask at once become one.
    slow.fails.store(true, Ordering::SeqCst);
    assert!(until(|| slow.at_once.load(Ordering::SeqCst) <= 1).await, "it goes on as before");
    slow.fails.store(false, Ordering::SeqCst);
    let fetched = prefetch.fetched();
    assert!(until(|| prefetch.fetched() > fetched).await, "it goes on when the server does");
    prefetch.stop();
}
