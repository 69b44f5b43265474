//! Follows the conversion of one disk: progress, checkpoints, the wish to stop.
//!
//! A checkpoint is written on a thread of its own: first what is stored is synced, then the journal says so. The
//! conversion goes on meanwhile, and the next checkpoint is due when this one is done.

use std::fs::File;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use image::{Progress, Resume, Watch};
use tokio_util::sync::CancellationToken;

use super::digest::Growing;
use super::{Event, Listener};
use crate::journal::Journal;
use crate::sums::Sums;
use crate::{Error, Prefetch, Result};

/// Progress is told this often.
const TELL: Duration = Duration::from_millis(200);

/// Where checkpoints go.
pub(super) struct Checkpoints {
    pub journal: Journal,
    /// The file that has to be on the disk before the journal says so.
    pub file: File,
    pub bytes: u64,
    pub time: Duration,
    /// Takes the digest of the file while it grows.
    pub growing: Option<Growing>,
}

impl Checkpoints {
    /// Writes one.
    fn write(mut self, at: &Resume, sums: &Sums) -> Result<Self> {
        self.file.sync_data().map_err(|source| Error::File {
            doing: "syncing what was written for",
            path: self.journal.path().to_path_buf(),
            source,
        })?;
        self.journal.note(at, sums)?;
        if let Some(growing) = &self.growing {
            growing.reached(at);
        }
        Ok(self)
    }
}

/// Who has them.
enum Keeper {
    Nobody,
    Idle(Checkpoints),
    Writing(JoinHandle<Result<Checkpoints>>),
}

/// See the module.
pub(super) struct Follow {
    pub disk: String,
    pub prefetch: Arc<Prefetch>,
    pub listener: Listener,
    pub stop: CancellationToken,
    /// The digests of everything before the last checkpoint.
    pub sums: Sums,
    keeper: Keeper,
    /// When a checkpoint is due: bytes, time.
    often: (u64, Duration),
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
        let often = checkpoints.as_ref().map_or((u64::MAX, Duration::MAX), |all| (all.bytes, all.time));
        let keeper = checkpoints.map_or(Keeper::Nobody, Keeper::Idle);
        Self { disk: disk.into(), prefetch, listener, stop, sums, keeper, often, told: None, noted }
    }

    /// Waits for the last checkpoint and takes the digests that are left; the disk is read to its end.
    pub fn finish(mut self) -> Result<(Sums, Option<Checkpoints>)> {
        self.sums.0.extend(self.prefetch.take_sums(u64::MAX).0);
        let checkpoints = match self.keeper {
            Keeper::Nobody => None,
            Keeper::Idle(checkpoints) => Some(checkpoints),
            Keeper::Writing(thread) => Some(joined(thread)?),
        };
        Ok((self.sums, checkpoints))
    }

    fn tell(&self, now: Progress) {
        (self.listener)(Event::Progress {
            disk: self.disk.clone(),
            size: now.total,
            done: now.done,
            data: now.data,
            stored: now.stored,
            fetched: self.prefetch.fetched(),
            passes_left: now.passes_left,
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
        let free = match &self.keeper {
            Keeper::Nobody => false,
            Keeper::Idle(_) => true,
            Keeper::Writing(thread) => thread.is_finished(),
        };
        let (bytes, time) = self.often;
        free && (now.done.saturating_sub(self.noted.1) >= bytes || self.noted.0.elapsed() >= time)
    }

    fn checkpoint(&mut self, at: Resume) -> image::Result<()> {
        let failed = |error: Error| image::Error::Note(std::io::Error::other(error.to_string()));
        let checkpoints = match std::mem::replace(&mut self.keeper, Keeper::Nobody) {
            Keeper::Nobody => return Ok(()),
            Keeper::Idle(checkpoints) => checkpoints,
            Keeper::Writing(thread) => joined(thread).map_err(failed)?,
        };
        let sums = self.prefetch.take_sums(at.done);
        self.noted = (Instant::now(), at.done);
        self.sums.0.extend(sums.0.iter());
        self.keeper = Keeper::Writing(std::thread::spawn(move || checkpoints.write(&at, &sums)));
        Ok(())
    }
}

fn joined(thread: JoinHandle<Result<Checkpoints>>) -> Result<Checkpoints> {
    thread.join().map_err(|_| Error::Stopped).flatten()
}
