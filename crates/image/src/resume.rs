//! How far a conversion is, and what it takes to go on from there in another process.

use serde::{Deserialize, Serialize};

use crate::pipeline::Chunk;
use crate::{Progress, Result};

/// Where one cluster or grain was put.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct Placement {
    /// The number of the cluster or grain on the guest's disk.
    pub index: u64,
    /// Its table entry, in the terms of the format.
    pub entry: u64,
}

/// A point that a conversion can go on from: with the same disk and options the rest is the same,
/// byte for byte, as it would have been.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
pub struct Resume {
    /// Everything before this guest offset is stored.
    pub done: u64,
    /// Bytes of the disk that held data, up to there.
    pub data: u64,
    /// The length of what is stored (raw: the bytes that were written).
    pub stored: u64,
    /// What was put where, in order.
    pub placements: Vec<Placement>,
}

/// Who follows a conversion.
pub trait Watch {
    /// How far it is, after every piece; `false` stops it.
    fn progress(&mut self, now: Progress) -> bool;

    /// Whether there will be checkpoints: placements are kept for them.
    fn notes(&self) -> bool {
        true
    }

    /// Whether a checkpoint is due. It costs a flush of the sink.
    fn due(&mut self, _now: Progress) -> bool {
        false
    }

    /// The sink was flushed. `at.placements` are those since the last checkpoint.
    ///
    /// # Errors
    /// Ends the conversion.
    fn checkpoint(&mut self, _at: Resume) -> Result<()> {
        Ok(())
    }
}

impl<F: FnMut(Progress) -> bool> Watch for F {
    fn progress(&mut self, now: Progress) -> bool {
        self(now)
    }

    fn notes(&self) -> bool {
        false
    }
}

/// What every writer of a format offers to the conversion.
pub(crate) trait Place {
    /// Stores clusters or grains; notes where they are.
    fn put(&mut self, chunk: &Chunk<'_>, placed: &mut Vec<Placement>) -> Result<()>;

    /// Hands everything to the sink; answers the length of what is stored.
    fn flush(&mut self) -> Result<u64>;
}
