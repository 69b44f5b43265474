//! The vocabulary of virt-steward: names, lossless views and rules of KubeVirt. No IO.

pub mod feature_gates;
pub mod inventory;
mod kubevirt_cr;
mod pci_address;
pub mod template;

pub use kubevirt_cr::{KubeVirtView, PermittedDevice, PermittedKind, Version};
pub use pci_address::{ParsePciAddressError, PciAddress};
