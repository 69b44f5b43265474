//! What every reader offers: the bytes that a guest would see, at any offset, from any thread.

use std::fs::File;
use std::ops::Range;

use crate::{Error, Result};

/// A guest's disk.
pub trait Disk: Sync {
    /// The size that the guest sees, in bytes.
    fn size(&self) -> u64;

    /// Fills `buffer` from `offset`. The range must lie within [`Disk::size`].
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<()>;

    /// The first range at or after `offset` that may hold anything but zeros, or `None` when
    /// only zeros follow. The range may be cut short; it is never empty.
    fn next_data(&self, offset: u64) -> Result<Option<Range<u64>>>;

    /// Where the byte at `offset` lies as it is: the file, the offset in it, and how many bytes follow
    /// each other there. `None`: nowhere; it is compressed, or no file of its own, or zero, or its
    /// holes are not known.
    fn place(&self, _offset: u64) -> Result<Option<(&File, u64, u64)>> {
        Ok(None)
    }
}

impl<D: Disk + ?Sized> Disk for Box<D> {
    fn size(&self) -> u64 {
        (**self).size()
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        (**self).read_at(offset, buffer)
    }

    fn next_data(&self, offset: u64) -> Result<Option<Range<u64>>> {
        (**self).next_data(offset)
    }

    fn place(&self, offset: u64) -> Result<Option<(&File, u64, u64)>> {
        (**self).place(offset)
    }
}

/// A disk held in memory.
#[derive(Clone, Debug, Default)]
pub struct MemoryDisk(pub Vec<u8>);

impl Disk for MemoryDisk {
    fn size(&self) -> u64 {
        self.0.len() as u64
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let found = start.checked_add(buffer.len()).and_then(|end| self.0.get(start..end));
        let data = found.ok_or_else(|| past_the_end(offset, buffer.len()))?;
        buffer.copy_from_slice(data);
        Ok(())
    }

    fn next_data(&self, offset: u64) -> Result<Option<Range<u64>>> {
        Ok((offset < self.size()).then(|| offset..self.size()))
    }
}

pub(crate) fn past_the_end(offset: u64, length: usize) -> Error {
    Error::Read { offset, length: length as u64, source: std::io::ErrorKind::UnexpectedEof.into() }
}
