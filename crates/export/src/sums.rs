//! SHA-256 of the chunks of a disk, and of the whole of it.
//!
//! A chunk of zeros has no digest of its own: it is a hole. The digest of the whole is the SHA-256
//! of the digests of its chunks, in order, so that it can be computed in parallel, gone on with after
//! a crash, and checked without reading the holes.

use std::collections::BTreeMap;

use aws_lc_rs::digest::{Context, SHA256, digest};
use image::Disk;
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// Bytes in a chunk: what is fetched, hashed and retried at once. A multiple of every cluster size.
pub const CHUNK: u64 = 4 << 20;

/// A SHA-256.
pub type Digest = [u8; 32];

/// The digest of some bytes.
pub fn sha256(data: &[u8]) -> Digest {
    let mut out = [0; 32];
    out.copy_from_slice(digest(&SHA256, data).as_ref());
    out
}

/// In hexadecimal.
pub fn hex(digest: &[u8]) -> String {
    use std::fmt::Write as _;
    digest.iter().fold(String::with_capacity(digest.len() * 2), |mut out, byte| {
        let _ = write!(out, "{byte:02x}");
        out
    })
}

/// From hexadecimal.
pub fn unhex(text: &str) -> Option<Digest> {
    let mut out = [0; 32];
    if text.len() != 64 || !text.is_ascii() {
        return None;
    }
    for (at, byte) in out.iter_mut().enumerate() {
        *byte = u8::from_str_radix(text.get(at * 2..at * 2 + 2)?, 16).ok()?;
    }
    Some(out)
}

/// The digests of a disk's chunks by number; absent: zeros.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
pub struct Sums(pub BTreeMap<u64, Digest>);

impl Sums {
    /// The digest of a disk of `size` bytes with these chunks.
    pub fn whole(&self, size: u64) -> String {
        let mut context = Context::new(&SHA256);
        context.update(&size.to_be_bytes());
        for (number, digest) in &self.0 {
            context.update(&number.to_be_bytes());
            context.update(digest);
        }
        hex(context.finish().as_ref())
    }

    /// Reads a disk and compares; the first chunk that differs is an error.
    ///
    /// # Errors
    /// When the disk cannot be read, or does not hold what the digests say.
    pub fn verify(&self, what: &str, disk: &dyn Disk, size: u64) -> Result<()> {
        let image = |source| Error::Image { what: what.into(), source };
        if disk.size() < size || disk.size() >= size + 512 {
            let wrong = format!("it has {} bytes and not {size}", disk.size());
            return Err(Error::Verify { what: what.into(), wrong });
        }
        let mut buffer = vec![0; usize::try_from(CHUNK).unwrap_or(0)];
        let mut at = 0;
        // Where the disk has data there must be a digest, and where there is a digest, data.
        let mut numbers: Vec<u64> = self.0.keys().copied().collect();
        while let Some(range) = disk.next_data(at).map_err(image)? {
            let (first, last) = (range.start / CHUNK, (range.end - 1) / CHUNK);
            numbers.extend(first..=last);
            at = range.end;
        }
        numbers.sort_unstable();
        numbers.dedup();
        for number in numbers {
            let start = number * CHUNK;
            let length = CHUNK.min(size.saturating_sub(start));
            let Some(data) = buffer.get_mut(..usize::try_from(length).unwrap_or(0)) else { continue };
            disk.read_at(start, data).map_err(image)?;
            let same = match self.0.get(&number) {
                Some(digest) => sha256(data) == *digest,
                None => image::is_zero(data),
            };
            if !same {
                let wrong = format!("the chunk at guest offset {start} has another SHA-256");
                return Err(Error::Verify { what: what.into(), wrong });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may fail by panicking")]
mod tests {
    use image::MemoryDisk;

    use super::*;

    #[test]
    fn a_changed_byte_a_filled_hole_and_a_lost_chunk_are_found() {
        let size = usize::try_from(2 * CHUNK + 1000).unwrap();
        let mut disk = MemoryDisk(vec![0; size]);
        disk.0[10] = 1;
        disk.0[size - 1] = 2;
        let chunk = usize::try_from(CHUNK).unwrap();
        let sums = Sums(BTreeMap::from([(0, sha256(&disk.0[..chunk])), (2, sha256(&disk.0[2 * chunk..]))]));
        sums.verify("disk", &disk, size as u64).unwrap();
        for at in [11, chunk + 5, size - 1] {
            let mut changed = disk.clone();
            changed.0[at] ^= 4;
            assert!(sums.verify("disk", &changed, size as u64).is_err(), "{at}");
        }
        assert!(sums.verify("disk", &disk, size as u64 + 600).is_err());
        assert_eq!(unhex(&hex(&sums.0[&0])), Some(sums.0[&0]));
    }
}
