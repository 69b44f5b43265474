//! A disk that is fetched ahead of the threads that compress it.
//!
//! ```text
//!            next chunk to fetch            window: chunks that are fetched or on their way
//!                     │                     ├──────────────────────────┤
//!  … consumed │ ready │ ready │ zero │ on its way │ on its way │ not yet …
//! ```
//!
//! Chunks are asked for in order, several at once, and each is given up as soon as the last byte of its blocks with
//! data was read; a chunk of zeros takes no memory at all. So memory is at most window × 4 MiB.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use image::Disk;
use parking_lot::{Condvar, Mutex};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::adapt::{Adapt, MOST};
use crate::retry::pause;
use crate::source::Source;
use crate::sums::{Blocks, CHUNK, Digest, Sums, look};
use crate::{Error, Result, Throttle};

/// How often a chunk is tried before the export is given up (for now: the journal stays).
const TRIES: u32 = 8;
/// How often the number of streams is thought over.
const INTERVAL: Duration = Duration::from_secs(1);

/// How much is fetched at once.
#[derive(Clone, Debug)]
pub struct Window {
    /// Chunks in memory or on their way.
    pub chunks: usize,
    /// Streams to begin with.
    pub streams: usize,
    /// The most streams.
    pub most_streams: usize,
    /// The limit on bandwidth.
    pub throttle: Arc<Throttle>,
    /// How often a chunk is tried.
    pub tries: u32,
}

impl Default for Window {
    /// 16 chunks (64 MiB), 4 to 16 streams, no limit.
    fn default() -> Self {
        let throttle = Arc::new(Throttle::new(None));
        Self { chunks: 16, streams: 4, most_streams: MOST, throttle, tries: TRIES }
    }
}

/// A source as a disk.
pub struct Prefetch {
    shared: Arc<Shared>,
    stop: CancellationToken,
}

struct Shared {
    size: u64,
    name: String,
    state: Mutex<State>,
    arrived: Condvar,
    /// Places in the window.
    places: Arc<Semaphore>,
}

#[derive(Default)]
struct State {
    chunks: BTreeMap<u64, Slot>,
    /// Digests of the chunks with data that arrived.
    sums: BTreeMap<u64, Digest>,
    /// Chunks before this one are known: they are in `chunks`, or consumed, or zero.
    failed: Option<String>,
    /// Bytes that came, and requests that failed, in this interval.
    bytes: u64,
    failures: u32,
    /// Bytes that came in all.
    fetched: u64,
}

/// A chunk that arrived.
struct Slot {
    /// The blocks that hold anything.
    blocks: Blocks,
    /// Its bytes; `None`: nothing of them is left to be read.
    data: Option<Bytes>,
    /// Bytes in blocks with data that are still to be read.
    left: u64,
}

impl Slot {
    const ZERO: Self = Self { blocks: Blocks::EMPTY, data: None, left: 0 };
}

impl std::fmt::Debug for Prefetch {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Prefetch").field("size", &self.shared.size).finish_non_exhaustive()
    }
}

impl Drop for Prefetch {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Prefetch {
    /// Begins to fetch `source` from the guest offset `start`; must be called within a runtime, which
    /// must not be the thread that reads the disk.
    pub fn start(source: Arc<dyn Source>, start: u64, window: Window) -> Self {
        let stop = CancellationToken::new();
        let shared = Arc::new(Shared {
            size: source.size(),
            name: source.name().to_owned(),
            state: Mutex::default(),
            arrived: Condvar::new(),
            places: Arc::new(Semaphore::new(window.chunks.max(2))),
        });
        let (task, token) = (shared.clone(), stop.clone());
        tokio::spawn(async move {
            let end = task.clone();
            let outcome = tokio::select! {
                () = token.cancelled() => Err(Error::Stopped),
                done = fetch_all(task, source, start, window, token.clone()) => done,
            };
            if let Err(error) = outcome {
                end.fail(&error);
            }
        });
        Self { shared, stop }
    }

    /// The digests of the chunks that lie wholly before a guest offset, taken out.
    pub fn take_sums(&self, before: u64) -> Sums {
        let mut state = self.shared.state.lock();
        let first_left = if before >= self.shared.size { u64::MAX } else { before / CHUNK };
        let left = state.sums.split_off(&first_left);
        Sums(std::mem::replace(&mut state.sums, left))
    }

    /// Bytes that came over the wire so far.
    pub fn fetched(&self) -> u64 {
        self.shared.state.lock().fetched
    }

    /// Ends the fetching; whoever waits for data gets an error.
    pub fn stop(&self) {
        // Chunks on their way are dropped without a word: whoever waits for one must be told.
        self.shared.fail(&Error::Stopped);
        self.stop.cancel();
    }
}

/// Keeps the window full.
async fn fetch_all(
    shared: Arc<Shared>,
    source: Arc<dyn Source>,
    start: u64,
    window: Window,
    stop: CancellationToken,
) -> Result<()> {
    let streams = Arc::new(Semaphore::new(window.streams.clamp(1, MOST)));
    tokio::spawn(adapt(shared.clone(), streams.clone(), window.clone(), stop.clone()));
    let chunks = shared.size.div_ceil(CHUNK);
    let mut number = start / CHUNK;
    while number < chunks {
        // What the source knows to be zero is not fetched at all. A chunk that is gone on with in its middle is
        // looked at from its beginning: its digest is that of the whole chunk.
        let data = source.next_data(number * CHUNK).await?;
        let next = data.as_ref().map_or(chunks, |range| range.start / CHUNK);
        if next > number {
            shared.arrived(number..next);
            number = next;
            continue;
        }
        let known_end = data.map_or(0, |range| range.end).div_ceil(CHUNK).min(chunks);
        while number < known_end {
            let place = shared.places.clone().acquire_owned().await.map_err(|_| Error::Stopped)?;
            place.forget(); // given back when the chunk was read
            let stream = streams.clone().acquire_owned().await.map_err(|_| Error::Stopped)?;
            let (shared, source, window, stop) =
                (shared.clone(), source.clone(), window.clone(), stop.clone());
            tokio::spawn(async move {
                let outcome = tokio::select! {
                    () = stop.cancelled() => return,
                    outcome = fetch(&shared, &*source, &window, number, start) => outcome,
                };
                drop(stream);
                if let Err(error) = outcome {
                    shared.fail(&error);
                    stop.cancel();
                }
            });
            number += 1;
        }
    }
    Ok(())
}

/// Fetches one chunk, again and again if need be.
async fn fetch(shared: &Shared, source: &dyn Source, window: &Window, number: u64, start: u64) -> Result<()> {
    let range = number * CHUNK..((number + 1) * CHUNK).min(shared.size);
    let length = range.end - range.start;
    let mut failures = 0;
    let data = loop {
        window.throttle.pass(length).await;
        match source.read(range.clone()).await {
            Ok(data) if data.len() as u64 == length => break data,
            Ok(data) => {
                let wrong = format!("{} bytes came instead of {length}", data.len());
                tracing::debug!(source = source.name(), number, wrong, "a chunk is short");
                failures += 1;
                if failures >= window.tries {
                    return Err(Error::Answer { what: source.name().into(), wrong, again: false });
                }
            }
            Err(error) => {
                tracing::debug!(source = source.name(), number, %error, "a chunk failed");
                failures += 1;
                if !error.is_passing() || failures >= window.tries {
                    return Err(error);
                }
            }
        }
        shared.state.lock().failures += 1;
        tokio::time::sleep(pause(failures, number)).await;
        if let Err(error) = source.refresh().await
            && (!error.is_passing() || failures + 1 >= window.tries)
        {
            return Err(error);
        }
    };
    let (blocks, digest) = look(&data);
    let left = blocks.within(&(start.saturating_sub(range.start)..length));
    let done = left == 0;
    let slot = Slot { blocks, data: (!done).then_some(data), left };
    {
        let mut state = shared.state.lock();
        state.bytes += length;
        state.fetched += length;
        if let Some(digest) = digest {
            state.sums.insert(number, digest);
        }
        state.chunks.insert(number, slot);
    }
    if done {
        shared.places.add_permits(1);
    }
    shared.arrived.notify_all();
    Ok(())
}

/// Adds and takes away streams.
async fn adapt(shared: Arc<Shared>, streams: Arc<Semaphore>, window: Window, stop: CancellationToken) {
    let mut adapt = Adapt::new(window.streams, window.most_streams.min(window.chunks));
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(INTERVAL) => {}
        }
        let (bytes, failures) = {
            let mut state = shared.state.lock();
            (std::mem::take(&mut state.bytes), std::mem::take(&mut state.failures))
        };
        let next = adapt.after(bytes, failures);
        if next.streams() > adapt.streams() {
            streams.add_permits(next.streams() - adapt.streams());
        }
        for _ in next.streams()..adapt.streams() {
            // Waits until a stream is free to be taken away.
            let Ok(permit) = streams.acquire().await else { return };
            permit.forget();
        }
        adapt = next;
    }
}

impl Shared {
    fn fail(&self, error: &Error) {
        self.state.lock().failed.get_or_insert_with(|| error.to_string());
        self.arrived.notify_all();
    }

    /// Chunks that are known to be zero.
    fn arrived(&self, numbers: Range<u64>) {
        let mut state = self.state.lock();
        state.chunks.extend(numbers.map(|number| (number, Slot::ZERO)));
        drop(state);
        self.arrived.notify_all();
    }

    fn failure(&self, offset: u64, why: &str) -> image::Error {
        let source = std::io::Error::other(format!("{}: {why}", self.name));
        image::Error::Read { offset, length: CHUNK.min(self.size - offset), source }
    }
}

impl Disk for Prefetch {
    fn size(&self) -> u64 {
        self.shared.size
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> image::Result<()> {
        let mut at = offset;
        let mut rest = buffer;
        while !rest.is_empty() {
            let number = at / CHUNK;
            let skip = usize::try_from(at % CHUNK).unwrap_or(0);
            let length = rest.len().min(usize::try_from(CHUNK).unwrap_or(usize::MAX) - skip);
            let (now, later) = rest.split_at_mut(length);
            self.read_chunk(number, skip, now)?;
            at += length as u64;
            rest = later;
        }
        Ok(())
    }

    /// Waits for the chunk at `offset` and goes on while blocks are zero.
    fn next_data(&self, offset: u64) -> image::Result<Option<Range<u64>>> {
        let size = self.shared.size;
        if offset >= size {
            return Ok(None); // the last chunk may be a short one, and this behind its end
        }
        let mut state = self.shared.state.lock();
        let mut at = offset;
        while at < size {
            let (number, within) = (at / CHUNK, at % CHUNK);
            if let Some(slot) = state.chunks.get(&number) {
                let base = number * CHUNK;
                if let Some(run) = slot.blocks.next(within) {
                    return Ok(Some(base + run.start..(base + run.end).min(size)));
                }
                at = base + CHUNK;
            } else {
                if let Some(why) = &state.failed {
                    return Err(self.shared.failure(number * CHUNK, why));
                }
                self.shared.arrived.wait(&mut state);
            }
        }
        Ok(None)
    }
}

impl Prefetch {
    fn read_chunk(&self, number: u64, skip: usize, buffer: &mut [u8]) -> image::Result<()> {
        let failed = |why: &str| self.shared.failure(number * CHUNK, why);
        let range = skip as u64..(skip + buffer.len()) as u64;
        let mut state = self.shared.state.lock();
        loop {
            if let Some(slot) = state.chunks.get_mut(&number) {
                let bytes = slot.blocks.within(&range);
                if bytes == 0 {
                    buffer.fill(0);
                    return Ok(());
                }
                // Each byte is read once: when all were, the chunk is given up.
                slot.left = slot.left.checked_sub(bytes).ok_or_else(|| failed("it was read before"))?;
                let data = if slot.left == 0 { slot.data.take() } else { slot.data.clone() };
                let last = slot.left == 0;
                drop(state);
                let data = data.ok_or_else(|| failed("it was read before"))?;
                let part = data.get(skip..skip + buffer.len()).ok_or_else(|| failed("past its end"))?;
                buffer.copy_from_slice(part);
                drop(data);
                if last {
                    self.shared.places.add_permits(1);
                }
                return Ok(());
            }
            if let Some(why) = &state.failed {
                return Err(failed(why));
            }
            self.shared.arrived.wait(&mut state);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may fail by panicking")]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use async_trait::async_trait;

    use super::*;

    /// Fails the first time that each chunk is read, in one of several ways.
    struct Flaky {
        data: Vec<u8>,
        calls: AtomicU32,
        passing: bool,
    }

    #[async_trait]
    impl Source for Flaky {
        fn name(&self) -> &'static str {
            "flaky"
        }

        fn size(&self) -> u64 {
            self.data.len() as u64
        }

        async fn read(&self, range: Range<u64>) -> Result<Bytes> {
            let call = self.calls.fetch_add(1, Ordering::SeqCst);
            let (start, end) = (usize::try_from(range.start).unwrap(), usize::try_from(range.end).unwrap());
            match call % 4 {
                0 if self.passing => Err(Error::Connection { what: "x".into(), wrong: "cut".into() }),
                1 => Ok(Bytes::copy_from_slice(&self.data[start..end - 1])),
                _ if !self.passing => Err(Error::Request("no".into())),
                _ => Ok(Bytes::copy_from_slice(&self.data[start..end])),
            }
        }
    }

    fn flaky(passing: bool) -> Arc<Flaky> {
        let chunk = usize::try_from(CHUNK).unwrap();
        let mut data = vec![0; 5 * chunk + 77];
        for (at, byte) in data.iter_mut().enumerate() {
            if (at / chunk).is_multiple_of(2) || at / chunk == 5 {
                *byte = u8::try_from(at % 253).unwrap();
            }
        }
        Arc::new(Flaky { data, calls: AtomicU32::new(0), passing })
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_is_read_through_failures_is_what_the_source_holds() {
        let source = flaky(true);
        let disk = Arc::new(Prefetch::start(source.clone(), 0, Window { chunks: 3, ..Window::default() }));
        let reader = disk.clone();
        let read = tokio::task::spawn_blocking(move || {
            let mut out = vec![0; usize::try_from(reader.size()).unwrap()];
            let mut at = 0;
            while let Some(range) = reader.next_data(at).unwrap() {
                let (start, end) =
                    (usize::try_from(range.start).unwrap(), usize::try_from(range.end).unwrap());
                reader.read_at(range.start, &mut out[start..end]).unwrap();
                at = range.end;
            }
            out
        });
        assert!(read.await.unwrap() == source.data);
        let sums = disk.take_sums(u64::MAX);
        assert_eq!(sums.0.keys().copied().collect::<Vec<_>>(), [0, 2, 4, 5], "zeros have no digest");
        sums.verify("disk", &image::MemoryDisk(source.data.clone()), source.size()).unwrap();
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn behind_the_end_of_a_short_last_chunk_there_is_nothing() {
        let disk = Prefetch::start(flaky(true), 0, Window::default());
        let read = tokio::task::spawn_blocking(move || {
            (disk.next_data(disk.size() - 10).unwrap(), disk.next_data(disk.size()).unwrap(), disk.size())
        });
        let (last, behind, size) = read.await.unwrap();
        assert_eq!(last, Some(size - 10..size));
        assert_eq!(behind, None);
    }

    /// One MiB of data at the beginning, and the source knows that nothing follows.
    struct Sparse;

    #[async_trait]
    impl Source for Sparse {
        fn name(&self) -> &'static str {
            "sparse"
        }

        fn size(&self) -> u64 {
            2 * CHUNK
        }

        async fn read(&self, range: Range<u64>) -> Result<Bytes> {
            let length = usize::try_from(range.end - range.start).unwrap();
            let data = usize::try_from((1_u64 << 20).saturating_sub(range.start)).unwrap().min(length);
            Ok([vec![7; data], vec![0; length - data]].concat().into())
        }

        async fn next_data(&self, offset: u64) -> Result<Option<Range<u64>>> {
            Ok((offset < 1 << 20).then_some(offset..1 << 20))
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_chunk_that_is_gone_on_with_behind_its_data_has_its_digest() {
        let disk = Arc::new(Prefetch::start(Arc::new(Sparse), 3 << 20, Window::default()));
        let reader = disk.clone();
        let read = tokio::task::spawn_blocking(move || {
            let mut at = 3 << 20;
            while let Some(range) = reader.next_data(at).unwrap() {
                let mut data = vec![1; usize::try_from(range.end - range.start).unwrap()];
                reader.read_at(range.start, &mut data).unwrap();
                assert!(image::is_zero(&data), "{range:?}");
                at = range.end;
            }
        });
        read.await.unwrap();
        assert_eq!(disk.take_sums(u64::MAX).0.keys().copied().collect::<Vec<_>>(), [0]);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_failure_that_will_not_pass_reaches_the_reader() {
        let disk = Prefetch::start(flaky(false), 0, Window::default());
        let read = tokio::task::spawn_blocking(move || disk.next_data(0)).await.unwrap();
        assert!(read.is_err());
    }
}
