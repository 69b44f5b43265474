//! Where disks come from.

pub mod backup;
mod buffers;
pub mod extents;
mod file;
pub mod http;
mod lane;
mod objects;
pub mod snapshot;
pub mod vmexport;

use std::ops::Range;

use async_trait::async_trait;
use bytes::Bytes;

use crate::Result;

pub use file::FileSource;

/// A disk that is read by ranges, any number of them at once.
#[async_trait]
pub trait Source: Send + Sync {
    /// What it is, for messages, for example `volume root of default/web`.
    fn name(&self) -> &str;

    /// The size of the disk in bytes; known before anything is read, and checked against afterwards.
    fn size(&self) -> u64;

    /// Reads a range, which lies within the size, as a whole: fewer bytes are an error.
    async fn read(&self, range: Range<u64>) -> Result<Bytes>;

    /// The first range at or after `offset` that may hold data, as far as the source knows; `None`:
    /// only zeros follow.
    async fn next_data(&self, offset: u64) -> Result<Option<Range<u64>>> {
        Ok((offset < self.size()).then_some(offset..self.size()))
    }

    /// Something went wrong that may be due to credentials, certificates or addresses that are no
    /// longer good: gets new ones. Called between two tries of a read.
    async fn refresh(&self) -> Result<()> {
        Ok(())
    }
}
