//! What survives a crash: a file beside the result with how far it is.
//!
//! ```text
//!  line 1: what is exported from where into what, and how            } each line ends in a checksum,
//!  line n: done, stored, placements and digests since the last line  } a torn last line is dropped
//! ```
//!
//! A line is written and synced after what it speaks of was synced, so after a crash the result
//! holds at least what the journal says. What lies behind it is cut off and made again: the same
//! bytes, since output depends on content and options alone.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

use image::{Placement, Resume};
use serde::{Deserialize, Serialize};

use crate::sums::{Sums, hex, sha256, unhex};
use crate::{Error, Result};

/// Changes whenever the encoders' output, the digests or this file's form change: an older journal cannot be
/// gone on with.
const VERSION: u32 = 3;
/// The longest line that is read: a checkpoint has some thousands of placements.
const MAX_LINE: u64 = 256 << 20;

/// What a journal is about; the same again, or it is not gone on with.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Head {
    version: u32,
    /// The disk, for example `VirtualMachine default/web volume root`.
    pub source: String,
    /// In bytes.
    pub size: u64,
    /// The format, the compression, its level, the cluster size.
    pub options: String,
}

impl Head {
    /// A head of this version.
    pub fn new(source: &str, size: u64, options: &str) -> Self {
        Self { version: VERSION, source: source.into(), size, options: options.into() }
    }
}

#[derive(Serialize, Deserialize)]
struct Line {
    done: u64,
    data: u64,
    stored: u64,
    /// The image is whole, and this long.
    #[serde(default)]
    whole: bool,
    /// Index and entry, each as the difference to the one before.
    placements: Vec<(i64, i64)>,
    sums: BTreeMap<u64, String>,
}

/// An open journal.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    file: File,
    last: Placement,
}

/// What an earlier run left.
#[derive(Debug, Default)]
pub struct Past {
    /// Where to go on; `done` 0: at the beginning.
    pub resume: Resume,
    /// The digests up to there.
    pub sums: Sums,
    /// The image was whole, with the length `resume.stored`.
    pub whole: bool,
}

impl Journal {
    /// Begins a journal; one that is there is replaced.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn create(path: &Path, head: &Head) -> Result<Self> {
        let file = File::create(path).map_err(Error::file("creating the journal", path))?;
        let mut journal = Self { path: path.into(), file, last: Placement { index: 0, entry: 0 } };
        journal.append(&serde_json::to_string(head).unwrap_or_default())?;
        sync_parent(path)?;
        Ok(journal)
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Opens the journal of an earlier run, or begins one when there is none.
    ///
    /// # Errors
    /// When it is about something else.
    pub fn open(path: &Path, head: &Head) -> Result<(Self, Past)> {
        let file = match OpenOptions::new().read(true).write(true).open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Ok((Self::create(path, head)?, Past::default()));
            }
            Err(error) => return Err(Error::file("opening the journal", path)(error)),
        };
        let reading = Error::file("reading the journal", path);
        let mut lines = Lines { reader: BufReader::new(&file), length: 0 };
        let Some(first) = lines.next().map_err(&reading)? else {
            // The crash came before the first line was whole.
            return Ok((Self::create(path, head)?, Past::default()));
        };
        let wrong = |wrong: String| Error::Journal { path: path.into(), wrong };
        let found: Option<Head> = serde_json::from_str(&first).ok();
        if let Some(found) = found.as_ref().filter(|found| found.version != head.version) {
            return Err(wrong(format!(
                "is of another release (form {}, and not {}), whose bytes differ; remove it to start again",
                found.version, head.version
            )));
        }
        if found.as_ref() != Some(head) {
            let found = found.map_or("something else".into(), |found| {
                format!("`{}` of {} bytes as {}", found.source, found.size, found.options)
            });
            let asked = format!("`{}` of {} bytes as {}", head.source, head.size, head.options);
            return Err(wrong(format!(
                "is about {found} and not about {asked}; ask for the same, or remove it to start again"
            )));
        }
        let mut past = Past::default();
        let mut last = Placement { index: 0, entry: 0 };
        while let Some(text) = lines.next().map_err(&reading)? {
            let Ok(line) = serde_json::from_str::<Line>(&text) else { break };
            if line.done < past.resume.done || line.done > head.size {
                return Err(wrong("goes backwards; remove it to start again".into()));
            }
            for (index, entry) in line.placements {
                last.index = last.index.wrapping_add_signed(index);
                last.entry = last.entry.wrapping_add_signed(entry);
                past.resume.placements.push(last);
            }
            (past.resume.done, past.resume.data, past.resume.stored) = (line.done, line.data, line.stored);
            past.whole = line.whole;
            for (number, digest) in line.sums {
                let digest =
                    unhex(&digest).ok_or_else(|| wrong("holds a broken digest; remove it".into()))?;
                past.sums.0.insert(number, digest);
            }
        }
        let length = lines.length;
        // A torn line would make the next one unreadable.
        file.set_len(length).map_err(&reading)?;
        let mut journal = Self { path: path.into(), file, last };
        std::io::Seek::seek(&mut journal.file, std::io::SeekFrom::Start(length)).map_err(&reading)?;
        Ok((journal, past))
    }

    /// Notes how far the result is; `at` and `sums` are what was added since the last note.
    ///
    /// # Errors
    /// When it cannot be written and synced.
    pub fn note(&mut self, at: &Resume, sums: &Sums) -> Result<()> {
        self.write(at, sums, false)
    }

    /// Notes that the image is whole: `at.stored` is its length.
    ///
    /// # Errors
    /// As [`Journal::note`].
    pub fn note_whole(&mut self, at: &Resume, sums: &Sums) -> Result<()> {
        self.write(at, sums, true)
    }

    fn write(&mut self, at: &Resume, sums: &Sums, whole: bool) -> Result<()> {
        let mut last = self.last;
        let mut placements = Vec::with_capacity(at.placements.len());
        for placement in &at.placements {
            let difference = |new: u64, old: u64| new.wrapping_sub(old).cast_signed();
            placements
                .push((difference(placement.index, last.index), difference(placement.entry, last.entry)));
            last = *placement;
        }
        let sums = sums.0.iter().map(|(number, digest)| (*number, hex(digest))).collect();
        let line = Line { done: at.done, data: at.data, stored: at.stored, whole, placements, sums };
        self.append(&serde_json::to_string(&line).unwrap_or_default())?;
        self.last = last;
        Ok(())
    }

    fn append(&mut self, text: &str) -> Result<()> {
        let writing = Error::file("writing the journal", &self.path);
        let line = format!("{text} {}\n", check(text));
        self.file.write_all(line.as_bytes()).and_then(|()| self.file.sync_data()).map_err(writing)
    }

    /// Removes it: the result is whole.
    ///
    /// # Errors
    /// When it cannot be removed.
    pub fn remove(self) -> Result<()> {
        std::fs::remove_file(&self.path).map_err(Error::file("removing the journal", &self.path))
    }
}

fn check(text: &str) -> String {
    hex(sha256(text.as_bytes()).get(..4).unwrap_or_default())
}

/// Lines whose checksum fits.
struct Lines<R> {
    reader: R,
    /// Bytes of the lines so far.
    length: u64,
}

impl<R: BufRead> Lines<R> {
    fn next(&mut self) -> std::io::Result<Option<String>> {
        let mut raw = Vec::new();
        std::io::Read::take(&mut self.reader, MAX_LINE).read_until(b'\n', &mut raw)?;
        let whole = raw.strip_suffix(b"\n").and_then(|line| std::str::from_utf8(line).ok());
        let Some((text, sum)) = whole.and_then(|line| line.rsplit_once(' ')) else { return Ok(None) };
        if check(text) != sum {
            return Ok(None);
        }
        self.length += raw.len() as u64;
        Ok(Some(text.to_owned()))
    }
}

/// Makes a name durable.
pub(crate) fn sync_parent(path: &Path) -> Result<()> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let syncing = Error::file("syncing the directory", parent);
    File::open(parent).and_then(|dir| dir.sync_all()).map_err(syncing)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may fail by panicking")]
mod tests {
    use super::*;

    fn resume(done: u64, placements: &[(u64, u64)]) -> Resume {
        let placements = placements.iter().map(|(index, entry)| Placement { index: *index, entry: *entry });
        Resume { done, data: done / 2, stored: done / 4, placements: placements.collect() }
    }

    #[test]
    fn what_was_noted_is_read_back_and_a_torn_line_is_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        let head = Head::new("disk", 1 << 40, "qcow2 zstd");
        let mut journal = Journal::create(&path, &head).unwrap();
        journal.note(&resume(100, &[(0, u64::MAX), (7, 5)]), &Sums(BTreeMap::from([(0, [7; 32])]))).unwrap();
        let whole = std::fs::metadata(&path).unwrap().len();
        journal.note(&resume(200, &[(8, 1 << 62)]), &Sums(BTreeMap::from([(3, [9; 32])]))).unwrap();
        drop(journal);
        let bytes = std::fs::read(&path).unwrap();
        let (journal, past) = Journal::open(&path, &head).unwrap();
        assert_eq!(past.resume, resume(200, &[(0, u64::MAX), (7, 5), (8, 1 << 62)]));
        assert_eq!(past.sums.0.len(), 2);
        drop(journal);
        for cut in usize::try_from(whole).unwrap() + 1..bytes.len() {
            std::fs::write(&path, &bytes[..cut]).unwrap();
            let (mut journal, past) = Journal::open(&path, &head).unwrap();
            assert_eq!(past.resume.done, 100, "cut at {cut}");
            journal.note(&resume(150, &[]), &Sums::default()).unwrap();
            assert_eq!(Journal::open(&path, &head).unwrap().1.resume.done, 150);
        }
        let other = Head::new("disk", 1 << 40, "qcow2 deflate");
        let refused = Journal::open(&path, &other).unwrap_err().to_string();
        assert!(refused.contains("qcow2 zstd") && refused.contains("qcow2 deflate"), "{refused}");
        let older = Head { version: VERSION - 1, ..head.clone() };
        drop(Journal::create(&path, &older).unwrap());
        let refused = Journal::open(&path, &head).unwrap_err().to_string();
        assert!(refused.contains("another release"), "{refused}");
    }
}
