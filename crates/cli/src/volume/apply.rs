//! Carrying a wish out: observe, decide, act, until done.

use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Result;
use hotplug::plan::{Addition, Bisection, ClaimTrouble, DiskKind, Hold, Source, Step, Wish, next};
use hotplug::settle::Wait;
use http::{Method, StatusCode};
use serde_json::{Value, json};

use super::observe::Way;
use super::{Pace, Vm};
use crate::cli::FAILED;
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
    let way = vm.way().await?;
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
        vm.label(),
        names.join(", "),
        pace.timeout
    );
    Ok(ExitCode::from(FAILED))
}

async fn carry_out(vm: &Vm, way: Way, wish: &Wish, pace: &Pace, told: &mut String) -> Result<End> {
    let doing = || format!("changing the volumes of {}", vm.label());
    let mut attempts = 0;
    loop {
        let snapshot = vm.observe(&wish.add).await?;
        let seen = snapshot.seen();
        let step = next(wish, &seen, now())
            .map_err(|error| Problem::new(doing(), error, "see `virt-steward volume status`"))?;
        match step {
            Step::Done => {
                tell(told, format!("{}: done", vm.label()));
                return Ok(End::Done);
            }
            Step::Patch { patch, adds, removes } => {
                if pace.dry_run {
                    print(&format!("{}\n", serde_json::to_string_pretty(&patch)?))?;
                    return Ok(End::Done);
                }
                tell(told, format!("{}: {}", vm.label(), change_words(&adds, &removes)));
                if !vm.write(way, wish, &patch, &adds, &removes).await? {
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
                tell(told, format!("{}: taking back {}", vm.label(), volumes.join(", ")));
                if vm.write(way, wish, &patch, &[], &volumes).await? {
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
    waits.map(|wait| format!("{}: waiting: {wait}", vm.label())).collect::<Vec<_>>().join("\n")
}

/// Progress, on standard error, and only when it is new.
fn tell(told: &mut String, news: String) {
    if *told != news {
        eprintln!("{news}");
        *told = news;
    }
}

impl Vm {
    /// Writes a step; `false`: somebody else was faster, look again.
    async fn write(
        &self,
        way: Way,
        wish: &Wish,
        patch: &[Value],
        adds: &[String],
        removes: &[String],
    ) -> Result<bool> {
        let doing = format!("changing the volumes of {}", self.label());
        match way {
            Way::Declarative => {
                let body = Value::Array(patch.to_vec());
                let reply = self
                    .cluster
                    .send(Method::PATCH, &self.path(), "application/json-patch+json", &body)
                    .await?;
                // A failed `test` is 422 with this word; a webhook's refusal is not.
                let raced = reply.status == StatusCode::CONFLICT
                    || (reply.status == StatusCode::UNPROCESSABLE_ENTITY
                        && reply.body["message"].as_str().is_some_and(|text| text.contains("test")));
                if raced {
                    return Ok(false);
                }
                reply.object(&doing)?;
                Ok(true)
            }
            // One call for each, and each waited for before the next (rule O2).
            Way::Calls => {
                let (verb, body) = match (removes.first(), adds.first()) {
                    (Some(name), _) => ("removevolume", json!({"name": name})),
                    (None, Some(name)) => {
                        let Some(addition) = wish.add.iter().find(|one| one.name == *name) else {
                            return Ok(false);
                        };
                        ("addvolume", add_options(addition))
                    }
                    (None, None) => return Ok(true),
                };
                let path = format!(
                    "/apis/subresources.kubevirt.io/v1/namespaces/{}/virtualmachines/{}/{verb}",
                    self.namespace, self.name
                );
                self.cluster.send(Method::PUT, &path, "application/json", &body).await?.object(&doing)?;
                Ok(true)
            }
        }
    }
}

/// `AddVolumeOptions`
fn add_options(addition: &Addition) -> Value {
    let bus = match addition.bus {
        Some(hotplug::plan::Bus::Virtio) => "virtio",
        Some(hotplug::plan::Bus::Sata) => "sata",
        _ => "scsi",
    };
    let field = match addition.kind {
        DiskKind::Disk => "disk",
        DiskKind::Lun => "lun",
        DiskKind::Cdrom => "cdrom",
    };
    let mut disk = json!({"name": addition.name, field: {"bus": bus}});
    if let Some(serial) = &addition.serial {
        disk["serial"] = serial.as_str().into();
    }
    if let Some(cache) = &addition.cache {
        disk["cache"] = cache.as_str().into();
    }
    let source = match &addition.source {
        Source::Claim(claim) => json!({"persistentVolumeClaim": {"claimName": claim, "hotpluggable": true}}),
        Source::DataVolume(name) => json!({"dataVolume": {"name": name, "hotpluggable": true}}),
    };
    json!({"name": addition.name, "disk": disk, "volumeSource": source})
}
