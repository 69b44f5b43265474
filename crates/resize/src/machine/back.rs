//! The way back to the old size.

use super::{Actuation, RETRY, Step, View, Waiting, waiting};
use crate::ledger::{Cause, Ledger, Phase, Reason, Report, Then};
use crate::policy::Fallback;
use crate::resources::Follows;
use crate::size::Size;

impl View<'_> {
    /// The node, the guest or the API server say no: what the policy has for that.
    pub(super) fn fall_back(&self, ledger: &Ledger, reason: Reason) -> Step {
        match self.policy.fallback {
            // The guest has part of it already: KubeVirt's migration brings the rest.
            Fallback::Migrate if self.seen.vmi.migratable && ledger.touched => {
                Step::Record(Ledger { reason: Some(reason), ..ledger.at(Phase::Open, self.now) })
            }
            Fallback::Migrate if self.seen.vmi.migratable => self.turn_back(ledger, reason, Then::Open),
            Fallback::Migrate | Fallback::Revert => self.turn_back(ledger, reason, Then::Stop),
            Fallback::Wait => self.turn_back(ledger, reason, Then::Retry),
        }
    }

    pub(super) fn turn_back(&self, ledger: &Ledger, reason: Reason, then: Then) -> Step {
        let from = self.declared_end(ledger);
        let task = ledger.touched.then_some(from.size);
        let next = ledger.at(Phase::Returning, self.now);
        Step::Record(Ledger { from, task, reason: Some(reason), then, ..next })
    }

    /// The guest keeps vCPUs that nobody wants any more: the pod stays large enough for them.
    pub(super) fn strand(&self, ledger: &Ledger, guest: &Report) -> Step {
        let declared = self.declared_end(ledger);
        let sockets = guest.vcpus.div_ceil(self.seen.vmi.vcpus_per_socket.max(1));
        let size = Size { sockets, guest: declared.size.guest };
        let from = self.end(&declared, size, Follows::default());
        let message = format!(
            "the guest has {} vCPUs and keeps them until it is restarted: vCPUs are never unplugged",
            guest.vcpus
        );
        let reason = Some(Reason::new(Cause::Stranded, &message));
        let next = ledger.at(Phase::Returning, self.now);
        Step::Record(Ledger { from, task: Some(size), reason, then: Then::Stop, ..next })
    }

    pub(super) fn returning(&self, ledger: &Ledger) -> Step {
        let from = ledger.from;
        if ledger.touched {
            if ledger.task != Some(from.size) {
                return Step::Record(Ledger { task: Some(from.size), ..ledger.clone() });
            }
            let Some(guest) = self.guest(ledger) else { return waiting(Waiting::Agent) };
            if guest.vcpus > self.vcpus(from.size) {
                return self.strand(ledger, guest);
            }
            if guest.requested != from.size.guest || guest.current != from.size.guest {
                return waiting(Waiting::Guest);
            }
        }
        if self.pod.spec != from.pod {
            return match &ledger.refusal {
                Some(refusal) if self.now < refusal.at + RETRY => {
                    Step::Wait(Waiting::Quota, Some(refusal.at + RETRY))
                }
                _ => Step::Resize(from.pod),
            };
        }
        if self.pod.state != Actuation::Done {
            return waiting(Waiting::Kubelet);
        }
        // A stranded guest still has more than the VMI says.
        let ended = Ledger { touched: ledger.is_stranded(), ..ledger.at(Phase::Stopped, self.now) };
        match ledger.then {
            Then::Forget => Step::Clear,
            Then::Open => Step::Record(Ledger { phase: Phase::Open, ..ended }),
            Then::Stop => Step::Record(ended),
            Then::Retry => Step::Record(Ledger { retry_at: Some(self.now + RETRY), ..ended }),
        }
    }
}
