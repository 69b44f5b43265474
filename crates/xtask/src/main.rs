//! Chores of the workspace.
//!
//! ```text
//! cargo run -p xtask -- codegen           writes generated code
//! cargo run -p xtask -- codegen --check   fails when what is committed differs
//! ```

mod codegen;

use std::path::Path;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};

/// Chores of the workspace.
#[derive(Debug, Parser)]
#[command(name = "xtask")]
struct Cli {
    #[command(subcommand)]
    chore: Chore,
}

#[derive(Debug, Subcommand)]
enum Chore {
    /// Make Rust of the proto files of every crate that has some
    Codegen {
        /// Write nothing: fail when what is committed is not what the proto files give
        #[arg(long)]
        check: bool,
    },
}

fn main() -> Result<()> {
    let crates = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("finding the crates")?;
    match Cli::parse().chore {
        Chore::Codegen { check } => codegen::run(crates, check),
    }
}
