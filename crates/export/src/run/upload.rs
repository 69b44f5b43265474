//! Into an object store, part by part.

use std::sync::Arc;

use image::{OvaDisk, Progress, convert_from, convert_ova, stream_ova};
use tokio_util::sync::CancellationToken;

use super::directory::verify_overlay;
use super::stream::Twice;
use super::{DiskReport, Event, ExportDisk, FileReport, Job, Listener, Report, Settings, Target};
use crate::store::{ObjectStorage, PartSink, Store};
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
    if settings.target == Target::Ovf {
        let wrong = "an OVF in a store is an OVA whose files nobody keeps together: use ova".into();
        return Err(Error::Request(wrong));
    }
    let mut report = job.report();
    let work = Work { store, settings, listener, stop };
    if settings.target == Target::Ova {
        work.ova(job, &mut report).await?;
    } else {
        for disk in &job.disks {
            work.disk(job, disk, &mut report).await?;
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

    fn watch(&self, disk: String, prefetch: Option<Arc<Prefetch>>) -> impl FnMut(Progress) -> bool + use<> {
        let (listener, stop) = (self.listener.clone(), self.stop.clone());
        move |now: Progress| {
            let fetched = prefetch.as_ref().map_or(now.done, |prefetch| prefetch.fetched());
            let Progress { done, total, data, stored } = now;
            listener(Event::Progress { disk: disk.clone(), size: total, done, data, stored, fetched });
            !stop.is_cancelled()
        }
    }

    async fn disk(&self, job: &Job, disk: &ExportDisk, report: &mut Report) -> Result<()> {
        let name = format!("{}-{}.{}", job.name, disk.volume.name, self.settings.target.extension());
        let key = self.store.key(&name);
        let size = disk.source.size();
        let mut sink = self.sink(&key, size).await?;
        let volume = disk.volume.name.clone();
        (self.listener)(Event::Started { disk: volume.clone(), size, done: 0 });
        let prefetch = Arc::new(Prefetch::start(disk.source.clone(), 0, self.settings.window.clone()));
        let mut watch = self.watch(volume.clone(), Some(prefetch.clone()));
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
            let summary = convert_from(&*reader, &mut sink, &options, &whole, &mut watch);
            let summary = summary.map_err(|source| Error::Image { what, source });
            let summary = summary.inspect_err(|_| sink.settle())?;
            Ok((summary, sink.finish()?))
        })
        .await;
        watcher.abort();
        let ended: Result<_> = ended.map_err(|_| Error::Stopped)?;
        if self.stop.is_cancelled() {
            return Err(Error::Stopped);
        }
        let (summary, uploaded) = ended?;
        let sums = prefetch.take_sums(u64::MAX);
        if self.settings.verify {
            self.verify(disk, &key, uploaded.length, sums.clone()).await?;
        }
        let file = FileReport { name: name.clone(), size: uploaded.length, sha256: None };
        (self.listener)(Event::Finished { file: file.clone() });
        report.files.push(file);
        report.disks.push(DiskReport::new(disk, &name, summary.data, &sums));
        Ok(())
    }

    async fn verify(&self, disk: &ExportDisk, key: &str, length: u64, sums: Sums) -> Result<()> {
        (self.listener)(Event::Verifying { disk: disk.volume.name.clone() });
        let storage = Arc::new(ObjectStorage::new(self.store.clone(), key, length));
        let (what, disk) = (key.to_owned(), disk.clone());
        let checked = tokio::task::spawn_blocking(move || {
            if disk.base.is_some() {
                return verify_overlay(storage, &disk, &what, &sums);
            }
            let (image, _) =
                image::open_storage(storage).map_err(|source| Error::Image { what: what.clone(), source })?;
            sums.verify(&what, &*image, disk.source.size())
        });
        checked.await.map_err(|_| Error::Stopped)?
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
        let mut sink = self.sink(&key, most).await?;
        let sources = Twice::all(job, self.settings, &self.stop);
        let options = self.settings.options("disk.vmdk", None);
        let (stem, vm, vm_name) = (job.name.clone(), job.manifest(), format!("{}.vm.json", job.name));
        let with_vm = !job.vm.is_null();
        let mut watch = self.watch(job.name.clone(), None);
        let names = files.clone();
        let what = job.source.clone();
        let ended = tokio::task::spawn_blocking(move || {
            let disks: Vec<OvaDisk<'_>> =
                sources.iter().zip(&names).map(|(disk, file)| OvaDisk { disk, file: file.clone() }).collect();
            let more: &[(&str, &[u8])] = if with_vm { &[(&vm_name, &vm)] } else { &[] };
            // Headers behind the first part cannot be patched: with several disks, measure first.
            let summary = if disks.len() == 1 {
                convert_ova(&machine, &disks, &stem, more, &mut sink, &options, &mut watch)
            } else {
                stream_ova(&machine, &disks, &stem, more, &mut sink, &options, &mut watch)
            };
            drop(disks);
            let summary = summary.map_err(|source| Error::Image { what, source });
            summary.inspect_err(|_| sink.settle())?;
            let sums: Vec<Sums> = sources.iter().map(Twice::sums).collect();
            Ok((sink.finish()?, sums))
        })
        .await;
        let ended: Result<_> = ended.map_err(|_| Error::Stopped)?;
        if self.stop.is_cancelled() {
            return Err(Error::Stopped);
        }
        let (uploaded, sums) = ended?;
        if self.settings.verify {
            self.verify_ova(job, &key, uploaded.length, &files, sums.clone()).await?;
        }
        let file = FileReport { name, size: uploaded.length, sha256: None };
        (self.listener)(Event::Finished { file: file.clone() });
        report.files.push(file);
        for ((disk, file), sums) in job.disks.iter().zip(&files).zip(&sums) {
            let data = sums.0.len() as u64 * crate::sums::CHUNK;
            let size = disk.source.size();
            report.disks.push(DiskReport::new(disk, file, data.min(size), sums));
        }
        Ok(())
    }

    async fn verify_ova(
        &self,
        job: &Job,
        key: &str,
        length: u64,
        files: &[String],
        sums: Vec<Sums>,
    ) -> Result<()> {
        (self.listener)(Event::Verifying { disk: job.name.clone() });
        let storage = Arc::new(ObjectStorage::new(self.store.clone(), key, length));
        let (what, files) = (key.to_owned(), files.to_vec());
        let sizes: Vec<u64> = job.disks.iter().map(|disk| disk.source.size()).collect();
        let checked = tokio::task::spawn_blocking(move || {
            let image = |source| Error::Image { what: what.clone(), source };
            let package = image::ovf::Package::open_archive(storage).map_err(image)?;
            for ((file, sums), size) in files.iter().zip(&sums).zip(sizes) {
                let number = package.machine.disks.iter().position(|disk| disk.file == *file);
                let found = number.map(|number| package.disk(number)).transpose().map_err(image)?.flatten();
                let wrong = format!("`{file}` is not in it");
                let found = found.ok_or(Error::Verify { what: what.clone(), wrong })?;
                sums.verify(file, &*found.disk, size)?;
            }
            Ok(())
        });
        checked.await.map_err(|_| Error::Stopped)?
    }
}
