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

/// A qcow2 image.
#[derive(Debug)]
pub struct Qcow2Disk {
    file: Arc<dyn Storage>,
    header: Header,
    l1: Vec<u64>,
    tables: Mutex<HashMap<u64, Arc<[u64]>>>,
}

enum Place {
    Zeros,
    Plain(u64),
    Compressed { offset: u64, length: usize },
}

impl Qcow2Disk {
    /// Opens an image.
    pub fn open(file: Arc<dyn Storage>) -> Result<Self> {
        let mut start = vec![0; 112];
        let length = read_up_to(&*file, 0, &mut start)?;
        let header = Header::read(&start[..length])?;
        let mut raw = vec![0; header.l1_entries as usize * 8];
        read_exact(&*file, header.l1_offset, &mut raw)?;
        let l1 = raw.chunks_exact(8).map(|entry| be64(entry, 0)).collect();
        check_length(&*file, &header)?;
        Ok(Self { file, header, l1, tables: Mutex::default() })
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

    fn place(&self, entry: u64) -> Place {
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
            0 => Place::Zeros,
            offset => Place::Plain(offset),
        }
    }

    fn entry(&self, cluster: u64) -> Result<u64> {
        let per_table = self.cluster_size() / 8;
        let index = usize::try_from(cluster / per_table).unwrap_or(usize::MAX);
        let within = usize::try_from(cluster % per_table).unwrap_or(usize::MAX);
        Ok(self.table(index)?.and_then(|table| table.get(within).copied()).unwrap_or(0))
    }

    fn read_cluster(&self, cluster: u64, skip: usize, buffer: &mut [u8]) -> Result<()> {
        match self.place(self.entry(cluster)?) {
            Place::Zeros => buffer.fill(0),
            Place::Plain(offset) => read_exact(&*self.file, offset + skip as u64, buffer)?,
            Place::Compressed { offset, length } => {
                let mut packed = vec![0; length];
                // The last sector may be cut off by the end of the file.
                let got = read_up_to(&*self.file, offset, &mut packed)?;
                let plain = self.inflate(cluster, &packed[..got])?;
                buffer.copy_from_slice(&plain[skip..skip + buffer.len()]);
            }
        }
        Ok(())
    }

    fn inflate(&self, cluster: u64, packed: &[u8]) -> Result<Vec<u8>> {
        let size = 1_usize << self.header.cluster_bits;
        let mut plain = vec![0; size];
        let got = match self.header.compression {
            Compression::Zstd => zstd_frames(packed, &mut plain),
            Compression::Deflate | Compression::None => {
                let mut inflater = flate2::Decompress::new(false);
                let done = inflater.decompress(packed, &mut plain, flate2::FlushDecompress::Finish);
                done.map_err(|error| error.to_string())
                    .map(|_| usize::try_from(inflater.total_out()).unwrap_or(0))
            }
        };
        match got {
            Ok(length) if length == size => Ok(plain),
            Ok(length) => Err(Error::qcow2(format!(
                "the compressed cluster at guest offset {} holds {length} bytes instead of {size}",
                cluster << self.header.cluster_bits
            ))),
            Err(why) => Err(Error::qcow2(format!(
                "the compressed cluster at guest offset {} is damaged: {why}",
                cluster << self.header.cluster_bits
            ))),
        }
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
fn zstd_frames(packed: &[u8], plain: &mut [u8]) -> std::result::Result<usize, String> {
    use zstd::stream::raw::{Decoder, InBuffer, Operation, OutBuffer};
    let mut decoder = Decoder::new().map_err(|error| error.to_string())?;
    let mut input = InBuffer::around(packed);
    let mut output = OutBuffer::around(plain);
    let mut hint = 1;
    while input.pos() < packed.len() {
        let before = (input.pos(), output.pos());
        hint = decoder.run(&mut input, &mut output).map_err(|error| error.to_string())?;
        let full = output.pos() == output.capacity();
        if (hint == 0 && full) || before == (input.pos(), output.pos()) {
            break;
        }
        if hint == 0 {
            decoder.reinit().map_err(|error| error.to_string())?;
        }
    }
    // A frame that is not at its end has not been checked against its checksum.
    if hint != 0 { Err("the frame has no end".into()) } else { Ok(output.pos()) }
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
        while !rest.is_empty() {
            let skip = at % self.cluster_size();
            let length = (self.cluster_size() - skip).min(rest.len() as u64);
            let (now, later) = rest.split_at_mut(usize::try_from(length).unwrap_or(usize::MAX));
            self.read_cluster(at >> self.header.cluster_bits, usize::try_from(skip).unwrap_or(0), now)?;
            at += length;
            rest = later;
        }
        Ok(())
    }

    fn next_data(&self, offset: u64) -> Result<Option<Range<u64>>> {
        if offset >= self.header.size {
            return Ok(None);
        }
        let size = self.cluster_size();
        let per_table = size / 8;
        let clusters = self.header.size.div_ceil(size);
        let mut cluster = offset / size;
        let mut start = None;
        while cluster < clusters {
            let index = usize::try_from(cluster / per_table).unwrap_or(usize::MAX);
            let Some(table) = self.table(index)? else {
                if start.is_some() {
                    break;
                }
                cluster = (cluster / per_table + 1) * per_table;
                continue;
            };
            let within = usize::try_from(cluster % per_table).unwrap_or(usize::MAX);
            let zeros = matches!(self.place(table.get(within).copied().unwrap_or(0)), Place::Zeros);
            match (zeros, start) {
                (true, Some(_)) => break,
                (false, None) => start = Some(cluster),
                _ => {}
            }
            cluster += 1;
        }
        Ok(start.map(|first| (first * size).max(offset)..(cluster * size).min(self.header.size)))
    }
}

fn read_exact(file: &dyn Storage, offset: u64, buffer: &mut [u8]) -> Result<()> {
    let got = read_up_to(file, offset, buffer)?;
    if got == buffer.len() { Ok(()) } else { Err(past_the_end(offset, buffer.len())) }
}
