//! Every format holds every disk bit for bit, and qemu-img agrees.

#![allow(clippy::unwrap_used, reason = "a test may fail by panicking")]
use std::fs::File;
use std::path::Path;
use std::process::Command;

use image::qcow2::Compression;
use image::{Format, MemoryDisk, Options, compare, convert, open};
use proptest::prelude::*;

const KIB: usize = 1024;

/// A disk whose content is decided by a seed: runs of zeros, text and noise.
fn disk(size: usize, seed: u64, kinds: &[Kind]) -> MemoryDisk {
    let mut state = seed | 1;
    let mut next = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let mut data = Vec::with_capacity(size);
    while data.len() < size {
        let run = 1 + usize::try_from(next() % (200 * KIB as u64)).unwrap();
        let kind = kinds[usize::try_from(next() % kinds.len() as u64).unwrap()];
        for _ in 0..run.min(size - data.len()) {
            data.push(match kind {
                Kind::Zeros => 0,
                Kind::Text => b"the quick brown fox "[data.len() % 20],
                Kind::Noise => next().to_le_bytes()[3],
            });
        }
    }
    MemoryDisk(data)
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    Zeros,
    Text,
    Noise,
}

/// Every way to write an image.
fn ways() -> Vec<(&'static str, Options)> {
    let qcow2 =
        |compression, cluster_bits| Options { compression, cluster_bits, ..Options::new(Format::Qcow2) };
    vec![
        ("raw", Options::new(Format::Raw)),
        ("qcow2", qcow2(Compression::None, 16)),
        ("qcow2 deflate", qcow2(Compression::Deflate, 16)),
        ("qcow2 zstd", qcow2(Compression::Zstd, 16)),
        ("qcow2 zstd 4k", qcow2(Compression::Zstd, 12)),
        ("qcow2 deflate 2M", qcow2(Compression::Deflate, 21)),
        ("vmdk", Options::new(Format::VmdkStream)),
        ("vmdk-sparse", Options::new(Format::VmdkSparse)),
    ]
}

fn write(disk: &MemoryDisk, options: &Options, path: &Path) {
    let file = File::create(path).unwrap();
    convert(disk, std::io::BufWriter::new(file), options, &mut |_| true).unwrap();
}

fn qemu_img() -> bool {
    let found = Command::new("qemu-img").arg("--version").output().is_ok();
    if !found {
        eprintln!("SKIPPED: qemu-img is not installed, its opinion is not asked");
    }
    found
}

fn agree(name: &str, raw: &Path, image: &Path, format: Format) {
    let driver = match format {
        Format::Raw => "raw",
        Format::Qcow2 => "qcow2",
        _ => "vmdk",
    };
    if driver == "qcow2" {
        let check = Command::new("qemu-img").args(["check", "-f", driver]).arg(image).output().unwrap();
        let said = String::from_utf8_lossy(&check.stdout).into_owned();
        assert!(check.status.success() && said.contains("No errors"), "{name}: {check:?}");
    }
    let same =
        Command::new("qemu-img").args(["compare", "-f", "raw", "-F", driver]).args([raw, image]).output();
    let same = same.unwrap();
    assert!(same.status.success(), "{name}: {same:?}");
}

#[test]
fn every_format_holds_every_kind_of_disk_and_qemu_agrees() {
    let disks = [
        ("empty", disk(3 << 20, 1, &[Kind::Zeros])),
        ("full of noise", disk(3 << 20, 2, &[Kind::Noise])),
        ("text", disk(5 << 20, 3, &[Kind::Text])),
        ("mixed", disk(36 << 20, 4, &[Kind::Zeros, Kind::Zeros, Kind::Text, Kind::Noise])),
        ("odd size", disk((1 << 20) + 12_345, 5, &[Kind::Zeros, Kind::Text, Kind::Noise])),
        ("one sector", disk(512, 6, &[Kind::Noise])),
        ("one byte", disk(1, 7, &[Kind::Noise])),
    ];
    let dir = tempfile::tempdir().unwrap();
    let qemu = qemu_img();
    for (content, disk) in &disks {
        let raw = dir.path().join("source.raw");
        std::fs::write(&raw, &disk.0).unwrap();
        for (way, options) in ways() {
            let name = format!("{content} as {way}");
            let path = dir.path().join("image");
            write(disk, &options, &path);
            let (read, info) = open(File::open(&path).unwrap()).unwrap();
            assert_eq!(compare(disk, &*read).unwrap(), None, "{name}");
            assert!(info.virtual_size >= disk.0.len() as u64, "{name}");
            if qemu {
                agree(&name, &raw, &path, options.format);
            }
        }
    }
}

#[test]
fn images_that_qemu_wrote_are_read() {
    if !qemu_img() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let content = disk(20 << 20, 8, &[Kind::Zeros, Kind::Text, Kind::Noise]);
    let raw = dir.path().join("source.raw");
    std::fs::write(&raw, &content.0).unwrap();
    let ways: [&[&str]; 7] = [
        &["-O", "qcow2"],
        &["-O", "qcow2", "-o", "compat=0.10"],
        &["-O", "qcow2", "-c"],
        &["-O", "qcow2", "-c", "-o", "compression_type=zstd"],
        &["-O", "qcow2", "-c", "-o", "cluster_size=512"],
        &["-O", "vmdk", "-o", "subformat=streamOptimized"],
        &["-O", "vmdk", "-o", "subformat=monolithicSparse"],
    ];
    for arguments in ways {
        let path = dir.path().join("image");
        let mut command = Command::new("qemu-img");
        command.args(["convert", "-f", "raw"]).args(arguments).args([&raw, &path]);
        assert!(command.status().unwrap().success(), "{arguments:?}");
        let (read, _) = open(File::open(&path).unwrap()).unwrap();
        assert_eq!(compare(&content, &*read).unwrap(), None, "{arguments:?}");
    }
}

#[test]
fn the_number_of_workers_does_not_change_the_output() {
    let content = disk(9 << 20, 9, &[Kind::Zeros, Kind::Text, Kind::Noise]);
    for (way, options) in ways() {
        let images: Vec<Vec<u8>> = [1, 2, 7]
            .into_iter()
            .map(|workers| {
                let mut sink = std::io::Cursor::new(Vec::new());
                let options = Options { workers, ..options.clone() };
                convert(&content, &mut sink, &options, &mut |_| true).unwrap();
                sink.into_inner()
            })
            .collect();
        assert!(images.windows(2).all(|pair| pair[0] == pair[1]), "{way}");
    }
}

#[test]
fn an_image_cut_short_is_never_taken_for_a_whole_one() {
    let content = disk(2 << 20, 10, &[Kind::Text, Kind::Noise]);
    let dir = tempfile::tempdir().unwrap();
    for (way, options) in ways() {
        if options.format == Format::Raw {
            continue; // a raw file has no structure: its length is checked by whoever knows it
        }
        let path = dir.path().join("image");
        write(&content, &options, &path);
        let length = std::fs::metadata(&path).unwrap().len();
        for part in [1, 3, 5, 7] {
            let file = File::options().write(true).open(&path).unwrap();
            file.set_len(length * part / 8).unwrap();
            let read = open(File::open(&path).unwrap()).and_then(|(disk, _)| compare(&content, &*disk));
            assert!(!matches!(read, Ok(None)), "{way}: {part}/8 of the file passed for all of it");
            write(&content, &options, &path);
        }
    }
}

#[test]
fn every_flipped_bit_in_a_zstd_cluster_is_noticed() {
    let content = disk(256 * KIB, 11, &[Kind::Text]);
    let options = Options { compression: Compression::Zstd, ..Options::new(Format::Qcow2) };
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image");
    write(&content, &options, &path);
    let good = std::fs::read(&path).unwrap();
    for bit in 0..60 {
        let mut bad = good.clone();
        bad[(1 << 16) + bit / 8] ^= 1 << (bit % 8);
        std::fs::write(&path, &bad).unwrap();
        let (read, _) = open(File::open(&path).unwrap()).unwrap();
        let result = compare(&content, &*read);
        // A flip in a header bit that means nothing leaves the content right; wrong content never passes.
        assert!(!matches!(result, Ok(Some(_))), "bit {bit}: wrong content was read without an error");
    }
}

#[test]
fn every_level_is_read_back() {
    let dir = tempfile::tempdir().unwrap();
    let disk = disk(700_000, 11, &[Kind::Text, Kind::Noise, Kind::Zeros]);
    let formats = [
        (Format::Qcow2, Compression::Deflate, -1..=12),
        (Format::Qcow2, Compression::Zstd, -1..=19),
        (Format::VmdkStream, Compression::None, -1..=13),
    ];
    for (format, compression, levels) in formats {
        for level in levels {
            let options = Options { compression, level: Some(level), ..Options::new(format) };
            let path = dir.path().join("image");
            write(&disk, &options, &path);
            let (read, _) = open(File::open(&path).unwrap()).unwrap();
            assert_eq!(compare(&disk, &*read).unwrap(), None, "{format:?} {compression:?} level {level}");
        }
    }
}

#[test]
fn stopping_is_an_error() {
    let content = disk(4 << 20, 12, &[Kind::Noise]);
    let sink = std::io::Cursor::new(Vec::new());
    let stopped = convert(&content, sink, &Options::new(Format::Qcow2), &mut |_| false);
    assert!(matches!(stopped, Err(image::Error::Stopped)), "{stopped:?}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn any_disk_survives_any_format(size in 1_usize..600_000, seed: u64, way in 0_usize..8) {
        let content = disk(size, seed, &[Kind::Zeros, Kind::Text, Kind::Noise]);
        let (name, options) = ways().swap_remove(way);
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        write(&content, &options, &path);
        let (read, _) = open(File::open(&path).unwrap()).unwrap();
        prop_assert_eq!(compare(&content, &*read).unwrap(), None, "{}", name);
        if qemu_img() {
            let raw = dir.path().join("source.raw");
            std::fs::write(&raw, &content.0).unwrap();
            agree(name, &raw, &path, options.format);
        }
    }

    #[test]
    fn what_is_piped_is_what_is_written_to_a_file(size in 1_usize..600_000, seed: u64, way in 0_usize..8) {
        let content = disk(size, seed, &[Kind::Zeros, Kind::Text, Kind::Noise]);
        let (name, options) = ways().swap_remove(way);
        let mut file = std::io::Cursor::new(Vec::new());
        convert(&content, &mut file, &options, &mut |_| true).unwrap();
        let mut piped = Vec::new();
        match options.format {
            Format::Raw | Format::VmdkStream => {
                image::stream(&content, &mut piped, &options, &mut |_| true).unwrap();
            }
            Format::Qcow2 | Format::VmdkSparse => {
                let measured = image::measure(&content, &options, &mut |now| now.passes_left == 1).unwrap();
                let mut second = |now: image::Progress| now.passes_left == 0;
                image::stream_measured(&content, &mut piped, &options, &measured, &mut second).unwrap();
            }
        }
        prop_assert!(piped == file.into_inner(), "{}", name);
    }

    #[test]
    fn no_bytes_make_a_reader_panic(
        magic in 0_usize..3,
        noise in proptest::collection::vec(any::<u8>(), 0..4096),
        spots in proptest::collection::vec((0_usize..4096, any::<u8>()), 0..8),
    ) {
        // Noise alone rarely gets past a magic number: damage a good image as well.
        let way = [1, 3, 6][magic];
        let mut sink = std::io::Cursor::new(Vec::new());
        let content = disk(100_000, 13, &[Kind::Text, Kind::Noise]);
        convert(&content, &mut sink, &ways()[way].1, &mut |_| true).unwrap();
        let mut bytes = sink.into_inner();
        for (at, value) in spots {
            let at = at % bytes.len();
            bytes[at] = value;
        }
        let dir = tempfile::tempdir().unwrap();
        for bytes in [bytes, [[b"QFI\xfb".as_slice(), b"KDMV", b""][magic], &noise].concat()] {
            let path = dir.path().join("image");
            std::fs::write(&path, &bytes).unwrap();
            if let Ok((disk, _)) = open(File::open(&path).unwrap()) && disk.size() < (64 << 20) {
                let _ = compare(&content, &*disk);
            }
        }
    }
}

/// Notes every checkpoint and stops after some.
struct Killed {
    points: Vec<image::Resume>,
    left: usize,
}

impl image::Watch for Killed {
    fn progress(&mut self, _now: image::Progress) -> bool {
        true
    }

    fn due(&mut self, _now: image::Progress) -> bool {
        true
    }

    fn checkpoint(&mut self, at: image::Resume) -> image::Result<()> {
        self.points.push(at);
        self.left -= 1;
        if self.left == 0 { Err(image::Error::Stopped) } else { Ok(()) }
    }
}

#[test]
fn a_conversion_that_goes_on_gives_the_same_bytes_as_one_that_never_stopped() {
    let content = disk(60 << 20, 14, &[Kind::Zeros, Kind::Text, Kind::Noise]);
    for (way, options) in ways() {
        let mut whole = std::io::Cursor::new(Vec::new());
        convert(&content, &mut whole, &options, &mut |_| true).unwrap();
        for stop_after in [1, 3, 6] {
            let mut sink = std::io::Cursor::new(Vec::new());
            let mut killed = Killed { points: Vec::new(), left: stop_after };
            let nowhere = image::Resume::default();
            let ended = image::convert_from(&content, &mut sink, &options, &nowhere, &mut killed);
            if ended.is_ok() {
                continue; // large clusters make few pieces
            }
            let last = killed.points.last().unwrap();
            let from = image::Resume {
                placements: killed.points.iter().flat_map(|point| point.placements.clone()).collect(),
                ..last.clone()
            };
            let mut bytes = sink.into_inner();
            bytes.truncate(usize::try_from(if way == "raw" { from.done } else { from.stored }).unwrap());
            let mut sink = std::io::Cursor::new(bytes);
            image::convert_from(&content, &mut sink, &options, &from, &mut |_| true).unwrap();
            assert!(sink.into_inner() == *whole.get_ref(), "{way} after {stop_after}");
        }
    }
}
