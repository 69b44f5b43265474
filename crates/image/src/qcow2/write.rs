//! Writing qcow2 version 3: data first, tables last, the header at the very end, so that a file
//! cut short is never taken for an image.

use std::io::{Seek, SeekFrom, Write};

use flate2::{Compress, FlushCompress, Status};

use super::{COMPRESSED, COPIED, Compression, Header, OFFSET_MASK, ZERO, sectors_shift};
use crate::noise::is_noise;
use crate::pipeline::{Chunk, Encode, Encoded};
use crate::resume::{Place, Placement, Resume};
use crate::{Backing, Error, Result, is_zero};

/// The window that QEMU inflates with (`block/qcow2-threads.c`, `inflateInit2(-12)`).
const WINDOW_BITS: u8 = 12;

/// Of programs and documents it makes 1 % more than level 6, in three quarters of the time.
const DEFLATE_LEVEL: i32 = 4;

/// Compresses one cluster.
pub(crate) struct Qcow2Encoder {
    method: Method,
    cluster_size: usize,
    padded: Vec<u8>,
}

enum Method {
    Plain,
    Deflate(Box<Compress>),
    Zstd(zstd::bulk::Compressor<'static>),
}

impl Qcow2Encoder {
    pub(crate) fn new(compression: Compression, level: Option<i32>, cluster_size: usize) -> Result<Self> {
        let method = match compression {
            Compression::None => Method::Plain,
            Compression::Deflate => {
                // zlib-rs 0.6 panics at level 1 with so small a window.
                let level = u32::try_from(level.unwrap_or(DEFLATE_LEVEL).clamp(2, 9)).unwrap_or(6);
                let level = flate2::Compression::new(level);
                Method::Deflate(Box::new(Compress::new_with_window_bits(level, false, WINDOW_BITS)))
            }
            Compression::Zstd => Method::Zstd(zstd_compressor(level.unwrap_or(1))?),
        };
        Ok(Self { method, cluster_size, padded: Vec::new() })
    }
}

fn zstd_compressor(level: i32) -> Result<zstd::bulk::Compressor<'static>> {
    let failed = |error: std::io::Error| Error::Compress { offset: 0, why: error.to_string() };
    let mut compressor = zstd::bulk::Compressor::new(level.clamp(1, 19)).map_err(failed)?;
    // qemu-img check does not look at content: without the checksum most bit flips go unseen.
    compressor.include_checksum(true).map_err(failed)?;
    Ok(compressor)
}

impl Encode for Qcow2Encoder {
    fn encode(&mut self, offset: u64, data: &[u8], out: &mut Vec<u8>) -> Result<Encoded> {
        if is_zero(data) {
            return Ok(Encoded::Zeros);
        }
        if matches!(self.method, Method::Plain) || is_noise(data) {
            return Ok(Encoded::Same);
        }
        let data = if data.len() == self.cluster_size {
            data
        } else {
            self.padded.clear();
            self.padded.extend_from_slice(data);
            self.padded.resize(self.cluster_size, 0);
            &self.padded
        };
        let start = out.len();
        let fits = match &mut self.method {
            Method::Plain => false,
            Method::Deflate(deflate) => deflate_one(deflate, data, offset, out)?,
            Method::Zstd(compressor) => {
                out.resize(start + zstd::zstd_safe::compress_bound(self.cluster_size), 0);
                let length = compressor
                    .compress_to_buffer(data, &mut out[start..])
                    .map_err(|error| Error::Compress { offset, why: error.to_string() })?;
                out.truncate(start + length);
                length < self.cluster_size
            }
        };
        if !fits {
            out.truncate(start);
            return Ok(Encoded::Same);
        }
        Ok(Encoded::Packed)
    }
}

/// Whether the result is smaller than the cluster; it stands at the end of `out`.
fn deflate_one(deflate: &mut Compress, data: &[u8], offset: u64, out: &mut Vec<u8>) -> Result<bool> {
    deflate.reset();
    let start = out.len();
    out.resize(start + data.len(), 0);
    let status = deflate
        .compress(data, &mut out[start..], FlushCompress::Finish)
        .map_err(|error| Error::Compress { offset, why: error.to_string() })?;
    let length = usize::try_from(deflate.total_out()).unwrap_or(usize::MAX);
    let fits = status == Status::StreamEnd && length < data.len();
    out.truncate(start + length.min(data.len()));
    Ok(fits)
}

/// Places clusters and keeps the maps.
pub(crate) struct Qcow2Writer<W> {
    sink: W,
    cluster_bits: u32,
    size: u64,
    compression: Compression,
    /// The next free byte of the file.
    cursor: u64,
    l2: Vec<Option<Vec<u64>>>,
    refcounts: Vec<u16>,
    backing: Option<Backing>,
}

impl<W: Write + Seek> Qcow2Writer<W> {
    pub(crate) fn new(mut sink: W, size: u64, cluster_bits: u32, compression: Compression) -> Result<Self> {
        let cluster = 1_u64 << cluster_bits;
        let tables = size.div_ceil(cluster * (cluster / 8));
        // QEMU's limit on the L1 table (QCOW_MAX_L1_SIZE, 32 MiB).
        let tables = usize::try_from(tables).ok().filter(|tables| *tables <= (32 << 20) / 8);
        let tables = tables.ok_or_else(|| Error::Unsupported {
            format: "qcow2",
            why: format!("a disk of {size} bytes needs larger clusters than {cluster} bytes"),
        })?;
        sink.write_all(&vec![0; 1 << cluster_bits]).map_err(Error::write("space for the header"))?;
        let mut writer = Self {
            sink,
            cluster_bits,
            size,
            compression,
            cursor: cluster,
            l2: vec![None; tables],
            refcounts: Vec::new(),
            backing: None,
        };
        writer.count(0, cluster)?;
        Ok(writer)
    }

    /// Builds on another image: what did not change is not in this one.
    pub(crate) fn over(mut self, backing: Option<Backing>) -> Self {
        self.backing = backing;
        self
    }

    /// Clusters that changed and hold no data are zeros now, whatever the backing file says.
    fn note_zeros(&mut self) -> Result<()> {
        let changed = self.backing.as_ref().map(|backing| backing.changed.clone()).unwrap_or_default();
        let clusters = self.size.div_ceil(1 << self.cluster_bits);
        for range in changed.into_iter().filter(|range| range.start < range.end) {
            let last = ((range.end - 1) >> self.cluster_bits).min(clusters.saturating_sub(1));
            for cluster in range.start >> self.cluster_bits..=last {
                if self.entry(cluster) == 0 {
                    self.note(cluster, ZERO)?;
                }
            }
        }
        Ok(())
    }

    fn entry(&self, guest: u64) -> u64 {
        let per_table = 1_u64 << (self.cluster_bits - 3);
        let table = usize::try_from(guest / per_table).ok().and_then(|table| self.l2.get(table)?.as_ref());
        let within = usize::try_from(guest % per_table).unwrap_or(usize::MAX);
        table.and_then(|table| table.get(within).copied()).unwrap_or(0)
    }

    /// Goes on where a run broke off: with the maps that its placements make, behind what it stored.
    pub(crate) fn resume(&mut self, at: &Resume) -> Result<()> {
        for placement in &at.placements {
            let shift = sectors_shift(self.cluster_bits);
            let (start, end) = if placement.entry & COMPRESSED == 0 {
                let start = placement.entry & OFFSET_MASK;
                (start, start + (1 << self.cluster_bits))
            } else {
                let offset = placement.entry & ((1 << shift) - 1);
                let extra = (placement.entry & (COMPRESSED - 1)) >> shift;
                (offset & !511, ((offset >> 9) + extra + 1) << 9)
            };
            if end > at.stored.next_multiple_of(1 << self.cluster_bits) {
                return Err(Error::resume("a cluster lies behind what was stored"));
            }
            self.count(start, end)?;
            self.note(placement.index, placement.entry)?;
        }
        self.cursor = at.stored.max(1 << self.cluster_bits);
        self.sink.seek(SeekFrom::Start(self.cursor)).map_err(Error::write("clusters"))?;
        Ok(())
    }

    fn note(&mut self, guest: u64, entry: u64) -> Result<()> {
        let per_table = 1_u64 << (self.cluster_bits - 3);
        let table = usize::try_from(guest / per_table).unwrap_or(usize::MAX);
        let within = usize::try_from(guest % per_table).unwrap_or(usize::MAX);
        let slots = 1_usize << (self.cluster_bits - 3);
        let table = self.l2.get_mut(table).ok_or_else(|| Error::resume("a cluster lies behind the disk"))?;
        table.get_or_insert_with(|| vec![0; slots])[within] = entry;
        Ok(())
    }

    /// Adds one to the refcount of every cluster that a range of the file touches.
    fn count(&mut self, start: u64, end: u64) -> Result<()> {
        let first = usize::try_from(start >> self.cluster_bits).unwrap_or(usize::MAX);
        let last = usize::try_from((end - 1) >> self.cluster_bits).unwrap_or(usize::MAX);
        if self.refcounts.len() <= last {
            self.refcounts.resize(last + 1, 0);
        }
        for counter in &mut self.refcounts[first..=last] {
            *counter = counter.checked_add(1).ok_or_else(|| Error::Unsupported {
                format: "qcow2",
                why: "more than 65535 compressed clusters share one host cluster".into(),
            })?;
        }
        Ok(())
    }

    fn append(&mut self, chunk: &Chunk<'_>, placed: &mut Vec<Placement>) -> Result<()> {
        let first = chunk.offset >> self.cluster_bits;
        let (entry, count) = if chunk.compressed {
            (self.append_packed(chunk.data)?, 1)
        } else {
            self.append_plain(chunk.data)?
        };
        for number in 0..count {
            let (index, entry) = (first + number, entry + (number << self.cluster_bits));
            self.note(index, entry)?;
            placed.push(Placement { index, entry });
        }
        Ok(())
    }

    /// Makes room for plain clusters that somebody else writes; answers where.
    pub(crate) fn reserve(&mut self, offset: u64, length: u64) -> Result<u64> {
        let start = self.cursor.next_multiple_of(1 << self.cluster_bits);
        self.cursor = start + length.next_multiple_of(1 << self.cluster_bits);
        self.count(start, self.cursor)?;
        for number in 0..(self.cursor - start) >> self.cluster_bits {
            let at = number << self.cluster_bits;
            self.note((offset >> self.cluster_bits) + number, COPIED | (start + at))?;
        }
        Ok(start)
    }

    fn append_packed(&mut self, data: &[u8]) -> Result<u64> {
        let start = self.cursor;
        let end = start + data.len() as u64;
        self.write(data, "compressed clusters")?;
        // A reader takes whole sectors, and every cluster that they touch is counted.
        let extra = ((end - 1) >> 9) - (start >> 9);
        self.count(start & !511, ((start >> 9) + extra + 1) << 9)?;
        Ok(COMPRESSED | (extra << sectors_shift(self.cluster_bits)) | start)
    }

    /// Stores clusters in a row; answers the entry of the first, and how many they are.
    fn append_plain(&mut self, data: &[u8]) -> Result<(u64, u64)> {
        self.align()?;
        let start = self.cursor;
        self.write(data, "clusters")?;
        self.align()?;
        self.count(start, self.cursor)?;
        Ok((COPIED | start, (self.cursor - start) >> self.cluster_bits))
    }

    fn write(&mut self, data: &[u8], what: &'static str) -> Result<()> {
        self.sink.write_all(data).map_err(Error::write(what))?;
        self.cursor += data.len() as u64;
        Ok(())
    }

    /// Moves on to the next cluster boundary.
    fn align(&mut self) -> Result<()> {
        let cluster = 1_u64 << self.cluster_bits;
        let gap = self.cursor.next_multiple_of(cluster) - self.cursor;
        if gap == 0 {
            return Ok(());
        }
        let zeros = vec![0; usize::try_from(gap).unwrap_or(0)];
        self.write(&zeros, "clusters")
    }

    fn append_table(&mut self, entries: &[u64], what: &'static str) -> Result<u64> {
        self.align()?;
        let start = self.cursor;
        let raw: Vec<u8> = entries.iter().flat_map(|entry| entry.to_be_bytes()).collect();
        self.write(&raw, what)?;
        self.align()?;
        if self.cursor > start {
            self.count(start, self.cursor)?;
        }
        Ok(start)
    }

    /// Writes the tables and the header; answers the length of the file.
    pub(crate) fn finish(mut self) -> Result<u64> {
        self.note_zeros()?;
        self.sink.seek(SeekFrom::Start(self.cursor)).map_err(Error::write("L2 tables"))?;
        let mut l1 = Vec::with_capacity(self.l2.len());
        for table in std::mem::take(&mut self.l2) {
            l1.push(match table {
                Some(entries) => COPIED | self.append_table(&entries, "L2 tables")?,
                None => 0,
            });
        }
        let l1_offset = self.append_table(&l1, "L1 table")?;
        let (refcount_table_offset, refcount_table_clusters) = self.write_refcounts()?;
        let header = Header {
            version: 3,
            cluster_bits: self.cluster_bits,
            size: self.size,
            l1_entries: u32::try_from(l1.len()).unwrap_or(u32::MAX),
            l1_offset,
            refcount_table_offset,
            refcount_table_clusters,
            compression: self.compression,
            snapshots: 0,
            backing: self.backing.take().map(|backing| (backing.file, backing.format.name().to_owned())),
        };
        self.sink.seek(SeekFrom::Start(0)).map_err(Error::write("header"))?;
        self.sink.write_all(&header.to_bytes()).map_err(Error::write("header"))?;
        self.sink.flush().map_err(Error::write("header"))?;
        Ok(self.cursor)
    }

    /// Refcount blocks count themselves and their table: grow both until they fit.
    fn write_refcounts(&mut self) -> Result<(u64, u32)> {
        self.align()?;
        let cluster = 1_u64 << self.cluster_bits;
        let used = self.cursor >> self.cluster_bits;
        let per_block = cluster / 2;
        let (mut blocks, mut table) = (0, 0);
        loop {
            let total = used + blocks + table;
            let wanted = (total.div_ceil(per_block), total.div_ceil(per_block).div_ceil(cluster / 8));
            if wanted == (blocks, table) {
                break;
            }
            (blocks, table) = wanted;
        }
        let table_offset = self.cursor;
        let first_block = table_offset + table * cluster;
        self.count(table_offset, first_block + blocks * cluster)?;
        let mut raw: Vec<u8> =
            (0..blocks).flat_map(|block| (first_block + block * cluster).to_be_bytes()).collect();
        raw.resize(usize::try_from(table * cluster).unwrap_or(usize::MAX), 0);
        self.write(&raw, "refcount table")?;
        let mut counts: Vec<u8> = self.refcounts.iter().flat_map(|count| count.to_be_bytes()).collect();
        counts.resize(usize::try_from(blocks * cluster).unwrap_or(usize::MAX), 0);
        self.write(&counts, "refcount blocks")?;
        Ok((table_offset, u32::try_from(table).unwrap_or(u32::MAX)))
    }
}

impl<W: Write + Seek> Place for Qcow2Writer<W> {
    fn put(&mut self, chunk: &Chunk<'_>, placed: &mut Vec<Placement>) -> Result<()> {
        self.append(chunk, placed)
    }

    fn flush(&mut self) -> Result<u64> {
        self.sink.flush().map_err(Error::write("clusters"))?;
        Ok(self.cursor)
    }
}
