//! Any lines as the journal of an export: it is refused, or what it says lies within the disk; what is noted
//! afterwards is read again.
#![no_main]

use export::journal::{Head, Journal};
use export::sums::{Sums, hex, sha256};
use image::Resume;
use libfuzzer_sys::fuzz_target;

const SIZE: u64 = 1 << 40;

fuzz_target!(|data: &[u8]| {
    let path = std::env::temp_dir().join(format!("virt-steward-fuzz-journal-{}", std::process::id()));
    let head = Head::new("disk", SIZE, "qcow2 zstd");
    // A checksum is hard to guess: each line gets its own, but for what stands behind the last line end.
    let line = |text: &[u8]| {
        let sum = hex(&sha256(text));
        [text, b" ", &sum.as_bytes()[..8], b"\n"].concat()
    };
    let mut bytes = line(serde_json::to_string(&head).unwrap().as_bytes());
    let mut lines: Vec<&[u8]> = data.split(|byte| *byte == b'\n').collect();
    let torn = lines.pop().unwrap_or_default();
    lines.iter().for_each(|text| bytes.extend(line(text)));
    bytes.extend(torn);
    std::fs::write(&path, &bytes).unwrap();
    if let Ok((mut journal, past)) = Journal::open(&path, &head) {
        assert!(past.resume.done <= SIZE);
        assert!(past.resume.placements.len() <= bytes.len());
        let at = Resume { done: SIZE, placements: Vec::new(), ..past.resume.clone() };
        journal.note_whole(&at, &Sums::default()).unwrap();
        let (_, again) = Journal::open(&path, &head).unwrap();
        assert!(again.whole && again.resume.done == SIZE);
        assert_eq!(again.resume.placements, past.resume.placements);
        assert_eq!(again.sums.0, past.sums.0);
    }
    let _ = std::fs::remove_file(&path);
});
