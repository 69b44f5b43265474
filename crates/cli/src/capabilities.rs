//! `virt-steward capabilities`: what a cluster can do, and what the caller may do there.

use std::process::ExitCode;

use anyhow::Result;
use provider::capability::Capabilities;

use crate::connection::{Scope, problem};
use crate::output::print;
use crate::presented::{Document, document, or_none};
use crate::style::{Style, Tone};
use crate::table;

/// Arguments of `capabilities`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  virt-steward capabilities
  virt-steward capabilities -n prod -o json")]
pub struct Args {
    #[command(flatten)]
    scope: Scope,

    /// Form of the answer
    #[arg(short, long, value_enum)]
    output: Option<Document>,
}

/// Shows what the cluster can do.
pub async fn run(args: Args) -> Result<ExitCode> {
    let (provider, namespace) = args.scope.connect().await?;
    let found = provider.capabilities(&namespace).await.map_err(problem)?;
    match args.output {
        Some(format) => document(format, &found)?,
        None => print(&page(&found, &namespace, Style::of_stdout()))?,
    }
    Ok(ExitCode::SUCCESS)
}

fn page(found: &Capabilities, namespace: &str, style: Style) -> String {
    let kubevirt = found.kubevirt.as_ref().map(|kubevirt| {
        format!("{} ({}, `{}/{}`)", kubevirt.version, kubevirt.phase, kubevirt.namespace, kubevirt.name)
    });
    let mut page = table::render(&[
        vec!["Kubernetes:".into(), found.kubernetes.clone()],
        vec!["KubeVirt:".into(), or_none(kubevirt)],
        vec!["CDI:".into(), or_none(found.cdi.clone())],
        vec!["Exports from outside:".into(), or_none(found.export_proxy.clone())],
    ]);
    let mut section = |title: &str, header: &[&str], rows: Vec<Vec<String>>| {
        if !rows.is_empty() {
            page.extend(["\n", &style.paint(Tone::Strong, title), "\n"]);
            let header = header.iter().map(|cell| (*cell).to_owned()).collect();
            page.push_str(&table::fit(&std::iter::once(header).chain(rows).collect::<Vec<Vec<String>>>()));
        }
    };
    let gates = found.gates.iter().map(|gate| {
        vec![gate.name.into(), if gate.enabled { "on" } else { "off" }.into(), gate.needed_for.into()]
    });
    section("Feature gates", &["GATE", "STATE", "NEEDED FOR"], gates.collect());
    let apis = found.apis.iter().map(|api| {
        let versions = Some(api.versions.join(",")).filter(|versions| !versions.is_empty());
        vec![api.group.into(), or_none(versions), api.needed_for.into()]
    });
    section("APIs", &["GROUP", "VERSIONS", "NEEDED FOR"], apis.collect());
    let storage = found
        .storage
        .iter()
        .map(|one| vec![one.class.clone(), one.driver.clone(), or_none(one.snapshot_class.clone())]);
    section("Storage", &["CLASS", "DRIVER", "SNAPSHOT CLASS"], storage.collect());
    let nodes = found.nodes.iter().map(|node| {
        let devices: Vec<String> =
            node.devices.iter().map(|(name, count)| format!("{name}={count}")).collect();
        let devices = Some(devices.join(",")).filter(|text| !text.is_empty());
        let hardware = Some(node.hardware.join(", ")).filter(|text| !text.is_empty());
        let runs = if node.schedulable { "yes" } else { "no" };
        vec![node.name.clone(), runs.into(), or_none(hardware), or_none(devices)]
    });
    section("Nodes", &["NODE", "RUNS VMS", "HARDWARE", "DEVICES"], nodes.collect());
    let permissions = found.permissions.iter().map(|one| {
        let allowed = match one.allowed {
            Some(true) => "yes",
            Some(false) => "no",
            None => "<unknown>",
        };
        vec![one.operation.into(), allowed.into()]
    });
    section(&format!("What you may do in `{namespace}`"), &["OPERATION", "ALLOWED"], permissions.collect());
    let missing = found.missing.iter().map(|why| vec![why.clone()]);
    section("What could not be found out", &["WHY"], missing.collect());
    page
}
