//! What the objects of a VM say, for people and for programs. Views read; they never change.

pub mod condition;
pub mod detail;
mod json;
pub mod migration;
pub mod summary;

pub use detail::VmDetail;
pub use json::{list, text};
pub use summary::VmSummary;
