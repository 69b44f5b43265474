//! `virt-steward image convert`

use std::ffi::OsString;
use std::fs::File;
use std::io::BufWriter;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::Result;
use clap::ValueEnum;
use image::ovf::{Machine, MachineDisk};
use image::qcow2::Compression;
use image::{Disk, Format, Options, OvaDisk, Progress, Summary};

use super::InputFormat;
use crate::problem::Problem;
use crate::progress::{Line, Reached, mib};

/// Arguments of `image convert`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  virt-steward image convert disk.raw disk.qcow2 --format qcow2 --compress zstd
  virt-steward image convert disk.qcow2 disk.vmdk --format vmdk --verify
  virt-steward image convert disk.qcow2 - --format vmdk | ssh host 'cat > disk.vmdk'
  virt-steward image convert disk.qcow2 - --format raw | ssh host 'dd of=/dev/vg0/disk bs=1M'
  virt-steward image convert - disk.qcow2 --format qcow2 < disk.raw
  virt-steward image convert disk.qcow2 vm.ova --format ova
  virt-steward image convert vm.ova disk.raw --format raw --disk 1

The image is written beside its destination as NAME.partial and renamed when it is whole.")]
pub struct Args {
    /// The image to read: raw, qcow2, sparse VMDK, OVA (found by its content) or OVF; `-` for standard input, when
    /// that is a file or a block device
    source: PathBuf,
    /// The file to write, or `-` for standard output: raw and vmdk, and with the source read twice qcow2,
    /// vmdk-sparse and ova
    destination: PathBuf,
    /// What the image is; by default its first bytes tell
    #[arg(long, value_enum, value_name = "FORMAT")]
    input_format: Option<InputFormat>,
    /// Of a package: the disk to read, by number, name or file
    #[arg(long)]
    disk: Option<String>,
    /// The format to write
    #[arg(short, long, value_enum)]
    format: FormatName,
    /// For qcow2: how clusters are compressed; vmdk is always deflated
    #[arg(short, long, value_enum, default_value_t = CompressionName::None)]
    compress: CompressionName,
    /// The compressor's level: deflate 1-9 (vmdk 1-12), zstd 1-19
    #[arg(long)]
    level: Option<i32>,
    /// For qcow2: bytes in a cluster, a power of two from 4096 to 2097152
    #[arg(long, default_value_t = 65536)]
    cluster_size: u32,
    /// Threads that read and compress; by default one for each processor
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=256))]
    workers: Option<u16>,
    /// Read the result again and compare it with the source before it gets its name
    #[arg(long)]
    verify: bool,
    /// Replace the destination when it exists
    #[arg(long)]
    force: bool,
    /// Say nothing while working
    #[arg(short, long)]
    quiet: bool,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
enum FormatName {
    Raw,
    Qcow2,
    /// VMware streamOptimized: compressed, can be piped
    Vmdk,
    /// VMware monolithicSparse: uncompressed
    VmdkSparse,
    /// One archive with a descriptor of a small machine and the disk as vmdk
    Ova,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
enum CompressionName {
    None,
    /// Read by every qcow2 reader
    Deflate,
    /// Faster, checksummed; needs QEMU 5.1 or newer
    Zstd,
}

/// Converts one image.
pub fn run(args: &Args) -> Result<ExitCode> {
    let (source, _) = super::open_disk(&args.source, args.input_format, args.disk.as_deref())?;
    let options = options(args)?;
    let started = Instant::now();
    let mut progress = Meter::new(args);
    let summary = if args.destination == Path::new("-") {
        let sink = std::io::stdout().lock();
        let sink = BufWriter::with_capacity(1 << 20, sink);
        let mut watch = |now| progress.show(now);
        match args.format {
            FormatName::Ova => {
                let (machine, disks, stem) = package(args, &*source);
                image::stream_ova(&machine, &disks, &stem, &[], sink, &options, &mut watch)
            }
            FormatName::Qcow2 | FormatName::VmdkSparse => image::measure(&*source, &options, &mut watch)
                .and_then(|measured| image::stream_measured(&*source, sink, &options, &measured, &mut watch)),
            FormatName::Raw | FormatName::Vmdk => image::stream(&*source, sink, &options, &mut watch),
        }
        .map_err(|error| failed(args, &error))?
    } else {
        to_file(args, &*source, &options, &mut progress)?
    };
    progress.line.clear();
    if !args.quiet {
        report(&summary, started);
    }
    Ok(ExitCode::SUCCESS)
}

fn options(args: &Args) -> Result<Options> {
    let format = match args.format {
        FormatName::Raw => Format::Raw,
        FormatName::Qcow2 => Format::Qcow2,
        FormatName::Vmdk | FormatName::Ova => Format::VmdkStream,
        FormatName::VmdkSparse => Format::VmdkSparse,
    };
    let doing = || format!("choosing how to write `{}`", args.destination.display());
    if args.compress != CompressionName::None && format != Format::Qcow2 {
        let wrong = format!("--compress goes with qcow2, not with {}", format.name());
        return Err(Problem::new(doing(), wrong, "leave it out, or use --format qcow2").into());
    }
    if !args.cluster_size.is_power_of_two() || !(4096..=2 << 20).contains(&args.cluster_size) {
        let wrong = format!("a cluster cannot have {} bytes", args.cluster_size);
        return Err(Problem::new(doing(), wrong, "use a power of two from 4096 to 2097152").into());
    }
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let file_name = args.destination.file_name().map_or("disk.vmdk".into(), |name| name.to_string_lossy());
    Ok(Options {
        compression: match args.compress {
            CompressionName::None => Compression::None,
            CompressionName::Deflate => Compression::Deflate,
            CompressionName::Zstd => Compression::Zstd,
        },
        level: args.level,
        cluster_bits: args.cluster_size.trailing_zeros(),
        workers: args.workers.map_or(processors, usize::from),
        file_name: file_name.replace(['"', '\n', '\r'], "_"),
        ..Options::new(format)
    })
}

fn to_file(args: &Args, source: &dyn Disk, options: &Options, progress: &mut Meter) -> Result<Summary> {
    let doing = || format!("writing the image `{}`", args.destination.display());
    if args.destination.exists() && !args.force {
        let remedy = "give another name, or --force to replace it";
        return Err(Problem::new(doing(), "it exists already", remedy).into());
    }
    if args.destination.exists() && !args.destination.is_file() {
        // A device would lose its name to a file.
        let remedy = "give the name of a file, or pipe into it: `… - --format raw | dd of=DEVICE bs=1M`";
        return Err(Problem::new(doing(), "it is no regular file", remedy).into());
    }
    let mut partial: OsString = args.destination.clone().into();
    partial.push(".partial");
    let partial = PathBuf::from(partial);
    let file = File::create(&partial)
        .map_err(|error| Problem::new(doing(), error, "give a directory that can be written"))?;
    let written = (|| {
        let sink = || BufWriter::with_capacity(256 << 10, &file);
        let mut watch = |now| progress.show(now);
        let summary = if args.format == FormatName::Ova {
            let (machine, disks, stem) = package(args, source);
            image::convert_ova(&machine, &disks, &stem, &[], sink(), options, &mut watch)
        } else {
            match image::copy_file(source, &file, options, &mut watch) {
                Ok(None) => image::convert(source, sink(), options, &mut watch),
                Ok(Some(done)) => Ok(done),
                Err(error) => Err(error),
            }
        }
        .map_err(|error| failed(args, &error))?;
        if options.format == Format::Raw {
            file.set_len(summary.virtual_size)?;
        }
        file.sync_all()?;
        if args.verify {
            verify(args, source, &partial)?;
        }
        std::fs::rename(&partial, &args.destination)?;
        anyhow::Ok(summary)
    })();
    written.inspect_err(|_| {
        // What is left of a failed conversion is no image: nobody should find it.
        let _ = std::fs::remove_file(&partial);
    })
}

/// A small machine around one disk: what the image says nothing about is the reader's to change.
fn package<'a>(args: &Args, source: &'a dyn Disk) -> (Machine, Vec<OvaDisk<'a>>, String) {
    let from = if args.destination == Path::new("-") { &args.source } else { &args.destination };
    let stem = from.file_stem().map_or("vm".into(), |stem| stem.to_string_lossy().replace(['/', '\\'], "_"));
    // Names in an archive have at most 100 bytes.
    let stem: String = stem.chars().filter(char::is_ascii_graphic).take(80).collect();
    let stem = if stem.is_empty() || stem == "-" { "vm".into() } else { stem };
    let file = format!("{stem}.vmdk");
    let machine = Machine {
        name: stem.clone(),
        cpus: 1,
        cores_per_socket: 1,
        memory_mib: 1024,
        disks: vec![MachineDisk { name: stem.clone(), file: file.clone(), ..MachineDisk::default() }],
        ..Machine::default()
    };
    (machine, vec![OvaDisk { disk: source, file }], stem)
}

fn verify(args: &Args, source: &dyn Disk, partial: &Path) -> Result<()> {
    // Raw bytes are what they are; the others have their magic.
    let format = (args.format == FormatName::Raw).then_some(InputFormat::Raw);
    let (result, _) = super::open_disk(partial, format, None)?;
    let difference = image::compare(source, &*result).map_err(|error| failed(args, &error))?;
    if difference.is_some() {
        let doing = format!("verifying the image `{}`", args.destination.display());
        let remedy = "check the disk that it is written to, and convert again";
        return Err(Problem::new(doing, "it does not hold what the source holds", remedy).into());
    }
    Ok(())
}

fn failed(args: &Args, error: &image::Error) -> Problem {
    let doing = format!("converting `{}` to `{}`", args.source.display(), args.destination.display());
    Problem::new(doing, super::chain(error), "check the source and the space at the destination")
}

/// Draws how far it is. A disk that is measured first begins twice.
struct Meter {
    line: Line,
    name: String,
    passes_left: Option<u8>,
}

impl Meter {
    fn new(args: &Args) -> Self {
        let name = args.source.file_name().filter(|name| *name != "-");
        let name = name.map_or("disk".into(), |name| name.to_string_lossy().into_owned());
        Self { line: Line::new(args.quiet), name, passes_left: None }
    }

    fn show(&mut self, progress: Progress) -> bool {
        let Progress { total: size, done, data, stored, passes_left } = progress;
        if self.passes_left.replace(passes_left) != Some(passes_left) {
            self.line.begin(0);
        }
        self.line.draw(&self.name, Reached { size, done, data, stored, passes_left });
        true
    }
}

fn report(summary: &Summary, started: Instant) {
    eprintln!(
        "{:.1} MiB disk, {:.1} MiB of data, {:.1} MiB stored, {:.1} s",
        mib(summary.virtual_size),
        mib(summary.data),
        mib(summary.stored),
        started.elapsed().as_secs_f64()
    );
}
