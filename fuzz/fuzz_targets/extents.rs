//! Any text as the extent map of a backup: it is refused, or what it says lies within the disk and in order.
#![no_main]

use export::source::extents::{Map, Page};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(page) = serde_json::from_slice::<Page>(data) else { return };
    let extents: Vec<_> = page.extents.into_iter().flatten().collect();
    for incremental in [false, true] {
        let Ok(map) = Map::of(&extents, incremental) else { continue };
        for ranges in [&map.wanted, &map.changed] {
            let mut at = 0;
            for range in ranges {
                assert!(range.start >= at && range.start < range.end && range.end <= map.size, "{ranges:?}");
                at = range.end;
            }
        }
        for part in map.parts(&(map.size / 3..map.size)) {
            assert!(part.start < part.end && part.start >= map.size / 3, "{part:?}");
        }
    }
});
