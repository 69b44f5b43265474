//! How often a caller may ask: a token bucket each, for a bounded number of callers.

use std::collections::HashMap;
use std::hash::{BuildHasher as _, RandomState};
use std::time::Instant;

/// Callers that are remembered; beyond that, those who have waited long enough are forgotten.
const CALLERS: usize = 1024;

struct Bucket {
    tokens: f64,
    at: Instant,
}

/// A bucket per caller.
pub(super) struct Buckets {
    per_second: f64,
    burst: f64,
    hasher: RandomState,
    callers: HashMap<u64, Bucket>,
}

impl Buckets {
    /// Tokens per second, and the most that a bucket holds.
    pub(super) fn new((per_second, burst): (f64, f64)) -> Self {
        Self { per_second, burst, hasher: RandomState::new(), callers: HashMap::new() }
    }

    /// Takes a token for a caller; whether there was one. Callers are kept as keyed hashes, no secret is.
    pub(super) fn take(&mut self, caller: &str, now: Instant) -> bool {
        let caller = self.hasher.hash_one(caller);
        let (per_second, burst) = (self.per_second, self.burst);
        let filled = move |bucket: &Bucket| {
            let since = now.saturating_duration_since(bucket.at).as_secs_f64();
            (bucket.tokens + since * per_second).min(burst)
        };
        if self.callers.len() >= CALLERS && !self.callers.contains_key(&caller) {
            self.callers.retain(|_, bucket| filled(bucket) < burst);
            if self.callers.len() >= CALLERS {
                return false;
            }
        }
        let bucket = self.callers.entry(caller).or_insert(Bucket { tokens: burst, at: now });
        let tokens = filled(bucket);
        let granted = tokens >= 1.0;
        *bucket = Bucket { tokens: if granted { tokens - 1.0 } else { tokens }, at: now };
        granted
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn each_caller_has_a_bucket_that_fills_again() {
        let start = Instant::now();
        let mut buckets = Buckets::new((2.0, 3.0));
        let taken = (0..5).filter(|_| buckets.take("a", start)).count();
        assert_eq!(taken, 3);
        assert!(buckets.take("b", start), "another caller");
        assert!(!buckets.take("a", start + Duration::from_millis(400)));
        assert!(buckets.take("a", start + Duration::from_millis(600)));
    }

    #[test]
    fn callers_are_bounded_and_the_idle_forgotten() {
        let start = Instant::now();
        let mut buckets = Buckets::new((1.0, 1.0));
        for number in 0..CALLERS {
            assert!(buckets.take(&number.to_string(), start));
        }
        assert!(!buckets.take("one more", start));
        assert!(buckets.take("one more", start + Duration::from_secs(2)));
        assert!(buckets.callers.len() < CALLERS);
    }
}
