//! `virt-steward vm`: virtual machines.

mod act;
mod console;
mod create;
mod delete;
mod describe;
mod device;
mod guest;
mod list;
mod migrate;
mod orders;
mod resize;

use std::process::ExitCode;

use anyhow::Result;
use clap::Subcommand;

pub use act::{Patience, Progress};
pub use create::start_and_wait;
pub use list::{Choice, show};

/// Arguments of `vm`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Attach a GPU or another host device, on the next start
    AttachDevice(device::AttachArgs),
    /// Open the serial console
    Console(console::Args),
    /// Create VMs from files
    Create(create::Args),
    /// Delete VMs, and say what happens to their disks
    Delete(delete::Args),
    /// Show everything about a VM, with its conditions in words
    Describe(describe::Args),
    /// Detach a GPU or another host device, on the next start
    DetachDevice(device::DetachArgs),
    /// Show some VMs by name, or all
    Get(list::GetArgs),
    /// Show what the guest agent tells: system, users, file systems
    Guest(guest::Args),
    /// List VMs
    List(list::Args),
    /// Move running VMs to other nodes
    Migrate(migrate::Args),
    /// Let the guest's CPUs stand still
    Pause(orders::PauseArgs),
    /// Forward local ports to a guest
    PortForward(console::ForwardArgs),
    /// Press the reset button
    Reset(orders::ResetArgs),
    /// Shut VMs down and start them again
    Restart(orders::RestartArgs),
    /// Take a picture of the screen
    Screenshot(console::ScreenshotArgs),
    /// Ask the guest to reboot
    SoftReboot(orders::SoftRebootArgs),
    /// Switch VMs on
    Start(orders::StartArgs),
    /// Shut VMs down
    Stop(orders::StopArgs),
    /// Let the guest's CPUs go on
    Unpause(orders::UnpauseArgs),
    /// Show the screen in a viewer, or make it reachable for one
    Vnc(console::VncArgs),
    /// Give a running VM other vCPUs or memory, in place where that is possible
    Resize(resize::Args),
    /// Show how far a resize is
    ResizeStatus(resize::StatusArgs),
}

/// Runs the verb.
pub async fn run(args: Args) -> Result<ExitCode> {
    match args.verb {
        Verb::AttachDevice(args) => device::attach(args).await,
        Verb::Console(args) => console::console(args).await,
        Verb::DetachDevice(args) => device::detach(args).await,
        Verb::Guest(args) => guest::run(args).await,
        Verb::PortForward(args) => console::port_forward(args).await,
        Verb::Screenshot(args) => console::screenshot(args).await,
        Verb::Vnc(args) => console::vnc(args).await,
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
