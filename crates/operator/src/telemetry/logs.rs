//! Log lines, to standard error.

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

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
            match format!("{target}={level}").parse() {
                Ok(directive) => filter.add_directive(directive),
                Err(_) => filter,
            }
        });
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let _ = match config.log_format {
        LogFormat::Json => lines.json().flatten_event(true).with_current_span(false).try_init(),
        LogFormat::Text => lines.with_ansi(false).try_init(),
    };
}
