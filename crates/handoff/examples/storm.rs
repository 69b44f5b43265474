//! Storms without the command line around them, for long runs:
//!
//! ```text
//! cargo run --release -p handoff --example storm -- RELEASE DRIVER block|filesystem FIRST-SEED LAST-SEED VMS [stories]
//! ```
//!
//! A line for each side: what was broken, of how many VMs. With `stories`, the end of the story of each VM that was broken
//! with the program. With `table FIRST-SEED LAST-SEED VMS` instead, a table of all releases and drivers, as in `docs/hotplug.md`.

use std::collections::VecDeque;

use handoff::storm::{Storm, Tally, one_vm, run};
use handoff::{Absent, Driver, MOST_VOLUMES, Present, Release, Setup, Steward, Volumes};

fn number(text: &str) -> Result<u64, String> {
    text.parse().map_err(|error| format!("{text}: {error}"))
}

/// Storms of many seeds.
fn storms(storm: &Storm, seeds: std::ops::RangeInclusive<u64>, steward: &dyn Steward) -> Tally {
    seeds.fold(Tally::default(), |sum, seed| sum.plus(run(storm, seed, steward)))
}

fn storm_of(release: Release, driver: Driver, filesystem: bool, vms: &str) -> Result<Storm, String> {
    let mut setup = Setup::new(release, driver);
    if filesystem {
        setup.filesystem = Volumes::first(MOST_VOLUMES);
    }
    let vms = u32::try_from(number(vms)?).map_err(|error| error.to_string())?;
    Ok(Storm { setup, vms, volumes: MOST_VOLUMES, events: 12 })
}

/// Each release with each driver, without and with the program side by side.
fn table(first: u64, last: u64, vms: &str) -> Result<(), String> {
    println!(
        "| KubeVirt | driver | volumes | VMs | broken without | I/O error without | broken with | I/O error with | wedged with \
         | without an end with | taken back with |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|---|");
    for release in Release::ALL {
        for driver in Driver::ALL {
            for filesystem in [false, true] {
                // With a filesystem only what happens at the unstage differs.
                if filesystem && driver != Driver::ForceTeardown {
                    continue;
                }
                let storm = storm_of(release, driver, filesystem, vms)?;
                let present = Present::whole(driver);
                let (without, with) = std::thread::scope(|scope| {
                    let without = scope.spawn(|| storms(&storm, first..=last, &Absent));
                    let with = storms(&storm, first..=last, &present);
                    without.join().map(|without| (without, with)).map_err(|_| "a storm broke off".to_owned())
                })?;
                println!(
                    "| {release} | {driver} | {} | {} | {} | {} | {} | {} | {} | {} | {} |",
                    if filesystem { "filesystem" } else { "block" },
                    with.vms,
                    without.broken,
                    without.io_errors,
                    with.broken,
                    with.io_errors,
                    with.wedged,
                    with.unfinished,
                    with.taken_back
                );
            }
        }
    }
    Ok(())
}

fn main() -> Result<(), String> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    if let [what, first, last, vms] = words.as_slice()
        && what == "table"
    {
        return table(number(first)?, number(last)?, vms);
    }
    let [release, driver, mode, first, last, vms, rest @ ..] = words.as_slice() else {
        return Err("RELEASE DRIVER block|filesystem FIRST-SEED LAST-SEED VMS [stories]".into());
    };
    let release = release.parse::<Release>().map_err(|error| format!("{error}"))?;
    let storm = storm_of(release, driver.parse()?, mode == "filesystem", vms)?;
    let present = Present::whole(storm.setup.driver);
    if rest.iter().any(|word| word == "stories") {
        for seed in number(first)?..=number(last)? {
            stories(&storm, seed, &present);
        }
        return Ok(());
    }
    let sides: [(&str, &dyn Steward); 2] = [("without", &Absent), ("with", &present)];
    for (side, steward) in sides {
        let tally = storms(&storm, number(first)?..=number(last)?, steward);
        println!(
            "{release} {driver} {mode} {side}: vms {} broken {} io-errors {} unplugged {} migrations {} unfinished {} \
             wedged {} taken-back {} denials {} steps {}",
            tally.vms,
            tally.broken,
            tally.io_errors,
            tally.unplugged,
            tally.migrations,
            tally.unfinished,
            tally.wedged,
            tally.taken_back,
            tally.denials,
            tally.steps
        );
    }
    Ok(())
}

/// Steps of a story that are shown.
const SHOWN: usize = 60;

fn stories(storm: &Storm, seed: u64, steward: &dyn Steward) {
    for vm in 0..storm.vms {
        let mut story = VecDeque::new();
        let tally = one_vm(storm, seed, vm, steward, &mut |action, world| {
            if story.len() == SHOWN {
                story.pop_front();
            }
            story.push_back((action, world.clone()));
        });
        if tally.broken == 0 {
            continue;
        }
        println!("seed {seed}, VM {vm}: {tally:?}");
        for (action, world) in &story {
            println!("  {action:?}");
            println!(
                "    wanted {:?} spec {:?} domain {:?} taken {:?}",
                world.wanted, world.spec, world.domain, world.taken
            );
            for pod in &world.pods {
                println!(
                    "    pod {} {:?} {:?} {:?} of launcher {}",
                    pod.uid, pod.volumes, pod.phase, pod.age, pod.launcher
                );
            }
            let known = world.entries();
            let status: Vec<String> = known
                .iter()
                .map(|volume| {
                    format!("{volume} {:?} from {:?}", world.status_of(volume), world.device_of(volume))
                })
                .collect();
            println!("    {}", status.join("\n    "));
        }
    }
}
