//! Into a directory: `NAME.partial` and a journal while it is made, renamed when it is whole.

use std::fs::{File, OpenOptions};
use std::io::{BufWriter, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use image::ova::OvaWriter;
use image::ovf::Machine;
use image::{Disk as _, Summary, convert_from, stream_from};
use tokio_util::sync::CancellationToken;

use super::digest::{self, Growing};
use super::follow::{Checkpoints, Follow};
use super::{DiskReport, Event, ExportDisk, FileReport, Job, Listener, Report, Settings, Target};
use crate::journal::{Head, Journal, Past, sync_parent};
use crate::sums::Sums;
use crate::{Error, Prefetch, Result};

const BUFFER: usize = 1 << 20;

/// Exports into a directory, which has to exist.
///
/// # Errors
/// After an error the partial file and the journal are left, and [`Settings::resume`] goes on.
pub async fn to_directory(
    job: &Job,
    directory: &Path,
    settings: &Settings,
    listener: Listener,
    stop: CancellationToken,
) -> Result<Report> {
    job.check(settings.target)?;
    let (mut machine, warnings) = job.machine();
    let mut report = job.report();
    if matches!(settings.target, Target::Ova | Target::Ovf) {
        for message in &warnings {
            listener(Event::Warning { message: message.clone() });
        }
        report.warnings = warnings;
    }
    let work = Work { directory, settings, listener, stop };
    for (disk, described) in job.disks.iter().zip(&mut machine.disks) {
        described.file = work.file_name(job, disk);
        described.capacity = disk.source.size();
    }
    if settings.target == Target::Ova {
        work.ova(job, &machine, &mut report).await?;
    } else {
        for (number, disk) in job.disks.iter().enumerate() {
            let summary = work.disk(job, disk, &mut report).await?;
            if let (Some(described), Some(file)) = (machine.disks.get_mut(number), report.files.last()) {
                described.made(&file.name, &summary, file.size);
            }
        }
        if settings.target == Target::Ovf {
            for (name, content) in job.package(&machine, &report.files) {
                work.small(&name, &content, &mut report)?;
            }
        }
        if !job.vm.is_null() {
            work.small(&format!("{}.vm.json", job.name), &job.manifest(), &mut report)?;
        }
    }
    let mut text = serde_json::to_vec_pretty(&report).unwrap_or_default();
    text.push(b'\n');
    work.small(&format!("{}.export.json", job.name), &text, &mut Report::default())?;
    Ok(report)
}

struct Work<'a> {
    directory: &'a Path,
    settings: &'a Settings,
    listener: Listener,
    stop: CancellationToken,
}

/// A result that is being made.
struct Partial {
    /// The name that it gets.
    path: PathBuf,
    /// The name that it has.
    made_at: PathBuf,
    file: File,
}

impl Work<'_> {
    fn file_name(&self, job: &Job, disk: &ExportDisk) -> String {
        format!("{}-{}.{}", job.name, disk.volume.name, self.settings.target.extension())
    }

    /// Opens what an earlier run left, or begins.
    fn open(&self, name: &str) -> Result<Partial> {
        let path = self.directory.join(name);
        if path.exists() && !self.settings.force {
            let wrong = std::io::Error::other("it exists already; choose another directory, or force it");
            return Err(Error::file("writing", &path)(wrong));
        }
        let partial = self.directory.join(format!("{name}.partial"));
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(!self.settings.resume);
        let file = options.open(&partial).map_err(Error::file("creating", &partial))?;
        Ok(Partial { path, made_at: partial, file })
    }

    fn journal(&self, job: &Job, disk: &ExportDisk, name: &str) -> Result<(Journal, Past)> {
        let path = self.directory.join(format!("{name}.journal"));
        let source = format!("{} volume {}", job.source, disk.volume.name);
        let head = Head::new(&source, disk.source.size(), &self.settings.describe(disk));
        if self.settings.resume {
            return Journal::open(&path, &head);
        }
        if path.exists() && !self.settings.force {
            let wrong = "is left by an earlier run: resume that one, or force a new one".into();
            return Err(Error::Journal { path, wrong });
        }
        Ok((Journal::create(&path, &head)?, Past::default()))
    }

    async fn disk(&self, job: &Job, disk: &ExportDisk, report: &mut Report) -> Result<Summary> {
        let name = self.file_name(job, disk);
        let path = self.directory.join(&name);
        let (journal, past) = match self.journal(job, disk, &name) {
            Err(error) => return Err(error),
            // An earlier run finished this disk, and perhaps it has its name already.
            Ok((journal, past)) if past.whole && path.exists() => {
                return self.adopt_whole(disk, &name, journal, &past, report);
            }
            Ok(opened) => opened,
        };
        let result = self.open(&name)?;
        let raw = self.settings.target == Target::Raw;
        let kept = if raw { past.resume.done } else { past.resume.stored };
        let kept = cut(&result, kept, raw)?;
        let (summary, sums, checkpoints) = if past.whole {
            let stored = kept;
            let summary = Summary { virtual_size: disk.source.size(), data: past.resume.data, stored };
            let sums = past.sums;
            (summary, sums, Some(self.checkpoints(journal, &result)?))
        } else {
            let options = self.settings.options(&name, Some(disk));
            let checkpoints = self.checkpoints(journal, &result)?;
            let file = result.file.try_clone().map_err(Error::file("writing", &result.made_at))?;
            let resume = past.resume.clone();
            self.convert(disk, past, Some(checkpoints), move |prefetch, follow| {
                let mut sink = BufWriter::with_capacity(BUFFER, file);
                if raw {
                    // The length first: what was never written is a hole.
                    sink.get_ref().set_len(prefetch.size()).map_err(image::Error::Note)?;
                }
                sink.seek(SeekFrom::Start(0)).map_err(image::Error::Note)?;
                convert_from(prefetch, sink, &options, &resume, follow)
            })
            .await?
        };
        let (mut journal, growing) = checkpoints.map(|all| (all.journal, all.growing)).unzip();
        let file = settle(&result, &name, growing.flatten())?;
        if let Some(journal) = &mut journal {
            let (done, data) = (disk.source.size(), summary.data);
            let at = image::Resume { done, data, stored: summary.stored, placements: Vec::new() };
            journal.note_whole(&at, &sums)?;
        }
        if self.settings.verify {
            self.verify(disk, &result.made_at, &sums)?;
        }
        publish(&result)?;
        (self.listener)(Event::Finished { file: file.clone() });
        report.files.push(file);
        report.disks.push(DiskReport::new(disk, &name, summary.data, &sums));
        if let Some(journal) = journal {
            journal.remove()?;
        }
        Ok(summary)
    }

    fn adopt_whole(
        &self,
        disk: &ExportDisk,
        name: &str,
        journal: Journal,
        past: &Past,
        report: &mut Report,
    ) -> Result<Summary> {
        let path = self.directory.join(name);
        if self.settings.verify {
            self.verify(disk, &path, &past.sums)?;
        }
        let file = digest::whole(&path, name, None)?;
        let size = disk.source.size();
        report.disks.push(DiskReport::new(disk, name, past.resume.data, &past.sums));
        let summary = Summary { virtual_size: size, data: past.resume.data, stored: file.size };
        report.files.push(file);
        journal.remove()?;
        Ok(summary)
    }

    fn checkpoints(&self, journal: Journal, result: &Partial) -> Result<Checkpoints> {
        let file = result.file.try_clone().map_err(Error::file("writing", &result.made_at))?;
        let (bytes, time) = (self.settings.checkpoint_bytes, self.settings.checkpoint_time);
        let growing = Growing::of(self.settings.target, &result.made_at);
        Ok(Checkpoints { journal, file, bytes, time, growing })
    }

    /// Runs a conversion on a thread of its own.
    async fn convert(
        &self,
        disk: &ExportDisk,
        past: Past,
        checkpoints: Option<Checkpoints>,
        work: impl FnOnce(&Prefetch, &mut Follow) -> image::Result<Summary> + Send + 'static,
    ) -> Result<(Summary, Sums, Option<Checkpoints>)> {
        let done = past.resume.done;
        let (name, size) = (disk.volume.name.clone(), disk.source.size());
        (self.listener)(Event::Started { disk: name.clone(), size, done, passes_left: 0 });
        let prefetch = Arc::new(Prefetch::start(disk.source.clone(), done, self.settings.window.clone()));
        let (listener, stop) = (self.listener.clone(), self.stop.clone());
        let mut follow = Follow::new(&name, prefetch.clone(), listener, stop, past.sums, checkpoints);
        // Whoever waits for data must not wait for ever when the export is to stop.
        let (watched, stop) = (prefetch.clone(), self.stop.clone());
        let watcher = tokio::spawn(async move {
            stop.cancelled().await;
            watched.stop();
        });
        let ended = tokio::task::spawn_blocking(move || {
            let summary = work(&prefetch, &mut follow);
            // Also after a failure: what was noted by then is what the next run goes on from.
            (summary, follow.finish())
        })
        .await;
        watcher.abort();
        let (summary, finished) = ended.map_err(|_| Error::Stopped)?;
        if self.stop.is_cancelled() {
            return Err(Error::Stopped);
        }
        let what = format!("volume {name}");
        let summary = summary.map_err(|source| Error::Image { what, source })?;
        let (sums, checkpoints) = finished?;
        Ok((summary, sums, checkpoints))
    }

    fn verify(&self, disk: &ExportDisk, path: &Path, sums: &Sums) -> Result<()> {
        (self.listener)(Event::Verifying { disk: disk.volume.name.clone() });
        let what = path.display().to_string();
        if disk.base.is_some() {
            let file = File::open(path).map_err(Error::file("reading", path))?;
            return verify_overlay(Arc::new(file), disk, &what, sums);
        }
        // Not by its first bytes: a guest writes what it likes to those of a raw disk.
        let opened = image::open_path_as(path, self.settings.target.format());
        let (image, _) = opened.map_err(|source| Error::Image { what: what.clone(), source })?;
        sums.verify(&what, &*image, disk.source.size())
    }

    /// A file whose content is at hand.
    fn small(&self, name: &str, content: &[u8], report: &mut Report) -> Result<()> {
        let path = self.directory.join(name);
        let partial = self.directory.join(format!("{name}.partial"));
        std::fs::write(&partial, content).map_err(Error::file("writing", &partial))?;
        std::fs::rename(&partial, &path).map_err(Error::file("renaming", &partial))?;
        report.files.push(FileReport::small(name, content));
        Ok(())
    }

    async fn ova(&self, job: &Job, machine: &Machine, report: &mut Report) -> Result<()> {
        let name = format!("{}.ova", job.name);
        let result = self.open(&name)?;
        let what = |source| Error::Image { what: name.clone(), source };
        let clone = || result.file.try_clone().map_err(Error::file("writing", &result.made_at));
        let mut machine = machine.clone();
        let mut file = clone()?;
        file.seek(SeekFrom::Start(0)).map_err(Error::file("writing", &result.made_at))?;
        let sink = BufWriter::with_capacity(BUFFER, file);
        let mut writer = OvaWriter::begin(sink, &job.name, &machine).map_err(what)?;
        let mut journals = Vec::new();
        for (number, disk) in job.disks.iter().enumerate() {
            let file = self.file_name(job, disk);
            let (journal, past) = self.journal(job, disk, &format!("{name}.{}", number + 1))?;
            let start = writer.position() + 512;
            let whole = past.whole;
            let stored = past.resume.stored;
            let known = past.resume.clone();
            if whole {
                check_length(&result, start + stored)?;
            } else {
                cut(&result, if stored == 0 { start } else { start + stored }, stored == 0)?;
            }
            let options = self.settings.options(&file, None);
            let mut reader = clone()?;
            let partial = result.made_at.clone();
            let member_name = file.clone();
            let (summary, sums, checkpoints, back) = if whole {
                let mut member = writer.member(&file, None).map_err(what)?;
                adopt(&mut member, &mut reader, &partial, stored).map_err(what)?;
                let (stored, _) = member.finish().map_err(what)?;
                let virtual_size = disk.source.size().next_multiple_of(512);
                let summary = Summary { virtual_size, data: past.resume.data, stored };
                (summary, past.sums, Some(self.checkpoints(journal, &result)?), writer)
            } else {
                let checkpoints = Some(self.checkpoints(journal, &result)?);
                let (send, receive) = tokio::sync::oneshot::channel();
                let done = self.convert(disk, past, checkpoints, move |prefetch, follow| {
                    let mut writer = writer;
                    let mut member = writer.member(&member_name, None)?;
                    adopt(&mut member, &mut reader, &partial, stored)?;
                    let mut summary = stream_from(prefetch, &mut member, &options, &known, follow)?;
                    summary.stored = member.finish()?.0;
                    let _ = send.send(writer);
                    Ok(summary)
                });
                let (summary, sums, checkpoints) = done.await?;
                (summary, sums, checkpoints, receive.await.map_err(|_| Error::Stopped)?)
            };
            writer = back;
            if let Some(described) = machine.disks.get_mut(number) {
                described.capacity = summary.virtual_size;
                described.file_size = summary.stored;
                described.populated = Some(summary.data);
            }
            if let Some(mut checkpoints) = checkpoints {
                if !whole {
                    writer = flushed(writer, &result)?;
                    let (done, data) = (disk.source.size(), summary.data);
                    let at = image::Resume { done, data, stored: summary.stored, placements: Vec::new() };
                    checkpoints.journal.note_whole(&at, &sums)?;
                }
                journals.push(checkpoints.journal);
            }
            report.disks.push(DiskReport::new(disk, &file, summary.data, &sums));
        }
        let manifest = job.manifest();
        let more_name = format!("{}.vm.json", job.name);
        let more: &[(&str, &[u8])] = if job.vm.is_null() { &[] } else { &[(&more_name, &manifest)] };
        let finished = writer.finish(&machine, more).map_err(what)?;
        let length = finished.length;
        finished.patch().map_err(what)?;
        result.file.set_len(length).map_err(Error::file("writing", &result.made_at))?;
        let file = settle(&result, &name, None)?;
        if self.settings.verify {
            self.verify_ova(job, &result.made_at, report)?;
        }
        publish(&result)?;
        (self.listener)(Event::Finished { file: file.clone() });
        report.files.push(file);
        journals.into_iter().try_for_each(Journal::remove)
    }

    fn verify_ova(&self, job: &Job, path: &Path, report: &Report) -> Result<()> {
        let what = path.display().to_string();
        let image = |source| Error::Image { what: what.clone(), source };
        let file = File::open(path).map_err(Error::file("reading", path))?;
        let package = image::ovf::Package::open_archive(Arc::new(file)).map_err(image)?;
        if let Some(wrong) = package.check_manifest().map_err(image)?.first() {
            let wrong = format!("`{wrong}` does not match its digest in the manifest");
            return Err(Error::Verify { what, wrong });
        }
        for (disk, done) in job.disks.iter().zip(&report.disks) {
            (self.listener)(Event::Verifying { disk: disk.volume.name.clone() });
            let number = package.machine.disks.iter().position(|described| described.file == done.file);
            let found = number.map(|number| package.disk(number)).transpose().map_err(image)?.flatten();
            let Some(found) = found else {
                let wrong = format!("`{}` is not in it", done.file);
                return Err(Error::Verify { what, wrong });
            };
            let sums = done.chunks.iter().filter_map(|(n, sum)| Some((*n, crate::sums::unhex(sum)?)));
            Sums(sums.collect()).verify(&done.file, &*found.disk, disk.source.size())?;
        }
        Ok(())
    }
}

/// Compares an image that builds on another one with the digests of what was read: what changed is in both.
pub(super) fn verify_overlay(
    storage: Arc<dyn image::Storage>,
    disk: &ExportDisk,
    what: &str,
    sums: &Sums,
) -> Result<()> {
    let alone = image::qcow2::Qcow2Disk::open_alone(storage);
    let alone = alone.map_err(|source| Error::Image { what: what.to_owned(), source })?;
    sums.verify(what, &alone, disk.source.size())
}

/// Makes a result durable, and takes its length and digest while the disk is at work.
fn settle(result: &Partial, name: &str, growing: Option<Growing>) -> Result<FileReport> {
    std::thread::scope(|scope| {
        let sync = scope.spawn(|| result.file.sync_all().map_err(Error::file("syncing", &result.made_at)));
        let file = digest::whole(&result.made_at, name, growing);
        sync.join().map_err(|_| Error::Stopped)??;
        file
    })
}

/// Gives a result its name.
fn publish(result: &Partial) -> Result<()> {
    std::fs::rename(&result.made_at, &result.path).map_err(Error::file("renaming", &result.made_at))?;
    sync_parent(&result.path)
}

/// Everything that was written so far is on the disk when this returns.
fn flushed(mut writer: OvaWriter<BufWriter<File>>, result: &Partial) -> Result<OvaWriter<BufWriter<File>>> {
    writer.flush().map_err(|source| Error::Image { what: result.path.display().to_string(), source })?;
    result.file.sync_data().map_err(Error::file("syncing", &result.made_at))?;
    Ok(writer)
}

/// Takes over the bytes that an earlier run wrote into a member of an archive.
fn adopt(
    member: &mut image::ova::Member<'_, BufWriter<File>>,
    reader: &mut File,
    partial: &Path,
    stored: u64,
) -> image::Result<()> {
    use std::os::unix::fs::FileExt;
    let failed = |source| image::Error::Read { offset: 0, length: stored, source };
    let mut buffer = vec![0; BUFFER];
    let (start, mut at) = (member.start(), 0);
    while at < stored {
        let length = usize::try_from(stored - at).unwrap_or(BUFFER).min(BUFFER);
        let part = buffer.get_mut(..length).unwrap_or_default();
        reader.read_exact_at(part, start + at).map_err(|source| {
            failed(std::io::Error::new(source.kind(), format!("{}: {source}", partial.display())))
        })?;
        member.adopt(part)?;
        at += length as u64;
    }
    Ok(())
}

/// Cuts off what lies behind a checkpoint.
fn cut(result: &Partial, kept: u64, may_be_short: bool) -> Result<u64> {
    if !may_be_short {
        check_length(result, kept)?;
    }
    let length = result.file.metadata().map_err(Error::file("reading", &result.made_at))?.len();
    if length > kept {
        result.file.set_len(kept).map_err(Error::file("cutting", &result.made_at))?;
    }
    Ok(kept)
}

fn check_length(result: &Partial, wanted: u64) -> Result<()> {
    let length = result.file.metadata().map_err(Error::file("reading", &result.made_at))?.len();
    if length >= wanted {
        return Ok(());
    }
    let wrong = format!(
        "speaks of {wanted} bytes, of which `{}` has only {length}; remove both to start again",
        result.made_at.display()
    );
    Err(Error::Journal { path: result.path.clone(), wrong })
}
