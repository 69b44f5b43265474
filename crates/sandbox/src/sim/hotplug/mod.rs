//! Hotplugged volumes, from the VM to the guest's disk: what virt-controller, kubelets, storage
//! drivers, virt-handlers and launchers do about them, release by release.
//!
//! ```text
//!  VM spec ─takeover─► VMI spec ─attachment─► pod hp-volume-… ─kubelet, storage─► published
//!                        │ ▲                                                        │
//!               volumeStatus└──────────── handler: mount ◄─────────────────────────┘
//!                                            │
//!                                            ▼
//!                              launcher plugs it in; the guest does I/O on it,
//!                              and is paused when the device behind it dies
//! ```
//!
//! Everything that decides is a pure function over objects; the components call it, and write what it
//! says under their own users.

pub(in crate::sim) mod attachment;
pub(in crate::sim) mod disks;
pub(in crate::sim) mod handler;
pub(in crate::sim) mod informer;
pub(in crate::sim) mod memory_dump;
pub(in crate::sim) mod pod;
pub(in crate::sim) mod rules;
pub(in crate::sim) mod status;
pub(in crate::sim) mod storage;
pub(in crate::sim) mod storage_classes;
pub(in crate::sim) mod takeover;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use apimachinery::tree::Value;
use jiff::Timestamp;
use tokio::time::Instant;

use super::Release;
use super::cache::Cache;
use super::json::{self, list, text};
use super::launcher::Launchers;
use super::storage::disks::{Disks as Contents, Source};
use super::virt_controller::launcher_pod::claim_of;
use disks::Disks;
use rules::Rules;
use storage::{Device, Place, Storage};

/// The label that attachment pods have under `kubevirt.io`.
pub const ATTACHMENT: &str = "hotplug-disk";
/// On a VMI: volumes that its guest never lets go of, by name and separated by commas; `*`: all.
pub const KEEPS: &str = "sandbox.vm-feature-manager.io/guest-keeps-disks";
/// On a claim, `true`: its driver never gets it onto a node.
pub const BROKEN: &str = "sandbox.vm-feature-manager.io/cannot-be-published";

/// How long things take that take no time in a simulation.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Timing {
    /// How far virt-controller's cache of attachment pods is behind.
    pub informer_lag: Duration,
    /// How long a kubelet takes to get an attachment pod's volumes and image; a second in the recordings.
    pub start_after: Duration,
    /// From the start of an attachment pod until it is ready.
    pub ready_after: Duration,
    /// From the end of a pod in the API until its kubelet has taken its volumes down.
    pub unpublish_after: Duration,
    /// How long a guest takes to notice a new disk.
    pub plug: Duration,
    /// How long a guest takes to let go of a disk.
    pub unplug: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            informer_lag: Duration::ZERO,
            start_after: Duration::from_millis(250),
            ready_after: Duration::ZERO,
            unpublish_after: Duration::from_millis(100),
            plug: Duration::from_millis(100),
            unplug: Duration::from_millis(100),
        }
    }
}

/// A guest that has lost a volume.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct IoError {
    /// Key of the VMI.
    pub vmi: String,
    /// The volume.
    pub volume: String,
    /// Uid of the launcher pod.
    pub launcher: String,
}

/// What the nodes have of volumes, and what became of it: shared by kubelets, virt-handlers and guests, as a kernel is.
pub struct Hotplug {
    pub(in crate::sim) rules: Rules,
    pub(in crate::sim) timing: Timing,
    pub(in crate::sim) storage: Storage,
    claims: Arc<Cache>,
    classes: Arc<Cache>,
    /// What claims hold.
    pub(in crate::sim) contents: Arc<Contents>,
    launchers: Arc<Launchers>,
    /// By uid of the launcher pod.
    disks: Mutex<BTreeMap<String, Disks>>,
    /// When a kubelet began with an attachment pod, by uid.
    begun: Mutex<BTreeMap<String, Instant>>,
    io_errors: Mutex<Vec<IoError>>,
    /// Wanted volumes that were unplugged.
    unplugged: Mutex<Vec<IoError>>,
}

impl Hotplug {
    /// Nothing is published yet.
    pub(in crate::sim) fn new(
        (release, timing): (Release, Timing),
        (claims, classes, contents): (&Arc<Cache>, &Arc<Cache>, &Arc<Contents>),
        launchers: &Arc<Launchers>,
    ) -> Arc<Self> {
        Arc::new(Self {
            rules: Rules::of(release),
            timing,
            storage: Storage::default(),
            claims: claims.clone(),
            classes: classes.clone(),
            contents: contents.clone(),
            launchers: launchers.clone(),
            disks: Mutex::default(),
            begun: Mutex::default(),
            io_errors: Mutex::default(),
            unplugged: Mutex::default(),
        })
    }

    /// How much longer a kubelet takes with an attachment pod before it can publish anything.
    pub(in crate::sim) fn still_starting(&self, pod: &Value) -> Option<Duration> {
        let begun = *lock(&self.begun).entry(json::uid(pod).to_owned()).or_insert_with(Instant::now);
        self.timing.start_after.checked_sub(begun.elapsed()).filter(|left| !left.is_zero())
    }

    /// Publishes what a pod uses to it, as its kubelet does before it starts the containers. `Err`: reason and message
    /// of the event.
    pub(in crate::sim) fn publish(&self, pod: &Value) -> Result<(), (&'static str, String)> {
        let node = text(pod, "/spec/nodeName");
        if pod::is_temporary(pod) {
            // It waits for its claim, and nobody looks for a disk in it.
            return self.all_bound(pod);
        }
        let strict = is_attachment(pod);
        for (_, name) in pod::used_claims(pod) {
            let key = json::join_key(json::namespace(pod), name);
            let Some(claim) = self.claims.get(&key).filter(|claim| text(claim, "/status/phase") == "Bound")
            else {
                if strict {
                    return Err(("FailedMount", unbound(&key, name)));
                }
                continue;
            };
            let ours = storage_classes::is_ours(&self.classes, &claim);
            let volume = storage_classes::volume_name(&claim);
            let attached = self.storage.attached(&key);
            if ours && !strict && !attached.contains(node) {
                // Only attachment pods wait for it here: launchers start as they always did.
                continue;
            }
            if ours && !attached.contains(node) {
                let message = if attached.is_empty() {
                    format!("AttachVolume.Attach for volume \"{volume}\" has not been done yet")
                } else {
                    format!(
                        "Multi-Attach error for volume \"{volume}\" Volume is already used by a pod on another node"
                    )
                };
                return Err(("FailedAttachVolume", message));
            }
            let (reason, doing) = if text(&claim, "/spec/volumeMode") == "Block" {
                ("FailedMapVolume", "MapVolume.SetUpDevice")
            } else {
                ("FailedMount", "MountVolume.SetUp")
            };
            let broken = json::annotation(&claim, BROKEN) == Some("true");
            let place = Place { node, claim: &key, pod: json::uid(pod) };
            let published = if broken {
                Err("rpc error: code = Internal desc = the volume cannot be published".to_owned())
            } else {
                self.storage.publish(place, storage_classes::profile_of(&self.classes, &claim))
            };
            published.map_err(|why| (reason, format!("{doing} failed for volume \"{volume}\" : {why}")))?;
        }
        Ok(())
    }

    /// All claims of a pod are bound.
    fn all_bound(&self, pod: &Value) -> Result<(), (&'static str, String)> {
        for (_, name) in pod::used_claims(pod) {
            let key = json::join_key(json::namespace(pod), name);
            let claim = self.claims.get(&key);
            if claim.is_none_or(|claim| text(&claim, "/status/phase") != "Bound") {
                return Err(("FailedMount", unbound(&key, name)));
            }
        }
        Ok(())
    }

    /// Takes down what a kubelet has published to a pod, and tells the guests whose devices have died.
    pub(in crate::sim) fn unpublish(&self, node: &str, pod: &str) {
        for claim in self.storage.claims_of(node, pod) {
            for device in self.storage.unpublish(Place { node, claim: &claim, pod }) {
                self.device_died(device);
            }
        }
    }

    fn device_died(&self, device: Device) {
        let hit: Vec<(String, String)> = {
            let mut all = self.disks();
            all.iter_mut()
                .filter_map(|(launcher, disks)| Some((launcher.clone(), disks.lose(device)?)))
                .collect()
        };
        for (launcher, volume) in hit {
            let Some(vmi) = self.launchers.vmi_of(&launcher) else { continue };
            let error = IoError { vmi, volume: volume.clone(), launcher: launcher.clone() };
            lock(&self.io_errors).push(error);
            self.launchers.change_guest(&launcher, |guest| guest.io_error.get_or_insert(volume).clone());
        }
    }

    /// A launcher is told to dump its guest's memory into the volumes that wait for it.
    pub(in crate::sim) fn dump_memory(&self, vmi: &Value, launcher: &str, now: Timestamp) {
        for (volume, file) in memory_dump::due(vmi) {
            self.dump_into(json::namespace(vmi), (volume, file), launcher, now);
        }
    }

    /// `VirtualMachineMemoryDump`: a file that is there, or on its way, is not written again.
    pub(in crate::sim) fn dump_into(
        &self,
        namespace: &str,
        (volume, file): (&str, &str),
        launcher: &str,
        now: Timestamp,
    ) {
        let claim = self.claims.get(&json::join_key(namespace, volume));
        let room = claim.as_deref().map_or(0, memory_dump::room);
        let directory = self.contents.files(namespace, volume);
        self.launchers.guest(launcher, |guest| {
            if guest.dump.as_ref().is_none_or(|dump| dump.file != file) {
                let size = guest.machine.counted();
                guest.dump = Some(memory_dump::Dump::take((&directory, file), size, room, now));
            }
        });
    }

    /// Copies what moves with a migration into its new claims (`virDomainMigrate` with `migrate_disks`). `Err`: which
    /// could not be copied, and why.
    pub(in crate::sim) async fn copy_moving(&self, vmi: &Value) -> Result<(), String> {
        for one in list(vmi, "/status/migratedVolumes") {
            let claim = |end: &str| {
                let name = text(one, &format!("/{end}/claimName"));
                self.claims.get(&json::join_key(json::namespace(vmi), name))
            };
            let (Some(from), Some(to)) = (claim("sourcePVCInfo"), claim("destinationPVCInfo")) else {
                continue;
            };
            let contents = self.contents.clone();
            let copied =
                tokio::task::spawn_blocking(move || contents.populate(&to, &Source::Claim(from))).await;
            let copied = copied.map_err(std::io::Error::other).and_then(std::convert::identity);
            copied.map_err(|error| format!("cannot copy volume {}: {error}", text(one, "/volumeName")))?;
        }
        Ok(())
    }

    /// The device of a claim as it is published to a pod.
    pub(in crate::sim) fn device(
        &self,
        node: &str,
        namespace: &str,
        pod: &str,
        claim: &str,
    ) -> Option<Device> {
        let key = json::join_key(namespace, claim);
        self.storage.device(Place { node, claim: &key, pod })
    }

    fn disks(&self) -> MutexGuard<'_, BTreeMap<String, Disks>> {
        lock(&self.disks)
    }

    /// Works with the disks of a launcher; devices that it opens and closes meanwhile are noted.
    pub(in crate::sim) fn with_disks<R>(&self, launcher: &str, work: impl FnOnce(&mut Disks) -> R) -> R {
        let mut all = self.disks();
        let disks = all.entry(launcher.to_owned()).or_default();
        let before: Vec<Device> = disks.open().collect();
        let result = work(disks);
        let after: Vec<Device> = disks.open().collect();
        if disks.mounts.is_empty() && disks.plugged.is_empty() && disks.failed.is_none() {
            all.remove(launcher);
        }
        drop(all);
        for device in after.iter().filter(|device| !before.contains(device)) {
            self.storage.open(*device);
        }
        for device in before.iter().filter(|device| !after.contains(device)) {
            self.storage.close(*device);
        }
        result
    }

    /// Whether a launcher has anything hotplugged.
    pub(in crate::sim) fn has_disks(&self, launcher: &str) -> bool {
        self.disks().contains_key(launcher)
    }

    /// A pod has gone, with all that it had.
    pub(in crate::sim) fn forget(&self, launcher: &str) {
        lock(&self.begun).remove(launcher);
        if self.has_disks(launcher) {
            self.with_disks(launcher, |disks| *disks = Disks::default());
        }
    }

    /// Notes wanted volumes that a guest lost for a while.
    pub(in crate::sim) fn note_unplugged(&self, vmi: &str, launcher: &str, volumes: Vec<String>) {
        let lost =
            volumes.into_iter().map(|volume| IoError { vmi: vmi.into(), volume, launcher: launcher.into() });
        lock(&self.unplugged).extend(lost);
    }

    /// Every volume that died under a guest, in order.
    pub fn io_errors(&self) -> Vec<IoError> {
        lock(&self.io_errors).clone()
    }

    /// Every volume that was unplugged although it was wanted, in order.
    pub fn unplugged(&self) -> Vec<IoError> {
        lock(&self.unplugged).clone()
    }
}

fn unbound(key: &str, name: &str) -> String {
    format!(
        "Unable to attach or mount volumes: unmounted volumes=[{name}], unattached volumes=[], failed to process \
         volumes=[{name}]: PVC {key} is not bound"
    )
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether a pod is an attachment pod.
pub fn is_attachment(pod: &Value) -> bool {
    json::label(pod, "kubevirt.io") == ATTACHMENT
}

/// The volumes of a VMI that its launcher pod does not have from the start, in the order of the spec
/// (`GetHotplugVolumes`, pkg/storage/types/volume.go:77-109).
pub fn hotplugged<'v>(vmi: &'v Value, launcher: &Value) -> Vec<&'v Value> {
    let at_start = |name: &str| list(launcher, "/spec/volumes").iter().any(|volume| volume["name"] == name);
    list(vmi, "/spec/volumes")
        .iter()
        .filter(|volume| claim_of(volume).is_some() && !at_start(text(volume, "/name")))
        .collect()
}

/// The same without a launcher at hand: what is marked so.
pub fn is_marked(volume: &Value) -> bool {
    is_declared(volume) || volume["memoryDump"]["hotpluggable"] == true
}

/// A disk that comes and goes with the VM's template (`IsDeclarativeHotplugVolume`).
pub fn is_declared(volume: &Value) -> bool {
    ["persistentVolumeClaim", "dataVolume"].iter().any(|kind| volume[*kind]["hotpluggable"] == true)
}

impl std::fmt::Debug for Hotplug {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Hotplug").field("rules", &self.rules).finish_non_exhaustive()
    }
}

/// The entry of a volume in the status of a VMI.
pub fn entry<'v>(vmi: &'v Value, volume: &str) -> Option<&'v Value> {
    list(vmi, "/status/volumeStatus").iter().find(|status| status["name"] == volume)
}
