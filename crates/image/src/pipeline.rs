//! Parallel encoding with output in guest order.
//!
//! ```text
//!  cursor ─► worker: read a piece, leave out zeros, encode ─┐
//!  cursor ─► worker: …                                      ├─► caller: puts pieces in order
//!     ▲                                                     │
//!     └──────────────── buffers, used again ────────────────┘
//! ```
//!
//! Workers take the next piece of the disk from a shared cursor, read it, leave out zeros and
//! encode it; the caller's thread receives the results and puts them in order. A worker never
//! runs further ahead of the writer than the window, so memory is bounded by
//! `window × piece size` whatever the disk and however slow the sink. Buffers go round, so nothing is
//! allocated for a cluster, and what is stored as it is goes from the buffer that it was read into
//! to the sink, whole runs of clusters at once.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Condvar, Mutex, PoisonError};
use std::thread;

use crate::{Disk, Error, Result};

/// Bytes that one worker encodes in one go: large enough that locks and system calls cost nothing,
/// small enough that a window of them is a few MiB.
const PIECE: u64 = 1 << 20;

/// What became of a cluster or grain.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Encoded {
    /// It holds nothing but zeros.
    Zeros,
    /// It is stored as it is.
    Same,
    /// What is stored was appended to the output.
    Packed,
}

/// Encodes one cluster or grain.
pub(crate) trait Encode: Send {
    /// Appends what is to be stored to `out`, unless it is the data itself or nothing. The last chunk
    /// of a disk may be a short one.
    fn encode(&mut self, offset: u64, data: &[u8], out: &mut Vec<u8>) -> Result<Encoded>;
}

/// One encoded cluster or grain, or several in a row that are stored as they are.
#[derive(Debug)]
pub(crate) struct Chunk<'a> {
    /// Its place on the guest's disk, in bytes.
    pub offset: u64,
    /// What to store. Of a chunk that is not compressed the last cluster may be short.
    pub data: &'a [u8],
    /// Whether `data` is compressed, and then it is one cluster or grain.
    pub compressed: bool,
}

/// A piece of the disk that was read, and what is to be stored of it.
#[derive(Default)]
struct Filled {
    plain: Vec<u8>,
    packed: Vec<u8>,
    slots: Vec<Slot>,
}

struct Slot {
    offset: u64,
    /// Bytes of the guest's disk.
    guest: u64,
    /// In `packed`, or in `plain`.
    place: Range<usize>,
    compressed: bool,
}

struct Piece {
    number: u64,
    filled: Result<Filled>,
    end: u64,
}

/// How far the workers may go, and buffers that nobody uses.
struct Window {
    state: Mutex<Cursor>,
    moved: Condvar,
    width: u64,
    spare: Mutex<Vec<Filled>>,
}

struct Cursor {
    /// The next piece to hand out.
    next: u64,
    /// The guest offset where it starts.
    offset: u64,
    /// The end of the data that is known to begin at or before `offset`.
    known: u64,
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

/// Runs `put` for everything that holds data, in guest order, with the number of bytes that it takes
/// on the guest's disk, and `progress` with the guest offset up to which everything is done; an error
/// of either ends the run.
pub(crate) fn run<E: Encode>(
    plan: &Plan<'_>,
    encoder: &(dyn Fn() -> Result<E> + Sync),
    put: &mut dyn FnMut(&Chunk<'_>, u64) -> Result<()>,
    progress: &mut dyn FnMut(u64) -> Result<()>,
) -> Result<()> {
    let workers = plan.workers.max(1);
    let width = workers as u64 * 4;
    let window = Window {
        state: Mutex::new(Cursor { next: 0, offset: plan.start, known: 0, written: 0, closed: false }),
        moved: Condvar::new(),
        width,
        spare: Mutex::default(),
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
    put: &mut dyn FnMut(&Chunk<'_>, u64) -> Result<()>,
    progress: &mut dyn FnMut(u64) -> Result<()>,
) -> Result<()> {
    let mut early = BTreeMap::new();
    let mut next = 0;
    while let Ok(piece) = receive.recv() {
        early.insert(piece.number, piece);
        while let Some(piece) = early.remove(&next) {
            let filled = piece.filled?;
            for slot in &filled.slots {
                let from = if slot.compressed { &filled.packed } else { &filled.plain };
                let data = from.get(slot.place.clone()).unwrap_or_default();
                put(&Chunk { offset: slot.offset, data, compressed: slot.compressed }, slot.guest)?;
            }
            window.give_back(filled);
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
    while let Some((number, range)) = window.take(plan) {
        let (filled, end) = match (range, &mut made) {
            (Err(error), _) => (Err(error), 0),
            (Ok((start, end)), Ok(encoder)) => {
                let mut filled = window.spare();
                (encode_piece(plan, encoder, start, end, &mut filled).map(|()| filled), end)
            }
            (Ok((_, end)), Err(_)) => {
                (std::mem::replace(&mut made, Err(Error::Stopped)).map(|_| Filled::default()), end)
            }
        };
        let failed = filled.is_err();
        if send.send(Piece { number, filled, end }).is_err() || failed {
            return;
        }
    }
}

fn encode_piece<E: Encode>(
    plan: &Plan<'_>,
    encoder: &mut E,
    start: u64,
    end: u64,
    filled: &mut Filled,
) -> Result<()> {
    let too_long = |_| crate::disk::past_the_end(start, 0);
    let length = usize::try_from(end - start).map_err(too_long)?;
    let chunk_size = usize::try_from(plan.chunk_size).map_err(too_long)?;
    let Filled { plain, packed, slots } = filled;
    if plain.len() < length {
        plain.resize(length, 0);
    }
    packed.clear();
    slots.clear();
    let piece = plain.get_mut(..length).unwrap_or_default();
    plan.disk.read_at(start, piece)?;
    let (mut offset, mut at) = (start, 0);
    for data in piece.chunks(chunk_size) {
        let before = packed.len();
        let guest = data.len() as u64;
        match (encoder.encode(offset, data, packed)?, slots.last_mut()) {
            (Encoded::Zeros, _) => {}
            (Encoded::Packed, _) => {
                slots.push(Slot { offset, guest, place: before..packed.len(), compressed: true });
            }
            (Encoded::Same, Some(last)) if !last.compressed && last.place.end == at => {
                last.place.end += data.len();
                last.guest += guest;
            }
            (Encoded::Same, _) => {
                slots.push(Slot { offset, guest, place: at..at + data.len(), compressed: false });
            }
        }
        offset += guest;
        at += data.len();
    }
    Ok(())
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
        if cursor.offset >= cursor.known {
            match plan.disk.next_data(cursor.offset) {
                Ok(None) => {
                    cursor.closed = true;
                    return None;
                }
                Ok(Some(data)) => {
                    cursor.offset = data.start - data.start % plan.chunk_size;
                    cursor.known = data.end.next_multiple_of(plan.chunk_size).min(plan.disk.size());
                }
                Err(error) => {
                    cursor.closed = true;
                    let number = cursor.next;
                    cursor.next += 1;
                    return Some((number, Err(error)));
                }
            }
        }
        let start = cursor.offset;
        let end = cursor.known.min(start.saturating_add(PIECE.max(plan.chunk_size)));
        cursor.offset = end;
        let number = cursor.next;
        cursor.next += 1;
        Some((number, Ok((start, end))))
    }

    fn done(&self) {
        self.lock().written += 1;
        self.moved.notify_all();
    }

    fn close(&self) {
        self.lock().closed = true;
        self.moved.notify_all();
    }

    fn spare(&self) -> Filled {
        self.spare.lock().unwrap_or_else(PoisonError::into_inner).pop().unwrap_or_default()
    }

    fn give_back(&self, filled: Filled) {
        self.spare.lock().unwrap_or_else(PoisonError::into_inner).push(filled);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Cursor> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
