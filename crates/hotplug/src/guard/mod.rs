//! Whether an attachment pod may be deleted now.
//!
//! ```text
//!  DELETE hp-volume-x ─► pass(): can it do no harm, or must it never be held up? ─► allow, why
//!                        │ no
//!                        ▼
//!                  cover(): each volume in use that no other pod of the launcher serves
//!                        │ none ─► allow        some ─► deny: volume, why, until what
//! ```
//!
//! The rule is conservative on both sides: it denies only while a guest would lose a volume that
//! it has, and everything that makes a cluster wedge when it is denied passes first. KubeVirt
//! keeps the newest old pod until the new one *runs* (volume-hotplug.go:95-104, v1.9) and asks a
//! cache; the guard asks for a pod that is *ready*, by live reads.

mod cover;
mod launcher;
mod pass;

pub use cover::{Coverage, in_use};
pub use launcher::{Forced, decide_forced, decide_namespace};

use std::fmt::Write as _;

use serde::Serialize;

use crate::Seconds;
use crate::policy::{Classes, Limits};
use crate::record::Record;
use crate::view::{AttachmentPod, Instance, Launcher, Node, rfc3339};

/// What was read, live, before a verdict.
#[derive(Clone, Debug)]
pub struct Observation<'a> {
    /// The pod that somebody wants to delete.
    pub pod: AttachmentPod<'a>,
    /// Its namespace is being deleted.
    pub namespace_terminating: bool,
    /// Its namespace carries the break-glass annotation.
    pub namespace_break_glass: bool,
    /// Its launcher; `None`: gone, or another pod of that name.
    pub launcher: Option<Launcher<'a>>,
    /// The VMI of the launcher; `None`: gone, or another one of that name.
    pub instance: Option<Instance<'a>>,
    /// All attachment pods of the launcher; the pod itself may be among them.
    pub siblings: Vec<AttachmentPod<'a>>,
    /// The node of the launcher; `None`: there is no such node.
    pub node: Option<Node<'a>>,
    /// The opt-ins of the claims.
    pub classes: Classes<'a>,
    /// Volumes that a pod (by uid) cannot mount, from its events; only read for claims whose
    /// class is exclusive-publish.
    pub unmountable: Vec<(&'a str, &'a str)>,
}

/// Why a delete is let through.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reason {
    /// It is being deleted already, and this is its kubelet's last word.
    Terminating,
    /// It does not run any more.
    Ended,
    /// It only makes a claim bind.
    Trigger,
    /// It was never scheduled.
    Unscheduled,
    /// Its namespace is being deleted.
    NamespaceTerminating,
    /// Its launcher is gone or has ended: there is no guest.
    LauncherGone,
    /// Its VMI is gone or has ended.
    InstanceGone,
    /// The guest should have been down long ago.
    ShutdownOverdue,
    /// The guest runs in another launcher: after a migration, or since one has failed.
    NotActive,
    /// The node is lost.
    NodeLost,
    /// Somebody has said so.
    BreakGlass,
    /// It does not get to run.
    Stuck,
    /// Everything in use is served by another pod, or nothing is in use.
    Covered,
    /// The driver serves only one pod at a time, and the replacement waits for this one to go.
    ExclusivePublish,
}

/// Why a volume would be lost.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Loss {
    /// No other pod of this launcher has its claim.
    NoReplacement,
    /// It was removed from the VMI, and the guest has not let go of it.
    GuestHolds,
    /// The pod that has it does not run yet.
    NotRunning,
    /// The pod that has it runs, and is not ready.
    NotReady,
    /// The pod that has it is about to be deleted as well.
    Doomed,
    /// The pod that has it does not mount it, and the class is strict.
    NotMounted,
    /// It has to stay with the pod that it was taken from.
    Pinned,
    /// A migration goes to the launcher of this pod.
    MigrationTarget,
}

/// A volume that a guest would lose.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct LostVolume {
    /// Its name in the VMI.
    pub volume: String,
    /// Its claim.
    pub claim: String,
    /// Why it would be lost.
    pub loss: Loss,
    /// The pod that is waited for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub waits_for: Option<String>,
}

impl LostVolume {
    fn words(&self) -> (String, String) {
        let pod = self.waits_for.as_deref().unwrap_or("the replacement");
        match self.loss {
            Loss::NoReplacement => (
                "no other pod holds it".into(),
                "another attachment pod with it is ready, or the guest lets go of it".into(),
            ),
            Loss::GuestHolds => {
                ("the guest has not let go of it".into(), "the guest has unplugged it, or stops".into())
            }
            Loss::NotRunning => (format!("pod {pod} does not run yet"), format!("pod {pod} is ready")),
            Loss::NotReady => (format!("pod {pod} runs and is not ready"), format!("pod {pod} is ready")),
            Loss::Doomed => (
                format!("pod {pod} is being deleted as well"),
                "another attachment pod with it is ready".into(),
            ),
            Loss::NotMounted => (
                format!("pod {pod} lists it and does not mount it, and its storage class is strict"),
                "a pod that mounts it is ready, or the guest lets go of it".into(),
            ),
            Loss::Pinned => (
                "its storage class pins it to the pod that it was taken from".into(),
                "the guest lets go of it, or stops".into(),
            ),
            Loss::MigrationTarget => {
                ("a migration is going to use it from this pod".into(), "the migration ends".into())
            }
        }
    }
}

/// A denial.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Denial {
    /// What would be lost; never empty.
    pub volumes: Vec<LostVolume>,
    /// Since when this delete is denied.
    pub since: Seconds,
}

impl Denial {
    /// What the user reads: which volume, why, until what, since when.
    pub fn message(&self, pod: &str) -> String {
        let mut text = format!("deleting attachment pod {pod} would break volumes of a running guest: ");
        for (at, lost) in self.volumes.iter().enumerate() {
            let (why, until) = lost.words();
            if at > 0 {
                text.push_str("; ");
            }
            let _ = write!(
                text,
                "volume \"{}\" (claim \"{}\"): {why}; it is allowed as soon as {until}",
                lost.volume, lost.claim
            );
        }
        let _ = write!(text, ". Denied since {}", rfc3339(self.since));
        text
    }
}

/// The answer.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Verdict {
    /// It may go.
    Allow(Reason),
    /// It has to stay for now.
    Deny(Denial),
}

impl Verdict {
    /// Whether it may go.
    pub fn is_allowed(&self) -> bool {
        matches!(self, Self::Allow(_))
    }
}

/// Decides one DELETE, or one eviction, of an attachment pod.
///
/// `record` says which deletes were granted before this one and may still be under way: their
/// pods are no cover. The caller notes a grant in it, and writes it back before it answers.
pub fn decide(seen: &Observation<'_>, record: &Record, limits: &Limits, now: Seconds) -> Verdict {
    if let Some(reason) = pass::pass(seen, limits, now) {
        return Verdict::Allow(reason);
    }
    let coverage = cover::coverage(seen, record, limits, now);
    if coverage.lost.is_empty() {
        let reason = if coverage.excused { Reason::ExclusivePublish } else { Reason::Covered };
        return Verdict::Allow(reason);
    }
    let since = record.denied.get(seen.pod.uid).copied().unwrap_or(now);
    Verdict::Deny(Denial { volumes: coverage.lost, since })
}
