//! `virt-steward provider`: VMs as other tools' users ask for them.

use std::process::ExitCode;

use anyhow::Result;
use clap::Subcommand;

use crate::provider_config::{TYPE, check_type};
use crate::vm::{Choice, show};

/// Arguments of `provider`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// List the VMs of a provider
    List(ListArgs),
}

/// Arguments of `provider list`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  virt-steward provider list --type kubevirt --namespace default
  virt-steward provider list --config provider.yaml -o json
  virt-steward provider list --all-namespaces")]
struct ListArgs {
    /// The provider; there is one
    #[arg(long = "type", value_name = "TYPE", default_value = TYPE, value_parser = |name: &str| check_type(name).map(|()| name.to_owned()))]
    kind: String,

    #[command(flatten)]
    choice: Choice,
}

/// Runs the verb.
pub async fn run(args: Args) -> Result<ExitCode> {
    let Verb::List(args) = args.verb;
    let (provider, namespace) = args.choice.scope.connect().await?;
    let selection = args.choice.selection(namespace);
    show(&provider, selection, &args.choice).await
}
