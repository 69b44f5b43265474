//! `virt-steward snapshot`: snapshots of VMs.

use std::process::ExitCode;

use anyhow::Result;
use clap::Subcommand;
use jiff::Timestamp;
use provider::VmId;
use provider::snapshot::Snapshot;
use serde_json::json;

use crate::connection::{Scope, problem};
use crate::output::print;
use crate::presented::{Document, age, document, or_none};
use crate::table;
use crate::vm::{Patience, Progress};

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

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  virt-steward snapshot delete before-upgrade")]
struct DeleteArgs {
    /// The snapshot, as `name` or `namespace/name`
    #[arg(value_name = "SNAPSHOT")]
    name: String,
    #[command(flatten)]
    scope: Scope,
    /// Only let the API server check it
    #[arg(long)]
    dry_run: bool,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  virt-steward snapshot get before-upgrade -o yaml")]
struct GetArgs {
    /// The snapshot, as `name` or `namespace/name`
    #[arg(value_name = "SNAPSHOT")]
    name: String,
    #[command(flatten)]
    scope: Scope,
    /// Form of the answer
    #[arg(short, long, value_enum)]
    output: Option<Document>,
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
    scope: Scope,
    /// In every namespace
    #[arg(short = 'A', long, conflicts_with = "namespace")]
    all_namespaces: bool,
    /// Form of the answer
    #[arg(short, long, value_enum)]
    output: Option<Document>,
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

const fn dry(dry_run: bool) -> &'static str {
    if dry_run { " (server dry run)" } else { "" }
}

async fn create(args: CreateArgs) -> Result<()> {
    let (provider, vm) = args.scope.connect_for(&args.vm).await?;
    let mut snapshot = provider.snapshot(&vm, args.name.as_deref(), args.dry_run).await.map_err(problem)?;
    if args.patience.wait && !args.dry_run {
        let mut progress = Progress::of(&snapshot.name);
        let note = &mut |standing: &str| progress.note(standing);
        snapshot = provider.wait_snapshot(&snapshot, args.patience.timeout, note).await.map_err(problem)?;
    }
    if let Some(format) = args.output {
        return document(format, &snapshot);
    }
    let name = &snapshot.name;
    print(&format!("virtualmachinesnapshot.snapshot.kubevirt.io/{name} created{}\n", dry(args.dry_run)))
}

async fn delete(args: DeleteArgs) -> Result<()> {
    let (provider, id) = args.scope.connect_for(&args.name).await?;
    provider.delete_snapshot(id.namespace(), id.name(), args.dry_run).await.map_err(problem)?;
    let name = id.name();
    print(&format!("virtualmachinesnapshot.snapshot.kubevirt.io/{name} deleted{}\n", dry(args.dry_run)))
}

async fn get(args: GetArgs) -> Result<()> {
    let (provider, id) = args.scope.connect_for(&args.name).await?;
    let snapshot = provider.get_snapshot(id.namespace(), id.name()).await.map_err(problem)?;
    match args.output {
        Some(format) => document(format, &snapshot),
        None => present(&[snapshot]),
    }
}

async fn list(args: ListArgs) -> Result<()> {
    let (provider, namespace) = args.scope.connect().await?;
    let namespace = (!args.all_namespaces).then_some(namespace.as_str());
    let snapshots = provider.snapshots(namespace, args.vm.as_deref()).await.map_err(problem)?;
    match args.output {
        Some(format) => document(format, &json!({"items": snapshots})),
        None if snapshots.is_empty() => {
            eprintln!("No snapshots found.");
            Ok(())
        }
        None => present(&snapshots),
    }
}

async fn restore(args: RestoreArgs) -> Result<()> {
    let (provider, id) = args.scope.connect_for(&args.name).await?;
    let target = match args.to {
        Some(name) => name,
        None => provider.get_snapshot(id.namespace(), id.name()).await.map_err(problem)?.vm,
    };
    let target = VmId::new(id.namespace(), &target).map_err(problem)?;
    let restore = provider.restore(&target, id.name(), args.stop, args.dry_run).await.map_err(problem)?;
    if args.patience.wait && !args.dry_run {
        let mut progress = Progress::of(&restore.name);
        let note = &mut |standing: &str| progress.note(standing);
        provider.wait_restore(&restore, args.patience.timeout, note).await.map_err(problem)?;
    }
    if let Some(format) = args.output {
        return document(format, &restore);
    }
    let accepted = if args.patience.wait || args.dry_run { "" } else { " (accepted)" };
    let name = target.name();
    print(&format!("virtualmachine.kubevirt.io/{name} restored{accepted}{}\n", dry(args.dry_run)))
}

fn present(snapshots: &[Snapshot]) -> Result<()> {
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
    print(&table::fit(&rows))
}
