//! Carrying a change out: observe, decide, act, until done.

use hotplug::plan::{Addition, Bisection, ClaimTrouble, Hold, Source, Step, Wish, next};
use hotplug::settle::Wait;
use http::{Method, StatusCode};
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::locks::Locks;
use crate::observe::{Snapshot, Way};
use crate::{Change, Error, Machine, Outcome, Pace};

/// How often a patch is made anew because somebody else has changed the VM.
const ATTEMPTS: usize = 20;

/// Takes the news; told only when it is new.
type Tell<'t> = dyn FnMut(&str) + Send + 't;

fn now() -> i64 {
    Timestamp::now().as_second()
}

/// How a wish ended.
enum End {
    Done,
    Planned(Value),
    /// It was taken back.
    TakenBack,
}

/// A change under way.
struct Work<'w> {
    machine: &'w Machine,
    pace: &'w Pace,
    way: Way,
    locks: Locks,
    told: String,
    tell: &'w mut Tell<'w>,
}

impl Machine {
    /// Carries a change out, and finds the bad volumes when it cannot settle.
    ///
    /// # Errors
    /// [`Error`] says what was being done and what is wrong. Nothing of the change is undone then: doing it again goes on
    /// from where it stands.
    pub async fn change(
        &self,
        change: Change,
        pace: &Pace,
        tell: &mut (dyn FnMut(&str) + Send),
    ) -> Result<Outcome, Error> {
        let way = self.way().await?;
        let mut tell = |news: &str| tell(news);
        let mut work =
            Work { machine: self, pace, way, locks: Locks::default(), told: String::new(), tell: &mut tell };
        let result = work.run(change).await;
        work.locks.release(self, &pace.holder).await;
        result
    }
}

impl Work<'_> {
    async fn run(&mut self, change: Change) -> Result<Outcome, Error> {
        let Change { mut add, mut remove, detach_others } = change;
        let mut others = Vec::new();
        if detach_others {
            others = self.others(&add, &remove).await?;
            remove.extend(others.iter().map(|one| one.name.clone()));
            add.splice(0..0, others.iter().cloned());
            if !others.is_empty() {
                let flags: Vec<String> = add.iter().map(|one| format!("--volume {}", one.name)).collect();
                self.say(&format!(
                    "{}: detaching all volumes; should this be interrupted: `virt-steward volume add {} {}`",
                    self.machine.label(),
                    self.machine.name,
                    flags.join(" ")
                ));
            }
        }
        if add.is_empty() || self.pace.dry_run || (!self.pace.wait && others.is_empty()) {
            let wish = Wish { add, remove, since: now(), limit: self.pace.limit };
            return Ok(match self.carry_out(&wish).await? {
                End::Planned(patch) => Outcome::Planned(patch),
                End::Done | End::TakenBack => Outcome::Done,
            });
        }
        if !remove.is_empty() {
            let wish = Wish { remove, since: now(), limit: self.pace.limit, ..Wish::default() };
            self.carry_out(&wish).await?;
        }
        if others.is_empty() { self.search(add).await } else { self.together(add, others).await }
    }

    /// Attaches a batch, and searches it in halves when it cannot settle.
    async fn search(&mut self, add: Vec<Addition>) -> Result<Outcome, Error> {
        let mut search = Bisection::new(add);
        while let Some(batch) = search.attempt().map(<[Addition]>::to_vec) {
            if self.attempt(batch).await? { search.settled() } else { search.failed() }
        }
        if search.bad().is_empty() {
            return Ok(Outcome::Done);
        }
        Ok(Outcome::TakenBack(search.bad().iter().map(|volume| volume.name.clone()).collect()))
    }

    /// Attaches all volumes in one change; when that cannot settle, those that were there before.
    async fn together(&mut self, all: Vec<Addition>, others: Vec<Addition>) -> Result<Outcome, Error> {
        let new = |one: &&Addition| !others.iter().any(|other| other.name == one.name);
        let names = all.iter().filter(new).map(|one| one.name.clone()).collect();
        if self.attempt(all).await? {
            return Ok(Outcome::Done);
        }
        self.attempt(others).await?;
        Ok(Outcome::TakenBack(names))
    }

    /// Whether a batch settled; otherwise it was taken back, and that has come to rest.
    async fn attempt(&mut self, add: Vec<Addition>) -> Result<bool, Error> {
        let wish = Wish { add, remove: Vec::new(), since: now(), limit: self.pace.limit };
        let settled = matches!(self.carry_out(&wish).await?, End::Done | End::Planned(_));
        if !settled {
            let rest = Wish { since: now(), limit: self.pace.limit, ..Wish::default() };
            self.carry_out(&rest).await?;
        }
        self.locks.release(self.machine, &self.pace.holder).await;
        Ok(settled)
    }

    /// The hotplugged volumes that a change does not name.
    async fn others(&mut self, add: &[Addition], remove: &[String]) -> Result<Vec<Addition>, Error> {
        let snapshot = self.machine.observe(&[]).await?;
        let named =
            |name: &str| remove.iter().any(|one| one == name) || add.iter().any(|one| one.name == name);
        Ok(Addition::hotplugged_in(&snapshot.vm).into_iter().filter(|one| !named(&one.name)).collect())
    }

    /// Progress, when it is new.
    fn say(&mut self, news: &str) {
        if self.told != news {
            news.clone_into(&mut self.told);
            (self.tell)(news);
        }
    }

    fn say_waits(&mut self, waits: impl Iterator<Item = String>) {
        let label = self.machine.label();
        let lines: Vec<String> = waits.map(|wait| format!("{label}: waiting: {wait}")).collect();
        self.say(&lines.join("\n"));
    }

    async fn carry_out(&mut self, wish: &Wish) -> Result<End, Error> {
        let machine = self.machine;
        let mut attempts = 0;
        loop {
            let snapshot = machine.observe(&wish.add).await?;
            let step = next(wish, &snapshot.seen(), now())
                .map_err(|source| Error::Plan { machine: machine.label(), source })?;
            match step {
                Step::Done => {
                    self.say(&format!("{}: done", machine.label()));
                    return Ok(End::Done);
                }
                Step::Patch { patch, .. } if self.pace.dry_run => return Ok(End::Planned(patch.into())),
                Step::Patch { patch, adds, removes } => {
                    if let Some(blocked) = self.lock(&snapshot, wish, &adds).await? {
                        self.say_waits([blocked].into_iter());
                        self.give_up_when_late(wish)?;
                    } else {
                        self.say(&format!("{}: {}", machine.label(), change_words(&adds, &removes)));
                        if !machine.write(self.way, wish, &patch, &adds, &removes).await? {
                            attempts += 1;
                            if attempts > ATTEMPTS {
                                return Err(Error::Contended(machine.label()));
                            }
                        } else if !self.pace.wait {
                            return Ok(End::Done);
                        }
                    }
                }
                Step::RollBack { patch, volumes } => {
                    self.say(&format!("{}: taking back {}", machine.label(), volumes.join(", ")));
                    if machine.write(self.way, wish, &patch, &[], &volumes).await? {
                        return Ok(End::TakenBack);
                    }
                }
                Step::GiveUp(waits) => {
                    let waits: Vec<String> = waits.iter().map(Wait::words).collect();
                    return Err(self.late(wish, waits.join("; ")));
                }
                Step::Hold(holds) => self.say_waits(holds.iter().map(Hold::words)),
                Step::Wait(waits) => self.say_waits(waits.iter().map(Wait::words)),
                Step::Claims(trouble) => self.say_waits(trouble.iter().map(claim_words)),
            }
            if self.pace.dry_run {
                return Ok(End::Planned(Value::Null));
            }
            self.locks.renew(machine, &self.pace.holder).await?;
            tokio::time::sleep(self.pace.interval).await;
        }
    }

    /// Takes the locks of the claims that a step adds; who has one otherwise.
    async fn lock(
        &mut self,
        snapshot: &Snapshot,
        wish: &Wish,
        adds: &[String],
    ) -> Result<Option<String>, Error> {
        let claims = snapshot.exclusive(&wish.add, adds);
        let taken = self.locks.take(self.machine, &self.pace.holder, &claims).await?;
        Ok(taken.map(|taken| taken.words()))
    }

    fn give_up_when_late(&self, wish: &Wish) -> Result<(), Error> {
        if now().saturating_sub(wish.since) <= wish.limit {
            return Ok(());
        }
        Err(self.late(wish, "a claim is being moved by somebody else".into()))
    }

    fn late(&self, wish: &Wish, waits: String) -> Error {
        let waits = if waits.is_empty() { self.told.replace('\n', "; ") } else { waits };
        Error::NotSettled { machine: self.machine.label(), limit: wish.limit, waits }
    }
}

pub(crate) fn claim_words(one: &ClaimTrouble) -> String {
    format!("volume {} waits for claim {}: {}", one.volume, one.claim, one.why)
}

fn change_words(adds: &[String], removes: &[String]) -> String {
    let part =
        |verb: &str, names: &[String]| (!names.is_empty()).then(|| format!("{verb} {}", names.join(", ")));
    let parts: Vec<String> =
        [part("detaching", removes), part("attaching", adds)].into_iter().flatten().collect();
    parts.join(", ")
}

impl Machine {
    /// Writes a step; `false`: somebody else was faster, look again.
    pub(crate) async fn write(
        &self,
        way: Way,
        wish: &Wish,
        patch: &[Value],
        adds: &[String],
        removes: &[String],
    ) -> Result<bool, Error> {
        let doing = format!("changing the volumes of {}", self.label());
        match way {
            Way::Declarative => {
                let body = Value::Array(patch.to_vec());
                let reply =
                    self.api.send(Method::PATCH, &self.path(), "application/json-patch+json", &body).await?;
                // A failed `test` is 422 with this word; a webhook's refusal is not.
                let raced = reply.status == StatusCode::CONFLICT
                    || (reply.status == StatusCode::UNPROCESSABLE_ENTITY
                        && reply.body["message"].as_str().is_some_and(|text| text.contains("test")));
                if raced {
                    return Ok(false);
                }
                reply.object(&doing).map(|_| true)
            }
            // One call for each, and each waited for before the next (rule O2).
            Way::Calls => {
                let (verb, body) = match (removes.first(), adds.first()) {
                    (Some(name), _) => ("removevolume", json!({"name": name})),
                    (None, Some(name)) => {
                        let Some(addition) = wish.add.iter().find(|one| one.name == *name) else {
                            return Ok(false);
                        };
                        let options = add_options(addition)
                            .map_err(|source| Error::Plan { machine: self.label(), source })?;
                        ("addvolume", options)
                    }
                    (None, None) => return Ok(true),
                };
                let path = format!(
                    "/apis/subresources.kubevirt.io/v1/namespaces/{}/virtualmachines/{}/{verb}",
                    self.namespace, self.name
                );
                let reply = self.api.send(Method::PUT, &path, "application/json", &body).await?;
                // Of two clients that ask at the same time one is told so (409, or 500 up to v1.9).
                if reply.status == StatusCode::CONFLICT {
                    return Ok(false);
                }
                reply.object(&doing).map(|_| true)
            }
        }
    }
}

/// `AddVolumeOptions`
fn add_options(addition: &Addition) -> Result<Value, hotplug::plan::PlanError> {
    let source = match &addition.source {
        Source::Claim(claim) => json!({"persistentVolumeClaim": {"claimName": claim, "hotpluggable": true}}),
        Source::DataVolume(name) => json!({"dataVolume": {"name": name, "hotpluggable": true}}),
    };
    Ok(json!({"name": addition.name, "disk": addition.disk()?, "volumeSource": source}))
}
