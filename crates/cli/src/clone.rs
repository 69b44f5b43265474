//! `virt-steward clone`: a copy of a VM.

use std::process::ExitCode;

use anyhow::Result;
use provider::snapshot::Origin;

use crate::connection::{Scope, problem};
use crate::output::print;
use crate::presented::{Document, document};
use crate::vm::{Patience, Progress};

/// Arguments of `clone`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  virt-steward clone web web-copy --wait
  virt-steward clone --snapshot before-upgrade web-copy --wait

The copy is in the same namespace, off, with MAC addresses and a serial number of its own.")]
pub struct Args {
    /// The VM; left away with `--snapshot`
    #[arg(value_name = "VM", num_args = 1..=2, required = true, add = crate::completing::vms())]
    names: Vec<String>,

    /// From this snapshot instead of a VM
    #[arg(long, value_name = "SNAPSHOT")]
    snapshot: Option<String>,

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

/// Makes the copy.
pub async fn run(args: Args) -> Result<ExitCode> {
    let (provider, namespace) = args.scope.connect().await?;
    let (origin, target) = match (&args.snapshot, args.names.as_slice()) {
        (None, [vm, target]) => (Origin::Vm(vm.clone()), target),
        (Some(snapshot), [target]) => (Origin::Snapshot(snapshot.clone()), target),
        _ => {
            let wrong = "it takes a VM and the name of the copy, or `--snapshot` and the name of the copy";
            let remedy = "see the examples of `virt-steward clone --help`";
            return Err(crate::problem::Problem::new("reading the arguments", wrong, remedy).into());
        }
    };
    let clone = provider.clone_vm(&namespace, &origin, target, args.dry_run).await.map_err(problem)?;
    if args.patience.wait && !args.dry_run {
        let mut progress = Progress::of(&clone.name);
        let note = &mut |standing: &str| progress.note(standing);
        provider.wait_clone(&clone, args.patience.timeout, note).await.map_err(problem)?;
    }
    if let Some(format) = args.output {
        document(format, &clone)?;
        return Ok(ExitCode::SUCCESS);
    }
    let accepted = if args.patience.wait || args.dry_run { "" } else { " (accepted)" };
    let dry = if args.dry_run { " (server dry run)" } else { "" };
    print(&format!("virtualmachine.kubevirt.io/{target} cloned{accepted}{dry}\n"))?;
    Ok(ExitCode::SUCCESS)
}
