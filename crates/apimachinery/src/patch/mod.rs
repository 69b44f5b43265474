//! The patches of the Kubernetes API, from their bodies to the patched object.

mod json;
mod merge;
mod strategic;

pub use json::{MAX_OPERATIONS, apply_operations, json_patch};
pub use merge::{merge, merge_patch};
pub use strategic::strategic_patch;

#[cfg(test)]
pub(crate) mod tests;
