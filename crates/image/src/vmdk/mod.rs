//! VMDK, after VMware's "Virtual Disk Format 5.0" and what VMware, VirtualBox and QEMU accept.
//!
//! ```text
//!  streamOptimized:   header │ descriptor │ {LBA, size, zlib}… GT │ … │ GD │ footer │ end of stream
//!                     one pass over any pipe; grains in LBA order
//!  monolithicSparse:  header │ descriptor │ GD, GTs twice │ grains
//! ```

mod descriptor;
mod header;
mod read;
mod sparse;
mod stream;

pub use header::Header;
pub use read::VmdkDisk;
pub(crate) use sparse::SparseWriter;
pub(crate) use stream::{GrainEncoder, StreamWriter};

/// Everything in a VMDK is counted in sectors of this many bytes.
const SECTOR: u64 = 512;
const SECTOR_LEN: usize = 512;
/// Sectors in a grain that is written here (64 KiB).
const GRAIN_SECTORS: u64 = 128;
/// Bytes in a grain that is written here.
pub(crate) const GRAIN: u64 = GRAIN_SECTORS * SECTOR;
const GRAIN_LEN: usize = 64 << 10;
/// Entries in a grain table.
const TABLE_ENTRIES: u64 = 512;
const TABLE_LEN: usize = 512;
/// Sectors of a grain table.
const TABLE_SECTORS: u64 = TABLE_ENTRIES * 4 / SECTOR;
/// Sectors kept for the descriptor.
const DESCRIPTOR_SECTORS: u64 = 20;
/// Offsets are 32-bit sector numbers, so no extent can be larger than 2 TiB.
const MAX_SECTORS: u64 = u32::MAX as u64;
