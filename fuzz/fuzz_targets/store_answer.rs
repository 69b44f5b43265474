//! Any text as the answer of an object store: it is refused, or its elements hold no more than it said.
#![no_main]

use export::store::elements;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let Ok(found) = elements(text) else { return };
    let length: usize = found.iter().map(|(name, value)| name.len() + value.len()).sum();
    // Entities are longer than what they stand for: nothing grows, and nothing is read from elsewhere.
    assert!(length <= text.len(), "{length} bytes out of {}", text.len());
});
