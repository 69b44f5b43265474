//! `virt-steward agent`: the process on every node that plugs guests.

use std::path::PathBuf;
use std::process::ExitCode;

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

It opens no port. It needs write access to launchers' sockets: root, or uid 107.")]
pub struct Args {
    /// The name of the node whose VMs are served
    #[arg(long, env = "NODE_NAME")]
    node: String,
    /// kubelet's directory of pods, where it is mounted
    #[arg(long, env = "PODS_DIR", default_value = "/var/lib/kubelet/pods")]
    pods_dir: PathBuf,
    /// A kubeconfig file; without one the pod's own account, or what kubectl would use
    #[arg(long)]
    kubeconfig: Option<PathBuf>,
    /// A context in it
    #[arg(long)]
    context: Option<String>,
}

/// Runs the agent until it is told to stop.
pub async fn run(args: Args) -> Result<ExitCode> {
    if !args.pods_dir.is_dir() {
        return Err(Problem::new(
            format!("opening `{}`", args.pods_dir.display()),
            "there is no such directory",
            "mount kubelet's directory of pods, and name it with `--pods-dir`",
        )
        .into());
    }
    let cluster = Cluster::connect(args.kubeconfig.as_deref(), args.context).await?;
    ::operator::telemetry::logs::start(&::operator::config::Telemetry::default());
    let settings = Settings { node: args.node, pods: args.pods_dir };
    Agent::new(cluster.client(), settings).run(shutdown::token()?).await;
    Ok(ExitCode::SUCCESS)
}
