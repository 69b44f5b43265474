//! Block devices: their size is where they end, and holes are not known.

#![allow(clippy::unwrap_used, reason = "a test may fail by panicking")]

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

use image::{Disk as _, Format, Options, RawDisk, compare, convert, open};

/// A loop device over a file, as long as it lives.
struct Loop(String);

impl Loop {
    /// `None`: this machine makes none, or not for us.
    fn over(file: &Path) -> Option<Self> {
        let made =
            Command::new("losetup").args(["--find", "--show", "--read-only"]).arg(file).output().ok()?;
        let name = String::from_utf8(made.stdout).unwrap().trim().to_owned();
        (made.status.success() && File::open(&name).is_ok()).then_some(Self(name))
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").args(["--detach", &self.0]).status();
    }
}

#[test]
fn a_block_device_is_read_to_its_end_and_converted_bit_for_bit() {
    let dir = tempfile::tempdir().unwrap();
    let raw = dir.path().join("disk.raw");
    let file = File::create(&raw).unwrap();
    file.set_len((6 << 20) + 512).unwrap();
    file.write_all_at(b"in the middle", (3 << 20) + 100).unwrap();
    file.write_all_at(b"end", (6 << 20) + 509).unwrap();
    let Some(device) = Loop::over(&raw) else {
        eprintln!(
            "SKIPPED: no loop device can be made here; block devices are shown by the rule in raw.rs alone"
        );
        return;
    };
    let disk = RawDisk::open(File::open(&device.0).unwrap()).unwrap();
    assert_eq!(disk.size(), (6 << 20) + 512, "metadata of a device says 0");
    assert_eq!(disk.next_data(0).unwrap(), Some(0..disk.size()), "it knows no holes");
    assert_eq!(disk.next_data(disk.size()).unwrap(), None);
    let original = RawDisk::open(File::open(&raw).unwrap()).unwrap();
    assert_eq!(compare(&original, &disk).unwrap(), None);
    for format in [Format::Raw, Format::Qcow2, Format::VmdkStream, Format::VmdkSparse] {
        let image = dir.path().join("image");
        let (device, info) = open(File::open(&device.0).unwrap()).unwrap();
        assert_eq!((info.format, info.virtual_size), (Format::Raw, (6 << 20) + 512));
        let done =
            convert(&*device, File::create(&image).unwrap(), &Options::new(format), &mut |_| true).unwrap();
        assert!(done.data <= 2 * 65536, "zeros of a device are found by reading: {format:?} {}", done.data);
        let (read, _) = open(File::open(&image).unwrap()).unwrap();
        assert_eq!(compare(&original, &*read).unwrap(), None, "{format:?}");
    }
}
