//! qcow2, version 3 (and 2 for reading), after QEMU's `docs/interop/qcow2.rst`.
//!
//! ```text
//!  header │ clusters, compressed ones packed byte to byte … │ L2 tables │ L1 │ refcounts
//!    0      in guest order                                    written last; header at the end
//! ```

mod header;
mod read;
mod write;

pub use header::{Compression, Header};
pub use read::{Backing as BackingDisk, Qcow2Disk};
pub(crate) use write::{Qcow2Encoder, Qcow2Writer};

/// Bit 63 of an L1 or L2 entry: the refcount is exactly one.
const COPIED: u64 = 1 << 63;
/// Bit 62 of an L2 entry: the cluster is compressed.
const COMPRESSED: u64 = 1 << 62;
/// Bits 9 to 55 of an L1 or standard L2 entry: the host offset.
const OFFSET_MASK: u64 = 0x00ff_ffff_ffff_fe00;
/// Bit 0 of a standard L2 entry (version 3): the cluster reads as zeros.
const ZERO: u64 = 1;

/// The bit at which the count of extra sectors begins in a compressed descriptor.
const fn sectors_shift(cluster_bits: u32) -> u32 {
    62 - (cluster_bits - 8)
}
