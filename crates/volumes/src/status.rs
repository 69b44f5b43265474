//! Where each volume stands, and what it waits for.

use hotplug::plan::{Hold, holds, unsettled};
use hotplug::settle::{Wait, why_not_ready};
use hotplug::view::PodPhase;
use serde::Serialize;

use crate::{Error, Machine};

/// One volume of a VM.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct VolumeReport {
    /// Its name.
    pub name: String,
    /// Its claim; empty: it has left the VM.
    pub claim: String,
    /// Where it stands; `requested`: KubeVirt has not said anything yet.
    pub phase: String,
    /// The guest's name of it; empty: the guest does not have it.
    pub target: String,
    /// The attachment pod that serves it, by name.
    pub pod: String,
    /// What KubeVirt says about it.
    pub message: String,
}

/// Where the volumes of a VM stand.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// The VM runs.
    pub running: bool,
    /// Nothing is waited for.
    pub settled: bool,
    /// All hotplugged volumes, by name.
    pub volumes: Vec<VolumeReport>,
    /// What is waited for.
    pub waits: Vec<Wait>,
    /// What goes first.
    pub holds: Vec<Hold>,
    /// Attachment pods that do not run, with the reason.
    pub pods: Vec<String>,
}

impl Machine {
    /// Reads where the volumes stand.
    ///
    /// # Errors
    /// The VM is not there, or something cannot be read.
    pub async fn report(&self) -> Result<Report, Error> {
        let snapshot = self.observe(&[]).await?;
        let seen = snapshot.seen();
        let Some(instance) = &seen.instance else { return Ok(Report { settled: true, ..Report::default() }) };
        let waits = unsettled(seen.vm, instance, &seen.pods);
        let mut names: Vec<&str> = instance.hotplugged().map(|volume| volume.name).collect();
        names.extend(instance.status.iter().map(|status| status.name));
        names.sort_unstable();
        names.dedup();
        let volume = |name: &&str| {
            let status = instance.status_of(name);
            let claim = instance.volumes.iter().find(|volume| volume.name == *name);
            let pod = status.and_then(|status| seen.pods.iter().find(|pod| pod.uid == status.attach_pod));
            VolumeReport {
                name: (*name).to_owned(),
                claim: claim.map_or("", |volume| volume.claim).to_owned(),
                phase: status.map_or("requested", |status| status.phase.name()).to_owned(),
                target: status.map_or("", |status| status.target).to_owned(),
                pod: pod.map_or("", |pod| pod.name).to_owned(),
                message: status.map_or("", |status| status.message).to_owned(),
            }
        };
        Ok(Report {
            running: instance.running,
            settled: waits.is_empty(),
            volumes: names.iter().map(volume).collect(),
            waits,
            holds: holds(instance, &seen.circumstances),
            pods: seen
                .pods
                .iter()
                .filter(|pod| pod.phase != PodPhase::Running)
                .map(|pod| format!("{}: {}", pod.name, why_not_ready(pod)))
                .collect(),
        })
    }
}
