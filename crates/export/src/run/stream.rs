//! Into a pipe, front to back.

use std::io::{Seek, SeekFrom, Write};
use std::sync::Arc;

use image::{Disk, Format, OvaDisk, Progress, convert_from, stream_ova};
use tokio_util::sync::CancellationToken;

use super::{DiskReport, Event, Job, Listener, Report, Settings, Target};
use crate::machine::machine;
use crate::sums::Sums;
use crate::{Error, Prefetch, Result};

/// Exports into a pipe. Possible are one raw or VMDK disk, and OVAs, whose disks are read twice: the
/// sizes that stand in front are known only after the first pass.
///
/// # Errors
/// When the format cannot be written front to back, or anything else fails; what went into the pipe
/// by then is no image.
pub async fn to_pipe<W: Write + Send + 'static>(
    job: &Job,
    sink: W,
    settings: &Settings,
    listener: Listener,
    stop: CancellationToken,
) -> Result<Report> {
    job.check()?;
    let sole = match settings.target {
        Target::Ova => None,
        Target::Raw | Target::Vmdk if job.disks.len() == 1 => job.disks.first(),
        Target::Raw | Target::Vmdk => {
            let count = job.disks.len();
            let wrong =
                format!("{} has {count} disks, and a pipe takes one; choose one, or use ova", job.source);
            return Err(Error::Request(wrong));
        }
        Target::Qcow2 | Target::Ovf => {
            let wrong = "its tables are known last and stand first: use raw, vmdk or ova for a pipe".into();
            return Err(Error::Request(wrong));
        }
    };
    let Some(disk) = sole else { return ova(job, sink, settings, listener, stop).await };
    let size = disk.source.size();
    let name = disk.volume.name.clone();
    listener(Event::Started { disk: name.clone(), size, done: 0 });
    let prefetch = Arc::new(Prefetch::start(disk.source.clone(), 0, settings.window.clone()));
    let options = settings.options(&format!("{}-{name}.vmdk", job.name));
    let (reader, token) = (prefetch.clone(), stop.clone());
    let watched = prefetch.clone();
    let watcher = tokio::spawn(async move {
        token.cancelled().await;
        watched.stop();
    });
    let stopped = stop.clone();
    let told = name.clone();
    let ended = tokio::task::spawn_blocking(move || {
        let mut watch = |now: Progress| {
            listener(Event::Progress {
                disk: told.clone(),
                size: now.total,
                done: now.done,
                data: now.data,
                stored: now.stored,
                fetched: reader.fetched(),
            });
            !stopped.is_cancelled()
        };
        let whole = image::Resume::default();
        if options.format == Format::Raw {
            convert_from(&*reader, Forward::new(sink), &options, &whole, &mut watch)
        } else {
            image::stream_from(&*reader, sink, &options, &whole, &mut watch)
        }
    })
    .await;
    watcher.abort();
    let summary = ended.map_err(|_| Error::Stopped)?;
    if stop.is_cancelled() {
        return Err(Error::Stopped);
    }
    let summary = summary.map_err(|source| Error::Image { what: format!("volume {name}"), source })?;
    let sums = prefetch.take_sums(u64::MAX);
    let disk = DiskReport::new(&name, "-", size, summary.data, &sums);
    Ok(Report { source: job.source.clone(), disks: vec![disk], ..Report::default() })
}

async fn ova<W: Write + Send + 'static>(
    job: &Job,
    sink: W,
    settings: &Settings,
    listener: Listener,
    stop: CancellationToken,
) -> Result<Report> {
    let (mut machine, warnings) = machine(&job.vm, job.vmi.as_ref(), &job.volumes());
    machine.name.clone_from(&job.name);
    let mut files = Vec::new();
    for (disk, described) in job.disks.iter().zip(&mut machine.disks) {
        described.file = format!("{}-{}.vmdk", job.name, disk.volume.name);
        described.capacity = disk.source.size();
        files.push(described.file.clone());
    }
    for message in &warnings {
        listener(Event::Warning { message: message.clone() });
    }
    let twice = Twice::all(job, settings, &stop);
    let options = settings.options("disk.vmdk");
    let (stem, vm, name) = (job.name.clone(), job.manifest(), format!("{}.vm.json", job.name));
    let with_vm = !job.vm.is_null();
    let stopped = stop.clone();
    let ended = tokio::task::spawn_blocking(move || {
        let disks: Vec<OvaDisk<'_>> =
            twice.iter().zip(&files).map(|(disk, file)| OvaDisk { disk, file: file.clone() }).collect();
        let more: &[(&str, &[u8])] = if with_vm { &[(&name, &vm)] } else { &[] };
        let mut watch = |now: Progress| {
            let disk = stem.clone();
            let Progress { done, total, data, stored } = now;
            listener(Event::Progress { disk, size: total, done, data, stored, fetched: done });
            !stopped.is_cancelled()
        };
        let summary = stream_ova(&machine, &disks, &stem, more, sink, &options, &mut watch);
        drop(disks);
        let sums: Vec<Sums> = twice.iter().map(Twice::sums).collect();
        (summary, sums)
    })
    .await;
    let (summary, sums) = ended.map_err(|_| Error::Stopped)?;
    if stop.is_cancelled() {
        return Err(Error::Stopped);
    }
    summary.map_err(|source| Error::Image { what: job.source.clone(), source })?;
    let disks = job
        .disks
        .iter()
        .zip(&sums)
        .map(|(disk, sums)| DiskReport::new(&disk.volume.name, "-", disk.source.size(), 0, sums));
    Ok(Report { source: job.source.clone(), disks: disks.collect(), warnings, ..Report::default() })
}

/// A disk that is fetched again from the start when it is read again from the start.
pub(super) struct Twice {
    disk: super::ExportDisk,
    window: crate::Window,
    runtime: tokio::runtime::Handle,
    pass: parking_lot::Mutex<Option<(Arc<Prefetch>, u64)>>,
    stop: CancellationToken,
}

impl Twice {
    /// The disks of a job.
    pub fn all(job: &Job, settings: &Settings, stop: &CancellationToken) -> Vec<Self> {
        let disks = job.disks.iter().map(|disk| Self {
            disk: disk.clone(),
            window: settings.window.clone(),
            runtime: tokio::runtime::Handle::current(),
            pass: parking_lot::Mutex::default(),
            stop: stop.clone(),
        });
        disks.collect()
    }

    fn pass(&self, offset: u64, begin: bool) -> Arc<Prefetch> {
        let mut pass = self.pass.lock();
        match &mut *pass {
            Some((prefetch, reached)) if !(begin && offset == 0 && *reached > 0) => {
                *reached = (*reached).max(offset + u64::from(!begin));
                prefetch.clone()
            }
            _ => {
                let _inside = self.runtime.enter();
                let prefetch = Arc::new(Prefetch::start(self.disk.source.clone(), 0, self.window.clone()));
                let (watched, stop) = (Arc::downgrade(&prefetch), self.stop.clone());
                self.runtime.spawn(async move {
                    stop.cancelled().await;
                    if let Some(prefetch) = watched.upgrade() {
                        prefetch.stop();
                    }
                });
                *pass = Some((prefetch.clone(), 0));
                prefetch
            }
        }
    }

    /// The digests of what was read in the last pass.
    pub fn sums(&self) -> Sums {
        self.pass.lock().as_ref().map(|(prefetch, _)| prefetch.take_sums(u64::MAX)).unwrap_or_default()
    }
}

impl Disk for Twice {
    fn size(&self) -> u64 {
        self.disk.source.size()
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> image::Result<()> {
        self.pass(offset, false).read_at(offset, buffer)
    }

    fn next_data(&self, offset: u64) -> image::Result<Option<std::ops::Range<u64>>> {
        let found = self.pass(offset, true).next_data(offset)?;
        // Even a disk of zeros counts as begun, so that the next pass fetches it again.
        if let Some((_, reached)) = &mut *self.pass.lock() {
            *reached = (*reached).max(offset.max(1));
        }
        Ok(found)
    }
}

/// A sink that can only go forward: a seek ahead writes zeros.
struct Forward<W> {
    sink: W,
    position: u64,
}

impl<W: Write> Forward<W> {
    fn new(sink: W) -> Self {
        Self { sink, position: 0 }
    }
}

impl<W: Write> Write for Forward<W> {
    fn write(&mut self, data: &[u8]) -> std::io::Result<usize> {
        let written = self.sink.write(data)?;
        self.position += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.sink.flush()
    }
}

impl<W: Write> Seek for Forward<W> {
    fn seek(&mut self, to: SeekFrom) -> std::io::Result<u64> {
        let SeekFrom::Start(to) = to else { return Err(std::io::ErrorKind::Unsupported.into()) };
        let mut gap = to.checked_sub(self.position).ok_or(std::io::ErrorKind::NotSeekable)?;
        let zeros = [0; 16 << 10];
        while gap > 0 {
            let length = usize::try_from(gap).unwrap_or(zeros.len()).min(zeros.len());
            self.sink.write_all(zeros.get(..length).unwrap_or_default())?;
            self.position += length as u64;
            gap -= length as u64;
        }
        Ok(self.position)
    }
}
