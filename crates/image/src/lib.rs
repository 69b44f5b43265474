//! Disk image formats: raw, qcow2, VMDK, OVF and OVA; readers, writers, parallel compression. No network.
//!
//! ```text
//!  Disk (read_at, next_data)                     Sink
//!  raw file ─┐                                   ┌─ raw      sparse, seekable
//!  qcow2    ─┼─► pipeline: N workers read, skip ─┼─ qcow2    v3, tables last, seekable
//!  VMDK     ─┘   zeros, compress; one writer     └─ VMDK     streamOptimized: any pipe
//!                puts results in guest order                 monolithicSparse: seekable
//! ```
//!
//! An OVA ([`ova`], [`ovf`]) is a descriptor and streamOptimized VMDKs in one archive.
//!
//! Output depends on the content and the options alone, never on the number of workers.

mod convert;
mod copy;
mod disk;
mod error;
mod format;
mod noise;
pub mod ova;
pub mod ovf;
mod pipeline;
pub mod qcow2;
mod raw;
mod resume;
mod storage;
mod tar;
mod verify;
pub mod vmdk;
mod zero;

pub use convert::{
    Backing, Measured, Options, OvaDisk, Progress, Summary, convert, convert_from, convert_ova, measure,
    stream, stream_from, stream_measured, stream_ova,
};
pub use copy::copy_file;
pub use disk::{Disk, MemoryDisk};
pub use error::{Error, Result};
pub use format::{Format, Info, open, open_path, open_path_as, open_raw_storage, open_storage};
pub use raw::RawDisk;
pub use resume::{Placement, Resume, Watch};
pub use storage::{Section, Storage};
pub use verify::{Difference, compare, read_all};
pub use zero::is_zero;
