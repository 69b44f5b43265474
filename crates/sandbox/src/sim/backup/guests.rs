//! What QEMU keeps for backups: the disks as they were when one began, and checkpoints.
//!
//! Each is a copy of the disk, in a file without a name. What differs from the checkpoint's copy is dirty.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use apimachinery::tree::Value;

use crate::sim::storage::disks::Disks;

/// The granularity of QEMU's bitmaps, and of its qcow2 overlays.
const GRANULE: u64 = 64 << 10;
const GRANULE_LEN: usize = 64 << 10;
/// Checkpoints of a VM that are remembered.
const REMEMBERED: usize = 8;

/// A disk in a backup.
#[derive(Clone, Debug)]
pub struct Pull {
    /// As it was when the backup began.
    pub disk: Arc<File>,
    /// As it was at the checkpoint before; nothing: the backup holds everything.
    pub before: Option<Arc<File>>,
}

/// A backup of a VM that is under way.
#[derive(Clone, Debug)]
pub struct Job {
    /// The `VirtualMachineBackup`.
    pub backup: String,
    /// The checkpoint that it makes.
    pub checkpoint: String,
    /// The disks, by the volume's name.
    pub disks: BTreeMap<String, Pull>,
}

/// Copies of disks at a checkpoint, by the volume's name.
type Checkpoint = (String, BTreeMap<String, Arc<File>>);

#[derive(Debug, Default)]
struct Guest {
    job: Option<Arc<Job>>,
    checkpoints: Vec<Checkpoint>,
}

/// Of all VMs, by namespace and name.
#[derive(Debug)]
pub struct Guests {
    disks: Arc<Disks>,
    all: Mutex<HashMap<String, Guest>>,
}

/// What a new backup is.
pub struct Wish<'a> {
    /// The `VirtualMachineBackup`.
    pub backup: &'a str,
    /// The name of the new checkpoint.
    pub checkpoint: String,
    /// The checkpoint that it builds on.
    pub since: Option<String>,
    /// The volumes, with their claims.
    pub volumes: Vec<(String, Value)>,
}

impl Guests {
    pub fn new(disks: Arc<Disks>) -> Self {
        Self { disks, all: Mutex::default() }
    }

    fn all(&self) -> MutexGuard<'_, HashMap<String, Guest>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The backup of a VM that is under way.
    pub fn job(&self, vm: &str) -> Option<Arc<Job>> {
        self.all().get(vm)?.job.clone()
    }

    /// A checkpoint is known.
    pub fn has(&self, vm: &str, checkpoint: &str) -> bool {
        self.all().get(vm).is_some_and(|guest| guest.checkpoints.iter().any(|(name, _)| name == checkpoint))
    }

    /// Begins a backup (`virDomainBackupBegin`). Takes as long as it takes to copy the disks.
    ///
    /// # Errors
    /// When a disk cannot be copied, or there is no such checkpoint.
    pub fn begin(&self, vm: &str, wish: Wish<'_>) -> io::Result<()> {
        let before = match &wish.since {
            None => BTreeMap::new(),
            Some(name) => {
                let all = self.all();
                let found =
                    all.get(vm).and_then(|guest| guest.checkpoints.iter().find(|(one, _)| one == name));
                let missing =
                    || io::Error::other(format!("no domain checkpoint with matching name '{name}'"));
                let (_, copies) = found.ok_or_else(missing)?;
                copies.clone()
            }
        };
        let mut disks = BTreeMap::new();
        for (volume, claim) in wish.volumes {
            let disk = Arc::new(self.disks.copy(&format!("{}-{volume}", wish.checkpoint), &claim)?);
            let before = before.get(&volume).cloned();
            disks.insert(volume, Pull { disk, before });
        }
        let job = Job { backup: wish.backup.to_owned(), checkpoint: wish.checkpoint, disks };
        self.all().entry(vm.to_owned()).or_default().job = Some(Arc::new(job));
        Ok(())
    }

    /// Ends a backup; its checkpoint stays.
    pub fn end(&self, vm: &str) {
        let mut all = self.all();
        let Some(guest) = all.get_mut(vm) else { return };
        if let Some(job) = guest.job.take() {
            let copies = job.disks.iter().map(|(volume, pull)| (volume.clone(), pull.disk.clone()));
            guest.checkpoints.push((job.checkpoint.clone(), copies.collect()));
            let surplus = guest.checkpoints.len().saturating_sub(REMEMBERED);
            guest.checkpoints.drain(..surplus);
        }
    }

    /// A guest has ended: a backup under way is lost, and after a crash all checkpoints are, since their bitmaps
    /// were in use.
    pub fn ended(&self, vm: &str, crashed: bool) {
        let mut all = self.all();
        if crashed {
            all.remove(vm);
        } else if let Some(guest) = all.get_mut(vm) {
            guest.job = None;
        }
    }
}

/// One extent of a map: offset, length, flags.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Extent {
    pub offset: u64,
    pub length: u64,
    pub flags: u64,
}

/// `STATE_HOLE` of a full map, `STATE_DIRTY` of an incremental one.
pub const HOLE_OR_DIRTY: u64 = 1;
pub const ZERO: u64 = 2;

/// The extents of a range of a disk, neighbours of one kind joined (`singleContextMapper`, `mergedContextMapper`).
///
/// # Errors
/// When a disk cannot be read.
pub fn extents(pull: &Pull, start: u64, end: u64) -> io::Result<Vec<Extent>> {
    let mut out: Vec<Extent> = Vec::new();
    let (mut now, mut before) = (vec![0; GRANULE_LEN], vec![0; GRANULE_LEN]);
    let mut at = start;
    while at < end {
        let length = (GRANULE - at % GRANULE).min(end - at);
        let piece = usize::try_from(length).unwrap_or(0);
        pull.disk.read_exact_at(&mut now[..piece], at)?;
        let zero = now[..piece].iter().all(|byte| *byte == 0);
        let flags = match &pull.before {
            None if zero => HOLE_OR_DIRTY | ZERO,
            None => 0,
            Some(file) => {
                before.fill(0);
                // The disk may have grown since: what was behind its end is zeros.
                let mut got = 0;
                while got < piece {
                    match file.read_at(&mut before[got..piece], at + got as u64)? {
                        0 => break,
                        more => got += more,
                    }
                }
                let dirty = now[..piece] != before[..piece];
                (u64::from(dirty) * HOLE_OR_DIRTY) | (u64::from(zero) * ZERO)
            }
        };
        match out.last_mut() {
            Some(last) if last.flags == flags => last.length += length,
            _ => out.push(Extent { offset: at, length, flags }),
        }
        at += length;
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use apimachinery::tree::json;

    use super::*;

    #[test]
    fn what_changed_since_a_checkpoint_is_dirty_and_a_crash_loses_it() {
        let dir = tempfile::tempdir().unwrap();
        let disks = Arc::new(Disks::new(dir.path().into(), 1));
        let claim = json!({"metadata": {"namespace": "ns", "name": "root", "annotations": {
            "sandbox.vm-feature-manager.io/content": "empty"}}, "spec": {"resources": {"requests": {"storage": "1Mi"}}}});
        let guests = Guests::new(disks.clone());
        let begin = |checkpoint: &str, since: Option<&str>| {
            let volumes = vec![("root".to_owned(), claim.clone())];
            let (checkpoint, since) = (checkpoint.to_owned(), since.map(str::to_owned));
            guests.begin("ns/vm", Wish { backup: "b", checkpoint, since, volumes })
        };
        let disk = disks.of(&claim).unwrap();
        disk.write_all_at(&vec![1; GRANULE_LEN], 65536).unwrap();
        begin("c1", None).unwrap();
        let map = |end: u64| {
            let job = guests.job("ns/vm").unwrap();
            let found = extents(&job.disks["root"], 0, end).unwrap();
            found.iter().map(|extent| (extent.offset >> 16, extent.flags)).collect::<Vec<_>>()
        };
        assert_eq!(map(1 << 20), [(0, 3), (1, 0), (2, 3)]);
        // Written while the backup is under way: not in it.
        disk.write_all_at(&[2; 10], 5 << 16).unwrap();
        assert_eq!(map(1 << 20).len(), 3);
        assert!(!guests.has("ns/vm", "c1"), "not before it has ended");
        guests.end("ns/vm");
        disk.write_all_at(&vec![0; GRANULE_LEN], 65536).unwrap();
        begin("c2", Some("c1")).unwrap();
        assert_eq!(map(1 << 20), [(0, 2), (1, 3), (2, 2), (5, 1), (6, 2)]);
        assert!(begin("c3", Some("c9")).is_err());
        guests.ended("ns/vm", false);
        assert!(guests.job("ns/vm").is_none() && guests.has("ns/vm", "c1"));
        guests.ended("ns/vm", true);
        assert!(!guests.has("ns/vm", "c1"));
    }
}
