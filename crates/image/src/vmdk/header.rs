//! The header of a sparse extent; little-endian, one sector.

use serde::Serialize;

use super::{DESCRIPTOR_SECTORS, GRAIN_SECTORS, SECTOR};
use crate::{Error, Result};

const MAGIC: u32 = 0x564d_444b; // "KDMV"
/// Flag: the four newline characters detect a file that went through a text transfer.
const NEWLINES: u32 = 1;
/// Flag: the redundant grain directory is valid.
const REDUNDANT: u32 = 2;
/// Flag: grains are compressed.
const COMPRESSED: u32 = 1 << 16;
/// Flag: grains and tables have markers in front.
const MARKERS: u32 = 1 << 17;
/// `gdOffset` that says: look in the footer.
pub(super) const AT_END: u64 = u64::MAX;

/// What the header says.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Header {
    /// 1 to 3.
    pub version: u32,
    /// See the constants of this module.
    pub flags: u32,
    /// The guest's disk in sectors.
    pub capacity: u64,
    /// Sectors in a grain.
    pub grain_sectors: u64,
    /// Where the descriptor is, in sectors; 0: there is none.
    pub descriptor_offset: u64,
    /// Its length in sectors.
    pub descriptor_sectors: u64,
    /// Entries in a grain table.
    pub table_entries: u32,
    /// Where the redundant grain directory is, in sectors.
    pub redundant_directory: u64,
    /// Where the grain directory is, in sectors.
    pub directory: u64,
    /// Sectors in front of the first grain.
    pub overhead: u64,
}

impl Header {
    /// A streamOptimized header. ESXi refuses version 1 ("sparse VMDK version too old").
    pub(super) fn stream(capacity: u64, directory: u64) -> Self {
        Self {
            version: 3,
            flags: NEWLINES | COMPRESSED | MARKERS,
            redundant_directory: 0,
            directory,
            overhead: GRAIN_SECTORS,
            ..Self::plain(capacity)
        }
    }

    fn plain(capacity: u64) -> Self {
        Self {
            version: 1,
            flags: NEWLINES | REDUNDANT,
            capacity,
            grain_sectors: GRAIN_SECTORS,
            descriptor_offset: 1,
            descriptor_sectors: DESCRIPTOR_SECTORS,
            table_entries: 512,
            redundant_directory: 0,
            directory: 0,
            overhead: 0,
        }
    }

    /// A monolithicSparse header.
    pub(super) fn sparse(capacity: u64, redundant: u64, directory: u64, overhead: u64) -> Self {
        Self { redundant_directory: redundant, directory, overhead, ..Self::plain(capacity) }
    }

    /// Whether grains are compressed.
    pub fn compressed(&self) -> bool {
        self.flags & COMPRESSED != 0
    }

    /// Reads and checks one sector. `None`: it is no sparse extent header at all.
    pub(super) fn parse(raw: &[u8]) -> Option<Result<Self>> {
        if le32(raw, 0) != MAGIC || raw.len() < 80 {
            return None;
        }
        let header = Self {
            version: le32(raw, 4),
            flags: le32(raw, 8),
            capacity: le64(raw, 12),
            grain_sectors: le64(raw, 20),
            descriptor_offset: le64(raw, 28),
            descriptor_sectors: le64(raw, 36),
            table_entries: le32(raw, 44),
            redundant_directory: le64(raw, 48),
            directory: le64(raw, 56),
            overhead: le64(raw, 64),
        };
        let newlines = raw.get(73..77) == Some(b"\n \r\n");
        let method = raw.get(77..79).map_or(0, |b| u16::from_le_bytes([b[0], b[1]]));
        Some(header.check(newlines, method).map(|()| header))
    }

    fn check(&self, newlines: bool, method: u16) -> Result<()> {
        if !(1..=3).contains(&self.version) {
            return Err(Error::vmdk(format!("version {} is not known", self.version)));
        }
        if self.flags & NEWLINES != 0 && !newlines {
            return Err(Error::vmdk("its line ends were changed, as by a transfer in text mode"));
        }
        if !self.grain_sectors.is_power_of_two() || !(8..=2048).contains(&self.grain_sectors) {
            return Err(Error::vmdk(format!("grains of {} sectors are out of range", self.grain_sectors)));
        }
        if self.table_entries != 512 {
            return Err(Error::vmdk(format!("grain tables of {} entries are not known", self.table_entries)));
        }
        if self.compressed() && method != 1 {
            return Err(Error::vmdk(format!("compression method {method} is not known")));
        }
        if self.capacity.checked_mul(SECTOR).is_none() {
            return Err(Error::vmdk("its capacity is out of range"));
        }
        Ok(())
    }

    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(512);
        for word in [MAGIC, self.version, self.flags] {
            out.extend(word.to_le_bytes());
        }
        for word in [self.capacity, self.grain_sectors, self.descriptor_offset, self.descriptor_sectors] {
            out.extend(word.to_le_bytes());
        }
        out.extend(self.table_entries.to_le_bytes());
        for word in [self.redundant_directory, self.directory, self.overhead] {
            out.extend(word.to_le_bytes());
        }
        out.push(0); // uncleanShutdown
        out.extend(b"\n \r\n");
        out.extend(u16::from(self.compressed()).to_le_bytes());
        out.resize(512, 0);
        out
    }
}

pub(super) fn le32(raw: &[u8], at: usize) -> u32 {
    raw.get(at..at + 4).map_or(0, |b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]))
}

pub(super) fn le64(raw: &[u8], at: usize) -> u64 {
    u64::from(le32(raw, at)) | (u64::from(le32(raw, at + 4)) << 32)
}
