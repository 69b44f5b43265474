//! Standard output, which may be a pipe that somebody has closed (`| head`).

use std::io::{ErrorKind, Write};

use anyhow::{Context, Result};

/// Writes a text. That nobody reads any more is no error; `println!` would panic.
pub fn print(text: &str) -> Result<()> {
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        written => written.context("writing to standard output"),
    }
}
