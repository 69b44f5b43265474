//! `virt-steward migration`: live migrations that are under way, and those that were.

use std::fmt::Write as _;
use std::process::ExitCode;

use anyhow::Result;
use clap::Subcommand;
use jiff::Timestamp;
use provider::view::migration::Migration;

use crate::connection::problem;
use crate::presented::{age, or_none, size};
use crate::table;
use crate::verbs::{AtOnce, Listing, Showing};
use crate::vm::{Patience, Progress};

/// As kubectl names them.
const RESOURCE: &str = "virtualmachineinstancemigration.kubevirt.io";

/// Arguments of `migration`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// End a migration that is under way
    Cancel(CancelArgs),
    /// Show a migration, and with `--wait` follow it to its end
    Get(GetArgs),
    /// List migrations
    List(ListArgs),
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  virt-steward migration cancel virt-steward-migrate-x7k2p
  virt-steward migration cancel --vm web
  virt-steward migration cancel --vm web --dry-run")]
struct CancelArgs {
    /// The migration, as `name` or `namespace/name`
    #[arg(value_name = "MIGRATION", required_unless_present = "vm", conflicts_with = "vm")]
    name: Option<String>,
    /// Whatever migration of this VM is under way
    #[arg(long, value_name = "VM", add = crate::completing::vms())]
    vm: Option<String>,
    #[command(flatten)]
    how: AtOnce,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  virt-steward migration get virt-steward-migrate-x7k2p
  virt-steward migration get virt-steward-migrate-x7k2p --wait --timeout 10m
  virt-steward migration get virt-steward-migrate-x7k2p -o json")]
struct GetArgs {
    /// The migration, as `name` or `namespace/name`
    #[arg(value_name = "MIGRATION")]
    name: String,
    #[command(flatten)]
    patience: Patience,
    #[command(flatten)]
    showing: Showing,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  virt-steward migration list
  virt-steward migration list -A --active
  virt-steward migration list --vm web -o json")]
struct ListArgs {
    /// Only those that are under way
    #[arg(long)]
    active: bool,
    /// Only those of this VM
    #[arg(long, value_name = "VM", add = crate::completing::vms())]
    vm: Option<String>,
    #[command(flatten)]
    listing: Listing,
}

/// Runs the verb.
pub async fn run(args: Args) -> Result<ExitCode> {
    match args.verb {
        Verb::Cancel(args) => cancel(args).await,
        Verb::Get(args) => get(args).await,
        Verb::List(args) => list(args).await,
    }?;
    Ok(ExitCode::SUCCESS)
}

async fn cancel(CancelArgs { name, vm, how }: CancelArgs) -> Result<()> {
    let ended = match (&name, &vm) {
        (Some(name), _) => {
            let (provider, id) = how.scope.connect_to(RESOURCE, name).await?;
            provider.end_migration(&id, how.dry_run).await
        }
        (None, vm) => {
            let (provider, vm) = how.scope.connect_for(vm.as_deref().unwrap_or_default()).await?;
            provider.cancel_migration(&vm, how.dry_run).await
        }
    }
    .map_err(problem)?;
    how.tell(&format!("{RESOURCE}/{} cancelled", ended.name), &ended)
}

async fn get(GetArgs { name, patience, showing }: GetArgs) -> Result<()> {
    let (provider, id) = showing.scope.connect_to(RESOURCE, &name).await?;
    let mut found = provider.migration(&id).await.map_err(problem)?;
    if patience.wait && !found.is_over() {
        let mut progress = Progress::of(&id);
        let note = &mut |standing: &str| progress.note(standing);
        found = provider.wait_migration(&found, patience.timeout, note).await.map_err(problem)?;
    }
    showing.show(&found, page)
}

async fn list(ListArgs { active, vm, listing }: ListArgs) -> Result<()> {
    let (provider, namespace) = listing.place().await?;
    let mut found = provider.migrations(namespace.as_deref()).await.map_err(problem)?;
    found.retain(|one| (!active || !one.is_over()) && vm.as_ref().is_none_or(|vm| one.vm == *vm));
    listing.show("migrations", &found, |one| format!("{RESOURCE}/{}", one.name), present)
}

/// One migration, and what is known of how far it is.
fn page(one: &Migration) -> String {
    let mut page = present(std::slice::from_ref(one));
    if let Some(transfer) = &one.transfer {
        let rate = |bytes: Option<u64>| or_none(bytes.map(|bytes| format!("{}/s", size(bytes))));
        let _ = write!(
            page,
            "\nMemory: {} % over, {} of {} to go, at {}; the guest writes {} (source: {})\n",
            transfer.percent,
            size(transfer.remaining_bytes),
            size(transfer.total_bytes),
            rate(transfer.bytes_per_second),
            rate(transfer.dirty_bytes_per_second),
            transfer.source.name()
        );
    }
    if let Some(why) = &one.transfer_unknown {
        let _ = write!(page, "\nMemory: how far it is cannot be said ({why})\n");
    }
    page
}

fn present(all: &[Migration]) -> String {
    let now = Timestamp::now();
    let header = ["NAMESPACE", "NAME", "VM", "PHASE", "FROM", "TO", "MODE", "AGE", "TOOK", "FAILURE"];
    let mut rows = vec![header.map(str::to_owned).to_vec()];
    rows.extend(all.iter().map(|one| {
        let end = one.ended.as_deref().and_then(|end| end.parse().ok()).unwrap_or(now);
        vec![
            one.namespace.clone(),
            one.name.clone(),
            one.vm.clone(),
            one.phase.clone(),
            or_none(one.source.clone()),
            or_none(one.target.clone()),
            or_none(one.mode.clone()),
            age(&one.created, now),
            or_none(one.started.as_deref().map(|started| age(started, end))),
            or_none(one.failure.clone()),
        ]
    }));
    table::fit(&rows)
}
