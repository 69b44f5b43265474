//! A descriptor that is read is written so that it is read as the same again; so is a manifest.
#![no_main]

use image::ovf::{Manifest, parse, render};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if let Ok(manifest) = Manifest::parse(text) {
        assert_eq!(Manifest::parse(&manifest.render()).as_ref(), Ok(&manifest));
    }
    if let Ok(machine) = parse(text) {
        let capacity: u64 = machine.disks.iter().map(|disk| disk.capacity / 2).fold(0, u64::saturating_add);
        if capacity < u64::MAX / 4 && machine.disks.iter().all(|disk| !disk.file.is_empty()) {
            let again = parse(&render(&machine)).unwrap();
            assert_eq!(again.disks.len(), machine.disks.len());
            assert_eq!((again.cpus, again.memory_mib), (machine.cpus, machine.memory_mib));
        }
    }
});
