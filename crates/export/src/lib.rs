//! Disks of virtual machines out of a cluster, into any format and any place.
//!
//! ```text
//!  source (async)            image (threads)                       sink
//!  export server, ranges ─┐                                      ┌─ directory: NAME.partial, renamed
//!  file, block device    ─┼─► Prefetch ─► pipeline: leave out ───┼─ standard output
//!                         │   a window     zeros, compress,      └─ S3 store: parts in parallel
//!                         │   of chunks    put in order
//!                         └── SHA-256 of each chunk ──► journal, fsynced ──► goes on after a crash
//! ```
//!
//! Nothing is ever written to a temporary disk, and memory is bounded by the window. What is read is
//! checked against the size that the server stated first: an image is whole, or there is an error
//! and a journal to go on from.

pub mod adapt;
pub mod beside;
mod error;
pub mod job;
pub mod journal;
pub mod lineage;
pub mod machine;
mod prefetch;
pub mod preflight;
mod retry;
pub mod run;
pub mod source;
pub mod store;
pub mod sums;
mod throttle;

pub use error::{Error, Result};
pub use prefetch::{Prefetch, Window};
pub use throttle::Throttle;
