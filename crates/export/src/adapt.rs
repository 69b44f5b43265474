//! How many streams to use at once: more as long as it helps, fewer when the server struggles.

/// The most streams.
pub const MOST: usize = 16;

/// Additive increase, multiplicative decrease. It is told what happened in each interval and says
/// how many streams there should be in the next.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Adapt {
    streams: usize,
    most: usize,
    /// Bytes of the interval before the last change.
    before: u64,
    /// What the last change was: streams added or not.
    grew: bool,
    /// Intervals to wait until more streams are tried again.
    rest: u32,
}

impl Adapt {
    /// Begins with `streams` of at most `most`.
    pub fn new(streams: usize, most: usize) -> Self {
        let most = most.clamp(1, MOST);
        Self { streams: streams.clamp(1, most), most, before: 0, grew: false, rest: 0 }
    }

    /// How many streams there should be.
    pub fn streams(self) -> usize {
        self.streams
    }

    /// An interval is over, in which `bytes` came and `failures` requests failed.
    #[must_use]
    pub fn after(self, bytes: u64, failures: u32) -> Self {
        if failures > 0 {
            // A server that fails has too much to do, or is being replaced.
            return Self { streams: (self.streams / 2).max(1), before: bytes, grew: false, rest: 4, ..self };
        }
        if self.grew && bytes < self.before.saturating_add(self.before / 20) {
            // The last stream brought less than 5 %: it is taken back, and left for a while.
            return Self { streams: (self.streams - 1).max(1), before: bytes, grew: false, rest: 8, ..self };
        }
        if self.rest > 0 || self.streams >= self.most {
            return Self { before: bytes, grew: false, rest: self.rest.saturating_sub(1), ..self };
        }
        Self { streams: self.streams + 1, before: bytes, grew: true, ..self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_grow_while_they_help_and_halve_on_failure() {
        let mut adapt = Adapt::new(4, 16);
        for (bytes, failures, streams) in
            [(100, 0, 5), (120, 0, 6), (140, 0, 7), (141, 0, 6), (140, 0, 6), (0, 3, 3), (0, 1, 1), (0, 1, 1)]
        {
            adapt = adapt.after(bytes, failures);
            assert_eq!(adapt.streams(), streams, "after {bytes} bytes and {failures} failures");
        }
        for _ in 0..200 {
            adapt = adapt.after(adapt.streams() as u64 * 1000, 0);
        }
        assert_eq!(adapt.streams(), 16);
    }
}
