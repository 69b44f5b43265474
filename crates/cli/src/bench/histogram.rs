//! Latencies, counted in buckets whose width grows with the value (as Gil Tene's HDR histogram).

use std::time::Duration;

/// Buckets of a power of two: 128, so a reported value is at most 1/128 (0.8 %) too high.
const SUB_BITS: u32 = 7;
const SUB: usize = 1 << SUB_BITS;

/// Counts of durations, to the nanosecond below 256 ns, to 0.8 % above.
#[derive(Clone, Debug, Default)]
pub struct Histogram {
    counts: Vec<u64>,
    total: u64,
    max: u64,
}

impl Histogram {
    /// Counts one duration; durations beyond 584 years count as that.
    pub fn record(&mut self, duration: Duration) {
        let value = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        let index = index(value);
        if index >= self.counts.len() {
            self.counts.resize(index + 1, 0);
        }
        self.counts[index] += 1;
        self.total += 1;
        self.max = self.max.max(value);
    }

    /// Adds what another has counted.
    pub fn merge(&mut self, other: &Self) {
        if other.counts.len() > self.counts.len() {
            self.counts.resize(other.counts.len(), 0);
        }
        for (mine, theirs) in self.counts.iter_mut().zip(&other.counts) {
            *mine += theirs;
        }
        self.total += other.total;
        self.max = self.max.max(other.max);
    }

    /// How many durations were counted.
    pub fn len(&self) -> u64 {
        self.total
    }

    /// The longest duration, exactly.
    pub fn max(&self) -> Duration {
        Duration::from_nanos(self.max)
    }

    /// The duration that `permille10` ten-thousandths of all durations do not exceed: 9900 is
    /// p99, 9990 is p99.9. Zero when nothing was counted.
    pub fn quantile(&self, permille10: u64) -> Duration {
        let rank = (u128::from(self.total) * u128::from(permille10)).div_ceil(10_000).max(1);
        let mut seen = 0u128;
        for (index, count) in self.counts.iter().enumerate() {
            seen += u128::from(*count);
            if seen >= rank {
                return Duration::from_nanos(highest(index).min(self.max));
            }
        }
        Duration::ZERO
    }
}

/// The bucket of a value: exact below `2 * SUB`, then `SUB` buckets for each power of two.
fn index(value: u64) -> usize {
    let shift = (u64::BITS - value.leading_zeros()).saturating_sub(SUB_BITS + 1);
    // at most 2 * SUB - 1 after the shift
    let sub = usize::try_from(value >> shift).unwrap_or(usize::MAX);
    shift as usize * SUB + sub
}

/// The highest value of a bucket.
fn highest(index: usize) -> u64 {
    if index < 2 * SUB {
        return index as u64;
    }
    let shift = index / SUB - 1;
    let sub = (index - shift * SUB) as u128;
    u64::try_from(((sub + 1) << shift) - 1).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_lies_in_its_bucket_within_the_promised_error() {
        let mut value = 1u64;
        while value < u64::MAX / 3 {
            for v in [value - 1, value, value + 1] {
                let high = highest(index(v));
                assert!(high >= v, "{v} is above its bucket's {high}");
                assert!(u128::from(high - v) * SUB as u128 <= u128::from(v), "{v} reported as {high}");
                assert!(v == 0 || highest(index(v) - 1) < v, "{v} belongs in a lower bucket");
            }
            value += value / 2 + 1;
        }
        assert_eq!(highest(index(u64::MAX)), u64::MAX);
    }

    #[test]
    fn quantiles_of_one_to_a_thousand() {
        let mut histogram = Histogram::default();
        (1..=1000u64).for_each(|ms| histogram.record(Duration::from_millis(ms)));
        for (permille10, expected) in
            [(5000, 500.0), (9000, 900.0), (9900, 990.0), (9990, 999.0), (10_000, 1000.0)]
        {
            let found = histogram.quantile(permille10).as_secs_f64() * 1000.0;
            assert!((expected..=expected * 1.008).contains(&found), "{permille10}: {found}");
        }
        assert_eq!(histogram.max(), Duration::from_secs(1));
        assert_eq!(histogram.len(), 1000);
    }

    #[test]
    fn merging_is_counting_together() {
        let (mut a, mut b, mut both) = (Histogram::default(), Histogram::default(), Histogram::default());
        for n in 0..500u64 {
            let duration = Duration::from_micros(n * n);
            (if n % 3 == 0 { &mut a } else { &mut b }).record(duration);
            both.record(duration);
        }
        a.merge(&b);
        assert_eq!((a.counts, a.total, a.max), (both.counts, both.total, both.max));
    }

    #[test]
    fn nothing_counted_is_zero() {
        assert_eq!(Histogram::default().quantile(9900), Duration::ZERO);
    }
}
