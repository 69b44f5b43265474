//! The extent map of a disk in a backup, and what of the disk has to be read.
//!
//! ```text
//!  extents   data │ zero │ clean │ dirty │ dirty,zero │ clean …      (any lengths)
//!  clusters  ├────────┼────────┼────────┼────────┤                   64 KiB each
//!            full: read where not zero; incremental: in the image where dirty, read where not only zeros
//! ```

use std::ops::Range;

use serde::Deserialize;

/// qcow2 clusters as exports write them: a cluster is in an image as a whole or not at all.
pub const CLUSTER: u64 = 64 << 10;
/// `STATE_HOLE` of a full map and `STATE_DIRTY` of an incremental one share this bit
/// (pkg/storage/nbdclient, `KubeVirt` 1.9).
const DIRTY: u64 = 1;
/// `STATE_ZERO`
const ZERO: u64 = 2;

/// A piece of the disk.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq)]
pub struct Extent {
    /// Where it begins, in bytes.
    pub offset: u64,
    /// Its length in bytes.
    pub length: u64,
    /// What is known of it.
    #[serde(rename = "type")]
    pub flags: u64,
}

/// A page of the map.
#[derive(Debug, Deserialize)]
pub struct Page {
    /// Go writes no extents as null.
    pub extents: Option<Vec<Extent>>,
    /// Where the next page begins.
    pub next_offset: Option<u64>,
}

/// What a map says.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Map {
    /// The size of the disk in bytes.
    pub size: u64,
    /// What has to be read: whole clusters, in order.
    pub wanted: Vec<Range<u64>>,
    /// What the image has to hold: for an incremental one, what changed, zeros included.
    pub changed: Vec<Range<u64>>,
}

impl Map {
    /// Reads a whole map.
    ///
    /// # Errors
    /// When the extents do not follow each other from the beginning of the disk.
    pub fn of(extents: &[Extent], incremental: bool) -> Result<Self, String> {
        let mut size = 0;
        for extent in extents {
            if extent.offset != size || extent.length == 0 {
                return Err(format!("the map goes on at {} where {size} was the end", extent.offset));
            }
            let end = extent.offset.checked_add(extent.length).filter(|end| *end <= 1 << 62);
            size = end.ok_or_else(|| format!("an extent of {} bytes cannot be", extent.length))?;
        }
        let touched = |holds: &dyn Fn(u64) -> bool| {
            let ranges = extents.iter().filter(|extent| holds(extent.flags));
            aligned(ranges.map(|extent| extent.offset..extent.offset + extent.length), size)
        };
        let data = touched(&|flags| flags & ZERO == 0);
        if !incremental {
            let all = (size > 0).then_some(0..size);
            return Ok(Self { size, wanted: data, changed: all.into_iter().collect() });
        }
        let changed = touched(&|flags| flags & DIRTY != 0);
        // A cluster that is partly dirty zeros and partly clean data has to be read, too.
        Ok(Self { size, wanted: intersect(&changed, &data), changed })
    }

    /// The parts of a range that have to be read.
    pub fn parts(&self, range: &Range<u64>) -> impl Iterator<Item = Range<u64>> + use<'_> {
        let first = self.wanted.partition_point(|wanted| wanted.end <= range.start);
        let (start, end) = (range.start, range.end);
        let from = self.wanted.get(first..).unwrap_or_default().iter();
        from.take_while(move |wanted| wanted.start < end)
            .map(move |wanted| wanted.start.max(start)..wanted.end.min(end))
    }
}

/// Ranges in order, extended to whole clusters, with neighbours joined.
fn aligned(ranges: impl Iterator<Item = Range<u64>>, size: u64) -> Vec<Range<u64>> {
    let mut out: Vec<Range<u64>> = Vec::new();
    for range in ranges {
        let (start, end) = (range.start / CLUSTER * CLUSTER, range.end.next_multiple_of(CLUSTER).min(size));
        match out.last_mut() {
            Some(last) if last.end >= start => last.end = last.end.max(end),
            _ => out.push(start..end),
        }
    }
    out
}

fn intersect(a: &[Range<u64>], b: &[Range<u64>]) -> Vec<Range<u64>> {
    let (mut out, mut at) = (Vec::new(), 0);
    for left in a {
        // Ranges of b that end before this one are behind for good.
        while b.get(at).is_some_and(|right| right.end <= left.start) {
            at += 1;
        }
        for right in b.get(at..).unwrap_or_default().iter().take_while(|right| right.start < left.end) {
            out.push(left.start.max(right.start)..left.end.min(right.end));
        }
    }
    out
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may fail by panicking")]
#[allow(clippy::single_range_in_vec_init, reason = "one range is meant")]
mod tests {
    use super::*;

    const K: u64 = CLUSTER;

    fn map(parts: &[(u64, u64)], incremental: bool) -> Map {
        let mut offset = 0;
        let extents: Vec<Extent> = parts
            .iter()
            .map(|(length, flags)| {
                let extent = Extent { offset, length: *length, flags: *flags };
                offset += length;
                extent
            })
            .collect();
        Map::of(&extents, incremental).unwrap()
    }

    #[test]
    fn a_full_map_is_read_where_there_is_data() {
        // Data, a hole that reads as zeros, zeros, a hole that says nothing of its content, a short end.
        let found = map(&[(K + 5, 0), (3 * K - 5, 3), (K, 2), (K, 1), (K, 3), (100, 0)], false);
        assert_eq!(found.size, 7 * K + 100);
        assert_eq!(found.wanted, [0..2 * K, 5 * K..6 * K, 7 * K..7 * K + 100]);
        assert_eq!(found.changed, [0..7 * K + 100]);
        let parts: Vec<_> = found.parts(&(K..5 * K + 7)).collect();
        assert_eq!(parts, [K..2 * K, 5 * K..5 * K + 7]);
        assert_eq!(found.parts(&(2 * K..5 * K)).count(), 0);
        assert_eq!(map(&[], false), Map::default());
    }

    #[test]
    fn an_incremental_map_keeps_what_shares_a_cluster_with_a_change() {
        for (parts, changed, wanted) in [
            // A change in the middle of a cluster of data: the whole cluster.
            (&[(10, 0), (5, 1), (4 * K - 15, 0)][..], vec![0..K], vec![0..K]),
            // Zeros that were written over a whole cluster need not be read.
            (&[(K, 0), (K, 3), (2 * K, 0)][..], vec![K..2 * K], vec![]),
            // Zeros over a part of it: the rest of it is data.
            (&[(K, 0), (K / 2, 3), (2 * K + K / 2, 0)][..], vec![K..2 * K], vec![K..2 * K]),
            // … or zeros that did not change.
            (&[(K, 0), (K / 2, 3), (K / 2, 2), (2 * K, 0)][..], vec![K..2 * K], vec![]),
            (&[(2 * K, 2), (2 * K, 0)][..], vec![], vec![]),
        ] {
            let found = map(parts, true);
            assert_eq!((found.changed, found.wanted), (changed, wanted), "{parts:?}");
        }
    }

    #[test]
    fn gaps_overlaps_and_absurd_lengths_are_no_map() {
        let extent = |offset, length| Extent { offset, length, flags: 0 };
        for extents in [
            vec![extent(10, 10)],
            vec![extent(0, 10), extent(20, 1)],
            vec![extent(0, 10), extent(5, 10)],
            vec![extent(0, 0)],
            vec![extent(0, u64::MAX)],
        ] {
            assert!(Map::of(&extents, false).is_err(), "{extents:?}");
        }
    }
}
