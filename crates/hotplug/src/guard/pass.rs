//! What passes whatever the guest does, in the order in which it is asked. Each of these cases
//! either can do no harm, or would wedge something if it were held up.

use super::{Observation, Reason};
use crate::Seconds;
use crate::policy::Limits;
use crate::view::{Instance, Launcher, PodPhase};

/// Why the delete passes, if one of the cases holds.
pub(super) fn pass(seen: &Observation<'_>, limits: &Limits, now: Seconds) -> Option<Reason> {
    let pod = &seen.pod;
    let found = [
        (pod.deleting, Reason::Terminating),
        (pod.phase.is_final(), Reason::Ended),
        (pod.trigger, Reason::Trigger),
        (pod.node.is_empty(), Reason::Unscheduled),
        // One denial aborts a DeleteCollection, and "hp-volume-" sorts before "virt-launcher-".
        (seen.namespace_terminating, Reason::NamespaceTerminating),
    ];
    if let Some((_, reason)) = found.into_iter().find(|(holds, _)| *holds) {
        return Some(reason);
    }
    let Some(launcher) = seen.launcher.as_ref().filter(|launcher| !launcher.down) else {
        return Some(Reason::LauncherGone);
    };
    let Some(instance) = seen.instance.as_ref().filter(|instance| !instance.is_final) else {
        return Some(Reason::InstanceGone);
    };
    if is_overdue(launcher, instance, limits, now) {
        return Some(Reason::ShutdownOverdue);
    }
    if standing(launcher, instance) == Standing::Left {
        return Some(Reason::NotActive);
    }
    if seen.node.is_none_or(|node| node.is_lost(now, launcher.toleration)) {
        return Some(Reason::NodeLost);
    }
    if pod.break_glass || instance.break_glass || seen.namespace_break_glass {
        return Some(Reason::BreakGlass);
    }
    // While one pod is Pending, virt-controller creates no other: a stuck one is a wedge.
    let too_old = now.saturating_sub(pod.created) > limits.pending;
    (pod.phase == PodPhase::Pending && (too_old || !pod.trouble.is_empty())).then_some(Reason::Stuck)
}

/// A shutdown may take as long as it was given, and a little longer. The `deletionTimestamp` of a
/// pod has its grace period in it, that of a VMI has not.
fn is_overdue(launcher: &Launcher<'_>, instance: &Instance<'_>, limits: &Limits, now: Seconds) -> bool {
    let ends = |at: Seconds, grace: Seconds| at.saturating_add(grace).saturating_add(limits.slack);
    launcher.deletion.is_some_and(|at| now > ends(at, 0))
        || instance.deletion.is_some_and(|at| now > ends(at, instance.termination_grace))
}

/// What a launcher is to its VMI.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Standing {
    /// The guest runs in it.
    Active,
    /// A migration is on its way to it.
    Target,
    /// The guest has left it, or will never come.
    Left,
}

/// Reads it from the state of the last migration, which names both launchers.
pub(super) fn standing(launcher: &Launcher<'_>, instance: &Instance<'_>) -> Standing {
    let known = instance.migration.filter(|migration| {
        [migration.source_pod, migration.target_pod].contains(&launcher.name)
            || (!launcher.migration.is_empty() && launcher.migration == migration.uid)
    });
    if let Some(migration) = known {
        let is_target = migration.target_pod == launcher.name
            || (launcher.migration == migration.uid && migration.source_pod != launcher.name);
        return match (is_target, migration.is_running(), migration.failed) {
            (true, true, _) => Standing::Target,
            (true, false, true) | (false, false, false) => Standing::Left,
            (true, false, false) | (false, true, _) | (false, false, true) => Standing::Active,
        };
    }
    if launcher.node == instance.node {
        return Standing::Active;
    }
    // The target of a migration that has not been handed over yet: KubeVirt deletes it when that
    // ends, so this does not last.
    if launcher.migration.is_empty() { Standing::Left } else { Standing::Target }
}
