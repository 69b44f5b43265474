//! From file to file without the data passing through this process.
//!
//! What is stored as it is on both sides is copied by the kernel (`copy_file_range`): one copy less than
//! reading and writing, and none at all where the file system shares extents.

use std::fs::File;
use std::io::{BufWriter, Seek, SeekFrom, Write};

use rustix::io::Errno;

use crate::qcow2::{Compression, Qcow2Writer};
use crate::vmdk::{GRAIN, SparseWriter};
use crate::{Disk, Error, Format, Options, Progress, Result, Summary};

/// Bytes that are copied between two looks at whether to go on.
const STEP: u64 = 32 << 20;

/// Bytes that may pass through here before that is compared with what the kernel copied.
const MOST_BY_HAND: u64 = 16 << 20;

/// Converts into a file with the help of the kernel. `None`: it cannot, and nothing was written;
/// [`crate::convert`] can. It is for disks that know their holes: what they call data is not looked
/// through for zeros.
///
/// # Errors
/// As [`crate::convert`].
pub fn copy_file(
    disk: &dyn Disk,
    file: &File,
    options: &Options,
    progress: &mut dyn FnMut(Progress) -> bool,
) -> Result<Option<Summary>> {
    // What is compressed, or has no holes that are known, is better read, looked through and written.
    match disk.next_data(0)? {
        Some(first) if disk.place(first.start)?.is_none() => return Ok(None),
        _ => {}
    }
    let plain = options.compression == Compression::None && options.backing.is_none();
    let mut layout = match options.format {
        Format::Raw => Layout::Raw,
        Format::Qcow2 if plain && (12..=21).contains(&options.cluster_bits) => {
            Layout::Qcow2(Qcow2Writer::new(
                BufWriter::new(file),
                disk.size().next_multiple_of(512),
                options.cluster_bits,
                Compression::None,
            )?)
        }
        Format::VmdkSparse => {
            Layout::Sparse(SparseWriter::new(BufWriter::new(file), disk.size(), &options.file_name)?)
        }
        Format::Qcow2 | Format::VmdkStream => return Ok(None),
    };
    let unit = match options.format {
        Format::Qcow2 => 1 << options.cluster_bits,
        Format::VmdkSparse => GRAIN,
        _ => 1,
    };
    let mut copier = Copier { file, began: false, buffer: Vec::new(), copied: 0, by_hand: 0 };
    let (total, mut at, mut data) = (disk.size(), 0, 0);
    while let Some(range) = disk.next_data(at)? {
        let start = (range.start - range.start % unit).max(at);
        let mut end = range.end.next_multiple_of(unit).min(total);
        end = end.min(start.saturating_add(STEP - STEP % unit));
        let to = layout.reserve(start, end - start)?;
        if !copier.copy(disk, start, end, to)? {
            drop(layout);
            let mut file = file;
            file.set_len(0).and_then(|()| file.seek(SeekFrom::Start(0))).map_err(Error::write("data"))?;
            return Ok(None);
        }
        data += end - start;
        at = end;
        if !progress(Progress { done: at, total, data, stored: data, passes_left: 0 }) {
            return Err(Error::Stopped);
        }
    }
    let (virtual_size, stored) = match layout {
        Layout::Raw => {
            file.set_len(total).map_err(Error::write("end of the disk"))?;
            (total, data)
        }
        Layout::Qcow2(writer) => (total.next_multiple_of(512), writer.finish()?),
        Layout::Sparse(writer) => {
            let stored = writer.finish()?;
            // The last grain may be a short one.
            file.set_len(stored).map_err(Error::write("grains"))?;
            (total.next_multiple_of(512), stored)
        }
    };
    if !progress(Progress { done: total, total, data, stored, passes_left: 0 }) {
        return Err(Error::Stopped);
    }
    Ok(Some(Summary { virtual_size, data, stored }))
}

enum Layout<'a> {
    Raw,
    Qcow2(Qcow2Writer<BufWriter<&'a File>>),
    Sparse(SparseWriter<BufWriter<&'a File>>),
}

impl Layout<'_> {
    /// Where bytes of the disk go in the file.
    fn reserve(&mut self, offset: u64, length: u64) -> Result<u64> {
        match self {
            Self::Raw => Ok(offset),
            Self::Qcow2(writer) => writer.reserve(offset, length),
            Self::Sparse(writer) => writer.reserve(offset, length),
        }
    }
}

struct Copier<'a> {
    file: &'a File,
    /// Something was copied: from now on a failure is one.
    began: bool,
    buffer: Vec<u8>,
    /// Bytes that the kernel copied, and those that passed through here.
    copied: u64,
    by_hand: u64,
}

impl Copier<'_> {
    /// Copies a range of the disk to an offset of the file. False: the kernel cannot.
    fn copy(&mut self, disk: &dyn Disk, start: u64, end: u64, to: u64) -> Result<bool> {
        let mut at = start;
        while at < end {
            let target = to + (at - start);
            if let Some((source, from, length)) = disk.place(at)? {
                match self.range(source, from, target, length.min(end - at)) {
                    Ok(0) => return Err(crate::disk::past_the_end(at, 0)),
                    Ok(copied) => {
                        at += copied;
                        self.copied += copied;
                    }
                    Err(Errno::XDEV | Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP | Errno::PERM)
                        if !self.began =>
                    {
                        return Ok(false);
                    }
                    Err(errno) => return Err(Error::write("data")(errno.into())),
                }
            } else {
                // Compressed, or zeros within a unit: by hand, as far as one unit goes.
                let length = (end - at).min(64 << 10);
                self.buffer.resize(usize::try_from(length).unwrap_or(0), 0);
                disk.read_at(at, &mut self.buffer)?;
                let mut file = self.file;
                file.seek(SeekFrom::Start(target)).map_err(Error::write("data"))?;
                file.write_all(&self.buffer).map_err(Error::write("data"))?;
                at += length;
                self.by_hand += length;
                // An image of many compressed clusters that began with plain ones: threads do better.
                if self.by_hand > MOST_BY_HAND && self.by_hand > self.copied {
                    return Ok(false);
                }
            }
            self.began = true;
        }
        Ok(true)
    }

    fn range(&self, source: &File, from: u64, to: u64, length: u64) -> std::result::Result<u64, Errno> {
        let (mut from, mut to) = (from, to);
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        let copied = rustix::fs::copy_file_range(source, Some(&mut from), self.file, Some(&mut to), length)?;
        Ok(copied as u64)
    }
}
