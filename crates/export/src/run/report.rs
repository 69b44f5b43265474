//! What came out of an export; also written beside it as `NAME.export.json`.

use serde::Serialize;

use super::ExportDisk;
use crate::lineage::Lineage;
use crate::sums::{Sums, hex};

/// A file that was written.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FileReport {
    /// Its name or URL.
    pub name: String,
    /// Its length in bytes.
    pub size: u64,
    /// Its SHA-256, as `sha256sum` shows it; absent when it was never read in order.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
}

impl FileReport {
    /// Of a file whose content is at hand.
    pub(super) fn small(name: &str, content: &[u8]) -> Self {
        let sha256 = Some(image::ovf::Sum::of(content));
        Self { name: name.into(), size: content.len() as u64, sha256 }
    }
}

/// A disk that was exported.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DiskReport {
    /// The volume's name.
    pub name: String,
    /// The file that holds it.
    pub file: String,
    /// The image that it builds on; what is said below is about what changed since.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backing: Option<String>,
    /// The size that the guest sees, in bytes.
    pub virtual_size: u64,
    /// Bytes that held data.
    pub data: u64,
    /// The digest of the content: see `chunks`.
    pub content: String,
    /// Bytes in a chunk.
    pub chunk_size: u64,
    /// The SHA-256 of each chunk that holds data, by its number.
    pub chunks: std::collections::BTreeMap<u64, String>,
}

impl DiskReport {
    pub(super) fn new(disk: &ExportDisk, file: &str, data: u64, sums: &Sums) -> Self {
        let size = disk.source.size();
        Self {
            name: disk.volume.name.clone(),
            file: file.into(),
            backing: disk.base.as_ref().map(|base| base.file.clone()),
            virtual_size: size,
            data,
            content: sums.whole(size),
            chunk_size: crate::sums::CHUNK,
            chunks: sums.0.iter().map(|(number, digest)| (*number, hex(digest))).collect(),
        }
    }
}

/// A whole export.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// What was exported.
    pub source: String,
    /// The files.
    pub files: Vec<FileReport>,
    /// The disks in them.
    pub disks: Vec<DiskReport>,
    /// What an importer should know.
    pub warnings: Vec<String>,
    /// What it builds on, and where it ends.
    #[serde(flatten)]
    pub lineage: Lineage,
}
