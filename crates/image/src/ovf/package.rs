//! A package on disk: an OVA, or an OVF descriptor with its files beside it.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use super::machine::{Machine, MachineDisk};
use super::manifest::{Manifest, Sum};
use super::read::{MAX_DESCRIPTOR, is_plain, parse};
use crate::storage::{Section, Storage, length_of, read_up_to};
use crate::{Disk, Error, Info, Result, open_storage, tar};

/// The longest manifest that is read, in bytes.
const MAX_MANIFEST: u64 = 1 << 20;

/// A machine with its disks.
#[derive(Debug)]
pub struct Package {
    /// What the descriptor says.
    pub machine: Machine,
    /// What the manifest says, when there is one.
    pub manifest: Option<Manifest>,
    /// The name of the descriptor, and its text.
    descriptor: (String, String),
    files: Vec<(String, Arc<dyn Storage>)>,
}

/// A disk of a package, opened.
pub struct PackageDisk {
    /// What the descriptor says of it.
    pub described: MachineDisk,
    /// Its content.
    pub disk: Box<dyn Disk>,
    /// What its file says.
    pub info: Info,
}

impl std::fmt::Debug for PackageDisk {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("PackageDisk").field("described", &self.described).finish_non_exhaustive()
    }
}

/// Whether these bytes are an OVA: a tar archive whose first file is a descriptor. Any other archive may as well be
/// what a guest wrote to its disk.
pub fn is_archive(storage: &dyn Storage) -> Result<bool> {
    Ok(tar::first_name(storage)?.is_some_and(|name| is_descriptor(&name)))
}

fn is_descriptor(name: &str) -> bool {
    name.to_ascii_lowercase().ends_with(".ovf")
}

impl Package {
    /// Opens an OVA: the descriptor is its first file, as every reader of OVAs insists.
    #[allow(clippy::needless_pass_by_value, reason = "as for a disk: what is opened owns its storage")]
    pub fn open_archive(storage: Arc<dyn Storage>) -> Result<Self> {
        let members = tar::members(&storage)?;
        let first = members.first().filter(|member| is_descriptor(&member.name));
        let first = first.ok_or_else(|| Error::ova("its first file is no .ovf descriptor"))?;
        let descriptor = first.name.clone();
        let files = members
            .iter()
            .map(|member| {
                let section = Section::new(storage.clone(), member.start, member.size);
                (member.name.clone(), Arc::new(section) as Arc<dyn Storage>)
            })
            .collect();
        Self::assemble(descriptor, files)
    }

    /// Opens a descriptor with its files beside it.
    pub fn open_descriptor(path: &Path) -> Result<Self> {
        let open = |path: &Path| -> Result<Arc<dyn Storage>> {
            let file = File::open(path).map_err(|source| {
                let why = format!("its file `{}` cannot be opened: {source}", path.display());
                Error::ovf(why)
            })?;
            Ok(Arc::new(file))
        };
        let name = path.file_name().map_or("vm.ovf".into(), |name| name.to_string_lossy().into_owned());
        let own = open(path)?;
        let machine = parse(&text(&*own, MAX_DESCRIPTOR)?)?;
        let mut files = vec![(name.clone(), own)];
        for disk in machine.disks.iter().filter(|disk| is_plain(&disk.file)) {
            files.push((disk.file.clone(), open(&path.with_file_name(&disk.file))?));
        }
        let manifest = path.with_extension("mf");
        if manifest.exists() {
            let name =
                manifest.file_name().map_or("vm.mf".into(), |name| name.to_string_lossy().into_owned());
            files.push((name, open(&manifest)?));
        }
        Self::assemble(name, files)
    }

    fn assemble(descriptor: String, files: Vec<(String, Arc<dyn Storage>)>) -> Result<Self> {
        let find = |wanted: &str| files.iter().find(|(name, _)| name == wanted).map(|(_, storage)| storage);
        let own = find(&descriptor).ok_or_else(|| Error::ovf("its descriptor is missing"))?;
        let content = text(&**own, MAX_DESCRIPTOR)?;
        let machine = parse(&content)?;
        let stem = descriptor.get(..descriptor.len().saturating_sub(4)).unwrap_or_default();
        let manifest = match find(&format!("{stem}.mf")) {
            Some(storage) => {
                let text = text(&**storage, MAX_MANIFEST)?;
                Some(Manifest::parse(&text).map_err(|error| Error::ovf(error.to_string()))?)
            }
            None => None,
        };
        for disk in machine.disks.iter().filter(|disk| !disk.file.is_empty()) {
            if find(&disk.file).is_none() {
                return Err(Error::ovf(format!("the file `{}` of a disk is not in the package", disk.file)));
            }
        }
        Ok(Self { machine, manifest, descriptor: (descriptor, content), files })
    }

    /// The descriptor's text.
    pub fn descriptor(&self) -> &str {
        &self.descriptor.1
    }

    /// The names and lengths of the files, in order.
    pub fn files(&self) -> Result<Vec<(String, u64)>> {
        self.files.iter().map(|(name, storage)| Ok((name.clone(), length_of(&**storage)?))).collect()
    }

    /// Opens one disk; `None`: the descriptor has no disk of that number.
    pub fn disk(&self, number: usize) -> Result<Option<PackageDisk>> {
        let Some(described) = self.machine.disks.get(number) else { return Ok(None) };
        let Some((_, storage)) = self.files.iter().find(|(name, _)| *name == described.file) else {
            return Err(Error::ovf(format!("the disk `{}` is empty: it has no file", described.name)));
        };
        let (disk, info) = open_storage(storage.clone())?;
        Ok(Some(PackageDisk { described: described.clone(), disk, info }))
    }

    /// Computes the digest of every file that the manifest names with SHA-256 and compares; answers
    /// the names of files that differ or are missing.
    pub fn check_manifest(&self) -> Result<Vec<String>> {
        let mut wrong = Vec::new();
        for (algorithm, name, digest) in self.manifest.iter().flat_map(|manifest| &manifest.lines) {
            if algorithm != "SHA256" {
                continue;
            }
            let found = self.files.iter().find(|(file, _)| file == name);
            let same = match found {
                Some((_, storage)) => sum(&**storage)? == *digest,
                None => false,
            };
            if !same {
                wrong.push(name.clone());
            }
        }
        Ok(wrong)
    }
}

fn sum(storage: &dyn Storage) -> Result<String> {
    let mut sum = Sum::default();
    let mut buffer = vec![0; 1 << 20];
    let mut at = 0;
    loop {
        let got = read_up_to(storage, at, &mut buffer)?;
        if got == 0 {
            return Ok(sum.hex());
        }
        sum.update(buffer.get(..got).unwrap_or_default());
        at += got as u64;
    }
}

fn text(storage: &dyn Storage, limit: u64) -> Result<String> {
    let length = length_of(storage)?;
    if length > limit {
        return Err(Error::ovf(format!("a text file of {length} bytes is out of range")));
    }
    let mut raw = vec![0; usize::try_from(length).unwrap_or(0)];
    let got = read_up_to(storage, 0, &mut raw)?;
    raw.truncate(got);
    String::from_utf8(raw).map_err(|_| Error::ovf("its text is not UTF-8"))
}
