//! `virt-steward node`: nodes, and the VMs on them.

use std::process::ExitCode;

use anyhow::Result;
use clap::Subcommand;
use provider::cluster::NodeDetail;
use provider::view::node::NodeSummary;
use serde_json::json;

use crate::connection::{ClusterArgs, Scope, problem};
use crate::output::print;
use crate::presented::{Document, Format, document, or_none, size};
use crate::style::{Style, Tone};
use crate::table;

/// Arguments of `node`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Show a node, its features and its VMs
    Get(GetArgs),
    /// List nodes, with what runs on them
    List(ListArgs),
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  virt-steward node get node-1
  virt-steward node get node-1 -o json")]
struct GetArgs {
    /// The node
    #[arg(value_name = "NODE", add = crate::completing::nodes())]
    name: String,
    #[command(flatten)]
    cluster: ClusterArgs,
    /// Form of the answer
    #[arg(short, long, value_enum)]
    output: Option<Document>,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  virt-steward node list
  virt-steward node list -o json")]
struct ListArgs {
    #[command(flatten)]
    cluster: ClusterArgs,
    /// Form of the answer
    #[arg(short, long, value_enum)]
    output: Option<Format>,
}

/// Runs the verb.
pub async fn run(args: Args) -> Result<ExitCode> {
    match args.verb {
        Verb::Get(args) => {
            let (provider, _) = Scope::of(args.cluster).connect().await?;
            let node = provider.node(&args.name).await.map_err(problem)?;
            match args.output {
                Some(format) => document(format, &node),
                None => print(&page(&node, Style::of_stdout())),
            }
        }
        Verb::List(args) => {
            let (provider, _) = Scope::of(args.cluster).connect().await?;
            let nodes = provider.nodes().await.map_err(problem)?;
            match args.output {
                Some(Format::Json) => document(Document::Json, &json!({"items": nodes})),
                Some(Format::Yaml) => document(Document::Yaml, &json!({"items": nodes})),
                Some(Format::Name) => {
                    let names: Vec<String> = nodes.iter().map(|one| format!("node/{}\n", one.name)).collect();
                    print(&names.concat())
                }
                Some(Format::Wide) | None => print(&table::fit(&rows(&nodes))),
            }
        }
    }?;
    Ok(ExitCode::SUCCESS)
}

fn standing(node: &NodeSummary) -> String {
    let mut words = vec![if node.ready { "Ready" } else { "NotReady" }];
    if node.cordoned {
        words.push("SchedulingDisabled");
    }
    words.join(",")
}

fn share(part: u64, whole: u64) -> String {
    match part.checked_mul(100).and_then(|part| part.checked_div(whole)) {
        Some(percent) => format!("{percent}%"),
        None => "<none>".into(),
    }
}

fn devices(node: &NodeSummary) -> Option<String> {
    let all: Vec<String> = node.devices.iter().map(|(name, count)| format!("{name}={count}")).collect();
    Some(all.join(",")).filter(|text| !text.is_empty())
}

fn rows(nodes: &[NodeSummary]) -> Vec<Vec<String>> {
    let header = [
        "NAME",
        "STATUS",
        "RUNS VMS",
        "VMS",
        "MIGRATABLE",
        "VCPUS",
        "CPUS",
        "GUEST MEMORY",
        "OF NODE",
        "DEVICES",
    ];
    let mut rows = vec![header.map(str::to_owned).to_vec()];
    rows.extend(nodes.iter().map(|node| {
        vec![
            node.name.clone(),
            standing(node),
            if node.runs_vms { "yes" } else { "no" }.into(),
            node.vms.to_string(),
            node.migratable.to_string(),
            node.guest_vcpus.to_string(),
            format!("{}.{}", node.allocatable_cpu_milli / 1000, node.allocatable_cpu_milli % 1000 / 100),
            size(node.guest_memory_bytes),
            share(node.guest_memory_bytes, node.allocatable_memory_bytes),
            or_none(devices(node)),
        ]
    }));
    rows
}

fn page(node: &NodeDetail, style: Style) -> String {
    let one = &node.summary;
    let words = |words: &[String]| or_none(Some(words.join(", ")).filter(|text| !text.is_empty()));
    let mut page = table::render(&[
        vec!["Name:".into(), one.name.clone()],
        vec!["Status:".into(), standing(one)],
        vec!["Runs VMs:".into(), if one.runs_vms { "yes" } else { "no" }.into()],
        vec!["Kubelet:".into(), one.kubelet.clone()],
        vec!["CPUs for pods:".into(), format!("{}m", one.allocatable_cpu_milli)],
        vec!["Memory for pods:".into(), size(one.allocatable_memory_bytes)],
        vec!["vCPUs of guests:".into(), one.guest_vcpus.to_string()],
        vec!["Memory of guests:".into(), size(one.guest_memory_bytes)],
        vec!["Devices:".into(), or_none(devices(one))],
        vec!["Taints:".into(), words(&node.taints)],
    ]);
    let count = format!("{} VMs, {} of them can migrate", one.vms, one.migratable);
    for (title, lines) in [(count.as_str(), &node.running), ("Features", &node.features)] {
        if !lines.is_empty() {
            page.extend(["\n", &style.paint(Tone::Strong, title), "\n"]);
            for line in lines {
                page.extend([line, "\n"]);
            }
        }
    }
    page
}
