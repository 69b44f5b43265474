//! `virt-steward migration`: live migrations that are under way, and those that were.

use std::process::ExitCode;

use anyhow::Result;
use clap::Subcommand;
use jiff::Timestamp;
use provider::view::migration::Migration;
use serde_json::json;

use crate::connection::{Scope, problem};
use crate::output::print;
use crate::presented::{Document, age, document, or_none};
use crate::table;
use crate::vm::{Patience, Progress};

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
    scope: Scope,
    /// Only let the API server check it
    #[arg(long)]
    dry_run: bool,
    /// Form of the answer
    #[arg(short, long, value_enum)]
    output: Option<Document>,
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
    scope: Scope,
    #[command(flatten)]
    patience: Patience,
    /// Form of the answer
    #[arg(short, long, value_enum)]
    output: Option<Document>,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  virt-steward migration list
  virt-steward migration list -A --active
  virt-steward migration list --vm web -o json")]
struct ListArgs {
    #[command(flatten)]
    scope: Scope,
    /// In every namespace
    #[arg(short = 'A', long, conflicts_with = "namespace")]
    all_namespaces: bool,
    /// Only those that are under way
    #[arg(long)]
    active: bool,
    /// Only those of this VM
    #[arg(long, value_name = "VM", add = crate::completing::vms())]
    vm: Option<String>,
    /// Form of the answer
    #[arg(short, long, value_enum)]
    output: Option<Document>,
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

async fn cancel(args: CancelArgs) -> Result<()> {
    let ended = match (&args.name, &args.vm) {
        (Some(name), _) => {
            let (provider, id) = args.scope.connect_for(name).await?;
            provider.end_migration(&id, args.dry_run).await
        }
        (None, vm) => {
            let (provider, vm) = args.scope.connect_for(vm.as_deref().unwrap_or_default()).await?;
            provider.cancel_migration(&vm, args.dry_run).await
        }
    }
    .map_err(problem)?;
    if let Some(format) = args.output {
        return document(format, &ended);
    }
    let dry = if args.dry_run { " (server dry run)" } else { "" };
    print(&format!("virtualmachineinstancemigration.kubevirt.io/{} cancelled{dry}\n", ended.name))
}

async fn get(args: GetArgs) -> Result<()> {
    let (provider, id) = args.scope.connect_for(&args.name).await?;
    let mut found = provider.migration(&id).await.map_err(problem)?;
    if args.patience.wait && !found.is_over() {
        let mut progress = Progress::of(&id);
        let note = &mut |standing: &str| progress.note(standing);
        found = provider.wait_migration(&found, args.patience.timeout, note).await.map_err(problem)?;
    }
    match args.output {
        Some(format) => document(format, &found),
        None => present(&[found]),
    }
}

async fn list(args: ListArgs) -> Result<()> {
    let (provider, namespace) = args.scope.connect().await?;
    let namespace = (!args.all_namespaces).then_some(namespace.as_str());
    let mut found = provider.migrations(namespace).await.map_err(problem)?;
    found.retain(|one| (!args.active || !one.is_over()) && args.vm.as_ref().is_none_or(|vm| one.vm == *vm));
    match args.output {
        Some(format) => document(format, &json!({"items": found})),
        None if found.is_empty() => {
            eprintln!("No migrations found.");
            Ok(())
        }
        None => present(&found),
    }
}

fn present(all: &[Migration]) -> Result<()> {
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
    print(&table::fit(&rows))
}
