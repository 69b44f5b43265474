//! From any disk to any format.

use std::io::{Seek, SeekFrom, Write};
use std::ops::Range;

use serde::Serialize;

use crate::ova::OvaWriter;
use crate::ovf::Machine;
use crate::pipeline::{self, Encode, Plan};
use crate::qcow2::{Compression, Qcow2Encoder, Qcow2Writer};
use crate::raw::{RawEncoder, RawWriter};
use crate::resume::{Place, Placement, Resume, Watch};
use crate::vmdk::{GRAIN, GrainEncoder, SparseWriter, StreamWriter};
use crate::{Disk, Error, Format, Result};

/// Zeros in raw files are left out in units of this, in bytes.
const RAW_CHUNK: u64 = 16 << 10;

/// How to write an image.
#[derive(Clone, Debug)]
pub struct Options {
    /// The format to write.
    pub format: Format,
    /// For qcow2: how clusters are compressed. VMDK grains are always deflated or never.
    pub compression: Compression,
    /// The compressor's level; `None`: deflate 4, zstd 1, VMDK 5.
    pub level: Option<i32>,
    /// For qcow2: cluster size as a power of two, 12 to 21 (QEMU's default is 16).
    pub cluster_bits: u32,
    /// Threads that read and compress; at least 1.
    pub workers: usize,
    /// The file name that a VMDK's descriptor states for itself.
    pub file_name: String,
    /// For qcow2: the image holds what changed since another one.
    pub backing: Option<Backing>,
}

/// The image that an incremental one builds on.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Backing {
    /// Its name, as the header states it: a plain name means the same directory.
    pub file: String,
    /// Its format.
    pub format: Format,
    /// What changed since, in guest bytes. Clusters that these touch are in the new image, also those
    /// that hold zeros now; all others are read from the backing file.
    pub changed: Vec<Range<u64>>,
}

impl Options {
    /// The defaults for a format: no compression for qcow2, two workers.
    pub fn new(format: Format) -> Self {
        Self {
            format,
            compression: Compression::None,
            level: None,
            cluster_bits: 16,
            workers: 2,
            file_name: "disk.vmdk".into(),
            backing: None,
        }
    }
}

/// How far a conversion is.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Progress {
    /// Everything before this guest offset is done, in bytes.
    pub done: u64,
    /// The size of the guest's disk, in bytes.
    pub total: u64,
    /// Bytes of the disk that held data, so far.
    pub data: u64,
    /// Bytes stored for them, so far.
    pub stored: u64,
    /// Passes over the disk that come after this one: what stands in front of an image is measured first when
    /// the sink cannot go back.
    pub passes_left: u8,
}

/// What a finished conversion did.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Summary {
    /// The size that a guest sees, in bytes.
    pub virtual_size: u64,
    /// Bytes of the disk that held data; the rest was zero.
    pub data: u64,
    /// The length of the image, in bytes (raw: the bytes that were written).
    pub stored: u64,
}

/// Converts `disk` into `sink`. `progress` is called after every piece and may stop the work by
/// answering `false`.
///
/// # Errors
/// What cannot be read, compressed or written, and sizes that the format cannot hold. After an
/// error the sink holds no valid image.
pub fn convert<W: Write + Seek>(
    disk: &dyn Disk,
    sink: W,
    options: &Options,
    progress: &mut dyn FnMut(Progress) -> bool,
) -> Result<Summary> {
    convert_from(disk, sink, options, &Resume::default(), &mut |now| progress(now))
}

/// [`convert`] that goes on from a point of an earlier run with the same disk and options, and that
/// can be gone on from later. The sink holds what the earlier run stored, and nothing behind it.
///
/// # Errors
/// As [`convert`], and points that do not fit the disk.
pub fn convert_from<W: Write + Seek>(
    disk: &dyn Disk,
    mut sink: W,
    options: &Options,
    from: &Resume,
    watch: &mut dyn Watch,
) -> Result<Summary> {
    let size = disk.size();
    match options.format {
        Format::Raw => raw(disk, sink, options, from, watch),
        Format::Qcow2 => {
            if !(12..=21).contains(&options.cluster_bits) {
                let why = format!("clusters of 2^{} bytes are out of range (12 to 21)", options.cluster_bits);
                return Err(Error::Unsupported { format: "qcow2", why });
            }
            let cluster = 1_usize << options.cluster_bits;
            let guest = size.next_multiple_of(512); // QEMU counts disks in sectors
            let mut writer = Qcow2Writer::new(sink, guest, options.cluster_bits, options.compression)?
                .over(options.backing.clone());
            if from.done > 0 {
                writer.resume(from)?;
            }
            let encoder = || Qcow2Encoder::new(options.compression, options.level, cluster);
            let data = drive((disk, cluster as u64), options, &encoder, &mut writer, from, watch)?;
            Ok(Summary { virtual_size: guest, data, stored: writer.finish()? })
        }
        Format::VmdkSparse => {
            let mut writer = SparseWriter::new(sink, size, &options.file_name)?;
            if from.done > 0 {
                writer.resume(from)?;
            }
            let data = drive((disk, GRAIN), options, &|| Ok(RawEncoder), &mut writer, from, watch)?;
            Ok(Summary { virtual_size: size.next_multiple_of(512), data, stored: writer.finish()? })
        }
        Format::VmdkStream => {
            if from.done > 0 {
                sink.seek(SeekFrom::Start(from.stored)).map_err(Error::write("grains"))?;
            }
            stream_from(disk, sink, options, from, watch)
        }
    }
}

fn raw<W: Write + Seek>(
    disk: &dyn Disk,
    sink: W,
    options: &Options,
    from: &Resume,
    watch: &mut dyn Watch,
) -> Result<Summary> {
    let size = disk.size();
    let mut writer = RawWriter::new(sink, size);
    if from.done > 0 {
        writer.resume(from)?;
    }
    let data = drive((disk, RAW_CHUNK), options, &|| Ok(RawEncoder), &mut writer, from, watch)?;
    Ok(Summary { virtual_size: size, data, stored: writer.finish()? })
}

/// Converts into a sink that cannot seek: a pipe, a socket, one part after another. The zeros of a raw disk are
/// written there.
///
/// # Errors
/// As [`convert`]; only raw and streamOptimized VMDK can be written this way, the others by [`measure`] and
/// [`stream_measured`].
pub fn stream<W: Write>(
    disk: &dyn Disk,
    sink: W,
    options: &Options,
    progress: &mut dyn FnMut(Progress) -> bool,
) -> Result<Summary> {
    stream_from(disk, sink, options, &Resume::default(), &mut |now| progress(now))
}

/// [`stream`] that goes on from a point of an earlier run, and that can be gone on from later. What
/// is written is what comes behind `from.stored`.
///
/// # Errors
/// As [`stream`], and points that do not fit the disk.
pub fn stream_from<W: Write>(
    disk: &dyn Disk,
    sink: W,
    options: &Options,
    from: &Resume,
    watch: &mut dyn Watch,
) -> Result<Summary> {
    if options.format == Format::Raw {
        return raw(disk, Forward { sink, position: from.done }, options, from, watch);
    }
    if options.format != Format::VmdkStream {
        let why = "its tables are known last and stand first: the disk has to be measured before";
        return Err(Error::Unsupported { format: options.format.name(), why: why.into() });
    }
    let size = disk.size();
    let mut writer = if from.done > 0 {
        StreamWriter::resume(sink, size, from)?
    } else {
        StreamWriter::new(sink, size, &options.file_name)?
    };
    let encoder = || Ok(GrainEncoder::new(options.level));
    let data = drive((disk, GRAIN), options, &encoder, &mut writer, from, watch)?;
    Ok(Summary { virtual_size: size.next_multiple_of(512), data, stored: writer.finish()? })
}

/// What a first pass over a disk found out: what stands in front of an image and is known last.
#[derive(Clone, Debug)]
pub struct Measured {
    head: Vec<u8>,
    /// What the image will be.
    pub summary: Summary,
}

/// The first of two passes that write a qcow2 or a monolithicSparse VMDK into a sink which cannot seek: nothing is
/// written.
///
/// # Errors
/// As [`convert`].
pub fn measure(
    disk: &dyn Disk,
    options: &Options,
    progress: &mut dyn FnMut(Progress) -> bool,
) -> Result<Measured> {
    let mut sink = Blind::default();
    let summary = convert(disk, &mut sink, options, &mut |now| progress(Progress { passes_left: 1, ..now }))?;
    Ok(Measured { head: sink.head, summary })
}

/// The second pass: writes the image front to back. Output depends on content and options alone, so what the
/// first pass measured fits.
///
/// # Errors
/// As [`convert`]; also when the disk changed between the passes.
pub fn stream_measured<W: Write>(
    disk: &dyn Disk,
    sink: W,
    options: &Options,
    measured: &Measured,
    progress: &mut dyn FnMut(Progress) -> bool,
) -> Result<Summary> {
    let mut sink = HeadFirst { sink, head: &measured.head, position: 0, length: 0, same: true };
    let summary = convert(disk, &mut sink, options, progress)?;
    if !sink.same || summary != measured.summary {
        let why = "the disk changed between the two passes over it; export a snapshot instead".into();
        return Err(Error::Unsupported { format: options.format.name(), why });
    }
    Ok(summary)
}

/// A sink that keeps nothing but what is written at the very beginning, the last time.
#[derive(Default)]
struct Blind {
    position: u64,
    head: Vec<u8>,
}

impl Write for Blind {
    fn write(&mut self, data: &[u8]) -> std::io::Result<usize> {
        if self.position == 0 {
            self.head.clear();
            self.head.extend_from_slice(data);
        }
        self.position += data.len() as u64;
        Ok(data.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Seek for Blind {
    fn seek(&mut self, to: SeekFrom) -> std::io::Result<u64> {
        let SeekFrom::Start(to) = to else { return Err(std::io::ErrorKind::Unsupported.into()) };
        self.position = to;
        Ok(to)
    }
}

/// A sink that goes forward alone, with the right beginning in place of the empty one.
struct HeadFirst<'a, W> {
    sink: W,
    head: &'a [u8],
    position: u64,
    /// Bytes that went out.
    length: u64,
    /// What is written at the beginning in the end is what went out there.
    same: bool,
}

impl<W: Write> Write for HeadFirst<'_, W> {
    fn write(&mut self, data: &[u8]) -> std::io::Result<usize> {
        if self.position == 0 && self.length > 0 {
            self.same &= data == self.head;
            self.position += data.len() as u64;
            return Ok(data.len());
        }
        if self.length == 0 && self.position == self.head.len() as u64 {
            // A beginning that is written last alone, and not once empty before.
            self.sink.write_all(self.head)?;
            self.length = self.position;
        }
        if self.position != self.length {
            return Err(std::io::ErrorKind::NotSeekable.into());
        }
        if self.position == 0 {
            let rest = data.get(self.head.len()..).ok_or(std::io::ErrorKind::InvalidInput)?;
            self.sink.write_all(self.head)?;
            self.sink.write_all(rest)?;
        } else {
            self.sink.write_all(data)?;
        }
        self.length += data.len() as u64;
        self.position = self.length;
        Ok(data.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.sink.flush()
    }
}

impl<W: Write> Seek for HeadFirst<'_, W> {
    fn seek(&mut self, to: SeekFrom) -> std::io::Result<u64> {
        let SeekFrom::Start(to) = to else { return Err(std::io::ErrorKind::Unsupported.into()) };
        self.position = to;
        Ok(to)
    }
}

/// A sink that can only go forward: a seek ahead writes zeros.
struct Forward<W> {
    sink: W,
    position: u64,
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

/// One disk of a machine that is written as an OVA.
pub struct OvaDisk<'a> {
    /// What to read.
    pub disk: &'a dyn Disk,
    /// The name of its file in the archive, a plain name that ends in `.vmdk`.
    pub file: String,
}

impl std::fmt::Debug for OvaDisk<'_> {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("OvaDisk").field("file", &self.file).finish_non_exhaustive()
    }
}

/// Writes a machine as an OVA into a sink that can seek, in one pass. `machine.disks` describes
/// `disks`, one for one; their sizes are filled in. `more` files stand behind the manifest.
///
/// # Errors
/// As [`convert`].
pub fn convert_ova<W: Write + Seek>(
    machine: &Machine,
    disks: &[OvaDisk<'_>],
    stem: &str,
    more: &[(&str, &[u8])],
    sink: W,
    options: &Options,
    progress: &mut dyn FnMut(Progress) -> bool,
) -> Result<Summary> {
    let mut writer = OvaWriter::begin(sink, stem, machine)?;
    let (machine, summary) = members(&mut writer, machine, disks, None, options, progress)?;
    let finished = writer.finish(&machine, more)?;
    let stored = finished.length;
    finished.patch()?;
    Ok(Summary { stored, ..summary })
}

/// Writes an OVA into a sink that cannot seek. The disks are read twice: the first pass measures
/// what the second one states in front of it.
///
/// # Errors
/// As [`convert`]; also when a disk changes between the passes.
pub fn stream_ova<W: Write>(
    machine: &Machine,
    disks: &[OvaDisk<'_>],
    stem: &str,
    more: &[(&str, &[u8])],
    sink: W,
    options: &Options,
    progress: &mut dyn FnMut(Progress) -> bool,
) -> Result<Summary> {
    let mut measured = OvaWriter::begin(std::io::sink(), stem, machine)?;
    let mut first = |now| progress(Progress { passes_left: 1, ..now });
    let (machine, _) = members(&mut measured, machine, disks, None, options, &mut first)?;
    let mut writer = OvaWriter::begin(sink, stem, &machine)?;
    let (found, summary) = members(&mut writer, &machine, disks, Some(&machine), options, progress)?;
    if found != machine {
        let why = "a disk changed between the two passes over it; export a snapshot instead".into();
        return Err(Error::Unsupported { format: "OVA", why });
    }
    let finished = writer.finish(&machine, more)?;
    Ok(Summary { stored: finished.length, ..summary })
}

/// Writes the disks; answers the machine with their sizes, and the sums over them.
fn members<W: Write>(
    writer: &mut OvaWriter<W>,
    machine: &Machine,
    disks: &[OvaDisk<'_>],
    known: Option<&Machine>,
    options: &Options,
    progress: &mut dyn FnMut(Progress) -> bool,
) -> Result<(Machine, Summary)> {
    if machine.disks.len() != disks.len() {
        let why = format!("{} disks are described and {} are given", machine.disks.len(), disks.len());
        return Err(Error::Unsupported { format: "OVA", why });
    }
    let (mut machine, mut sums) = (machine.clone(), Summary::default());
    let total = disks.iter().map(|disk| disk.disk.size()).sum();
    for (number, source) in disks.iter().enumerate() {
        let size = known.and_then(|machine| machine.disks.get(number)).map(|disk| disk.file_size);
        let options =
            Options { format: Format::VmdkStream, file_name: source.file.clone(), ..options.clone() };
        let mut member = writer.member(&source.file, size)?;
        let before = sums;
        let summary = stream(source.disk, &mut member, &options, &mut |now| {
            progress(Progress {
                done: before.virtual_size + now.done,
                total,
                data: before.data + now.data,
                stored: before.stored + now.stored,
                passes_left: 0,
            })
        })?;
        let (file_size, _) = member.finish()?;
        if let Some(disk) = machine.disks.get_mut(number) {
            disk.made(&source.file, &summary, file_size);
        }
        sums.virtual_size += summary.virtual_size;
        sums.data += summary.data;
        sums.stored += file_size;
    }
    Ok((machine, sums))
}

/// What both callbacks of the pipeline see.
struct Tally<'a> {
    writer: &'a mut dyn Place,
    data: u64,
    stored: u64,
    placements: Vec<Placement>,
}

fn drive<E: Encode>(
    (disk, chunk_size): (&dyn Disk, u64),
    options: &Options,
    encoder: &(dyn Fn() -> Result<E> + Sync),
    writer: &mut dyn Place,
    from: &Resume,
    watch: &mut dyn Watch,
) -> Result<u64> {
    let total = disk.size();
    if from.done > total || (from.done < total && !from.done.is_multiple_of(chunk_size)) {
        return Err(Error::resume("it is no boundary of this disk"));
    }
    let plan = Plan { disk, start: from.done, chunk_size, workers: options.workers };
    let tally = Tally { writer, data: from.data, stored: from.stored, placements: Vec::new() };
    let tally = std::cell::RefCell::new(tally);
    let notes = watch.notes();
    pipeline::run(
        &plan,
        encoder,
        &mut |chunk, guest| {
            let mut tally = tally.borrow_mut();
            tally.data += guest;
            tally.stored += chunk.data.len() as u64;
            let Tally { writer, placements, .. } = &mut *tally;
            writer.put(chunk, placements)?;
            if !notes {
                placements.clear();
            }
            Ok(())
        },
        &mut |done| {
            let mut tally = tally.borrow_mut();
            let now = Progress { done, total, data: tally.data, stored: tally.stored, passes_left: 0 };
            if !watch.progress(now) {
                return Err(Error::Stopped);
            }
            if watch.due(now) {
                let stored = tally.writer.flush()?;
                let placements = std::mem::take(&mut tally.placements);
                watch.checkpoint(Resume { done, data: tally.data, stored, placements })?;
            }
            Ok(())
        },
    )?;
    let Tally { data, stored, .. } = tally.into_inner();
    // Zeros at the end make no piece: that they are done has not been said.
    if !watch.progress(Progress { done: total, total, data, stored, passes_left: 0 }) {
        return Err(Error::Stopped);
    }
    Ok(data)
}
