//! Hotplugged volumes that survive: the guard's verdict, the gate, the planner. No IO.
//!
//! KubeVirt serves hotplugged volumes through an *attachment pod* beside the launcher pod, and
//! replaces that pod whenever the set of volumes changes. What can go wrong in the handoff from
//! one pod to the next is decided here:
//!
//! ```text
//!  DELETE of an attachment pod ──► guard::decide ──► allow, or deny: volume, why, until what
//!  change of a VMI's volumes   ──► gate::decide  ──► allow, or deny: what is not settled
//!  a wish for volumes          ──► plan::next    ──► hold, wait, patch, roll back, done
//! ```
//!
//! All three look at the same views ([`view`]), which borrow from the JSON that an API server
//! sent. The clock comes as an argument, in Unix seconds: `metav1.Time` has no finer resolution.

pub mod annotations;
pub mod claims;
pub mod gate;
pub mod guard;
pub mod heal;
pub mod plan;
pub mod policy;
pub mod record;
pub mod settle;
pub mod view;

/// Seconds since 1970, as `metav1.Time` has it.
pub type Seconds = i64;
