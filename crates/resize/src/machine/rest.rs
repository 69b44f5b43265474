//! Resizes that are not ours any more, or that have stopped.

use super::{Step, View, Waiting, waiting};
use crate::eligibility::Obstacle;
use crate::ledger::{Cause, End, Ledger, Phase, Reason, Then};
use crate::resources::Follows;

impl View<'_> {
    /// KubeVirt does it its own way.
    pub(super) fn open(&self, ledger: &Ledger) -> Step {
        let vmi = &self.seen.vmi;
        let asked_of_it = self.wish().is_some() && !self.needs_restart();
        if asked_of_it || self.stock_at_work() || self.seen.migrating {
            return waiting(Waiting::KubeVirt);
        }
        // The owner took the wish back before KubeVirt got to it: what we did has to go.
        let larger_guest = ledger.touched && vmi.size != ledger.to.size;
        let larger_pod = ledger.pod == self.pod.uid && self.pod.spec != self.declared_end(ledger).pod;
        if larger_guest || larger_pod {
            return self.turn_back(ledger, Reason::new(Cause::Withdrawn, ""), Then::Forget);
        }
        Step::Clear
    }

    /// What the owner wants is nothing that KubeVirt gives a running guest.
    fn needs_restart(&self) -> bool {
        self.seen.obstacles.iter().any(|obstacle| {
            matches!(
                obstacle,
                Obstacle::FewerSockets
                    | Obstacle::AboveMaxSockets(_)
                    | Obstacle::NoMaxSockets
                    | Obstacle::AboveMaxGuest(_)
                    | Obstacle::NoMaxGuest
                    | Obstacle::BelowBoot(_)
            )
        })
    }

    /// Given up. A new wish, or the time of the next attempt, starts it anew.
    pub(super) fn stopped(&self, ledger: &Ledger) -> Step {
        if ledger.is_stranded() {
            return self.stranded(ledger);
        }
        let Some(wanted) = self.wish() else { return Step::Clear };
        let other = wanted.size != ledger.to.size;
        let again = ledger.retry_at.is_some_and(|at| self.now >= at);
        if other || again || !self.policy.in_place {
            return self.start(Some(ledger));
        }
        Step::Wait(Waiting::Owner, ledger.retry_at)
    }

    /// The guest has more vCPUs than the VMI says, in a pod that is large enough for them.
    fn stranded(&self, ledger: &Ledger) -> Step {
        let (seen, vmi) = (self.seen, &self.seen.vmi);
        if seen.migrating {
            return waiting(Waiting::Migration);
        }
        if vmi.size == ledger.from.size && vmi.status == vmi.size {
            return if self.wish().is_some() { self.start(Some(ledger)) } else { Step::Clear };
        }
        if ledger.pod != self.pod.uid {
            // The new pod was rendered for what the VMI says; the guest came along with more.
            let rendered = End { size: vmi.size, asked: vmi.asked, pod: self.pod.spec };
            let from = self.end(&rendered, ledger.from.size, Follows::default());
            let pod = self.pod.uid.clone();
            let moved = Ledger { pod, from, task: None, then: Then::Stop, ..ledger.clone() };
            return Step::Record(Ledger { touched: true, ..moved.at(Phase::Returning, self.now) });
        }
        if seen.may_declare {
            return Step::Declare(ledger.from);
        }
        match self.wish() {
            Some(wanted) if wanted.size.sockets >= ledger.from.size.sockets => self.start(Some(ledger)),
            _ => waiting(Waiting::Owner),
        }
    }
}
