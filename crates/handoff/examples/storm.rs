//! Storms without the command line around them, for long runs:
//!
//! ```text
//! cargo run --release -p handoff --example storm -- RELEASE DRIVER block|filesystem FIRST-SEED LAST-SEED VMS [stories]
//! ```
//!
//! A line for each side: what was broken, of how many VMs. With `stories`, the end of the story of each VM that was broken
//! with the program.

use std::collections::VecDeque;

use handoff::storm::{Storm, Tally, one_vm, run};
use handoff::{Absent, MOST_VOLUMES, Present, Setup, Steward, Volumes};

fn main() -> Result<(), String> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [release, driver, mode, first, last, vms, rest @ ..] = words.as_slice() else {
        return Err("RELEASE DRIVER block|filesystem FIRST-SEED LAST-SEED VMS [stories]".into());
    };
    let number = |text: &String| text.parse::<u64>().map_err(|error| format!("{text}: {error}"));
    let mut setup = Setup::new(release.parse().map_err(|error| format!("{error}"))?, driver.parse()?);
    if mode == "filesystem" {
        setup.filesystem = Volumes::first(MOST_VOLUMES);
    }
    let vms = u32::try_from(number(vms)?).map_err(|error| error.to_string())?;
    let storm = Storm { setup, vms, volumes: MOST_VOLUMES, events: 12 };
    let present = Present::whole(setup.driver);
    if rest.iter().any(|word| word == "stories") {
        for seed in number(first)?..=number(last)? {
            stories(&storm, seed, &present);
        }
        return Ok(());
    }
    let sides: [(&str, &dyn Steward); 2] = [("without", &Absent), ("with", &present)];
    for (side, steward) in sides {
        let tally = (number(first)?..=number(last)?)
            .fold(Tally::default(), |sum, seed| sum.plus(run(&storm, seed, steward)));
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
