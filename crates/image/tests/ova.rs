//! OVAs hold machine and disks, read by our reader, by tar and by qemu-img.

#![allow(clippy::unwrap_used, reason = "a test may fail by panicking")]

use std::io::Cursor;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use image::ovf::{Firmware, Machine, MachineDisk, Nic, Os, Package};
use image::{Format, MemoryDisk, Options, OvaDisk, compare, convert_ova, stream_ova};

fn disk(size: usize, step: usize) -> MemoryDisk {
    let mut data = vec![0; size];
    for (at, byte) in data.iter_mut().enumerate().filter(|(at, _)| at / step % 3 == 1) {
        *byte = u8::try_from(at % 251).unwrap();
    }
    MemoryDisk(data)
}

fn machine(names: &[&str]) -> Machine {
    Machine {
        name: "web".into(),
        os: Os::guess("fedora"),
        cpus: 4,
        cores_per_socket: 2,
        memory_mib: 4096,
        firmware: Firmware::Efi,
        secure_boot: true,
        nics: vec![Nic { network: "default".into(), ..Nic::default() }],
        disks: names
            .iter()
            .map(|name| MachineDisk {
                name: (*name).into(),
                file: format!("web-{name}.vmdk"),
                ..MachineDisk::default()
            })
            .collect(),
        ..Machine::default()
    }
}

struct Made {
    disks: [MemoryDisk; 2],
    archive: Vec<u8>,
}

const MORE: [(&str, &[u8]); 1] = [("web.vm.json", b"{\"kind\": \"VirtualMachine\"}")];

fn made() -> Made {
    let disks = [disk((3 << 20) + 512, 100_000), disk(1 << 20, 4096)];
    let sources = sources(&disks);
    let mut sink = Cursor::new(Vec::new());
    let options = Options::new(Format::VmdkStream);
    let machine = machine(&["root", "data"]);
    let summary = convert_ova(&machine, &sources, "web", &MORE, &mut sink, &options, &mut |_| true).unwrap();
    let archive = sink.into_inner();
    assert_eq!(summary.stored, archive.len() as u64);
    assert_eq!(summary.virtual_size, (4 << 20) + 512);
    Made { disks, archive }
}

fn sources(disks: &[MemoryDisk; 2]) -> Vec<OvaDisk<'_>> {
    let names = ["web-root.vmdk", "web-data.vmdk"];
    disks.iter().zip(names).map(|(disk, file)| OvaDisk { disk, file: file.into() }).collect()
}

#[test]
fn an_ova_holds_the_machine_and_its_disks() {
    let made = made();
    let package = Package::open_archive(Arc::new(made.archive.clone())).unwrap();
    let names: Vec<String> = package.files().unwrap().into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["web.ovf", "web-root.vmdk", "web-data.vmdk", "web.mf", "web.vm.json"]);
    assert_eq!((package.machine.cpus, package.machine.memory_mib), (4, 4096));
    assert!(package.machine.secure_boot);
    assert_eq!(package.check_manifest().unwrap(), Vec::<String>::new());
    assert_eq!(package.manifest.as_ref().unwrap().lines.len(), 4);
    for (number, original) in made.disks.iter().enumerate() {
        let read = package.disk(number).unwrap().unwrap();
        assert_eq!(compare(original, &*read.disk).unwrap(), None, "disk {number}");
        assert_eq!(read.described.capacity, original.0.len() as u64);
        assert_eq!(read.described.file_size, read.info.file_size, "the descriptor states the file's size");
    }
    assert!(package.disk(2).unwrap().is_none());
}

#[test]
fn two_passes_into_a_pipe_give_the_same_bytes_as_one_pass_into_a_file() {
    let made = made();
    let mut piped = Vec::new();
    let options = Options::new(Format::VmdkStream);
    let machine = machine(&["root", "data"]);
    stream_ova(&machine, &sources(&made.disks), "web", &MORE, &mut piped, &options, &mut |_| true).unwrap();
    assert!(piped == made.archive, "{} bytes and {} bytes", piped.len(), made.archive.len());
}

#[test]
fn tar_and_qemu_img_read_what_is_written() {
    let made = made();
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("web.ova"), &made.archive).unwrap();
    let tar = Command::new("tar").args(["-xf", "web.ova"]).current_dir(dir.path()).status();
    assert!(tar.unwrap().success());
    std::fs::write(dir.path().join("root.raw"), &made.disks[0].0).unwrap();
    let Ok(same) = Command::new("qemu-img")
        .args(["compare", "-f", "raw", "-F", "vmdk", "root.raw", "web-root.vmdk"])
        .current_dir(dir.path())
        .output()
    else {
        eprintln!("SKIPPED: qemu-img is not installed, its opinion is not asked");
        return;
    };
    assert!(same.status.success(), "{same:?}");
    // What tar unpacked is an OVF package as it stands.
    let package = Package::open_descriptor(&dir.path().join("web.ovf")).unwrap();
    let read = package.disk(1).unwrap().unwrap();
    assert_eq!(compare(&made.disks[1], &*read.disk).unwrap(), None);
}

#[test]
fn an_ova_that_gnu_tar_made_is_read() {
    let made = made();
    let dir = tempfile::tempdir().unwrap();
    let run = |arguments: &[&str]| {
        assert!(Command::new("tar").args(arguments).current_dir(dir.path()).status().unwrap().success());
    };
    std::fs::write(dir.path().join("web.ova"), &made.archive).unwrap();
    run(&["-xf", "web.ova"]);
    for format in ["ustar", "gnu", "pax"] {
        run(&["-cf", "again.ova", "--format", format, "web.ovf", "web-root.vmdk", "web-data.vmdk"]);
        let file = std::fs::File::open(dir.path().join("again.ova")).unwrap();
        let package = Package::open_archive(Arc::new(file)).unwrap();
        assert!(package.manifest.is_none());
        let read = package.disk(0).unwrap().unwrap();
        assert_eq!(compare(&made.disks[0], &*read.disk).unwrap(), None, "{format}");
    }
    run(&["-cf", "wrong.ova", "web-root.vmdk", "web.ovf"]);
    assert!(open(&dir.path().join("wrong.ova")).is_err(), "the descriptor must be first");
}

fn open(path: &Path) -> image::Result<Package> {
    Package::open_archive(Arc::new(std::fs::File::open(path).unwrap()))
}

#[test]
fn an_ova_cut_short_or_damaged_is_noticed() {
    let made = made();
    for part in 1..16 {
        let mut cut = made.archive.clone();
        cut.truncate(made.archive.len() * part / 16);
        assert!(Package::open_archive(Arc::new(cut)).is_err(), "{part}/16 passed for all of it");
    }
    let at = made.archive.windows(4).rposition(|window| window == b"KDMV").unwrap() - 2000;
    let mut damaged = made.archive;
    damaged[at] ^= 1;
    let package = Package::open_archive(Arc::new(damaged)).unwrap();
    assert_eq!(package.check_manifest().unwrap(), ["web-data.vmdk"]);
}
