//! `virt-steward clone`: a copy of a VM.

use std::collections::BTreeMap;
use std::process::ExitCode;

use anyhow::Result;
use provider::clone::{Origin, Wish};

use crate::connection::{VM, object, problem};
use crate::problem::Problem;
use crate::verbs::How;
use crate::vm::Progress;

/// Arguments of `clone`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  virt-steward clone web web-copy --wait
  virt-steward clone shop/web web-copy --dry-run
  virt-steward clone --snapshot before-upgrade web-copy --wait
  virt-steward clone web web-copy --mac default=02:00:00:12:34:56 --serial SN-7

The copy is in the same namespace, off, with MAC addresses and a serial number of its own: those that are
given, or others that KubeVirt draws.")]
pub struct Args {
    /// The VM, as `name` or `namespace/name`, and the name of the copy; with `--snapshot` only the latter
    #[arg(value_name = "VM", num_args = 1..=2, required = true, add = crate::completing::vms())]
    names: Vec<String>,

    /// From this snapshot instead of a VM
    #[arg(long, value_name = "SNAPSHOT")]
    snapshot: Option<String>,

    /// The MAC address of an interface; several times
    #[arg(long, value_name = "NIC=MAC")]
    mac: Vec<String>,

    /// The serial number that the firmware shows
    #[arg(long, value_name = "SERIAL")]
    serial: Option<String>,

    #[command(flatten)]
    how: How,
}

/// Makes the copy.
pub async fn run(args: Args) -> Result<ExitCode> {
    let wrong = |wrong: &str, remedy: &str| -> anyhow::Error {
        Problem::new("reading the arguments", wrong, remedy).into()
    };
    let (from, name, target) = match (&args.snapshot, args.names.as_slice()) {
        (None, [vm, target]) => (VM, vm, target.clone()),
        (Some(snapshot), [target]) => (crate::snapshot::RESOURCE, snapshot, target.clone()),
        _ => {
            let remedy = "see the examples of `virt-steward clone --help`";
            return Err(wrong(
                "it takes a VM and the name of the copy, or `--snapshot` and the name of the copy",
                remedy,
            ));
        }
    };
    let mut macs = BTreeMap::new();
    for pair in &args.mac {
        let (name, mac) = pair.split_once('=').ok_or_else(|| {
            wrong(
                &format!("`--mac {pair}` names no interface"),
                "write NIC=MAC, as in default=02:00:00:12:34:56",
            )
        })?;
        if macs.insert(name.to_owned(), mac.to_owned()).is_some() {
            return Err(wrong(&format!("`--mac` is given twice for interface `{name}`"), "give it once"));
        }
    }
    let how = args.how;
    let (provider, namespace) = how.scope.connect().await?;
    // the copy is where its origin is
    let id = object(from, name, &namespace)?;
    let named = id.name().to_owned();
    let origin = if args.snapshot.is_some() { Origin::Snapshot(named) } else { Origin::Vm(named) };
    let wish = Wish { target, macs, serial: args.serial };
    let clone = provider.clone_vm(id.namespace(), &origin, &wish, how.dry_run).await.map_err(problem)?;
    if let Some(timeout) = how.waits() {
        let mut progress = Progress::of(&clone.name);
        let note = &mut |standing: &str| progress.note(standing);
        provider.wait_clone(&clone, timeout, note).await.map_err(problem)?;
    }
    how.tell(&format!("{VM}/{} cloned", wish.target), &clone)?;
    Ok(ExitCode::SUCCESS)
}
