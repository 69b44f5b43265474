//! The content of claims: sparse files, made when they are first read or copied.
//!
//! A claim is the file `NAMESPACE_CLAIM`, a snapshot of a volume `snapshots/HANDLE`. Copies share blocks where the
//! file system can do that, and are copied extent by extent otherwise, so holes stay holes.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use apimachinery::quantity;
use apimachinery::tree::Value;

use crate::sim::json::{annotation, join_key, key, name, namespace};
use crate::sim::node::draw;

/// What a claim holds: `ext4` (the default: metadata, text and binaries between holes), `random`
/// (no byte can be saved), or `empty`.
pub const CONTENT: &str = "sandbox.vm-feature-manager.io/content";
/// How much data is in it, a quantity; by default a third of the size, at most 64Mi.
const DATA: &str = "sandbox.vm-feature-manager.io/data";
/// The largest disk: a sparse file of this length is possible on every file system in use.
const MAX_SIZE: u64 = 1 << 40;
/// The most data in one disk.
const MAX_DATA: u64 = 16 << 30;
const DEFAULT_DATA: u64 = 64 << 20;
/// Extents of data have this length.
const EXTENT: u64 = 1 << 20;
const PIECE: usize = 64 << 10;

/// Where the content of a claim comes from.
#[derive(Clone, Debug)]
pub enum Source {
    /// No byte is set.
    Blank,
    /// What its annotations say.
    Own,
    /// Another claim, as it is now.
    Claim(Arc<Value>),
    /// The snapshot of this handle.
    Snapshot(String),
}

/// A file, once it is made; whoever makes it holds the lock.
type Slot = Arc<Mutex<Option<Arc<File>>>>;

/// The disks of the cluster.
#[derive(Debug)]
pub struct Disks {
    directory: PathBuf,
    seed: u64,
    made: Mutex<HashMap<String, Slot>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Where the files of a claim with a file system lie, below the directory of all disks.
pub fn files_below(directory: &Path, namespace: &str, claim: &str) -> PathBuf {
    directory.join("claims").join(format!("{namespace}_{claim}"))
}

impl Disks {
    /// Disks below a directory; what is in them follows from the seed, namespace and name.
    pub fn new(directory: PathBuf, seed: u64) -> Self {
        Self { directory, seed, made: Mutex::default() }
    }

    /// Where the files of a claim with a file system lie.
    pub fn files(&self, namespace: &str, claim: &str) -> PathBuf {
        files_below(&self.directory, namespace, claim)
    }

    fn slot(&self, key: &str) -> Slot {
        lock(&self.made).entry(key.to_owned()).or_default().clone()
    }

    fn path(&self, key: &str) -> PathBuf {
        self.directory.join(key.replace('/', "_"))
    }

    fn snapshot_path(&self, handle: &str) -> PathBuf {
        self.directory.join("snapshots").join(handle)
    }

    /// The disk of a claim. Takes as long as it takes to write its data the first time.
    ///
    /// # Errors
    /// When the file cannot be made.
    pub fn of(&self, claim: &Value) -> io::Result<Arc<File>> {
        let slot = self.slot(&key(claim));
        let mut slot = lock(&slot);
        if let Some(file) = &*slot {
            return Ok(file.clone());
        }
        let file = Arc::new(self.make_own(claim)?);
        *slot = Some(file.clone());
        Ok(file)
    }

    fn make_own(&self, claim: &Value) -> io::Result<File> {
        let key = join_key(namespace(claim), name(claim));
        let size = size_of(claim);
        let stated = annotation(claim, DATA).and_then(|text| quantity::units(&Value::from(text)));
        let data = stated.and_then(|data| u64::try_from(data).ok()).unwrap_or((size / 3).min(DEFAULT_DATA));
        let seed = key.bytes().fold(self.seed, |seed, byte| draw(seed, byte.into()));
        let content = annotation(claim, CONTENT).unwrap_or("ext4");
        make(&self.path(&key), size, data.min(size).min(MAX_DATA), content, seed)
    }

    /// Gives a claim its content; what was in it is gone.
    ///
    /// # Errors
    /// When the source or the file cannot be read or written.
    pub fn populate(&self, claim: &Value, source: &Source) -> io::Result<()> {
        let from = match source {
            Source::Claim(other) => Some((self.of(other)?, self.path(&key(other)))),
            Source::Snapshot(handle) => {
                let path = self.snapshot_path(handle);
                Some((Arc::new(File::open(&path)?), path))
            }
            Source::Blank | Source::Own => None,
        };
        let slot = self.slot(&key(claim));
        let mut slot = lock(&slot);
        let file = match (source, from) {
            (_, Some((from, _))) => {
                let file = create(&self.path(&key(claim)))?;
                copy_sparse(&from, &file)?;
                file.set_len(size_of(claim).max(from.metadata()?.len()))?;
                file
            }
            (Source::Blank, None) => {
                let file = create(&self.path(&key(claim)))?;
                file.set_len(size_of(claim))?;
                file
            }
            _ => self.make_own(claim)?,
        };
        *slot = Some(Arc::new(file));
        Ok(())
    }

    /// Copies the content of a claim to where [`Source::Snapshot`] finds it.
    ///
    /// # Errors
    /// When it cannot be read or written.
    pub fn snapshot(&self, handle: &str, claim: &Value) -> io::Result<()> {
        let from = self.of(claim)?;
        let path = self.snapshot_path(handle);
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent)?;
        }
        copy_sparse(&from, &create(&path)?)
    }

    /// A copy of a claim's content that nobody finds by a name; it goes with its last handle.
    ///
    /// # Errors
    /// When it cannot be read or written.
    pub fn copy(&self, handle: &str, claim: &Value) -> io::Result<File> {
        self.snapshot(handle, claim)?;
        let file = File::open(self.snapshot_path(handle))?;
        self.forget_snapshot(handle);
        Ok(file)
    }

    /// A snapshot is no longer needed.
    pub fn forget_snapshot(&self, handle: &str) {
        let _ = std::fs::remove_file(self.snapshot_path(handle));
    }

    /// A claim is gone, and its content with it; who has the file open reads on.
    pub fn forget(&self, key: &str) {
        if let Some((namespace, name)) = key.split_once('/') {
            let _ = std::fs::remove_dir_all(files_below(&self.directory, namespace, name));
        }
        if lock(&self.made).remove(key).is_some() {
            let _ = std::fs::remove_file(self.path(key));
        }
    }

    /// Makes the disk of a claim as large as the claim asks for, if it is smaller.
    ///
    /// # Errors
    /// When the file cannot be made larger.
    pub fn grow(&self, claim: &Value) -> io::Result<()> {
        let slot = self.slot(&key(claim));
        let slot = lock(&slot);
        // One that was not made yet will have the size by then.
        let Some(file) = &*slot else { return Ok(()) };
        let size = size_of(claim);
        if file.metadata()?.len() < size { file.set_len(size) } else { Ok(()) }
    }
}

/// What a claim asks for, bytes.
fn size_of(claim: &Value) -> u64 {
    let requested = &claim["spec"]["resources"]["requests"]["storage"];
    let size = quantity::units(requested).and_then(|size| u64::try_from(size).ok()).unwrap_or(1 << 30);
    size.clamp(1, MAX_SIZE)
}

fn create(path: &Path) -> io::Result<File> {
    // Another file of the same name that somebody has open stays as it is.
    let _ = std::fs::remove_file(path);
    File::options().read(true).write(true).create(true).truncate(true).open(path)
}

/// Copies what is in a file, and nothing where it has holes.
fn copy_sparse(from: &File, to: &File) -> io::Result<()> {
    let size = from.metadata()?.len();
    to.set_len(size)?;
    if rustix::fs::ioctl_ficlone(to, from).is_ok() {
        return Ok(());
    }
    // Positions of its own: the file is shared.
    let mut at = 0;
    let mut buffer = vec![0; PIECE];
    while at < size {
        let Ok(start) = rustix::fs::seek(from, rustix::fs::SeekFrom::Data(at)) else { return Ok(()) };
        let end = rustix::fs::seek(from, rustix::fs::SeekFrom::Hole(start)).unwrap_or(size).min(size);
        let mut position = start;
        while position < end {
            let piece = usize::try_from(end - position).unwrap_or(PIECE).min(PIECE);
            let read = from.read_at(&mut buffer[..piece], position)?;
            if read == 0 {
                break;
            }
            to.write_all_at(&buffer[..read], position)?;
            position += read as u64;
        }
        at = end.max(start + 1);
    }
    Ok(())
}

fn make(path: &Path, size: u64, data: u64, content: &str, seed: u64) -> io::Result<File> {
    let file = create(path)?;
    file.set_len(size)?;
    if content == "empty" || data == 0 {
        return Ok(file);
    }
    if content == "ext4" {
        superblock(&file, size, seed)?;
    }
    // Extents at even distances, each at a drawn place within its share of the disk.
    let count = data.div_ceil(EXTENT);
    let share = size / count;
    for extent in 0..count {
        let slack = share.saturating_sub(EXTENT);
        let at = extent * share + if slack == 0 { 0 } else { draw(seed, extent) % slack };
        let at = (at & !4095).max(if content == "ext4" { 8192 } else { 0 });
        let length = EXTENT.min(data - extent * EXTENT).min(size.saturating_sub(at));
        let mut written = 0;
        while written < length {
            let piece = usize::try_from(length - written).unwrap_or(PIECE).min(PIECE);
            file.write_all_at(&fill(piece, content, draw(seed ^ at, written)), at + written)?;
            written += piece as u64;
        }
    }
    Ok(file)
}

/// The beginning of an ext4 file system, as `blkid` and `file` know it.
fn superblock(file: &File, size: u64, seed: u64) -> io::Result<()> {
    if size < 8192 {
        return Ok(());
    }
    let mut block = [0; 1024];
    let blocks = u32::try_from(size / 4096).unwrap_or(u32::MAX);
    block[0..4].copy_from_slice(&(blocks / 4).to_le_bytes()); // inodes
    block[4..8].copy_from_slice(&blocks.to_le_bytes());
    block[24..28].copy_from_slice(&2_u32.to_le_bytes()); // 4 KiB blocks
    block[32..36].copy_from_slice(&32768_u32.to_le_bytes()); // blocks in a group
    block[56..58].copy_from_slice(&0xef53_u16.to_le_bytes());
    block[96..100].copy_from_slice(&0x2c2_u32.to_le_bytes()); // extents, 64 bit, flex_bg
    block[104..112].copy_from_slice(&seed.to_le_bytes()); // uuid
    block[112..120].copy_from_slice(&draw(seed, 1).to_le_bytes());
    file.write_all_at(&block, 1024)
}

/// A piece of content: text, code-like binary, or noise.
fn fill(length: usize, content: &str, seed: u64) -> Vec<u8> {
    let kind = if content == "random" { 2 } else { seed % 3 };
    let mut state = seed | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let mut out = Vec::with_capacity(length + 64);
    while out.len() < length {
        let drawn = next();
        match kind {
            0 => {
                let words = ["int", " the ", "return", "\n", " = ", "struct ", "0x", "license", "; ", "//"];
                let word = words[usize::try_from(drawn % 10).unwrap_or(0)];
                out.extend_from_slice(word.as_bytes());
            }
            1 => {
                out.extend_from_slice(&[0x48, 0x8b, 0, 0xe8]);
                out.extend_from_slice(&(drawn & 0xff_00ff).to_le_bytes());
            }
            _ => out.extend_from_slice(&drawn.to_le_bytes()),
        }
    }
    out.truncate(length);
    out
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use apimachinery::tree::json;

    use super::*;

    #[test]
    fn disks_are_sparse_and_the_same_for_the_same_seed() {
        let claim = |content: &str| {
            json!({"metadata": {"namespace": "ns", "name": content, "annotations": {CONTENT: content, DATA: "3Mi"}},
            "spec": {"resources": {"requests": {"storage": "100Mi"}}}})
        };
        let read = |seed| {
            let dir = tempfile::tempdir().unwrap();
            let disks = Disks::new(dir.path().into(), seed);
            ["ext4", "random", "empty"].map(|content| {
                let file = disks.of(&claim(content)).unwrap();
                assert_eq!(file.metadata().unwrap().len(), 100 << 20);
                assert!(file.metadata().unwrap().blocks() * 512 < 16 << 20, "{content} is not sparse");
                let mut bytes = vec![0; 100 << 20];
                file.read_exact_at(&mut bytes, 0).unwrap();
                bytes
            })
        };
        let (one, same, other) = (read(1), read(1), read(2));
        assert!(one == same);
        assert!(one[1] != other[1]);
        assert_eq!(one[0][1080..1082], [0x53, 0xef], "blkid knows it by this");
        assert!(one[2].iter().all(|byte| *byte == 0));
    }

    #[test]
    fn copies_are_the_same_stay_sparse_and_do_not_follow_the_original() {
        let dir = tempfile::tempdir().unwrap();
        let disks = Disks::new(dir.path().into(), 7);
        let claim = |name: &str, size: &str| {
            json!({"metadata": {"namespace": "ns", "name": name, "annotations": {DATA: "2Mi"}},
                "spec": {"resources": {"requests": {"storage": size}}}})
        };
        let read = |file: &File, at| {
            let mut bytes = vec![0; 16];
            file.read_exact_at(&mut bytes, at).unwrap();
            bytes
        };
        let (original, restored) = (claim("a", "64Mi"), claim("b", "128Mi"));
        let file = disks.of(&original).unwrap();
        file.write_all_at(b"before the change", 40 << 20).unwrap();
        disks.snapshot("h", &original).unwrap();
        file.write_all_at(b"after the change!", 40 << 20).unwrap();
        disks.populate(&restored, &Source::Snapshot("h".into())).unwrap();
        let copy = disks.of(&restored).unwrap();
        assert_eq!(read(&copy, 40 << 20), b"before the chang");
        assert_eq!(read(&copy, 1080)[..2], [0x53, 0xef]);
        assert_eq!(copy.metadata().unwrap().len(), 128 << 20, "as large as the claim");
        assert!(copy.metadata().unwrap().blocks() * 512 < 8 << 20, "not sparse");
        disks.populate(&claim("c", "64Mi"), &Source::Claim(Arc::new(original))).unwrap();
        assert_eq!(read(&disks.of(&claim("c", "64Mi")).unwrap(), 40 << 20), b"after the change");
        disks.populate(&restored, &Source::Blank).unwrap();
        assert_eq!(read(&disks.of(&restored).unwrap(), 1080), [0; 16]);
        disks.forget_snapshot("h");
        disks.forget("ns/b");
        assert!(disks.populate(&restored, &Source::Snapshot("h".into())).is_err());
        let mut larger = claim("c", "256Mi");
        disks.grow(&larger).unwrap();
        assert_eq!(disks.of(&larger).unwrap().metadata().unwrap().len(), 256 << 20);
        larger["spec"]["resources"]["requests"]["storage"] = "1Mi".into();
        disks.grow(&larger).unwrap();
        assert_eq!(disks.of(&larger).unwrap().metadata().unwrap().len(), 256 << 20, "disks do not shrink");
    }
}
