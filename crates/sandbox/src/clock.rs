//! The two sources of what cannot be computed: time and identity. Both are handed in, so that a
//! run can be replayed from its seed.

use std::sync::{Arc, Mutex, PoisonError};

use jiff::Timestamp;

/// Tells the time. The API never asks the operating system itself.
pub trait Clock: Send + Sync {
    /// Now, in UTC.
    fn now(&self) -> Timestamp;
}

/// The clock of the machine.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        Timestamp::now()
    }
}

/// A clock that moves with the runtime's: in a runtime whose time stands still until everybody waits
/// (`tokio::time::pause`), so does this one.
#[derive(Clone, Copy, Debug)]
pub struct RuntimeClock {
    start: Timestamp,
    since: tokio::time::Instant,
}

impl RuntimeClock {
    /// A clock that shows `start` now.
    pub fn starting(start: Timestamp) -> Self {
        Self { start, since: tokio::time::Instant::now() }
    }

    /// How long it has been running.
    pub fn elapsed(&self) -> std::time::Duration {
        self.since.elapsed()
    }
}

impl Clock for RuntimeClock {
    fn now(&self) -> Timestamp {
        self.start.saturating_add(self.since.elapsed()).unwrap_or(Timestamp::MAX)
    }
}

/// Seconds precision, as `metav1.Time` is written: `2026-11-21T01:15:51Z`.
pub fn seconds(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// Microseconds precision, as `metav1.MicroTime` is written.
pub fn micros(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string()
}

/// A seeded source of uids and name suffixes (splitmix64: Steele, Lea, Flood 2014).
#[derive(Clone, Debug)]
pub struct Ids(Arc<Mutex<u64>>);

/// The letters of `k8s.io/apimachinery/pkg/util/rand`: no vowels, nothing that reads as another.
const SUFFIX: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";

impl Ids {
    /// The same seed gives the same ids in the same order.
    pub fn new(seed: u64) -> Self {
        Self(Arc::new(Mutex::new(seed)))
    }

    /// 64 random bits.
    pub fn next(&self) -> u64 {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = *state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// A version 4 UUID (RFC 9562).
    pub fn uid(&self) -> String {
        let (high, low) = (self.next(), self.next());
        format!(
            "{:08x}-{:04x}-4{:03x}-{:04x}-{:012x}",
            high >> 32,
            (high >> 16) & 0xffff,
            high & 0xfff,
            0x8000 | ((low >> 48) & 0x3fff),
            low & 0xffff_ffff_ffff
        )
    }

    /// The five letters that the API server appends to `generateName`.
    pub fn suffix(&self) -> String {
        let mut bits = self.next();
        let mut out = String::with_capacity(5);
        for _ in 0..5 {
            let index = usize::try_from(bits % SUFFIX.len() as u64).unwrap_or_default();
            out.push(char::from(SUFFIX[index]));
            bits /= SUFFIX.len() as u64;
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_gives_the_same_ids() {
        let (one, two) = (Ids::new(7), Ids::new(7));
        assert_eq!((one.uid(), one.suffix()), (two.uid(), two.suffix()));
        assert_eq!(one.uid().len(), 36);
        assert_eq!(one.uid().as_bytes()[14], b'4');
    }

    #[tokio::test(start_paused = true)]
    async fn a_clock_of_the_runtime_moves_when_everybody_waits() {
        let start: Timestamp = "2026-11-21T01:15:51Z".parse().unwrap();
        let clock = RuntimeClock::starting(start);
        tokio::time::sleep(std::time::Duration::from_hours(1)).await;
        assert_eq!(seconds(clock.now()), "2026-11-21T02:15:51Z");
    }

    #[test]
    fn times_are_written_as_the_api_writes_them() {
        let at: Timestamp = "2026-11-21T01:15:51.5Z".parse().unwrap();
        assert_eq!(seconds(at), "2026-11-21T01:15:51Z");
        assert_eq!(micros(at), "2026-11-21T01:15:51.500000Z");
    }
}
