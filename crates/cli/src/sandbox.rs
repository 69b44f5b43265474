//! `virt-steward sandbox`: a cluster on this machine, with the operator working for it.
//!
//! ```text
//! Sandbox (HTTPS) ◄── kubeconfig ── operator (HTTPS, registered by URL) ◄── Sandbox calls it
//! ```
//!
//! Both run in this process, and know of each other only what a kubeconfig says.

mod agents;
mod compare;
pub mod demo;
mod fault;
mod nodes;
mod simulate;
mod storm;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use ::agent::inventory::{Publisher, Roots};
use ::operator::config::{LogFormat, LogLevel, RegisterMode};
use ::operator::readiness::State;
use ::operator::{Config, Operator};
use anyhow::{Context, Result};
use tokio_util::sync::CancellationToken;

use crate::cli::FAILED;
use crate::cluster::Cluster;
use crate::output::print;
use crate::problem::Problem;
use crate::shutdown;
use crate::style::Style;

/// How long the operator may take until the sandbox calls it.
const PATIENCE: Duration = Duration::from_secs(30);

/// How often it is asked meanwhile.
const INTERVAL: Duration = Duration::from_millis(50);

/// Arguments of `sandbox`.
#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
#[command(after_help = "Examples:
  virt-steward sandbox --demo
  virt-steward sandbox --nodes 10 --vms 500 --kubeconfig-out ./kubeconfig
  virt-steward sandbox --port 6443 --seed 7 --no-operator
  virt-steward sandbox --kubevirt-version 1.6 --vms 3 --kubeconfig-out ./kubeconfig
  virt-steward sandbox --crds ./kubevirt-crds --audit-log ./audit.jsonl
  virt-steward sandbox --demo --exit
  virt-steward sandbox --vms 1 --resize --kubeconfig-out ./kubeconfig
  virt-steward sandbox resize-compare --vms 100
  virt-steward sandbox --seed 7 --fault error:code=500,rate=0.05 --fault watch-drop:events=20,rate=0.5

The API listens on 127.0.0.1 only. Nothing is kept: the cluster is gone when the program ends.")]
#[allow(clippy::struct_excessive_bools, reason = "independent switches of a command line")]
pub struct Args {
    #[command(subcommand)]
    action: Option<Action>,

    /// Simulated nodes
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(0..=10_000))]
    nodes: u32,

    /// Virtual machines that are there from the start
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=100_000))]
    vms: u32,

    /// Port on 127.0.0.1; 0 takes a free one
    #[arg(long, default_value_t = 0)]
    port: u16,

    /// Where to write the kubeconfig (mode 0600); otherwise in a temporary directory
    #[arg(long, value_name = "FILE")]
    kubeconfig_out: Option<PathBuf>,

    /// Decides every id and everything else that is random
    #[arg(long, default_value_t = 1)]
    seed: u64,

    /// Definitions of custom resources to serve in place of the built-in compact ones of the same name: a file, or a directory of YAML and JSON files
    #[arg(long, value_name = "PATH")]
    crds: Option<PathBuf>,

    /// Append an audit.k8s.io/v1 event for every request to this file (mode 0600)
    #[arg(long, value_name = "FILE")]
    audit_log: Option<PathBuf>,

    /// The program virt-steward-hook, run as a process for each sidecar container with its image; otherwise the one beside this program, if there is one
    #[arg(long, value_name = "FILE")]
    hook_binary: Option<PathBuf>,

    /// The release of KubeVirt that is simulated: 1.3 to 1.9, main, or 18862 (main with that pull request)
    #[arg(long, value_name = "VERSION", default_value = "1.9")]
    kubevirt_version: ::sandbox::sim::Release,

    /// What goes wrong once the cluster stands; see `virt-steward sandbox fault add --help`; can be given again
    #[arg(long, value_name = "FAULT")]
    fault: Vec<::sandbox::faults::Fault>,

    /// Resize running VMs in place: the operator does it, with an agent for every node
    #[arg(long, conflicts_with = "no_operator")]
    resize: bool,

    /// Publish what the simulated hosts have, with an agent for every node (`virt-steward devices` shows it)
    #[arg(long)]
    inventory: bool,

    /// Start the API alone
    #[arg(long)]
    no_operator: bool,

    /// Apply the examples, and show each VM before and after admission
    #[arg(long)]
    demo: bool,

    /// End after the demo instead of at ctrl-c; exit status 1 when it did not go as it should
    #[arg(long, requires = "demo")]
    exit: bool,
}

/// What is done to a sandbox that runs, or watched instead of one.
#[derive(Debug, clap::Subcommand)]
enum Action {
    /// Let things go wrong in a running sandbox
    #[command(subcommand)]
    Fault(fault::Action),
    /// Let simulated nodes join another cluster
    Nodes(nodes::Args),
    /// Whole clusters in virtual time, one for each seed
    Simulate(simulate::Args),
    /// Random changes of hotplugged volumes, without and with the guard, side by side
    HotplugStorm(storm::Args),
    /// CPU and memory for running VMs by KubeVirt alone and in place, side by side
    ResizeCompare(compare::Args),
}

/// Starts everything, shows the demo when asked for, waits for the end.
pub async fn run(args: Args) -> Result<ExitCode> {
    match args.action {
        Some(Action::Fault(action)) => return fault::run(action).await,
        Some(Action::Nodes(args)) => return nodes::run(args).await,
        Some(Action::Simulate(args)) => return simulate::run(&args),
        Some(Action::HotplugStorm(args)) => return storm::run(&args),
        Some(Action::ResizeCompare(args)) => return compare::run(args).await,
        None => {}
    }
    let stop = shutdown::token()?;
    // ends with the program
    let temporary = tempfile::tempdir().context("making a temporary directory for the kubeconfig")?;
    let kubeconfig = args.kubeconfig_out.clone().unwrap_or_else(|| temporary.path().join("kubeconfig"));
    let options = ::sandbox::Options {
        port: args.port,
        kubeconfig_out: Some(kubeconfig.clone()),
        seed: args.seed,
        nodes: args.nodes as usize,
        vms: args.vms as usize,
        crds: args.crds.clone(),
        audit_log: args.audit_log.clone(),
        hook_binary: args.hook_binary.clone().or_else(beside_us),
        program_binary: std::env::current_exe().ok(),
        release: args.kubevirt_version,
        kubelet_root: args.resize.then(|| temporary.path().join("kubelet")),
        host_roots: args.inventory.then(|| temporary.path().join("hosts")),
        faults: args.fault.clone(),
    };
    let host_roots = options.host_roots.clone();
    let pods = options.kubelet_root.as_ref().map(|root| root.join("pods"));
    let Some(started) = unless_stopped(&stop, ::sandbox::Sandbox::start(options)).await else {
        return Ok(ExitCode::SUCCESS);
    };
    let sandbox = started.map_err(|error| {
        let remedy = remedy(&error);
        Problem::new("starting the sandbox", format!("{:#}", anyhow::Error::from(error)), remedy)
    })?;
    print(&format!(
        "Sandbox   {} with {} nodes and {} virtual machines\n",
        sandbox.url(),
        args.nodes,
        args.vms
    ))?;
    let agents = async {
        if let Some(pods) = pods {
            agents::start(&kubeconfig, &pods, &stop).await?;
        }
        match host_roots {
            Some(roots) => start_publishers(&kubeconfig, &roots, &stop).await,
            None => Ok(()),
        }
    };
    let outcome = match unless_stopped(&stop, agents).await {
        Some(Ok(())) => inhabit(&args, &kubeconfig, &stop).await,
        Some(Err(error)) => Err(error),
        None => Ok(ExitCode::SUCCESS),
    };
    sandbox.shutdown().await;
    outcome
}

/// What comes of some work, unless the program is told to stop first.
async fn unless_stopped<T>(stop: &CancellationToken, work: impl Future<Output = T>) -> Option<T> {
    tokio::select! {
        biased;
        () = stop.cancelled() => None,
        outcome = work => Some(outcome),
    }
}

/// The sidecar that was built or installed with this program.
fn beside_us() -> Option<PathBuf> {
    let path = std::env::current_exe().ok()?.with_file_name("virt-steward-hook");
    path.is_file().then_some(path)
}

/// What to do when the sandbox does not start.
fn remedy(error: &::sandbox::Error) -> &'static str {
    match error {
        ::sandbox::Error::Definitions { .. } => {
            "give `--crds` a file or directory with CustomResourceDefinitions in YAML or JSON"
        }
        ::sandbox::Error::Audit(_) => "give `--audit-log` a file in a directory that is there and writable",
        _ => "choose another `--port` (0 takes a free one) or another `--kubeconfig-out`",
    }
}

/// The chart brings this definition; the operator watches what it defines.
async fn define_export_jobs(cluster: &Cluster) -> Result<()> {
    let doing = "defining export jobs in the sandbox";
    let text = include_str!("../../../charts/virt-steward/crds/vmexportjobs.yaml");
    let definition: serde_json::Value = serde_saphyr::from_str(text)
        .map_err(|error| Problem::new(doing, error, "report this: it is a defect"))?;
    let path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
    let reply = cluster.send(http::Method::POST, path, "application/json", &definition).await?;
    if reply.status != http::StatusCode::CONFLICT {
        reply.object(doing)?;
    }
    Ok(())
}

/// Runs the operator and the demo in the sandbox.
async fn inhabit(args: &Args, kubeconfig: &Path, stop: &CancellationToken) -> Result<ExitCode> {
    let cluster = Cluster::connect(Some(kubeconfig), None).await?;
    let prepared = async {
        // before the operator starts, so that its first look at KubeVirt shows it
        demo::prepare(&cluster).await?;
        if args.no_operator { Ok(()) } else { define_export_jobs(&cluster).await }
    };
    match unless_stopped(stop, prepared).await {
        Some(outcome) => outcome?,
        None => return Ok(ExitCode::SUCCESS),
    }
    let configure = |config: &mut Config| {
        config.resize.enabled = args.resize;
        config.resize.in_place = args.resize;
        config.resize.declare_memory = args.resize;
    };
    let operator = if args.no_operator { None } else { start_operator(kubeconfig, configure, stop).await? };
    if !args.no_operator && operator.is_none() {
        return Ok(ExitCode::SUCCESS);
    }
    if let Some(operator) = &operator {
        print(&format!("Operator  https://{}\n", operator.address))?;
    }
    let mut status = ExitCode::SUCCESS;
    if args.demo {
        let demo = demo::run(&cluster, operator.is_some(), Style::of_stdout());
        let as_expected = tokio::select! {
            as_expected = demo => as_expected?,
            () = stop.cancelled() => false,
        };
        if args.exit && !as_expected {
            eprintln!("error: the demo did not go as it should, see above");
            status = ExitCode::from(FAILED);
        }
    }
    if !args.exit && !stop.is_cancelled() {
        print(&format!(
            "\nStays up until ctrl-c. In another terminal:\n  export KUBECONFIG={}\n  kubectl get vms\n",
            kubeconfig.display()
        ))?;
        stop.cancelled().await;
    }
    if let Some(operator) = operator {
        operator.end().await?;
    }
    Ok(status)
}

/// The definition of `NodeInventory`, as the chart has it.
const NODE_INVENTORIES: &str = include_str!("../../../charts/virt-steward/crds/nodeinventories.yaml");

/// An agent for every node that publishes what is below its root.
async fn start_publishers(kubeconfig: &Path, roots: &Path, stop: &CancellationToken) -> Result<()> {
    let cluster = Cluster::connect(Some(kubeconfig), None).await?;
    let doing = "publishing what the sandbox's nodes have";
    let definition: serde_json::Value = serde_saphyr::from_str(NODE_INVENTORIES)
        .map_err(|error| Problem::new(doing, error, "report this as a defect"))?;
    let path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
    let reply = cluster.send(http::Method::POST, path, "application/json", &definition).await?;
    reply.object("defining NodeInventory")?;
    let entries = std::fs::read_dir(roots).context("listing the simulated hosts")?;
    for entry in entries.flatten() {
        let node = entry.file_name().to_string_lossy().into_owned();
        let publisher = Publisher::new(cluster.client(), node, Roots::below(&entry.path()));
        publisher.once().await.map_err(|error| Problem::new(doing, error, "report this as a defect"))?;
        tokio::spawn(publisher.run(stop.clone()));
    }
    Ok(())
}

/// An operator that runs.
struct Running {
    address: std::net::SocketAddr,
    stop: CancellationToken,
    serving: tokio::task::JoinHandle<()>,
}

impl Running {
    /// Stops it in order, so that its webhook configurations are gone from the sandbox.
    async fn end(self) -> Result<()> {
        self.stop.cancel();
        self.serving.await.context("stopping the operator")
    }
}

/// Starts the operator with nothing but a kubeconfig, and waits until the API server calls it. `None`: the program is
/// told to stop first.
async fn start_operator(
    kubeconfig: &Path,
    configure: impl FnOnce(&mut Config),
    told: &CancellationToken,
) -> Result<Option<Running>> {
    let doing = "starting the operator in the sandbox";
    let mut config: Config = serde_saphyr::from_str(demo::CONFIG)
        .map_err(|error| Problem::new(doing, error, "report this as a defect"))?;
    config.kubernetes.kubeconfig = Some(kubeconfig.to_path_buf());
    configure(&mut config);
    config.exports.enabled = true;
    config.register.mode = RegisterMode::Url;
    config.server.port = 0;
    config.telemetry.metrics_bind_address = "0".into();
    config.telemetry.log_level = LogLevel::Error;
    config.telemetry.log_format = LogFormat::Text;
    ::operator::telemetry::logs::start(&config.telemetry);
    let Some(started) = unless_stopped(told, Operator::start(config)).await else { return Ok(None) };
    let operator = started.map_err(|error| {
        Problem::new(doing, error, "start the sandbox with `--no-operator` and the operator beside it")
    })?;
    let address = operator.address();
    let readiness = operator.readiness();
    let stop = CancellationToken::new();
    let serving = tokio::spawn(operator.serve(stop.clone()));
    let end = Instant::now() + PATIENCE;
    loop {
        let report = readiness.report();
        if report.ready && report.parts.get("registration") == Some(&State::Ok) {
            return Ok(Some(Running { address, stop, serving }));
        }
        if told.is_cancelled() {
            Running { address, stop, serving }.end().await?;
            return Ok(None);
        }
        if Instant::now() > end {
            let remedy = "start the sandbox with `--no-operator` and the operator beside it";
            return Err(Problem::new(doing, report.text(true), remedy).into());
        }
        tokio::time::sleep(INTERVAL).await;
    }
}
