//! The running service: webhooks, watches, certificates, telemetry.
//!
//! ```text
//!            ┌──────────── run ─────────────┐
//!  config ─► │ tls   webhook   facts   register │ ─► telemetry, readiness
//!            └──────────────────────────────┘
//! ```

mod clock;
pub mod config;
mod export;
pub mod facts;
pub mod hotplug;
pub mod kubernetes;
pub mod lease;
pub mod readiness;
pub mod register;
pub mod resize;
pub mod rest;
mod run;
pub mod telemetry;
pub mod tls;
pub mod webhook;

pub use clock::{Clock, system as system_clock};
pub use config::{Config, OperatorArgs};
pub use run::{Operator, RunError, run};
