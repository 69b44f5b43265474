//! The simulated export: a controller that gives `VirtualMachineExport` objects phases and links
//! (pkg/storage/export/export, `KubeVirt` v1.9), and an export server over real sparse files.
//!
//! ```text
//!  Pending ──(source unused, claims there, token there)──► Ready ──(TTL)──► deleted
//!     ▲  └─(no volume can be exported)──► Skipped                │
//!     └────────────(the VM starts: the exporter pod is killed)───┘
//! ```
//!
//! A backup in Pull mode has an export of its name, with an extent map and data of each disk.
//!
//! Left out: the OCI format, manifests. One server stands for all exporter pods and the proxy in front
//! of them.

mod archive;
mod controller;
mod decide;
mod pull;
mod server;

pub use server::Exports;

pub(super) use controller::start;
