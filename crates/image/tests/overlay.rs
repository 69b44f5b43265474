//! Images that build on others, and copies that the kernel makes.

#![allow(clippy::unwrap_used, reason = "a test may fail by panicking")]

use std::fs::File;
use std::io::BufWriter;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

use image::qcow2::Compression;
use image::{Backing, Disk, Format, MemoryDisk, Options, compare, convert, copy_file, open, open_path};

const CLUSTER: usize = 64 << 10;

/// A disk that says which clusters may hold data: those that changed.
struct Changed<'a> {
    disk: &'a MemoryDisk,
    ranges: Vec<std::ops::Range<u64>>,
}

impl Disk for Changed<'_> {
    fn size(&self) -> u64 {
        self.disk.size()
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> image::Result<()> {
        self.disk.read_at(offset, buffer)
    }

    fn next_data(&self, offset: u64) -> image::Result<Option<std::ops::Range<u64>>> {
        let next = self.ranges.iter().find(|range| range.end.min(self.size()) > offset);
        Ok(next.map(|range| range.start.max(offset)..range.end.min(self.size())))
    }
}

fn qemu(arguments: &[&str], files: &[&Path]) -> Option<bool> {
    let done = Command::new("qemu-img").args(arguments).args(files).output().ok()?;
    if !done.status.success() {
        eprintln!("{}", String::from_utf8_lossy(&done.stdout));
    }
    Some(done.status.success())
}

#[test]
fn a_chain_of_images_holds_what_the_disk_held_each_time_and_qemu_agrees() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let mut disk = MemoryDisk(vec![0; 40 * CLUSTER + 700]);
    disk.0[..20 * CLUSTER].fill(1);
    let last = disk.0.len() - 1;
    disk.0[last] = 9;
    let full = Options { compression: Compression::Zstd, ..Options::new(Format::Qcow2) };
    convert(&disk, BufWriter::new(File::create(at("0.qcow2")).unwrap()), &full, &mut |_| true).unwrap();
    for (number, compression) in
        [Compression::None, Compression::Deflate, Compression::Zstd].into_iter().enumerate()
    {
        // A cluster is written, one becomes zeros, the end changes, and the rest stays as it was.
        disk.0[(3 + number) * CLUSTER + 5] = 77;
        disk.0[(10 + number) * CLUSTER..(11 + number) * CLUSTER].fill(0);
        disk.0[30 * CLUSTER..31 * CLUSTER].fill(u8::try_from(number).unwrap() + 3);
        disk.0[last] = u8::try_from(number).unwrap();
        let cluster = |n: usize| (n * CLUSTER) as u64..((n + 1) * CLUSTER) as u64;
        let ranges = vec![cluster(3 + number), cluster(10 + number), cluster(30), cluster(40)];
        let changed = ranges.iter().map(|range| range.start + 100..range.end - 100).collect();
        let backing = Backing { file: format!("{number}.qcow2"), format: Format::Qcow2, changed };
        let options = Options { compression, backing: Some(backing), ..Options::new(Format::Qcow2) };
        let path = at(&format!("{}.qcow2", number + 1));
        let source = Changed { disk: &disk, ranges };
        convert(&source, BufWriter::new(File::create(&path).unwrap()), &options, &mut |_| true).unwrap();
        let (read, info) = open_path(&path).unwrap();
        assert_eq!(compare(&disk, &*read).unwrap(), None, "{number}");
        assert_eq!(info.backing, Some(format!("{number}.qcow2")));
        std::fs::write(at("raw"), &disk.0).unwrap();
        if let Some(same) = qemu(&["compare", "-f", "raw", "-F", "qcow2"], &[&at("raw"), &path]) {
            assert!(same, "qemu-img sees something else in image {number}");
            assert!(qemu(&["check", "-f", "qcow2"], &[&path]).unwrap());
        }
        assert!(open(File::open(&path).unwrap()).is_err(), "alone it is half of a disk");
    }
}

#[test]
fn chains_that_leave_the_directory_or_never_end_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    for (file, part) in
        [("/etc/passwd", "neither in"), ("../x.qcow2", "neither in"), ("a.qcow2", "more than")]
    {
        let backing = Backing { file: file.into(), format: Format::Qcow2, changed: Vec::new() };
        let options = Options { backing: Some(backing), ..Options::new(Format::Qcow2) };
        let path = dir.path().join("a.qcow2");
        let sink = BufWriter::new(File::create(&path).unwrap());
        convert(&MemoryDisk(vec![0; CLUSTER]), sink, &options, &mut |_| true).unwrap();
        let wrong = open_path(&path).unwrap_err().to_string();
        assert!(wrong.contains(part), "{file}: {wrong}");
    }
}

#[test]
fn what_the_kernel_copies_is_what_reading_and_writing_gives() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let size = 30 * CLUSTER as u64 + 12_345;
    let raw = File::options().create(true).truncate(true).read(true).write(true).open(at("raw")).unwrap();
    raw.set_len(size).unwrap();
    for (offset, length) in
        [(0, 3 * CLUSTER), (7 * CLUSTER + 4096, 100), (20 * CLUSTER, 5 * CLUSTER), (30 * CLUSTER, 12_345)]
    {
        let data: Vec<u8> = (0..length).map(|byte| u8::try_from(byte % 251).unwrap() | 1).collect();
        raw.write_all_at(&data, offset as u64).unwrap();
    }
    let formats = [("raw", Format::Raw), ("qcow2", Format::Qcow2), ("vmdk", Format::VmdkSparse)];
    for (from, format) in formats {
        let source = at(&format!("from.{from}"));
        let (disk, _) = open(File::open(at("raw")).unwrap()).unwrap();
        let sink = File::create(&source).unwrap();
        convert(&*disk, BufWriter::new(&sink), &Options::new(format), &mut |_| true).unwrap();
        if format == Format::Raw {
            sink.set_len(size).unwrap();
        }
        for (to, format) in formats {
            let (disk, _) = open(File::open(&source).unwrap()).unwrap();
            let target = File::create(at("to")).unwrap();
            let done = copy_file(&*disk, &target, &Options::new(format), &mut |_| true).unwrap();
            if done.is_none() {
                eprintln!("SKIPPED: this file system does not copy {from} to {to} by itself");
                continue;
            }
            let (copy, _) = open(File::open(at("to")).unwrap()).unwrap();
            let (original, _) = open(File::open(at("raw")).unwrap()).unwrap();
            assert_eq!(compare(&*original, &*copy).unwrap(), None, "{from} to {to}");
            if let Some(same) = qemu(&["compare", "-f", "raw", "-F", to], &[&at("raw"), &at("to")]) {
                assert!(same, "{from} to {to}");
            }
            if to == "qcow2" && qemu(&["--version"], &[]).is_some() {
                assert!(qemu(&["check", "-f", "qcow2"], &[&at("to")]).unwrap(), "{from}");
            }
        }
    }
    // A compressed image has nothing to copy as it is.
    let (disk, _) = open(File::open(at("raw")).unwrap()).unwrap();
    let options = Options { compression: Compression::Zstd, ..Options::new(Format::Qcow2) };
    assert_eq!(copy_file(&*disk, &File::create(at("to")).unwrap(), &options, &mut |_| true).unwrap(), None);
}
