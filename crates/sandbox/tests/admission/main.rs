//! The admission chain over real HTTPS.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may fail this way")]

mod memory;
mod plugins;
mod policies;
mod server;
mod webhooks;
