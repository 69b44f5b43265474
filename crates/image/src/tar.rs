//! The tar archives that an OVA is: ustar, with GNU's base-256 sizes from 8 GiB on.
//!
//! DMTF DSP0243 asks for ustar, whose octal size ends at 8 GiB; VMware's own tools write GNU's
//! base-256 beyond it and read no pax headers, so none are written. Read are ustar and GNU, and pax
//! as far as `path` and `size` go.

use std::sync::Arc;

use crate::storage::{Storage, length_of, read_up_to};
use crate::{Error, Result};

/// Archives are counted in blocks of this many bytes.
pub(crate) const BLOCK: u64 = 512;
const BLOCK_LEN: usize = 512;
/// The largest size in octal digits.
const OCTAL_LIMIT: u64 = 8 << 30;
/// Members that are looked at; an OVA has a handful.
const MAX_MEMBERS: usize = 4096;
/// The longest pax header or GNU long name that is read.
const MAX_EXTENSION: u64 = 64 << 10;

/// A file in an archive.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Member {
    pub name: String,
    /// Where its content starts, in bytes.
    pub start: u64,
    /// In bytes.
    pub size: u64,
}

/// The header of a regular file. `name` has at most 100 bytes.
pub(crate) fn header(name: &str, size: u64) -> Result<[u8; BLOCK_LEN]> {
    let mut out = [0; BLOCK_LEN];
    if name.is_empty() || name.len() > 100 {
        let why = format!("`{name}` is no name for a file in an archive: it must have 1 to 100 bytes");
        return Err(Error::Unsupported { format: "OVA", why });
    }
    out[..name.len()].copy_from_slice(name.as_bytes());
    out[100..108].copy_from_slice(b"0000644\0");
    out[108..116].copy_from_slice(b"0000000\0");
    out[116..124].copy_from_slice(b"0000000\0");
    if size < OCTAL_LIMIT {
        out[124..136].copy_from_slice(format!("{size:011o}\0").as_bytes());
    } else {
        out[124] = 0x80;
        out[128..136].copy_from_slice(&size.to_be_bytes());
    }
    // The same content gives the same archive: no time of day.
    out[136..148].copy_from_slice(b"00000000000\0");
    out[148..156].fill(b' ');
    out[156] = b'0';
    if size < OCTAL_LIMIT {
        out[257..265].copy_from_slice(b"ustar\x0000");
    } else {
        out[257..265].copy_from_slice(b"ustar  \0"); // what GNU tar writes
    }
    let sum: u32 = out.iter().map(|byte| u32::from(*byte)).sum();
    out[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    Ok(out)
}

/// Bytes from the end of a member to the next header.
pub(crate) fn padding(size: u64) -> u64 {
    size.next_multiple_of(BLOCK) - size
}

/// The name of the first regular file of an archive, behind extension headers; `None`: it is no archive, or what
/// stands first is something else.
pub(crate) fn first_name(storage: &dyn Storage) -> Result<Option<String>> {
    let (mut at, mut next) = (0, Overrides::default());
    // A directory, and extension headers, may stand in front of it.
    for _ in 0..8 {
        let mut block = [0; BLOCK_LEN];
        let got = read_up_to(storage, at, &mut block)?;
        let known = block.get(257..262) == Some(b"ustar") && checksum_fits(&block);
        if got < block.len() || !known {
            return Ok(None);
        }
        let kind = block.get(156).copied().unwrap_or(0);
        let Some(size) = number(block.get(124..136).unwrap_or_default()) else { return Ok(None) };
        match kind {
            b'0' | 0 | b'7' => return Ok(Some(next.name.take().unwrap_or_else(|| stored_name(&block)))),
            b'x' | b'L' if size <= MAX_EXTENSION => next.read(storage, kind, at + BLOCK, size)?,
            b'g' | b'K' if size <= MAX_EXTENSION => {}
            b'5' => next = Overrides::default(),
            _ => return Ok(None),
        }
        at += BLOCK + size.next_multiple_of(BLOCK);
    }
    Ok(None)
}

/// The regular files of an archive, in its order. Every member lies within the archive.
pub(crate) fn members(storage: &Arc<dyn Storage>) -> Result<Vec<Member>> {
    let end = length_of(&**storage)?;
    let (mut at, mut out) = (0, Vec::new());
    let mut next = Overrides::default();
    for _ in 0..MAX_MEMBERS {
        let mut block = [0; BLOCK_LEN];
        if read_up_to(&**storage, at, &mut block)? < block.len() {
            return Err(Error::ova("it ends without an end: the archive was cut short"));
        }
        if block.iter().all(|byte| *byte == 0) {
            return Ok(out);
        }
        if !checksum_fits(&block) {
            return Err(Error::ova(format!("the header at byte {at} is damaged: its checksum is wrong")));
        }
        let start = at + BLOCK;
        let kind = block.get(156).copied().unwrap_or(0);
        let extension = matches!(kind, b'x' | b'g' | b'L' | b'K');
        let stated = number(block.get(124..136).unwrap_or_default());
        let size = next.size.filter(|_| !extension).or(stated);
        let size = size.filter(|size| start.checked_add(*size).is_some_and(|stop| stop <= end));
        let size = size.ok_or_else(|| {
            Error::ova(format!("the file at byte {at} reaches behind the end: the archive was cut short"))
        })?;
        match kind {
            b'x' | b'L' => next.read(&**storage, kind, start, size)?,
            b'g' | b'K' => {}
            b'0' | 0 | b'7' => {
                let name = next.name.take().unwrap_or_else(|| stored_name(&block));
                next = Overrides::default();
                out.push(Member { name, start, size });
            }
            b'S' => return Err(Error::ova("it holds a GNU sparse file, which no OVA may")),
            _ => next = Overrides::default(),
        }
        at = start + size.next_multiple_of(BLOCK);
    }
    Err(Error::ova(format!("it holds more than {MAX_MEMBERS} files")))
}

/// What an extension header says about the member behind it.
#[derive(Default)]
struct Overrides {
    name: Option<String>,
    size: Option<u64>,
}

impl Overrides {
    fn read(&mut self, storage: &dyn Storage, kind: u8, start: u64, size: u64) -> Result<()> {
        if size > MAX_EXTENSION {
            return Err(Error::ova(format!("an extension header of {size} bytes is out of range")));
        }
        let mut raw = vec![0; usize::try_from(size).unwrap_or(0)];
        let got = read_up_to(storage, start, &mut raw)?;
        let text = String::from_utf8_lossy(raw.get(..got).unwrap_or_default()).into_owned();
        if kind == b'L' {
            self.name = Some(text.trim_end_matches('\0').to_owned());
            return Ok(());
        }
        // pax: "LENGTH KEY=VALUE\n"
        for line in text.lines() {
            let Some((key, value)) = line.split_once(' ').and_then(|(_, pair)| pair.split_once('=')) else {
                continue;
            };
            match key {
                "path" => self.name = Some(value.to_owned()),
                "size" => {
                    let size = value.parse().map_err(|_| Error::ova(format!("`{value}` is no size")))?;
                    self.size = Some(size);
                }
                _ => {}
            }
        }
        Ok(())
    }
}

fn stored_name(block: &[u8; BLOCK_LEN]) -> String {
    let text = |range: std::ops::Range<usize>| {
        let raw = block.get(range).unwrap_or_default();
        let end = raw.iter().position(|byte| *byte == 0).unwrap_or(raw.len());
        String::from_utf8_lossy(raw.get(..end).unwrap_or_default()).into_owned()
    };
    let (name, prefix) = (text(0..100), text(345..500));
    let posix = block.get(257..263) == Some(b"ustar\0");
    if posix && !prefix.is_empty() { format!("{prefix}/{name}") } else { name }
}

/// Octal digits, or GNU's base-256.
fn number(field: &[u8]) -> Option<u64> {
    if field.first().is_some_and(|byte| byte & 0x80 != 0) {
        let (high, low) = field.split_at_checked(field.len().checked_sub(8)?)?;
        let small = high.first() == Some(&0x80) && high.iter().skip(1).all(|byte| *byte == 0);
        return small.then(|| low.iter().fold(0, |sum, byte| (sum << 8) | u64::from(*byte)));
    }
    let text = std::str::from_utf8(field).ok()?;
    let digits = text.trim_matches(|c: char| c == '\0' || c == ' ');
    if digits.is_empty() { Some(0) } else { u64::from_str_radix(digits, 8).ok() }
}

fn checksum_fits(block: &[u8; BLOCK_LEN]) -> bool {
    let sum: u64 = block
        .iter()
        .enumerate()
        .map(|(at, byte)| u64::from(if (148..156).contains(&at) { b' ' } else { *byte }))
        .sum();
    block.get(148..156).and_then(number) == Some(sum)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may fail by panicking")]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_octal_below_8_gib_and_base_256_from_there() {
        for (size, gnu) in [(0, false), (1, false), ((8 << 30) - 1, false), (8 << 30, true), (1 << 50, true)]
        {
            let block = header("disk.vmdk", size).unwrap();
            assert!(checksum_fits(&block), "{size}");
            assert_eq!(number(&block[124..136]), Some(size));
            assert_eq!(&block[257..263] == b"ustar ", gnu, "{size}");
        }
    }

    #[test]
    fn the_first_file_is_named_behind_extensions_and_nothing_else_is() {
        let long = format!("{}.ovf", "n".repeat(120));
        let mut extension = header("././@LongLink", long.len() as u64).unwrap();
        extension[156] = b'L';
        extension[148..156].fill(b' ');
        let sum: u32 = extension.iter().map(|byte| u32::from(*byte)).sum();
        extension[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        let mut text = long.clone().into_bytes();
        text.resize(512, 0);
        let plain = header("vm.ovf", 5).unwrap();
        let mut broken = plain;
        broken[0] = b'w';
        for (bytes, name) in [
            (plain.to_vec(), Some("vm.ovf")),
            ([&extension[..], &text, &plain].concat(), Some(long.as_str())),
            ([&extension[..], &text].concat(), None),
            (broken.to_vec(), None),
            (plain[..511].to_vec(), None),
            (vec![0; 4096], None),
        ] {
            assert_eq!(first_name(&bytes).unwrap().as_deref(), name);
        }
    }

    #[test]
    fn a_member_that_reaches_behind_the_end_is_an_error() {
        let mut archive = header("a", 2000).unwrap().to_vec();
        archive.resize(512 + 1999, b'x');
        let storage: Arc<dyn Storage> = Arc::new(archive);
        assert!(members(&storage).unwrap_err().to_string().contains("cut short"));
    }
}
