//! A VM that runs, through a backup of `KubeVirt`'s: as a whole, or what changed since an earlier export.

use std::sync::Arc;

use ::export::lineage::{Base, Checkpoint, Lineage, base, same_size};
use ::export::run::{ExportDisk, Job};
use ::export::source::Source;
use ::export::source::backup::{Backup, BackupSource, Ready, Scratch, Setup};
use anyhow::Result;
use image::{Backing, Format};
use serde_json::Value;

use super::Args;
use super::destination::Destination;
use super::preflight::size_of;
use super::subject::{Opened, Vm, export_name};
use crate::problem::Problem;

/// Why a VM is not exported through a backup; `None`: it can be.
pub fn unfit(args: &Args, vm: &Vm) -> Option<String> {
    if vm.is_claim || args.no_backup || args.no_snapshot || args.snapshot.is_some() {
        return Some("a backup is not wanted".into());
    }
    let Some(phase) = vm.running() else {
        return Some("the VM does not run, and nobody tracks what changes".into());
    };
    let vmi = vm.vmi.as_ref()?;
    match vmi["status"]["changedBlockTracking"]["state"].as_str() {
        _ if phase != "Running" => Some(format!("the guest is {phase}")),
        Some("Enabled") => None,
        Some(state) => Some(format!("change tracking of the VM is {state}")),
        None => Some(
            "KubeVirt does not track changes of the VM (gate IncrementalBackup, and a label that matches)"
                .into(),
        ),
    }
}

/// Begins a backup, and finds what the export builds on.
pub async fn open(args: &Args, vm: &Vm, destination: &Destination) -> Result<Opened> {
    let doing = || format!("backing {} up", vm.describe());
    let remedy = "see `kubectl describe vmbackup` in the namespace of the VM, or export with --no-backup";
    let failed = |error: ::export::Error| Problem::new(doing(), error, remedy);
    let chain = format!("{}/{}", args.job.as_deref().unwrap_or_default(), destination.parent());
    let tracker = args.incremental.then(|| export_name(&vm.name, Some(&format!("tracker/{chain}"))));
    let setup = Setup {
        namespace: vm.namespace.clone(),
        vm: vm.name.clone(),
        name: export_name(&vm.name, Some(&format!("backup/{chain}"))),
        tracker: tracker.clone(),
        again: args.resume,
        scratch: scratch(args, vm).await,
        ttl: super::hours(args.ttl),
        ready_within: std::time::Duration::from_secs(args.timeout),
    };
    let backup = Arc::new(Backup::new(vm.cluster.client(), setup));
    backup.clear().await.map_err(failed)?;
    let name = args.name.clone().unwrap_or_else(|| vm.name.clone());
    let mut lineage = Lineage::default();
    let mut over = None;
    if let Some(tracker) = &tracker {
        let latest = backup.latest_checkpoint().await.map_err(failed)?;
        let beside = destination.beside(&name).await.map_err(failed)?;
        let volumes: Vec<String> = vm.volumes.iter().map(|volume| volume.name.clone()).collect();
        match base(&beside, tracker, latest.as_deref(), &volumes, args.full_every) {
            Ok(base) => over = Some(base.clone()),
            Err(why) => lineage.full_because = Some(why),
        }
    }
    let mut ready = backup.start(over.is_none()).await.map_err(failed)?;
    if over.is_some() && !ready.incremental {
        // Its tracker lost the checkpoint while it was waiting: after a restart of the guest, for example.
        over = None;
        lineage.full_because = Some("KubeVirt lost the checkpoint, and made a backup of everything".into());
    }
    let mut sources = read(vm, &backup, &ready).await?;
    let grown = over.as_ref().and_then(|over| {
        let mut all = vm.volumes.iter().zip(&sources);
        all.find_map(|(volume, source)| same_size(over, &volume.name, source.size()).err())
    });
    if let Some(why) = grown {
        over = None;
        lineage.full_because = Some(why);
        ready = backup.start(true).await.map_err(failed)?;
        sources = read(vm, &backup, &ready).await?;
    }
    match (&over, &lineage.full_because) {
        (Some(over), _) if !args.quiet => eprintln!("what changed since {} is exported", over.id),
        (None, Some(why)) => eprintln!("everything is exported: {why}"),
        _ => {}
    }
    let checkpoint = ready.checkpoint.clone().unwrap_or_default();
    lineage.base = over.as_ref().map(|over| over.id.clone());
    lineage.depth = over.as_ref().map_or(0, |over| over.lineage.depth + 1);
    lineage.checkpoint = tracker.map(|tracker| Checkpoint { tracker, name: checkpoint.clone() });
    let disks = vm.volumes.iter().zip(sources).map(|(volume, source)| {
        let base = over.as_ref().and_then(|over| backing(over, &volume.name, &source));
        ExportDisk { volume: volume.clone(), source: Arc::new(source), base }
    });
    let (manifest, expanded, vmi) = (vm.manifest.clone(), vm.expanded.clone(), vm.vmi.clone());
    let source = format!("{} backup {checkpoint}", vm.describe());
    let job = Job { name, source, vm: manifest, expanded, vmi, disks: disks.collect(), lineage };
    Ok(Opened { job, export: None, snapshot: None, backup: Some(backup) })
}

fn backing(over: &Base, volume: &str, source: &BackupSource) -> Option<Backing> {
    let file = same_size(over, volume, source.size()).ok()?;
    let file = format!("../{}/{file}", over.id);
    Some(Backing { file, format: Format::Qcow2, changed: source.changed().to_vec() })
}

async fn read(vm: &Vm, backup: &Arc<Backup>, ready: &Ready) -> Result<Vec<BackupSource>> {
    let doing = || format!("backing {} up", vm.describe());
    let mut out = Vec::new();
    for volume in &vm.volumes {
        if !ready.volumes().any(|name| name == volume.name) {
            let names: Vec<&str> = ready.volumes().collect();
            let wrong = format!("KubeVirt's backup holds {} and not {}", names.join(", "), volume.name);
            let remedy = "leave it out by naming the others with --disk, or export with --no-backup";
            return Err(Problem::new(doing(), wrong, remedy).into());
        }
        let what = format!("volume {} of {}", volume.name, vm.describe());
        let source = BackupSource::open(&what, &volume.name, backup.clone(), ready.incremental).await;
        let remedy = "the exporter pod reaches the VM's launcher through a tunnel: see its log";
        let source = source.map_err(|error| Problem::new(doing(), error, remedy))?;
        let path = format!("/api/v1/namespaces/{}/persistentvolumeclaims/{}", vm.namespace, volume.claim);
        let claim = vm.cluster.get(&path).await.unwrap_or_default();
        if let Some(capacity) = unseen(&claim, source.size()) {
            eprintln!(
                "warning: the guest sees {} bytes of {}, and its claim {} has {capacity}: what was added is not \
                 exported before the VM restarts",
                source.size(),
                volume.name,
                volume.claim
            );
        }
        out.push(source);
    }
    Ok(out)
}

/// The capacity of a block device that is larger than the guest's disk on it: it was expanded. What lies on a file
/// system may be of any size.
fn unseen(claim: &Value, size: u64) -> Option<u64> {
    let block = claim["spec"]["volumeMode"] == "Block";
    size_of(claim).filter(|capacity| block && *capacity > size)
}

/// Where QEMU keeps what is overwritten: at worst everything is.
async fn scratch(args: &Args, vm: &Vm) -> Scratch {
    if let Some(claim) = &args.scratch {
        return Scratch::Claim(claim.clone());
    }
    let (mut bytes, mut class) = (0_u64, args.storage_class.clone());
    for volume in &vm.volumes {
        let path = format!("/api/v1/namespaces/{}/persistentvolumeclaims/{}", vm.namespace, volume.claim);
        let claim = vm.cluster.get(&path).await.unwrap_or_default();
        bytes = bytes.saturating_add(size_of(&claim).unwrap_or(10 << 30));
        class = class.or_else(|| claim["spec"]["storageClassName"].as_str().map(str::to_owned));
    }
    // Room for the file system and the tables of the images.
    Scratch::New { bytes: bytes.saturating_add(bytes / 10).max(1 << 30), class }
}

/// Ends a backup whose disks are safe, and says when the next export cannot build on this one.
pub async fn finish(backup: &Backup, lineage: &Lineage) {
    match (backup.finish().await, &lineage.checkpoint) {
        (Err(error), _) => eprintln!("warning: {error}"),
        (Ok(latest), Some(checkpoint)) if latest.as_ref() != Some(&checkpoint.name) => {
            let found = latest.as_deref().unwrap_or("none");
            eprintln!(
                "warning: KubeVirt's last checkpoint is {found} and not {}: the next export holds everything",
                checkpoint.name
            );
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_block_device_that_outgrew_the_guests_disk_is_seen() {
        let claim = |mode: &str| {
            json!({"spec": {"volumeMode": mode, "resources": {"requests": {"storage": "1Gi"}}},
            "status": {"capacity": {"storage": "2Gi"}}})
        };
        assert_eq!(unseen(&claim("Block"), 1 << 30), Some(2 << 30));
        assert_eq!(unseen(&claim("Block"), 2 << 30), None);
        assert_eq!(unseen(&claim("Filesystem"), 1 << 30), None);
        assert_eq!(unseen(&Value::Null, 1), None);
    }
}
