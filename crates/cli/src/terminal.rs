//! The terminal that a person sits at: its width, and raw mode while a guest's console is on it.

use std::io::IsTerminal as _;

use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};

/// Columns of standard output; none when it is no terminal.
pub fn columns() -> Option<usize> {
    let stdout = std::io::stdout();
    if !stdout.is_terminal() {
        return None;
    }
    tcgetwinsize(&stdout).ok().map(|size| usize::from(size.ws_col)).filter(|columns| *columns > 0)
}

/// Raw mode on standard input, for as long as this is there.
pub struct Raw(Termios);

impl Raw {
    /// Switches it on; none when standard input is no terminal.
    pub fn enter() -> Option<Self> {
        let stdin = std::io::stdin();
        if !stdin.is_terminal() {
            return None;
        }
        let before = tcgetattr(&stdin).ok()?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(&stdin, OptionalActions::Now, &raw).ok()?;
        Some(Self(before))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // a terminal that is gone needs nothing
        let _ = tcsetattr(std::io::stdin(), OptionalActions::Now, &self.0);
    }
}
