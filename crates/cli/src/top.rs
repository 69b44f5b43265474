//! `virt-steward top`: what VMs use.

use std::process::ExitCode;

use anyhow::Result;
use clap::ValueEnum;
use jiff::Timestamp;
use provider::cluster::Prometheus;
use provider::usage::{Source, Usage};

use crate::connection::{Scope, problem};
use crate::output::print;
use crate::presented::{Document, age, document, or_none, size};
use crate::table;

/// Arguments of `top`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  virt-steward top
  virt-steward top -A --sort-by memory
  virt-steward top --prometheus monitoring/prometheus-k8s
  virt-steward top --source metrics.k8s.io -o json

Figures come from the best source there is: a Prometheus that is named, else virt-handlers (two looks, a
second apart), else metrics.k8s.io. MEMORY is what the guest uses, or with metrics.k8s.io what QEMU uses on
the node. AGE says how old a figure is.")]
pub struct Args {
    #[command(flatten)]
    scope: Scope,

    /// In every namespace
    #[arg(short = 'A', long, conflicts_with = "namespace")]
    all_namespaces: bool,

    /// Sort by this, most first
    #[arg(long, value_enum, value_name = "COLUMN", default_value_t = Column::Cpu)]
    sort_by: Column,

    #[command(flatten)]
    from: From,

    /// Form of the answer
    #[arg(short, long, value_enum)]
    output: Option<Document>,
}

/// Where figures come from.
#[derive(Debug, clap::Args)]
pub struct From {
    /// A Prometheus that scrapes KubeVirt: a URL, or a Service as `[https:]NAMESPACE/NAME[:PORT]`
    #[arg(long, value_name = "ADDRESS", env = "VIRT_STEWARD_PROMETHEUS")]
    prometheus: Option<String>,
    /// Take this source and no other
    #[arg(long, value_enum, value_name = "SOURCE")]
    source: Option<SourceName>,
}

impl From {
    /// The Prometheus, if one is named.
    pub fn prometheus(&self) -> Result<Option<Prometheus>> {
        self.prometheus.as_deref().map(Prometheus::parse).transpose().map_err(problem)
    }

    /// The source, if one is chosen.
    pub fn source(&self) -> Option<Source> {
        self.source.map(|source| match source {
            SourceName::Prometheus => Source::Prometheus,
            SourceName::VirtHandler => Source::VirtHandler,
            SourceName::Pods => Source::Pods,
        })
    }
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum SourceName {
    /// KubeVirt's metrics, scraped
    Prometheus,
    /// KubeVirt's metrics, from each node
    VirtHandler,
    /// Metrics of pods
    #[value(name = "metrics.k8s.io")]
    Pods,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Column {
    /// CPU
    Cpu,
    /// Memory
    Memory,
    /// Disks, both ways
    Disk,
    /// Network, both ways
    Network,
}

fn both(one: Option<u64>, other: Option<u64>) -> Option<u64> {
    match (one, other) {
        (None, None) => None,
        (one, other) => Some(one.unwrap_or_default().saturating_add(other.unwrap_or_default())),
    }
}

/// Shows what VMs use.
pub async fn run(args: Args) -> Result<ExitCode> {
    let (provider, namespace) = args.scope.connect().await?;
    let namespace = (!args.all_namespaces).then_some(namespace.as_str());
    let prometheus = args.from.prometheus()?;
    let mut report =
        provider.usage(namespace, prometheus.as_ref(), args.from.source()).await.map_err(problem)?;
    report.items.sort_by_key(|one| {
        let first = match args.sort_by {
            Column::Cpu => one.cpu_milli,
            Column::Memory => one.memory_bytes,
            Column::Disk => both(one.disk_read_bytes_per_second, one.disk_write_bytes_per_second),
            Column::Network => {
                both(one.network_receive_bytes_per_second, one.network_transmit_bytes_per_second)
            }
        };
        (std::cmp::Reverse(first), one.namespace.clone(), one.name.clone())
    });
    if let Some(format) = args.output {
        document(format, &report)?;
        return Ok(ExitCode::SUCCESS);
    }
    let now = Timestamp::now();
    let header = ["NAMESPACE", "NAME", "CPU", "MEMORY", "READ", "WRITE", "RECEIVE", "SEND", "AGE"];
    let mut rows = vec![header.map(str::to_owned).to_vec()];
    rows.extend(report.items.iter().map(|one| row(one, now)));
    if report.items.is_empty() {
        eprintln!("No VMs found that run.");
    } else {
        print(&table::fit(&rows))?;
    }
    tell(report.source, &report.notes);
    Ok(ExitCode::SUCCESS)
}

/// Says where figures are from, and which better sources could not be used.
pub fn tell(source: Source, notes: &[String]) {
    let of = if source == Source::Pods { ", memory as QEMU uses it on the node" } else { "" };
    eprintln!("Source: {}{of}", source.name());
    for note in notes {
        eprintln!("Not used: {note}");
    }
}

fn row(one: &Usage, now: Timestamp) -> Vec<String> {
    let rate = |bytes: Option<u64>| or_none(bytes.map(|bytes| format!("{}/s", size(bytes))));
    vec![
        one.namespace.clone(),
        one.name.clone(),
        or_none(one.cpu_milli.map(|milli| format!("{milli}m"))),
        or_none(one.memory_bytes.map(size)),
        rate(one.disk_read_bytes_per_second),
        rate(one.disk_write_bytes_per_second),
        rate(one.network_receive_bytes_per_second),
        rate(one.network_transmit_bytes_per_second),
        age(&one.measured, now),
    ]
}
