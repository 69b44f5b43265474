//! One export: the disks of a VM into files, a pipe or a store.

mod check;
mod digest;
mod directory;
mod follow;
mod hashed;
mod report;
mod stream;
mod tell;
mod upload;

use std::sync::Arc;
use std::time::Duration;

use image::ovf::{Machine, Manifest, Sum, render};
use image::qcow2::Compression;
use image::{Backing, Format, Options};
use serde::Serialize;
use serde_json::Value;

use crate::lineage::Lineage;
use crate::machine::{VmVolume, machine};
use crate::source::Source;
use crate::{Error, Result, Window};

pub use directory::to_directory;
pub use report::{DiskReport, FileReport, Report};
pub use stream::{to_pipe, to_web};
pub use upload::to_store;

/// What comes out.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Target {
    /// A sparse file for each disk.
    Raw,
    /// A qcow2 image for each disk.
    Qcow2,
    /// A streamOptimized VMDK for each disk.
    Vmdk,
    /// One archive with a descriptor and the disks.
    Ova,
    /// A descriptor, a manifest and a VMDK for each disk, beside each other.
    Ovf,
}

impl Target {
    /// The format of the disks.
    pub fn format(self) -> Format {
        match self {
            Self::Raw => Format::Raw,
            Self::Qcow2 => Format::Qcow2,
            Self::Vmdk | Self::Ova | Self::Ovf => Format::VmdkStream,
        }
    }

    /// The end of a disk's file name.
    pub fn extension(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
            Self::Vmdk | Self::Ova | Self::Ovf => "vmdk",
        }
    }
}

/// How to export.
#[derive(Clone, Debug)]
pub struct Settings {
    /// What comes out.
    pub target: Target,
    /// For qcow2.
    pub compression: Compression,
    /// The compressor's level.
    pub level: Option<i32>,
    /// Threads that compress.
    pub workers: usize,
    /// How much is fetched at once.
    pub window: Window,
    /// Read the result again and compare its digests with what was read.
    pub verify: bool,
    /// Go on with an earlier run.
    pub resume: bool,
    /// Replace results that are there, and forget earlier runs.
    pub force: bool,
    /// A checkpoint is due after so many bytes of the disk …
    pub checkpoint_bytes: u64,
    /// … or after this time.
    pub checkpoint_time: Duration,
}

impl Settings {
    /// The defaults for a target: two workers, a checkpoint every 256 MiB or 5 s.
    pub fn new(target: Target) -> Self {
        Self {
            target,
            compression: Compression::None,
            level: None,
            workers: 2,
            window: Window::default(),
            verify: false,
            resume: false,
            force: false,
            checkpoint_bytes: 256 << 20,
            checkpoint_time: Duration::from_secs(5),
        }
    }

    fn options(&self, file_name: &str, disk: Option<&ExportDisk>) -> Options {
        Options {
            compression: self.compression,
            level: self.level,
            workers: self.workers.max(1),
            file_name: file_name.into(),
            backing: disk.and_then(|disk| disk.base.clone()),
            ..Options::new(self.target.format())
        }
    }

    /// What decides the bytes that come out, for the journal.
    fn describe(&self, disk: &ExportDisk) -> String {
        let level = self.level.map_or("default".into(), |level| level.to_string());
        let how = format!("{} {:?} level {level}", self.target.format().name(), self.compression);
        let base = disk.base.as_ref().map(|base| format!(" over {}", base.file)).unwrap_or_default();
        how.to_lowercase() + &base
    }
}

/// A disk that is exported.
#[derive(Clone)]
pub struct ExportDisk {
    /// The volume.
    pub volume: VmVolume,
    /// Where its content comes from.
    pub source: Arc<dyn Source>,
    /// The image that holds what did not change, for qcow2; nothing: the disk is exported as a whole.
    pub base: Option<Backing>,
}

impl std::fmt::Debug for ExportDisk {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("ExportDisk").field("volume", &self.volume).finish_non_exhaustive()
    }
}

/// What is exported.
#[derive(Clone, Debug)]
pub struct Job {
    /// The beginning of every file name; a plain name.
    pub name: String,
    /// What is exported, for journals and messages, for example `VirtualMachine default/web`.
    pub source: String,
    /// The whole manifest of the VM, which travels along; null: there is none.
    pub vm: Value,
    /// The VM with what its instance type and preference give; null: it has none, or nobody could tell.
    pub expanded: Value,
    /// The running instance, when there is one: it knows more about the guest.
    pub vmi: Option<Value>,
    /// The disks, the boot disk first.
    pub disks: Vec<ExportDisk>,
    /// What it builds on, and where it ends.
    pub lineage: Lineage,
}

impl Job {
    fn check(&self, target: Target) -> Result<()> {
        let plain = !self.name.is_empty() && !self.name.contains(['/', '\0']) && !self.name.starts_with('.');
        if !plain || self.name.len() > 80 {
            return Err(Error::Request(format!("`{}` is no name for files; give another", self.name)));
        }
        if self.disks.is_empty() {
            return Err(Error::Request(format!("{} has no disk to export", self.source)));
        }
        if target != Target::Qcow2 && self.disks.iter().any(|disk| disk.base.is_some()) {
            return Err(Error::Request("only qcow2 can build on another image".into()));
        }
        Ok(())
    }

    /// The report to fill in.
    fn report(&self) -> Report {
        Report { source: self.source.clone(), lineage: self.lineage.clone(), ..Report::default() }
    }

    /// What it is in the terms of OVF, and what an importer should know.
    fn machine(&self) -> (Machine, Vec<String>) {
        let volumes: Vec<VmVolume> = self.disks.iter().map(|disk| disk.volume.clone()).collect();
        let expanded = if self.expanded.is_null() { &self.vm } else { &self.expanded };
        let (mut machine, warnings) = machine(&self.vm, expanded, self.vmi.as_ref(), &volumes);
        machine.name.clone_from(&self.name);
        (machine, warnings)
    }

    /// Descriptor and manifest of an OVF package whose disks are whole, with their names; the descriptor last,
    /// since without it there is no package.
    fn package(&self, machine: &Machine, disks: &[FileReport]) -> [(String, Vec<u8>); 2] {
        let text = render(machine).into_bytes();
        let name = format!("{}.ovf", self.name);
        let mut manifest = Manifest::default();
        manifest.add(&name, Sum::of(&text));
        for file in disks {
            manifest.add(&file.name, file.sha256.clone().unwrap_or_default());
        }
        [(format!("{}.mf", self.name), manifest.render().into_bytes()), (name, text)]
    }

    fn manifest(&self) -> Vec<u8> {
        let mut text = serde_json::to_vec_pretty(&self.vm).unwrap_or_default();
        text.push(b'\n');
        text
    }
}

/// What happens while an export runs.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "event", rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum Event {
    /// A disk begins, or goes on at `done`.
    Started {
        /// The disk.
        disk: String,
        /// Its size in bytes.
        size: u64,
        /// Where it goes on, in guest bytes.
        done: u64,
        /// Passes over it that come after this one, which measures then.
        passes_left: u8,
    },
    /// How far a disk is.
    Progress {
        /// The disk.
        disk: String,
        /// Its size in bytes.
        size: u64,
        /// Everything before this guest offset is done.
        done: u64,
        /// Bytes up to there that held data; the rest was zero.
        data: u64,
        /// Bytes that were stored for them.
        stored: u64,
        /// Bytes that came from the source in this run.
        fetched: u64,
        /// Passes over it that come after this one, which measures then.
        passes_left: u8,
    },
    /// A disk is read back.
    Verifying {
        /// The disk.
        disk: String,
    },
    /// A file is whole.
    Finished {
        /// The file.
        file: FileReport,
    },
    /// Something that people should know.
    Warning {
        /// The text.
        message: String,
    },
}

/// Who is told.
pub type Listener = Arc<dyn Fn(Event) + Send + Sync>;
