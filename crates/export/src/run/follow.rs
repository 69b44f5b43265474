//! Follows the conversion of one disk: progress, checkpoints, the wish to stop.

use std::fs::File;
use std::sync::Arc;
use std::time::{Duration, Instant};

use image::{Progress, Resume, Watch};
use tokio_util::sync::CancellationToken;

use super::{Event, Listener};
use crate::Prefetch;
use crate::journal::Journal;
use crate::sums::Sums;

/// Progress is told this often.
const TELL: Duration = Duration::from_millis(200);

/// Where checkpoints go.
pub(super) struct Checkpoints {
    pub journal: Journal,
    /// The file that has to be on the disk before the journal says so.
    pub file: File,
    pub bytes: u64,
    pub time: Duration,
}

/// See the module.
pub(super) struct Follow {
    pub disk: String,
    pub prefetch: Arc<Prefetch>,
    pub listener: Listener,
    pub stop: CancellationToken,
    /// The digests of everything before the last checkpoint.
    pub sums: Sums,
    pub checkpoints: Option<Checkpoints>,
    told: Option<Instant>,
    noted: (Instant, u64),
}

impl Follow {
    pub fn new(
        disk: &str,
        prefetch: Arc<Prefetch>,
        listener: Listener,
        stop: CancellationToken,
        sums: Sums,
        checkpoints: Option<Checkpoints>,
    ) -> Self {
        let noted = (Instant::now(), 0);
        Self { disk: disk.into(), prefetch, listener, stop, sums, checkpoints, told: None, noted }
    }

    /// Takes the digests that are left; the disk is read to its end.
    pub fn finish(mut self) -> (Sums, Option<Checkpoints>) {
        self.sums.0.extend(self.prefetch.take_sums(u64::MAX).0);
        (self.sums, self.checkpoints)
    }

    fn tell(&self, now: Progress) {
        (self.listener)(Event::Progress {
            disk: self.disk.clone(),
            size: now.total,
            done: now.done,
            data: now.data,
            stored: now.stored,
            fetched: self.prefetch.fetched(),
        });
    }
}

impl Watch for Follow {
    fn progress(&mut self, now: Progress) -> bool {
        if self.told.is_none_or(|told| told.elapsed() >= TELL) || now.done == now.total {
            self.told = Some(Instant::now());
            self.tell(now);
        }
        !self.stop.is_cancelled()
    }

    fn due(&mut self, now: Progress) -> bool {
        let Some(checkpoints) = &self.checkpoints else { return false };
        now.done.saturating_sub(self.noted.1) >= checkpoints.bytes
            || self.noted.0.elapsed() >= checkpoints.time
    }

    fn checkpoint(&mut self, at: Resume) -> image::Result<()> {
        let Some(checkpoints) = &mut self.checkpoints else { return Ok(()) };
        let sums = self.prefetch.take_sums(at.done);
        checkpoints.file.sync_data().map_err(image::Error::Note)?;
        checkpoints
            .journal
            .note(&at, &sums)
            .map_err(|error| image::Error::Note(std::io::Error::other(error.to_string())))?;
        self.sums.0.extend(sums.0);
        self.noted = (Instant::now(), at.done);
        Ok(())
    }
}
