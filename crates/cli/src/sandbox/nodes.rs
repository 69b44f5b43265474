//! `virt-steward sandbox nodes`: simulated nodes that join another cluster.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;

use ::sandbox::sim::{Nodes, SimConfig, connect};
use anyhow::{Context, Result};

use crate::output::print;
use crate::problem::Problem;
use crate::shutdown;

/// The port that virt-api calls (`--console-server-port`).
const HANDLER_PORT: u16 = 8186;

/// Arguments of `sandbox nodes`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  virt-steward sandbox nodes --kubeconfig ./kubeconfig
  virt-steward sandbox nodes --kubeconfig ./kubeconfig --nodes 50 --cpus 64 --memory 256
  virt-steward sandbox nodes --kubeconfig ./kubeconfig --kubelet-root /tmp/kubelet

Kubelets, virt-handlers and the guests of VMs are simulated; scheduler, virt-controller and virt-api are the cluster's.
The kubeconfig needs the rights to impersonate system:node:* and virt-handler's account. Nodes are named node01 and so
on; one of that name that is not simulated is never touched. The Node objects stay when the program ends.")]
pub struct Args {
    /// The kubeconfig of the cluster that the nodes join
    #[arg(long, value_name = "FILE", env = "KUBECONFIG")]
    kubeconfig: PathBuf,

    /// How many nodes
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    nodes: u32,

    /// CPUs of each node
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    cpus: u32,

    /// Memory of each node, in GiB
    #[arg(long, value_name = "GIB", default_value_t = 2048, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    memory: u32,

    /// Let launchers answer on unix sockets below DIR/pods, for `virt-steward agent --pods-dir DIR/pods`
    #[arg(long, value_name = "DIR")]
    kubelet_root: Option<PathBuf>,

    /// Where the cluster's virt-api reaches the nodes' virt-handlers, for pause, console and the like
    #[arg(long, value_name = "ADDRESS", value_parser = handler_address)]
    handler_address: Option<SocketAddr>,

    /// The program that stands for the image `virt-steward-hook`
    #[arg(long, value_name = "FILE")]
    hook_binary: Option<PathBuf>,

    /// Decides what is random about the nodes
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// An address with virt-handler's port where none is given.
fn handler_address(text: &str) -> Result<SocketAddr, String> {
    let with_port = text.parse::<SocketAddr>();
    let alone = || text.parse::<IpAddr>().map(|address| SocketAddr::new(address, HANDLER_PORT));
    with_port
        .or_else(|_| alone())
        .map_err(|_| format!("`{text}` is no IP address; write 10.0.0.5 or 10.0.0.5:8186"))
}

/// Joins the cluster and stays until ctrl-c.
pub async fn run(args: Args) -> Result<ExitCode> {
    let stop = shutdown::token()?;
    let path = args.kubeconfig.display().to_string();
    let text = std::fs::read_to_string(&args.kubeconfig)
        .with_context(|| format!("reading the kubeconfig {path}"))?;
    let doing = format!("joining the cluster of {path}");
    let remedy =
        "check that the cluster runs KubeVirt, and that the user may impersonate nodes and virt-handler";
    let problem = |error: ::sandbox::sim::SimError| {
        Problem::new(doing.clone(), format!("{:#}", anyhow::Error::from(error)), remedy)
    };
    let client = connect(&text).await.map_err(problem)?;
    let config = SimConfig {
        nodes: args.nodes,
        seed: args.seed,
        node_cpus: args.cpus,
        node_memory_gib: args.memory,
        kubelet_root: args.kubelet_root,
        handler_address: args.handler_address,
        hook_binary: args.hook_binary,
        ..SimConfig::default()
    };
    let nodes = tokio::select! {
        nodes = Nodes::start(client, config) => nodes.map_err(problem)?,
        () = stop.cancelled() => return Ok(ExitCode::SUCCESS),
    };
    let names = nodes.names();
    let (first, last) = (names.first().map_or("", String::as_str), names.last().map_or("", String::as_str));
    print(&format!("Nodes     {first} to {last}, until ctrl-c\n"))?;
    stop.cancelled().await;
    drop(nodes);
    Ok(ExitCode::SUCCESS)
}
