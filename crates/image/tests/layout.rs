//! What VMware's readers take for granted about the files, read here byte by byte and by no reader of ours.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may fail by panicking")]

use image::ovf::{Machine, MachineDisk};
use image::{Format, MemoryDisk, Options, OvaDisk, convert, convert_ova};

const SECTOR: usize = 512;
/// Guest bytes of a grain table.
const TABLE: usize = 512 * GRAIN;
const GRAIN: usize = 65536;

fn le32(raw: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(raw[at..at + 4].try_into().unwrap())
}

fn le64(raw: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(raw[at..at + 8].try_into().unwrap())
}

/// Data in the first, the third and the last of four grain tables, the last one short.
fn disk() -> MemoryDisk {
    let mut data = vec![0; 3 * TABLE + 3 * GRAIN + 700];
    for grain in [0, 1, 511, 1024, 1030, 3 * 512 + 3] {
        let start = grain * GRAIN;
        let end = (start + GRAIN).min(data.len());
        for (at, byte) in data[start..end].iter_mut().enumerate() {
            *byte = u8::try_from(at % 253).unwrap();
        }
    }
    MemoryDisk(data)
}

/// What stands in a stream, in order.
#[derive(Debug, PartialEq)]
enum Part {
    Grain { lba: u64, at: u32 },
    Table { at: u32, entries: Vec<u32> },
    Directory { at: u64, entries: Vec<u32> },
    Footer(Vec<u8>),
    End,
}

/// Walks a stream from sector 128 to its end, marker by marker.
fn walk(raw: &[u8]) -> Vec<Part> {
    let (mut at, mut out) = (128 * SECTOR, Vec::new());
    while at < raw.len() {
        let (value, size, kind) = (le64(raw, at), le32(raw, at + 8) as usize, le32(raw, at + 12));
        let sector = |at: usize| u32::try_from(at / SECTOR).unwrap();
        if size > 0 {
            // RFC 1950: deflate, a header that is a multiple of 31.
            assert_eq!((raw[at + 12] & 0xf, u16::from_be_bytes([raw[at + 12], raw[at + 13]]) % 31), (8, 0));
            out.push(Part::Grain { lba: value, at: sector(at) });
            at += (12 + size).next_multiple_of(SECTOR);
            continue;
        }
        let body = at + SECTOR;
        let length = usize::try_from(value).unwrap() * SECTOR;
        let words = || raw[body..body + length].chunks(4).map(|word| le32(word, 0)).collect::<Vec<u32>>();
        out.push(match kind {
            0 => Part::End,
            1 => Part::Table { at: sector(body), entries: words() },
            2 => Part::Directory { at: sector(body).into(), entries: words() },
            3 => Part::Footer(raw[body..body + SECTOR].to_vec()),
            other => panic!("marker {other} at {at}"),
        });
        at = body + length;
    }
    out
}

#[test]
fn a_stream_has_version_3_ascending_grains_tables_behind_them_and_a_footer() {
    let disk = disk();
    let mut raw = std::io::Cursor::new(Vec::new());
    let options = Options { workers: 4, ..Options::new(Format::VmdkStream) };
    convert(&disk, &mut raw, &options, &mut |_| true).unwrap();
    let raw = raw.into_inner();
    assert_eq!((&raw[..4], le32(&raw, 4), le32(&raw, 8)), (b"KDMV".as_slice(), 3, 0x3_0001));
    let capacity = disk.0.len().div_ceil(SECTOR) as u64;
    assert_eq!((le64(&raw, 12), le64(&raw, 20)), (capacity, 128));
    assert_eq!((le64(&raw, 28), le64(&raw, 36), le32(&raw, 44)), (1, 20, 512), "descriptor, tables");
    assert_eq!(
        (le64(&raw, 48), le64(&raw, 56), le64(&raw, 64)),
        (0, u64::MAX, 128),
        "the footer knows where"
    );
    assert_eq!((raw[72], &raw[73..77], &raw[77..79]), (0, b"\n \r\n".as_slice(), [1, 0].as_slice()));
    let descriptor = String::from_utf8_lossy(&raw[SECTOR..21 * SECTOR]);
    for line in [
        "createType=\"streamOptimized\"".to_owned(),
        "parentCID=ffffffff".to_owned(),
        format!("RW {capacity} SPARSE \"disk.vmdk\""),
    ] {
        assert!(descriptor.contains(&line), "{line}: {descriptor}");
    }
    let parts = walk(&raw);
    let lbas: Vec<u64> = parts
        .iter()
        .filter_map(|part| if let Part::Grain { lba, .. } = part { Some(*lba) } else { None })
        .collect();
    assert_eq!(
        lbas,
        [0, 1, 511, 1024, 1030, 3 * 512 + 3].map(|grain| grain * 128),
        "in the order of the disk"
    );
    // Each table stands behind its grains and says where they are; one without grains is not there.
    let (mut grains, mut tables) = (Vec::new(), Vec::new());
    for part in &parts {
        match part {
            Part::Grain { lba, at } => grains.push((lba / 128, *at)),
            Part::Table { at, entries } => {
                assert_eq!(entries.len(), 512);
                let number = grains[0].0 / 512;
                let mut expected = vec![0; 512];
                for (grain, at) in grains.drain(..) {
                    expected[usize::try_from(grain - number * 512).unwrap()] = at;
                }
                assert_eq!(*entries, expected, "table {number}");
                tables.push((number, *at));
            }
            _ => {}
        }
    }
    assert!(grains.is_empty(), "every grain is in a table");
    assert_eq!(tables.iter().map(|(number, _)| *number).collect::<Vec<_>>(), [0, 2, 3]);
    let [.., Part::Directory { at, entries }, Part::Footer(footer), Part::End] = parts.as_slice() else {
        panic!("a stream ends with directory, footer and end: {:?}", &parts[parts.len() - 3..]);
    };
    assert_eq!(entries.len(), 128, "padded to a sector");
    assert_eq!(entries[..4], [tables[0].1, 0, tables[1].1, tables[2].1]);
    let mut expected = raw[..SECTOR].to_vec();
    expected[56..64].copy_from_slice(&at.to_le_bytes());
    assert_eq!(*footer, expected, "the header again, with the place of the directory");
}

#[test]
fn an_archive_is_plain_ustar_with_the_descriptor_first_and_no_extensions() {
    let disk = disk();
    let disks = [OvaDisk { disk: &disk, file: "vm-root.vmdk".into() }];
    let machine = Machine {
        name: "vm".into(),
        cpus: 1,
        memory_mib: 64,
        disks: vec![MachineDisk {
            name: "root".into(),
            file: "vm-root.vmdk".into(),
            ..MachineDisk::default()
        }],
        ..Machine::default()
    };
    let mut raw = std::io::Cursor::new(Vec::new());
    let options = Options::new(Format::VmdkStream);
    let more: [(&str, &[u8]); 1] = [("vm.vm.json", b"{}")];
    convert_ova(&machine, &disks, "vm", &more, &mut raw, &options, &mut |_| true).unwrap();
    let raw = raw.into_inner();
    let (mut at, mut names) = (0, Vec::new());
    while raw[at] != 0 {
        let text = |from: usize, to: usize| {
            String::from_utf8_lossy(&raw[at + from..at + to]).trim_end_matches(['\0', ' ']).to_owned()
        };
        assert_eq!(&raw[at + 257..at + 263], b"ustar\0");
        assert_eq!(raw[at + 156], b'0', "files alone: `x` and `g` of pax are refused by vSphere");
        names.push(text(0, 100));
        let size = usize::from_str_radix(&text(124, 136), 8).unwrap();
        at += SECTOR + size.next_multiple_of(SECTOR);
    }
    assert_eq!(names, ["vm.ovf", "vm-root.vmdk", "vm.mf", "vm.vm.json"]);
    assert!(raw[at..].iter().all(|byte| *byte == 0) && raw.len() - at >= 2 * SECTOR);
}
