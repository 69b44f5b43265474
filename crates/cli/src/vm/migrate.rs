//! `virt-steward vm migrate`.

use std::process::ExitCode;

use anyhow::Result;
use provider::cluster::MigrateTo;
use provider::{Error, Provider, VmId};

use super::act::{Bulk, Patience, Progress};

/// Arguments of `vm migrate`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  virt-steward vm migrate web --wait
  virt-steward vm migrate web --node node-2 --wait --timeout 10m
  virt-steward vm migrate -l app=web --yes --concurrency 2 --wait
  virt-steward vm migrate web --cancel")]
pub struct Args {
    #[command(flatten)]
    bulk: Bulk,
    #[command(flatten)]
    patience: Patience,
    /// To this node, by its kubernetes.io/hostname; otherwise wherever there is room
    #[arg(long, value_name = "NODE")]
    node: Option<String>,
    /// End the migration that is under way
    #[arg(long, conflicts_with_all = ["node", "wait"])]
    cancel: bool,
}

/// Migrates VMs, or ends their migrations.
pub async fn run(args: Args) -> Result<ExitCode> {
    let bulk = &args.bulk;
    let (provider, vms) = bulk.targets().await?;
    if !bulk.confirm(if args.cancel { "cancel the migration of" } else { "migrate" }, &vms)? {
        return Ok(ExitCode::SUCCESS);
    }
    if args.cancel {
        return bulk.each("migration cancelled", &vms, |vm| cancel(&provider, vm, bulk.dry_run)).await;
    }
    let patience = Some(args.patience).filter(|patience| patience.wait && !bulk.dry_run);
    let past = if patience.is_some() || bulk.dry_run { "migrated" } else { "migrated (accepted)" };
    let to = MigrateTo { node: args.node.clone() };
    bulk.each(past, &vms, |vm| one(&provider, vm, &to, bulk.dry_run, patience)).await
}

async fn cancel(provider: &Provider, vm: VmId, dry_run: bool) -> Result<(), Error> {
    provider.cancel_migration(&vm, dry_run).await.map(drop)
}

async fn one(
    provider: &Provider,
    vm: VmId,
    to: &MigrateTo,
    dry_run: bool,
    patience: Option<Patience>,
) -> Result<(), Error> {
    let migration = provider.migrate(&vm, to, dry_run).await?;
    if let Some(patience) = patience {
        let mut progress = Progress::of(&vm);
        let note = &mut |standing: &str| progress.note(standing);
        let done = provider.wait_migration(&migration, patience.timeout, note).await?;
        if let (Some(source), Some(target)) = (&done.source, &done.target) {
            eprintln!("{vm}: moved from {source} to {target}");
        }
    }
    Ok(())
}
