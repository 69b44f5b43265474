//! Reading sparse VMDK extents: monolithicSparse and streamOptimized, tables in front or behind.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::MetadataExt;

use super::header::{AT_END, Header, le32, le64};
use super::{MAX_SECTORS, SECTOR, SECTOR_LEN, TABLE_ENTRIES, TABLE_LEN, descriptor};
use crate::disk::{Disk, past_the_end};
use crate::qcow2::read_up_to;
use crate::{Error, Result};

/// The longest descriptor that is read, in sectors.
const MAX_DESCRIPTOR: u64 = 128;

/// A VMDK on one file.
#[derive(Debug)]
pub struct VmdkDisk {
    file: File,
    header: Header,
    descriptor: String,
    /// The sector of every grain; 0: none, 1: a grain of zeros.
    grains: Vec<u32>,
}

impl VmdkDisk {
    /// Opens an image; the file's position does not matter.
    pub fn open(file: File) -> Result<Self> {
        let mut header =
            sector(&file, 0)?.ok_or_else(|| Error::vmdk("it does not begin with a sparse extent header"))?;
        let text = read_descriptor(&file, &header)?;
        if header.directory == AT_END {
            let length =
                file.metadata().map_err(|source| Error::Read { offset: 0, length: 0, source })?.size();
            let footer = length.checked_sub(2 * SECTOR).map(|at| sector(&file, at)).transpose()?.flatten();
            header = footer
                .filter(|footer| footer.directory != AT_END)
                .ok_or_else(|| Error::vmdk("its footer is missing: the file was cut short"))?;
        }
        if header.capacity > MAX_SECTORS {
            return Err(Error::vmdk("its capacity is over 2 TiB"));
        }
        let grains = read_grains(&file, &header)?;
        Ok(Self { file, header, descriptor: text, grains })
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
        usize::try_from(index).ok().and_then(|index| self.grains.get(index).copied()).unwrap_or(0)
    }

    fn read_grain(&self, index: u64, skip: u64, buffer: &mut [u8]) -> Result<()> {
        let at = u64::from(self.grain(index)) * SECTOR;
        if at <= SECTOR {
            buffer.fill(0);
            return Ok(());
        }
        if !self.header.compressed() {
            let got = read_up_to(&self.file, at + skip, buffer)?;
            return if got == buffer.len() { Ok(()) } else { Err(past_the_end(at + skip, buffer.len())) };
        }
        let plain = self.inflate(index, at)?;
        let start = usize::try_from(skip).unwrap_or(usize::MAX);
        let part = start.checked_add(buffer.len()).and_then(|end| plain.get(start..end));
        buffer.copy_from_slice(part.ok_or_else(|| past_the_end(at, buffer.len()))?);
        Ok(())
    }

    fn inflate(&self, index: u64, at: u64) -> Result<Vec<u8>> {
        let damaged = |why: &str| {
            Error::vmdk(format!("the grain at guest offset {} is damaged: {why}", index * self.grain_size()))
        };
        let mut front = [0; 12];
        if read_up_to(&self.file, at, &mut front)? < front.len() {
            return Err(damaged("it lies behind the end of the file"));
        }
        if le64(&front, 0) != index * self.header.grain_sectors {
            return Err(damaged("its marker names another grain"));
        }
        let size = usize::try_from(self.grain_size()).unwrap_or(usize::MAX);
        let length = le32(&front, 8) as usize;
        if length > 2 * size {
            return Err(damaged("its compressed size is out of range"));
        }
        let mut packed = vec![0; length];
        if read_up_to(&self.file, at + 12, &mut packed)? < length {
            return Err(damaged("it lies behind the end of the file"));
        }
        let mut plain = vec![0; size];
        let got = libdeflater::Decompressor::new()
            .zlib_decompress(&packed, &mut plain)
            .map_err(|error| damaged(&error.to_string()))?;
        // The last grain may hold just what is left of the disk.
        plain[got..].fill(0);
        Ok(plain)
    }
}

fn sector(file: &File, at: u64) -> Result<Option<Header>> {
    let mut raw = [0; SECTOR_LEN];
    let got = read_up_to(file, at, &mut raw)?;
    Header::parse(&raw[..got]).transpose()
}

fn read_descriptor(file: &File, header: &Header) -> Result<String> {
    if header.descriptor_offset == 0 {
        return Ok(String::new());
    }
    let length = header.descriptor_sectors.min(MAX_DESCRIPTOR) * SECTOR;
    let mut raw = vec![0; usize::try_from(length).unwrap_or(0)];
    let got = read_up_to(file, header.descriptor_offset.saturating_mul(SECTOR), &mut raw)?;
    let end = raw[..got].iter().position(|byte| *byte == 0).unwrap_or(got);
    Ok(String::from_utf8_lossy(&raw[..end]).into_owned())
}

fn read_grains(file: &File, header: &Header) -> Result<Vec<u32>> {
    let grains = header.capacity.div_ceil(header.grain_sectors);
    let tables = usize::try_from(grains.div_ceil(TABLE_ENTRIES)).unwrap_or(usize::MAX);
    let mut directory = vec![0; tables * 4];
    if read_up_to(file, header.directory.saturating_mul(SECTOR), &mut directory)? < directory.len() {
        return Err(Error::vmdk("its grain directory lies behind the end of the file"));
    }
    let mut out = Vec::with_capacity(tables * TABLE_LEN);
    let mut table = vec![0; TABLE_LEN * 4];
    for entry in directory.chunks_exact(4) {
        let at = u64::from(le32(entry, 0)) * SECTOR;
        if at == 0 {
            out.resize(out.len() + TABLE_LEN, 0);
            continue;
        }
        if read_up_to(file, at, &mut table)? < table.len() {
            return Err(Error::vmdk("a grain table lies behind the end of the file"));
        }
        out.extend(table.chunks_exact(4).map(|entry| le32(entry, 0)));
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
        while !rest.is_empty() {
            let skip = at % self.grain_size();
            let length = (self.grain_size() - skip).min(rest.len() as u64);
            let (now, later) = rest.split_at_mut(usize::try_from(length).unwrap_or(usize::MAX));
            self.read_grain(at / self.grain_size(), skip, now)?;
            at += length;
            rest = later;
        }
        Ok(())
    }

    fn next_data(&self, offset: u64) -> Result<Option<Range<u64>>> {
        let size = self.grain_size();
        let skip = usize::try_from(offset / size).unwrap_or(usize::MAX);
        let rest = self.grains.get(skip..).unwrap_or_default();
        let Some(first) = rest.iter().position(|grain| *grain > 1) else { return Ok(None) };
        let count = rest[first..].iter().take_while(|grain| **grain > 1).count();
        let start = ((skip + first) as u64 * size).max(offset);
        let end = ((skip + first + count) as u64 * size).min(self.size());
        Ok((start < end).then_some(start..end))
    }
}
