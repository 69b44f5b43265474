//! Carrying a wish out: observe, decide, act, until done.

use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Result;
use hotplug::plan::{Addition, Bisection, ClaimTrouble, Hold, Step, Wish, next};
use hotplug::settle::Wait;
use provider::cluster::Way;

use super::{Pace, Vm};
use crate::cli::FAILED;
use crate::connection::problem;
use crate::output::print;
use crate::problem::Problem;

/// How often it is looked.
const INTERVAL: Duration = Duration::from_millis(500);

/// How often a patch is made anew because somebody else has changed the VM.
const ATTEMPTS: usize = 20;

fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

/// How a wish ended.
enum End {
    /// All is as wished, or written when nobody waits.
    Done,
    /// It was taken back.
    TakenBack,
}

/// Carries a wish out, and finds the bad volumes when it cannot settle.
pub(super) async fn run(vm: &Vm, add: Vec<Addition>, remove: Vec<String>, pace: &Pace) -> Result<ExitCode> {
    let way = vm.provider.hotplug_way().await.map_err(problem)?;
    let mut told = String::new();
    if add.is_empty() || pace.dry_run || pace.no_wait {
        let wish = Wish { add, remove, since: now(), limit: pace.timeout };
        carry_out(vm, way, &wish, pace, &mut told).await?;
        return Ok(ExitCode::SUCCESS);
    }
    if !remove.is_empty() {
        let wish = Wish { remove, since: now(), limit: pace.timeout, ..Wish::default() };
        carry_out(vm, way, &wish, pace, &mut told).await?;
    }
    let mut search = Bisection::new(add);
    while let Some(batch) = search.attempt().map(<[Addition]>::to_vec) {
        let wish = Wish { add: batch, remove: Vec::new(), since: now(), limit: pace.timeout };
        match carry_out(vm, way, &wish, pace, &mut told).await? {
            End::Done => search.settled(),
            End::TakenBack => {
                // The removal has to come to rest before the next attempt.
                let rest = Wish { since: now(), limit: pace.timeout, ..Wish::default() };
                carry_out(vm, way, &rest, pace, &mut told).await?;
                search.failed();
            }
        }
    }
    if search.bad().is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    let names: Vec<&str> = search.bad().iter().map(|volume| volume.name.as_str()).collect();
    eprintln!(
        "error: attaching to {}: volume {} did not reach the guest within {} s and was taken back\n  \
         try: `kubectl describe pod -l kubevirt.io=hotplug-disk` while it is tried again, or a longer `--timeout`",
        vm.id,
        names.join(", "),
        pace.timeout
    );
    Ok(ExitCode::from(FAILED))
}

async fn carry_out(vm: &Vm, way: Way, wish: &Wish, pace: &Pace, told: &mut String) -> Result<End> {
    let doing = || format!("changing the volumes of {}", vm.id);
    let mut attempts = 0;
    loop {
        let snapshot = vm.provider.observe_volumes(&vm.id, &wish.add).await.map_err(problem)?;
        let seen = snapshot.seen();
        let step = next(wish, &seen, now())
            .map_err(|error| Problem::new(doing(), error, "see `virt-steward volume status`"))?;
        match step {
            Step::Done => {
                tell(told, format!("{}: done", vm.id));
                return Ok(End::Done);
            }
            Step::Patch { patch, adds, removes } => {
                if pace.dry_run {
                    print(&format!("{}\n", serde_json::to_string_pretty(&patch)?))?;
                    return Ok(End::Done);
                }
                tell(told, format!("{}: {}", vm.id, change_words(&adds, &removes)));
                let written = vm.provider.write_volumes(&vm.id, way, wish, &patch, (&adds, &removes)).await;
                if !written.map_err(problem)? {
                    attempts += 1;
                    if attempts > ATTEMPTS {
                        let wrong = "somebody else changes the VM all the time";
                        return Err(Problem::new(doing(), wrong, "try again later").into());
                    }
                } else if pace.no_wait {
                    return Ok(End::Done);
                }
            }
            Step::RollBack { patch, volumes } => {
                tell(told, format!("{}: taking back {}", vm.id, volumes.join(", ")));
                let written = vm.provider.write_volumes(&vm.id, way, wish, &patch, (&[], &volumes)).await;
                if written.map_err(problem)? {
                    return Ok(End::TakenBack);
                }
            }
            Step::GiveUp(waits) => {
                let waits: Vec<String> = waits.iter().map(Wait::words).collect();
                let wrong = format!("it did not come to rest within {} s: {}", wish.limit, waits.join("; "));
                return Err(Problem::new(doing(), wrong, "see `virt-steward volume status`").into());
            }
            Step::Hold(holds) => {
                tell(told, words(vm, holds.iter().map(Hold::words)));
                if pace.dry_run {
                    return Ok(End::Done);
                }
            }
            Step::Wait(waits) => {
                tell(told, words(vm, waits.iter().map(Wait::words)));
                if pace.dry_run {
                    return Ok(End::Done);
                }
            }
            Step::Claims(trouble) => {
                let word = |one: &ClaimTrouble| {
                    format!("volume {} waits for claim {}: {}", one.volume, one.claim, one.why)
                };
                tell(told, words(vm, trouble.iter().map(word)));
                if pace.dry_run {
                    return Ok(End::Done);
                }
            }
        }
        tokio::time::sleep(INTERVAL).await;
    }
}

fn change_words(adds: &[String], removes: &[String]) -> String {
    let part =
        |verb: &str, names: &[String]| (!names.is_empty()).then(|| format!("{verb} {}", names.join(", ")));
    let parts: Vec<String> =
        [part("detaching", removes), part("attaching", adds)].into_iter().flatten().collect();
    parts.join(", ")
}

fn words(vm: &Vm, waits: impl Iterator<Item = String>) -> String {
    waits.map(|wait| format!("{}: waiting: {wait}", vm.id)).collect::<Vec<_>>().join("\n")
}

/// Progress, on standard error, and only when it is new.
fn tell(told: &mut String, news: String) {
    if *told != news {
        eprintln!("{news}");
        *told = news;
    }
}
