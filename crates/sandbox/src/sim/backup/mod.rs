//! Backups of running VMs (pkg/storage/cbt, `KubeVirt` v1.9): change tracking, trackers, and backups in Pull mode.
//!
//! ```text
//!  gate + labels ─► VM, VMI: Initializing ─► Enabled        a guest that crashes loses its checkpoints
//!                                             │
//!  VirtualMachineBackup ─► Initializing ─► Initiated ─► PreparingExport ─► ExportReady ─► Aborting ─► Complete
//!                           (what is missing)  │            VirtualMachineExport of the same name        │
//!                                              └── the disks as they were                 tracker ◄──────┘
//! ```
//!
//! QEMU marks what a guest writes; here, a disk is compared with a copy of it from the checkpoint, so what was
//! written and is the same again is not dirty. The scratch claim has to be there and to be a file system, but
//! is not attached. Left out: Push mode, and the subresources `backup` and `redefine-checkpoint`, which only
//! virt-controller calls.

mod controller;
mod decide;
pub mod guests;
pub mod tracking;

pub use controller::{Backups, Sources};
pub use decide::is_terminal;
