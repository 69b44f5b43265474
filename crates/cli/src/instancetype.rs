//! `virt-steward instancetype` and `virt-steward preference`.

use std::process::ExitCode;

use anyhow::Result;
use clap::Subcommand;
use serde_json::json;

use crate::connection::{Scope, problem};
use crate::output::print;
use crate::presented::{Document, document, or_none, size};
use crate::table;

/// Arguments of `instancetype`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// List the instance types that a VM of a namespace can name
    List(ListArgs),
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
    /// List the preferences that a VM of a namespace can name
    List(PreferenceListArgs),
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  virt-steward preference list
  virt-steward preference list -n prod -o json")]
struct PreferenceListArgs {
    #[command(flatten)]
    listing: Listing,
}

#[derive(Debug, clap::Args)]
struct Listing {
    #[command(flatten)]
    scope: Scope,
    /// In every namespace
    #[arg(short = 'A', long, conflicts_with = "namespace")]
    all_namespaces: bool,
    /// Form of the answer
    #[arg(short, long, value_enum)]
    output: Option<Document>,
}

impl Listing {
    async fn place(&self) -> Result<(provider::Provider, Option<String>)> {
        let (provider, namespace) = self.scope.connect().await?;
        Ok((provider, (!self.all_namespaces).then_some(namespace)))
    }
}

/// What is said where there is none.
fn nothing(what: &str) {
    eprintln!("No {what} found.");
}

/// Lists instance types.
pub async fn run(args: Args) -> Result<ExitCode> {
    let Verb::List(ListArgs { listing }) = args.verb;
    let (provider, namespace) = listing.place().await?;
    let found = provider.instancetypes(namespace.as_deref()).await.map_err(problem)?;
    match listing.output {
        Some(format) => document(format, &json!({"items": found})),
        None if found.is_empty() => {
            nothing("instance types");
            Ok(())
        }
        None => {
            let header = ["NAMESPACE", "NAME", "VCPUS", "MEMORY", "GPUS", "TRAITS"];
            let mut rows = vec![header.map(str::to_owned).to_vec()];
            rows.extend(found.into_iter().map(|one| {
                let words =
                    |words: Vec<String>| or_none(Some(words.join(",")).filter(|text| !text.is_empty()));
                let memory = or_none(one.memory_bytes.map(size));
                let namespace = one.namespace.unwrap_or("<cluster>".into());
                vec![namespace, one.name, one.vcpus.to_string(), memory, words(one.gpus), words(one.traits)]
            }));
            print(&table::fit(&rows))
        }
    }?;
    Ok(ExitCode::SUCCESS)
}

/// Lists preferences.
pub async fn preferences(args: PreferenceArgs) -> Result<ExitCode> {
    let PreferenceVerb::List(PreferenceListArgs { listing }) = args.verb;
    let (provider, namespace) = listing.place().await?;
    let found = provider.preferences(namespace.as_deref()).await.map_err(problem)?;
    match listing.output {
        Some(format) => document(format, &json!({"items": found})),
        None if found.is_empty() => {
            nothing("preferences");
            Ok(())
        }
        None => {
            let header = ["NAMESPACE", "NAME", "FOR", "DISK BUS", "NIC MODEL", "NEEDS"];
            let mut rows = vec![header.map(str::to_owned).to_vec()];
            rows.extend(found.into_iter().map(|one| {
                let (cpu, memory) = one.requires;
                let needs: Vec<String> = [cpu.map(|count| format!("{count} vCPUs")), memory.map(size)]
                    .into_iter()
                    .flatten()
                    .collect();
                vec![
                    one.namespace.unwrap_or("<cluster>".into()),
                    one.name,
                    or_none(one.display_name),
                    or_none(one.disk_bus),
                    or_none(one.interface_model),
                    or_none(Some(needs.join(", ")).filter(|text| !text.is_empty())),
                ]
            }));
            print(&table::fit(&rows))
        }
    }?;
    Ok(ExitCode::SUCCESS)
}
