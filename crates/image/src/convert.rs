//! From any disk to any format.

use std::io::{Seek, Write};

use serde::Serialize;

use crate::pipeline::{self, Chunk, Encode, Plan};
use crate::qcow2::{Compression, Qcow2Encoder, Qcow2Writer};
use crate::raw::{RawEncoder, RawWriter};
use crate::vmdk::{GRAIN, GrainEncoder, SparseWriter, StreamWriter};
use crate::{Disk, Error, Format, Result};

/// How to write an image.
#[derive(Clone, Debug)]
pub struct Options {
    /// The format to write.
    pub format: Format,
    /// For qcow2: how clusters are compressed. VMDK grains are always deflated or never.
    pub compression: Compression,
    /// The compressor's level; `None`: deflate 6, zstd 3.
    pub level: Option<i32>,
    /// For qcow2: cluster size as a power of two, 12 to 21 (QEMU's default is 16).
    pub cluster_bits: u32,
    /// Threads that read and compress; at least 1.
    pub workers: usize,
    /// The file name that a VMDK's descriptor states for itself.
    pub file_name: String,
}

impl Options {
    /// The defaults for a format: no compression for qcow2, two workers.
    pub fn new(format: Format) -> Self {
        Self {
            format,
            compression: Compression::None,
            level: None,
            cluster_bits: 16,
            workers: 2,
            file_name: "disk.vmdk".into(),
        }
    }
}

/// How far a conversion is.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Progress {
    /// Everything before this guest offset is done, in bytes.
    pub done: u64,
    /// The size of the guest's disk, in bytes.
    pub total: u64,
    /// Bytes of the disk that held data, so far.
    pub data: u64,
    /// Bytes stored for them, so far.
    pub stored: u64,
}

/// What a finished conversion did.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Summary {
    /// The size that a guest sees, in bytes.
    pub virtual_size: u64,
    /// Bytes of the disk that held data; the rest was zero.
    pub data: u64,
    /// The length of the image, in bytes (raw: the bytes that were written).
    pub stored: u64,
}

/// Converts `disk` into `sink`. `progress` is called after every piece and may stop the work by
/// answering `false`.
///
/// # Errors
/// What cannot be read, compressed or written, and sizes that the format cannot hold. After an
/// error the sink holds no valid image.
pub fn convert<W: Write + Seek>(
    disk: &dyn Disk,
    sink: W,
    options: &Options,
    progress: &mut dyn FnMut(Progress) -> bool,
) -> Result<Summary> {
    let size = disk.size();
    match options.format {
        Format::Raw => {
            let mut writer = RawWriter::new(sink, size);
            let data = drive(disk, 1 << 16, options, &|| Ok(RawEncoder), &mut |c| writer.put(&c), progress)?;
            Ok(Summary { virtual_size: size, data, stored: writer.finish()? })
        }
        Format::Qcow2 => {
            if !(12..=21).contains(&options.cluster_bits) {
                let why = format!("clusters of 2^{} bytes are out of range (12 to 21)", options.cluster_bits);
                return Err(Error::Unsupported { format: "qcow2", why });
            }
            let cluster = 1_usize << options.cluster_bits;
            let guest = size.next_multiple_of(512); // QEMU counts disks in sectors
            let mut writer = Qcow2Writer::new(sink, guest, options.cluster_bits, options.compression)?;
            let encoder = || Qcow2Encoder::new(options.compression, options.level, cluster);
            let data = drive(disk, cluster as u64, options, &encoder, &mut |c| writer.put(&c), progress)?;
            Ok(Summary { virtual_size: guest, data, stored: writer.finish()? })
        }
        Format::VmdkSparse => {
            let mut writer = SparseWriter::new(sink, size, &options.file_name)?;
            let data = drive(disk, GRAIN, options, &|| Ok(RawEncoder), &mut |c| writer.put(&c), progress)?;
            Ok(Summary { virtual_size: size.next_multiple_of(512), data, stored: writer.finish()? })
        }
        Format::VmdkStream => stream(disk, sink, options, progress),
    }
}

/// Converts into a sink that cannot seek: a pipe, a socket, one part after another.
///
/// # Errors
/// As [`convert`]; only streamOptimized VMDK can be written this way.
pub fn stream<W: Write>(
    disk: &dyn Disk,
    sink: W,
    options: &Options,
    progress: &mut dyn FnMut(Progress) -> bool,
) -> Result<Summary> {
    if options.format != Format::VmdkStream {
        return Err(Error::Unsupported {
            format: options.format.name(),
            why: "its tables are known last and stand first, so it needs a file; vmdk can be piped".into(),
        });
    }
    let size = disk.size();
    let mut writer = StreamWriter::new(sink, size, &options.file_name)?;
    let encoder = || Ok(GrainEncoder::new(options.level));
    let data = drive(disk, GRAIN, options, &encoder, &mut |c| writer.put(&c), progress)?;
    Ok(Summary { virtual_size: size.next_multiple_of(512), data, stored: writer.finish()? })
}

fn drive<E: Encode>(
    disk: &dyn Disk,
    chunk_size: u64,
    options: &Options,
    encoder: &(dyn Fn() -> Result<E> + Sync),
    put: &mut dyn FnMut(Chunk) -> Result<()>,
    progress: &mut dyn FnMut(Progress) -> bool,
) -> Result<u64> {
    let plan = Plan { disk, chunk_size, workers: options.workers };
    let total = disk.size();
    let counted = std::cell::Cell::new((0_u64, 0_u64));
    pipeline::run(
        &plan,
        encoder,
        &mut |chunk| {
            let (data, stored) = counted.get();
            let length = chunk.encoded.as_ref().map_or(0, Vec::len) as u64;
            counted.set((data + chunk_size.min(total - chunk.offset), stored + length));
            put(chunk)
        },
        &mut |done| {
            let (data, stored) = counted.get();
            progress(Progress { done, total, data, stored })
        },
    )?;
    Ok(counted.get().0)
}
