//! Reading sparse VMDK extents: monolithicSparse and streamOptimized, tables in front or behind.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use super::header::{AT_END, Header, le32, le64};
use super::{MAX_SECTORS, SECTOR, SECTOR_LEN, TABLE_ENTRIES, TABLE_LEN, descriptor};
use crate::disk::{Disk, past_the_end};
use crate::storage::{Storage, length_of, read_up_to};
use crate::{Error, Result};

/// The longest descriptor that is read, in sectors.
const MAX_DESCRIPTOR: u64 = 128;

/// The sector of every grain of a table; 0: none, 1: a grain of zeros.
type Table = Arc<[u32]>;

/// A VMDK in one file.
#[derive(Debug)]
pub struct VmdkDisk {
    file: Arc<dyn Storage>,
    header: Header,
    descriptor: String,
    /// The grain tables; `None`: nothing but zeros. A directory may name one table many times.
    tables: Vec<Option<Table>>,
    spare: Mutex<Vec<Scratch>>,
}

/// What it takes to inflate grains, used again and again.
struct Scratch {
    packed: Vec<u8>,
    plain: Vec<u8>,
    inflate: libdeflater::Decompressor,
}

impl std::fmt::Debug for Scratch {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("Scratch")
    }
}

impl VmdkDisk {
    /// Opens an image.
    pub fn open(file: Arc<dyn Storage>) -> Result<Self> {
        let mut header =
            sector(&*file, 0)?.ok_or_else(|| Error::vmdk("it does not begin with a sparse extent header"))?;
        let text = read_descriptor(&*file, &header)?;
        if header.directory == AT_END {
            let footer = length_of(&*file)?
                .checked_sub(2 * SECTOR)
                .map(|at| sector(&*file, at))
                .transpose()?
                .flatten();
            header = footer
                .filter(|footer| footer.directory != AT_END)
                .ok_or_else(|| Error::vmdk("its footer is missing: the file was cut short"))?;
        }
        if header.capacity > MAX_SECTORS {
            return Err(Error::vmdk("its capacity is over 2 TiB"));
        }
        let tables = read_tables(&*file, &header)?;
        Ok(Self { file, header, descriptor: text, tables, spare: Mutex::default() })
    }

    /// What the header (or the footer) says.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// `createType` of the descriptor, for example `streamOptimized`.
    pub fn create_type(&self) -> String {
        let fallback = if self.header.compressed() { "streamOptimized" } else { "monolithicSparse" };
        descriptor::create_type(&self.descriptor).unwrap_or_else(|| fallback.into())
    }

    fn grain_size(&self) -> u64 {
        self.header.grain_sectors * SECTOR
    }

    fn grain(&self, index: u64) -> u32 {
        let table = usize::try_from(index / TABLE_ENTRIES).ok().and_then(|table| self.tables.get(table));
        let within = usize::try_from(index % TABLE_ENTRIES).unwrap_or(usize::MAX);
        table.and_then(Option::as_ref).and_then(|table| table.get(within).copied()).unwrap_or(0)
    }

    fn read_grain(&self, index: u64, skip: u64, buffer: &mut [u8], scratch: &mut Scratch) -> Result<()> {
        let at = u64::from(self.grain(index)) * SECTOR;
        if at <= SECTOR {
            buffer.fill(0);
            return Ok(());
        }
        if !self.header.compressed() {
            let got = read_up_to(&*self.file, at + skip, buffer)?;
            return if got == buffer.len() { Ok(()) } else { Err(past_the_end(at + skip, buffer.len())) };
        }
        let size = usize::try_from(self.grain_size()).unwrap_or(usize::MAX);
        let Scratch { packed, plain, inflate } = scratch;
        if buffer.len() == size {
            return self.inflate(index, at, buffer, (packed, inflate));
        }
        plain.resize(size, 0);
        self.inflate(index, at, plain, (packed, inflate))?;
        let start = usize::try_from(skip).unwrap_or(usize::MAX);
        let part = start.checked_add(buffer.len()).and_then(|end| plain.get(start..end));
        buffer.copy_from_slice(part.ok_or_else(|| past_the_end(at, buffer.len()))?);
        Ok(())
    }

    /// Fills `plain`, which has the size of a grain.
    fn inflate(
        &self,
        index: u64,
        at: u64,
        plain: &mut [u8],
        (packed, inflate): (&mut Vec<u8>, &mut libdeflater::Decompressor),
    ) -> Result<()> {
        let damaged = |why: &str| {
            Error::vmdk(format!("the grain at guest offset {} is damaged: {why}", index * self.grain_size()))
        };
        let mut front = [0; 12];
        if read_up_to(&*self.file, at, &mut front)? < front.len() {
            return Err(damaged("it lies behind the end of the file"));
        }
        if le64(&front, 0) != index * self.header.grain_sectors {
            return Err(damaged("its marker names another grain"));
        }
        let length = le32(&front, 8) as usize;
        if length > plain.len().saturating_mul(2) {
            return Err(damaged("its compressed size is out of range"));
        }
        packed.resize(length, 0);
        if read_up_to(&*self.file, at + 12, packed)? < length {
            return Err(damaged("it lies behind the end of the file"));
        }
        let got = inflate.zlib_decompress(packed, plain).map_err(|error| damaged(&error.to_string()))?;
        // The last grain may hold just what is left of the disk.
        plain[got..].fill(0);
        Ok(())
    }
}

fn sector(file: &dyn Storage, at: u64) -> Result<Option<Header>> {
    let mut raw = [0; SECTOR_LEN];
    let got = read_up_to(file, at, &mut raw)?;
    Header::parse(&raw[..got]).transpose()
}

fn read_descriptor(file: &dyn Storage, header: &Header) -> Result<String> {
    if header.descriptor_offset == 0 {
        return Ok(String::new());
    }
    let length = header.descriptor_sectors.min(MAX_DESCRIPTOR) * SECTOR;
    let mut raw = vec![0; usize::try_from(length).unwrap_or(0)];
    let got = read_up_to(file, header.descriptor_offset.saturating_mul(SECTOR), &mut raw)?;
    let end = raw[..got].iter().position(|byte| *byte == 0).unwrap_or(got);
    Ok(String::from_utf8_lossy(&raw[..end]).into_owned())
}

fn read_tables(file: &dyn Storage, header: &Header) -> Result<Vec<Option<Table>>> {
    let grains = header.capacity.div_ceil(header.grain_sectors);
    let count = usize::try_from(grains.div_ceil(TABLE_ENTRIES)).unwrap_or(usize::MAX);
    let start = header.directory.saturating_mul(SECTOR);
    // Before anything is allocated for it: the directory has to be there.
    if length_of(file)?.saturating_sub(start) < count as u64 * 4 {
        return Err(Error::vmdk("its grain directory lies behind the end of the file"));
    }
    let mut directory = vec![0; count * 4];
    if read_up_to(file, start, &mut directory)? < directory.len() {
        return Err(Error::vmdk("its grain directory lies behind the end of the file"));
    }
    let mut known: HashMap<u32, Table> = HashMap::new();
    let mut out = Vec::with_capacity(count);
    let mut raw = vec![0; TABLE_LEN * 4];
    for entry in directory.chunks_exact(4) {
        let sector = le32(entry, 0);
        if sector == 0 {
            out.push(None);
            continue;
        }
        if let Some(table) = known.get(&sector) {
            out.push(Some(table.clone()));
            continue;
        }
        if read_up_to(file, u64::from(sector) * SECTOR, &mut raw)? < raw.len() {
            return Err(Error::vmdk("a grain table lies behind the end of the file"));
        }
        let table: Table = raw.chunks_exact(4).map(|entry| le32(entry, 0)).collect();
        known.insert(sector, table.clone());
        out.push(Some(table));
    }
    Ok(out)
}

impl Disk for VmdkDisk {
    fn size(&self) -> u64 {
        self.header.capacity * SECTOR
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let end = offset.checked_add(buffer.len() as u64).filter(|end| *end <= self.size());
        end.ok_or_else(|| past_the_end(offset, buffer.len()))?;
        let mut at = offset;
        let mut rest = buffer;
        let spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut scratch = spare.unwrap_or_else(|| Scratch {
            packed: Vec::new(),
            plain: Vec::new(),
            inflate: libdeflater::Decompressor::new(),
        });
        while !rest.is_empty() {
            let skip = at % self.grain_size();
            let length = (self.grain_size() - skip).min(rest.len() as u64);
            let (now, later) = rest.split_at_mut(usize::try_from(length).unwrap_or(usize::MAX));
            self.read_grain(at / self.grain_size(), skip, now, &mut scratch)?;
            at += length;
            rest = later;
        }
        self.spare.lock().unwrap_or_else(PoisonError::into_inner).push(scratch);
        Ok(())
    }

    fn next_data(&self, offset: u64) -> Result<Option<Range<u64>>> {
        let size = self.grain_size();
        let grains = self.header.capacity.div_ceil(self.header.grain_sectors);
        let mut grain = offset / size;
        let mut start = None;
        while grain < grains {
            let table = usize::try_from(grain / TABLE_ENTRIES).ok().and_then(|index| self.tables.get(index));
            if start.is_none() && table.is_none_or(Option::is_none) {
                grain = (grain / TABLE_ENTRIES + 1) * TABLE_ENTRIES;
                continue;
            }
            match (self.grain(grain) > 1, start) {
                (false, Some(_)) => break,
                (true, None) => start = Some(grain),
                _ => {}
            }
            grain += 1;
        }
        let end = grain.saturating_mul(size).min(self.size());
        Ok(start.map(|first| (first * size).max(offset)..end).filter(|range| range.start < range.end))
    }
}
