//! How answers are shown: a table for people, JSON and YAML for programs.

use anyhow::Result;
use clap::ValueEnum;
use jiff::{SpanRelativeTo, Timestamp, Unit};
use serde::Serialize;

use crate::diff::yaml;
use crate::output::print;

/// Forms of a list.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub enum Format {
    /// A table with more columns
    Wide,
    /// JSON
    Json,
    /// YAML
    Yaml,
    /// Only names, as `kubectl get -o name` prints them
    Name,
}

/// Forms of one thing.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub enum Document {
    /// JSON
    Json,
    /// YAML
    Yaml,
}

/// Prints a value as a document.
pub fn document(format: Document, value: &impl Serialize) -> Result<()> {
    let value = serde_json::to_value(value)?;
    match format {
        Document::Json => print(&format!("{value:#}\n")),
        Document::Yaml => print(&yaml(&value)?),
    }
}

/// A size in the unit that people read.
pub fn size(bytes: u64) -> String {
    let mut unit = 1_u64 << 10;
    let mut name = "B";
    let mut divisor = 1;
    for next in ["Ki", "Mi", "Gi", "Ti", "Pi"] {
        if bytes < unit {
            break;
        }
        divisor = unit;
        name = next;
        unit <<= 10;
    }
    let tenths = u128::from(bytes) * 10 / u128::from(divisor);
    if tenths % 10 == 0 {
        format!("{}{name}", tenths / 10)
    } else {
        format!("{}.{}{name}", tenths / 10, tenths % 10)
    }
}

/// How long ago, as kubectl writes it: seconds up to two minutes, minutes up to three hours, hours up to
/// two days, then days.
pub fn age(since: &str, now: Timestamp) -> String {
    let Ok(since) = since.parse::<Timestamp>() else { return "<unknown>".into() };
    let seconds = (now - since).total((Unit::Second, SpanRelativeTo::days_are_24_hours())).unwrap_or(0.0);
    let seconds = if seconds.is_finite() && seconds > 0.0 { seconds } else { 0.0 };
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "not negative, and saturating"
    )]
    let seconds = seconds as u64;
    match seconds {
        0..120 => format!("{seconds}s"),
        120..10_800 => format!("{}m", seconds / 60),
        10_800..172_800 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// A cell that may have nothing to say.
pub fn or_none(text: Option<impl Into<String>>) -> String {
    text.map_or_else(|| "<none>".into(), Into::into)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_written_as_people_read_them() {
        for (bytes, text) in [(0, "0B"), (1023, "1023B"), (1024, "1Ki"), (1536, "1.5Ki"), (2 << 30, "2Gi")] {
            assert_eq!(size(bytes), text);
        }
        let now: Timestamp = "2026-11-03T00:00:00Z".parse().unwrap();
        for (since, text) in [
            ("2026-11-02T23:59:50Z", "10s"),
            ("2026-11-02T23:00:00Z", "60m"),
            ("2026-11-02T00:00:00Z", "24h"),
            ("2026-10-01T00:00:00Z", "33d"),
            ("2027-01-01T00:00:00Z", "0s"),
            ("", "<unknown>"),
        ] {
            assert_eq!(age(since, now), text, "{since}");
        }
    }
}
