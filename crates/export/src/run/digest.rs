//! The SHA-256 of a result.
//!
//! It goes through a file in order, on one processor, and takes zeros like anything else: for a raw disk that is as long
//! as the export itself. So it follows the checkpoints of a file that grows from its beginning to its end, on a thread of
//! its own.
//!
//! ```text
//!  hashed │ safe to be read: before the last checkpoint │ being written
//!  ───────►                                             │
//! ```
//!
//! A qcow2 begins with a header that is known last, and an OVA with a descriptor: theirs is taken when they are whole.

use std::fs::File;
use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

use image::ovf::Sum;
use image::{Disk as _, RawDisk, Resume};

use super::{FileReport, Target};
use crate::{Error, Result};

/// What is read at once, in bytes.
const BUFFER: usize = 1 << 20;

/// The digest of a file so far.
#[derive(Default)]
struct Partly {
    sum: Sum,
    /// Bytes that it is the digest of.
    length: u64,
}

/// Takes the digest of a file that grows.
pub(super) struct Growing {
    reached: Sender<u64>,
    thread: JoinHandle<Result<Partly>>,
    /// A raw file has the length of the disk from the beginning, and grows by what is done of the disk.
    raw: bool,
}

impl Growing {
    /// Of a result that grows from its beginning to its end; `None`: it does not.
    pub fn of(target: Target, path: &Path) -> Option<Self> {
        let raw = match target {
            Target::Raw => true,
            Target::Vmdk | Target::Ovf => false,
            Target::Qcow2 | Target::Ova => return None,
        };
        let (reached, checkpoints) = channel();
        let path = path.to_path_buf();
        let thread = std::thread::spawn(move || follow(&path, &checkpoints));
        Some(Self { reached, thread, raw })
    }

    /// What is before a checkpoint never changes again.
    pub fn reached(&self, at: &Resume) {
        // Whoever listens has gone only if the file could not be read, and says so in the end.
        let _ = self.reached.send(if self.raw { at.done } else { at.stored });
    }

    fn partly(self) -> Result<Partly> {
        drop(self.reached);
        self.thread.join().map_err(|_| Error::Stopped)?
    }
}

fn follow(path: &Path, checkpoints: &Receiver<u64>) -> Result<Partly> {
    let mut partly = Partly::default();
    while let Ok(reached) = checkpoints.recv() {
        partly.go_on(path, Some(reached))?;
    }
    Ok(partly)
}

/// Length and digest of a whole file, of which some may be known.
///
/// # Errors
/// When it cannot be read.
pub(super) fn whole(path: &Path, name: &str, growing: Option<Growing>) -> Result<FileReport> {
    let mut partly = growing.map(Growing::partly).transpose()?.unwrap_or_default();
    partly.go_on(path, None)?;
    Ok(FileReport { name: name.into(), size: partly.length, sha256: Some(partly.sum.hex()) })
}

impl Partly {
    /// Takes in the bytes up to a place, or to the end. Holes are not read: what a read of them costs, and what it
    /// leaves in the page cache, is that of data.
    fn go_on(&mut self, path: &Path, to: Option<u64>) -> Result<()> {
        // Opened anew: a duplicate would share its position with the writer.
        let file = File::open(path).map_err(Error::file("reading", path))?;
        let failed = |source| Error::Image { what: path.display().to_string(), source };
        let disk = RawDisk::open(file).map_err(failed)?;
        let end = to.unwrap_or(u64::MAX).min(disk.size());
        let (zeros, mut buffer) = (vec![0; BUFFER], vec![0; BUFFER]);
        while self.length < end {
            let data = disk.next_data(self.length).map_err(failed)?.unwrap_or(end..end);
            for length in pieces(self.length..data.start.min(end)) {
                self.take(zeros.get(..length).unwrap_or_default());
            }
            for length in pieces(self.length..data.end.min(end)) {
                let part = buffer.get_mut(..length).unwrap_or_default();
                disk.read_at(self.length, part).map_err(failed)?;
                self.take(part);
            }
        }
        Ok(())
    }

    fn take(&mut self, data: &[u8]) {
        self.sum.update(data);
        self.length += data.len() as u64;
    }
}

/// The lengths of the pieces of a range.
fn pieces(range: std::ops::Range<u64>) -> impl Iterator<Item = usize> {
    let (step, length) = (BUFFER as u64, range.end.saturating_sub(range.start));
    (0..length.div_ceil(step))
        .map(move |piece| usize::try_from(step.min(length - piece * step)).unwrap_or(BUFFER))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may fail by panicking")]
mod tests {
    use std::os::unix::fs::FileExt as _;

    use super::*;
    use crate::sums::{hex, sha256};

    /// A file that grows in steps has the digest of what it is in the end, whether it grows in length (a VMDK) or was as
    /// long as that from the beginning (a raw disk), and whatever was there behind a checkpoint before.
    #[test]
    fn the_digest_of_a_file_that_grew_is_that_of_the_whole() {
        let home = tempfile::tempdir().unwrap();
        let content: Vec<u8> = (0..3 * BUFFER + 77)
            .map(|at| if at / 300_000 % 2 == 0 { 0 } else { u8::try_from(at % 251).unwrap() })
            .collect();
        for target in [Target::Raw, Target::Vmdk, Target::Ovf] {
            let path = home.path().join(format!("{target:?}"));
            let file = File::create(&path).unwrap();
            if target == Target::Raw {
                file.set_len(content.len() as u64).unwrap();
            }
            let growing = Growing::of(target, &path).unwrap();
            let mut written = 0;
            for end in [0, 1, 70_000, BUFFER, BUFFER, 2 * BUFFER + 5] {
                file.write_all_at(&content[written..end], written as u64).unwrap();
                // What is written behind a checkpoint is not final.
                file.write_all_at(b"not yet", end as u64).unwrap();
                written = end;
                let (done, stored) = if target == Target::Raw { (end, 0) } else { (0, end) };
                let (done, stored) = (done as u64, stored as u64);
                growing.reached(&Resume { done, stored, ..Resume::default() });
            }
            file.write_all_at(&content[written..], written as u64).unwrap();
            let report = whole(&path, "disk", Some(growing)).unwrap();
            assert_eq!(report.size, content.len() as u64);
            assert_eq!(report.sha256, Some(hex(&sha256(&content))), "{target:?}");
            assert_eq!(whole(&path, "disk", None).unwrap(), report);
        }
        assert!(Growing::of(Target::Qcow2, home.path()).is_none());
        assert!(Growing::of(Target::Ova, home.path()).is_none());
    }

    #[test]
    fn a_file_that_is_gone_is_said_in_the_end() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("gone");
        let growing = Growing::of(Target::Raw, &path).unwrap();
        growing.reached(&Resume { done: 5, ..Resume::default() });
        let wrong = whole(&path, "disk", Some(growing)).unwrap_err().to_string();
        assert!(wrong.contains("gone"), "{wrong}");
    }
}
