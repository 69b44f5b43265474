//! Any bytes are a raw disk: they are read as they are, and every format that they are converted to holds them.
#![no_main]

use std::io::Cursor;
use std::sync::Arc;

use image::qcow2::Compression;
use image::{Format, MemoryDisk, Options, compare, convert};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((way, rest)) = data.split_first() else { return };
    // A few bytes become a disk of some clusters: each stands for a run of itself, and zeros make holes.
    let step = 1 + usize::from(way >> 3) * 40;
    let disk = MemoryDisk(rest.iter().take(4096).flat_map(|byte| std::iter::repeat_n(*byte, step)).collect());
    if disk.0.is_empty() {
        return;
    }
    let (read, info) = image::open_raw_storage(Arc::new(disk.0.clone())).unwrap();
    assert_eq!((info.format, info.virtual_size), (Format::Raw, disk.0.len() as u64));
    assert_eq!(compare(&disk, &*read).unwrap(), None);
    let qcow2 = |compression| Options { compression, cluster_bits: 12, ..Options::new(Format::Qcow2) };
    let options = match way % 6 {
        0 => Options::new(Format::Raw),
        1 => qcow2(Compression::None),
        2 => qcow2(Compression::Deflate),
        3 => qcow2(Compression::Zstd),
        4 => Options::new(Format::VmdkStream),
        _ => Options::new(Format::VmdkSparse),
    };
    let mut sink = Cursor::new(Vec::new());
    let done = convert(&disk, &mut sink, &options, &mut |_| true).unwrap();
    assert!(done.data <= (disk.0.len() as u64).next_multiple_of(65536));
    let image = sink.into_inner();
    if options.format == Format::Raw {
        assert!(image == disk.0);
        return;
    }
    let (read, _) = image::open_storage(Arc::new(image)).unwrap();
    assert_eq!(compare(&disk, &*read).unwrap(), None);
});
