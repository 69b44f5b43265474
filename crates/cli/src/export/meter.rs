//! Progress: one line on a terminal for the disk at work, or events as lines of JSON.

use std::io::{IsTerminal, Write};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use ::export::run::Event;

use super::{Args, Output};

/// Who shows progress. Cloning gives another handle to the same one.
#[derive(Clone)]
pub struct Meter(Arc<Inner>);

#[allow(clippy::struct_excessive_bools, reason = "independent switches of a command line")]
struct Inner {
    json: bool,
    pipe: bool,
    quiet: bool,
    terminal: bool,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// When the disk began, and where.
    begun: Option<(Instant, u64)>,
    shown: bool,
}

impl Meter {
    pub fn new(args: &Args) -> Self {
        let terminal = std::io::stderr().is_terminal();
        Self(Arc::new(Inner {
            json: args.o == Output::Json,
            pipe: args.pipe(),
            quiet: args.quiet,
            terminal,
            state: Mutex::default(),
        }))
    }

    /// Shows an event.
    pub fn event(&self, event: &Event) {
        if self.0.json {
            if let Ok(text) = serde_json::to_string(event) {
                line(self.0.pipe, &text);
            }
            return;
        }
        if self.0.quiet {
            return;
        }
        let mut state = self.0.state.lock().unwrap_or_else(PoisonError::into_inner);
        match event {
            Event::Started { disk, size, done } => {
                state.begun = Some((Instant::now(), *done));
                // The bar of the disk before stays.
                if std::mem::take(&mut state.shown) {
                    eprintln!();
                }
                if !self.0.terminal {
                    let from = if *done == 0 {
                        String::new()
                    } else {
                        format!(", going on at {:.0} MiB", mib(*done))
                    };
                    eprintln!("{disk}: {:.0} MiB{from}", mib(*size));
                }
            }
            Event::Progress { disk, size, done, data, stored, .. } if self.0.terminal => {
                let (since, from) = *state.begun.get_or_insert((Instant::now(), 0));
                let text = bar(disk, (*size, *done, *data, *stored), (since.elapsed().as_secs_f64(), from));
                eprint!("\r{text:<78}");
                let _ = std::io::stderr().flush();
                state.shown = true;
            }
            Event::Verifying { disk } if self.0.terminal => {
                eprint!("\r{:<78}", format!("{disk}: verifying"));
                state.shown = true;
            }
            Event::Warning { message } => eprintln!("warning: {message}"),
            _ => {}
        }
    }

    /// Takes the line away.
    pub fn clear(&self) {
        let mut state = self.0.state.lock().unwrap_or_else(PoisonError::into_inner);
        if std::mem::take(&mut state.shown) {
            eprint!("\r{:78}\r", "");
        }
    }
}

/// A line of JSON: on standard output, unless the disk itself goes there.
pub fn line(pipe: bool, text: &str) {
    // Nobody reads any more: no reason to give the export up.
    let _ = if pipe { writeln!(std::io::stderr(), "{text}") } else { writeln!(std::io::stdout(), "{text}") };
}

/// `root  43 %  4403 of 10240 MiB  210 MiB/s  28 s left  zeros 61 %  ratio 2.7`
fn bar(disk: &str, (size, done, data, stored): (u64, u64, u64, u64), (seconds, from): (f64, u64)) -> String {
    let rate = mib(done.saturating_sub(from)) / seconds.max(0.001);
    let left = mib(size.saturating_sub(done)) / rate.max(0.001);
    let left = if rate < 0.01 { "?".to_owned() } else { format!("{left:.0} s") };
    let zeros = 100 - (data * 100).checked_div(done).unwrap_or(100).min(100);
    let ratio = if stored == 0 { 1.0 } else { mib(data) / mib(stored) };
    format!(
        "{disk}  {} %  {:.0} of {:.0} MiB  {rate:.0} MiB/s  {left} left  zeros {zeros} %  ratio {ratio:.1}",
        (done * 100).checked_div(size).unwrap_or(100),
        mib(done),
        mib(size),
    )
}

#[expect(clippy::cast_precision_loss, reason = "shown to a person with one digit after the point")]
pub fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

#[cfg(test)]
mod tests {
    use super::bar;

    #[test]
    fn a_bar_shows_rate_time_zeros_and_ratio() {
        let mib = 1 << 20;
        assert_eq!(
            bar("root", (1000 * mib, 500 * mib, 200 * mib, 50 * mib), (2.0, 100 * mib)),
            "root  50 %  500 of 1000 MiB  200 MiB/s  2 s left  zeros 60 %  ratio 4.0"
        );
        assert_eq!(
            bar("root", (mib, 0, 0, 0), (0.0, 0)),
            "root  0 %  0 of 1 MiB  0 MiB/s  ? left  zeros 0 %  ratio 1.0"
        );
    }
}
