//! `virt-steward vm delete`.

use std::collections::HashMap;
use std::process::ExitCode;

use anyhow::Result;
use clap::ValueEnum;
use provider::disposal::{Disks, Fate, Plan};
use provider::wait::Goal;
use provider::{Error, Kind, Provider, VmId};

use super::act::{Bulk, Patience, Progress, ask, many};
use crate::table;

/// Arguments of `vm delete`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  virt-steward vm delete web --dry-run
  virt-steward vm delete web --disks keep
  virt-steward vm delete web --disks all --yes --wait
  virt-steward vm delete -l app=test --yes

What happens to each disk is shown first. By default those that belong to the VM (its dataVolumeTemplates)
go with it, and all others stay.")]
pub struct Args {
    #[command(flatten)]
    bulk: Bulk,
    #[command(flatten)]
    patience: Patience,
    /// What happens to the disks
    #[arg(long, value_enum, value_name = "CHOICE", default_value_t = Choice::WithVm)]
    disks: Choice,
}

/// What happens to the disks.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Choice {
    /// What belongs to the VM goes with it, the rest stays
    WithVm,
    /// Everything stays; the VM must be off when disks belong to it
    Keep,
    /// Everything goes that no other VM uses
    All,
}

/// Shows the plan, asks, and carries it out.
pub async fn run(args: Args) -> Result<ExitCode> {
    let bulk = &args.bulk;
    let (provider, vms) = bulk.targets().await?;
    let wish = match args.disks {
        Choice::WithVm => Disks::WithVm,
        Choice::Keep => Disks::Keep,
        Choice::All => Disks::All,
    };
    let mut plans: HashMap<VmId, Result<Plan, Error>> = HashMap::new();
    for vm in &vms {
        plans.insert(vm.clone(), provider.plan_delete(vm, wish).await);
    }
    show(&vms, &plans);
    let possible = plans.values().any(Result::is_ok);
    if possible && !bulk.yes && !bulk.dry_run && !ask(&format!("Delete {}?", many(vms.len())))? {
        return Ok(ExitCode::SUCCESS);
    }
    let patience = Some(args.patience).filter(|patience| patience.wait && !bulk.dry_run);
    bulk.each("deleted", &vms, |vm| one(&provider, &plans, vm, bulk.dry_run, patience)).await
}

/// The fate of each disk, on standard error.
fn show(vms: &[VmId], plans: &HashMap<VmId, Result<Plan, Error>>) {
    let mut rows = vec![["VM", "VOLUME", "SOURCE", "FATE", "WHY"].map(str::to_owned).to_vec()];
    for (vm, plan) in vms.iter().filter_map(|vm| Some((vm, plans.get(vm)?.as_ref().ok()?))) {
        for disk in &plan.disks {
            let fate = match disk.fate {
                Fate::Deleted => "deleted",
                Fate::Kept => "kept",
                Fate::NoData => "no data",
            };
            let source = format!("{}/{}", disk.source, disk.reference);
            rows.push(vec![vm.to_string(), disk.volume.clone(), source, fate.into(), disk.why.clone()]);
        }
    }
    if rows.len() > 1 {
        eprint!("{}", table::render(&rows));
    }
}

async fn one(
    provider: &Provider,
    plans: &HashMap<VmId, Result<Plan, Error>>,
    vm: VmId,
    dry_run: bool,
    patience: Option<Patience>,
) -> Result<(), Error> {
    let plan = match plans.get(&vm) {
        Some(plan) => plan.clone()?,
        None => return Err(Error::new(Kind::NotFound, "deleting a VM", "it has no plan", "try again")),
    };
    provider.delete(&vm, &plan, dry_run).await?;
    if let Some(patience) = patience {
        let mut progress = Progress::of(&vm);
        let note = &mut |standing: &str| progress.note(standing);
        provider.wait(&vm, &Goal::Deleted, patience.timeout, note).await?;
    }
    Ok(())
}
