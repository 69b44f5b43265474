//! The node agent. It carries out what the reconciler has written into a VMI's annotations, for
//! the VMIs of its own node, and writes down what it found ([ADR 8]).
//!
//! ```text
//!  VMI (watch) ─► task::plan ─► launcher socket: Info, GetDomain, SyncVirtualMachineMemory / CPUs
//!       ▲                                          │
//!       └──────── annotation resize-guest ◄────────┘ what the guest has now
//! ```
//!
//! Threat model. Whoever connects to a launcher's socket can kill the guest in it, so the agent is
//! trusted as virt-handler is. It opens no port; it makes no call but those of [`launcher_api`]
//! (no kill, no exec, no migration); it sends only whole VMIs, read from the API server a moment
//! before, because a launcher dies of a VMI that lacks a field; and it sends them only into a pod
//! that the VMI names as its own, to a domain that carries the VMI's uid.
//!
//! [ADR 8]: ../../../docs/adr/0008-resize-state-in-annotations.md

mod complete;
pub mod inventory;
mod launcher;
mod node;
mod socket;
mod task;

pub use complete::{CompleteVmi, Incomplete};
pub use launcher::{Launcher, LauncherError};
pub use node::{Agent, Settings};
pub use socket::sockets;
pub use task::{Call, Refused, plan};
