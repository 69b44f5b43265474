//! SHA-256 of the chunks of a disk, and of the whole of it.
//!
//! Zeros are not hashed: of a disk that is a third full that would be two thirds of the work. The digest of a chunk
//! is that of its blocks with data, each behind its place in the chunk; a chunk of zeros has none. The digest of the
//! whole is the SHA-256 of the digests of its chunks, in order, so that it can be computed in parallel, gone on with
//! after a crash, and checked without reading the holes.

use std::collections::BTreeMap;
use std::ops::Range;

use aws_lc_rs::digest::{Context, SHA256, digest};
use image::Disk;
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// Bytes in a chunk: what is fetched, hashed and retried at once. A multiple of every cluster size.
pub const CHUNK: u64 = 4 << 20;

/// Bytes in a block: 64 of them are a chunk.
pub const BLOCK: u64 = CHUNK / 64;

/// A SHA-256.
pub type Digest = [u8; 32];

/// The digest of some bytes.
pub fn sha256(data: &[u8]) -> Digest {
    let mut out = [0; 32];
    out.copy_from_slice(digest(&SHA256, data).as_ref());
    out
}

/// Which blocks of a chunk hold data.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Blocks(u64);

impl Blocks {
    /// Nothing but zeros.
    pub const EMPTY: Self = Self(0);

    /// How many bytes of a range of the chunk are in blocks with data.
    pub fn within(self, range: &Range<u64>) -> u64 {
        let (mut at, mut bytes) = (range.start, 0);
        while let Some(run) = self.next(at).filter(|run| run.start < range.end) {
            bytes += run.end.min(range.end) - run.start;
            at = run.end;
        }
        bytes
    }

    /// The first bytes at or after an offset of the chunk that are in blocks with data, as far as they follow each
    /// other; the last block may reach behind the end of the disk.
    pub fn next(self, offset: u64) -> Option<Range<u64>> {
        let first = u32::try_from(offset / BLOCK).ok()?;
        let rest = self.0.checked_shr(first).filter(|rest| *rest != 0)?;
        let start = u64::from(first + rest.trailing_zeros());
        let end = start + u64::from((rest >> rest.trailing_zeros()).trailing_ones());
        Some((start * BLOCK).max(offset)..end * BLOCK)
    }
}

/// The blocks of a chunk with data, and its digest: the SHA-256 over each of them, behind its number in the chunk (8
/// bytes, the highest first).
pub fn look(chunk: &[u8]) -> (Blocks, Option<Digest>) {
    let (mut blocks, mut context) = (0, Context::new(&SHA256));
    for (number, block) in (0_u64..).zip(chunk.chunks(usize::try_from(BLOCK).unwrap_or(usize::MAX))) {
        if !image::is_zero(block) {
            blocks |= 1 << number;
            context.update(&number.to_be_bytes());
            context.update(block);
        }
    }
    if blocks == 0 {
        return (Blocks(0), None);
    }
    let mut out = [0; 32];
    out.copy_from_slice(context.finish().as_ref());
    (Blocks(blocks), Some(out))
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
            if look(data).1.as_ref() != self.0.get(&number) {
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
    #[allow(clippy::single_range_in_vec_init, reason = "one range is meant")]
    fn blocks_with_data_are_found_and_zeros_are_not_hashed() {
        const B: u64 = BLOCK;
        let mut chunk = vec![0; usize::try_from(CHUNK).unwrap()];
        assert_eq!(look(&chunk), (Blocks(0), None));
        for block in [1, 2, 63] {
            chunk[usize::try_from(block * B).unwrap() + 7] = 1;
        }
        let (blocks, digest) = look(&chunk);
        assert_eq!(blocks, Blocks(1 << 63 | 0b110));
        let runs = |mut at| {
            let mut out = Vec::new();
            while let Some(run) = blocks.next(at) {
                at = run.end;
                out.push(run);
            }
            out
        };
        assert_eq!(runs(0), [B..3 * B, 63 * B..64 * B]);
        assert_eq!(runs(2 * B + 5), [2 * B + 5..3 * B, 63 * B..64 * B]);
        assert_eq!(runs(3 * B), [63 * B..64 * B]);
        assert_eq!(runs(64 * B), []);
        assert_eq!(Blocks(u64::MAX).next(0), Some(0..CHUNK));
        assert_eq!(blocks.within(&(0..CHUNK)), 3 * B);
        assert_eq!(blocks.within(&(B + 10..2 * B + 1)), B - 9);
        assert_eq!(blocks.within(&(3 * B..63 * B)), 0);
        let mut written = Vec::new();
        for block in [1, 2, 63_u64] {
            let start = usize::try_from(block * B).unwrap();
            written.extend_from_slice(&block.to_be_bytes());
            written.extend_from_slice(&chunk[start..start + usize::try_from(B).unwrap()]);
        }
        assert_eq!(digest, Some(sha256(&written)));
        // The same bytes at another place are another chunk.
        chunk.rotate_left(usize::try_from(B).unwrap());
        assert_ne!(look(&chunk).1, digest);
    }

    #[test]
    fn a_changed_byte_a_filled_hole_and_a_lost_chunk_are_found() {
        let size = usize::try_from(2 * CHUNK + 1000).unwrap();
        let mut disk = MemoryDisk(vec![0; size]);
        disk.0[10] = 1;
        disk.0[size - 1] = 2;
        let chunk = usize::try_from(CHUNK).unwrap();
        let digest = |data: &[u8]| look(data).1.unwrap();
        let sums = Sums(BTreeMap::from([(0, digest(&disk.0[..chunk])), (2, digest(&disk.0[2 * chunk..]))]));
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
