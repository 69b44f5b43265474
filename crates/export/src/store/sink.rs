//! A file that is uploaded while it is written.

use std::collections::BTreeMap;
use std::io::{self, Seek, SeekFrom, Write};
use std::sync::Arc;

use bytes::Bytes;
use tokio::runtime::Handle;
use tokio::task::JoinSet;

use super::{Part, Store};
use crate::{Error, Result};

/// The smallest part; the protocol's own limit is 5 MiB.
const SMALLEST: u64 = 8 << 20;
/// Parts that an upload may have; the protocol's own limit is 10,000.
const MOST_PARTS: u64 = 9900;
/// Parts on their way at once, as long as they take no more than [`ON_THE_WAY`].
const AT_ONCE: usize = 3;
/// Bytes on their way at once, but for one part: parts of a disk of a TiB have more than 100 MiB.
const ON_THE_WAY: usize = 64 << 20;

/// Writes an object by parts. Only its end and its first part can be written to: the first part
/// stays in memory until the end, since headers are known last. It must be used on a thread that may
/// block, not on one of the runtime's own.
#[derive(Debug)]
pub struct PartSink {
    runtime: Handle,
    store: Arc<Store>,
    key: String,
    upload: String,
    part_size: usize,
    /// Part 1, when it is full.
    head: Option<Vec<u8>>,
    /// The part that is being filled, and its number.
    buffer: Vec<u8>,
    number: u32,
    position: u64,
    length: u64,
    sending: JoinSet<Result<(u32, Part)>>,
    done: BTreeMap<u32, Part>,
    /// Parts that an earlier run left in the store.
    known: Arc<BTreeMap<u32, Part>>,
    /// Parts that were taken over.
    reused: Arc<std::sync::atomic::AtomicU32>,
}

impl PartSink {
    /// Begins an upload of at most `most` bytes. With `resume`, the parts of an upload that was broken
    /// off are used again where their content is the same.
    ///
    /// # Errors
    /// What the store refuses.
    pub async fn begin(store: Arc<Store>, key: &str, most: u64, resume: bool) -> Result<Self> {
        let found = if resume { store.unfinished(key).await? } else { None };
        let (upload, known) = match found {
            Some(upload) => {
                let parts = store.parts(key, &upload).await?;
                (upload, parts)
            }
            None => (store.begin(key).await?, BTreeMap::new()),
        };
        Ok(Self {
            runtime: Handle::current(),
            store,
            key: key.into(),
            upload,
            part_size: part_size(most),
            head: None,
            buffer: Vec::new(),
            number: 1,
            position: 0,
            length: 0,
            sending: JoinSet::new(),
            done: BTreeMap::new(),
            known: Arc::new(known),
            reused: Arc::default(),
        })
    }

    fn append(&mut self, data: &[u8]) -> Result<()> {
        let mut rest = data;
        while !rest.is_empty() {
            let room = self.part_size - self.buffer.len();
            let (now, later) = rest.split_at(rest.len().min(room));
            self.buffer.extend_from_slice(now);
            self.length += now.len() as u64;
            rest = later;
            if self.buffer.len() == self.part_size {
                let full = std::mem::take(&mut self.buffer);
                if self.number == 1 {
                    self.head = Some(full);
                } else {
                    self.send(self.number, full)?;
                }
                self.number += 1;
            }
        }
        Ok(())
    }

    fn send(&mut self, number: u32, data: Vec<u8>) -> Result<()> {
        while self.sending.len() >= at_once(self.part_size) {
            self.receive()?;
        }
        let (store, key, upload) = (self.store.clone(), self.key.clone(), self.upload.clone());
        let (known, reused) = (self.known.clone(), self.reused.clone());
        let task = async move {
            let data = Bytes::from(data);
            if let Some(part) = known.get(&number)
                && part.holds(&data)
            {
                reused.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                return Ok((number, part.clone()));
            }
            Ok((number, store.put_part(&key, &upload, number, data).await?))
        };
        self.sending.spawn_on(task, &self.runtime);
        Ok(())
    }

    /// Waits for one part.
    fn receive(&mut self) -> Result<()> {
        let sending = &mut self.sending;
        let Some(ended) = self.runtime.block_on(sending.join_next()) else { return Ok(()) };
        let (number, part) = ended.map_err(|_| Error::Stopped)??;
        self.done.insert(number, part);
        Ok(())
    }

    /// Waits for what is on its way after something else failed, so that it need not be sent again.
    pub fn settle(&mut self) {
        while !self.sending.is_empty() {
            let _ = self.receive();
        }
    }

    /// Sends what is left and makes an object of the parts; answers its length.
    ///
    /// # Errors
    /// What the store refuses; the upload is left, so that it can be resumed.
    pub fn finish(mut self) -> Result<Uploaded> {
        let rest = std::mem::take(&mut self.buffer);
        match self.head.take() {
            Some(head) => {
                if !rest.is_empty() {
                    self.send(self.number, rest)?;
                }
                self.send(1, head)?;
            }
            None => self.send(1, rest)?,
        }
        while !self.sending.is_empty() {
            self.receive()?;
        }
        let completed = self.runtime.block_on(self.store.complete(&self.key, &self.upload, &self.done));
        // A store that says yes and keeps less is found out here.
        let found = self.runtime.block_on(self.store.size(&self.key))?;
        if let Err(error) = completed {
            // The first answer was lost on the way, and the second one knows of no such upload.
            let done_before = error.to_string().contains("NoSuchUpload") && found == Some(self.length);
            if !done_before {
                return Err(error);
            }
        }
        if found != Some(self.length) {
            let wrong = format!("the store has {found:?} bytes of it instead of {}", self.length);
            return Err(Error::Verify { what: self.key, wrong });
        }
        let reused = self.reused.load(std::sync::atomic::Ordering::Relaxed);
        Ok(Uploaded { length: self.length, reused })
    }
}

/// Bytes of a part of an upload of at most `most` bytes. Compression may make data larger by a little, and tables come
/// on top.
fn part_size(most: u64) -> usize {
    let needed = (most + most / 32).div_ceil(MOST_PARTS).next_multiple_of(1 << 20);
    usize::try_from(needed.max(SMALLEST)).unwrap_or(usize::MAX)
}

/// How many parts are on their way at once.
fn at_once(part_size: usize) -> usize {
    (ON_THE_WAY / part_size).clamp(1, AT_ONCE)
}

/// An object that was written.
#[derive(Clone, Copy, Debug)]
pub struct Uploaded {
    /// In bytes.
    pub length: u64,
    /// Parts of an earlier run that were used again.
    pub reused: u32,
}

impl Write for PartSink {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let failed = |error: Error| io::Error::other(error.to_string());
        if self.position == self.length {
            self.append(data).map_err(failed)?;
            self.position = self.length;
            return Ok(data.len());
        }
        if self.position > self.length {
            // Zeros that the format leaves out have to be there in an object.
            let zeros = vec![0; 1 << 20];
            while self.length < self.position {
                let gap =
                    usize::try_from(self.position - self.length).unwrap_or(zeros.len()).min(zeros.len());
                self.append(zeros.get(..gap).unwrap_or_default()).map_err(failed)?;
            }
            return self.write(data);
        }
        let start = usize::try_from(self.position).unwrap_or(usize::MAX);
        let head = self.head.as_mut().unwrap_or(&mut self.buffer);
        let target = head.get_mut(start..).filter(|target| !target.is_empty());
        let target = target.ok_or_else(|| io::Error::other("only the first part can be written again"))?;
        let length = data.len().min(target.len());
        let (Some(target), Some(data)) = (target.get_mut(..length), data.get(..length)) else { return Ok(0) };
        target.copy_from_slice(data);
        self.position += length as u64;
        Ok(length)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Seek for PartSink {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.position = match to {
            SeekFrom::Start(to) => to,
            SeekFrom::End(0) => self.length,
            SeekFrom::Current(0) => self.position,
            _ => return Err(io::ErrorKind::Unsupported.into()),
        };
        Ok(self.position)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_fit_into_the_protocol_and_into_memory() {
        for (gib, mib, at_once_now) in [(1, 8, 3), (70, 8, 3), (200, 22, 2), (1024, 110, 1), (4096, 437, 1)] {
            let size = part_size(gib << 30);
            assert_eq!((size >> 20, at_once(size)), (mib, at_once_now), "{gib} GiB");
            assert!(size as u64 * 10_000 > (gib << 30) + (gib << 25), "{gib} GiB do not fit");
        }
    }
}
