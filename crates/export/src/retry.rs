//! The one way to try again.

use std::time::Duration;

/// The first pause.
const FIRST: Duration = Duration::from_millis(200);
/// The longest pause.
const LONGEST: Duration = Duration::from_secs(15);

/// The pause after `failures` failures in a row (1 or more): it doubles from 200 ms to 15 s, and a
/// quarter of it depends on `salt`, so that many ranges do not come back at once.
pub fn pause(failures: u32, salt: u64) -> Duration {
    let doubled = FIRST.checked_mul(1_u32.checked_shl(failures.saturating_sub(1).min(16)).unwrap_or(1));
    let full = doubled.unwrap_or(LONGEST).min(LONGEST);
    let mixed = salt.wrapping_add(u64::from(failures)).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56;
    full.mul_f64(0.75 + 0.25 * f64::from(u32::try_from(mixed).unwrap_or(0)) / 256.0)
}

/// The longest pause between two looks at an object that is not ready: an export's pod takes 5 to 10 s.
const LOOK: Duration = Duration::from_millis(500);

/// Pauses between looks at something that will be ready: soon, and then less and less often.
#[derive(Clone, Copy, Debug)]
pub struct Looks(Duration);

impl Default for Looks {
    /// The first pause is 25 ms.
    fn default() -> Self {
        Self(Duration::from_millis(25))
    }
}

impl Looks {
    /// The next pause: twice the last one, at most 500 ms.
    pub fn next(&mut self) -> Duration {
        let now = self.0;
        self.0 = (now * 2).min(LOOK);
        now
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looks_come_soon_and_then_twice_a_second() {
        let mut looks = Looks::default();
        let pauses: Vec<u128> = (0..7).map(|_| looks.next().as_millis()).collect();
        assert_eq!(pauses, [25, 50, 100, 200, 400, 500, 500]);
    }

    #[test]
    fn pauses_double_up_to_a_limit_and_differ() {
        assert!(pause(1, 0) >= Duration::from_millis(150) && pause(1, 0) <= FIRST);
        assert!(pause(4, 0) >= Duration::from_millis(1200));
        assert!(pause(99, 7) <= LONGEST);
        assert_ne!(pause(3, 1), pause(3, 2));
    }
}
