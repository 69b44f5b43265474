//! The manifest of a package: a digest of each file.
//!
//! `SHA256(vm.ovf)= 0f3c…`, no space in front of the parenthesis: readers match it by pattern.

use std::fmt::Write as _;
use std::io;

use aws_lc_rs::digest::{self, Context};

/// A file's SHA-256, computed while it is written or read.
pub struct Sum(Context);

impl std::fmt::Debug for Sum {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("Sum")
    }
}

impl Default for Sum {
    fn default() -> Self {
        Self(Context::new(&digest::SHA256))
    }
}

impl Sum {
    /// Takes in more bytes.
    pub fn update(&mut self, data: &[u8]) {
        self.0.update(data);
    }

    /// The digest in hexadecimal.
    pub fn hex(self) -> String {
        hex(self.0.finish().as_ref())
    }

    /// The digest of some bytes in hexadecimal.
    pub fn of(data: &[u8]) -> String {
        hex(digest::digest(&digest::SHA256, data).as_ref())
    }
}

impl io::Write for Sum {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.update(data);
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn hex(raw: &[u8]) -> String {
    let mut out = String::with_capacity(raw.len() * 2);
    for byte in raw {
        let _ = write!(out, "{byte:02x}");
    }
    out
}

/// Why a text is no manifest.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("line {line} of the manifest is not `SHA256(file)= digest` (or SHA1, SHA512)")]
pub struct ManifestError {
    /// Counted from 1.
    pub line: usize,
}

/// The digests of a package's files, in order.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Manifest {
    /// Algorithm (`SHA1`, `SHA256`, `SHA512`), name and digest in hexadecimal.
    pub lines: Vec<(String, String, String)>,
}

impl Manifest {
    /// Adds a SHA-256.
    pub fn add(&mut self, name: &str, digest: String) {
        self.lines.push(("SHA256".into(), name.into(), digest));
    }

    /// The file's text.
    pub fn render(&self) -> String {
        self.lines.iter().fold(String::new(), |mut out, (algorithm, name, digest)| {
            let _ = writeln!(out, "{algorithm}({name})= {digest}");
            out
        })
    }

    /// Reads a file's text.
    ///
    /// # Errors
    /// The first line that is not of the form.
    pub fn parse(text: &str) -> Result<Self, ManifestError> {
        let mut lines = Vec::new();
        for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
            let fields = line.split_once('(').and_then(|(algorithm, rest)| {
                let (name, digest) = rest.rsplit_once(")=")?;
                let (algorithm, digest) = (algorithm.trim(), digest.trim());
                let length = match algorithm {
                    "SHA1" => 40,
                    "SHA256" => 64,
                    "SHA512" => 128,
                    _ => return None,
                };
                let hex = digest.len() == length && digest.bytes().all(|byte| byte.is_ascii_hexdigit());
                hex.then(|| (algorithm.to_owned(), name.to_owned(), digest.to_ascii_lowercase()))
            });
            lines.push(fields.ok_or(ManifestError { line: number + 1 })?);
        }
        Ok(Self { lines })
    }

    /// The SHA-256 of a file, when it is stated.
    pub fn sha256(&self, name: &str) -> Option<&str> {
        self.lines.iter().find(|(kind, file, _)| kind == "SHA256" && file == name).map(|line| line.2.as_str())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may fail by panicking")]
mod tests {
    use super::*;

    #[test]
    fn a_manifest_is_read_as_it_is_written_and_as_others_write_it() {
        let mut manifest = Manifest::default();
        manifest.add("vm (1).ovf", Sum::of(b"abc"));
        assert_eq!(
            manifest.render(),
            "SHA256(vm (1).ovf)= ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad\n"
        );
        assert_eq!(Manifest::parse(&manifest.render()).unwrap(), manifest);
        let spaced = format!("SHA1 (a)= {}\r\n\nSHA512(b)= {}\n", "0".repeat(40), "F".repeat(128));
        assert_eq!(Manifest::parse(&spaced).unwrap().lines[1].2, "f".repeat(128));
        assert_eq!(Manifest::parse("SHA256(a)= 00\n"), Err(ManifestError { line: 1 }));
    }
}
