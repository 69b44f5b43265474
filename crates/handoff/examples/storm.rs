//! Storms without the command line around them, for long runs:
//!
//! ```text
//! cargo run --release -p handoff --example storm -- RELEASE DRIVER block|filesystem FIRST-SEED LAST-SEED VMS
//! ```
//!
//! A line for each side: what was broken, of how many VMs.

use handoff::storm::{Storm, Tally, run};
use handoff::{Absent, MOST_VOLUMES, Present, Setup, Steward, Volumes};

fn main() -> Result<(), String> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [release, driver, mode, first, last, vms] = words.as_slice() else {
        return Err("RELEASE DRIVER block|filesystem FIRST-SEED LAST-SEED VMS".into());
    };
    let number = |text: &String| text.parse::<u64>().map_err(|error| format!("{text}: {error}"));
    let mut setup = Setup::new(release.parse().map_err(|error| format!("{error}"))?, driver.parse()?);
    if mode == "filesystem" {
        setup.filesystem = Volumes::first(MOST_VOLUMES);
    }
    let vms = u32::try_from(number(vms)?).map_err(|error| error.to_string())?;
    let storm = Storm { setup, vms, volumes: MOST_VOLUMES, events: 12 };
    let present = Present::whole(setup.driver);
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
