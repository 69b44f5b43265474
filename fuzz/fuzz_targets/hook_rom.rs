//! Any bytes are a ROM whose images lie inside of it, or an error; the start decides as the whole does.
#![no_main]

use hook::rom::{HEADER, check, check_start};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let start = check_start(&data[..data.len().min(HEADER)], data.len());
    match check(data) {
        Ok(images) => {
            assert_eq!(images.first().copied(), start.ok());
            assert!(images.iter().all(|image| image.offset + image.length <= data.len()));
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
});
