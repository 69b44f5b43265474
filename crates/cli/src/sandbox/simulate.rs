//! `virt-steward sandbox simulate`: whole clusters in virtual time, one for each seed, and what became
//! of their virtual machines.

use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use ::export::sums::{hex, sha256};
use ::sandbox::faults::Fault;
use ::sandbox::{Options, Simulation, World};
use anyhow::Result;
use serde_json::{Value, json};

use crate::cli::FAILED;
use crate::output::print;
use crate::problem::Problem;
use crate::table;

/// All VMs of the simulation.
const VMS: &str = "/apis/kubevirt.io/v1/virtualmachines";

/// Arguments of `sandbox simulate`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  virt-steward sandbox simulate --seed 7 --vms 5
  virt-steward sandbox simulate --seeds 100 --vms 3 --fault error:code=500,rate=0.05 --fault watch-drop:events=20,rate=0.5
  virt-steward sandbox simulate --seed 7 --vms 1 --pass 3600 --audit-log ./audit.jsonl

Nobody waits: an hour takes seconds. The same seed gives the same requests in the same order; DIGEST is the
SHA-256 of the audit log, so two runs of a seed can be compared. The operator is not started. Exit status 1
when the VMs of a seed were not ready in time.")]
pub struct Args {
    /// The first seed
    #[arg(long, default_value_t = 1)]
    seed: u64,

    /// How many seeds, one after the other
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    seeds: u64,

    /// Simulated nodes
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=1000))]
    nodes: u32,

    /// Virtual machines
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(0..=10_000))]
    vms: u32,

    /// What goes wrong once the cluster stands; see `virt-steward sandbox fault add --help`; can be given again
    #[arg(long, value_name = "FAULT")]
    fault: Vec<Fault>,

    /// Virtual seconds within which all VMs have to be ready
    #[arg(long, value_name = "SECONDS", default_value_t = 600, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    limit: u64,

    /// Virtual seconds that pass after that
    #[arg(long, value_name = "SECONDS", default_value_t = 0, value_parser = clap::value_parser!(u64).range(0..=604_800))]
    pass: u64,

    /// Definitions of custom resources to serve in place of the built-in compact ones
    #[arg(long, value_name = "PATH")]
    crds: Option<PathBuf>,

    /// Write an audit.k8s.io/v1 event for every request to this file; with one seed only
    #[arg(long, value_name = "FILE")]
    audit_log: Option<PathBuf>,

    /// Output: table or json
    #[arg(short, long, default_value = "table", value_parser = ["table", "json"])]
    output: String,
}

/// What became of one seed.
struct Outcome {
    seed: u64,
    ready: bool,
    /// Virtual time until all VMs were ready, or until nobody waited any longer.
    waited: Duration,
    requests: usize,
    faults: u64,
    log: Vec<u8>,
}

/// Simulates every seed, on as many threads as there are processors.
pub fn run(args: &Args) -> Result<ExitCode> {
    if args.audit_log.is_some() && args.seeds > 1 {
        let why = format!("{} seeds would write to one file", args.seeds);
        let remedy = "give `--audit-log` with `--seeds 1`, and `--seed` for the one to look at";
        return Err(Problem::new("writing the audit log", why, remedy).into());
    }
    let (next, results) = (AtomicU64::new(0), Mutex::new(Vec::new()));
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= args.seeds {
                        return;
                    }
                    let outcome = simulate(args, args.seed.wrapping_add(number));
                    let mut results = results.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                    results.push((number, outcome));
                }
            });
        }
    });
    let mut results = results.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    results.sort_by_key(|(number, _)| *number);
    let mut outcomes = Vec::new();
    for (_, outcome) in results {
        outcomes.push(outcome.map_err(|error| {
            let remedy = "give `--crds` a file or directory with CustomResourceDefinitions in YAML or JSON";
            Problem::new("starting the simulation", format!("{:#}", anyhow::Error::from(error)), remedy)
        })?);
    }
    if let (Some(path), [outcome]) = (&args.audit_log, outcomes.as_slice()) {
        write(path, &outcome.log).map_err(|error| {
            let doing = format!("writing the audit log to {}", path.display());
            Problem::new(doing, error.to_string(), "name a file in a directory that is there and writable")
        })?;
    }
    if args.output == "json" {
        let list: Vec<Value> = outcomes.iter().map(Outcome::to_json).collect();
        print(&format!("{}\n", serde_json::to_string_pretty(&list)?))?;
    } else {
        let head = ["SEED", "READY", "AFTER", "REQUESTS", "FAULTS", "DIGEST"];
        let mut rows = vec![head.map(str::to_owned).to_vec()];
        rows.extend(outcomes.iter().map(Outcome::row));
        print(&table::render(&rows))?;
    }
    let failed: Vec<String> =
        outcomes.iter().filter(|one| !one.ready).map(|one| one.seed.to_string()).collect();
    if failed.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    eprintln!(
        "error: not all VMs were ready within {} s of virtual time with seed {}",
        args.limit,
        failed.join(", ")
    );
    Ok(ExitCode::from(FAILED))
}

/// What a simulated user sent is shown to the owner of the file alone.
fn write(path: &Path, log: &[u8]) -> std::io::Result<()> {
    let mut options = std::fs::OpenOptions::new();
    options.create(true).write(true).truncate(true).mode(0o600).open(path)?.write_all(log)
}

fn simulate(args: &Args, seed: u64) -> Result<Outcome, ::sandbox::Error> {
    let options = Options {
        seed,
        nodes: args.nodes as usize,
        vms: args.vms as usize,
        crds: args.crds.clone(),
        faults: args.fault.clone(),
        ..Options::default()
    };
    Simulation::of(options).run(async |world| {
        let limit = Duration::from_secs(args.limit);
        let ready = world.until("all VMs are ready", limit, async || all_ready(world, args.vms).await).await;
        let waited = world.elapsed();
        world.pass(Duration::from_secs(args.pass)).await;
        let log = world.audit();
        let requests = log.split(|byte| *byte == b'\n').count().saturating_sub(1);
        let faults = world.sandbox().api().faults.happened();
        Outcome { seed, ready: ready.is_ok(), waited, requests, faults, log }
    })
}

async fn all_ready(world: &World, count: u32) -> bool {
    // A fault may hit this question as well.
    let list = world.get(VMS).await.unwrap_or_default();
    let vms = list["items"].as_array().map(Vec::as_slice).unwrap_or_default();
    vms.iter().filter(|vm| vm["status"]["ready"] == true).count() == count as usize
}

impl Outcome {
    fn digest(&self) -> String {
        hex(&sha256(&self.log))
    }

    fn row(&self) -> Vec<String> {
        let short = self.digest().get(..16).unwrap_or_default().to_owned();
        let ready = if self.ready { "yes" } else { "no" };
        let after = format!("{:.1} s", self.waited.as_secs_f64());
        vec![
            self.seed.to_string(),
            ready.into(),
            after,
            self.requests.to_string(),
            self.faults.to_string(),
            short,
        ]
    }

    fn to_json(&self) -> Value {
        json!({"seed": self.seed, "ready": self.ready, "seconds": self.waited.as_secs_f64(),
            "requests": self.requests, "faults": self.faults, "auditSha256": self.digest()})
    }
}
