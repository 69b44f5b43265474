//! What KubeVirt, kubelets, storage drivers and guests do with attachment pods, version by
//! version, as a machine of plain data. No IO, no clock, no chance: whoever drives it chooses the
//! next [`Action`].
//!
//! ```text
//!   user ─► VM ─TakeOver─► VMI ─Sync─► pods ─Schedule, Start, BecomeReady─► published on the node
//!            (gate)          │ ▲                                                  │
//!                  volume status └──── Mount, MarkReady ◄── virt-handler ◄────────┘
//!                            ▼
//!                  virt-launcher: Attach, Detach ─► guest, doing I/O on every disk
//! ```
//!
//! Two drivers use it: a model checker that takes every path (`crates/hotplug/tests`), and
//! [`storm`], which takes random ones with a virtual clock. [`Steward`] is where our program comes
//! in; [`Absent`] is a cluster without it, [`Present`] asks the functions that ship.

#![allow(clippy::trivially_copy_pass_by_ref, reason = "a pod is looked at where it stands in a list")]

mod action;
mod controller;
mod drivers;
mod memory;
mod node;
mod release;
mod state;
mod steward;
pub mod storm;
mod volumes;

pub use action::Action;
pub use drivers::Driver;
pub use release::{ParseReleaseError, Release};
pub use state::{
    Age, Device, Expectation, Guest, Harm, Migration, Phase, Pod, PodPhase, Publication, Setup, Uid,
    VolumeState, World,
};
pub use steward::{Absent, Present, Steward, claim, views};
pub use volumes::{MOST_VOLUMES, Volume, Volumes};
