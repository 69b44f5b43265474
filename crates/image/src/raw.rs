//! Raw disks: a file or block device read as it is; a sparse file written.

use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::Arc;

use rustix::io::Errno;

use crate::disk::{Disk, past_the_end};
use crate::pipeline::{Chunk, Encode, Encoded};
use crate::resume::{Place, Placement, Resume};
use crate::storage::{Storage, length_of, read_up_to};
use crate::{Error, Result, is_zero};

/// A file or block device. Holes are found with `SEEK_DATA` where the file system knows them.
#[derive(Debug)]
pub struct RawDisk {
    file: File,
    size: u64,
    /// It has holes, so whoever wrote it left zeros out.
    sparse: bool,
}

impl RawDisk {
    /// Takes the size from the end of the file, which also works for block devices.
    pub fn open(mut file: File) -> Result<Self> {
        let size =
            file.seek(SeekFrom::End(0)).map_err(|source| Error::Read { offset: 0, length: 0, source })?;
        // It is read once, front to back: the kernel reads further ahead. Only a hint.
        let _ = rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::Sequential);
        let sparse =
            file.metadata().is_ok_and(|metadata| metadata.is_file() && metadata.blocks() * 512 < size);
        Ok(Self { file, size, sparse })
    }
}

impl Disk for RawDisk {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        self.file.read_exact_at(buffer, offset).map_err(|source| Error::Read {
            offset,
            length: buffer.len() as u64,
            source,
        })
    }

    fn next_data(&self, offset: u64) -> Result<Option<Range<u64>>> {
        Ok(data_at(|to| rustix::fs::seek(&self.file, to), offset, self.size))
    }

    fn place(&self, offset: u64) -> Result<Option<(&File, u64, u64)>> {
        Ok((self.sparse && offset < self.size).then_some((&self.file, offset, self.size - offset)))
    }
}

/// The first range at or after `offset` that is no hole, as far as `seek` tells.
fn data_at(
    seek: impl Fn(rustix::fs::SeekFrom) -> rustix::io::Result<u64>,
    offset: u64,
    size: u64,
) -> Option<Range<u64>> {
    if offset >= size {
        return None;
    }
    let start = match seek(rustix::fs::SeekFrom::Data(offset)) {
        Ok(start) => start,
        Err(Errno::NXIO) => return None,
        // Block devices (EINVAL) and some file systems know no holes.
        Err(_) => return Some(offset..size),
    };
    let end = seek(rustix::fs::SeekFrom::Hole(start)).unwrap_or(size);
    Some(start..end.clamp(start.saturating_add(1), size.max(start.saturating_add(1))))
}

/// Raw bytes that are no file of their own, such as a member of an archive: holes are not known.
#[derive(Debug)]
pub(crate) struct PlainDisk {
    storage: Arc<dyn Storage>,
    size: u64,
}

impl PlainDisk {
    pub(crate) fn open(storage: Arc<dyn Storage>) -> Result<Self> {
        let size = length_of(&*storage)?;
        Ok(Self { storage, size })
    }
}

impl Disk for PlainDisk {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let got = read_up_to(&*self.storage, offset, buffer)?;
        if got == buffer.len() { Ok(()) } else { Err(past_the_end(offset, buffer.len())) }
    }

    fn next_data(&self, offset: u64) -> Result<Option<Range<u64>>> {
        Ok((offset < self.size).then_some(offset..self.size))
    }
}

/// Raw data needs no encoding: only what is zero is left out.
pub(crate) struct RawEncoder;

impl Encode for RawEncoder {
    fn encode(&mut self, _offset: u64, data: &[u8], _out: &mut Vec<u8>) -> Result<Encoded> {
        Ok(if is_zero(data) { Encoded::Zeros } else { Encoded::Same })
    }
}

/// Writes a sparse raw file: zeros are never written, the length is set at the end.
pub(crate) struct RawWriter<W> {
    sink: W,
    position: u64,
    size: u64,
    written: u64,
}

impl<W: Write + Seek> RawWriter<W> {
    pub(crate) fn new(sink: W, size: u64) -> Self {
        Self { sink, position: 0, size, written: 0 }
    }

    /// Goes on where a run broke off.
    pub(crate) fn resume(&mut self, at: &Resume) -> Result<()> {
        self.sink.seek(SeekFrom::Start(at.done)).map_err(Error::write("raw data"))?;
        self.position = at.done;
        self.written = at.stored;
        Ok(())
    }

    fn append(&mut self, chunk: &Chunk<'_>) -> Result<()> {
        let data = chunk.data;
        if self.position != chunk.offset {
            self.sink.seek(SeekFrom::Start(chunk.offset)).map_err(Error::write("raw data"))?;
        }
        self.sink.write_all(data).map_err(Error::write("raw data"))?;
        self.position = chunk.offset + data.len() as u64;
        self.written += data.len() as u64;
        Ok(())
    }

    /// The bytes that hold data.
    pub(crate) fn finish(mut self) -> Result<u64> {
        if self.size > 0 && self.position < self.size {
            // One zero at the end gives the file its length on every kind of sink.
            self.sink.seek(SeekFrom::Start(self.size - 1)).map_err(Error::write("end of the disk"))?;
            self.sink.write_all(&[0]).map_err(Error::write("end of the disk"))?;
        }
        self.sink.flush().map_err(Error::write("raw data"))?;
        Ok(self.written)
    }
}

impl<W: Write + Seek> Place for RawWriter<W> {
    fn put(&mut self, chunk: &Chunk<'_>, _placed: &mut Vec<Placement>) -> Result<()> {
        self.append(chunk)
    }

    fn flush(&mut self) -> Result<u64> {
        self.sink.flush().map_err(Error::write("raw data"))?;
        Ok(self.written)
    }
}

#[cfg(test)]
#[allow(clippy::single_range_in_vec_init, reason = "one range is meant")]
mod tests {
    use rustix::fs::SeekFrom as To;

    use super::*;

    #[test]
    fn what_knows_no_holes_is_data_to_its_end() {
        // `blkdev_llseek` of the kernel answers EINVAL to SEEK_DATA and SEEK_HOLE, NFS before 4.2 ENOTSUP.
        for error in [Errno::INVAL, Errno::NOTSUP] {
            assert_eq!(data_at(|_| Err(error), 10, 100), Some(10..100));
        }
        assert_eq!(data_at(|_| Err(Errno::INVAL), 100, 100), None);
        let file = |to| match to {
            To::Data(at) if at >= 80 => Err(Errno::NXIO),
            To::Data(at) => Ok(at.max(20)),
            To::Hole(_) => Ok(80),
            _ => Err(Errno::INVAL),
        };
        assert_eq!(data_at(file, 0, 100), Some(20..80));
        assert_eq!(data_at(file, 50, 100), Some(50..80));
        assert_eq!(data_at(file, 90, 100), None);
    }
}
