//! Colour, only where a person looks at it.

use std::io::IsTerminal;

/// Whether escape sequences are written.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Style {
    colour: bool,
}

/// The meanings that have a colour.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Tone {
    /// Allowed, added.
    Good,
    /// Denied, removed.
    Bad,
    /// Warnings.
    Caution,
    /// Headings.
    Strong,
    /// Positions in a diff.
    Faint,
}

impl Style {
    /// No escape sequences, for files, pipes and tests.
    pub const PLAIN: Self = Self { colour: false };

    /// Colour when standard output is a terminal and `NO_COLOR` (no-color.org) is unset or empty.
    pub fn of_stdout() -> Self {
        let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Self { colour: std::io::stdout().is_terminal() && !refused }
    }

    /// The text in the colour of its meaning.
    pub fn paint(self, tone: Tone, text: &str) -> String {
        if !self.colour {
            return text.to_owned();
        }
        let code = match tone {
            Tone::Good => "32",
            Tone::Bad => "31",
            Tone::Caution => "33",
            Tone::Strong => "1",
            Tone::Faint => "36",
        };
        format!("\u{1b}[{code}m{text}\u{1b}[0m")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_text_carries_no_escape_sequences() {
        assert_eq!(Style::PLAIN.paint(Tone::Bad, "denied"), "denied");
        assert_eq!(Style { colour: true }.paint(Tone::Bad, "denied"), "\u{1b}[31mdenied\u{1b}[0m");
    }
}
