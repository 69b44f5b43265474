//! What stands around a disk in the archive of its directory (`archiveHandler`, `/usr/bin/tar` of one file).

/// Bytes in a block.
const BLOCK: usize = 512;

/// The header of `./disk.img`, in the form of GNU tar.
pub fn front(size: u64) -> Vec<u8> {
    let mut out = vec![0; BLOCK];
    let mut put = |at: usize, text: &[u8]| {
        for (to, byte) in out.iter_mut().skip(at).zip(text) {
            *to = *byte;
        }
    };
    put(0, b"./disk.img");
    for (at, text) in [(100, "0000660"), (108, "0000153"), (116, "0000153"), (136, "00000000000")] {
        put(at, text.as_bytes());
    }
    if size < 1 << 33 {
        put(124, format!("{size:011o}").as_bytes());
    } else {
        // More than eleven octal digits: a number of twelve bytes, with the first bit set.
        put(124, &[0x80]);
        put(128, &size.to_be_bytes());
    }
    put(156, b"0");
    put(257, b"ustar  ");
    put(148, b"        ");
    let sum: u32 = out.iter().map(|byte| u32::from(*byte)).sum();
    for (to, byte) in out.iter_mut().skip(148).zip(format!("{sum:06o}\0 ").into_bytes()) {
        *to = byte;
    }
    out
}

/// What follows a file of this size: the rest of its last block, and two blocks of zeros.
pub fn end(size: u64) -> Vec<u8> {
    let rest = usize::try_from(size.next_multiple_of(BLOCK as u64) - size).unwrap_or(0);
    vec![0; rest + 2 * BLOCK]
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn tar_reads_the_archive_of_a_disk() {
        let content = vec![b'a'; 1000];
        let archive = [front(1000), content.clone(), end(1000)].concat();
        let mut tar = Command::new("tar");
        tar.args(["-xOf", "-", "./disk.img"]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut tar = tar.spawn().unwrap();
        tar.stdin.take().unwrap().write_all(&archive).unwrap();
        let output = tar.wait_with_output().unwrap();
        assert!(output.status.success() && output.stdout == content);
        assert_eq!(front(9 << 30)[124..136], [0x80, 0, 0, 0, 0, 0, 0, 2, 0x40, 0, 0, 0]);
    }
}
