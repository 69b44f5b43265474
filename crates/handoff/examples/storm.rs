//! Storms without the command line around them, for long runs:
//!
//! ```text
//! cargo run --release -p handoff --example storm -- RELEASE DRIVER block|filesystem FIRST-SEED LAST-SEED VMS [stories]
//! cargo run --release -p handoff --example storm -- table FIRST-SEED LAST-SEED VMS [JOURNAL]
//! ```
//!
//! A line for each side: what was broken, of how many VMs. With `stories`, the end of the story of each VM that was broken
//! with the program. With `table`, a table of all releases and drivers, as in `docs/hotplug.md`; with a JOURNAL, a file, what
//! has been run is noted there, so that a run that was broken off goes on where it was, and another process may run other
//! seeds beside it.

use std::collections::{HashMap, VecDeque};
use std::fs::OpenOptions;
use std::io::Write as _;

use handoff::storm::{Storm, Tally, one_vm, run};
use handoff::{Absent, Driver, MOST_VOLUMES, Present, Release, Setup, Steward, Volumes};

/// Seeds that are run between two notes in the journal.
const BLOCK: u64 = 20;

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

/// A row of the table.
#[derive(Clone, Copy)]
struct Row {
    release: Release,
    driver: Driver,
    filesystem: bool,
}

impl Row {
    /// All of them. With a filesystem only what happens at the unstage differs, so one driver shows it.
    fn all() -> Vec<Self> {
        let mut rows = Vec::new();
        for release in Release::ALL {
            for driver in Driver::ALL {
                rows.push(Self { release, driver, filesystem: false });
                if driver == Driver::ForceTeardown {
                    rows.push(Self { release, driver, filesystem: true });
                }
            }
        }
        rows
    }

    const fn mode(self) -> &'static str {
        if self.filesystem { "filesystem" } else { "block" }
    }

    /// What the journal calls these seeds of it. Releases with the same rules share them.
    fn key(self, side: Side, seeds: &Seeds) -> String {
        let (release, mode, side) = (self.release.eldest_alike(), self.mode(), side.name());
        format!("{release} {} {mode} {side} {} {} {}", self.driver, seeds.vms, seeds.first, seeds.last)
    }

    fn run(self, side: Side, seeds: &Seeds) -> Result<Figures, String> {
        let storm = storm_of(self.release, self.driver, self.filesystem, &seeds.vms)?;
        let seeds = seeds.first..=seeds.last;
        Ok(Figures::of(match side {
            Side::With => storms(&storm, seeds, &Present::whole(self.driver)),
            Side::Without => storms(&storm, seeds, &Absent),
        }))
    }
}

/// With the program, or without it.
#[derive(Clone, Copy)]
enum Side {
    With,
    Without,
}

impl Side {
    const fn name(self) -> &'static str {
        match self {
            Self::With => "with",
            Self::Without => "without",
        }
    }
}

/// Some seeds of so many VMs.
struct Seeds {
    first: u64,
    last: u64,
    vms: String,
}

impl Seeds {
    fn blocks(&self) -> impl Iterator<Item = Self> {
        let from = (self.first..=self.last).step_by(usize::try_from(BLOCK).unwrap_or(1));
        from.map(|first| Self { first, last: self.last.min(first + BLOCK - 1), vms: self.vms.clone() })
    }
}

/// What the table shows of a tally.
#[derive(Clone, Copy, Default)]
struct Figures([u64; 6]);

impl Figures {
    const fn of(tally: Tally) -> Self {
        Self([tally.vms, tally.broken, tally.io_errors, tally.wedged, tally.unfinished, tally.taken_back])
    }

    fn plus(self, other: Self) -> Self {
        Self(std::array::from_fn(|at| self.0[at] + other.0[at]))
    }
}

/// What has been run, by key.
struct Journal {
    path: Option<String>,
    known: HashMap<String, Figures>,
}

impl Journal {
    /// Reads it; a line that was not finished is run again.
    fn open(path: Option<&String>) -> Result<Self, String> {
        let Some(path) = path else { return Ok(Self { path: None, known: HashMap::new() }) };
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
            Err(error) => return Err(format!("cannot read {path}: {error}")),
        };
        Ok(Self { path: Some(path.clone()), known: text.lines().filter_map(Self::read).collect() })
    }

    fn read(line: &str) -> Option<(String, Figures)> {
        let (key, numbers) = line.strip_suffix(" .")?.split_once(" : ")?;
        let numbers: Vec<u64> = numbers.split(' ').filter_map(|number| number.parse().ok()).collect();
        Some((key.to_owned(), Figures(numbers.try_into().ok()?)))
    }

    /// What became of these seeds; runs them when nobody has.
    fn figures(&mut self, row: Row, side: Side, seeds: &Seeds) -> Result<Figures, String> {
        let key = row.key(side, seeds);
        if let Some(known) = self.known.get(&key) {
            return Ok(*known);
        }
        let figures = row.run(side, seeds)?;
        if let Some(path) = &self.path {
            let failed = |error: std::io::Error| format!("cannot write {path}: {error}");
            let numbers = figures.0.map(|number| number.to_string()).join(" ");
            let mut file = OpenOptions::new().create(true).append(true).open(path).map_err(failed)?;
            // In one write, which other processes do not come in between.
            file.write_all(format!("{key} : {numbers} .\n").as_bytes()).map_err(failed)?;
        }
        self.known.insert(key, figures);
        Ok(figures)
    }
}

/// Each release with each driver, without and with the program side by side. What must not break is run first, and some
/// seeds of each row before more of any, so that a run that is broken off has shown something.
fn table(seeds: &Seeds, journal: Option<&String>) -> Result<(), String> {
    let mut journal = Journal::open(journal)?;
    for side in [Side::With, Side::Without] {
        for block in seeds.blocks() {
            for row in Row::all() {
                journal.figures(row, side, &block)?;
            }
        }
    }
    println!(
        "| KubeVirt | driver | volumes | VMs | broken without | I/O error without | broken with | I/O error with | wedged with \
         | without an end with | taken back with |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|---|");
    for row in Row::all() {
        let mut sum = |side| {
            seeds.blocks().try_fold(Figures::default(), |sum, block| {
                Ok::<_, String>(sum.plus(journal.figures(row, side, &block)?))
            })
        };
        let (Figures([_, broken, errors, ..]), Figures(with)) = (sum(Side::Without)?, sum(Side::With)?);
        let with = with.map(thousands);
        let (broken, errors) = (thousands(broken), thousands(errors));
        println!(
            "| {} | {} | {} | {} | {broken} | {errors} | {} |",
            row.release,
            row.driver,
            row.mode(),
            with[0],
            with[1..].join(" | ")
        );
    }
    Ok(())
}

/// 12,345
fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

fn main() -> Result<(), String> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    if let [what, first, last, vms, journal @ ..] = words.as_slice()
        && what == "table"
    {
        let seeds = Seeds { first: number(first)?, last: number(last)?, vms: vms.clone() };
        return table(&seeds, journal.first());
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
