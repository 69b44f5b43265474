//! A limit on bandwidth, shared by all streams.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// Lets a number of bytes through in each second.
#[derive(Debug)]
pub struct Throttle {
    /// Bytes a second; `None`: no limit.
    rate: Option<u64>,
    /// When the bytes that were let through so far are paid for.
    paid: Mutex<Option<Instant>>,
}

impl Throttle {
    /// `rate` in bytes a second; `None`: everything passes at once.
    pub fn new(rate: Option<u64>) -> Self {
        Self { rate: rate.filter(|rate| *rate > 0), paid: Mutex::new(None) }
    }

    /// Waits until `bytes` more may pass.
    pub async fn pass(&self, bytes: u64) {
        if let Some(until) = self.book(bytes, Instant::now()) {
            tokio::time::sleep_until(until).await;
        }
    }

    /// Books bytes; answers when they may pass, if not now.
    fn book(&self, bytes: u64, now: Instant) -> Option<Instant> {
        let rate = self.rate?;
        let mut paid = self.paid.lock();
        // Time that nobody used is not saved up: a limit is a limit in every second.
        let start = paid.map_or(now, |paid| paid.max(now));
        let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(rate);
        *paid = Some(start + Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX)));
        (start > now).then_some(start)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_pass_at_the_rate_and_idle_time_is_not_saved() {
        let throttle = Throttle::new(Some(1000));
        let start = Instant::now();
        assert_eq!(throttle.book(500, start), None);
        assert_eq!(throttle.book(500, start), Some(start + Duration::from_millis(500)));
        let later = start + Duration::from_secs(10);
        assert_eq!(throttle.book(1000, later), None);
        assert_eq!(throttle.book(1, later), Some(later + Duration::from_secs(1)));
        assert_eq!(Throttle::new(None).book(u64::MAX, start), None);
    }
}
