//! A number that only grows, and those who wait for it. They wake in the order in which they came, which
//! tokio's `watch` does not promise: a run can be replayed only if it is.

use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::Notify;

#[derive(Debug, Default)]
pub(super) struct Signal {
    value: AtomicU64,
    waiting: Notify,
}

impl Signal {
    /// Sets the number, and wakes everybody.
    pub fn raise(&self, value: u64) {
        self.value.store(value, Ordering::Release);
        self.waiting.notify_waiters();
    }

    pub fn value(&self) -> u64 {
        self.value.load(Ordering::Acquire)
    }

    /// Waits until the number is above another one.
    pub async fn above(&self, floor: u64) {
        let mut waiting = std::pin::pin!(self.waiting.notified());
        // Before the number is read: what is raised in between wakes this one already.
        waiting.as_mut().enable();
        if self.value() <= floor {
            waiting.await;
        }
    }
}
