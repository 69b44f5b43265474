//! `virt-steward sandbox resize-compare`: the same change of CPU and memory by KubeVirt alone and in
//! place, each in a cluster of its own, one after the other.

mod audit;
mod side;

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use serde::Serialize;

use crate::cli::FAILED;
use crate::output::print;
use crate::presented::{Document, document};
use crate::shutdown;
use crate::table;
use side::Side;

/// Arguments of `sandbox resize-compare`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  virt-steward sandbox resize-compare
  virt-steward sandbox resize-compare --vms 20 --stuck 5 -o json
  virt-steward sandbox resize-compare --vms 500 --stuck 0 --only in-place

Every VM goes from 2 sockets and 1Gi to 4 and 2Gi. VMs that cannot migrate have a bridge on the pod network.
KubeVirt has the update methods LiveMigrate and Evict. Writes are counted in the audit log of the API server.
Exit status 1 when a VM was migrated or restarted in place, did not get there, or had two writes of the
operator in flight at once.")]
pub struct Args {
    /// VMs that can migrate
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=5000))]
    vms: u32,

    /// VMs that cannot migrate
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(0..=500))]
    stuck: u32,

    /// One side alone
    #[arg(long, value_enum)]
    only: Option<Side>,

    /// Simulated nodes
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(2..=1000))]
    nodes: u32,

    /// Decides every id and everything else that is random
    #[arg(long, default_value_t = 1)]
    seed: u64,

    /// How long one side may take: 90s, 15m
    #[arg(long, default_value = "15m", value_parser = crate::connection::duration)]
    timeout: Duration,

    /// Form of the answer
    #[arg(short, long, value_enum)]
    output: Option<Document>,
}

/// What became of one side.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct Tally {
    /// VMs that can migrate and have the new size.
    resized: usize,
    /// Migrations of them.
    migrations: usize,
    /// VMs that cannot migrate and have the new size.
    stuck_resized: usize,
    /// Of those, VMs that were shut down and started again.
    restarted: usize,
    /// Of those, VMs that wait for their owner to restart them.
    waiting_for_restart: usize,
    /// Writes that the API server has carried out, but for Events and heartbeats.
    writes: usize,
    /// Events.
    events: usize,
    /// Writes of one resize.
    writes_per_resize: f64,
    /// Writes of the operator for one VM that were in flight at once, at the most.
    our_writes_in_flight_per_vm: usize,
    /// Until the median VM has the new size, seconds.
    p50_seconds: f64,
    /// Until the last one has it, seconds.
    last_seconds: f64,
}

/// Runs both sides and prints what became of them.
pub async fn run(args: Args) -> Result<ExitCode> {
    let stop = shutdown::token()?;
    let mut tallies = Vec::new();
    for side in [Side::Stock, Side::InPlace] {
        if args.only.is_some_and(|only| only != side) {
            continue;
        }
        eprintln!("{}", side.title());
        let tally = tokio::select! {
            tally = side::run(side, &args) => tally?,
            () = stop.cancelled() => return Ok(ExitCode::from(FAILED)),
        };
        tallies.push((side, tally));
    }
    match args.output {
        Some(format) => {
            let all: serde_json::Map<String, serde_json::Value> = tallies
                .iter()
                .map(|(side, tally)| Ok((side.key().to_owned(), serde_json::to_value(tally)?)))
                .collect::<Result<_>>()?;
            document(format, &all)?;
        }
        None => print(&table::render(&rows(&tallies)))?,
    }
    let failed = tallies.iter().any(|(side, tally)| *side == Side::InPlace && !tally.is_as_promised(&args));
    Ok(if failed { ExitCode::from(FAILED) } else { ExitCode::SUCCESS })
}

impl Tally {
    /// What in-place resize promises.
    fn is_as_promised(&self, args: &Args) -> bool {
        let all = self.resized == args.vms as usize && self.stuck_resized == args.stuck as usize;
        let quiet = self.migrations + self.restarted + self.waiting_for_restart == 0;
        all && quiet && self.our_writes_in_flight_per_vm <= 1
    }
}

fn rows(tallies: &[(Side, Tally)]) -> Vec<Vec<String>> {
    let row = |what: &str, of: &dyn Fn(&Tally) -> String| {
        std::iter::once(what.to_owned()).chain(tallies.iter().map(|(_, tally)| of(tally))).collect()
    };
    let titles = tallies.iter().map(|(side, _)| side.title().trim_end_matches(':').to_uppercase());
    vec![
        std::iter::once(String::new()).chain(titles).collect(),
        row("VMs resized", &|tally| tally.resized.to_string()),
        row("migrations", &|tally| tally.migrations.to_string()),
        row("VMs resized that cannot migrate", &|tally| tally.stuck_resized.to_string()),
        row("restarted", &|tally| tally.restarted.to_string()),
        row("waiting for a restart", &|tally| tally.waiting_for_restart.to_string()),
        row("API writes per resize", &|tally| format!("{:.1}", tally.writes_per_resize)),
        row("Events per resize", &|tally| {
            let resizes = (tally.resized + tally.stuck_resized).max(1);
            #[allow(clippy::cast_precision_loss, reason = "counts of a few thousand")]
            let events = tally.events as f64 / resizes as f64;
            format!("{events:.1}")
        }),
        row("writes of the operator in flight for one VM, at most", &|tally| {
            tally.our_writes_in_flight_per_vm.to_string()
        }),
        row("time to done, median", &|tally| format!("{:.1} s", tally.p50_seconds)),
        row("time to done, last", &|tally| format!("{:.1} s", tally.last_seconds)),
    ]
}
