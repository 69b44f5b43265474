//! `virt-steward volume expand`.

use std::process::ExitCode;

use anyhow::Result;

use crate::connection::{Scope, problem};
use crate::output::print;
use crate::presented::{Document, document, size};
use crate::vm::{Patience, Progress};

/// Arguments of `volume expand`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  virt-steward volume expand web --volume data --size 20Gi --wait
  virt-steward volume expand web --volume data --size 20Gi --dry-run

The guest sees the new size while it runs; growing its file system is up to the guest. Claims cannot shrink.")]
pub(super) struct Args {
    /// The virtual machine, as `name` or `namespace/name`
    #[arg(value_name = "VM", add = crate::completing::vms())]
    vm: String,
    /// The volume's name in the VM
    #[arg(long, value_name = "NAME")]
    volume: String,
    /// The new size, as in `20Gi`
    #[arg(long, value_name = "SIZE")]
    size: String,
    #[command(flatten)]
    scope: Scope,
    #[command(flatten)]
    patience: Patience,
    /// Only let the API server check it
    #[arg(long)]
    dry_run: bool,
    /// Form of the answer
    #[arg(short, long, value_enum)]
    output: Option<Document>,
}

pub(super) async fn run(args: Args) -> Result<ExitCode> {
    let (provider, vm) = args.scope.connect_for(&args.vm).await?;
    let expansion =
        provider.expand_volume(&vm, &args.volume, &args.size, args.dry_run).await.map_err(problem)?;
    if args.patience.wait && !args.dry_run {
        let mut progress = Progress::of(format!("{}/{}", expansion.namespace, expansion.claim));
        let note = &mut |standing: &str| progress.note(standing);
        provider.wait_expansion(&expansion, args.patience.timeout, note).await.map_err(problem)?;
    }
    if let Some(format) = args.output {
        document(format, &expansion)?;
        return Ok(ExitCode::SUCCESS);
    }
    let dry = if args.dry_run { " (server dry run)" } else { "" };
    let accepted = if args.patience.wait || args.dry_run { "" } else { " (accepted)" };
    let (from, to) = (size(expansion.from_bytes), size(expansion.to_bytes));
    print(&format!(
        "persistentvolumeclaim/{} expanded from {from} to {to}{accepted}{dry}\n",
        expansion.claim
    ))?;
    Ok(ExitCode::SUCCESS)
}
