//! The header of a qcow2 file.

use std::io::Read;

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

pub(super) const MAGIC: u32 = 0x5146_49fb;
/// Written header length: the fields of version 3 with the compression type, padded to 8.
const LENGTH: u32 = 112;
/// Header extension: the format of the backing file.
const BACKING_FORMAT: u32 = 0xe279_2aca;
/// Extensions and the name of a backing file are looked for up to here, in bytes.
const MAX_FRONT: u64 = 64 << 10;
/// Incompatible feature bit 0: refcounts may be wrong. They are not needed for reading.
const DIRTY: u64 = 1;
/// Incompatible feature bit 3: the compression type is not deflate.
const COMPRESSION_TYPE: u64 = 1 << 3;

/// How clusters are compressed.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    /// Clusters are stored as they are.
    #[default]
    None,
    /// Raw deflate with a 4 KiB window, which is what every reader of qcow2 can inflate.
    Deflate,
    /// zstd frames with a content checksum; needs QEMU 5.1 or newer.
    Zstd,
}

/// What the header says.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Header {
    /// 2 or 3.
    pub version: u32,
    /// Cluster size as a power of two, 9 to 21.
    pub cluster_bits: u32,
    /// The guest's disk in bytes.
    pub size: u64,
    /// Entries in the L1 table.
    pub l1_entries: u32,
    /// Where the L1 table is, in bytes.
    pub l1_offset: u64,
    /// Where the refcount table is, in bytes.
    pub refcount_table_offset: u64,
    /// How many clusters it takes.
    pub refcount_table_clusters: u32,
    /// The method of compressed clusters.
    pub compression: Compression,
    /// Snapshots inside the image. Only the active state is read.
    pub snapshots: u32,
    /// The image that this one builds on: its name and its format, as the header states them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backing: Option<(String, String)>,
}

impl Header {
    /// Reads and checks a header. Refused: encryption, external data files,
    /// extended L2 entries, corrupt images, sizes that no L1 table of this file can map.
    pub fn read(mut file: impl Read) -> Result<Self> {
        let mut behind = Vec::new();
        let mut raw = [0; 72];
        let short = |source| Error::Read { offset: 0, length: 112, source };
        file.read_exact(&mut raw).map_err(short)?;
        if be32(&raw, 0) != MAGIC {
            return Err(Error::qcow2("it does not begin with the qcow2 magic"));
        }
        let version = be32(&raw, 4);
        let mut rest = [0; 40];
        let (features, header_length) = match version {
            2 => (0, 72),
            3 => {
                file.read_exact(&mut rest[..32]).map_err(short)?;
                (be64(&rest, 0), be32(&rest, 28))
            }
            other => return Err(Error::qcow2(format!("version {other} is not known"))),
        };
        let mut read = if version == 2 { 72 } else { 104 };
        if header_length > 104 {
            file.read_exact(&mut rest[32..40]).map_err(short)?;
            read = 112;
        }
        // Extensions and the backing file's name follow, in the first cluster.
        file.by_ref().take(MAX_FRONT).read_to_end(&mut behind).map_err(short)?;
        let front: Vec<u8> = raw.iter().chain(&rest).copied().take(read).chain(behind).collect();
        let header = Self {
            version,
            cluster_bits: be32(&raw, 20),
            size: be64(&raw, 24),
            l1_entries: be32(&raw, 36),
            l1_offset: be64(&raw, 40),
            refcount_table_offset: be64(&raw, 48),
            refcount_table_clusters: be32(&raw, 56),
            compression: compression(features, rest[32])?,
            snapshots: be32(&raw, 60),
            backing: backing(&front, (be64(&raw, 8), be32(&raw, 16)), header_length)?,
        };
        header.check(features, be32(&raw, 32))?;
        Ok(header)
    }

    fn check(&self, features: u64, encryption: u32) -> Result<()> {
        if !(9..=21).contains(&self.cluster_bits) {
            return Err(Error::qcow2(format!("cluster size 2^{} is out of range", self.cluster_bits)));
        }
        if encryption != 0 {
            return Err(Error::qcow2("it is encrypted; decrypt it with qemu-img convert first"));
        }
        if features & 2 != 0 {
            return Err(Error::qcow2("it is marked corrupt; qemu-img check -r all may repair it"));
        }
        if features & !(DIRTY | COMPRESSION_TYPE) != 0 {
            return Err(Error::qcow2(format!("it uses incompatible features {features:#x}")));
        }
        let mapped = u128::from(self.l1_entries) << (2 * self.cluster_bits - 3);
        if u128::from(self.size) > mapped {
            return Err(Error::qcow2("its L1 table is too small for the size it states"));
        }
        // QEMU's limit (QCOW_MAX_L1_SIZE, 32 MiB).
        if self.l1_entries > (32 << 20) / 8 {
            return Err(Error::qcow2("its L1 table is larger than 32 MiB"));
        }
        Ok(())
    }

    /// The first bytes of the file.
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let features = if self.compression == Compression::Zstd { COMPRESSION_TYPE } else { 0 };
        let mut out = Vec::with_capacity(LENGTH as usize + 8);
        let extension = self.backing.as_ref().map(|(_, format)| extension(format)).unwrap_or_default();
        let name = self.backing.as_ref().map_or("", |(name, _)| name.as_str());
        let name_at = if name.is_empty() { 0 } else { LENGTH as usize + extension.len() + 8 };
        let short = |length: usize| u32::try_from(length).unwrap_or(u32::MAX);
        for word in [MAGIC, self.version, 0, short(name_at), short(name.len()), self.cluster_bits] {
            out.extend(word.to_be_bytes());
        }
        out.extend(self.size.to_be_bytes());
        out.extend(0_u32.to_be_bytes()); // encryption
        out.extend(self.l1_entries.to_be_bytes());
        out.extend(self.l1_offset.to_be_bytes());
        out.extend(self.refcount_table_offset.to_be_bytes());
        out.extend(self.refcount_table_clusters.to_be_bytes());
        out.extend(0_u32.to_be_bytes()); // snapshots
        out.extend(0_u64.to_be_bytes()); // snapshots' offset
        for word in [features, 0, 0] {
            out.extend(word.to_be_bytes()); // incompatible, compatible, autoclear
        }
        out.extend(4_u32.to_be_bytes()); // refcount order: 16 bits
        out.extend(LENGTH.to_be_bytes());
        out.push(u8::from(self.compression == Compression::Zstd));
        out.resize(LENGTH as usize, 0);
        out.extend(extension);
        out.extend([0; 8]); // end of header extensions
        out.extend(name.as_bytes());
        out
    }
}

/// The header extension that names the backing file's format.
fn extension(format: &str) -> Vec<u8> {
    let mut out = BACKING_FORMAT.to_be_bytes().to_vec();
    out.extend(u32::try_from(format.len()).unwrap_or(u32::MAX).to_be_bytes());
    out.extend(format.as_bytes());
    out.resize(out.len().next_multiple_of(8), 0);
    out
}

/// The backing file's name and format; `front` is the file's beginning.
fn backing(front: &[u8], (at, length): (u64, u32), header_length: u32) -> Result<Option<(String, String)>> {
    if at == 0 {
        return Ok(None);
    }
    // QEMU's limit on the name.
    let place = usize::try_from(at).ok().filter(|_| length <= 1023);
    let name = place.and_then(|at| front.get(at..at.checked_add(length as usize)?));
    let name = name.and_then(|name| std::str::from_utf8(name).ok());
    let name = name.ok_or_else(|| Error::qcow2("the name of its backing file cannot be read"))?;
    let mut format = String::new();
    let mut at = header_length as usize;
    while let (kind @ 1.., length) = (be32(front, at), be32(front, at + 4) as usize) {
        if kind == BACKING_FORMAT
            && let Some(text) = front.get(at + 8..).and_then(|rest| rest.get(..length))
        {
            format = String::from_utf8_lossy(text).into_owned();
        }
        at = at.saturating_add(8).saturating_add(length.next_multiple_of(8));
        if at >= front.len() {
            break;
        }
    }
    Ok(Some((name.to_owned(), format)))
}

fn compression(features: u64, stated: u8) -> Result<Compression> {
    match (features & COMPRESSION_TYPE != 0, stated) {
        (false, _) | (true, 0) => Ok(Compression::Deflate),
        (true, 1) => Ok(Compression::Zstd),
        (true, other) => Err(Error::qcow2(format!("compression type {other} is not known"))),
    }
}

pub(super) fn be32(raw: &[u8], at: usize) -> u32 {
    raw.get(at..at + 4).map_or(0, |b| u32::from_be_bytes([b[0], b[1], b[2], b[3]]))
}

pub(super) fn be64(raw: &[u8], at: usize) -> u64 {
    (u64::from(be32(raw, at)) << 32) | u64::from(be32(raw, at + 4))
}
