//! Gives back what only the start of a long-running program needed.
//!
//! One program holds the operator, the command line and the sandbox, and the kernel maps 64 KiB of
//! it around each page that is touched (`fault_around_bytes`): after its start a service has most of
//! the program's text resident and never looks at most of it again. The text is mapped from the file,
//! clean, so dropping it loses nothing: what is needed again is mapped again from the page cache.

/// Lines of `/proc/self/maps` that are looked at; a process of ours has some hundreds.
const MAX_MAPPINGS: usize = 10_000;

/// Why nothing was given back.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Not Linux, or no `/proc`.
    #[error("cannot look up the program's mappings in /proc/self: {0}")]
    Proc(std::io::Error),
    /// The kernel refused the advice.
    #[error("the kernel does not take program text back: {0}")]
    Refused(rustix::io::Errno),
}

/// Drops the resident pages of the program's own text; returns how many bytes are mapped there.
/// To be called once, when a service is ready and has become idle.
///
/// # Errors
///
/// When `/proc` is not there or the kernel refuses; the program goes on as it is.
///
/// # Examples
///
/// ```
/// if let Err(error) = footprint::give_back_text() {
///     eprintln!("{error}");
/// }
/// ```
pub fn give_back_text() -> Result<usize, Error> {
    let program = std::fs::read_link("/proc/self/exe").map_err(Error::Proc)?;
    let maps = std::fs::read_to_string("/proc/self/maps").map_err(Error::Proc)?;
    let mut bytes = 0;
    for line in maps.lines().take(MAX_MAPPINGS) {
        let Some((start, end)) = text_of(line, &program.to_string_lossy()) else { continue };
        drop_pages(start, end - start).map_err(Error::Refused)?;
        bytes += end - start;
    }
    Ok(bytes)
}

/// The range of a line of `/proc/self/maps` (`proc_pid_maps(5)`), when it is read-only, executable
/// and from the program's file.
fn text_of(line: &str, program: &str) -> Option<(usize, usize)> {
    let mut fields = line.split_ascii_whitespace();
    let (range, permissions) = (fields.next()?, fields.next()?);
    // offset, device and inode stand between
    let path = line.splitn(6, ' ').nth(5)?.trim_start();
    if permissions != "r-xp" || path != program {
        return None;
    }
    let (start, end) = range.split_once('-')?;
    let (start, end) = (usize::from_str_radix(start, 16).ok()?, usize::from_str_radix(end, 16).ok()?);
    (start < end).then_some((start, end))
}

fn drop_pages(start: usize, length: usize) -> Result<(), rustix::io::Errno> {
    let pages = std::ptr::with_exposed_provenance_mut(start);
    // SAFETY: the range is a private mapping of the program's file without write permission, as
    // `text_of` has checked: no page of it can be dirty, so MADV_DONTNEED loses nothing and the next
    // access, from any thread, finds the bytes of the file again (madvise(2)).
    unsafe { rustix::mm::madvise(pages, length, rustix::mm::Advice::LinuxDontNeed) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_programs_own_text_is_meant() {
        let program = "/usr/bin/virt-steward";
        for (line, range) in [
            ("1000-3000 r-xp 00001000 fe:00 12 /usr/bin/virt-steward", Some((0x1000, 0x3000))),
            (
                "1000-3000 r-xp 00001000 fe:00 12                         /usr/bin/virt-steward",
                Some((0x1000, 0x3000)),
            ),
            // relocated data: dirty
            ("1000-3000 r--p 00001000 fe:00 12 /usr/bin/virt-steward", None),
            ("1000-3000 rw-p 00001000 fe:00 12 /usr/bin/virt-steward", None),
            ("1000-3000 r-xp 00001000 fe:00 12 /usr/lib/libc.so.6", None),
            ("1000-3000 r-xp 00001000 fe:00 12 /usr/bin/virt-steward (deleted)", None),
            ("3000-1000 r-xp 00001000 fe:00 12 /usr/bin/virt-steward", None),
            ("1000-3000 r-xp 00000000 00:00 0", None),
            ("", None),
        ] {
            assert_eq!(text_of(line, program), range, "{line:?}");
        }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn the_program_goes_on_without_its_text() {
        assert!(give_back_text().is_ok_and(|bytes| bytes > 0));
        assert!(give_back_text().is_ok_and(|bytes| bytes > 0));
    }
}
