//! `virt-steward`: the program. Each verb has a file of its own.

mod admit;
mod agent;
mod bench;
mod cli;
mod cluster;
mod completion;
mod devices;
mod diff;
mod documents;
mod export;
mod image;
mod inventory;
mod operator;
mod output;
mod policy;
mod problem;
mod sandbox;
mod shutdown;
mod style;
mod table;
mod version;
mod vm;
mod volume;

use std::process::ExitCode;

/// JSON trees are many small allocations; see SPECIFICATION.md for what it gains in the operator and
/// in the sandbox.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    cli::main()
}
