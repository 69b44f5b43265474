//! `virt-steward vm attach-device` and `detach-device`: GPUs and other host devices, on the next start.

use std::process::ExitCode;

use anyhow::Result;
use provider::device::{Sort, Wish};
use provider::network::Effect;

use crate::connection::problem;
use crate::output::print;
use crate::presented::document;
use crate::verbs::{AtOnce, dry};

/// Arguments of `vm attach-device`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  virt-steward vm attach-device ml gpu1 --device nvidia.com/TU104GL_Tesla_T4
  virt-steward vm attach-device ml gpu1 --device nvidia.com/TU104GL_Tesla_T4 --on-next-start
  virt-steward vm attach-device ml nic1 --device intel.com/qat --host-device --dry-run

KubeVirt cannot plug host devices into a guest that runs. For a VM that runs this is refused, unless
`--on-next-start` says that it may wait for the next start. `virt-steward devices` shows what there is.")]
pub struct AttachArgs {
    /// The VM, as `name` or `namespace/name`
    #[arg(value_name = "VM", add = crate::completing::vms())]
    vm: String,
    /// The device's name in the VM
    #[arg(value_name = "NAME")]
    name: String,
    /// The permitted device, as its resource is named
    #[arg(long, value_name = "RESOURCE")]
    device: String,
    #[command(flatten)]
    how: How,
}

/// Arguments of `vm detach-device`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  virt-steward vm detach-device ml gpu1
  virt-steward vm detach-device ml gpu1 --on-next-start")]
pub struct DetachArgs {
    /// The VM, as `name` or `namespace/name`
    #[arg(value_name = "VM", add = crate::completing::vms())]
    vm: String,
    /// The device's name in the VM
    #[arg(value_name = "NAME")]
    name: String,
    #[command(flatten)]
    how: How,
}

#[derive(Debug, clap::Args)]
struct How {
    /// It is no GPU, but another host device
    #[arg(long)]
    host_device: bool,
    /// The VM may run: the change is for its next start
    #[arg(long)]
    on_next_start: bool,
    #[command(flatten)]
    change: AtOnce,
}

/// Attaches a device.
pub async fn attach(args: AttachArgs) -> Result<ExitCode> {
    change(&args.vm, args.name, Some(args.device), &args.how, "attached").await
}

/// Detaches a device.
pub async fn detach(args: DetachArgs) -> Result<ExitCode> {
    change(&args.vm, args.name, None, &args.how, "detached").await
}

async fn change(vm: &str, name: String, device: Option<String>, how: &How, past: &str) -> Result<ExitCode> {
    let (provider, vm) = how.change.scope.connect_for(vm).await?;
    let sort = if how.host_device { Sort::HostDevice } else { Sort::Gpu };
    let wish = Wish { name, device, sort, on_next_start: how.on_next_start };
    let change = provider.change_device(&vm, &wish, how.change.dry_run).await.map_err(problem)?;
    if let Some(format) = how.change.output {
        document(format, &change)?;
        return Ok(ExitCode::SUCCESS);
    }
    let dry = dry(how.change.dry_run);
    let advice = match change.effect {
        Effect::AfterRestart => "; `virt-steward vm restart` brings it about",
        _ => "",
    };
    let (vm, name, effect) = (vm.name(), &wish.name, change.effect.words());
    print(&format!("virtualmachine.kubevirt.io/{vm} device {name} {past}{dry}: {effect}{advice}\n"))?;
    Ok(ExitCode::SUCCESS)
}
