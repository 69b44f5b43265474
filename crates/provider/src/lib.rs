//! Every operation on virtual machines, as a library and as a REST service.
//!
//! ```text
//!   cli, rest ──► cluster (async, one method per operation)
//!                    │  observe: raw JSON from the Kubernetes API
//!                    ▼
//!                 view, order, wait, disposal, capability, usage      (pure)
//! ```
//!
//! [`api`] has a trait for each capability, for code that needs some of them.
//! The pure modules read objects and say what to send; [`cluster::Provider`] is the only place that
//! speaks to a cluster. Nothing that changes something is ever sent twice.

#![recursion_limit = "256"] // the OpenAPI document is one large literal

pub mod api;
pub mod capability;
pub mod clone;
pub mod cluster;
pub mod device;
pub mod disposal;
mod error;
pub mod identity;
pub mod instancetype;
pub mod jobs;
pub mod network;
pub mod order;
mod patch;
pub mod rest;
pub mod select;
pub mod snapshot;
pub mod template;
pub mod usage;
pub mod view;
pub mod wait;

pub use cluster::Provider;
pub use error::{Error, Kind};
pub use identity::VmId;
