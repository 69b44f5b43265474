//! `virt-steward`: the program. Each verb has a file of its own.

mod admit;
mod bench;
mod cli;
mod cluster;
mod completion;
mod diff;
mod documents;
mod image;
mod inventory;
mod operator;
mod output;
mod problem;
mod sandbox;
mod shutdown;
mod style;
mod table;
mod version;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::main()
}
