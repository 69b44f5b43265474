//! Front to back: into a pipe, or as the body of a request.

use std::io::{Seek, SeekFrom, Write};
use std::sync::Arc;

use image::{Disk, Format, OvaDisk, Progress, convert_from, stream_ova};
use tokio_util::sync::CancellationToken;

use super::{DiskReport, Event, ExportDisk, FileReport, Job, Listener, Report, Settings, Target};
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
        return work.ova(job, move || sink).await.map(|(report, _)| report);
    }
    let [disk] = job.disks.as_slice() else {
        let count = job.disks.len();
        let wrong = format!("{} has {count} disks, and a pipe takes one; choose one, or use ova", job.source);
        return Err(Error::Request(wrong));
    };
    let (report, _) = work.disk(job, disk, "-", move |_| sink).await?;
    Ok(Report { disks: vec![report], ..job.report() })
}

/// Exports to a plain HTTP server, a `PUT` for each file. A request that broke off is no image, and begins anew.
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
    if settings.verify {
        let wrong = "a plain HTTP server is not read back: leave --verify out, or use a store".into();
        return Err(Error::Request(wrong));
    }
    let mut report = job.report();
    let work = Work { settings, listener: listener.clone(), stop };
    let mut files = Vec::new();
    if settings.target == Target::Ova {
        let name = format!("{}.ova", job.name);
        work.free(web, &name).await?;
        let (target, named) = (web.clone(), name.clone());
        let (made, put) = work.ova(job, move || target.put(&named, None)).await?;
        (report.disks, report.warnings) = (made.disks, made.warnings);
        files.push((name, put));
    } else {
        for disk in &job.disks {
            let name = format!("{}-{}.{}", job.name, disk.volume.name, settings.target.extension());
            work.free(web, &name).await?;
            let (target, named) = (web.clone(), name.clone());
            let (made, put) = work.disk(job, disk, &name, move |length| target.put(&named, length)).await?;
            report.disks.push(made);
            files.push((name, put));
        }
        if !job.vm.is_null() {
            web.put_small(&format!("{}.vm.json", job.name), job.manifest()).await?;
        }
    }
    for (name, size) in files {
        // A server that says yes and keeps less is found out here, when it says how much it has.
        if let Some(found) = web.size(&name).await?
            && found != size
        {
            let wrong = format!("the server has {found} bytes of it instead of {size}");
            return Err(Error::Verify { what: web.url(&name), wrong });
        }
        let file = FileReport { name, size, sha256: None };
        listener(Event::Finished { file: file.clone() });
        report.files.push(file);
    }
    let text = serde_json::to_vec_pretty(&report).unwrap_or_default();
    web.put_small(&format!("{}.export.json", job.name), text).await?;
    Ok(report)
}

/// A sink that has an end of its own.
trait Finish {
    /// Answers the length of what was written, where that is known.
    fn end(self) -> Result<u64>;

    /// Why writing failed, when that is known better than by the error of the write.
    fn failure(&mut self) -> Option<Error> {
        None
    }
}

impl<W: Write> Finish for std::io::BufWriter<W> {
    fn end(mut self) -> Result<u64> {
        self.flush().map_err(|source| Error::File { doing: "writing", path: "-".into(), source })?;
        Ok(0)
    }
}

impl Finish for crate::store::Put {
    fn end(self) -> Result<u64> {
        self.finish()
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

    fn watch(&self, name: &str, fetched: Option<Arc<Prefetch>>) -> impl FnMut(Progress) -> bool + use<> {
        let (listener, stop, disk) = (self.listener.clone(), self.stop.clone(), name.to_owned());
        move |now: Progress| {
            let Progress { done, total, data, stored } = now;
            let fetched = fetched.as_ref().map_or(done, |prefetch| prefetch.fetched());
            listener(Event::Progress { disk: disk.clone(), size: total, done, data, stored, fetched });
            !stop.is_cancelled()
        }
    }

    /// One disk into a sink that is made when the length is known, if it can be known before; answers the report
    /// and the length.
    async fn disk<W: Write + Finish + Send + 'static>(
        &self,
        job: &Job,
        disk: &ExportDisk,
        file: &str,
        sink: impl FnOnce(Option<u64>) -> W + Send + 'static,
    ) -> Result<(DiskReport, u64)> {
        let target = self.settings.target;
        if target == Target::Ovf {
            return Err(Error::Request("an OVF is several files: use ova".into()));
        }
        let size = disk.source.size();
        let name = disk.volume.name.clone();
        (self.listener)(Event::Started { disk: name.clone(), size, done: 0 });
        let options = self.settings.options(&format!("{}-{name}.vmdk", job.name), Some(disk));
        let (summary, sums, length) = if target == Target::Qcow2 {
            let twice = Twice::of(disk, self.settings, &self.stop);
            let mut watch = self.watch(&name, None);
            self.blocking(&name, move || {
                let measured = image::measure(&twice, &options, &mut watch)?;
                let mut sink = sink(Some(measured.summary.stored));
                let done = image::stream_measured(&twice, &mut sink, &options, &measured, &mut watch);
                Ok((done, twice.sums(), sink))
            })
            .await?
        } else {
            let prefetch = Arc::new(Prefetch::start(disk.source.clone(), 0, self.settings.window.clone()));
            let mut watch = self.watch(&name, Some(prefetch.clone()));
            let (watched, stop) = (Arc::downgrade(&prefetch), self.stop.clone());
            let watcher = tokio::spawn(async move {
                stop.cancelled().await;
                if let Some(prefetch) = watched.upgrade() {
                    prefetch.stop();
                }
            });
            let done = self.blocking(&name, move || {
                let whole = image::Resume::default();
                let (done, sink) = if options.format == Format::Raw {
                    let mut sink = Forward::new(sink(Some(size)));
                    (convert_from(&*prefetch, &mut sink, &options, &whole, &mut watch), sink.sink)
                } else {
                    let mut sink = sink(None);
                    (image::stream_from(&*prefetch, &mut sink, &options, &whole, &mut watch), sink)
                };
                Ok((done, prefetch.take_sums(u64::MAX), sink))
            });
            let done = done.await;
            watcher.abort();
            done?
        };
        Ok((DiskReport::new(disk, file, summary.data, &sums), length))
    }

    /// Runs a conversion on a thread of its own, and ends its sink.
    async fn blocking<W: Finish + Send + 'static, T: Send + 'static>(
        &self,
        what: &str,
        work: impl FnOnce() -> image::Result<(image::Result<T>, Sums, W)> + Send + 'static,
    ) -> Result<(T, Sums, u64)> {
        let image = |what: &str, source| Error::Image { what: format!("volume {what}"), source };
        let name = what.to_owned();
        let ended = tokio::task::spawn_blocking(move || {
            let (done, sums, mut sink) = work().map_err(|source| image(&name, source))?;
            match done {
                Ok(done) => Ok((done, sums, sink.end()?)),
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
        sink: impl FnOnce() -> W + Send + 'static,
    ) -> Result<(Report, u64)> {
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
        let mut watch = self.watch(&job.name, None);
        let names = files.clone();
        let (sums, _, length) = self
            .blocking(&job.source, move || {
                let disks: Vec<OvaDisk<'_>> = twice
                    .iter()
                    .zip(&names)
                    .map(|(disk, file)| OvaDisk { disk, file: file.clone() })
                    .collect();
                let more: &[(&str, &[u8])] = if with_vm { &[(&name, &vm)] } else { &[] };
                let mut sink = sink();
                let done = stream_ova(&machine, &disks, &stem, more, &mut sink, &options, &mut watch);
                drop(disks);
                let sums: Vec<Sums> = twice.iter().map(Twice::sums).collect();
                Ok((done.map(|_| sums), Sums::default(), sink))
            })
            .await?;
        let disks = job.disks.iter().zip(&sums).zip(&files).map(|((disk, sums), file)| {
            let size = disk.source.size();
            let data = (sums.0.len() as u64 * crate::sums::CHUNK).min(size);
            DiskReport::new(disk, file, data, sums)
        });
        let report = Report { disks: disks.collect(), warnings, ..job.report() };
        Ok((report, length))
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
