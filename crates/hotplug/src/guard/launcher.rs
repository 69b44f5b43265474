//! Two deletes beside attachment pods that take volumes from a running guest: a launcher pod
//! forced away with filesystem volumes (`OpenShift` BZ-2007397: the disk image may be wiped), and a
//! whole namespace with running VMs.

use serde::Serialize;

use crate::Seconds;
use crate::policy::Limits;
use crate::view::{AttachmentPod, Instance, Launcher, Node, Usage};

/// The answer to a forced delete of a launcher pod.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub enum Forced {
    /// It may go.
    Allow,
    /// It would take these filesystem volumes from under a running guest.
    Deny(Vec<String>),
}

/// Decides a DELETE with `gracePeriodSeconds: 0` of a launcher pod. Its kubelet removes the
/// object's directory while the guest may still write to a bind mount in it; without force the
/// kubelet waits. A lost node, a guest that is down, a VMI that is gone and a terminating
/// namespace pass.
pub fn decide_forced(
    launcher: &Launcher<'_>,
    instance: Option<&Instance<'_>>,
    pods: &[AttachmentPod<'_>],
    node: Option<&Node<'_>>,
    namespace_terminating: bool,
    break_glass: bool,
    now: Seconds,
) -> Forced {
    let Some(instance) = instance else { return Forced::Allow };
    let lost = node.is_none_or(|node| node.is_lost(now, launcher.toleration));
    let passes = launcher.down
        || instance.is_final
        || !instance.running
        || instance.node != launcher.node
        || lost
        || namespace_terminating
        || break_glass
        || instance.break_glass;
    if passes {
        return Forced::Allow;
    }
    let mut volumes: Vec<String> = pods
        .iter()
        .filter(|pod| pod.launcher == Some(launcher.uid))
        .flat_map(|pod| pod.volumes.iter())
        .filter(|volume| volume.usage != Usage::Device)
        .filter(|volume| instance.status_of(volume.name).is_some_and(|status| !status.target.is_empty()))
        .map(|volume| volume.name.to_owned())
        .collect();
    volumes.sort();
    volumes.dedup();
    if volumes.is_empty() { Forced::Allow } else { Forced::Deny(volumes) }
}

/// Decides the DELETE of a namespace that asked to be protected: the running VMIs in it, by name. One that is being
/// deleted counts until its guest should have been down long ago, since the guest flushes with its volumes.
/// Once the namespace is being deleted nothing is denied any more: its controller must never be held up.
pub fn decide_namespace<'a>(
    terminating: bool,
    instances: &[Instance<'a>],
    limits: &Limits,
    now: Seconds,
) -> Vec<&'a str> {
    if terminating {
        return Vec::new();
    }
    let overdue = |vmi: &Instance<'_>| {
        vmi.deletion
            .is_some_and(|at| now > at.saturating_add(vmi.termination_grace).saturating_add(limits.slack))
    };
    instances.iter().filter(|vmi| vmi.running && !overdue(vmi)).map(|vmi| vmi.name).collect()
}
