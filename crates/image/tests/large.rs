//! Size classes: disks behind the limits of 32-bit offsets, of one L2 table, of what a format holds. They are sparse,
//! so they take next to nothing.

#![allow(clippy::unwrap_used, reason = "a test may fail by panicking")]

use std::fs::File;
use std::io::BufWriter;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::process::Command;

use image::qcow2::Compression;
use image::{Format, Options, RawDisk, compare, convert, open};

const GIB: u64 = 1 << 30;

/// A disk with some data at the start, around every place given, and in its last byte.
fn disk(path: &Path, size: u64, around: &[u64]) {
    let file = File::create(path).unwrap();
    file.set_len(size).unwrap();
    let text: Vec<u8> = (0..70_000_u32).map(|at| u8::try_from(at % 249).unwrap() + 1).collect();
    for place in around.iter().chain(&[0]) {
        file.write_all_at(&text, place.saturating_sub(30_000)).unwrap();
    }
    file.write_all_at(b"!", size - 1).unwrap();
}

fn qemu(arguments: &[&str], files: &[&Path]) -> Option<bool> {
    let Ok(output) = Command::new("qemu-img").args(arguments).args(files).output() else {
        eprintln!("SKIPPED: qemu-img is not installed, its opinion is not asked");
        return None;
    };
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    Some(output.status.success() && !said.contains("leaked"))
}

#[test]
fn disks_of_every_size_class_are_bit_exact_sparse_and_qemu_agrees() {
    let dir = tempfile::tempdir().unwrap();
    let (raw, image) = (dir.path().join("disk.raw"), dir.path().join("image"));
    let qcow2 = |compression| Options { compression, ..Options::new(Format::Qcow2) };
    let all = [
        (Options::new(Format::Raw), "raw"),
        (qcow2(Compression::None), "qcow2"),
        (qcow2(Compression::Deflate), "qcow2"),
        (qcow2(Compression::Zstd), "qcow2"),
        (Options::new(Format::VmdkStream), "vmdk"),
        (Options::new(Format::VmdkSparse), "vmdk"),
    ];
    // Two clusters and a byte; over one L2 table and 4 GiB; over 8 GiB, odd; over 1 TiB, where VMDK's tables are large.
    for (size, around, ways) in [
        (131_073, vec![], 6),
        (5 * GIB + 1, vec![GIB / 2, 4 * GIB], 6),
        (9 * GIB + 512, vec![8 * GIB], 6),
        (1025 * GIB + 4096, vec![4 * GIB, 1024 * GIB], 4),
    ] {
        disk(&raw, size, &around);
        for (options, driver) in &all[..ways] {
            let name = format!("{size} bytes as {:?} {:?}", options.format, options.compression);
            let source = RawDisk::open(File::open(&raw).unwrap()).unwrap();
            let sink = BufWriter::new(File::create(&image).unwrap());
            convert(&source, sink, options, &mut |_| true).unwrap();
            let (read, info) = open(File::open(&image).unwrap()).unwrap();
            assert_eq!(compare(&source, &*read).unwrap(), None, "{name}");
            assert_eq!(info.virtual_size, if *driver == "raw" { size } else { size.next_multiple_of(512) });
            let taken = std::fs::metadata(&image).unwrap().blocks() * 512;
            assert!(taken < 16 << 20, "{name} takes {taken} bytes");
            if let Some(same) = qemu(&["compare", "-f", "raw", "-F", driver], &[&raw, &image]) {
                assert!(same, "{name}");
            }
            if *driver == "qcow2" && qemu(&["--version"], &[]).is_some() {
                assert_eq!(qemu(&["check", "-f", "qcow2"], &[&image]), Some(true), "{name}");
            }
        }
    }
}

#[test]
fn what_a_vmdk_cannot_hold_is_refused_before_anything_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let raw = dir.path().join("disk.raw");
    disk(&raw, 2048 * GIB + 512, &[]);
    let source = RawDisk::open(File::open(&raw).unwrap()).unwrap();
    for format in [Format::VmdkStream, Format::VmdkSparse] {
        let mut sink = std::io::Cursor::new(Vec::new());
        let refused = convert(&source, &mut sink, &Options::new(format), &mut |_| true).unwrap_err();
        assert!(refused.to_string().contains("2 TiB"), "{refused}");
        assert!(sink.into_inner().is_empty());
    }
}
