//! The content of claims: sparse files that are made when they are first exported.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use apimachinery::quantity;
use serde_json::Value;

use super::super::json::{annotation, join_key, name, namespace};
use super::super::node::draw;

/// What a claim holds: `ext4` (the default: metadata, text and binaries between holes), `random`
/// (no byte can be saved), or `empty`.
const CONTENT: &str = "sandbox.vm-feature-manager.io/content";
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

/// The disks of the cluster.
#[derive(Debug)]
pub struct Disks {
    directory: PathBuf,
    seed: u64,
    made: Mutex<HashMap<String, Arc<File>>>,
}

impl Disks {
    /// Disks below a directory; what is in them follows from the seed, namespace and name.
    pub fn new(directory: PathBuf, seed: u64) -> Self {
        Self { directory, seed, made: Mutex::default() }
    }

    /// The disk of a claim. Takes as long as it takes to write its data the first time.
    pub fn of(&self, claim: &Value) -> io::Result<Arc<File>> {
        let key = join_key(namespace(claim), name(claim));
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(file) = made.get(&key) {
            return Ok(file.clone());
        }
        let requested = &claim["spec"]["resources"]["requests"]["storage"];
        let size = quantity::units(requested).and_then(|size| u64::try_from(size).ok()).unwrap_or(1 << 30);
        let size = size.clamp(1, MAX_SIZE);
        let stated = annotation(claim, DATA).and_then(|text| quantity::units(&text.into()));
        let data = stated.and_then(|data| u64::try_from(data).ok()).unwrap_or((size / 3).min(DEFAULT_DATA));
        let seed = key.bytes().fold(self.seed, |seed, byte| draw(seed, byte.into()));
        let path = self.directory.join(key.replace('/', "_"));
        let content = annotation(claim, CONTENT).unwrap_or("ext4");
        let file = Arc::new(make(&path, size, data.min(size).min(MAX_DATA), content, seed)?);
        made.insert(key, file.clone());
        Ok(file)
    }
}

fn make(path: &Path, size: u64, data: u64, content: &str, seed: u64) -> io::Result<File> {
    let file = File::options().read(true).write(true).create(true).truncate(true).open(path)?;
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

    use serde_json::json;

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
}
