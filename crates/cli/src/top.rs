//! `virt-steward top`: what VMs use.

use std::process::ExitCode;

use anyhow::Result;
use clap::ValueEnum;
use jiff::Timestamp;
use provider::usage::SOURCE;
use serde_json::json;

use crate::connection::{Scope, problem};
use crate::output::print;
use crate::presented::{Document, age, document, size};
use crate::table;

/// Arguments of `top`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  virt-steward top
  virt-steward top -A --sort-by memory
  virt-steward top -o json

MEMORY is that of QEMU on the node, not what the guest counts as used. AGE says how old a figure is.")]
pub struct Args {
    #[command(flatten)]
    scope: Scope,

    /// In every namespace
    #[arg(short = 'A', long, conflicts_with = "namespace")]
    all_namespaces: bool,

    /// Sort by this, most first
    #[arg(long, value_enum, value_name = "COLUMN", default_value_t = Column::Cpu)]
    sort_by: Column,

    /// Form of the answer
    #[arg(short, long, value_enum)]
    output: Option<Document>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Column {
    /// CPU
    Cpu,
    /// Memory
    Memory,
}

/// Shows what VMs use.
pub async fn run(args: Args) -> Result<ExitCode> {
    let (provider, namespace) = args.scope.connect().await?;
    let namespace = (!args.all_namespaces).then_some(namespace.as_str());
    let mut usage = provider.usage(namespace).await.map_err(problem)?;
    usage.sort_by_key(|one| {
        let first = match args.sort_by {
            Column::Cpu => one.cpu_milli,
            Column::Memory => one.memory_bytes,
        };
        (std::cmp::Reverse(first), one.namespace.clone(), one.name.clone())
    });
    if let Some(format) = args.output {
        document(format, &json!({"items": usage}))?;
        return Ok(ExitCode::SUCCESS);
    }
    let now = Timestamp::now();
    let mut rows = vec![["NAMESPACE", "NAME", "CPU", "MEMORY", "AGE"].map(str::to_owned).to_vec()];
    rows.extend(usage.into_iter().map(|one| {
        let cpu = format!("{}m", one.cpu_milli);
        vec![one.namespace, one.name, cpu, size(one.memory_bytes), age(&one.measured, now)]
    }));
    print(&table::render(&rows))?;
    eprintln!("Source: {SOURCE}");
    Ok(ExitCode::SUCCESS)
}
