//! Reading qcow2.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use super::header::be64;
use super::{COMPRESSED, Compression, Header, OFFSET_MASK, ZERO, sectors_shift};
use crate::disk::{Disk, past_the_end};
use crate::storage::{Storage, length_of, read_up_to};
use crate::{Error, Result};

/// L2 tables kept in memory, in bytes.
const CACHE: usize = 64 << 20;
/// The header, its extensions and the name of a backing file lie within so many bytes.
const FRONT: usize = 64 << 10;
/// How far clusters are followed that lie one after the other, in bytes.
const RUN: u64 = 32 << 20;

/// A qcow2 image.
#[derive(Debug)]
pub struct Qcow2Disk {
    file: Arc<dyn Storage>,
    header: Header,
    l1: Vec<u64>,
    tables: Mutex<HashMap<u64, Arc<[u64]>>>,
    scratch: Mutex<Vec<Scratch>>,
    backing: Option<Box<dyn Backing>>,
}

/// A disk that another one builds on.
pub trait Backing: Disk + Send + std::fmt::Debug {}

impl<D: Disk + Send + std::fmt::Debug> Backing for D {}

enum Place {
    Zeros,
    /// This image says nothing about it.
    Backing,
    Plain(u64),
    Compressed {
        offset: u64,
        length: usize,
    },
}

impl Qcow2Disk {
    /// Opens an image that builds on no other one.
    ///
    /// # Errors
    /// What is damaged or not known, and images with a backing file: see [`Qcow2Disk::open_over`].
    pub fn open(file: Arc<dyn Storage>) -> Result<Self> {
        let disk = Self::open_alone(file)?;
        match &disk.header.backing {
            None => Ok(disk),
            Some((name, _)) => Err(Error::qcow2(format!(
                "it builds on the backing file `{name}`, which is not at hand; keep both in one directory, or \
                 flatten it with qemu-img convert first"
            ))),
        }
    }

    /// Opens an image by itself: what only its backing file holds reads as zeros.
    ///
    /// # Errors
    /// What is damaged or not known.
    pub fn open_alone(file: Arc<dyn Storage>) -> Result<Self> {
        let mut start = vec![0; FRONT];
        let length = read_up_to(&*file, 0, &mut start)?;
        let header = Header::read(&start[..length])?;
        let mut raw = vec![0; header.l1_entries as usize * 8];
        read_exact(&*file, header.l1_offset, &mut raw)?;
        let l1 = raw.chunks_exact(8).map(|entry| be64(entry, 0)).collect();
        check_length(&*file, &header)?;
        Ok(Self { file, header, l1, tables: Mutex::default(), scratch: Mutex::default(), backing: None })
    }

    /// Opens an image over the disk that it builds on.
    ///
    /// # Errors
    /// As [`Qcow2Disk::open_alone`].
    pub fn open_over(file: Arc<dyn Storage>, backing: Box<dyn Backing>) -> Result<Self> {
        Ok(Self { backing: Some(backing), ..Self::open_alone(file)? })
    }

    /// What the header says.
    pub fn header(&self) -> &Header {
        &self.header
    }

    fn cluster_size(&self) -> u64 {
        1 << self.header.cluster_bits
    }

    fn table(&self, index: usize) -> Result<Option<Arc<[u64]>>> {
        let entry = self.l1.get(index).copied().unwrap_or(0);
        let offset = entry & OFFSET_MASK;
        if offset == 0 {
            return Ok(None);
        }
        let mut tables = self.tables.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(table) = tables.get(&offset) {
            return Ok(Some(table.clone()));
        }
        let size = 1_usize << self.header.cluster_bits;
        if (tables.len() + 1) * size > CACHE {
            tables.clear();
        }
        let mut raw = vec![0; size];
        read_exact(&*self.file, offset, &mut raw)?;
        let table: Arc<[u64]> = raw.chunks_exact(8).map(|entry| be64(entry, 0)).collect();
        tables.insert(offset, table.clone());
        Ok(Some(table))
    }

    fn place_of(&self, entry: u64) -> Place {
        if entry & COMPRESSED != 0 {
            let shift = sectors_shift(self.header.cluster_bits);
            let offset = entry & ((1 << shift) - 1);
            let sectors = (entry & (COMPRESSED - 1)) >> shift;
            let length = (sectors + 1) * 512 - offset % 512;
            return Place::Compressed { offset, length: usize::try_from(length).unwrap_or(usize::MAX) };
        }
        let zero = self.header.version > 2 && entry & ZERO != 0;
        match entry & OFFSET_MASK {
            _ if zero => Place::Zeros,
            0 => Place::Backing,
            offset => Place::Plain(offset),
        }
    }

    fn entry(&self, cluster: u64) -> Result<u64> {
        let per_table = self.cluster_size() / 8;
        let index = usize::try_from(cluster / per_table).unwrap_or(usize::MAX);
        let within = usize::try_from(cluster % per_table).unwrap_or(usize::MAX);
        Ok(self.table(index)?.and_then(|table| table.get(within).copied()).unwrap_or(0))
    }

    /// The place of a cluster, and how many bytes from `skip` into it, at most `most`, lie at that place
    /// in one piece: plain clusters that follow each other in the file as on the disk are read at once.
    fn run(&self, cluster: u64, skip: u64, most: u64) -> Result<(Place, u64)> {
        let size = self.cluster_size();
        let place = self.place_of(self.entry(cluster)?);
        let mut length = size - skip;
        if let Place::Plain(offset) = place {
            let mut next = 1;
            while length < most {
                match self.place_of(self.entry(cluster + next)?) {
                    Place::Plain(found) if found == offset + (next << self.header.cluster_bits) => {}
                    _ => break,
                }
                length += size;
                next += 1;
            }
        }
        Ok((place, length.min(most)))
    }

    fn read_run(&self, place: &Place, at: u64, buffer: &mut [u8], scratch: &mut Scratch) -> Result<()> {
        let (cluster, skip) = (at >> self.header.cluster_bits, at % self.cluster_size());
        match *place {
            Place::Zeros => buffer.fill(0),
            Place::Backing => self.read_backing(at, buffer)?,
            Place::Plain(offset) => read_exact(&*self.file, offset + skip, buffer)?,
            Place::Compressed { offset, length } => {
                let Scratch { packed, plain, zstd, deflate } = scratch;
                packed.resize(length, 0);
                // The last sector may be cut off by the end of the file.
                let got = read_up_to(&*self.file, offset, packed)?;
                let packed = packed.get(..got).unwrap_or_default();
                let size = 1_usize << self.header.cluster_bits;
                let whole = buffer.len() == size;
                if !whole {
                    plain.resize(size, 0);
                }
                let target = if whole { &mut *buffer } else { &mut plain[..] };
                let found = match self.header.compression {
                    Compression::Zstd => zstd_frames(zstd, packed, target),
                    Compression::Deflate | Compression::None => {
                        deflate.deflate_decompress(packed, target).map_err(|error| error.to_string())
                    }
                };
                self.check_cluster(cluster, found)?;
                if !whole {
                    let skip = usize::try_from(skip).unwrap_or(usize::MAX);
                    buffer.copy_from_slice(&plain[skip..skip + buffer.len()]);
                }
            }
        }
        Ok(())
    }

    fn check_cluster(&self, cluster: u64, found: std::result::Result<usize, String>) -> Result<()> {
        let (offset, size) = (cluster << self.header.cluster_bits, 1_usize << self.header.cluster_bits);
        match found {
            Ok(length) if length == size => Ok(()),
            Ok(length) => Err(Error::qcow2(format!(
                "the compressed cluster at guest offset {offset} holds {length} bytes instead of {size}"
            ))),
            Err(why) => Err(Error::qcow2(format!(
                "the compressed cluster at guest offset {offset} is damaged: {why}"
            ))),
        }
    }

    /// What this image says nothing about; zeros behind the end of the backing disk, or without one.
    fn read_backing(&self, at: u64, buffer: &mut [u8]) -> Result<()> {
        let Some(backing) = &self.backing else {
            buffer.fill(0);
            return Ok(());
        };
        let there =
            usize::try_from(backing.size().saturating_sub(at)).unwrap_or(usize::MAX).min(buffer.len());
        let (now, behind) = buffer.split_at_mut(there);
        behind.fill(0);
        if now.is_empty() { Ok(()) } else { backing.read_at(at, now) }
    }

    fn scratch(&self) -> Result<Scratch> {
        let spare = self.scratch.lock().unwrap_or_else(PoisonError::into_inner).pop();
        spare.map_or_else(Scratch::new, Ok)
    }
}

/// What it takes to decompress clusters, used again and again.
struct Scratch {
    packed: Vec<u8>,
    plain: Vec<u8>,
    zstd: zstd::bulk::Decompressor<'static>,
    deflate: libdeflater::Decompressor,
}

impl Scratch {
    fn new() -> Result<Self> {
        let zstd = zstd::bulk::Decompressor::new();
        let zstd = zstd.map_err(|error| Error::qcow2(format!("no room for a decompressor: {error}")))?;
        let deflate = libdeflater::Decompressor::new();
        Ok(Self { packed: Vec::new(), plain: Vec::new(), zstd, deflate })
    }
}

impl std::fmt::Debug for Scratch {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("Scratch")
    }
}

/// Refcounts are not needed for reading, but they are what stands last in an image written in one
/// go: an image that lacks them was cut short.
fn check_length(file: &dyn Storage, header: &Header) -> Result<()> {
    let cluster = 1_u64 << header.cluster_bits;
    let length = u64::from(header.refcount_table_clusters) << header.cluster_bits;
    // QEMU's limit (QCOW_MAX_REFTABLE_SIZE, 8 MiB).
    if length > 8 << 20 {
        return Err(Error::qcow2("its refcount table is larger than 8 MiB"));
    }
    let mut table = vec![0; usize::try_from(length).unwrap_or(0)];
    read_exact(file, header.refcount_table_offset, &mut table)?;
    let last = table.chunks_exact(8).map(|entry| be64(entry, 0) & OFFSET_MASK).max().unwrap_or(0);
    if last > 0 && last.saturating_add(cluster) > length_of(file)? {
        return Err(Error::qcow2("its refcounts lie behind the end of the file: it was cut short"));
    }
    Ok(())
}

/// Decodes frames until a cluster is full: QEMU accepts several in one cluster, and what follows
/// the last one is padding to the sector.
fn zstd_frames(
    zstd: &mut zstd::bulk::Decompressor<'_>,
    packed: &[u8],
    plain: &mut [u8],
) -> std::result::Result<usize, String> {
    let (mut rest, mut filled) = (packed, 0);
    while filled < plain.len() {
        let length = zstd::zstd_safe::find_frame_compressed_size(rest);
        let length = length.map_err(|code| zstd::zstd_safe::get_error_name(code).to_owned())?;
        let (frame, behind) = rest.split_at_checked(length).ok_or("the frame has no end")?;
        let got = zstd.decompress_to_buffer(frame, &mut plain[filled..]);
        filled += got.map_err(|error| error.to_string())?;
        if length == 0 || behind.is_empty() {
            break;
        }
        rest = behind;
    }
    Ok(filled)
}

impl Disk for Qcow2Disk {
    fn size(&self) -> u64 {
        self.header.size
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let end = offset.checked_add(buffer.len() as u64).filter(|end| *end <= self.header.size);
        end.ok_or_else(|| past_the_end(offset, buffer.len()))?;
        let mut at = offset;
        let mut rest = buffer;
        let mut scratch = self.scratch()?;
        while !rest.is_empty() {
            let skip = at % self.cluster_size();
            let (place, length) = self.run(at >> self.header.cluster_bits, skip, rest.len() as u64)?;
            let (now, later) = rest.split_at_mut(usize::try_from(length).unwrap_or(usize::MAX));
            self.read_run(&place, at, now, &mut scratch)?;
            at += length;
            rest = later;
        }
        self.scratch.lock().unwrap_or_else(PoisonError::into_inner).push(scratch);
        Ok(())
    }

    fn next_data(&self, offset: u64) -> Result<Option<Range<u64>>> {
        let own = self.next_own(offset)?;
        let Some(backing) = &self.backing else { return Ok(own) };
        // What lies below may be hidden by clusters of zeros here, which reading finds out.
        let below = if offset < backing.size() { backing.next_data(offset)? } else { None };
        let below = below.map(|range| range.start..range.end.min(self.header.size));
        Ok(match (own, below.filter(|range| range.start < range.end)) {
            (Some(own), Some(below)) if below.start < own.start => {
                Some(below.start..below.end.min(own.start))
            }
            (None, below) => below,
            (own, _) => own,
        })
    }

    fn place(&self, offset: u64) -> Result<Option<(&std::fs::File, u64, u64)>> {
        if offset < self.header.size { self.plain(offset) } else { Ok(None) }
    }
}

impl Qcow2Disk {
    /// Clusters that are stored as they are, one after the other.
    fn plain(&self, offset: u64) -> Result<Option<(&std::fs::File, u64, u64)>> {
        let skip = offset % self.cluster_size();
        let most = self.header.size - offset;
        let (place, length) = self.run(offset >> self.header.cluster_bits, skip, most.min(RUN))?;
        Ok(match (place, self.file.as_file()) {
            (Place::Plain(at), Some(file)) => Some((file, at + skip, length)),
            _ => None,
        })
    }

    /// The next clusters that this image itself holds, up to the end of a table.
    fn next_own(&self, offset: u64) -> Result<Option<Range<u64>>> {
        if offset >= self.header.size {
            return Ok(None);
        }
        let size = self.cluster_size();
        let per_table = size / 8;
        let clusters = self.header.size.div_ceil(size);
        let mut cluster = offset / size;
        let mut start = None;
        while cluster < clusters {
            if start.is_some() && cluster.is_multiple_of(per_table) {
                break;
            }
            let index = usize::try_from(cluster / per_table).unwrap_or(usize::MAX);
            let Some(table) = self.table(index)? else {
                cluster = (cluster / per_table + 1) * per_table;
                continue;
            };
            let end = ((cluster / per_table + 1) * per_table).min(clusters);
            while cluster < end {
                let within = usize::try_from(cluster % per_table).unwrap_or(usize::MAX);
                let place = self.place_of(table.get(within).copied().unwrap_or(0));
                match (matches!(place, Place::Zeros | Place::Backing), start) {
                    (true, Some(_)) => break,
                    (false, None) => start = Some(cluster),
                    _ => {}
                }
                cluster += 1;
            }
            if start.is_some() {
                break;
            }
        }
        Ok(start.map(|first| (first * size).max(offset)..(cluster * size).min(self.header.size)))
    }
}

fn read_exact(file: &dyn Storage, offset: u64, buffer: &mut [u8]) -> Result<()> {
    let got = read_up_to(file, offset, buffer)?;
    if got == buffer.len() { Ok(()) } else { Err(past_the_end(offset, buffer.len())) }
}
