//! Which volume of a batch is the bad one: a batch that could not settle was taken back, and is
//! tried again in halves. One bad volume of n is found in about 2·log2(n) attempts, and all the
//! others are attached on the way.

use std::collections::VecDeque;

/// The search.
///
/// ```text
///  [a b c d] fails ─► [a b] fails ─► [a] settles, [b] fails: b is bad ─► [c d] settles
/// ```
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Bisection<T> {
    untried: VecDeque<Vec<T>>,
    bad: Vec<T>,
}

impl<T> Bisection<T> {
    /// Starts with the whole batch.
    pub fn new(batch: Vec<T>) -> Self {
        let untried = if batch.is_empty() { VecDeque::new() } else { VecDeque::from([batch]) };
        Self { untried, bad: Vec::new() }
    }

    /// What to try next; `None`: all is known.
    pub fn attempt(&self) -> Option<&[T]> {
        self.untried.front().map(Vec::as_slice)
    }

    /// The attempt settled.
    pub fn settled(&mut self) {
        self.untried.pop_front();
    }

    /// The attempt did not settle, and was taken back.
    pub fn failed(&mut self) {
        let Some(mut first) = self.untried.pop_front() else { return };
        if first.len() <= 1 {
            self.bad.append(&mut first);
            return;
        }
        let second = first.split_off(first.len() / 2);
        self.untried.push_front(second);
        self.untried.push_front(first);
    }

    /// The volumes that did not settle even alone.
    pub fn bad(&self) -> &[T] {
        &self.bad
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_set_of_bad_volumes_is_found_and_the_others_are_attached() {
        for size in 0..=8_u32 {
            for bad in 0..1_u32 << size {
                let mut search = Bisection::new((0..size).collect());
                let (mut attached, mut attempts) = (Vec::new(), 0);
                while let Some(batch) = search.attempt().map(<[u32]>::to_vec) {
                    attempts += 1;
                    if batch.iter().any(|volume| bad >> volume & 1 == 1) {
                        search.failed();
                    } else {
                        attached.extend(batch);
                        search.settled();
                    }
                }
                let is_bad = |volume: &u32| bad >> volume & 1 == 1;
                assert_eq!(search.bad(), (0..size).filter(is_bad).collect::<Vec<_>>());
                assert_eq!(attached, (0..size).filter(|volume| !is_bad(volume)).collect::<Vec<_>>());
                let bound = 1 + 2 * bad.count_ones() * (32 - size.leading_zeros());
                assert!(attempts <= bound, "{attempts} attempts for {size} volumes, bad {bad:b}");
            }
        }
    }
}
