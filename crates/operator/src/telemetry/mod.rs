//! What we say about ourselves: metrics, logs, traces.

mod exporter;
pub mod logs;
mod metrics;
mod server;
mod traces;

pub use exporter::{Exporter, TracesError};
pub use metrics::Metrics;
pub use server::MetricsServer;
pub use traces::{Parent, Piece, Tracer};
