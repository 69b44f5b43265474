//! `image` against `qemu-img convert`, every pair of formats, alternating on the same machine:
//!
//! ```text
//! cargo bench -p image                     all pairs, 512 MiB, 3 rounds
//! cargo bench -p image -- --mib 4096 --rounds 5 --only qcow2-zstd
//! ```
//!
//! Each conversion is a process of its own, also ours (this program calls itself), so that time,
//! processor time and memory mean the same for both. The disk is a third full: text, machine code,
//! and data that cannot be compressed.

use std::fs::File;
use std::io::BufWriter;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use image::qcow2::Compression;
use image::{Format, Options, convert};

/// A way to write a disk: its name, ours, and qemu-img's.
type Way = (&'static str, fn() -> Options, &'static [&'static str]);

const WAYS: [Way; 6] = [
    ("raw", || Options::new(Format::Raw), &["-O", "raw"]),
    ("qcow2", || Options::new(Format::Qcow2), &["-O", "qcow2"]),
    ("qcow2-zstd", || qcow2(Compression::Zstd), &["-O", "qcow2", "-c", "-o", "compression_type=zstd"]),
    ("qcow2-deflate", || qcow2(Compression::Deflate), &["-O", "qcow2", "-c"]),
    ("vmdk", || Options::new(Format::VmdkStream), &["-O", "vmdk", "-o", "subformat=streamOptimized"]),
    ("vmdk-sparse", || Options::new(Format::VmdkSparse), &["-O", "vmdk", "-o", "subformat=monolithicSparse"]),
];

fn qcow2(compression: Compression) -> Options {
    Options { compression, ..Options::new(Format::Qcow2) }
}

/// What one run took.
#[derive(Clone, Copy, Default)]
struct Cost {
    wall: f64,
    cpu: f64,
    rss_mib: f64,
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    if let [verb, way, source, destination] = arguments.as_slice()
        && verb == "--one"
    {
        return one(way, Path::new(source), Path::new(destination));
    }
    let value = |name: &str, default: u64| {
        let at = arguments.iter().position(|argument| argument == name);
        at.and_then(|at| arguments.get(at + 1)?.parse().ok()).unwrap_or(default)
    };
    let (mib, rounds) = (value("--mib", 512), value("--rounds", 3));
    let only = arguments.iter().position(|argument| argument == "--only");
    let only = only.and_then(|at| arguments.get(at + 1)).cloned();
    match table(mib, rounds, only.as_deref()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn one(way: &str, source: &Path, destination: &Path) -> ExitCode {
    let done = (|| {
        let (_, options, _) = WAYS.iter().find(|(name, _, _)| *name == way)?;
        let (disk, _) = image::open(File::open(source).ok()?).ok()?;
        let file = File::create(destination).ok()?;
        if image::copy_file(&*disk, &file, &options(), &mut |_| true).ok()?.is_some() {
            return Some(());
        }
        let summary =
            convert(&*disk, BufWriter::with_capacity(256 << 10, &file), &options(), &mut |_| true).ok()?;
        if options().format == Format::Raw {
            file.set_len(summary.virtual_size).ok()?;
        }
        Some(())
    })();
    if done.is_some() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn table(mib: u64, rounds: u64, only: Option<&str>) -> std::io::Result<()> {
    let dir = tempfile::tempdir()?;
    let raw = dir.path().join("source.raw");
    fill(&raw, mib << 20)?;
    println!("{mib} MiB disk, a third full, median of {rounds} rounds, {} processors", processors());
    println!(
        "{:<28} {:>8} {:>8} {:>6}   {:>8} {:>8} {:>6}   {:>5} {:>5}   {:>9}",
        "from → to", "wall s", "qemu s", "ratio", "cpu s/GiB", "qemu", "ratio", "MiB", "qemu", "size ratio"
    );
    for (from, _, make) in WAYS {
        let source = dir.path().join("from");
        if from == "raw" {
            std::fs::copy(&raw, &source)?;
            File::options().write(true).open(&source)?.sync_all()?;
        } else {
            run(Command::new("qemu-img").args(["convert", "-f", "raw"]).args(make).args([&raw, &source]))?;
        }
        let source = if from == "raw" { raw.clone() } else { source };
        for (to, _, arguments) in WAYS {
            if only.is_some_and(|only| only != to && only != from) {
                continue;
            }
            pair((from, to), (&source, dir.path()), arguments, rounds, mib)?;
        }
    }
    Ok(())
}

fn pair(
    (from, to): (&str, &str),
    (source, dir): (&Path, &Path),
    arguments: &[&str],
    rounds: u64,
    mib: u64,
) -> std::io::Result<()> {
    let (ours, theirs) = (dir.join("ours"), dir.join("theirs"));
    let (mut us, mut them) = (Vec::new(), Vec::new());
    let driver = match from {
        "raw" => "raw",
        name if name.starts_with("qcow2") => "qcow2",
        _ => "vmdk",
    };
    let own = std::env::current_exe()?;
    for _ in 0..rounds {
        let _ = std::fs::remove_file(&ours);
        us.push(run(Command::new(&own).args(["--one", to]).args([source, &ours]))?);
        let _ = std::fs::remove_file(&theirs);
        let mut qemu = Command::new("qemu-img");
        qemu.args(["convert", "-m", "16", "-W", "-f", driver]).args(arguments).args([source, &theirs]);
        them.push(run(&mut qemu)?);
    }
    let (us, them) = (median(us), median(them));
    let size = |path: &Path| {
        use std::os::unix::fs::MetadataExt;
        std::fs::metadata(path).map_or(1.0, |metadata| number(metadata.blocks().max(1)))
    };
    let gib = number(mib) / 1024.0;
    println!(
        "{:<28} {:>8.2} {:>8.2} {:>6.2}   {:>9.2} {:>8.2} {:>6.2}   {:>5.0} {:>5.0}   {:>9.2}",
        format!("{from} → {to}"),
        us.wall,
        them.wall,
        them.wall / us.wall.max(0.001),
        us.cpu / gib,
        them.cpu / gib,
        them.cpu / us.cpu.max(0.001),
        us.rss_mib,
        them.rss_mib,
        size(&theirs) / size(&ours),
    );
    Ok(())
}

fn median(mut costs: Vec<Cost>) -> Cost {
    let mut of = |part: fn(&Cost) -> f64| {
        costs.sort_by(|a, b| part(a).total_cmp(&part(b)));
        costs.get(costs.len() / 2).map_or(0.0, part)
    };
    Cost { wall: of(|cost| cost.wall), cpu: of(|cost| cost.cpu), rss_mib: of(|cost| cost.rss_mib) }
}

/// Runs a process and watches what it takes.
fn run(command: &mut Command) -> std::io::Result<Cost> {
    let started = Instant::now();
    let mut child = command.stdout(Stdio::null()).spawn()?;
    let mut cost = Cost::default();
    loop {
        look(&child, &mut cost);
        if let Some(status) = child.try_wait()? {
            cost.wall = started.elapsed().as_secs_f64();
            if !status.success() {
                return Err(std::io::Error::other(format!("{command:?}: {status}")));
            }
            return Ok(cost);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Reads processor time (in ticks of 10 ms) and the peak of memory from /proc.
fn look(child: &Child, cost: &mut Cost) {
    let read =
        |name: &str| std::fs::read_to_string(format!("/proc/{}/{name}", child.id())).unwrap_or_default();
    let stat = read("stat");
    let fields: Vec<&str> = stat.rsplit_once(") ").map_or(Vec::new(), |(_, rest)| rest.split(' ').collect());
    let ticks = |at: usize| fields.get(at).and_then(|field| field.parse::<u64>().ok()).unwrap_or(0);
    cost.cpu = cost.cpu.max(number(ticks(11) + ticks(12)) / 100.0);
    let status = read("status");
    let peak =
        status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().split(' ').next()?.parse().ok());
    cost.rss_mib = cost.rss_mib.max(number(peak.unwrap_or(0)) / 1024.0);
}

#[allow(clippy::cast_precision_loss, reason = "shown with two digits")]
fn number(value: u64) -> f64 {
    value as f64
}

fn processors() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// A disk whose every third MiB holds data.
fn fill(path: &Path, size: u64) -> std::io::Result<()> {
    let file = File::create(path)?;
    file.set_len(size)?;
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let words = [&b"int "[..], b"return ", b"the ", b"license ", b"\n", b"struct ", b"0x", b" = "];
    for at in (0..size).step_by(3 << 20) {
        let mut data = Vec::with_capacity(1 << 20);
        let kind = at / (3 << 20) % 8;
        while data.len() < 1 << 20 {
            let drawn = next();
            match kind {
                0..=3 => data.extend_from_slice(words[usize::try_from(drawn % 8).unwrap_or(0)]),
                4..=6 => {
                    data.extend_from_slice(&[0x48, 0x8b, 0, 0xe8]);
                    data.extend_from_slice(&(drawn & 0x00ff_00ff).to_le_bytes());
                }
                _ => data.extend_from_slice(&drawn.to_le_bytes()),
            }
        }
        data.truncate(usize::try_from((size - at).min(1 << 20)).unwrap_or(0));
        file.write_all_at(&data, at)?;
    }
    file.sync_all()
}
