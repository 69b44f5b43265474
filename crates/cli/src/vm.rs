//! `virt-steward vm`: virtual machines.

mod act;
mod create;
mod delete;
mod describe;
mod list;
mod migrate;
mod orders;
mod resize;

use std::process::ExitCode;

use anyhow::Result;
use clap::Subcommand;

pub use act::{Patience, Progress};
pub use list::{Choice, show};

/// Arguments of `vm`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Create VMs from files
    Create(create::Args),
    /// Delete VMs, and say what happens to their disks
    Delete(delete::Args),
    /// Show everything about a VM, with its conditions in words
    Describe(describe::Args),
    /// Show some VMs by name
    Get(list::GetArgs),
    /// List VMs
    List(list::Args),
    /// Move running VMs to other nodes
    Migrate(migrate::Args),
    /// Let the guest's CPUs stand still
    Pause(orders::PauseArgs),
    /// Press the reset button
    Reset(orders::ResetArgs),
    /// Shut VMs down and start them again
    Restart(orders::RestartArgs),
    /// Ask the guest to reboot
    SoftReboot(orders::SoftRebootArgs),
    /// Switch VMs on
    Start(orders::StartArgs),
    /// Shut VMs down
    Stop(orders::StopArgs),
    /// Let the guest's CPUs go on
    Unpause(orders::UnpauseArgs),
    /// Give a running VM other vCPUs or memory, in place where that is possible
    Resize(resize::Args),
    /// Show how far a resize is
    ResizeStatus(resize::StatusArgs),
}

/// Runs the verb.
pub async fn run(args: Args) -> Result<ExitCode> {
    match args.verb {
        Verb::Create(args) => create::run(args).await,
        Verb::Delete(args) => delete::run(args).await,
        Verb::Describe(args) => describe::run(args).await,
        Verb::Get(args) => list::get(args).await,
        Verb::List(args) => list::run(args).await,
        Verb::Migrate(args) => migrate::run(args).await,
        Verb::Pause(args) => orders::pause(args).await,
        Verb::Reset(args) => orders::reset(args).await,
        Verb::Restart(args) => orders::restart(args).await,
        Verb::SoftReboot(args) => orders::soft_reboot(args).await,
        Verb::Start(args) => orders::start(args).await,
        Verb::Stop(args) => orders::stop(args).await,
        Verb::Unpause(args) => orders::unpause(args).await,
        Verb::Resize(args) => resize::run(args).await,
        Verb::ResizeStatus(args) => resize::status(args).await,
    }
}
