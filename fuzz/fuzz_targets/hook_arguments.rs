//! Any list of arguments is refused or read back as it was meant. The texts are separated by NUL.
#![no_main]

use hook::arguments::Arguments;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    match Arguments::parse(text.split('\0')) {
        Ok(arguments) => assert_eq!(Arguments::parse(arguments.to_list()), Ok(arguments)),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
});
