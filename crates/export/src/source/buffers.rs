//! Buffers for chunks, used again: a new one costs a page fault for each page of it.

use std::sync::{Arc, Weak};

use bytes::Bytes;
use parking_lot::Mutex;

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

    /// What was read into one.
    pub fn lend(&self, data: Vec<u8>) -> Bytes {
        Bytes::from_owner(Lent { data, home: Arc::downgrade(&self.0) })
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
