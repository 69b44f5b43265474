//! A disk in a file or on a block device of this machine.

use std::fs::File;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use image::{Disk, RawDisk};

use super::Source;
use crate::{Error, Result};

/// A raw disk whose holes are found with `SEEK_DATA` where the file system knows them.
#[derive(Debug)]
pub struct FileSource {
    name: String,
    disk: Arc<RawDisk>,
}

impl FileSource {
    /// Opens a file or a block device.
    ///
    /// # Errors
    /// When it cannot be opened or has no size.
    pub fn open(path: &Path) -> Result<Self> {
        let name = path.display().to_string();
        let file = File::open(path).map_err(Error::file("opening", path))?;
        let disk = RawDisk::open(file).map_err(|source| Error::Image { what: name.clone(), source })?;
        Ok(Self { name, disk: Arc::new(disk) })
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&RawDisk) -> image::Result<T> + Send + 'static,
    ) -> Result<T> {
        let disk = self.disk.clone();
        let done = tokio::task::spawn_blocking(move || work(&disk)).await;
        let done = done.map_err(|_| Error::Stopped)?;
        done.map_err(|source| Error::Image { what: self.name.clone(), source })
    }
}

#[async_trait]
impl Source for FileSource {
    fn name(&self) -> &str {
        &self.name
    }

    fn size(&self) -> u64 {
        self.disk.size()
    }

    async fn read(&self, range: Range<u64>) -> Result<Bytes> {
        self.blocking(move |disk| {
            let mut buffer = vec![0; usize::try_from(range.end - range.start).unwrap_or(0)];
            disk.read_at(range.start, &mut buffer)?;
            Ok(buffer.into())
        })
        .await
    }

    async fn next_data(&self, offset: u64) -> Result<Option<Range<u64>>> {
        self.blocking(move |disk| disk.next_data(offset)).await
    }
}
