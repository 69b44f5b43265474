//! Parallel encoding with output in guest order.
//!
//! Workers take the next piece of the disk from a shared cursor, read it, leave out zeros and
//! encode it; the caller's thread receives the results and puts them in order. A worker never
//! runs further ahead of the writer than the window, so memory is bounded by
//! `window × piece size` whatever the disk and however slow the sink.

use std::collections::BTreeMap;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Condvar, Mutex, PoisonError};
use std::thread;

use crate::{Disk, Error, Result};

/// Guest clusters (or grains) that one worker encodes in one go: large enough that locks cost
/// nothing, small enough that a window of them is a few MiB.
const CHUNKS_PER_PIECE: u64 = 16;

/// Encodes one cluster or grain.
pub(crate) trait Encode: Send {
    /// The bytes to store, or `None` when there is nothing but zeros.
    fn encode(&mut self, offset: u64, data: &[u8]) -> Result<Option<Vec<u8>>>;

    /// Whether [`Encode::encode`]'s last answer is compressed.
    fn compressed(&self) -> bool {
        false
    }
}

/// One encoded cluster or grain.
#[derive(Debug)]
pub(crate) struct Chunk {
    /// Its place on the guest's disk, in bytes.
    pub offset: u64,
    /// What to store; `None`: zeros.
    pub encoded: Option<Vec<u8>>,
    /// Whether `encoded` is compressed.
    pub compressed: bool,
}

struct Piece {
    number: u64,
    chunks: Result<Vec<Chunk>>,
    end: u64,
}

/// How far the workers may go.
struct Window {
    state: Mutex<Cursor>,
    moved: Condvar,
    width: u64,
}

struct Cursor {
    /// The next piece to hand out.
    next: u64,
    /// The guest offset where it starts.
    offset: u64,
    /// Pieces that the writer is done with.
    written: u64,
    closed: bool,
}

/// What a run needs to know.
pub(crate) struct Plan<'a> {
    pub disk: &'a dyn Disk,
    /// Where to begin, in guest bytes; a multiple of `chunk_size`.
    pub start: u64,
    /// Bytes in a cluster or grain.
    pub chunk_size: u64,
    /// Threads that encode; at least 1.
    pub workers: usize,
}

/// Runs `put` for every chunk that holds data, in guest order, and `progress` with the guest
/// offset up to which everything is done; an error of either ends the run.
pub(crate) fn run<E: Encode>(
    plan: &Plan<'_>,
    encoder: &(dyn Fn() -> Result<E> + Sync),
    put: &mut dyn FnMut(Chunk) -> Result<()>,
    progress: &mut dyn FnMut(u64) -> Result<()>,
) -> Result<()> {
    let workers = plan.workers.max(1);
    let width = workers as u64 * 4;
    let window = Window {
        state: Mutex::new(Cursor { next: 0, offset: plan.start, written: 0, closed: false }),
        moved: Condvar::new(),
        width,
    };
    let (send, receive) = sync_channel(workers * 4);
    thread::scope(|scope| {
        for _ in 0..workers {
            let send = send.clone();
            let window = &window;
            scope.spawn(move || work(plan, encoder, window, &send));
        }
        drop(send);
        let outcome = write_in_order(&receive, &window, put, progress);
        window.close();
        // A worker may be blocked on a full channel: taking the receiver away frees it.
        drop(receive);
        outcome
    })
}

fn write_in_order(
    receive: &Receiver<Piece>,
    window: &Window,
    put: &mut dyn FnMut(Chunk) -> Result<()>,
    progress: &mut dyn FnMut(u64) -> Result<()>,
) -> Result<()> {
    let mut early = BTreeMap::new();
    let mut next = 0;
    while let Ok(piece) = receive.recv() {
        early.insert(piece.number, piece);
        while let Some(piece) = early.remove(&next) {
            for chunk in piece.chunks? {
                put(chunk)?;
            }
            next += 1;
            window.done();
            progress(piece.end)?;
        }
    }
    Ok(())
}

fn work<E: Encode>(
    plan: &Plan<'_>,
    encoder: &(dyn Fn() -> Result<E> + Sync),
    window: &Window,
    send: &SyncSender<Piece>,
) {
    let mut made = encoder();
    let mut buffer = Vec::new();
    while let Some((number, range)) = window.take(plan) {
        let (chunks, end) = match (range, &mut made) {
            (Err(error), _) => (Err(error), 0),
            (Ok((start, end)), Ok(encoder)) => (encode_piece(plan, encoder, start, end, &mut buffer), end),
            (Ok((_, end)), Err(_)) => {
                (std::mem::replace(&mut made, Err(Error::Stopped)).map(|_| Vec::new()), end)
            }
        };
        let failed = chunks.is_err();
        if send.send(Piece { number, chunks, end }).is_err() || failed {
            return;
        }
    }
}

fn encode_piece<E: Encode>(
    plan: &Plan<'_>,
    encoder: &mut E,
    start: u64,
    end: u64,
    buffer: &mut Vec<u8>,
) -> Result<Vec<Chunk>> {
    let length = usize::try_from(end - start).map_err(|_| crate::disk::past_the_end(start, 0))?;
    buffer.resize(length, 0);
    plan.disk.read_at(start, buffer)?;
    let chunk_size = usize::try_from(plan.chunk_size).map_err(|_| crate::disk::past_the_end(start, 0))?;
    let mut chunks = Vec::with_capacity(length.div_ceil(chunk_size));
    let mut offset = start;
    for data in buffer.chunks(chunk_size) {
        if let Some(encoded) = encoder.encode(offset, data)? {
            chunks.push(Chunk { offset, encoded: Some(encoded), compressed: encoder.compressed() });
        }
        offset += data.len() as u64;
    }
    Ok(chunks)
}

impl Window {
    /// The next piece that may hold data: its number and its range in guest bytes.
    fn take(&self, plan: &Plan<'_>) -> Option<(u64, Result<(u64, u64)>)> {
        let mut cursor = self.lock();
        while !cursor.closed && cursor.next >= cursor.written + self.width {
            cursor = self.moved.wait(cursor).unwrap_or_else(PoisonError::into_inner);
        }
        if cursor.closed {
            return None;
        }
        let range = match plan.disk.next_data(cursor.offset) {
            Ok(None) => {
                cursor.closed = true;
                return None;
            }
            Ok(Some(data)) => {
                let start = data.start - data.start % plan.chunk_size;
                let limit = start.saturating_add(plan.chunk_size * CHUNKS_PER_PIECE);
                let end = data.end.next_multiple_of(plan.chunk_size).min(limit).min(plan.disk.size());
                cursor.offset = end;
                Ok((start, end))
            }
            Err(error) => {
                cursor.closed = true;
                Err(error)
            }
        };
        let number = cursor.next;
        cursor.next += 1;
        Some((number, range))
    }

    fn done(&self) {
        self.lock().written += 1;
        self.moved.notify_all();
    }

    fn close(&self) {
        self.lock().closed = true;
        self.moved.notify_all();
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Cursor> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
