//! `virt-steward version`

use std::process::ExitCode;

use anyhow::Result;

use crate::output::print;

/// Prints the version of the program.
pub fn run() -> Result<ExitCode> {
    print(concat!("virt-steward ", env!("CARGO_PKG_VERSION"), "\n"))?;
    Ok(ExitCode::SUCCESS)
}
