//! Any bytes behind a qcow2 magic are read or refused; nothing panics or takes memory without end.
#![no_main]

use std::sync::Arc;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let mut image = data.to_vec();
    // Most inputs would fail at the magic number: it is put in its place.
    for (byte, magic) in image.iter_mut().zip(b"QFI\xfb") {
        *byte = *magic;
    }
    let Ok((disk, info)) = image::open_storage(Arc::new(image)) else { return };
    assert_eq!(info.virtual_size, disk.size());
    let mut at = 0;
    let mut buffer = vec![0; 64 << 10];
    for _ in 0..64 {
        let Ok(Some(range)) = disk.next_data(at) else { return };
        assert!(range.start >= at && range.start < range.end && range.end <= disk.size(), "{range:?}");
        let length = buffer.len().min(usize::try_from(range.end - range.start).unwrap_or(usize::MAX));
        let _ = disk.read_at(range.start, &mut buffer[..length]);
        at = range.end;
    }
});
