//! The way to the new size.

use super::{Actuation, RETRY, Step, View, Waiting, Wanted, waiting};
use crate::eligibility::Obstacle;
use crate::ledger::{Cause, End, Ledger, Phase, Reason, Then};
use crate::policy::Fallback;
use crate::resources::Follows;
use crate::size::Size;

impl View<'_> {
    /// Nothing is under way. `base` is the end that an earlier attempt in this pod started from.
    pub(super) fn start(&self, base: Option<&Ledger>) -> Step {
        let seen = self.seen;
        let Some(wanted) = self.wish() else {
            let left_over = seen.wish.is_some() || base.is_some();
            return if left_over { Step::Clear } else { Step::Idle };
        };
        let from = match base {
            Some(base) if base.pod == self.pod.uid => base.from,
            // A patch that passed while the webhook was away has changed no guest.
            _ if self.heals() => End { size: seen.vmi.status, asked: seen.vmi.asked, pod: self.pod.spec },
            _ => End { size: seen.vmi.size, asked: seen.vmi.asked, pod: self.pod.spec },
        };
        let ledger = Ledger {
            phase: Phase::Preparing,
            pod: self.pod.uid.clone(),
            from,
            to: self.end(&from, wanted.size, wanted.follows),
            since: self.now,
            begun: self.now,
            touched: base.is_some_and(|base| base.touched),
            task: None,
            reason: None,
            then: Then::Forget,
            retry_at: None,
            refusal: None,
        };
        if !self.is_asked_for(&wanted) {
            return if base.is_some() { waiting(Waiting::Owner) } else { waiting(Waiting::Ask) };
        }
        if !self.policy.in_place {
            return self.give_over(&ledger, Reason::new(Cause::Disabled, ""));
        }
        if self.stock_at_work() && !self.heals() {
            return waiting(Waiting::KubeVirt);
        }
        if seen.migrating {
            return waiting(Waiting::Migration);
        }
        match self.forbidden() {
            Some(obstacle) => self.give_over(&ledger, Reason::new(Cause::Ineligible, &obstacle.to_string())),
            None if !seen.obstacles.is_empty() => waiting(Waiting::Obstacle),
            None => Step::Record(ledger),
        }
    }

    /// virt-controller has asked and was held, so the webhook stands and KubeVirt agrees that this
    /// is a live update. Memory of a VM that cannot migrate is never asked for: there our own
    /// grant takes its place.
    fn is_asked_for(&self, wanted: &Wanted) -> bool {
        let (vmi, wish) = (&self.seen.vmi, self.seen.wish.unwrap_or_default());
        let sockets = wanted.size.sockets != vmi.size.sockets && wish.sockets == Some(wanted.size.sockets);
        let memory = wanted.size.guest != vmi.size.guest
            && (wish.guest == Some(wanted.size.guest) || self.declares_memory());
        sockets || memory || self.heals()
    }

    /// The memory of this VM is declared by us, not by virt-controller.
    pub(super) fn declares_memory(&self) -> bool {
        self.seen.may_declare && !self.seen.vmi.migratable
    }

    /// KubeVirt has taken a size into the spec of a VM that cannot migrate, so it never gets there
    /// by itself; with the grant we bring it there.
    pub(super) fn heals(&self) -> bool {
        self.declares_memory() && self.stock_at_work()
    }

    fn forbidden(&self) -> Option<&Obstacle> {
        self.seen.obstacles.iter().find(|obstacle| !obstacle.is_temporary())
    }

    /// KubeVirt does it, if it can without stopping the VM.
    fn give_over(&self, ledger: &Ledger, reason: Reason) -> Step {
        let disabled = reason.cause == Cause::Disabled;
        let phase = if self.seen.vmi.migratable || disabled { Phase::Open } else { Phase::Stopped };
        Step::Record(Ledger { reason: Some(reason), ..ledger.at(phase, self.now) })
    }

    pub(super) fn preparing(&self, ledger: &Ledger) -> Step {
        if let Some(step) = self.changed_mind(ledger) {
            return step;
        }
        let both = ledger.from.pod.max(ledger.to.pod);
        // What a guest has been given stays covered until it is known to have given it back.
        let peak = if ledger.touched { both.max(self.pod.spec) } else { both };
        if self.pod.spec != peak {
            return match &ledger.refusal {
                None => Step::Resize(peak),
                Some(refusal) if self.policy.fallback == Fallback::Wait => {
                    let again = refusal.at + RETRY;
                    if self.now >= again {
                        Step::Resize(peak)
                    } else {
                        Step::Wait(Waiting::Quota, Some(again))
                    }
                }
                Some(refusal) => self.fall_back(ledger, Reason::new(Cause::Refused, &refusal.message)),
            };
        }
        let late = self.overdue(ledger);
        match &self.pod.state {
            Actuation::Done => {
                let task = first_task(ledger);
                // A guest that was touched may still have the memory of an earlier wish.
                let same_memory = !ledger.touched && ledger.from.size.guest == task.guest;
                let task = if same_memory { ledger.to.size } else { task };
                let next = ledger.at(Phase::Plugging, self.now);
                Step::Record(Ledger { touched: true, task: Some(task), ..next })
            }
            Actuation::Infeasible(message) => self.fall_back(ledger, Reason::new(Cause::Infeasible, message)),
            Actuation::Deferred(message) if late => {
                self.fall_back(ledger, Reason::new(Cause::Deferred, message))
            }
            Actuation::Error(message) if late => self.fall_back(ledger, Reason::new(Cause::Error, message)),
            Actuation::Pending if late => {
                self.fall_back(ledger, Reason::new(Cause::Error, "kubelet did not answer in time"))
            }
            _ => Step::Wait(Waiting::Kubelet, self.due(ledger)),
        }
    }

    pub(super) fn plugging(&self, ledger: &Ledger) -> Step {
        if let Some(step) = self.changed_mind(ledger) {
            return step;
        }
        let covered = self.pod.spec.covers(ledger.from.pod.max(ledger.to.pod));
        if !covered || self.pod.state != Actuation::Done {
            // Somebody else changed the pod, or kubelet took its word back (k/k#132851).
            return Step::Record(ledger.at(Phase::Preparing, self.now));
        }
        let (late, to) = (self.overdue(ledger), ledger.to.size);
        let memory_first = first_task(ledger);
        if ![Some(memory_first), Some(to)].contains(&ledger.task) {
            return self.set_task(ledger, memory_first);
        }
        let due = self.due(ledger).filter(|_| !late);
        let Some(guest) = self.guest(ledger) else {
            // What the guest has cannot be known, so nothing can go back; a migration heals it.
            return if late && self.falls_to_migration() {
                self.fall_back(ledger, Reason::new(Cause::Agent, "the agent does not answer"))
            } else {
                Step::Wait(Waiting::Agent, due)
            };
        };
        if guest.vcpus > self.vcpus(to) {
            return self.strand(ledger, guest);
        }
        if ledger.task == Some(to) && self.guest_is_at(guest, to) {
            return Step::Record(ledger.at(Phase::Declaring, self.now));
        }
        if ledger.task != Some(to) && guest.requested == to.guest && guest.current == to.guest {
            return self.set_task(ledger, to);
        }
        let committed = guest.vcpus > self.vcpus(ledger.from.size);
        if late && (!committed || self.falls_to_migration()) {
            let words = guest.trouble.as_deref().unwrap_or("the guest did not take it in time");
            return self.fall_back(ledger, Reason::new(Cause::Guest, words));
        }
        Step::Wait(Waiting::Guest, due)
    }

    fn set_task(&self, ledger: &Ledger, task: Size) -> Step {
        Step::Record(Ledger { task: Some(task), ..ledger.at(ledger.phase, self.now) })
    }

    pub(super) fn falls_to_migration(&self) -> bool {
        self.policy.fallback == Fallback::Migrate && self.seen.vmi.migratable
    }

    pub(super) fn declaring(&self, ledger: &Ledger) -> Step {
        let vmi = &self.seen.vmi;
        if vmi.size == ledger.to.size {
            if vmi.status == ledger.to.size {
                let done = self.pod.spec == ledger.to.pod && self.pod.state == Actuation::Done;
                return if done { Step::Clear } else { Step::Record(ledger.at(Phase::Trimming, self.now)) };
            }
            // Its patch passed while no webhook was there: KubeVirt migrates, which heals it. Who
            // cannot migrate needs the status from us.
            return if self.declares_memory() {
                Step::Declare(ledger.to)
            } else {
                waiting(Waiting::KubeVirt)
            };
        }
        if let Some(step) = self.changed_mind(ledger) {
            return step;
        }
        if self.heals() || (self.declares_memory() && vmi.size.guest != ledger.to.size.guest) {
            return Step::Declare(ledger.to);
        }
        waiting(Waiting::Declaration)
    }

    pub(super) fn trimming(&self, ledger: &Ledger) -> Step {
        if self.pod.spec != ledger.to.pod {
            return match &ledger.refusal {
                Some(refusal) if self.now < refusal.at + RETRY => {
                    Step::Wait(Waiting::Quota, Some(refusal.at + RETRY))
                }
                _ => Step::Resize(ledger.to.pod),
            };
        }
        if self.pod.state == Actuation::Done { Step::Clear } else { waiting(Waiting::Kubelet) }
    }

    /// The owner wants something else than this ledger leads to.
    fn changed_mind(&self, ledger: &Ledger) -> Option<Step> {
        let wanted = self.seen.wanted.filter(|wanted| wanted.size == ledger.to.size);
        if wanted.is_some() && self.policy.in_place {
            return None;
        }
        if wanted.is_some() && ledger.touched {
            // Switched off half-way: what was begun is ended.
            return None;
        }
        if wanted.is_some() {
            return Some(self.turn_back(ledger, Reason::new(Cause::Disabled, ""), Then::Open));
        }
        let Some(wanted) = self.wish() else {
            return Some(self.turn_back(ledger, Reason::new(Cause::Withdrawn, ""), Then::Forget));
        };
        if ledger.touched {
            match self.guest(ledger) {
                None => return Some(waiting(Waiting::Agent)),
                Some(guest) if guest.vcpus > self.vcpus(wanted.size) => {
                    return Some(self.strand(ledger, guest));
                }
                Some(_) => {}
            }
        }
        if let Some(obstacle) = self.forbidden() {
            let reason = Reason::new(Cause::Ineligible, &obstacle.to_string());
            let then = if self.seen.vmi.migratable { Then::Open } else { Then::Stop };
            return Some(self.turn_back(ledger, reason, then));
        }
        let from = self.declared_end(ledger);
        let to = self.end(&from, wanted.size, wanted.follows);
        Some(Step::Record(Ledger { from, to, ..ledger.at(Phase::Preparing, self.now) }))
    }

    /// The VM runs in another pod than the one that the ledger is about: everything that was done
    /// to the old pod is gone with it, while the guest came along (race R1).
    pub(super) fn rebase(&self, ledger: &Ledger) -> Step {
        let vmi = &self.seen.vmi;
        let moved = Ledger { pod: self.pod.uid.clone(), task: None, ..ledger.at(ledger.phase, self.now) };
        let mixed = |sockets: u32, guest: u64| {
            let size = Size { sockets, guest };
            let sides = [&ledger.from, &ledger.to];
            sides
                .iter()
                .find(|end| end.size == size)
                .map_or_else(|| self.end(&ledger.from, size, Follows::default()).pod, |end| end.pod)
        };
        let (old, new) = (ledger.from.size, ledger.to.size);
        let known = [
            mixed(old.sockets, old.guest),
            mixed(new.sockets, old.guest),
            mixed(old.sockets, new.guest),
            mixed(new.sockets, new.guest),
        ]
        .contains(&self.pod.spec);
        let moved = if known {
            moved
        } else {
            // Rendered by another KubeVirt or from other resources: measure from what it is.
            let from = End { size: vmi.size, asked: vmi.asked, pod: self.pod.spec };
            let to = self.end(&from, ledger.to.size, Follows::default());
            Ledger { from, to: End { asked: ledger.to.asked, ..to }, ..moved }
        };
        // KubeVirt may have declared and migrated meanwhile: back is where the VMI is now.
        let from = if ledger.is_stranded() { moved.from } else { self.declared_end(&moved) };
        let moved = Ledger { from, ..moved };
        match ledger.phase {
            Phase::Returning => Step::Record(moved),
            _ if vmi.size == new && vmi.status == new && self.pod.spec == moved.to.pod => Step::Clear,
            _ => Step::Record(moved.at(Phase::Preparing, self.now)),
        }
    }
}

/// Memory before vCPUs, which are the point of no return.
fn first_task(ledger: &Ledger) -> Size {
    Size { sockets: ledger.from.size.sockets, guest: ledger.to.size.guest }
}
