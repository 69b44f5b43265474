//! What was written last, as it was written: watches are about to send it. Older texts are packed.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use super::object::Stored;
use crate::packing::Packer;

/// Bytes that are kept as they were written.
const BYTES: usize = 1 << 20;

#[derive(Debug, Default)]
pub(super) struct Fresh {
    /// Kinds and objects, oldest first.
    written: VecDeque<(Arc<str>, Arc<Stored>)>,
    bytes: usize,
    packers: HashMap<Arc<str>, Packer>,
}

impl Fresh {
    /// Adds what was written, and packs the oldest that no longer fit.
    pub fn push(&mut self, kind: &Arc<str>, stored: Arc<Stored>) {
        self.bytes += stored.size();
        self.written.push_back((kind.clone(), stored));
        while self.bytes > BYTES {
            let Some((kind, oldest)) = self.written.pop_front() else { break };
            self.bytes -= oldest.size();
            // Of what only this queue still holds nobody will ask again.
            if Arc::strong_count(&oldest) > 1 {
                oldest.pack(self.packers.entry(kind).or_default());
            }
        }
    }
}
