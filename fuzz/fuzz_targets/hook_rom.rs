//! Any bytes are a ROM whose images lie inside of it, or an error; the start decides as the whole does.
#![no_main]

use hook::rom::{HEADER, check, check_start, names_device};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let start = check_start(&data[..data.len().min(HEADER)], data.len());
    match check(data) {
        Ok(images) => {
            assert_eq!(images.first().copied(), start.ok());
            assert!(images.iter().all(|image| image.offset + image.length <= data.len()));
            let first = images[0];
            assert!(names_device(data, &images, first.vendor, first.device));
            // the list of devices is searched, whatever it points at
            names_device(data, &images, first.vendor, !first.device);
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
});
