//! The admission webhooks.
//!
//! ```text
//!  accept ─► TLS ─► HTTP/1.1 or h2 ─► limits ─► review::parse ─► decide ─► review::write
//!  server                             handler                    │   ▲
//!                                                     reader ◄───┘   └─── facts (watches)
//! ```

mod decide;
mod handler;
mod police;
mod relevance;
mod review;
mod server;
mod tell;

pub use handler::{Handler, LAUNCHER, Parts};
pub use review::{AdmissionRequest, Answer};
pub use server::{Server, ServerError};
