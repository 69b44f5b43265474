//! `virt-steward agent`: the process on every node that plugs guests.

use std::path::PathBuf;
use std::process::ExitCode;

use ::agent::inventory::{self, Publisher, Roots};
use ::agent::{Agent, Settings};
use anyhow::Result;

use crate::cluster::Cluster;
use crate::problem::Problem;
use crate::shutdown;

/// Arguments of `agent`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  virt-steward agent --node \"$NODE_NAME\" --pods-dir /pods
  virt-steward agent --node node01 --kubeconfig sandbox.yaml --pods-dir /tmp/sandbox/pods
  virt-steward agent --node \"$NODE_NAME\" --inventory only
  virt-steward agent --node here --inventory print

It opens no port. It needs write access to launchers' sockets: root, or uid 107. For the inventory alone
(PCI devices, CPU vendor, nested virtualisation, as NodeInventory) it needs no rights on the host.")]
pub struct Args {
    /// The name of the node whose VMs are served
    #[arg(long, env = "NODE_NAME")]
    node: String,
    /// kubelet's directory of pods, where it is mounted
    #[arg(long, env = "PODS_DIR", default_value = "/var/lib/kubelet/pods")]
    pods_dir: PathBuf,
    /// Publish what the node has for VMs
    #[arg(long, value_enum, value_name = "HOW")]
    inventory: Option<Inventory>,
    /// Where the node's /sys and /proc are
    #[arg(long, value_name = "DIR", default_value = "/")]
    host_root: PathBuf,
    /// A kubeconfig file; without one the pod's own account, or what kubectl would use
    #[arg(long)]
    kubeconfig: Option<PathBuf>,
    /// A context in it
    #[arg(long)]
    context: Option<String>,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq, clap::ValueEnum)]
enum Inventory {
    /// Beside serving VMs
    Also,
    /// And serve no VMs
    Only,
    /// Print it as YAML, and end
    Print,
}

/// Runs the agent until it is told to stop.
pub async fn run(args: Args) -> Result<ExitCode> {
    let roots = Roots::below(&args.host_root);
    if args.inventory == Some(Inventory::Print) {
        let host = inventory::read(&args.node, &roots).map_err(|error| {
            let doing = format!("reading the devices below `{}`", roots.sys.display());
            Problem::new(doing, error, "name the directory that has the node's /sys with `--host-root`")
        })?;
        crate::output::print(&crate::diff::yaml(&host.to_object(""))?)?;
        return Ok(ExitCode::SUCCESS);
    }
    let serves = args.inventory != Some(Inventory::Only);
    if serves && !args.pods_dir.is_dir() {
        return Err(Problem::new(
            format!("opening `{}`", args.pods_dir.display()),
            "there is no such directory",
            "mount kubelet's directory of pods, and name it with `--pods-dir`",
        )
        .into());
    }
    let cluster = Cluster::connect(args.kubeconfig.as_deref(), args.context).await?;
    ::operator::telemetry::logs::start(&::operator::config::Telemetry::default());
    let stop = shutdown::token()?;
    let publisher =
        args.inventory.map(|_| Publisher::new(cluster.client(), &args.node, roots).run(stop.clone()));
    let publishing = publisher.map(tokio::spawn);
    if serves {
        let settings = Settings { node: args.node, pods: args.pods_dir };
        Agent::new(cluster.client(), settings).run(stop.clone()).await;
    }
    if let Some(publishing) = publishing {
        // ends with the same token
        drop(publishing.await);
    }
    Ok(ExitCode::SUCCESS)
}
