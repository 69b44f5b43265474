//! `virt-steward instancetype` and `virt-steward preference`.

use std::process::ExitCode;

use anyhow::Result;
use clap::Subcommand;
use provider::instancetype::{Instancetype, Preference};

use crate::connection::problem;
use crate::presented::{or_none, size};
use crate::table;
use crate::verbs::{Listing, Showing};

/// Arguments of `instancetype`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Show the instance type that a VM of a namespace means by a name
    Get(GetArgs),
    /// List the instance types that a VM of a namespace can name
    List(ListArgs),
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  virt-steward instancetype get u1.medium
  virt-steward instancetype get prod/own -o json

The namespace's own goes before the cluster's.")]
struct GetArgs {
    /// The instance type, as `name` or `namespace/name`
    #[arg(value_name = "INSTANCETYPE")]
    name: String,
    #[command(flatten)]
    showing: Showing,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  virt-steward instancetype list
  virt-steward instancetype list -n prod -o json")]
struct ListArgs {
    #[command(flatten)]
    listing: Listing,
}

/// Arguments of `preference`.
#[derive(Debug, clap::Args)]
pub struct PreferenceArgs {
    #[command(subcommand)]
    verb: PreferenceVerb,
}

#[derive(Debug, Subcommand)]
enum PreferenceVerb {
    /// Show the preference that a VM of a namespace means by a name
    Get(PreferenceGetArgs),
    /// List the preferences that a VM of a namespace can name
    List(PreferenceListArgs),
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  virt-steward preference get fedora
  virt-steward preference get prod/own -o json

The namespace's own goes before the cluster's.")]
struct PreferenceGetArgs {
    /// The preference, as `name` or `namespace/name`
    #[arg(value_name = "PREFERENCE")]
    name: String,
    #[command(flatten)]
    showing: Showing,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  virt-steward preference list
  virt-steward preference list -n prod -o json")]
struct PreferenceListArgs {
    #[command(flatten)]
    listing: Listing,
}

/// Shows instance types.
pub async fn run(args: Args) -> Result<ExitCode> {
    match args.verb {
        Verb::Get(GetArgs { name, showing }) => {
            let (provider, id) = showing.scope.connect_for(&name).await?;
            let found = provider.instancetype(&id).await.map_err(problem)?;
            showing.show(&found, |one| types(std::slice::from_ref(one)))
        }
        Verb::List(ListArgs { listing }) => {
            let (provider, namespace) = listing.place().await?;
            let found = provider.instancetypes(namespace.as_deref()).await.map_err(problem)?;
            listing.show("instance types", &found, |one| named(&one.kind, &one.name), types)
        }
    }?;
    Ok(ExitCode::SUCCESS)
}

/// Shows preferences.
pub async fn preferences(args: PreferenceArgs) -> Result<ExitCode> {
    match args.verb {
        PreferenceVerb::Get(PreferenceGetArgs { name, showing }) => {
            let (provider, id) = showing.scope.connect_for(&name).await?;
            let found = provider.preference(&id).await.map_err(problem)?;
            showing.show(&found, |one| wishes(std::slice::from_ref(one)))
        }
        PreferenceVerb::List(PreferenceListArgs { listing }) => {
            let (provider, namespace) = listing.place().await?;
            let found = provider.preferences(namespace.as_deref()).await.map_err(problem)?;
            listing.show("preferences", &found, |one| named(&one.kind, &one.name), wishes)
        }
    }?;
    Ok(ExitCode::SUCCESS)
}

/// As kubectl names it.
fn named(kind: &str, name: &str) -> String {
    format!("{}.instancetype.kubevirt.io/{name}", kind.to_lowercase())
}

fn place(namespace: Option<&String>) -> String {
    namespace.cloned().unwrap_or("<cluster>".into())
}

fn types(found: &[Instancetype]) -> String {
    let header = ["NAMESPACE", "NAME", "VCPUS", "MEMORY", "GPUS", "TRAITS"];
    let mut rows = vec![header.map(str::to_owned).to_vec()];
    rows.extend(found.iter().map(|one| {
        let words = |words: &[String]| or_none(Some(words.join(",")).filter(|text| !text.is_empty()));
        vec![
            place(one.namespace.as_ref()),
            one.name.clone(),
            one.vcpus.to_string(),
            or_none(one.memory_bytes.map(size)),
            words(&one.gpus),
            words(&one.traits),
        ]
    }));
    table::fit(&rows)
}

fn wishes(found: &[Preference]) -> String {
    let header = ["NAMESPACE", "NAME", "FOR", "DISK BUS", "NIC MODEL", "NEEDS"];
    let mut rows = vec![header.map(str::to_owned).to_vec()];
    rows.extend(found.iter().map(|one| {
        let (cpu, memory) = one.requires;
        let needs: Vec<String> =
            [cpu.map(|count| format!("{count} vCPUs")), memory.map(size)].into_iter().flatten().collect();
        vec![
            place(one.namespace.as_ref()),
            one.name.clone(),
            or_none(one.display_name.clone()),
            or_none(one.disk_bus.clone()),
            or_none(one.interface_model.clone()),
            or_none(Some(needs.join(", ")).filter(|text| !text.is_empty())),
        ]
    }));
    table::fit(&rows)
}
