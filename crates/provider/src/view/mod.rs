//! What the objects of a VM say, for people and for programs. Views read; they never change.

pub mod condition;
pub mod detail;
pub mod export;
pub mod guest;
mod json;
pub mod migration;
pub mod node;
pub mod summary;
pub mod volume;

pub use detail::VmDetail;
pub(crate) use json::{holds, some};
pub use json::{list, text};
pub use summary::VmSummary;
