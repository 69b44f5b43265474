//! An object that is read as an image, to verify it.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use image::Storage;
use parking_lot::Mutex;
use tokio::runtime::Handle;

use super::{Store, Web};
use crate::Result;

/// Read at once: tables and clusters lie close together.
const STEP: u64 = 4 << 20;
/// Steps that are kept.
const KEPT: usize = 4;

/// Where an object is.
#[derive(Clone, Debug)]
pub enum Place {
    /// In a store.
    Store(Arc<Store>),
    /// On a plain server.
    Web(Arc<Web>),
}

impl From<Arc<Store>> for Place {
    fn from(store: Arc<Store>) -> Self {
        Self::Store(store)
    }
}

impl From<Arc<Web>> for Place {
    fn from(web: Arc<Web>) -> Self {
        Self::Web(web)
    }
}

impl Place {
    async fn read(&self, key: &str, start: u64, length: u64) -> Result<Bytes> {
        match self {
            Self::Store(store) => store.read(key, start, length).await,
            Self::Web(web) => web.read(key, start, length).await,
        }
    }
}

/// Reads an object by ranges. It must be used on a thread that may block.
#[derive(Debug)]
pub struct ObjectStorage {
    runtime: Handle,
    place: Place,
    key: String,
    length: u64,
    kept: Mutex<Vec<(u64, Bytes)>>,
}

impl ObjectStorage {
    /// An object of this length; must be called within a runtime.
    pub fn new(place: Place, key: &str, length: u64) -> Self {
        Self { runtime: Handle::current(), place, key: key.into(), length, kept: Mutex::default() }
    }
}

impl ObjectStorage {
    fn fetch(&self, number: u64) -> io::Result<Bytes> {
        let start = number * STEP;
        let length = STEP.min(self.length - start);
        let read = self.runtime.block_on(self.place.read(&self.key, start, length));
        let data = read.map_err(|error| io::Error::other(error.to_string()))?;
        let mut kept = self.kept.lock();
        if kept.len() >= KEPT {
            kept.remove(0);
        }
        kept.push((number, data.clone()));
        Ok(data)
    }
}

impl Storage for ObjectStorage {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        if offset >= self.length || buffer.is_empty() {
            return Ok(0);
        }
        let number = offset / STEP;
        let found = self.kept.lock().iter().find(|(kept, _)| *kept == number).map(|(_, data)| data.clone());
        let data = if let Some(data) = found { data } else { self.fetch(number)? };
        let skip = usize::try_from(offset % STEP).unwrap_or(0);
        let rest = data.get(skip..).unwrap_or_default();
        let length = rest.len().min(buffer.len());
        if let (Some(target), Some(part)) = (buffer.get_mut(..length), rest.get(..length)) {
            target.copy_from_slice(part);
        }
        Ok(length)
    }

    fn length(&self) -> io::Result<u64> {
        Ok(self.length)
    }
}
