//! `virt-steward vm start|stop|restart|pause|unpause|soft-reboot|reset`.

use std::process::ExitCode;

use anyhow::Result;
use provider::order::Order;
use provider::{Error, Provider, VmId};

use super::act::{Bulk, Patience, Progress};

/// Arguments of `vm start`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  virt-steward vm start web
  virt-steward vm start web --wait --timeout 2m
  virt-steward vm start -l app=web --yes --concurrency 8
  virt-steward vm start web --paused")]
pub struct StartArgs {
    #[command(flatten)]
    bulk: Bulk,
    #[command(flatten)]
    patience: Patience,
    /// With the guest's CPUs standing still
    #[arg(long)]
    paused: bool,
}

/// Arguments of `vm stop`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  virt-steward vm stop web
  virt-steward vm stop web --grace-period 10 --wait
  virt-steward vm stop --all --dry-run
  virt-steward vm stop web --force")]
pub struct StopArgs {
    #[command(flatten)]
    bulk: Bulk,
    #[command(flatten)]
    patience: Patience,
    /// Seconds that the guest gets to shut down; otherwise the VM's own
    #[arg(long, value_name = "SECONDS", conflicts_with = "force")]
    grace_period: Option<u32>,
    /// Pull the plug
    #[arg(long)]
    force: bool,
}

/// Arguments of `vm restart`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  virt-steward vm restart web
  virt-steward vm restart web db --wait
  virt-steward vm restart web --force")]
pub struct RestartArgs {
    #[command(flatten)]
    bulk: Bulk,
    #[command(flatten)]
    patience: Patience,
    /// Without letting the guest shut down
    #[arg(long)]
    force: bool,
}

/// Arguments of `vm pause`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  virt-steward vm pause web
  virt-steward vm pause -l app=web --yes --wait")]
pub struct PauseArgs {
    #[command(flatten)]
    bulk: Bulk,
    #[command(flatten)]
    patience: Patience,
}

/// Arguments of `vm unpause`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  virt-steward vm unpause web
  virt-steward vm unpause -l app=web --yes --wait")]
pub struct UnpauseArgs {
    #[command(flatten)]
    bulk: Bulk,
    #[command(flatten)]
    patience: Patience,
}

/// Arguments of `vm soft-reboot`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  virt-steward vm soft-reboot web

The guest does it by itself, through its agent or ACPI: the API does not show when it has.")]
pub struct SoftRebootArgs {
    #[command(flatten)]
    bulk: Bulk,
}

/// Arguments of `vm reset`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  virt-steward vm reset web

The guest is not asked, and what it has not written is lost; the instance and its node stay.")]
pub struct ResetArgs {
    #[command(flatten)]
    bulk: Bulk,
}

/// Switches VMs on.
pub async fn start(args: StartArgs) -> Result<ExitCode> {
    give(&args.bulk, Order::Start { paused: args.paused }, "started", Some(args.patience)).await
}

/// Shuts VMs down.
pub async fn stop(args: StopArgs) -> Result<ExitCode> {
    let grace = if args.force { Some(0) } else { args.grace_period };
    give(&args.bulk, Order::Stop { grace }, "stopped", Some(args.patience)).await
}

/// Shuts VMs down and starts them again.
pub async fn restart(args: RestartArgs) -> Result<ExitCode> {
    give(&args.bulk, Order::Restart { force: args.force }, "restarted", Some(args.patience)).await
}

/// Lets CPUs stand still.
pub async fn pause(args: PauseArgs) -> Result<ExitCode> {
    give(&args.bulk, Order::Pause, "paused", Some(args.patience)).await
}

/// Lets CPUs go on.
pub async fn unpause(args: UnpauseArgs) -> Result<ExitCode> {
    give(&args.bulk, Order::Unpause, "unpaused", Some(args.patience)).await
}

/// Asks guests to reboot.
pub async fn soft_reboot(args: SoftRebootArgs) -> Result<ExitCode> {
    give(&args.bulk, Order::SoftReboot, "asked to reboot", None).await
}

/// Presses the reset button.
pub async fn reset(args: ResetArgs) -> Result<ExitCode> {
    give(&args.bulk, Order::Reset, "reset", None).await
}

async fn give(bulk: &Bulk, order: Order, past: &str, patience: Option<Patience>) -> Result<ExitCode> {
    let (provider, vms) = bulk.targets().await?;
    if !bulk.confirm(order.verb(), &vms)? {
        return Ok(ExitCode::SUCCESS);
    }
    let patience = patience.filter(|patience| patience.wait && !bulk.dry_run);
    // what is not waited for has only been taken
    let past = match patience {
        None if !past.contains(' ') => format!("{past} (accepted)"),
        _ => past.to_owned(),
    };
    let past = if bulk.dry_run { past.replace(" (accepted)", "") } else { past };
    bulk.each(&past, &vms, |vm| one(&provider, vm, order, bulk.dry_run, patience)).await
}

async fn one(
    provider: &Provider,
    vm: VmId,
    order: Order,
    dry_run: bool,
    patience: Option<Patience>,
) -> Result<(), Error> {
    let done = provider.order(&vm, order, dry_run).await?;
    if let (Some(patience), Some(goal)) = (patience, &done.goal) {
        let mut progress = Progress::of(&vm);
        provider.wait(&vm, goal, patience.timeout, &mut |standing| progress.note(standing)).await?;
    }
    Ok(())
}
