//! What is compiled from stored objects and kept until they change.

use std::sync::Arc;

use arc_swap::ArcSwap;

/// One compiled value and the revisions of the objects that it was made from.
#[derive(Debug)]
pub struct Cached<T, const N: usize = 1>(ArcSwap<([u64; N], T)>);

impl<T: Default, const N: usize> Default for Cached<T, N> {
    fn default() -> Self {
        Self(ArcSwap::from_pointee(([0; N], T::default())))
    }
}

impl<T, const N: usize> Cached<T, N> {
    /// The value at these revisions, read before the objects are: what changes meanwhile is compiled again by the next
    /// request. `make` gets the value so far.
    pub fn at(&self, revisions: [u64; N], make: impl FnOnce(&T) -> T) -> Arc<([u64; N], T)> {
        let current = self.0.load_full();
        if current.0 == revisions {
            return current;
        }
        let compiled = Arc::new((revisions, make(&current.1)));
        self.0.store(Arc::clone(&compiled));
        compiled
    }
}
