//! `virt-steward`: the program. Each verb has a file of its own.

mod admit;
mod agent;
mod bench;
mod capabilities;
mod cli;
mod clone;
mod cluster;
mod completing;
mod completion;
mod connection;
mod devices;
mod diff;
mod doctor;
mod documents;
mod export;
mod image;
mod instancetype;
mod inventory;
mod migration;
mod nic;
mod node;
mod operator;
mod output;
mod policy;
mod presented;
mod problem;
mod progress;
mod provider;
mod provider_config;
mod sandbox;
mod serve;
mod shutdown;
mod snapshot;
mod style;
mod table;
mod template;
mod terminal;
mod top;
mod verbs;
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
