//! Writing streamOptimized VMDKs: one pass, front to back, over any pipe.

use std::io::Write;

use super::descriptor;
use super::header::{AT_END, Header};
use super::{
    DESCRIPTOR_SECTORS, GRAIN, GRAIN_LEN, GRAIN_SECTORS, MAX_SECTORS, SECTOR, SECTOR_LEN, TABLE_ENTRIES,
    TABLE_LEN, TABLE_SECTORS,
};
use crate::noise::is_noise;
use crate::pipeline::{Chunk, Encode, Encoded};
use crate::resume::{Place, Placement, Resume};
use crate::{Error, Result, is_zero};

const MARKER_TABLE: u32 = 1;
const MARKER_DIRECTORY: u32 = 2;
const MARKER_FOOTER: u32 = 3;

/// Compresses one grain as an RFC 1950 stream with its marker in front, padded to sectors.
pub(crate) struct GrainEncoder {
    compressor: libdeflater::Compressor,
    /// For what cannot be compressed anyway.
    quick: libdeflater::Compressor,
    padded: Vec<u8>,
}

/// Smaller than what qemu-img makes with zlib's level 6, in a third of its time.
const LEVEL: i32 = 5;

impl GrainEncoder {
    pub(crate) fn new(level: Option<i32>) -> Self {
        let compressor = |level: i32| {
            let level = libdeflater::CompressionLvl::new(level.clamp(1, 12)).unwrap_or_default();
            libdeflater::Compressor::new(level)
        };
        Self { compressor: compressor(level.unwrap_or(LEVEL)), quick: compressor(1), padded: Vec::new() }
    }
}

impl Encode for GrainEncoder {
    fn encode(&mut self, offset: u64, data: &[u8], out: &mut Vec<u8>) -> Result<Encoded> {
        if is_zero(data) {
            return Ok(Encoded::Zeros);
        }
        let data = if data.len() == GRAIN_LEN {
            data
        } else {
            self.padded.clear();
            self.padded.extend_from_slice(data);
            self.padded.resize(GRAIN_LEN, 0);
            &self.padded
        };
        let compressor = if is_noise(data) { &mut self.quick } else { &mut self.compressor };
        let start = out.len();
        out.resize(start + 12 + compressor.zlib_compress_bound(data.len()), 0);
        let length = compressor
            .zlib_compress(data, &mut out[start + 12..])
            .map_err(|error| Error::Compress { offset, why: error.to_string() })?;
        out[start..start + 8].copy_from_slice(&(offset / SECTOR).to_le_bytes());
        out[start + 8..start + 12].copy_from_slice(&u32::try_from(length).unwrap_or(u32::MAX).to_le_bytes());
        out.truncate(start + 12 + length);
        out.resize(start + (12 + length).next_multiple_of(SECTOR_LEN), 0);
        Ok(Encoded::Packed)
    }
}

/// Places grains and keeps the tables.
pub(crate) struct StreamWriter<W> {
    sink: W,
    capacity: u64,
    /// The next sector of the file.
    cursor: u64,
    directory: Vec<u32>,
    /// The grain table being filled: its index, and the sectors of its grains.
    table: Option<(usize, Vec<u32>)>,
}

impl<W: Write> StreamWriter<W> {
    pub(crate) fn new(sink: W, size: u64, file_name: &str) -> Result<Self> {
        let mut writer = Self::at(sink, size)?;
        let capacity = writer.capacity;
        let text =
            descriptor::render("streamOptimized", capacity, descriptor::content_id(capacity), file_name);
        writer.write(&Header::stream(capacity, AT_END).to_bytes(), "header")?;
        writer.write(&descriptor::padded(&text, DESCRIPTOR_SECTORS), "descriptor")?;
        let gap = (GRAIN_SECTORS - 1 - DESCRIPTOR_SECTORS) * SECTOR;
        writer.write(&vec![0; usize::try_from(gap).unwrap_or(0)], "descriptor")?;
        Ok(writer)
    }

    /// Goes on where a run broke off; the sink stands behind what that run stored. Where finished
    /// tables lie follows from the grains: each stands right in front of the next table's first.
    pub(crate) fn resume(sink: W, size: u64, at: &Resume) -> Result<Self> {
        let mut writer = Self::at(sink, size)?;
        writer.cursor = at.stored / SECTOR;
        for placement in &at.placements {
            let index = usize::try_from(placement.index / TABLE_ENTRIES).unwrap_or(usize::MAX);
            let sector = u32::try_from(placement.entry).ok().filter(|at| u64::from(*at) < writer.cursor);
            let (Some(sector), true) = (sector, index < writer.directory.len()) else {
                return Err(Error::resume("a grain lies behind the disk"));
            };
            if let Some((current, _)) = &writer.table
                && *current != index
            {
                let table = sector.checked_sub(u32::try_from(TABLE_SECTORS).unwrap_or(4));
                writer.directory[*current] = table.ok_or_else(|| Error::resume("a table has no room"))?;
                writer.table = None;
            }
            let (_, entries) = writer.table.get_or_insert_with(|| (index, vec![0; TABLE_LEN]));
            entries[usize::try_from(placement.index % TABLE_ENTRIES).unwrap_or(0)] = sector;
        }
        Ok(writer)
    }

    fn at(sink: W, size: u64) -> Result<Self> {
        let capacity = size.div_ceil(SECTOR);
        let tables = capacity.div_ceil(GRAIN_SECTORS * TABLE_ENTRIES);
        if capacity > MAX_SECTORS {
            return Err(too_large(size));
        }
        let directory = vec![0; usize::try_from(tables).unwrap_or(0)];
        Ok(Self { sink, capacity, cursor: 0, directory, table: None })
    }

    fn write(&mut self, data: &[u8], what: &'static str) -> Result<()> {
        self.sink.write_all(data).map_err(Error::write(what))?;
        self.cursor += data.len() as u64 / SECTOR;
        if self.cursor > MAX_SECTORS { Err(too_large(self.cursor * SECTOR)) } else { Ok(()) }
    }

    fn append(&mut self, chunk: &Chunk<'_>) -> Result<Placement> {
        let grain = chunk.offset / GRAIN;
        let index = usize::try_from(grain / TABLE_ENTRIES).unwrap_or(usize::MAX);
        if self.table.as_ref().is_some_and(|(current, _)| *current != index) {
            self.finish_table()?;
        }
        let at = u32::try_from(self.cursor).map_err(|_| too_large(self.cursor * SECTOR))?;
        let (_, entries) = self.table.get_or_insert_with(|| (index, vec![0; TABLE_LEN]));
        entries[usize::try_from(grain % TABLE_ENTRIES).unwrap_or(0)] = at;
        self.write(chunk.data, "grains")?;
        Ok(Placement { index: grain, entry: at.into() })
    }

    fn finish_table(&mut self) -> Result<()> {
        let Some((index, entries)) = self.table.take() else { return Ok(()) };
        self.write(&marker(TABLE_SECTORS, MARKER_TABLE), "grain tables")?;
        self.directory[index] = u32::try_from(self.cursor).map_err(|_| too_large(self.cursor * SECTOR))?;
        self.write(&words(&entries), "grain tables")
    }

    /// Writes the directory, the footer and the end of the stream; answers the length of the file.
    pub(crate) fn finish(mut self) -> Result<u64> {
        self.finish_table()?;
        let directory = words(&self.directory);
        self.write(&marker(directory.len() as u64 / SECTOR, MARKER_DIRECTORY), "grain directory")?;
        let at = self.cursor;
        self.write(&directory, "grain directory")?;
        self.write(&marker(1, MARKER_FOOTER), "footer")?;
        self.write(&Header::stream(self.capacity, at).to_bytes(), "footer")?;
        self.write(&[0; SECTOR_LEN], "end of the stream")?;
        self.sink.flush().map_err(Error::write("end of the stream"))?;
        Ok(self.cursor * SECTOR)
    }
}

impl<W: Write> Place for StreamWriter<W> {
    fn put(&mut self, chunk: &Chunk<'_>, placed: &mut Vec<Placement>) -> Result<()> {
        placed.push(self.append(chunk)?);
        Ok(())
    }

    fn flush(&mut self) -> Result<u64> {
        self.sink.flush().map_err(Error::write("grains"))?;
        Ok(self.cursor * SECTOR)
    }
}

/// A marker of something that is no grain: one sector.
fn marker(sectors: u64, kind: u32) -> [u8; SECTOR_LEN] {
    let mut out = [0; SECTOR_LEN];
    out[..8].copy_from_slice(&sectors.to_le_bytes());
    out[12..16].copy_from_slice(&kind.to_le_bytes());
    out
}

/// 32-bit words, padded to sectors.
pub(super) fn words(entries: &[u32]) -> Vec<u8> {
    let mut out: Vec<u8> = entries.iter().flat_map(|entry| entry.to_le_bytes()).collect();
    out.resize(out.len().next_multiple_of(SECTOR_LEN), 0);
    out
}

pub(super) fn too_large(size: u64) -> Error {
    Error::Unsupported {
        format: "VMDK",
        why: format!("{size} bytes are more than the 2 TiB that a sparse extent can hold; use qcow2 or raw"),
    }
}
