//! OVF 1.x, the description of a virtual machine and its disks (DMTF DSP0243), as VMware,
//! VirtualBox and virt-v2v read it.
//!
//! ```text
//!  Machine ──render──► vm.ovf ──parse──► Machine
//!             vm.mf:  SHA256(vm.ovf)= …      one line for each file
//!             vm.ova: vm.ovf, disks, vm.mf   in one tar archive (see `ova`)
//! ```

mod machine;
mod manifest;
mod package;
mod read;
#[cfg(test)]
mod rules;
mod write;

pub use machine::{Bus, Firmware, Machine, MachineDisk, Nic, NicModel, Os};
pub use manifest::{Manifest, ManifestError, Sum};
pub use package::{Package, PackageDisk, is_archive};
pub use read::parse;
pub use write::render;

/// `ovf:format` of a streamOptimized VMDK; readers compare it byte by byte.
const STREAM_OPTIMIZED: &str = "http://www.vmware.com/interfaces/specifications/vmdk.html#streamOptimized";
