//! Writing monolithicSparse VMDKs: uncompressed, on a sink that can seek.

use std::io::{Seek, SeekFrom, Write};

use super::descriptor;
use super::header::Header;
use super::stream::{too_large, words};
use super::{
    DESCRIPTOR_SECTORS, GRAIN, GRAIN_LEN, GRAIN_SECTORS, MAX_SECTORS, SECTOR, TABLE_ENTRIES, TABLE_SECTORS,
};
use crate::pipeline::Chunk;
use crate::resume::{Place, Placement, Resume};
use crate::{Error, Result};

/// Places grains behind the tables, whose size is known from the start.
pub(crate) struct SparseWriter<W> {
    sink: W,
    header: Header,
    file_name: String,
    /// The next sector of the file.
    cursor: u64,
    /// The sector of every grain, 0 where there is none.
    grains: Vec<u32>,
}

impl<W: Write + Seek> SparseWriter<W> {
    pub(crate) fn new(mut sink: W, size: u64, file_name: &str) -> Result<Self> {
        let capacity = size.div_ceil(SECTOR);
        if capacity > MAX_SECTORS {
            return Err(too_large(size));
        }
        let tables = capacity.div_ceil(GRAIN_SECTORS * TABLE_ENTRIES);
        let directory_sectors = (tables * 4).div_ceil(SECTOR);
        let copy = directory_sectors + tables * TABLE_SECTORS;
        let redundant = 1 + DESCRIPTOR_SECTORS;
        let overhead = (redundant + 2 * copy).next_multiple_of(GRAIN_SECTORS);
        sink.seek(SeekFrom::Start(overhead * SECTOR)).map_err(Error::write("grains"))?;
        Ok(Self {
            sink,
            header: Header::sparse(capacity, redundant, redundant + copy, overhead),
            file_name: file_name.into(),
            cursor: overhead,
            grains: vec![0; usize::try_from(tables * TABLE_ENTRIES).unwrap_or(0)],
        })
    }

    /// Goes on where a run broke off.
    pub(crate) fn resume(&mut self, at: &Resume) -> Result<()> {
        for placement in &at.placements {
            let entry = u32::try_from(placement.entry).ok();
            let slot = usize::try_from(placement.index).ok().and_then(|index| self.grains.get_mut(index));
            match (slot, entry) {
                (Some(slot), Some(entry)) => *slot = entry,
                _ => return Err(Error::resume("a grain lies behind the disk")),
            }
        }
        self.cursor = self.cursor.max(at.stored / SECTOR);
        self.sink.seek(SeekFrom::Start(self.cursor * SECTOR)).map_err(Error::write("grains"))?;
        Ok(())
    }

    /// Makes room for grains that somebody else writes; answers where, in bytes.
    pub(crate) fn reserve(&mut self, offset: u64, length: u64) -> Result<u64> {
        let start = self.cursor;
        for number in 0..length.div_ceil(GRAIN) {
            let entry = u32::try_from(self.cursor).map_err(|_| too_large(self.cursor * SECTOR))?;
            let slot = usize::try_from(offset / GRAIN + number).ok().and_then(|at| self.grains.get_mut(at));
            *slot.ok_or_else(|| Error::resume("a grain lies behind the disk"))? = entry;
            self.cursor += GRAIN_SECTORS;
        }
        Ok(start * SECTOR)
    }

    fn append(&mut self, chunk: &Chunk<'_>, placed: &mut Vec<Placement>) -> Result<()> {
        let data = chunk.data;
        self.sink.write_all(data).map_err(Error::write("grains"))?;
        let gap = data.len().next_multiple_of(GRAIN_LEN) - data.len();
        if gap > 0 {
            self.sink.write_all(&vec![0; gap]).map_err(Error::write("grains"))?;
        }
        let first = chunk.offset / GRAIN;
        for index in first..first + data.len().div_ceil(GRAIN_LEN) as u64 {
            let grain = usize::try_from(index).unwrap_or(usize::MAX);
            let entry = u32::try_from(self.cursor).map_err(|_| too_large(self.cursor * SECTOR))?;
            self.grains[grain] = entry;
            self.cursor += GRAIN_SECTORS;
            placed.push(Placement { index, entry: entry.into() });
        }
        Ok(())
    }

    /// Writes header, descriptor and both copies of the tables; answers the length of the file.
    pub(crate) fn finish(mut self) -> Result<u64> {
        let capacity = self.header.capacity;
        let text = descriptor::render(
            "monolithicSparse",
            capacity,
            descriptor::content_id(capacity),
            &self.file_name,
        );
        let mut front = self.header.to_bytes();
        front.extend(descriptor::padded(&text, DESCRIPTOR_SECTORS));
        for start in [self.header.redundant_directory, self.header.directory] {
            front.extend(self.tables(start));
        }
        front.resize(usize::try_from(self.header.overhead * SECTOR).unwrap_or(0), 0);
        self.sink.seek(SeekFrom::Start(0)).map_err(Error::write("grain tables"))?;
        self.sink.write_all(&front).map_err(Error::write("grain tables"))?;
        self.sink.flush().map_err(Error::write("grain tables"))?;
        Ok(self.cursor * SECTOR)
    }

    /// A directory at sector `start` and the tables behind it.
    fn tables(&self, start: u64) -> Vec<u8> {
        let count = self.grains.len() as u64 / TABLE_ENTRIES;
        let first = start + (count * 4).div_ceil(SECTOR);
        let directory: Vec<u32> = (0..count)
            .map(|table| u32::try_from(first + table * TABLE_SECTORS).unwrap_or(u32::MAX))
            .collect();
        let mut out = words(&directory);
        out.extend(words(&self.grains));
        out
    }
}

impl<W: Write + Seek> Place for SparseWriter<W> {
    fn put(&mut self, chunk: &Chunk<'_>, placed: &mut Vec<Placement>) -> Result<()> {
        self.append(chunk, placed)
    }

    fn flush(&mut self) -> Result<u64> {
        self.sink.flush().map_err(Error::write("grains"))?;
        Ok(self.cursor * SECTOR)
    }
}
