//! What came out of an export; also written beside it as `NAME.export.json`.

use serde::Serialize;

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

/// A disk that was exported.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DiskReport {
    /// The volume's name.
    pub name: String,
    /// The file that holds it.
    pub file: String,
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
    pub(super) fn new(name: &str, file: &str, size: u64, data: u64, sums: &Sums) -> Self {
        Self {
            name: name.into(),
            file: file.into(),
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
}
