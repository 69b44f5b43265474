//! `virt-steward bench`: what things cost.

pub mod admission;
mod child;
mod connection;
mod export;
pub mod guard;
mod histogram;
mod load;
mod process;
mod report;
mod review;
pub mod volumes;

use std::process::ExitCode;

use anyhow::Result;

/// Arguments of `bench`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  virt-steward bench admission --self --rate 2000
  virt-steward bench admission --url https://127.0.0.1:8443/mutate --insecure --rate 2000
  virt-steward bench export --mib 4096
  virt-steward bench guard --vms 1000
  virt-steward bench volumes")]
pub struct Args {
    #[command(subcommand)]
    service: Service,
}

#[derive(Debug, clap::Subcommand)]
enum Service {
    /// Measure an admission webhook over HTTPS
    Admission(admission::Args),
    /// Measure exports against curl and qemu-img
    Export(export::Args),
    /// Measure verdicts about attachment pods, in a cluster with many VMs
    Guard(guard::Args),
    /// Measure how long volumes take into a guest, in one change and one after the other
    Volumes(volumes::Args),
}

/// Measures, prints.
pub async fn run(args: Args) -> Result<ExitCode> {
    match args.service {
        Service::Admission(args) => admission::run(args).await,
        Service::Export(args) => export::run(args).await,
        Service::Guard(args) => guard::run(args).await,
        Service::Volumes(args) => volumes::run(args).await,
    }
}
