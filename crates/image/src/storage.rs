//! Where the bytes of an image lie: a file, a part of a file, memory, an object in a store.

use std::fmt::Debug;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use crate::{Error, Result};

/// Bytes at rest that can be read at any offset, from any thread.
pub trait Storage: Debug + Send + Sync {
    /// Reads what there is at `offset`; fewer bytes than asked for, or 0 at the end.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize>;

    /// The length in bytes.
    fn length(&self) -> io::Result<u64>;

    /// The file, when it is one as a whole.
    fn as_file(&self) -> Option<&File> {
        None
    }
}

impl Storage for File {
    fn as_file(&self) -> Option<&File> {
        Some(self)
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        FileExt::read_at(self, buffer, offset)
    }

    /// The end of the file, which also works for block devices.
    fn length(&self) -> io::Result<u64> {
        let metadata = self.metadata()?;
        if metadata.is_file() {
            return Ok(metadata.len());
        }
        Ok(rustix::fs::seek(self, rustix::fs::SeekFrom::End(0))?)
    }
}

impl Storage for Vec<u8> {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let rest = usize::try_from(offset).ok().and_then(|start| self.get(start..)).unwrap_or_default();
        let length = rest.len().min(buffer.len());
        buffer[..length].copy_from_slice(&rest[..length]);
        Ok(length)
    }

    fn length(&self) -> io::Result<u64> {
        Ok(self.len() as u64)
    }
}

impl<S: Storage + ?Sized> Storage for Arc<S> {
    fn as_file(&self) -> Option<&File> {
        (**self).as_file()
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        (**self).read_at(offset, buffer)
    }

    fn length(&self) -> io::Result<u64> {
        (**self).length()
    }
}

/// A part of another storage, such as a file in an archive.
#[derive(Clone, Debug)]
pub struct Section {
    inner: Arc<dyn Storage>,
    start: u64,
    length: u64,
}

impl Section {
    /// `length` bytes of `inner` from `start`; what lies behind the end of `inner` reads as the end.
    pub fn new(inner: Arc<dyn Storage>, start: u64, length: u64) -> Self {
        Self { inner, start, length }
    }
}

impl Storage for Section {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let rest = self.length.saturating_sub(offset);
        let length = usize::try_from(rest).unwrap_or(usize::MAX).min(buffer.len());
        let Some(at) = self.start.checked_add(offset) else { return Ok(0) };
        self.inner.read_at(at, &mut buffer[..length])
    }

    fn length(&self) -> io::Result<u64> {
        Ok(self.length)
    }
}

/// Reads until the buffer is full or the storage ends.
pub(crate) fn read_up_to(storage: &dyn Storage, offset: u64, buffer: &mut [u8]) -> Result<usize> {
    let mut got = 0;
    while got < buffer.len() {
        let Some(at) = offset.checked_add(got as u64) else { break };
        match storage.read_at(at, &mut buffer[got..]) {
            Ok(0) => break,
            Ok(length) => got += length,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // An offset that no file can have: what a damaged table names lies behind the end.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => break,
            Err(source) => return Err(Error::Read { offset, length: buffer.len() as u64, source }),
        }
    }
    Ok(got)
}

/// The length, with an error of this crate.
pub(crate) fn length_of(storage: &dyn Storage) -> Result<u64> {
    storage.length().map_err(|source| Error::Read { offset: 0, length: 0, source })
}
