//! CPU and memory of a running VM in place: no live migration, no restart. No IO.
//!
//! KubeVirt gives a running guest vCPUs and memory by migrating it into a larger pod. Kubernetes
//! resizes pods in place (KEP-1287, on by default from 1.33, stable in 1.35), and a launcher takes
//! the plug calls at any time. What is missing is somebody who does both in the right order and
//! tells KubeVirt in a way that it believes. That is decided here; others carry it out.
//!
//! ```text
//!  virt-controller's patch ─► hook::judge ─► hold and note the wish │ pass │ pass with the status
//!  VM, VMI, pod, guest     ─► machine::decide ─► one write, then look again
//! ```

pub mod checkup;
pub mod eligibility;
pub mod hook;
mod json;
pub mod ledger;
pub mod machine;
pub mod notice;
pub mod plan;
pub mod policy;
pub mod qos;
pub mod quantity;
pub mod resources;
pub mod size;
pub mod view;

pub use eligibility::Obstacle;
pub use ledger::{Ledger, Wish};
pub use machine::{Seen, Step, Waiting, decide};
pub use policy::{Fallback, Policy};
pub use size::{Compute, Size};
