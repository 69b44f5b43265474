//! `virt-steward vm`: virtual machines.

mod resize;

use std::process::ExitCode;

use anyhow::Result;
use clap::Subcommand;

/// Arguments of `vm`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Give a running VM other vCPUs or memory, in place where that is possible
    Resize(resize::Args),
    /// Show how far a resize is
    ResizeStatus(resize::StatusArgs),
}

/// Runs the verb.
pub async fn run(args: Args) -> Result<ExitCode> {
    match args.verb {
        Verb::Resize(args) => resize::run(args).await,
        Verb::ResizeStatus(args) => resize::status(args).await,
    }
}
