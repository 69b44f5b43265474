//! Whether two images show a guest the same bytes.

use crate::{Disk, Result, is_zero};

const STEP: u64 = 1 << 20;

/// Where two disks differ first.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Difference {
    /// The byte at this offset.
    Content(u64),
    /// One disk is longer and holds data at this offset, past the end of the other.
    Size(u64),
}

/// Compares what a guest would see; `None`: the same. Zeros past the end of the shorter disk are
/// no difference, since formats round sizes up to sectors (`qemu-img compare` agrees).
pub fn compare(left: &dyn Disk, right: &dyn Disk) -> Result<Option<Difference>> {
    let common = left.size().min(right.size());
    let longer = if left.size() > right.size() { left } else { right };
    let mut at = 0;
    let (mut a, mut b) = (Vec::new(), Vec::new());
    while let Some(start) = next_of(left, right, at)? {
        let end = (start + STEP).min(longer.size());
        if start < common {
            let end = end.min(common);
            fill(left, start, end, &mut a)?;
            fill(right, start, end, &mut b)?;
            if a != b {
                let first = a.iter().zip(&b).position(|(x, y)| x != y).unwrap_or(0);
                return Ok(Some(Difference::Content(start + first as u64)));
            }
            at = end;
        } else {
            fill(longer, start, end, &mut a)?;
            if !is_zero(&a) {
                let first = a.iter().position(|byte| *byte != 0).unwrap_or(0);
                return Ok(Some(Difference::Size(start + first as u64)));
            }
            at = end;
        }
    }
    Ok(None)
}

/// Reads and decodes everything that may hold data, which finds damage that tables do not show;
/// answers how many bytes that was.
pub fn read_all(disk: &dyn Disk) -> Result<u64> {
    let (mut at, mut total) = (0, 0);
    let mut buffer = Vec::new();
    while let Some(range) = disk.next_data(at)? {
        let end = range.end.min(range.start + STEP);
        fill(disk, range.start, end, &mut buffer)?;
        total += end - range.start;
        at = end;
    }
    Ok(total)
}

/// The first offset at or after `at` where either disk may hold data.
fn next_of(left: &dyn Disk, right: &dyn Disk, at: u64) -> Result<Option<u64>> {
    let starts = [left.next_data(at)?, right.next_data(at)?];
    Ok(starts.into_iter().flatten().map(|range| range.start).min())
}

fn fill(disk: &dyn Disk, start: u64, end: u64, buffer: &mut Vec<u8>) -> Result<()> {
    buffer.resize(usize::try_from(end - start).unwrap_or(0), 0);
    disk.read_at(start, buffer)
}
