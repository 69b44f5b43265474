//! `virt-steward policy test`: what policies say about VMs, offline.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use features::policy::{Availability, PolicyFacts, PolicyRequest, PolicyVerdict, evaluate};
use serde_json::{Value, json};

use crate::cli::DENIED;
use crate::inventory::{Inventory, name};
use crate::output::print;
use crate::problem::Problem;
use crate::{documents, table};

/// Arguments of `policy`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// Judge virtual machines in files by policies in files
    Test(TestArgs),
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  virt-steward policy test -f policy.yaml -f vm.yaml
  virt-steward policy test -f policies/ -f vm.yaml --user ann --group developers
  virt-steward policy test -f policy.yaml -f vms.yaml -f nodes.yaml -o json

Files hold FeaturePolicy, ClusterFeaturePolicy and FeaturePolicyException objects, VirtualMachines as they would
be stored (`virt-steward admit -o yaml` makes such), and Nodes to ask whether any can take a VM. VMs are judged in
the order of the files, and each that is allowed counts for those after it.

Exit status: 0 every VM is allowed, 1 usage or IO error, 2 at least one VM is denied.")]
struct TestArgs {
    /// File or folder with policies and virtual machines, `-` for standard input; may be given several times
    #[arg(short, long = "filename", value_name = "FILE", required = true)]
    filename: Vec<PathBuf>,

    /// Who asks
    #[arg(long, default_value = "system:anonymous")]
    user: String,

    /// A group of who asks; may be given several times
    #[arg(long = "group", value_name = "GROUP")]
    groups: Vec<String>,

    /// Namespace of objects that name none
    #[arg(short, long, default_value = "default")]
    namespace: String,

    /// What a VM that no node can take gets where no policy is in force
    #[arg(long, value_enum, default_value = "warn")]
    availability: WithoutNode,

    /// What to print
    #[arg(short, long, value_enum, default_value = "table")]
    output: Output,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq, clap::ValueEnum)]
enum Output {
    /// One line per VM, and the reasons
    Table,
    /// One JSON list
    Json,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq, clap::ValueEnum)]
enum WithoutNode {
    /// A warning
    Warn,
    /// A denial
    Deny,
    /// Nothing
    Ignore,
}

impl From<WithoutNode> for Availability {
    fn from(chosen: WithoutNode) -> Self {
        match chosen {
            WithoutNode::Warn => Self::Warn,
            WithoutNode::Deny => Self::Deny,
            WithoutNode::Ignore => Self::Ignore,
        }
    }
}

/// Runs the verb.
pub fn run(args: Args) -> Result<ExitCode> {
    match args.verb {
        Verb::Test(args) => test(&args),
    }
}

fn test(args: &TestArgs) -> Result<ExitCode> {
    let mut facts = PolicyFacts::default();
    let mut inventory = Inventory::default();
    for path in files(&args.filename)? {
        let origin = path.display().to_string();
        for mut object in documents::read(&path)? {
            let is_cluster = object["kind"] == "ClusterFeaturePolicy";
            if !is_cluster && object["metadata"].is_object() && object["metadata"]["namespace"].is_null() {
                object["metadata"]["namespace"] = args.namespace.as_str().into();
            }
            let is_policy = facts.add(&object).map_err(|error| {
                Problem::new(
                    format!("reading `{origin}`"),
                    error,
                    "correct the policy; `kubectl explain featurepolicies.spec` lists its fields",
                )
            })?;
            if !is_policy {
                inventory.add(object, &args.namespace, &origin)?;
            }
        }
    }
    // without a policy it is still told whether a node can take each VM
    if inventory.machines.is_empty()
        || (facts.policies.is_empty() && inventory.cluster_facts().nodes.is_none())
    {
        let missing = if inventory.machines.is_empty() { "VirtualMachine" } else { "policy and no Node" };
        let remedy = "give files with VirtualMachines, and with policies or Nodes, each with `-f`";
        return Err(
            Problem::new("testing policies", format!("there is no {missing} in the files"), remedy).into()
        );
    }
    let cluster = inventory.cluster_facts();
    let groups: Vec<&str> = args.groups.iter().map(String::as_str).collect();
    let mut judged: Vec<(String, PolicyVerdict)> = Vec::new();
    for machine in &inventory.machines {
        let namespace = machine["metadata"]["namespace"].as_str().unwrap_or(&args.namespace);
        let request = PolicyRequest {
            namespace,
            name: name(machine),
            user: &args.user,
            groups: &groups,
            object: machine,
            old_object: None,
        };
        let verdict = evaluate(&request, &facts, cluster.nodes.as_deref(), args.availability.into());
        if verdict.denial.is_none() {
            facts.count(namespace, name(machine), machine);
        }
        judged.push((format!("{namespace}/{}", name(machine)), verdict));
    }
    print(&match args.output {
        Output::Table => lines(&judged),
        Output::Json => format!("{:#}\n", report(&judged)),
    })?;
    let is_denied = judged.iter().any(|(_, verdict)| verdict.denial.is_some());
    Ok(if is_denied { ExitCode::from(DENIED) } else { ExitCode::SUCCESS })
}

/// Files as they are, folders as the YAML and JSON files in them.
fn files(given: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for path in given {
        if !path.is_dir() {
            files.push(path.clone());
            continue;
        }
        let listed = std::fs::read_dir(path).map_err(|error| {
            Problem::new(format!("reading `{}`", path.display()), error, "give a folder that can be read")
        })?;
        let mut inside: Vec<PathBuf> = listed.filter_map(|entry| Some(entry.ok()?.path())).collect();
        inside.retain(|path| {
            path.extension().is_some_and(|kind| kind == "yaml" || kind == "yml" || kind == "json")
        });
        inside.sort();
        files.extend(inside);
    }
    Ok(files)
}

fn lines(judged: &[(String, PolicyVerdict)]) -> String {
    let mut rows = vec![vec!["VM".to_owned(), "VERDICT".to_owned(), "REASON".to_owned()]];
    for (machine, verdict) in judged {
        let word = if verdict.denial.is_some() { "denied" } else { "allowed" };
        let mut reasons: Vec<String> = verdict.denial.iter().cloned().collect();
        reasons.extend(verdict.warnings.iter().map(|warning| format!("warning: {warning}")));
        rows.push(vec![machine.clone(), word.to_owned(), reasons.first().cloned().unwrap_or_default()]);
        rows.extend(reasons.into_iter().skip(1).map(|reason| vec![String::new(), String::new(), reason]));
    }
    table::render(&rows)
}

fn report(judged: &[(String, PolicyVerdict)]) -> Value {
    judged
        .iter()
        .map(|(machine, verdict)| {
            json!({"vm": machine, "allowed": verdict.denial.is_none(), "denial": verdict.denial, "warnings": verdict.warnings})
        })
        .collect()
}
