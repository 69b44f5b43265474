//! Log lines, to standard error.

use std::fmt::{self, Write};

use jiff::Timestamp;
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

use crate::config::{LogFormat, LogLevel, Telemetry};

/// Starts logging for the whole process; later calls change nothing (a test, or a program around us,
/// may have its own subscriber).
pub fn start(config: &Telemetry) {
    let level = match config.log_level {
        LogLevel::Trace => LevelFilter::TRACE,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Error => LevelFilter::ERROR,
    };
    // Libraries speak about every request and handshake; ours is what an administrator reads.
    // kube's watcher also logs, at ERROR, each failure that `/readyz?verbose` explains.
    let ours = ["operator", "audit", "features", "virt_steward"];
    let filter =
        ours.iter().fold(EnvFilter::default().add_directive(LevelFilter::ERROR.into()), |filter, target| {
            // Who did what stays on record however little else is said.
            let level = if *target == "audit" { level.max(LevelFilter::INFO) } else { level };
            match format!("{target}={level}").parse() {
                Ok(directive) => filter.add_directive(directive),
                Err(_) => filter,
            }
        });
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let _ = match config.log_format {
        LogFormat::Json => lines.event_format(JsonLine).try_init(),
        LogFormat::Text => lines.with_ansi(false).try_init(),
    };
}

/// One event as one JSON object: `timestamp`, `level`, the event's fields, `target`. The formatter of
/// tracing-subscriber takes about as long for a line as a decision about a VM does.
struct JsonLine;

impl<S, N> FormatEvent<S, N> for JsonLine
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, _: &FmtContext<'_, S, N>, mut to: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        line(&mut to, Timestamp::now(), event)
    }
}

fn line(to: &mut dyn Write, now: Timestamp, event: &Event<'_>) -> fmt::Result {
    let metadata = event.metadata();
    write!(to, "{{\"timestamp\":\"{now:.6}\",\"level\":\"{}\"", metadata.level())?;
    let mut fields = Fields { to, result: Ok(()) };
    event.record(&mut fields);
    fields.result?;
    to.write_str(",\"target\":\"")?;
    Escaped(to).write_str(metadata.target())?;
    to.write_str("\"}\n")
}

/// Writes `,"name":value` for each field.
struct Fields<'a> {
    to: &'a mut dyn Write,
    result: fmt::Result,
}

impl Fields<'_> {
    fn write(&mut self, field: &Field, value: impl FnOnce(&mut dyn Write) -> fmt::Result) {
        if self.result.is_ok() {
            // names are identifiers of Rust
            self.result = write!(self.to, ",\"{}\":", field.name()).and_then(|()| value(self.to));
        }
    }

    fn text(&mut self, field: &Field, value: fmt::Arguments<'_>) {
        self.write(field, |to| {
            to.write_char('"')?;
            Escaped(to).write_fmt(value)?;
            to.write_char('"')
        });
    }
}

impl Visit for Fields<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.text(field, format_args!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.text(field, format_args!("{value}"));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.write(field, |to| write!(to, "{value}"));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.write(field, |to| write!(to, "{value}"));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.write(field, |to| write!(to, "{value}"));
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        // JSON has no infinities
        if value.is_finite() {
            self.write(field, |to| write!(to, "{value}"));
        } else {
            self.text(field, format_args!("{value}"));
        }
    }
}

/// Writes text as the inside of a JSON string (RFC 8259, 7).
struct Escaped<'a>(&'a mut dyn Write);

impl Write for Escaped<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let mut from = 0;
        for (at, byte) in text.bytes().enumerate() {
            if byte >= 0x20 && byte != b'"' && byte != b'\\' {
                continue;
            }
            self.0.write_str(&text[from..at])?;
            from = at + 1;
            match byte {
                b'"' => self.0.write_str("\\\"")?,
                b'\\' => self.0.write_str("\\\\")?,
                b'\n' => self.0.write_str("\\n")?,
                b'\t' => self.0.write_str("\\t")?,
                _ => write!(self.0, "\\u{byte:04x}")?,
            }
        }
        self.0.write_str(&text[from..])
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use proptest::prelude::*;
    use serde_json::{Value, json};
    use tracing_subscriber::Layer;
    use tracing_subscriber::layer::{Context, SubscriberExt};

    use super::*;

    /// Keeps what is written about each event.
    struct Keep(Arc<Mutex<Vec<String>>>);

    impl<S: Subscriber> Layer<S> for Keep {
        fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
            let mut text = String::new();
            line(&mut text, "2026-06-01T00:00:00.5Z".parse().unwrap(), event).unwrap();
            self.0.lock().unwrap().push(text);
        }
    }

    fn written(speak: impl FnOnce()) -> Vec<String> {
        let lines = Arc::default();
        let subscriber = tracing_subscriber::registry().with(Keep(Arc::clone(&lines)));
        tracing::subscriber::with_default(subscriber, speak);
        std::mem::take(&mut *lines.lock().unwrap())
    }

    #[test]
    fn a_line_is_one_json_object_with_the_fields_of_the_event() {
        let lines = written(|| {
            tracing::info!(target: "audit", vm = %"default/web", micros = 7u64, dry_run = false, ratio = f64::NAN,
                error = ?Some("a \"b\""), "virtual machine\nmutated");
        });
        assert_eq!(lines.len(), 1);
        assert_eq!(lines[0].matches('\n').count(), 1, "one line, ended");
        assert_eq!(
            serde_json::from_str::<Value>(&lines[0]).unwrap(),
            json!({"timestamp": "2026-06-01T00:00:00.500000Z", "level": "INFO", "target": "audit",
                "message": "virtual machine\nmutated", "vm": "default/web", "micros": 7, "dry_run": false,
                "ratio": "NaN", "error": "Some(\"a \\\"b\\\"\")"})
        );
    }

    proptest! {
        #[test]
        fn any_text_is_read_back(text in any::<String>()) {
            let lines = written(|| tracing::warn!(%text));
            let line: Value = serde_json::from_str(&lines[0]).unwrap();
            prop_assert_eq!(line["text"].as_str(), Some(text.as_str()));
        }
    }
}
