//! Dumps of a guest's memory into a claim, on the node: virt-handler asks the launcher for one once the claim is
//! mounted, and writes down what becomes of it (`getMemoryDump`, `updateMemoryDumpInfo` in `virt-handler/vm.go`;
//! `virtwrap/storage/memoryDump.go`, v1.9).
//!
//! ```text
//!  MountedToPod ─► MemoryDumpInProgress ─the launcher has written the file─► MemoryDumpCompleted
//!                          └─────────────it could not─────────────────────► MemoryDumpFailed
//! ```

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use apimachinery::quantity::units;
use apimachinery::tree::{Value, json};
use jiff::{SignedDuration, Timestamp};

use super::status::say;
use crate::sim::json::{list, text, time};

/// Bytes of memory that are written in a second.
const SPEED: i64 = 2 << 30;
/// How often virt-handler looks at a dump.
const AGAIN: Duration = Duration::from_secs(1);
/// The file's part before the memory: an ELF header, and one for the segment.
const HEADER: u64 = 64 + 56;

/// A dump, as the domain's metadata have it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Dump {
    pub file: String,
    started: Timestamp,
    ends: Timestamp,
    failure: Option<String>,
}

impl Dump {
    /// Writes a guest's memory of `size` bytes into a directory with room for so many, in place of older dumps. It is
    /// there at once, and done when it would be.
    pub fn take((directory, file): (&Path, &str), size: i64, room: i64, now: Timestamp) -> Self {
        let length = u64::try_from(size).unwrap_or(0) + HEADER;
        let written = if length > u64::try_from(room).unwrap_or(0) {
            Err(io::Error::from(io::ErrorKind::StorageFull))
        } else {
            write(directory, file, length)
        };
        let failure = written.err().map(|error| {
            let why = match error.kind() {
                io::ErrorKind::StorageFull => "No space left on device".to_owned(),
                _ => error.to_string(),
            };
            format!(
                "Domain memory dump failed: virError(Code=9, Domain=10, Message='operation failed: Memory dump failed: \
                 dump: failed to save memory: {why}')"
            )
        });
        let takes = SignedDuration::from_millis(100 + size.saturating_mul(1000) / SPEED);
        Self { file: file.to_owned(), started: now, ends: now.saturating_add(takes).unwrap_or(now), failure }
    }
}

impl Dump {
    /// How the domain's metadata have it (`api.MemoryDumpMetadata`).
    pub fn metadata(&self, now: Timestamp) -> Value {
        let is_over = now >= self.ends;
        let failure = self.failure.as_deref().filter(|_| is_over);
        json!({"FileName": self.file, "StartTimestamp": time(self.started),
            "EndTimestamp": is_over.then(|| time(self.ends)), "Completed": is_over, "Failed": failure.is_some(),
            "FailureReason": failure.unwrap_or_default()})
    }
}

/// An ELF core file with one segment of memory, which is a hole.
fn write(directory: &Path, name: &str, length: u64) -> io::Result<()> {
    std::fs::create_dir_all(directory)?;
    for old in std::fs::read_dir(directory)?.filter_map(Result::ok) {
        if old.file_name().to_string_lossy().contains("memory.dump") {
            std::fs::remove_file(old.path())?;
        }
    }
    let file = File::create(directory.join(name))?;
    file.set_len(length)?;
    let memory = length - HEADER;
    let mut head = Vec::new();
    head.extend_from_slice(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    for half in [4_u16, 62] {
        head.extend_from_slice(&half.to_le_bytes()); // a core file of x86-64
    }
    head.extend_from_slice(&1_u32.to_le_bytes());
    for long in [0_u64, 64, 0] {
        head.extend_from_slice(&long.to_le_bytes()); // entry, program headers, section headers
    }
    head.extend_from_slice(&0_u32.to_le_bytes());
    for half in [64_u16, 56, 1, 0, 0, 0] {
        head.extend_from_slice(&half.to_le_bytes());
    }
    for word in [1_u32, 0] {
        head.extend_from_slice(&word.to_le_bytes()); // PT_LOAD
    }
    for long in [HEADER, 0, 0, memory, memory, 0] {
        head.extend_from_slice(&long.to_le_bytes());
    }
    file.write_all_at(&head, 0)
}

/// Bytes that fit into a claim.
pub fn room(claim: &Value) -> i64 {
    ["/status/capacity/storage", "/spec/resources/requests/storage"]
        .iter()
        .find_map(|pointer| claim.pointer(pointer).and_then(units))
        .unwrap_or(0)
}

/// The dumps that a VMI waits for: the volume, which has the name of the claim, and the file.
pub fn due(vmi: &Value) -> Vec<(&str, &str)> {
    list(vmi, "/status/volumeStatus")
        .iter()
        .filter(|status| status["phase"] == "MemoryDumpInProgress" && status["memoryDumpVolume"].is_object())
        .map(|status| (text(status, "/name"), text(status, "/memoryDumpVolume/targetFileName")))
        .collect()
}

/// Brings the status of volumes that memory is dumped into to where the launcher is: when to look again.
pub fn describe(all: &mut [Value], vmi: &str, dump: Option<&Dump>, now: Timestamp) -> Option<Duration> {
    let mut again = None;
    for status in all.iter_mut().filter(|status| status["memoryDumpVolume"].is_object()) {
        let volume = text(status, "/name").to_owned();
        match text(status, "/phase") {
            "MountedToPod" => {
                again = Some(AGAIN);
                let file = format!("{vmi}-{volume}-{}.memory.dump", now.strftime("%Y%m%d-%H%M%S"));
                let message = format!("Memory dump Volume {volume} is attached, getting memory dump");
                say(status, "MemoryDumpInProgress", "VolumeMountedToPod", message);
                status["memoryDumpVolume"]["targetFileName"] = file.into();
            }
            "MemoryDumpInProgress" => {
                let Some(dump) =
                    dump.filter(|dump| dump.file == text(status, "/memoryDumpVolume/targetFileName"))
                else {
                    continue;
                };
                again = Some(AGAIN);
                status["memoryDumpVolume"]["startTimestamp"] = time(dump.started).into();
                if now >= dump.ends {
                    status["memoryDumpVolume"]["endTimestamp"] = time(dump.ends).into();
                    finish(status, &volume, dump);
                }
            }
            _ => {}
        }
    }
    again
}

fn finish(status: &mut Value, volume: &str, dump: &Dump) {
    if let Some(why) = &dump.failure {
        // The reason stays that of the mount.
        status["message"] = format!("Memory dump to pvc {volume} failed: {why}").into();
        status["phase"] = "MemoryDumpFailed".into();
    } else {
        let message = format!("Memory dump to Volume {volume} has completed successfully");
        say(status, "MemoryDumpCompleted", "VolumeReady", message);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn a_dump_is_an_elf_file_as_long_as_the_memory_in_place_of_the_last_one() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("old.memory.dump"), "x").unwrap();
        std::fs::write(directory.path().join("other"), "x").unwrap();
        let dump = Dump::take((directory.path(), "new.memory.dump"), 1 << 30, 2 << 30, at(0));
        assert_eq!((dump.failure.as_deref(), dump.ends), (None, "1970-01-01T00:00:00.6Z".parse().unwrap()));
        let file = File::open(directory.path().join("new.memory.dump")).unwrap();
        assert_eq!(file.metadata().unwrap().len(), (1 << 30) + HEADER);
        let mut head = [0; 20];
        file.read_exact_at(&mut head, 0).unwrap();
        assert_eq!((&head[..4], head[16]), (&b"\x7fELF"[..], 4));
        assert!(!directory.path().join("old.memory.dump").exists());
        assert!(directory.path().join("other").exists());
    }

    #[test]
    fn the_status_follows_the_launcher_from_the_mount_to_the_end() {
        let mut all = [json!({"name": "d", "phase": "MountedToPod", "memoryDumpVolume": {"claimName": "d"}})];
        assert_eq!(describe(&mut all, "vm", None, at(61)), Some(AGAIN));
        assert_eq!(all[0]["phase"], "MemoryDumpInProgress");
        let file = "vm-d-19700101-000101.memory.dump";
        let vmi = json!({"status": {"volumeStatus": all}});
        assert_eq!(due(&vmi), [("d", file)]);
        assert_eq!(describe(&mut all, "vm", None, at(62)), None, "the launcher has not been asked yet");
        let directory = tempfile::tempdir().unwrap();
        for (room, phase, message) in [
            (2 << 30, "MemoryDumpCompleted", "Memory dump to Volume d has completed successfully"),
            (1 << 20, "MemoryDumpFailed", "No space left on device"),
        ] {
            let dump = Dump::take((directory.path(), file), 2 << 20, room, at(62));
            let mut all = all.clone();
            describe(&mut all, "vm", Some(&dump), at(62));
            assert_eq!(all[0]["phase"], "MemoryDumpInProgress");
            describe(&mut all, "vm", Some(&dump), at(64));
            assert_eq!(all[0]["phase"], phase);
            assert!(text(&all[0], "/message").contains(message), "{}", all[0]);
            assert!(all[0]["memoryDumpVolume"]["endTimestamp"].is_string());
        }
    }
}
