//! Whether a VMI may get another set of volumes now (rule O10).
//!
//! virt-controller writes the set of the VM into the VMI in one patch, and tries again when the
//! patch is refused; the next one carries the set of that moment. So holding a patch back until
//! the last one has come to rest serialises changes, and makes one batch of all that came in
//! between, for every client that does not know of it: virtctl, a CSI driver, GitOps.
//!
//! Only this VMI waits, and never for ever: what passes is listed in [`Reason`].

use std::fmt::Write as _;

use serde::Serialize;
use serde_json::Value;

use crate::Seconds;
use crate::guard::in_use;
use crate::policy::Limits;
use crate::record::Record;
use crate::settle::{Wait, is_at_rest_with_several, waits};
use crate::view::{AttachmentPod, Instance, Phase, rfc3339};

/// An UPDATE of a VMI, and what was read to judge it.
#[derive(Clone, Debug)]
pub struct Change<'a> {
    /// The VMI as it is stored.
    pub old: Instance<'a>,
    /// The VMI as it would be.
    pub new: Instance<'a>,
    /// The attachment pods of its launcher.
    pub pods: Vec<AttachmentPod<'a>>,
    /// A migration of it has been asked for, and has not ended.
    pub migrating: bool,
}

impl<'a> Change<'a> {
    /// The change from `old` to `new`, with what is about this VMI among all that its namespace holds: the attachment pods of
    /// its launcher, given by uid, and a migration that names it. So no VM ever waits for another one.
    pub fn among(
        old: Instance<'a>,
        new: Instance<'a>,
        launcher: &str,
        pods: &'a [Value],
        migrations: &[Value],
    ) -> Self {
        let own = |pod: &AttachmentPod<'_>| pod.launcher == Some(launcher);
        let pods = pods.iter().filter_map(AttachmentPod::read).filter(own).collect();
        let migrating = migrations.iter().any(|migration| is_migrating(migration, old.name));
        Self { old, new, pods, migrating }
    }
}

fn is_migrating(migration: &Value, vmi: &str) -> bool {
    migration["spec"]["vmiName"] == vmi
        && !matches!(migration["status"]["phase"].as_str(), Some("Succeeded" | "Failed"))
}

/// Why a change passes.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reason {
    /// The volumes are the same.
    Unchanged,
    /// The VMI does not run, or is about to end.
    NotRunning,
    /// A migration moves volumes to other claims, and owns these fields.
    VolumeMigration,
    /// It only takes away what no guest has, and no other volume is on its way into the guest.
    NeverAttached,
    /// Somebody has said so.
    BreakGlass,
    /// The last change has come to rest.
    Settled,
    /// It was held back long enough.
    Overdue,
}

/// The answer.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Verdict {
    /// It may happen.
    Allow(Reason),
    /// It has to wait.
    Hold(Hold),
}

/// What a held change waits for.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Hold {
    /// A migration has to end first.
    pub migrating: bool,
    /// What has not come to rest.
    pub waits: Vec<Wait>,
    /// Since when.
    pub since: Seconds,
    /// When it is let through in any case; `None`: the migration is waited for.
    pub until: Option<Seconds>,
}

impl Hold {
    /// What the user reads.
    pub fn message(&self, instance: &str) -> String {
        let mut text = format!("the volumes of {instance} change when the last change has come to rest: ");
        if self.migrating {
            text.push_str("a migration is under way");
        } else {
            let waits: Vec<String> = self.waits.iter().map(Wait::words).collect();
            text.push_str(&waits.join("; "));
        }
        let _ = write!(text, ". Held since {}", rfc3339(self.since));
        if let Some(until) = self.until {
            let _ = write!(text, ", until {} at the latest", rfc3339(until));
        }
        text.push_str("; it is tried again without anybody's doing");
        text
    }
}

/// Decides one change of a VMI.
pub fn decide(change: &Change<'_>, record: &Record, limits: &Limits, now: Seconds) -> Verdict {
    let Change { old, new, pods, migrating } = change;
    if same_volumes(old, new) {
        return Verdict::Allow(Reason::Unchanged);
    }
    let passes = [
        (!old.running || old.deletion.is_some() || new.deletion.is_some(), Reason::NotRunning),
        (old.migrating_volumes || new.migrating_volumes, Reason::VolumeMigration),
        (old.break_glass || new.break_glass, Reason::BreakGlass),
    ];
    if let Some((_, reason)) = passes.into_iter().find(|(holds, _)| *holds) {
        return Verdict::Allow(reason);
    }
    let since = record.held.unwrap_or(now);
    // The target's attachment pod is made once, from the set of that moment (migration.go:1855,
    // v1.9); KubeVirt ends a migration that does not get on.
    if *migrating || old.migration.is_some_and(|migration| migration.is_running()) {
        return Verdict::Hold(Hold { migrating: true, waits: Vec::new(), since, until: None });
    }
    if takes_only_what_nobody_has(change) && !is_another_arriving(change) {
        return Verdict::Allow(Reason::NeverAttached);
    }
    let mut waits = waits(old, pods);
    if is_at_rest_with_several(old, pods, now) {
        waits.clear();
    }
    if waits.is_empty() && now.saturating_sub(since) < limits.comeback {
        waits = returning(change, record);
    }
    if waits.is_empty() {
        return Verdict::Allow(Reason::Settled);
    }
    let until = since.saturating_add(limits.gate);
    // A disk that is on its way into the guest would be taken out again (W7), so that one is waited for, once more as long.
    let arriving = old.hotplugged().any(|volume| {
        let status = old.status_of(volume.name);
        !volume.utility
            && status.is_some_and(|status| status.phase == Phase::MountedToPod && status.target.is_empty())
    });
    let last = if arriving { until.saturating_add(limits.gate) } else { until };
    if now > last {
        return Verdict::Allow(Reason::Overdue);
    }
    Verdict::Hold(Hold { migrating: false, waits, since, until: Some(until) })
}

/// A migration that is asked for while a guest has not let go of a removed volume.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Departure {
    /// Volumes that are in the guest and no longer in its spec.
    pub leaving: Vec<String>,
    /// Since when migrations are held.
    pub since: Seconds,
    /// When one is let through in any case.
    pub until: Seconds,
}

impl Departure {
    /// What the user reads.
    pub fn message(&self, instance: &str) -> String {
        format!(
            "{instance} cannot migrate yet: its guest has not let go of removed volumes {}, and a target would be made \
             without them, so the migration would fail. Held since {}, until {} at the latest; ask again in a moment",
            self.leaving.join(", "),
            rfc3339(self.since),
            rfc3339(self.until),
        )
    }
}

/// Decides the CREATE of a migration. The target gets the set of the spec (migration.go:1855-1865, v1.9), so a disk that
/// has left the spec and not the guest makes it fail. `None`: it may start.
pub fn decide_migration(
    instance: &Instance<'_>,
    pods: &[AttachmentPod<'_>],
    record: &Record,
    limits: &Limits,
    now: Seconds,
) -> Option<Departure> {
    let gone = |name: &str| !instance.volumes.iter().any(|volume| volume.name == name);
    let in_guest = |name: &str| {
        instance.status_of(name).is_some_and(|status| !status.target.is_empty())
            || pods.iter().any(|pod| in_use(instance, pod, name))
    };
    let leaving: Vec<String> = instance
        .status
        .iter()
        .map(|status| status.name)
        .filter(|name| gone(name) && in_guest(name))
        .map(str::to_owned)
        .collect();
    let since = record.departs.unwrap_or(now);
    let until = since.saturating_add(limits.gate);
    let passes = leaving.is_empty()
        || !instance.running
        || instance.deletion.is_some()
        || instance.break_glass
        || now > until;
    (!passes).then_some(Departure { leaving, since, until })
}

/// Volumes that come back after a removal that was let through a while ago.
fn returning(change: &Change<'_>, record: &Record) -> Vec<Wait> {
    added(change)
        .filter(|volume| record.left.contains_key(*volume))
        .map(|volume| Wait::Returning { volume: volume.to_owned() })
        .collect()
}

/// The names of volumes that a change adds.
pub fn added<'c>(change: &'c Change<'_>) -> impl Iterator<Item = &'c str> {
    change.new.volumes.iter().filter(|volume| !change.old.volumes.contains(volume)).map(|volume| volume.name)
}

/// The names of volumes that a change takes away.
pub fn removed<'c>(change: &'c Change<'_>) -> impl Iterator<Item = &'c str> {
    change.old.volumes.iter().filter(|volume| !change.new.volumes.contains(volume)).map(|volume| volume.name)
}

fn same_volumes(old: &Instance<'_>, new: &Instance<'_>) -> bool {
    let within = |one: &Instance<'_>, other: &Instance<'_>| {
        one.volumes.iter().all(|volume| other.volumes.contains(volume))
    };
    within(old, new) && within(new, old)
}

/// Whether a volume that stays is about to be mounted, or mounted and not yet seen in the guest. A change of the set sets it
/// back, and virt-launcher takes it out again when it has come so far (W7), whatever was removed.
fn is_another_arriving(change: &Change<'_>) -> bool {
    change.new.hotplugged().filter(|volume| !volume.utility).any(|volume| {
        change.old.status_of(volume.name).is_some_and(|status| {
            let mounted = status.phase == Phase::MountedToPod && status.target.is_empty();
            let next = status.phase == Phase::AttachedToNode && !status.attach_pod.is_empty();
            mounted || next
        })
    })
}

/// A removal that no guest notices must not wait: it may be what everything else waits for.
fn takes_only_what_nobody_has(change: &Change<'_>) -> bool {
    let Change { old, new, pods, .. } = change;
    let adds = new.volumes.iter().any(|volume| !old.volumes.contains(volume));
    let removed = old.volumes.iter().filter(|volume| !new.volumes.contains(volume));
    let held = |name: &str| {
        pods.iter().any(|pod| in_use(old, pod, name))
            || old.status_of(name).is_some_and(|status| !status.target.is_empty())
    };
    !adds && removed.into_iter().all(|volume| volume.hotplug && !held(volume.name))
}
