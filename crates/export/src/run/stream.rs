//! Front to back: into a pipe, or as the body of a request.

use std::io::Write;
use std::sync::Arc;

use image::{Disk, Format, OvaDisk, Progress, stream_ova};
use tokio_util::sync::CancellationToken;

use super::hashed::Hashed;
use super::tell::Tell;
use super::{DiskReport, Event, ExportDisk, FileReport, Job, Listener, Report, Settings, Target, check};
use crate::store::Web;
use crate::sums::Sums;
use crate::{Error, Prefetch, Result};

/// Exports into a pipe. Possible are one raw, VMDK or qcow2 disk, and OVAs. Disks of qcow2 and OVA are read
/// twice: what stands in front of them is known only after the first pass.
///
/// # Errors
/// When the format cannot be written front to back, or anything else fails; what went into the pipe
/// by then is no image.
pub async fn to_pipe<W: Write + Send + 'static>(
    job: &Job,
    sink: std::io::BufWriter<W>,
    settings: &Settings,
    listener: Listener,
    stop: CancellationToken,
) -> Result<Report> {
    job.check(settings.target)?;
    let work = Work { settings, listener, stop };
    if settings.target == Target::Ova {
        let (report, file, _) = work.ova(job, "-", move || sink).await?;
        return Ok(Report { files: vec![file], ..report });
    }
    let [disk] = job.disks.as_slice() else {
        let count = job.disks.len();
        let wrong = format!("{} has {count} disks, and a pipe takes one; choose one, or use ova", job.source);
        return Err(Error::Request(wrong));
    };
    if settings.target == Target::Ovf {
        return Err(Error::Request("an OVF is several files: use ova".into()));
    }
    let made = work.disk(job, disk, "-", move |_| sink).await?;
    Ok(Report { disks: vec![made.report], files: vec![made.file], ..job.report() })
}

/// Exports to a plain HTTP server, a `PUT` for each file. A request that broke off is no image, and begins anew.
/// To verify, the files are read back by ranges, which the server has to know.
///
/// # Errors
/// What the source, the format or the server refuses.
pub async fn to_web(
    job: &Job,
    web: &Arc<Web>,
    settings: &Settings,
    listener: Listener,
    stop: CancellationToken,
) -> Result<Report> {
    job.check(settings.target)?;
    let mut report = job.report();
    let work = Work { settings, listener: listener.clone(), stop };
    let (mut machine, warnings) = job.machine();
    if settings.target == Target::Ova {
        let name = format!("{}.ova", job.name);
        work.free(web, &name).await?;
        let (target, named) = (web.clone(), name.clone());
        let (made, file, sums) = work.ova(job, &name, move || target.put(&named, None)).await?;
        if settings.verify {
            listener(Event::Verifying { disk: job.name.clone() });
            let files: Vec<String> = made.disks.iter().map(|disk| disk.file.clone()).collect();
            check::archive(web.clone(), (&name, file.size), job, &files, sums).await?;
        }
        (report.disks, report.warnings) = (made.disks, made.warnings);
        report.files.push(file);
    } else {
        for (number, disk) in job.disks.iter().enumerate() {
            let name = format!("{}-{}.{}", job.name, disk.volume.name, settings.target.extension());
            work.free(web, &name).await?;
            let (target, named) = (web.clone(), name.clone());
            let made = work.disk(job, disk, &name, move |length| target.put(&named, length)).await?;
            if settings.verify {
                listener(Event::Verifying { disk: disk.volume.name.clone() });
                let (object, format) = ((name.as_str(), made.file.size), settings.target.format());
                check::disk(web.clone(), object, format, disk, made.sums).await?;
            }
            if let Some(described) = machine.disks.get_mut(number) {
                described.made(&name, &made.summary, made.file.size);
            }
            report.disks.push(made.report);
            report.files.push(made.file);
        }
    }
    for file in &report.files {
        // A server that says yes and keeps less is found out here, when it says how much it has.
        if let Some(found) = web.size(&file.name).await?
            && found != file.size
        {
            let wrong = format!("the server has {found} bytes of it instead of {}", file.size);
            return Err(Error::Verify { what: web.url(&file.name), wrong });
        }
        listener(Event::Finished { file: file.clone() });
    }
    if settings.target == Target::Ovf {
        for message in &warnings {
            listener(Event::Warning { message: message.clone() });
        }
        report.warnings = warnings;
        for (name, content) in job.package(&machine, &report.files) {
            report.files.push(FileReport::small(&name, &content));
            web.put_small(&name, content).await?;
        }
    }
    if !job.vm.is_null() && settings.target != Target::Ova {
        web.put_small(&format!("{}.vm.json", job.name), job.manifest()).await?;
    }
    let text = serde_json::to_vec_pretty(&report).unwrap_or_default();
    web.put_small(&format!("{}.export.json", job.name), text).await?;
    Ok(report)
}

/// A disk that was written.
struct Made {
    report: DiskReport,
    file: FileReport,
    summary: image::Summary,
    sums: Sums,
}

/// A sink that has an end of its own.
trait Finish {
    /// Answers when everything is where it should be.
    fn end(self) -> Result<()>;

    /// Why writing failed, when that is known better than by the error of the write.
    fn failure(&mut self) -> Option<Error> {
        None
    }
}

impl<W: Write> Finish for std::io::BufWriter<W> {
    fn end(mut self) -> Result<()> {
        self.flush().map_err(|source| Error::File { doing: "writing", path: "-".into(), source })
    }
}

impl Finish for crate::store::Put {
    fn end(self) -> Result<()> {
        self.finish().map(|_| ())
    }

    fn failure(&mut self) -> Option<Error> {
        Self::failure(self)
    }
}

struct Work<'a> {
    settings: &'a Settings,
    listener: Listener,
    stop: CancellationToken,
}

impl Work<'_> {
    /// Whether a file may be written.
    async fn free(&self, web: &Web, name: &str) -> Result<()> {
        if !self.settings.force && !self.settings.resume && web.size(name).await?.is_some() {
            return Err(Error::Request(format!("`{}` exists already; force it, or rename", web.url(name))));
        }
        Ok(())
    }

    /// One disk into a sink that is made when the length is known, if it can be known before.
    async fn disk<W: Write + Finish + Send + 'static>(
        &self,
        job: &Job,
        disk: &ExportDisk,
        file: &str,
        sink: impl FnOnce(Option<u64>) -> W + Send + 'static,
    ) -> Result<Made> {
        let target = self.settings.target;
        let size = disk.source.size();
        let name = disk.volume.name.clone();
        let alone = std::slice::from_ref(disk);
        let options = self.settings.options(&format!("{}-{name}.vmdk", job.name), Some(disk));
        let (summary, sums, sha256) = if target == Target::Qcow2 {
            let twice = Twice::of(disk, self.settings, &self.stop);
            let mut tell = Tell::new(alone, None, &self.listener, &self.stop);
            self.blocking(&name, move || {
                let mut watch = |now| tell.progress(now);
                let measured = image::measure(&twice, &options, &mut watch)?;
                let mut sink = Hashed::new(sink(Some(measured.summary.stored)), true);
                let done = image::stream_measured(&twice, &mut sink, &options, &measured, &mut watch);
                Ok((done, twice.sums(), sink))
            })
            .await?
        } else {
            let prefetch = Arc::new(Prefetch::start(disk.source.clone(), 0, self.settings.window.clone()));
            let mut tell = Tell::new(alone, Some(prefetch.clone()), &self.listener, &self.stop);
            let (watched, stop) = (Arc::downgrade(&prefetch), self.stop.clone());
            let watcher = tokio::spawn(async move {
                stop.cancelled().await;
                if let Some(prefetch) = watched.upgrade() {
                    prefetch.stop();
                }
            });
            let done = self.blocking(&name, move || {
                let whole = image::Resume::default();
                // Of a raw disk the length is known before.
                let sink = sink((options.format == Format::Raw).then_some(size));
                let mut sink = Hashed::new(sink, true);
                let mut watch = |now: Progress| tell.progress(now);
                let done = image::stream_from(&*prefetch, &mut sink, &options, &whole, &mut watch);
                Ok((done, prefetch.take_sums(u64::MAX), sink))
            });
            let done = done.await;
            watcher.abort();
            done?
        };
        // Of raw, `stored` are the bytes with data: zeros are written here, too.
        let length = if target == Target::Raw { size } else { summary.stored };
        let report = DiskReport::new(disk, file, summary.data, &sums);
        let file = FileReport { name: file.into(), size: length, sha256 };
        Ok(Made { report, file, summary, sums })
    }

    /// Runs a conversion on a thread of its own, and ends its sink.
    async fn blocking<W: Finish + Send + 'static, T: Send + 'static>(
        &self,
        what: &str,
        work: impl FnOnce() -> image::Result<(image::Result<T>, Sums, Hashed<W>)> + Send + 'static,
    ) -> Result<(T, Sums, Option<String>)> {
        let image = |what: &str, source| Error::Image { what: format!("volume {what}"), source };
        let name = what.to_owned();
        let ended = tokio::task::spawn_blocking(move || {
            let (done, sums, sink) = work().map_err(|source| image(&name, source))?;
            let (mut sink, sha256) = sink.end();
            match done {
                Ok(done) => sink.end().map(|()| (done, sums, sha256)),
                Err(source) => Err(sink.failure().unwrap_or_else(|| image(&name, source))),
            }
        })
        .await;
        let ended: Result<_> = ended.map_err(|_| Error::Stopped)?;
        if self.stop.is_cancelled() { Err(Error::Stopped) } else { ended }
    }

    /// All disks in one archive.
    async fn ova<W: Write + Finish + Send + 'static>(
        &self,
        job: &Job,
        file: &str,
        sink: impl FnOnce() -> W + Send + 'static,
    ) -> Result<(Report, FileReport, Vec<Sums>)> {
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
        let twice = Twice::all(job, self.settings, &self.stop);
        let options = self.settings.options("disk.vmdk", None);
        let (stem, vm, name) = (job.name.clone(), job.manifest(), format!("{}.vm.json", job.name));
        let with_vm = !job.vm.is_null();
        let mut tell = Tell::new(&job.disks, None, &self.listener, &self.stop);
        let names = files.clone();
        let ((size, sums), _, sha256) = self
            .blocking(&job.source, move || {
                let disks: Vec<OvaDisk<'_>> = twice
                    .iter()
                    .zip(&names)
                    .map(|(disk, file)| OvaDisk { disk, file: file.clone() })
                    .collect();
                let more: &[(&str, &[u8])] = if with_vm { &[(&name, &vm)] } else { &[] };
                let mut sink = Hashed::new(sink(), true);
                let mut watch = |now| tell.progress(now);
                let done = stream_ova(&machine, &disks, &stem, more, &mut sink, &options, &mut watch);
                drop(disks);
                let sums: Vec<Sums> = twice.iter().map(Twice::sums).collect();
                Ok((done.map(|summary| (summary.stored, sums)), Sums::default(), sink))
            })
            .await?;
        let disks = job.disks.iter().zip(&sums).zip(&files).map(|((disk, sums), file)| {
            let size = disk.source.size();
            let data = (sums.0.len() as u64 * crate::sums::CHUNK).min(size);
            DiskReport::new(disk, file, data, sums)
        });
        let report = Report { disks: disks.collect(), warnings, ..job.report() };
        Ok((report, FileReport { name: file.into(), size, sha256 }, sums))
    }
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
        job.disks.iter().map(|disk| Self::of(disk, settings, stop)).collect()
    }

    fn of(disk: &ExportDisk, settings: &Settings, stop: &CancellationToken) -> Self {
        Self {
            disk: disk.clone(),
            window: settings.window.clone(),
            runtime: tokio::runtime::Handle::current(),
            pass: parking_lot::Mutex::default(),
            stop: stop.clone(),
        }
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
