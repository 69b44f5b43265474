//! `virt-steward image` on real files.

#![allow(clippy::unwrap_used, reason = "a test may fail by panicking")]

use std::path::Path;
use std::process::{Command, Output, Stdio};

fn image(dir: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_virt-steward"))
        .arg("image")
        .args(arguments)
        .current_dir(dir)
        .output()
        .unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// 3 MiB: a page of text at the start, in the middle and at the end.
fn disk(dir: &Path) {
    let mut data = vec![0; 3 << 20];
    for at in [0, 1 << 20, (3 << 20) - 4096] {
        data[at..at + 4096].fill(b'a');
    }
    std::fs::write(dir.join("disk.raw"), data).unwrap();
}

#[test]
fn a_disk_goes_through_every_format_and_back() {
    let dir = tempfile::tempdir().unwrap();
    disk(dir.path());
    let mut from = "disk.raw".to_owned();
    for (format, extra) in
        [("qcow2", &["--compress", "zstd"][..]), ("vmdk", &[]), ("vmdk-sparse", &[]), ("raw", &[])]
    {
        let to = format!("disk.{format}.image");
        let arguments = [&["convert", &from, &to, "--format", format, "--verify"], extra].concat();
        let done = image(dir.path(), &arguments);
        assert!(done.status.success(), "{format}: {}", text(&done.stderr));
        let same = image(dir.path(), &["verify", &to, "--against", "disk.raw"]);
        assert!(same.status.success(), "{format}: {}", text(&same.stdout));
        from = to;
    }
}

#[test]
fn info_tells_format_and_size() {
    let dir = tempfile::tempdir().unwrap();
    disk(dir.path());
    assert!(image(dir.path(), &["convert", "disk.raw", "disk.vmdk", "-f", "vmdk", "-q"]).status.success());
    let info: serde_json::Value =
        serde_json::from_slice(&image(dir.path(), &["info", "disk.vmdk", "-o", "json"]).stdout).unwrap();
    assert_eq!(info["format"], "vmdkStream");
    assert_eq!(info["virtualSize"], 3 << 20);
    assert_eq!(info["data"], 3 * 65536);
}

#[test]
fn a_vmdk_can_be_piped_and_is_the_same_as_the_file() {
    let dir = tempfile::tempdir().unwrap();
    disk(dir.path());
    assert!(image(dir.path(), &["convert", "disk.raw", "disk.vmdk", "-f", "vmdk"]).status.success());
    let piped = image(dir.path(), &["convert", "disk.raw", "-", "-f", "vmdk"]);
    let file = std::fs::read(dir.path().join("disk.vmdk")).unwrap();
    assert_eq!(piped.stdout.len(), file.len());
    // Only the descriptor, sectors 1 to 20, names the file.
    assert_eq!(piped.stdout[21 * 512..], file[21 * 512..]);
    // A raw disk goes out with its zeros; what has tables in front is measured first.
    let piped = image(dir.path(), &["convert", "disk.vmdk", "-", "-f", "raw"]);
    assert!(piped.stdout == std::fs::read(dir.path().join("disk.raw")).unwrap());
    assert!(image(dir.path(), &["convert", "disk.raw", "sparse.vmdk", "-f", "vmdk-sparse"]).status.success());
    let piped = image(dir.path(), &["convert", "disk.raw", "-", "-f", "vmdk-sparse"]).stdout;
    let file = std::fs::read(dir.path().join("sparse.vmdk")).unwrap();
    assert_eq!((piped.len(), &piped[21 * 512..]), (file.len(), &file[21 * 512..]));
    for compress in ["none", "zstd"] {
        let arguments = ["convert", "disk.raw", "disk.qcow2", "-f", "qcow2", "-c", compress, "--force"];
        assert!(image(dir.path(), &arguments).status.success());
        let piped = image(dir.path(), &["convert", "disk.raw", "-", "-f", "qcow2", "-c", compress]);
        let image = dir.path().join("piped.qcow2");
        std::fs::write(&image, piped.stdout).unwrap();
        let same = self::image(dir.path(), &["verify", "piped.qcow2", "--against", "disk.raw"]);
        assert!(same.status.success(), "{compress}: {}{}", text(&same.stdout), text(&same.stderr));
    }
}

#[test]
fn standard_input_is_read_when_it_is_a_file_and_refused_when_it_is_a_pipe() {
    let dir = tempfile::tempdir().unwrap();
    disk(dir.path());
    assert!(image(dir.path(), &["convert", "disk.raw", "disk.ova", "-f", "ova", "-q"]).status.success());
    let run = |arguments: &[&str], input: Stdio| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_virt-steward"));
        command.arg("image").args(arguments).current_dir(dir.path()).stdin(input).output().unwrap()
    };
    let file = |name: &str| Stdio::from(std::fs::File::open(dir.path().join(name)).unwrap());
    for (from, to) in [("disk.raw", "a.qcow2"), ("disk.ova", "b.qcow2")] {
        let done = run(&["convert", "-", to, "-f", "qcow2", "-c", "zstd", "-q"], file(from));
        assert!(done.status.success(), "{from}: {}", text(&done.stderr));
        let same = image(dir.path(), &["verify", to, "--against", "disk.raw"]);
        assert!(same.status.success(), "{from}: {}", text(&same.stdout));
    }
    let both = run(&["convert", "-", "-", "-f", "raw"], file("a.qcow2"));
    assert!(both.stdout == std::fs::read(dir.path().join("disk.raw")).unwrap());
    assert!(text(&run(&["info", "-"], file("a.qcow2")).stdout).contains("qcow2"));
    for arguments in [&["convert", "-", "c.qcow2", "-f", "qcow2"][..], &["verify", "-"], &["info", "-"]] {
        let refused = run(arguments, Stdio::piped());
        let said = text(&refused.stderr);
        assert_eq!(refused.status.code(), Some(1), "{arguments:?}");
        assert!(said.contains("a pipe cannot be read in any order") && said.contains("`<`"), "{said}");
    }
    assert!(!dir.path().join("c.qcow2").exists());
}

#[test]
fn a_device_or_directory_is_never_replaced_by_a_file() {
    let dir = tempfile::tempdir().unwrap();
    disk(dir.path());
    std::fs::create_dir(dir.path().join("place")).unwrap();
    std::os::unix::fs::symlink("/dev/null", dir.path().join("device")).unwrap();
    for name in ["place", "device"] {
        let refused = image(dir.path(), &["convert", "disk.raw", name, "-f", "raw", "--force"]);
        assert_eq!(refused.status.code(), Some(1), "{name}");
        let said = text(&refused.stderr);
        assert!(said.contains("no regular file") && said.contains("dd of="), "{said}");
        assert!(!dir.path().join(format!("{name}.partial")).exists());
    }
}

#[test]
fn a_disk_that_begins_like_an_image_is_what_it_is_said_to_be() {
    let dir = tempfile::tempdir().unwrap();
    disk(dir.path());
    // An archive that a guest wrote to its disk is no OVA; one that is called an OVA is told what it lacks.
    let tarred = Command::new("tar").args(["cf", "guest.raw", "disk.raw"]).current_dir(dir.path()).status();
    if tarred.is_ok_and(|status| status.success()) {
        let told = text(&image(dir.path(), &["info", "guest.raw", "-o", "json"]).stdout);
        assert_eq!(serde_json::from_str::<serde_json::Value>(&told).unwrap()["format"], "raw");
        std::fs::copy(dir.path().join("guest.raw"), dir.path().join("guest.ova")).unwrap();
        let refused = image(dir.path(), &["info", "guest.ova"]);
        assert!(text(&refused.stderr).contains("its first file is no .ovf"), "{}", text(&refused.stderr));
    }
    // A guest may write a whole image to its disk: by its first bytes it is one, but not when it is known better.
    for (format, driver) in [("qcow2", "qcow2"), ("vmdk", "vmdk"), ("ova", "ova")] {
        let made = format!("inner.{format}");
        assert!(image(dir.path(), &["convert", "disk.raw", &made, "-f", format, "-q"]).status.success());
        let raw = ["info", &made, "-o", "json", "--input-format", "raw"];
        let info: serde_json::Value = serde_json::from_slice(&image(dir.path(), &raw).stdout).unwrap();
        let length = std::fs::metadata(dir.path().join(&made)).unwrap().len();
        assert_eq!((&info["format"], info["virtualSize"].as_u64()), (&"raw".into(), Some(length)));
        let arguments =
            ["convert", &made, "copy", "-f", "raw", "--input-format", "raw", "--verify", "--force", "-q"];
        let copied = image(dir.path(), &arguments);
        assert!(copied.status.success(), "{}", text(&copied.stderr));
        let same =
            std::fs::read(dir.path().join("copy")).unwrap() == std::fs::read(dir.path().join(&made)).unwrap();
        assert!(same, "{format}");
        let arguments = ["verify", &made, "--input-format", driver, "--against", "disk.raw"];
        let known = image(dir.path(), &[&arguments[..], &["--against-format", "raw"]].concat());
        assert!(known.status.success(), "{format}: {}", text(&known.stderr));
        let refused = image(dir.path(), &["info", "disk.raw", "--input-format", driver]);
        assert_eq!(refused.status.code(), Some(1), "{format}");
    }
}

#[test]
fn nothing_is_replaced_unasked_and_nothing_half_written_is_left() {
    let dir = tempfile::tempdir().unwrap();
    disk(dir.path());
    std::fs::write(dir.path().join("taken"), "precious").unwrap();
    let refused = image(dir.path(), &["convert", "disk.raw", "taken", "-f", "qcow2"]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(text(&refused.stderr).contains("--force"), "{}", text(&refused.stderr));
    assert_eq!(std::fs::read_to_string(dir.path().join("taken")).unwrap(), "precious");

    std::fs::write(dir.path().join("broken"), b"QFI\xfb and then nothing of sense").unwrap();
    let failed = image(dir.path(), &["convert", "broken", "out", "-f", "raw"]);
    assert_eq!(failed.status.code(), Some(1));
    let left: Vec<_> =
        std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(!left.iter().any(|name| name.to_string_lossy().starts_with("out")), "{left:?}");
}

#[test]
fn different_disks_are_told_apart_by_the_first_offset() {
    let dir = tempfile::tempdir().unwrap();
    disk(dir.path());
    let mut other = std::fs::read(dir.path().join("disk.raw")).unwrap();
    other[(1 << 20) + 7] = b'b';
    std::fs::write(dir.path().join("other.raw"), other).unwrap();
    let told = image(dir.path(), &["verify", "disk.raw", "--against", "other.raw"]);
    assert_eq!(told.status.code(), Some(2));
    assert!(text(&told.stdout).contains("1048583"), "{}", text(&told.stdout));
}

#[test]
fn an_ova_is_made_described_verified_and_taken_apart() {
    let dir = tempfile::tempdir().unwrap();
    disk(dir.path());
    let run = |arguments: &[&str]| {
        let done = image(dir.path(), arguments);
        assert!(done.status.success(), "{arguments:?}: {}{}", text(&done.stdout), text(&done.stderr));
        done
    };
    run(&["convert", "disk.raw", "vm.ova", "-f", "ova", "--verify"]);
    let piped = run(&["convert", "disk.raw", "-", "-f", "ova"]);
    assert_eq!(piped.stdout.len() as u64, std::fs::metadata(dir.path().join("vm.ova")).unwrap().len());
    let info: serde_json::Value =
        serde_json::from_slice(&run(&["info", "vm.ova", "-o", "json"]).stdout).unwrap();
    assert_eq!(info["format"], "ova");
    assert_eq!(info["machine"]["disks"][0]["capacity"], 3 << 20);
    assert!(text(&run(&["info", "vm.ova"]).stdout).contains("disk 1    3145728 bytes in vm.vmdk"));
    assert!(text(&run(&["verify", "vm.ova"]).stdout).contains("2 digests in the manifest"));
    run(&["convert", "vm.ova", "back.qcow2", "-f", "qcow2", "--disk", "1"]);
    run(&["verify", "back.qcow2", "--against", "disk.raw"]);
    run(&["verify", "vm.ova", "--against", "disk.raw"]);

    let mut damaged = std::fs::read(dir.path().join("vm.ova")).unwrap();
    let at = damaged.windows(4).position(|window| window == b"KDMV").unwrap() + 600;
    damaged[at] ^= 1;
    std::fs::write(dir.path().join("damaged.ova"), damaged).unwrap();
    let told = image(dir.path(), &["verify", "damaged.ova"]);
    assert_eq!(told.status.code(), Some(2));
    assert!(text(&told.stdout).contains("`vm.vmdk` does not match its digest"), "{}", text(&told.stdout));
}
