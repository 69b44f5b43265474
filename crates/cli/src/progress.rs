//! How far a disk is, and what follows from that: a line for people, numbers for scripts.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use serde::Serialize;

/// A line is drawn again after this time, and an event told.
const OFTEN: Duration = Duration::from_millis(100);
/// Columns that a line takes.
const WIDTH: usize = 78;

/// How far a disk is, in bytes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Reached {
    /// Its size.
    pub size: u64,
    /// Everything before this guest offset is done.
    pub done: u64,
    /// Bytes up to there that held data.
    pub data: u64,
    /// Bytes that were stored for them.
    pub stored: u64,
    /// Passes over the disk that come after this one, which measures then.
    pub passes_left: u8,
}

/// What follows from it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Pace {
    pub percent: u64,
    /// Of the guest's disk, zeros included.
    pub bytes_per_second: u64,
    /// Until the disk is done, with the passes that are left; nothing: nobody knows yet.
    pub eta_seconds: Option<u64>,
    /// Bytes that were skipped.
    pub zeros: u64,
    /// Bytes with data to bytes stored.
    pub ratio: f64,
}

impl Pace {
    /// `time` has passed since everything before `from` was done.
    pub fn of(now: Reached, time: Duration, from: u64) -> Self {
        let Reached { size, done, data, stored, passes_left } = now;
        let worked = u128::from(done.saturating_sub(from));
        let rate = (worked * 1000).checked_div(time.as_millis()).unwrap_or(0);
        let left = u128::from(size.saturating_sub(done)) + u128::from(size) * u128::from(passes_left);
        let eta = if left == 0 { Some(0) } else { left.checked_div(rate) };
        let fit = |number: u128| u64::try_from(number).unwrap_or(u64::MAX);
        let ratio = if stored == 0 { 1.0 } else { (mib(data) / mib(stored) * 100.0).round() / 100.0 };
        Self {
            percent: (done * 100).checked_div(size).unwrap_or(100),
            bytes_per_second: fit(rate),
            eta_seconds: eta.map(fit),
            zeros: done.saturating_sub(data),
            ratio,
        }
    }
}

/// `root  43 %  4403 of 10240 MiB  210 MiB/s  28 s left  zeros 61 %  ratio 2.7`
pub fn bar(disk: &str, now: Reached, pace: Pace) -> String {
    let left = pace.eta_seconds.map_or("?".to_owned(), |seconds| format!("{seconds} s"));
    // Data is counted in whole clusters, so it may be more than what is done.
    let zeros = 100 - (now.data * 100).checked_div(now.done).unwrap_or(100).min(100);
    let what = if now.passes_left > 0 { format!("{disk}: measuring") } else { disk.to_owned() };
    format!(
        "{what}  {} %  {:.0} of {:.0} MiB  {:.0} MiB/s  {left} left  zeros {zeros} %  ratio {:.1}",
        pace.percent,
        mib(now.done),
        mib(now.size),
        mib(pace.bytes_per_second),
        pace.ratio,
    )
}

/// Follows one disk after the other: times, and a line on standard error that is redrawn.
#[derive(Debug)]
pub struct Line {
    terminal: bool,
    begun: Instant,
    from: u64,
    last: Option<Instant>,
    shown: bool,
}

impl Line {
    /// `quiet`: nothing is drawn.
    pub fn new(quiet: bool) -> Self {
        let terminal = !quiet && std::io::stderr().is_terminal();
        Self { terminal, begun: Instant::now(), from: 0, last: None, shown: false }
    }

    /// Whether there is somebody to draw for.
    pub fn is_drawn(&self) -> bool {
        self.terminal
    }

    /// A disk begins, or goes on at `from`; the line of the one before stays.
    pub fn begin(&mut self, from: u64) {
        (self.begun, self.from, self.last) = (Instant::now(), from, None);
        if std::mem::take(&mut self.shown) {
            eprintln!();
        }
    }

    /// What is to be told now; `None`: it was a moment ago. The end is always told.
    pub fn due(&mut self, now: Reached) -> Option<Pace> {
        let soon = self.last.is_some_and(|last| last.elapsed() < OFTEN);
        if soon && now.done < now.size {
            return None;
        }
        self.last = Some(Instant::now());
        Some(Pace::of(now, self.begun.elapsed(), self.from))
    }

    /// Draws it, when it is due.
    pub fn draw(&mut self, disk: &str, now: Reached) {
        if self.terminal
            && let Some(pace) = self.due(now)
        {
            self.text(&bar(disk, now, pace));
        }
    }

    /// Draws a text in place of what was drawn before.
    pub fn text(&mut self, text: &str) {
        if self.terminal {
            eprint!("\r{text:<WIDTH$}");
            let _ = std::io::stderr().flush();
            self.shown = true;
        }
    }

    /// Takes the line away.
    pub fn clear(&mut self) {
        if std::mem::take(&mut self.shown) {
            eprint!("\r{:WIDTH$}\r", "");
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "shown to a person with one digit after the point")]
pub fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn a_bar_shows_rate_time_zeros_and_ratio() {
        let now =
            Reached { size: 1000 * MIB, done: 500 * MIB, data: 200 * MIB, stored: 50 * MIB, passes_left: 0 };
        let pace = Pace::of(now, Duration::from_secs(2), 100 * MIB);
        let expected = Pace {
            percent: 50,
            bytes_per_second: 200 * MIB,
            eta_seconds: Some(2),
            zeros: 300 * MIB,
            ratio: 4.0,
        };
        assert_eq!(pace, expected);
        assert_eq!(
            bar("root", now, pace),
            "root  50 %  500 of 1000 MiB  200 MiB/s  2 s left  zeros 60 %  ratio 4.0"
        );
        let measuring = Reached { passes_left: 1, ..now };
        let pace = Pace::of(measuring, Duration::from_secs(2), 100 * MIB);
        assert_eq!(
            bar("root", measuring, pace),
            "root: measuring  50 %  500 of 1000 MiB  200 MiB/s  7 s left  zeros 60 %  ratio 4.0",
            "the pass that follows takes its time, too"
        );
    }

    #[test]
    fn nothing_is_said_that_nobody_knows_yet() {
        let now = Reached { size: MIB, ..Reached::default() };
        let pace = Pace::of(now, Duration::ZERO, 0);
        assert_eq!(bar("root", now, pace), "root  0 %  0 of 1 MiB  0 MiB/s  ? left  zeros 0 %  ratio 1.0");
        let nothing = Pace::of(Reached::default(), Duration::from_secs(1), 0);
        assert_eq!((nothing.percent, nothing.eta_seconds), (100, Some(0)));
    }

    #[test]
    fn the_end_of_a_disk_is_always_told() {
        let mut line = Line::new(true);
        let now = |done| Reached { size: 10, done, ..Reached::default() };
        line.begin(0);
        assert!(line.due(now(1)).is_some());
        assert!(line.due(now(2)).is_none(), "a moment ago");
        assert!(line.due(now(10)).is_some());
    }
}
