//! The next step of one VM's resize. A step is one write; after it the world is looked at again.
//!
//! ```text
//!            wish held
//!               │ Record
//!               ▼        pod too small: Resize(larger of both ends)
//!  ┌──────► Preparing ◄──────────────────────┐ the owner asks for another size,
//!  │            │ kubelet has done it        │ or the VM runs in another pod (R1)
//!  │            ▼        task: memory, then vCPUs
//!  │        Plugging ────────────────────────┤
//!  │            │ the guest has it           │
//!  │            ▼        the webhook lets virt-controller's patch pass, with the status
//!  │        Declaring ───────────────────────┘
//!  │            │ the VMI says it
//!  │            ▼        Resize(new end), after a decrease
//!  │        Trimming ──► Clear
//!  │
//!  │   quota, kubelet, guest or owner say no
//!  │            │
//!  │            ▼        task: old memory; then Resize(old end)
//!  │        Returning ─┬─► Clear      the wish was taken back
//!  │                   ├─► Open       KubeVirt migrates; patches pass
//!  └─ new wish ─ retry ┴─► Stopped    patches stay held
//! ```
//!
//! What must hold at every moment, whoever dies when:
//!
//! - The pod covers what the guest has: it grows before the guest and shrinks after it.
//! - The VMI says only what the guest has, so that KubeVirt finds nothing to migrate for.
//! - vCPUs are plugged last and never unplugged, so memory is all that ever has to come back.
//! - `touched` is written before the guest is first asked to change: who gives up without it may
//!   put the pod back without asking the guest.
//! - What the guest has counts only when the agent reports it of this pod and for the last task:
//!   an older task that is still on its way must not come after the look at the guest.

mod back;
mod forward;
mod rest;

#[cfg(test)]
mod tests;

use std::fmt;

use crate::eligibility::Obstacle;
use crate::ledger::{End, Ledger, Phase, Report, Wish};
use crate::policy::{Fallback, Policy};
use crate::resources::{self, Demand, Follows, Rules};
use crate::size::{Asked, Compute, Size};

/// After so many seconds something is tried again that nobody else retries: a resize that the API
/// server refused, or that kubelet called infeasible.
pub const RETRY: i64 = 300;

/// What is seen of one VM, read anew for every step.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct Seen {
    /// What the VM asks for; nothing when it is gone.
    pub wanted: Option<Wanted>,
    /// The running VMI.
    pub vmi: Vmi,
    /// The launcher pod that the guest runs in; nothing while there is none or it ends.
    pub pod: Option<Pod>,
    /// A migration is asked for or under way (any VMIM that is not final).
    pub migrating: bool,
    /// [`crate::ledger::REPORT`]
    pub report: Option<Report>,
    /// [`crate::ledger::LEDGER`]
    pub ledger: Option<Ledger>,
    /// [`crate::ledger::WISH`]
    pub wish: Option<Wish>,
    /// What stands against the way from the VMI's size to the wanted one.
    pub obstacles: Vec<Obstacle>,
    /// The cluster's configuration.
    pub rules: Rules,
    /// The grant to write VMIs as KubeVirt itself is there (design D2).
    pub may_declare: bool,
}

/// What a VM asks for.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct Wanted {
    /// Of the template, after instancetypes.
    pub size: Size,
    /// Which resources the template names.
    pub follows: Follows,
}

/// A running VMI.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub struct Vmi {
    /// `spec`
    pub size: Size,
    /// `status.currentCPUTopology.sockets` and `status.memory.guestRequested`.
    pub status: Size,
    /// `spec.domain.resources`
    pub asked: Asked,
    /// Cores times threads.
    pub vcpus_per_socket: u32,
    /// `spec.domain.resources.overcommitGuestOverhead`
    pub overcommit_overhead: bool,
    /// `LiveMigratable`
    pub migratable: bool,
    /// `HotVCPUChange` or `HotMemoryChange` is there: KubeVirt is at it.
    pub stock_at_work: bool,
}

/// The launcher pod.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct Pod {
    /// Its uid.
    pub uid: String,
    /// `spec` of the container `compute`.
    pub spec: Compute,
    /// What kubelet has made of it.
    pub state: Actuation,
}

/// How far kubelet is with what the pod's spec says.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub enum Actuation {
    /// Everything is as the spec says.
    Done,
    /// Not seen yet, or being done.
    Pending,
    /// `PodResizePending`, `Deferred`
    Deferred(String),
    /// `PodResizePending`, `Infeasible`
    Infeasible(String),
    /// `PodResizeInProgress`, `Error`
    Error(String),
}

/// The one thing to do next.
#[allow(clippy::large_enum_variant, reason = "one at a time, and matched by value")]
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub enum Step {
    /// Nothing is wanted.
    Idle,
    /// Look again when something changes, and at a time if there is one (seconds since 1970).
    Wait(Waiting, Option<i64>),
    /// Write the ledger on the VMI, guarded by its resourceVersion.
    Record(Ledger),
    /// Remove ledger and wish from the VMI, guarded by its resourceVersion.
    Clear,
    /// Give the container these resources, guarded by the pod's uid.
    Resize(Compute),
    /// Write this into the VMI as KubeVirt itself (D2): spec and status in one patch.
    Declare(End),
}

/// What is being waited for.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Waiting {
    /// A launcher pod that runs.
    Launcher,
    /// The end of a migration.
    Migration,
    /// virt-controller to ask for the new size.
    Ask,
    /// An obstacle that will pass.
    Obstacle,
    /// kubelet to do, or to admit, the pod's new resources.
    Kubelet,
    /// Quota or limits to allow the pod's new resources.
    Quota,
    /// The agent on the VM's node.
    Agent,
    /// The guest to take, or to give back, memory or vCPUs.
    Guest,
    /// virt-controller to send its patch again.
    Declaration,
    /// KubeVirt to do it its own way.
    KubeVirt,
    /// The owner, or the time of the next attempt.
    Owner,
}

impl fmt::Display for Waiting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Launcher => "waiting for the launcher pod",
            Self::Migration => "waiting for a migration to end",
            Self::Ask => "waiting for virt-controller to ask for the new size",
            Self::Obstacle => "waiting for what stands in the way to pass",
            Self::Kubelet => "waiting for kubelet to resize the pod",
            Self::Quota => "waiting for quota",
            Self::Agent => "waiting for the agent on the VM's node",
            Self::Guest => "waiting for the guest",
            Self::Declaration => "waiting for virt-controller to write the new size",
            Self::KubeVirt => "waiting for KubeVirt to do it its own way",
            Self::Owner => "waiting for the owner",
        })
    }
}

/// Decides the next step. `now` is in seconds since 1970.
pub fn decide(seen: &Seen, policy: &Policy, now: i64) -> Step {
    let Some(pod) = &seen.pod else { return Step::Wait(Waiting::Launcher, None) };
    let view = View { seen, policy, now, pod };
    let Some(ledger) = &seen.ledger else { return view.start(None) };
    match ledger.phase {
        Phase::Open => view.open(ledger),
        Phase::Stopped => view.stopped(ledger),
        _ if seen.migrating => Step::Wait(Waiting::Migration, None),
        // A patch passed while the webhook was away: KubeVirt migrates, and we look again.
        _ if view.stock_at_work() && seen.vmi.migratable => Step::Wait(Waiting::KubeVirt, None),
        _ if ledger.pod != pod.uid => view.rebase(ledger),
        Phase::Preparing => view.preparing(ledger),
        Phase::Plugging => view.plugging(ledger),
        Phase::Declaring => view.declaring(ledger),
        Phase::Trimming => view.trimming(ledger),
        Phase::Returning => view.returning(ledger),
    }
}

/// To look again when something changes.
fn waiting(why: Waiting) -> Step {
    Step::Wait(why, None)
}

/// What every part of the decision looks at.
struct View<'a> {
    seen: &'a Seen,
    policy: &'a Policy,
    now: i64,
    pod: &'a Pod,
}

impl View<'_> {
    /// When a phase that began at a time has taken too long; never with [`Fallback::Wait`].
    fn due(&self, ledger: &Ledger) -> Option<i64> {
        (self.policy.fallback != Fallback::Wait).then(|| ledger.since + i64::from(self.policy.deadline))
    }

    /// The VMI says more or less than the guest has, or KubeVirt has noticed.
    fn stock_at_work(&self) -> bool {
        self.seen.vmi.stock_at_work || self.seen.vmi.status != self.seen.vmi.size
    }

    fn overdue(&self, ledger: &Ledger) -> bool {
        self.due(ledger).is_some_and(|due| self.now >= due)
    }

    fn vcpus(&self, size: Size) -> u32 {
        size.sockets.max(1).saturating_mul(self.seen.vmi.vcpus_per_socket.max(1))
    }

    fn demand(&self, size: Size, asked: Asked) -> Demand {
        let vmi = &self.seen.vmi;
        Demand {
            size,
            vcpus_per_socket: vmi.vcpus_per_socket,
            asked,
            overcommit_overhead: vmi.overcommit_overhead,
        }
    }

    /// The other end of a resize that starts at `from`.
    fn end(&self, from: &End, to: Size, follows: Follows) -> End {
        let rules = &self.seen.rules;
        let old = self.demand(from.size, from.asked);
        let asked = resources::asked_at(&old, to, follows, rules);
        let pod = resources::resized(from.pod, &old, &self.demand(to, asked), rules);
        End { size: to, asked, pod }
    }

    /// The end that the VMI shows now, in the scale of a ledger's pod.
    fn declared_end(&self, ledger: &Ledger) -> End {
        let vmi = &self.seen.vmi;
        // Not the spec: a patch that passed while the webhook was away has changed no guest yet.
        let size = vmi.status;
        if size == ledger.from.size {
            return ledger.from;
        }
        let rules = &self.seen.rules;
        let old = self.demand(ledger.from.size, ledger.from.asked);
        let pod = resources::resized(ledger.from.pod, &old, &self.demand(size, vmi.asked), rules);
        End { size, asked: vmi.asked, pod }
    }

    /// The wanted size, when it is not what the VMI has already.
    fn wish(&self) -> Option<Wanted> {
        let vmi = &self.seen.vmi;
        let differs =
            |wanted: &Wanted| wanted.size != vmi.size || (self.heals() && wanted.size != vmi.status);
        self.seen.wanted.filter(differs)
    }

    /// The guest as it is after the ledger's task; nothing while the agent has not done it.
    fn guest(&self, ledger: &Ledger) -> Option<&Report> {
        let report = self.seen.report.as_ref()?;
        (report.pod == self.pod.uid && report.task == ledger.task).then_some(report)
    }

    fn guest_is_at(&self, guest: &Report, size: Size) -> bool {
        guest.vcpus == self.vcpus(size) && guest.requested == size.guest && guest.current == size.guest
    }
}
