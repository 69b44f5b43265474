//! `virt-steward sandbox hotplug-storm`: how many VMs break without and with the guard and the
//! orchestrator, side by side, over the same random events.

use std::process::ExitCode;
use std::time::Instant;

use ::handoff::storm::{Storm, Tally, run as run_seed};
use ::handoff::{Absent, Driver, MOST_VOLUMES, Present, Release, Setup, Steward, Volumes};
use anyhow::Result;
use serde_json::{Value, json};

use crate::cli::FAILED;
use crate::output::print;
use crate::table;

/// Arguments of `sandbox hotplug-storm`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  virt-steward sandbox hotplug-storm --seeds 20
  virt-steward sandbox hotplug-storm --seeds 100 --kubevirt-version 1.3.1 --kubevirt-version main
  virt-steward sandbox hotplug-storm --driver exclusive-publish --filesystem -o json

Each VM gets random adds, removes, deletes and evictions of its attachment pods, migrations, restarts of
virt-controller and its own deletion, in virtual time. The same seed is the same storm. No API server is
started. Exit status 1 when a VM breaks with the program.")]
pub struct Args {
    /// Storms, from seed 1
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    seeds: u32,

    /// Virtual machines in each
    #[arg(long, value_name = "N", default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    vms: u32,

    /// Volumes that each may have
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u8).range(1..=8))]
    volumes: u8,

    /// Events from outside for each
    #[arg(long, value_name = "N", default_value_t = 12, value_parser = clap::value_parser!(u32).range(1..=1000))]
    events: u32,

    /// Rules of KubeVirt: 1.3.1, 1.6, 1.8, 1.9.0, main, 18862; several times; all when not given
    #[arg(long, value_name = "VERSION")]
    kubevirt_version: Vec<Release>,

    /// Storage driver: busy-check, force-teardown, exclusive-publish, per-publish-device
    #[arg(long, default_value = "force-teardown")]
    driver: Driver,

    /// Filesystem volumes instead of block volumes
    #[arg(long)]
    filesystem: bool,

    /// Output: table or json
    #[arg(short, long, default_value = "table", value_parser = ["table", "json"])]
    output: String,
}

/// Runs the storms and prints what became of them.
pub fn run(args: &Args) -> Result<ExitCode> {
    let releases =
        if args.kubevirt_version.is_empty() { Release::ALL.to_vec() } else { args.kubevirt_version.clone() };
    let mut results = Vec::new();
    for release in releases {
        let mut setup = Setup::new(release, args.driver);
        if args.filesystem {
            setup.filesystem = Volumes::first(MOST_VOLUMES);
        }
        let storm = Storm { setup, vms: args.vms, volumes: usize::from(args.volumes), events: args.events };
        let begun = Instant::now();
        let without = all_seeds(&storm, args.seeds, &Absent);
        let with = all_seeds(&storm, args.seeds, &Present::whole(args.driver));
        eprintln!("{release}: {} storms in {:.1} s", 2 * args.seeds, begun.elapsed().as_secs_f64());
        results.push((release, without, with));
    }
    if args.output == "json" {
        let list: Vec<Value> = results
            .iter()
            .map(|(release, without, with)| {
                json!({"kubevirt": release.name(), "driver": args.driver.name(), "filesystem": args.filesystem,
                    "seeds": args.seeds, "without": figures(without), "with": figures(with)})
            })
            .collect();
        print(&format!("{}\n", serde_json::to_string_pretty(&list)?))?;
    } else {
        print(&table::render(&rows(&results)))?;
    }
    let broken: u64 = results.iter().map(|(_, _, with)| with.broken).sum();
    Ok(if broken == 0 { ExitCode::SUCCESS } else { ExitCode::from(FAILED) })
}

/// All seeds, on all processors.
fn all_seeds(storm: &Storm, seeds: u32, steward: &(dyn Steward + Sync)) -> Tally {
    let workers = u32::try_from(std::thread::available_parallelism().map_or(1, usize::from)).unwrap_or(1);
    let part = |worker: u32| {
        (1 + worker..=seeds)
            .step_by(workers as usize)
            .fold(Tally::default(), |tally, seed| tally.plus(run_seed(storm, u64::from(seed), steward)))
    };
    std::thread::scope(|scope| {
        let running: Vec<_> = (0..workers).map(|worker| scope.spawn(move || part(worker))).collect();
        running
            .into_iter()
            // A storm that panics would be a defect of it: its seeds are left out, and the count shows it.
            .fold(Tally::default(), |tally, worker| tally.plus(worker.join().unwrap_or_default()))
    })
}

fn rows(results: &[(Release, Tally, Tally)]) -> Vec<Vec<String>> {
    let head = [
        "KUBEVIRT",
        "PROGRAM",
        "VMS",
        "BROKEN",
        "I/O-ERROR",
        "UNPLUGGED",
        "MIGRATION",
        "UNFINISHED",
        "WEDGED",
        "TAKEN-BACK",
        "DENIALS",
        "PODS",
    ];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    for (release, without, with) in results {
        for (program, tally) in [("without", without), ("with", with)] {
            let figures = [
                tally.vms,
                tally.broken,
                tally.io_errors,
                tally.unplugged,
                tally.migrations,
                tally.unfinished,
                tally.wedged,
                tally.taken_back,
                tally.denials,
                tally.pods,
            ];
            let mut row = vec![release.name().to_owned(), program.to_owned()];
            row.extend(figures.iter().map(u64::to_string));
            rows.push(row);
        }
    }
    rows
}

fn figures(tally: &Tally) -> Value {
    json!({
        "vms": tally.vms, "broken": tally.broken, "ioErrors": tally.io_errors, "unplugged": tally.unplugged,
        "migrations": tally.migrations, "unfinished": tally.unfinished, "wedged": tally.wedged,
        "takenBack": tally.taken_back,
        "denials": tally.denials, "pods": tally.pods, "steps": tally.steps,
    })
}
