//! Buffers for chunks, used again: a new one costs a page fault for each page of it.
//!
//! Of a disk that is a third full, two chunks of three hold nothing but zeros. They are never written anywhere: each
//! piece is looked at when it arrives, while it is in the processor's cache.

use std::sync::{Arc, Weak};

use bytes::Bytes;
use parking_lot::Mutex;

use crate::sums::CHUNK;

/// Buffers that nobody uses.
#[derive(Clone, Debug, Default)]
pub(super) struct Buffers(Arc<Mutex<Vec<Vec<u8>>>>);

/// What is read into a buffer, which goes back when nobody has it any more.
struct Lent {
    data: Vec<u8>,
    home: Weak<Mutex<Vec<Vec<u8>>>>,
}

impl Buffers {
    /// An empty buffer.
    pub fn take(&self) -> Vec<u8> {
        let mut buffer = self.0.lock().pop().unwrap_or_default();
        buffer.clear();
        buffer
    }

    fn give_back(&self, buffer: Vec<u8>) {
        self.0.lock().push(buffer);
    }

    /// What was read into one.
    pub fn lend(&self, data: Vec<u8>) -> Bytes {
        Bytes::from_owner(Lent { data, home: Arc::downgrade(&self.0) })
    }
}

/// The most zeros that come as a slice of these: a chunk.
static ZEROS: [u8; CHUNK_LEN] = [0; CHUNK_LEN];
const CHUNK_LEN: usize = 4 << 20;
const _: () = assert!(CHUNK_LEN as u64 == CHUNK);

/// Pieces that become one buffer.
pub(super) struct Gather<'a> {
    buffers: &'a Buffers,
    length: usize,
    /// Zeros that came before anything else.
    zeros: usize,
    data: Option<Vec<u8>>,
}

impl<'a> Gather<'a> {
    /// For pieces of so many bytes in all.
    pub fn new(buffers: &'a Buffers, length: usize) -> Self {
        Self { buffers, length, zeros: 0, data: None }
    }

    /// The next piece.
    pub fn push(&mut self, piece: &[u8]) {
        match &mut self.data {
            Some(data) => data.extend_from_slice(piece),
            None if image::is_zero(piece) => self.zeros += piece.len(),
            None => {
                let mut data = self.buffers.take();
                data.reserve_exact(self.length);
                data.resize(self.zeros, 0);
                data.extend_from_slice(piece);
                self.data = Some(data);
            }
        }
    }

    /// All of them.
    pub fn done(mut self) -> Bytes {
        match self.data.take() {
            Some(data) => self.buffers.lend(data),
            None if self.zeros <= ZEROS.len() => {
                Bytes::from_static(ZEROS.get(..self.zeros).unwrap_or_default())
            }
            None => vec![0; self.zeros].into(),
        }
    }
}

impl Drop for Gather<'_> {
    fn drop(&mut self) {
        // What broke off leaves its buffer to the next try.
        if let Some(data) = self.data.take() {
            self.buffers.give_back(data);
        }
    }
}

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        &self.data
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        if let Some(home) = self.home.upgrade() {
            home.lock().push(std::mem::take(&mut self.data));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_become_what_they_were_and_zeros_take_no_buffer() {
        let buffers = Buffers::default();
        let gather = |pieces: &[&[u8]], length| {
            let mut gather = Gather::new(&buffers, length);
            for piece in pieces {
                gather.push(piece);
            }
            gather.done()
        };
        assert_eq!(gather(&[&[0; 5], &[0; 7]], 12), [0; 12].as_slice());
        assert_eq!(gather(&[&[0; 2], &[0, 1], &[0; 2]], 6), [0, 0, 0, 1, 0, 0].as_slice());
        assert_eq!(gather(&[&[9; 3], &[0; 3]], 6), [9, 9, 9, 0, 0, 0].as_slice());
        assert_eq!(gather(&[], 0), [].as_slice());
        let long = CHUNK_LEN + 1;
        assert_eq!(gather(&[&vec![0; long]], long), vec![0; long]);
        assert_eq!(buffers.0.lock().len(), 1, "the two that held data used the same one");
        let mut broken = Gather::new(&buffers, 10);
        broken.push(&[1]);
        assert!(buffers.0.lock().is_empty());
        drop(broken);
        assert_eq!(buffers.0.lock().len(), 1, "what broke off leaves its buffer");
    }

    #[test]
    fn a_buffer_comes_back_with_its_last_handle() {
        let buffers = Buffers::default();
        let mut first = buffers.take();
        first.extend_from_slice(&[7; 100]);
        let place = first.as_ptr();
        let lent = buffers.lend(first);
        let other = lent.slice(10..20);
        drop(lent);
        let another = buffers.take();
        assert_ne!(another.as_ptr(), place, "somebody still has it");
        assert_eq!(other.as_ref(), [7; 10]);
        drop(other);
        let again = buffers.take();
        assert!(again.is_empty() && again.as_ptr() == place);
        let lent = buffers.lend(again);
        drop(buffers);
        drop(lent);
    }
}
