//! `virt-steward snapshot`: snapshots of VMs.

use std::process::ExitCode;

use anyhow::Result;
use clap::Subcommand;
use jiff::Timestamp;
use provider::VmId;
use provider::snapshot::Snapshot;

use crate::connection::problem;
use crate::presented::{age, or_none};
use crate::table;
use crate::verbs::{AtOnce, How, Listing, Showing};
use crate::vm::Progress;

/// As kubectl names them.
pub const RESOURCE: &str = "virtualmachinesnapshot.snapshot.kubevirt.io";

/// Arguments of `snapshot`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Take a snapshot of a VM
    Create(CreateArgs),
    /// Delete a snapshot
    Delete(DeleteArgs),
    /// Show a snapshot
    Get(GetArgs),
    /// List snapshots
    List(ListArgs),
    /// Bring a VM back to a snapshot, or make a new VM from it
    Restore(RestoreArgs),
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  virt-steward snapshot create web
  virt-steward snapshot create web --name before-upgrade --wait

With a guest agent the file systems are frozen meanwhile; memory is not in a snapshot.")]
struct CreateArgs {
    /// The VM, as `name` or `namespace/name`
    #[arg(value_name = "VM", add = crate::completing::vms())]
    vm: String,
    /// The snapshot's name; otherwise one is made from the VM's
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    #[command(flatten)]
    how: How,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  virt-steward snapshot delete before-upgrade
  virt-steward snapshot delete before-upgrade --dry-run -o json")]
struct DeleteArgs {
    /// The snapshot, as `name` or `namespace/name`
    #[arg(value_name = "SNAPSHOT")]
    name: String,
    #[command(flatten)]
    how: AtOnce,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  virt-steward snapshot get before-upgrade -o yaml")]
struct GetArgs {
    /// The snapshot, as `name` or `namespace/name`
    #[arg(value_name = "SNAPSHOT")]
    name: String,
    #[command(flatten)]
    showing: Showing,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  virt-steward snapshot list
  virt-steward snapshot list --vm web -o json
  virt-steward snapshot list -A")]
struct ListArgs {
    /// Only those of this VM
    #[arg(long, value_name = "VM")]
    vm: Option<String>,
    #[command(flatten)]
    listing: Listing,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  virt-steward snapshot restore before-upgrade --wait
  virt-steward snapshot restore before-upgrade --stop --wait
  virt-steward snapshot restore before-upgrade --to web-copy --wait

A VM that runs is refused, unless `--stop` lets the restore shut it down.")]
struct RestoreArgs {
    /// The snapshot, as `name` or `namespace/name`
    #[arg(value_name = "SNAPSHOT")]
    name: String,
    /// Another VM; it is made when it is not there. Otherwise the one that the snapshot is of
    #[arg(long, value_name = "VM")]
    to: Option<String>,
    /// Shut the VM down first
    #[arg(long)]
    stop: bool,
    #[command(flatten)]
    how: How,
}

/// Runs the verb.
pub async fn run(args: Args) -> Result<ExitCode> {
    match args.verb {
        Verb::Create(args) => create(args).await,
        Verb::Delete(args) => delete(args).await,
        Verb::Get(args) => get(args).await,
        Verb::List(args) => list(args).await,
        Verb::Restore(args) => restore(args).await,
    }?;
    Ok(ExitCode::SUCCESS)
}

async fn create(CreateArgs { vm, name, how }: CreateArgs) -> Result<()> {
    let (provider, vm) = how.scope.connect_for(&vm).await?;
    let mut snapshot = provider.snapshot(&vm, name.as_deref(), how.dry_run).await.map_err(problem)?;
    if let Some(timeout) = how.waits() {
        let mut progress = Progress::of(&snapshot.name);
        let note = &mut |standing: &str| progress.note(standing);
        snapshot = provider.wait_snapshot(&snapshot, timeout, note).await.map_err(problem)?;
    }
    how.tell(&format!("{RESOURCE}/{} created", snapshot.name), &snapshot)
}

async fn delete(DeleteArgs { name, how }: DeleteArgs) -> Result<()> {
    let (provider, id) = how.scope.connect_to(RESOURCE, &name).await?;
    provider.delete_snapshot(id.namespace(), id.name(), how.dry_run).await.map_err(problem)?;
    how.deleted(RESOURCE, &id)
}

async fn get(GetArgs { name, showing }: GetArgs) -> Result<()> {
    let (provider, id) = showing.scope.connect_to(RESOURCE, &name).await?;
    let snapshot = provider.get_snapshot(id.namespace(), id.name()).await.map_err(problem)?;
    showing.show(&snapshot, |one| present(std::slice::from_ref(one)))
}

async fn list(ListArgs { vm, listing }: ListArgs) -> Result<()> {
    let (provider, namespace) = listing.place().await?;
    let found = provider.snapshots(namespace.as_deref(), vm.as_deref()).await.map_err(problem)?;
    listing.show("snapshots", &found, |one| format!("{RESOURCE}/{}", one.name), present)
}

async fn restore(RestoreArgs { name, to, stop, how }: RestoreArgs) -> Result<()> {
    let (provider, id) = how.scope.connect_to(RESOURCE, &name).await?;
    let target = match to {
        Some(name) => name,
        None => provider.get_snapshot(id.namespace(), id.name()).await.map_err(problem)?.vm,
    };
    let target = VmId::new(id.namespace(), &target).map_err(problem)?;
    let restore = provider.restore(&target, id.name(), stop, how.dry_run).await.map_err(problem)?;
    if let Some(timeout) = how.waits() {
        let mut progress = Progress::of(&restore.name);
        let note = &mut |standing: &str| progress.note(standing);
        provider.wait_restore(&restore, timeout, note).await.map_err(problem)?;
    }
    how.tell(&format!("virtualmachine.kubevirt.io/{} restored", target.name()), &restore)
}

fn present(snapshots: &[Snapshot]) -> String {
    let now = Timestamp::now();
    let header = ["NAMESPACE", "NAME", "VM", "PHASE", "READY", "AGE", "HOW", "NOT IN IT", "ERROR"];
    let mut rows = vec![header.map(str::to_owned).to_vec()];
    let words = |words: &[String]| or_none(Some(words.join(",")).filter(|text| !text.is_empty()));
    rows.extend(snapshots.iter().map(|one| {
        vec![
            one.namespace.clone(),
            one.name.clone(),
            one.vm.clone(),
            one.phase.clone(),
            if one.ready { "yes" } else { "no" }.into(),
            age(&one.created, now),
            words(&one.indications),
            words(&one.excluded),
            or_none(one.error.clone()),
        ]
    }));
    table::fit(&rows)
}
