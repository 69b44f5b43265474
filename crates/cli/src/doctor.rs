//! `virt-steward doctor`: whether a capability works in a cluster, and what keeps it from working.

pub mod gather;
mod probe;
mod resize;

use std::process::ExitCode;

use anyhow::Result;
use clap::Subcommand;

/// Arguments of `doctor`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// CPU and memory of running VMs in place
    Resize(resize::Args),
}

/// Examines the cluster.
pub async fn run(args: Args) -> Result<ExitCode> {
    match args.what {
        What::Resize(args) => resize::run(args).await,
    }
}
