//! Any bytes are read as an archive or refused, and every file lies within the archive.
#![no_main]

use std::sync::Arc;

use image::ovf::{Package, is_archive};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let mut archive = data.to_vec();
    // A checksum is hard to guess: it is put right in every block that says `ustar`.
    for block in archive.chunks_exact_mut(512).filter(|block| &block[257..262] == b"ustar") {
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    }
    let length = archive.len() as u64;
    let known = is_archive(&archive).unwrap();
    let package = match Package::open_archive(Arc::new(archive)) {
        Ok(package) => package,
        Err(error) => {
            assert!(!known || !error.to_string().contains("no .ovf"), "{error}");
            return;
        }
    };
    assert!(package.files().unwrap().iter().all(|(_, size)| *size <= length));
    let _ = package.check_manifest();
    for number in 0..package.machine.disks.len().min(8) {
        let _ = package.disk(number);
    }
});
