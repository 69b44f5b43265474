//! Into an object store, part by part.

use std::sync::Arc;

use image::ovf::Machine;
use image::{OvaDisk, Progress, Summary, convert_from, convert_ova, stream_ova};
use tokio_util::sync::CancellationToken;

use super::hashed::Hashed;
use super::stream::Twice;
use super::tell::Tell;
use super::{DiskReport, Event, ExportDisk, FileReport, Job, Listener, Report, Settings, Target, check};
use crate::store::{PartSink, Store};
use crate::sums::Sums;
use crate::{Error, Prefetch, Result};

/// Exports into a store. After an error the upload is left there: [`Settings::resume`] reads the
/// source again, and sends no part again that the store has.
///
/// # Errors
/// What the source, the format or the store refuses.
pub async fn to_store(
    job: &Job,
    store: Arc<Store>,
    settings: &Settings,
    listener: Listener,
    stop: CancellationToken,
) -> Result<Report> {
    job.check(settings.target)?;
    let mut report = job.report();
    let work = Work { store, settings, listener, stop };
    if settings.target == Target::Ova {
        work.ova(job, &mut report).await?;
    } else {
        let (mut machine, warnings) = job.machine();
        for (number, disk) in job.disks.iter().enumerate() {
            let summary = work.disk(job, disk, &mut report).await?;
            if let (Some(described), Some(file)) = (machine.disks.get_mut(number), report.files.last()) {
                described.made(&file.name, &summary, file.size);
            }
        }
        if settings.target == Target::Ovf {
            work.package(job, &machine, warnings, &mut report).await?;
        }
        if !job.vm.is_null() {
            work.small(&format!("{}.vm.json", job.name), job.manifest()).await?;
        }
    }
    let text = serde_json::to_vec_pretty(&report).unwrap_or_default();
    work.small(&format!("{}.export.json", job.name), text).await?;
    Ok(report)
}

struct Work<'a> {
    store: Arc<Store>,
    settings: &'a Settings,
    listener: Listener,
    stop: CancellationToken,
}

impl Work<'_> {
    async fn small(&self, name: &str, content: Vec<u8>) -> Result<()> {
        self.store.put(&self.store.key(name), content.into()).await
    }

    async fn sink(&self, key: &str, most: u64) -> Result<PartSink> {
        if !self.settings.force && !self.settings.resume && self.store.size(key).await?.is_some() {
            return Err(Error::Request(format!("the object `{key}` exists already; force it, or rename")));
        }
        PartSink::begin(self.store.clone(), key, most, self.settings.resume).await
    }

    /// Descriptor and manifest beside disks that are whole.
    async fn package(
        &self,
        job: &Job,
        machine: &Machine,
        warnings: Vec<String>,
        report: &mut Report,
    ) -> Result<()> {
        for message in &warnings {
            (self.listener)(Event::Warning { message: message.clone() });
        }
        report.warnings = warnings;
        for (name, content) in job.package(machine, &report.files) {
            report.files.push(FileReport::small(&name, &content));
            self.small(&name, content).await?;
        }
        Ok(())
    }

    async fn disk(&self, job: &Job, disk: &ExportDisk, report: &mut Report) -> Result<Summary> {
        let name = format!("{}-{}.{}", job.name, disk.volume.name, self.settings.target.extension());
        let key = self.store.key(&name);
        let size = disk.source.size();
        // A qcow2 is not written front to back.
        let in_order = self.settings.target != Target::Qcow2;
        let mut sink = Hashed::new(self.sink(&key, size).await?, in_order);
        let volume = disk.volume.name.clone();
        let prefetch = Arc::new(Prefetch::start(disk.source.clone(), 0, self.settings.window.clone()));
        let alone = std::slice::from_ref(disk);
        let mut tell = Tell::new(alone, Some(prefetch.clone()), &self.listener, &self.stop);
        let options = self.settings.options(&name, Some(disk));
        let (watched, stop) = (Arc::downgrade(&prefetch), self.stop.clone());
        let watcher = tokio::spawn(async move {
            stop.cancelled().await;
            if let Some(prefetch) = watched.upgrade() {
                prefetch.stop();
            }
        });
        let reader = prefetch.clone();
        let what = format!("volume {volume}");
        let ended = tokio::task::spawn_blocking(move || {
            let whole = image::Resume::default();
            let mut watch = |now: Progress| tell.progress(now);
            let summary = convert_from(&*reader, &mut sink, &options, &whole, &mut watch);
            let (mut sink, sha256) = sink.end();
            let summary = summary.map_err(|source| Error::Image { what, source });
            let summary = summary.inspect_err(|_| sink.settle())?;
            Ok((summary, sink.finish()?, sha256))
        })
        .await;
        watcher.abort();
        let ended: Result<_> = ended.map_err(|_| Error::Stopped)?;
        if self.stop.is_cancelled() {
            return Err(Error::Stopped);
        }
        let (summary, uploaded, sha256) = ended?;
        let sums = prefetch.take_sums(u64::MAX);
        if self.settings.verify {
            (self.listener)(Event::Verifying { disk: volume.clone() });
            let object = (key.as_str(), uploaded.length);
            let format = self.settings.target.format();
            check::disk(self.store.clone(), object, format, disk, sums.clone()).await?;
        }
        let file = FileReport { name: name.clone(), size: uploaded.length, sha256 };
        (self.listener)(Event::Finished { file: file.clone() });
        report.files.push(file);
        report.disks.push(DiskReport::new(disk, &name, summary.data, &sums));
        Ok(summary)
    }

    async fn ova(&self, job: &Job, report: &mut Report) -> Result<()> {
        let name = format!("{}.ova", job.name);
        let key = self.store.key(&name);
        let (mut machine, warnings) = job.machine();
        let mut files = Vec::new();
        for (disk, described) in job.disks.iter().zip(&mut machine.disks) {
            described.file = format!("{}-{}.vmdk", job.name, disk.volume.name);
            described.capacity = disk.source.size();
            files.push(described.file.clone());
        }
        for message in &warnings {
            (self.listener)(Event::Warning { message: message.clone() });
        }
        report.warnings = warnings;
        let most = job.disks.iter().map(|disk| disk.source.size()).sum();
        // One disk alone is patched in the first part.
        let mut sink = Hashed::new(self.sink(&key, most).await?, job.disks.len() > 1);
        let sources = Twice::all(job, self.settings, &self.stop);
        let options = self.settings.options("disk.vmdk", None);
        let (stem, vm, vm_name) = (job.name.clone(), job.manifest(), format!("{}.vm.json", job.name));
        let with_vm = !job.vm.is_null();
        let mut tell = Tell::new(&job.disks, None, &self.listener, &self.stop);
        let names = files.clone();
        let what = job.source.clone();
        let ended = tokio::task::spawn_blocking(move || {
            let disks: Vec<OvaDisk<'_>> =
                sources.iter().zip(&names).map(|(disk, file)| OvaDisk { disk, file: file.clone() }).collect();
            let more: &[(&str, &[u8])] = if with_vm { &[(&vm_name, &vm)] } else { &[] };
            let mut watch = |now| tell.progress(now);
            // Headers behind the first part cannot be patched: with several disks, measure first.
            let summary = if disks.len() == 1 {
                convert_ova(&machine, &disks, &stem, more, &mut sink, &options, &mut watch)
            } else {
                stream_ova(&machine, &disks, &stem, more, &mut sink, &options, &mut watch)
            };
            drop(disks);
            let (mut sink, sha256) = sink.end();
            let summary = summary.map_err(|source| Error::Image { what, source });
            summary.inspect_err(|_| sink.settle())?;
            let sums: Vec<Sums> = sources.iter().map(Twice::sums).collect();
            Ok((sink.finish()?, sha256, sums))
        })
        .await;
        let ended: Result<_> = ended.map_err(|_| Error::Stopped)?;
        if self.stop.is_cancelled() {
            return Err(Error::Stopped);
        }
        let (uploaded, sha256, sums) = ended?;
        if self.settings.verify {
            (self.listener)(Event::Verifying { disk: job.name.clone() });
            let object = (key.as_str(), uploaded.length);
            check::archive(self.store.clone(), object, job, &files, sums.clone()).await?;
        }
        let file = FileReport { name, size: uploaded.length, sha256 };
        (self.listener)(Event::Finished { file: file.clone() });
        report.files.push(file);
        for ((disk, file), sums) in job.disks.iter().zip(&files).zip(&sums) {
            let data = sums.0.len() as u64 * crate::sums::CHUNK;
            let size = disk.source.size();
            report.disks.push(DiskReport::new(disk, file, data.min(size), sums));
        }
        Ok(())
    }
}
