//! The hook sidecar: KubeVirt asks it, over gRPC on a unix socket, for the domain of a VM before
//! libvirt defines it, and it gives passed-through devices their ROMs.
//!
//! ```text
//!  virt-launcher ──OnDefineDomain(XML)──► service ─► find the hostdevs ─► check the ROMs
//!                ◄──XML with <rom>─────────────────── edit ◄── copy them where QEMU can read
//! ```
//!
//! The decisions (arguments, ROM, XML) are plain functions over bytes; sockets and files are in
//! `serve`, `grpc` and `files`. Without the feature `serve` only [`arguments`] and [`rom`] are
//! built: admission writes the arguments that the sidecar reads, and checks ROMs by the same rules.

pub mod address;
pub mod arguments;
pub mod rom;

#[cfg(feature = "serve")]
pub mod domain;
#[cfg(feature = "serve")]
pub mod edit;
#[cfg(feature = "serve")]
pub mod files;
#[cfg(feature = "serve")]
pub mod grpc;
#[cfg(feature = "serve")]
pub mod serve;
#[cfg(feature = "serve")]
pub mod service;
