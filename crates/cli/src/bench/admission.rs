//! `virt-steward bench admission`: an HTTPS load tool for admission webhooks.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;

use super::child;
use super::connection::{Target, Trust};
use super::load::{self, Plan};
use super::process;
use super::report::Report;
use super::review::Review;
use crate::cli::FAILED;
use crate::documents;
use crate::output::print;
use crate::problem::Problem;

/// Arguments of `bench admission`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  virt-steward bench admission --self --rate 2000
  virt-steward bench admission --url https://127.0.0.1:8443/mutate --ca ca.crt --rate 2000
  virt-steward bench admission --url https://127.0.0.1:8443/mutate --insecure --connections 4
  virt-steward bench admission --url https://127.0.0.1:8443 --insecure --pid 4242 --vm vm.yaml -o json

With `--rate` the loop is open: requests are sent at that rate whether or not earlier ones were
answered, and a latency counts from the time at which its request was meant to be sent. Without,
the loop is closed: each connection sends the next request when the last was answered.

Exit status: 0 every request was answered, 1 usage error or a request without a valid answer.")]
pub struct Args {
    /// URL of the webhook; the path is /mutate when it has none
    #[arg(long, required_unless_present = "own")]
    url: Option<String>,

    /// Start an operator with fixed facts as a child process, and measure that
    #[arg(long = "self", conflicts_with_all = ["url", "ca", "insecure", "pid", "allow_remote"])]
    own: bool,

    /// PEM file with the certificate authority of the service
    #[arg(long, value_name = "FILE", required_unless_present_any = ["insecure", "own"])]
    ca: Option<PathBuf>,

    /// Accept any certificate
    #[arg(long, conflicts_with = "ca")]
    insecure: bool,

    /// Requests per second (open loop)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    rate: Option<u32>,

    /// Connections that are kept open
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=1000))]
    connections: u16,

    /// How long to send requests, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 10, value_parser = clap::value_parser!(u16).range(1..=600))]
    duration: u16,

    /// The most requests to send
    #[arg(long, value_name = "N", default_value_t = 10_000_000, value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
    requests: u64,

    /// How long one answer may take, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 10, value_parser = clap::value_parser!(u16).range(1..=60))]
    timeout: u16,

    /// File with the VirtualMachine to send; otherwise one with three features
    #[arg(long, value_name = "FILE")]
    vm: Option<PathBuf>,

    /// Process of the server, to report its CPU time and memory
    #[arg(long)]
    pid: Option<u32>,

    /// Load a service on another machine
    #[arg(long)]
    allow_remote: bool,

    /// What to print
    #[arg(short, long, value_enum, default_value = "text")]
    output: Output,
}

/// What `bench` prints.
#[derive(Clone, Copy, Debug, Eq, PartialEq, clap::ValueEnum)]
enum Output {
    /// For people
    Text,
    /// For programs
    Json,
}

/// Loads the service and prints what came back.
pub async fn run(args: Args) -> Result<ExitCode> {
    let review = review(args.vm.as_deref())?;
    let report = if let Some(url) = &args.url {
        let trust = args.ca.as_deref().map_or(Trust::Anyone, Trust::Authority);
        let target = Target::resolve(url, &trust, args.allow_remote).await?;
        measure(&args, url, &target, &review, args.pid).await?
    } else {
        let operator = child::Operator::start().await?;
        let report = measure(&args, &operator.url, &operator.target, &review, Some(operator.pid())).await;
        operator.end().await;
        report?
    };
    match args.output {
        Output::Text => print(&report.text())?,
        Output::Json => print(&format!("{}\n", serde_json::to_string_pretty(&report)?))?,
    }
    Ok(if report.failed() == 0 { ExitCode::SUCCESS } else { ExitCode::from(FAILED) })
}

async fn measure(
    args: &Args,
    url: &str,
    target: &Target,
    review: &Review,
    pid: Option<u32>,
) -> Result<Report> {
    let plan = Plan {
        rate: args.rate,
        connections: args.connections.into(),
        duration: Duration::from_secs(args.duration.into()),
        max_requests: args.requests,
        timeout: Duration::from_secs(args.timeout.into()),
    };
    let before = pid.map(process::usage).transpose()?;
    let outcome = load::run(plan, target, review).await?;
    let after = pid.map(process::usage).transpose()?;
    let usage = pid.zip(before).zip(after).map(|((pid, before), after)| (pid, before, after));
    Ok(Report::new(url, plan, &outcome, usage))
}

fn review(file: Option<&std::path::Path>) -> Result<Review> {
    let (objects, origin) = match file {
        Some(path) => (documents::read(path)?, path.display().to_string()),
        None => (
            documents::parse(
                include_str!("../../../../examples/vms/gpu-cluster-node.yaml"),
                "gpu-cluster-node.yaml",
            )?,
            "gpu-cluster-node.yaml".into(),
        ),
    };
    let vm = objects.into_iter().find(|object| object["kind"] == "VirtualMachine").ok_or_else(|| {
        let doing = format!("looking for a VirtualMachine in `{origin}`");
        Problem::new(doing, "there is none", "give a file with one with `--vm`")
    })?;
    let namespace = vm["metadata"]["namespace"].as_str().unwrap_or("default").to_owned();
    Ok(Review::of_creation(&vm, &namespace))
}
