//! `virt-steward devices`: which devices a cluster has for VMs, and how to permit one.

mod permit;
mod view;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use http::Method;
use kubevirt::inventory::{COLLECTION, Host};
use serde_json::Value;

use crate::cluster::Cluster;
use crate::output::print;
use crate::problem::Problem;
use crate::table;
use permit::{Device, patch};
use view::{Seen, rows};

const HARVESTER: &str = "/apis/devices.harvesterhci.io/v1beta1";

/// Arguments of `devices`.
#[derive(Debug, clap::Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "Examples:
  virt-steward devices
  virt-steward devices --node node01 -o json
  virt-steward devices permit 0000:01:00.0 --node node01
  virt-steward devices permit --selector 10DE:1EB8 --resource nvidia.com/TU104GL_Tesla_T4 --apply

What is there comes from the nodes' device plugins, the permitted devices of the KubeVirt CR, what node agents
published (NodeInventory), and Harvester's PCIDevices; what is used comes from running VirtualMachineInstances."
)]
pub struct Args {
    #[command(subcommand)]
    verb: Option<Verb>,

    /// Only this node
    #[arg(long, value_name = "NAME")]
    node: Option<String>,

    /// What to print
    #[arg(short, long, value_enum, default_value = "table")]
    output: Output,

    #[command(flatten)]
    target: Target,
}

#[derive(Debug, clap::Args)]
struct Target {
    /// Kubeconfig file
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,

    /// Kubeconfig context
    #[arg(long, value_name = "NAME")]
    context: Option<String>,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq, clap::ValueEnum)]
enum Output {
    /// One line per node and resource
    Table,
    /// The same with all users
    Wide,
    /// One JSON list
    Json,
    /// One YAML list
    Yaml,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// Print, or apply, the change of the KubeVirt CR that permits a device
    Permit(PermitArgs),
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  virt-steward devices permit 0000:01:00.0 --node node01
  virt-steward devices permit --selector 10DE:1EB8 --resource nvidia.com/TU104GL_Tesla_T4
  virt-steward devices permit --selector 10DE:1EB8 --resource nvidia.com/TU104GL_Tesla_T4 --external --apply

The change is an RFC 6902 patch. It tests the list that it was made for, so it fails when somebody was faster.
KubeVirt selects devices by vendor and product, so all devices of the kind are permitted on all nodes.")]
struct PermitArgs {
    /// PCI address, looked up among what node agents found and Harvester's PCIDevices
    #[arg(value_name = "ADDRESS", required_unless_present = "selector")]
    address: Option<String>,

    /// The node that has the address, when several do
    #[arg(long, value_name = "NAME")]
    node: Option<String>,

    /// Vendor and product, for clusters without an inventory
    #[arg(long, value_name = "VENDOR:PRODUCT", requires = "resource", conflicts_with = "address")]
    selector: Option<String>,

    /// The name that VMs ask for
    #[arg(long, value_name = "RESOURCE")]
    resource: Option<String>,

    /// A device plugin of the vendor hands the device out, not KubeVirt's own
    #[arg(long)]
    external: bool,

    /// Make the change instead of printing it
    #[arg(long)]
    apply: bool,

    #[command(flatten)]
    target: Target,
}

/// Runs the verb.
pub async fn run(args: Args) -> Result<ExitCode> {
    match args.verb {
        None => show(&args).await,
        Some(Verb::Permit(args)) => permit(&args).await,
    }
}

async fn observe(cluster: &Cluster) -> Result<Seen> {
    let kubevirts = cluster.list("/apis/kubevirt.io/v1/kubevirts").await?.unwrap_or_default();
    Ok(Seen {
        nodes: cluster.list("/api/v1/nodes").await?.unwrap_or_default(),
        kubevirt: kubevirts.into_iter().next(),
        pci_devices: cluster.list(&format!("{HARVESTER}/pcidevices")).await?.unwrap_or_default(),
        claims: cluster.list(&format!("{HARVESTER}/pcideviceclaims")).await?.unwrap_or_default(),
        machines: cluster.list("/apis/kubevirt.io/v1/virtualmachineinstances").await?.unwrap_or_default(),
        hosts: cluster
            .list(COLLECTION)
            .await?
            .unwrap_or_default()
            .iter()
            .filter_map(Host::from_object)
            .collect(),
    })
}

async fn show(args: &Args) -> Result<ExitCode> {
    let cluster = Cluster::connect(args.target.kubeconfig.as_deref(), args.target.context.clone()).await?;
    let seen = observe(&cluster).await?;
    if let Some(node) = &args.node
        && !seen.nodes.iter().any(|known| known["metadata"]["name"] == node.as_str())
    {
        let wrong = format!("there is no node `{node}`");
        return Err(Problem::new("listing devices", wrong, "see `kubectl get nodes`").into());
    }
    let mut rows = rows(&seen);
    rows.retain(|row| args.node.as_ref().is_none_or(|node| row.node == *node));
    print(&match args.output {
        Output::Json => format!("{:#}\n", serde_json::to_value(&rows)?),
        Output::Yaml => crate::diff::yaml(&serde_json::to_value(&rows)?)?,
        Output::Table | Output::Wide if rows.is_empty() => {
            "no devices: nothing is permitted in the KubeVirt CR, and no node has more than CPUs and memory\n"
                .to_owned()
        }
        Output::Table => table::render(&view::table(&rows, false)),
        Output::Wide => table::render(&view::table(&rows, true)),
    })?;
    Ok(ExitCode::SUCCESS)
}

async fn permit(args: &PermitArgs) -> Result<ExitCode> {
    let doing = "permitting a device";
    let cluster = Cluster::connect(args.target.kubeconfig.as_deref(), args.target.context.clone()).await?;
    let seen = observe(&cluster).await?;
    let Some(kubevirt) = &seen.kubevirt else {
        return Err(Problem::new(doing, "there is no KubeVirt object", "install KubeVirt first").into());
    };
    let remedy =
        "give --selector VENDOR:PRODUCT and --resource NAME, or an address of `virt-steward devices`";
    let device = chosen(args, &seen).map_err(|wrong| Problem::new(doing, wrong, remedy))?;
    let change = match patch(kubevirt, &device) {
        Ok(change) => change,
        Err(reason) => {
            print(&format!("{reason}\n"))?;
            return Ok(ExitCode::SUCCESS);
        }
    };
    let name = |field: &str| kubevirt["metadata"][field].as_str().unwrap_or("kubevirt").to_owned();
    let (namespace, name) = (name("namespace"), name("name"));
    if args.apply {
        let path = format!("/apis/kubevirt.io/v1/namespaces/{namespace}/kubevirts/{name}");
        let reply = cluster.send(Method::PATCH, &path, "application/json-patch+json", &change).await?;
        reply.object("changing the KubeVirt object")?;
        print(&format!(
            "kubevirt.kubevirt.io/{name} patched: {} is permitted as {}\n",
            device.selector, device.resource
        ))?;
    } else {
        print(&format!("kubectl patch kubevirt {name} -n {namespace} --type json -p '{change}'\n"))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The device that is meant: described, or at an address that Harvester or an agent knows.
fn chosen(args: &PermitArgs, seen: &Seen) -> Result<Device, String> {
    let resource = args.resource.as_deref();
    let Some(address) = &args.address else {
        let selector = args.selector.as_deref().unwrap_or_default();
        return Device::given(selector, resource.unwrap_or_default(), args.external);
    };
    let node = args.node.as_deref();
    if !seen.pci_devices.is_empty() {
        return Device::find(&seen.pci_devices, address, node, resource);
    }
    if seen.hosts.is_empty() {
        return Err(
            "nothing is known about addresses: there are neither NodeInventories nor PCIDevices".to_owned()
        );
    }
    let (device, notes) = Device::found(&seen.hosts, address, node, resource)?;
    for note in notes {
        eprintln!("note: {note}");
    }
    Ok(Device { external: args.external, ..device })
}

/// The text of a field of an object.
fn text<'v>(object: &'v Value, section: &str, field: &str) -> &'v str {
    object[section][field].as_str().unwrap_or_default()
}
