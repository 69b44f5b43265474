//! Which format a file has, and what there is to say about it.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::qcow2::{BackingDisk, Compression, Qcow2Disk};
use crate::raw::PlainDisk;
use crate::storage::{Storage, length_of, read_up_to};
use crate::vmdk::VmdkDisk;
use crate::{Disk, Error, RawDisk, Result};

/// A disk format.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Format {
    /// The guest's bytes as they are, holes left out where the file system can.
    Raw,
    /// QEMU's qcow2, version 3.
    Qcow2,
    /// VMware's streamOptimized VMDK: compressed, one pass.
    VmdkStream,
    /// VMware's monolithicSparse VMDK: uncompressed.
    VmdkSparse,
}

impl Format {
    /// The name of the format, as users write it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
            Self::VmdkStream => "vmdk",
            Self::VmdkSparse => "vmdk-sparse",
        }
    }
}

/// What an image file says about itself.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Info {
    /// The format.
    pub format: Format,
    /// The size that a guest sees, in bytes.
    pub virtual_size: u64,
    /// The length of the file, in bytes.
    pub file_size: u64,
    /// What the file takes on its file system, in bytes.
    pub disk_size: u64,
    /// Bytes in a cluster or grain.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cluster_size: Option<u64>,
    /// How compressed clusters or grains are compressed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub compression: Option<Compression>,
    /// Bytes of the guest's disk that may hold data.
    pub data: u64,
    /// The image that this one builds on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backing: Option<String>,
}

/// The longest chain of images that build on each other.
const MAX_CHAIN: usize = 32;

/// Opens an image of any known format, found by its first bytes. What has no known magic is raw.
/// Archives (OVA) hold disks and are none: see [`crate::ovf::Package`].
pub fn open(file: File) -> Result<(Box<dyn BackingDisk>, Info)> {
    let metadata = file.metadata().map_err(|source| Error::Read { offset: 0, length: 0, source })?;
    let file = Arc::new(file);
    let (disk, mut info) = open_storage(file.clone())?;
    info.disk_size = metadata.blocks() * 512;
    if info.format == Format::Raw {
        // A file of its own knows its holes.
        let file = file.try_clone().map_err(|source| Error::Read { offset: 0, length: 0, source })?;
        let disk: Box<dyn BackingDisk> = Box::new(RawDisk::open(file)?);
        info.data = data_bytes(&disk)?;
        return Ok((disk, info));
    }
    Ok((disk, info))
}

/// [`open`] with the images that a qcow2 builds on, which have to lie beside it: in its directory, or in one beside
/// that (`../RUN/NAME`, as incremental exports do).
///
/// # Errors
/// As [`open`]; backing files in other places, and chains of more than 32.
pub fn open_path(path: &Path) -> Result<(Box<dyn BackingDisk>, Info)> {
    open_chain(path, MAX_CHAIN)
}

fn open_chain(path: &Path, depth: usize) -> Result<(Box<dyn BackingDisk>, Info)> {
    let reading = |source| Error::Read { offset: 0, length: 0, source };
    let file = File::open(path).map_err(reading)?;
    let mut magic = [0; 4];
    read_up_to(&file, 0, &mut magic)?;
    if &magic != b"QFI\xfb" {
        return open(file);
    }
    let metadata = file.metadata().map_err(reading)?;
    let file = Arc::new(file);
    let alone = Qcow2Disk::open_alone(file.clone())?;
    let Some((name, _)) = alone.header().backing.clone() else {
        let (disk, info) = open_storage(file)?;
        return Ok((disk, Info { disk_size: metadata.blocks() * 512, ..info }));
    };
    if !is_beside(&name) {
        return Err(Error::qcow2(format!(
            "its backing file `{name}` lies neither in its directory nor in one beside that"
        )));
    }
    let Some(left) = depth.checked_sub(1) else {
        return Err(Error::qcow2(format!("it builds on more than {MAX_CHAIN} images")));
    };
    let below = path.with_file_name(&name);
    let (backing, _) = open_chain(&below, left)
        .map_err(|error| Error::qcow2(format!("its backing file `{name}`: {}", chain(&error))))?;
    let mut info = Info {
        format: Format::Qcow2,
        virtual_size: alone.size(),
        file_size: metadata.len(),
        disk_size: metadata.blocks() * 512,
        cluster_size: Some(1 << alone.header().cluster_bits),
        compression: Some(alone.header().compression),
        data: 0,
        backing: Some(name),
    };
    let disk = Qcow2Disk::open_over(file, backing)?;
    info.data = data_bytes(&disk)?;
    Ok((Box::new(disk), info))
}

/// A plain name, or `../DIRECTORY/NAME`: nothing that an image names leads further away.
fn is_beside(name: &str) -> bool {
    let plain = |part: &str| !part.is_empty() && !part.contains(':') && !matches!(part, "." | "..");
    let parts: Vec<&str> = name.split('/').collect();
    match parts.as_slice() {
        [file] => plain(file),
        ["..", directory, file] => plain(directory) && plain(file),
        _ => false,
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    error.source().map_or_else(|| error.to_string(), |cause| format!("{error}: {}", chain(cause)))
}

/// [`open_path`] for an image that is known to have a format: raw is read as it is whatever it begins with, since a
/// guest can write the magic of any format to its disk.
///
/// # Errors
/// As [`open_path`], and when the image has another format.
pub fn open_path_as(path: &Path, format: Format) -> Result<(Box<dyn BackingDisk>, Info)> {
    if format == Format::Raw {
        let reading = |source| Error::Read { offset: 0, length: 0, source };
        let file = File::open(path).map_err(reading)?;
        let metadata = file.metadata().map_err(reading)?;
        let disk: Box<dyn BackingDisk> = Box::new(RawDisk::open(file)?);
        let info = Info {
            format,
            virtual_size: disk.size(),
            file_size: disk.size(),
            disk_size: metadata.blocks() * 512,
            cluster_size: None,
            compression: None,
            data: data_bytes(&disk)?,
            backing: None,
        };
        return Ok((disk, info));
    }
    let (disk, info) = open_path(path)?;
    let vmdk = |format| matches!(format, Format::VmdkStream | Format::VmdkSparse);
    if info.format == format || (vmdk(info.format) && vmdk(format)) {
        return Ok((disk, info));
    }
    let why = format!("by its first bytes it is {}", info.format.name());
    Err(Error::Malformed { format: format.name(), why })
}

/// [`open`] for bytes that are no file of their own.
pub fn open_storage(storage: Arc<dyn Storage>) -> Result<(Box<dyn BackingDisk>, Info)> {
    let mut magic = [0; 4];
    read_up_to(&*storage, 0, &mut magic)?;
    open_by(magic, storage)
}

/// [`open_storage`] for what is known to be a raw disk, whatever a guest wrote to its beginning.
///
/// # Errors
/// When its length cannot be read.
pub fn open_raw_storage(storage: Arc<dyn Storage>) -> Result<(Box<dyn BackingDisk>, Info)> {
    open_by([0; 4], storage)
}

fn open_by(magic: [u8; 4], storage: Arc<dyn Storage>) -> Result<(Box<dyn BackingDisk>, Info)> {
    let length = length_of(&*storage)?;
    let mut info = Info {
        format: Format::Raw,
        virtual_size: 0,
        file_size: length,
        disk_size: length,
        cluster_size: None,
        compression: None,
        data: 0,
        backing: None,
    };
    let disk: Box<dyn BackingDisk> = match &magic {
        b"QFI\xfb" => {
            let disk = Qcow2Disk::open(storage)?;
            info.format = Format::Qcow2;
            info.cluster_size = Some(1 << disk.header().cluster_bits);
            info.compression = Some(disk.header().compression);
            Box::new(disk)
        }
        b"KDMV" => {
            let disk = VmdkDisk::open(storage)?;
            let compressed = disk.header().compressed();
            info.format = if compressed { Format::VmdkStream } else { Format::VmdkSparse };
            info.cluster_size = Some(disk.header().grain_sectors * 512);
            info.compression = Some(if compressed { Compression::Deflate } else { Compression::None });
            Box::new(disk)
        }
        _ => Box::new(PlainDisk::open(storage)?),
    };
    info.virtual_size = disk.size();
    info.data = data_bytes(&disk)?;
    Ok((disk, info))
}

fn data_bytes(disk: &impl Disk) -> Result<u64> {
    let (mut at, mut total) = (0, 0);
    while let Some(range) = disk.next_data(at)? {
        total += range.end - range.start;
        at = range.end;
    }
    Ok(total)
}

#[cfg(test)]
mod tests {
    use super::is_beside;

    #[test]
    fn backing_files_lie_beside_what_builds_on_them() {
        for good in ["base.qcow2", "../20260101/base.qcow2"] {
            assert!(is_beside(good), "{good}");
        }
        for bad in
            ["", "..", "/etc/shadow", "a/b", "../a/b/c", "../../a", "../../a/b", "nbd:host", "../x/nbd:y"]
        {
            assert!(!is_beside(bad), "{bad}");
        }
    }
}
