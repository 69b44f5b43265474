//! The virt-handlers of all simulated nodes: they start guests and write down what becomes of
//! them (`pkg/virt-handler/vm.go`, v1.9).
//!
//! ```text
//!  Scheduled ──guest starts──► Running ──guest ends──► Succeeded (shut down) / Failed (crashed)
//! ```

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::cache::Cache;
use super::client::ClientError;
use super::events::{Note, Recorder};
use super::guest::Guest;
use super::guest::nics::Nics;
use super::hooks::{Hooks, Stage};
use super::hotplug::{self, Hotplug, handler};
use super::identity::Identity;
use super::json::{self, is_deleting, list, put, text, time, update_condition};
use super::launcher::{Domain, Launchers};
use super::live_migration::{self, SourceStep};
use super::queue::Queue;
use super::resource::VMIS;
use super::virt_controller::migration::decide::TARGET_NODE_LABEL;
use super::virt_controller::vmi::{pod_is_down, pod_is_ready, record_phase};
use super::write::{Op, Write, Writer};

const COMPONENT: &str = "virt-handler";
const WORKERS: usize = 24;
/// How often sidecars that are not ready are looked at.
const HOOKS_POLL: Duration = Duration::from_millis(100);
/// How often volumes are looked for that a guest cannot start without.
const VOLUMES_POLL: Duration = Duration::from_millis(100);
/// The machine type that libvirt makes of the alias `q35`.
const CANONICAL_MACHINE: &str = "pc-q35-rhel9.6.0";

/// The virt-handlers.
pub struct VirtHandler {
    nodes: Vec<String>,
    writer: Writer,
    recorder: Recorder,
    vmis: Arc<Cache>,
    /// Indexed by the uid of the owner.
    pods: Arc<Cache>,
    launchers: Arc<Launchers>,
    hooks: Hooks,
    hotplug: Arc<Hotplug>,
    queue: Queue,
    /// When the transfer of a migration began, by the migration's uid.
    transfers: Mutex<HashMap<String, Timestamp>>,
}

impl VirtHandler {
    /// Handles the VMIs of these nodes.
    pub fn start(
        nodes: Vec<String>,
        writer: Writer,
        recorder: Recorder,
        (vmis, pods): (&Arc<Cache>, &Arc<Cache>),
        (launchers, hooks, hotplug): (&Arc<Launchers>, &Hooks, &Arc<Hotplug>),
        stop: &CancellationToken,
    ) {
        let queue = Queue::default();
        let handler = Arc::new(Self {
            nodes,
            writer,
            recorder,
            vmis: vmis.clone(),
            pods: pods.clone(),
            launchers: launchers.clone(),
            hooks: hooks.clone(),
            hotplug: hotplug.clone(),
            queue: queue.clone(),
            transfers: Mutex::default(),
        });
        let of_pods = hooks.clone();
        pods.on_change(move |change| {
            if change.new.is_none() {
                of_pods.forget(json::uid(change.object()));
            }
        });
        let on_vmi = handler.clone();
        vmis.on_change(move |change| {
            if !json::label(change.object(), "kubevirt.io/nodeName").is_empty() {
                on_vmi.queue.add(change.key);
            }
        });
        let on_domain = queue.clone();
        launchers.on_change(move |launcher| on_domain.add(&launcher.vmi));
        queue.run(COMPONENT, WORKERS, stop, move |key| {
            let handler = handler.clone();
            async move { handler.reconcile(&key).await }
        });
    }

    async fn reconcile(&self, key: &str) -> Result<Option<Duration>, ClientError> {
        let Some(vmi) = self.vmis.get(key) else { return Ok(None) };
        self.as_target(&vmi).await?;
        let Some(vmi) = self.vmis.get(key) else { return Ok(None) };
        let node = text(&vmi, "/status/nodeName");
        if node.is_empty() || !self.nodes.iter().any(|one| one == node) {
            return Ok(None);
        }
        let who = Identity::virt_handler(node);
        let pods = self.pods.indexed(json::uid(&vmi));
        self.tidy_up(&vmi, node, &pods);
        let Some(pod) = newest_on(&pods, node) else { return Ok(None) };
        let pod_uid = json::uid(pod);
        let phase = text(&vmi, "/status/phase");
        let boots = phase == "Scheduled" && pod_is_ready(pod) && !is_deleting(&vmi);
        if boots && self.launchers.domain(pod_uid).is_none() {
            match self.hooks.stage(&vmi, pod) {
                None | Some(Stage::Defined(_)) => {}
                Some(Stage::Waiting) => return Ok(Some(HOOKS_POLL)),
                Some(stage) => return self.without_domain(&who, &vmi, pod, stage).await,
            }
        }
        if boots
            && self.launchers.domain(pod_uid).is_none()
            && let Some(wait) = self.before_boot(&who, &vmi, pod).await?
        {
            return Ok(Some(wait));
        }
        if (boots || phase == "Running") && !is_deleting(pod) {
            // A domain that runs already, from before a restart of ours, is taken over.
            self.launchers.define(pod_uid, &json::key(pod), key, || Guest::of(&vmi));
        }
        let Some(domain) = self.launchers.domain(pod_uid) else { return Ok(None) };
        let now = self.writer.client.now();
        let guest = self.launchers.guest(pod_uid, |guest| {
            guest.nics.unplug(&vmi);
            guest.clone()
        });
        let mut updated = decide(&vmi, pod, domain, now).unwrap_or_else(|| vmi.as_ref().clone());
        if let Some(guest) = &guest {
            describe_state(&mut updated, guest, now);
            live_migration::grow(&mut updated, guest.machine.counted());
        }
        let plugged = if domain == Domain::Running { self.volumes(&mut updated, pod, now) } else { None };
        if updated != *vmi {
            let answer = self.writer.write(&who, &Write::to(&VMIS, &vmi, "", Op::Update(updated))).await?;
            self.note(&who, &answer, phase);
            let stopped = |vmi: &Value| {
                json::condition(vmi, "/status/conditions", "Paused")
                    .is_some_and(|one| one["reason"] == "PausedIOError")
            };
            if let Some(volume) = guest.as_ref().and_then(|guest| guest.io_error.as_ref())
                && stopped(&answer)
                && !stopped(&vmi)
            {
                let message = format!("VM Paused due to IO error at the volume: {volume}");
                self.recorder.note(&who, COMPONENT, Note::warning(&answer, "IOerror", message));
            }
        }
        if matches!(domain, Domain::Off { .. }) {
            self.hotplug.forget(pod_uid);
            self.hooks.end(pod_uid);
            self.launchers.acknowledge(pod_uid);
        }
        if let Some(left) = self.as_source(key, &who, node, &pods).await? {
            return Ok(Some(left));
        }
        let thaw = guest.and_then(|guest| guest.frozen(now));
        let thaw = thaw.map(|at| Duration::try_from(at.duration_since(now)).unwrap_or_default());
        Ok([thaw, plugged].into_iter().flatten().min())
    }

    /// Looks at the volumes of a VMI as its node sees them.
    fn look<R>(
        &self,
        vmi: &Value,
        node: &str,
        now: Timestamp,
        work: impl FnOnce(&handler::Observation<'_>) -> R,
    ) -> R {
        let namespace = json::namespace(vmi);
        let device = |pod: &str, claim: &str| self.hotplug.device(node, namespace, pod, claim);
        work(&handler::Observation {
            vmi,
            rules: self.hotplug.rules,
            timing: self.hotplug.timing,
            now,
            device: &device,
            alive: &|device| self.hotplug.storage.is_alive(device),
        })
    }

    /// Hotplugged volumes that a VM starts with have to be there before its guest is: when to look again.
    async fn before_boot(
        &self,
        who: &Identity,
        vmi: &Value,
        pod: &Value,
    ) -> Result<Option<Duration>, ClientError> {
        if !list(vmi, "/spec/volumes").iter().any(hotplug::is_marked) {
            return Ok(None);
        }
        let (uid, node) = (json::uid(pod), text(pod, "/spec/nodeName"));
        let (may_boot, status) = self.hotplug.with_disks(uid, |disks| {
            self.look(vmi, node, self.writer.client.now(), |seen| {
                handler::mount(seen, disks);
                let may_boot = handler::may_boot(vmi, disks);
                let status = handler::describe(seen, disks);
                if may_boot {
                    handler::boot(vmi, disks);
                }
                (may_boot, status)
            })
        });
        if may_boot {
            return Ok(None);
        }
        if list(vmi, "/status/volumeStatus") != status.as_slice() {
            let mut updated = vmi.clone();
            put(&mut updated, &["status", "volumeStatus"], status);
            self.writer.write(who, &Write::to(&VMIS, vmi, "", Op::Update(updated))).await?;
        }
        Ok(Some(VOLUMES_POLL))
    }

    /// Mounts, plugs, unplugs and unmounts, and writes down how far all of it is: when to look again.
    fn volumes(&self, vmi: &mut Value, pod: &Value, now: Timestamp) -> Option<Duration> {
        let (uid, node) = (json::uid(pod), text(pod, "/spec/nodeName"));
        let key = json::key(vmi);
        let reported = list(vmi, "/status/volumeStatus").iter().any(|one| one["hotplugVolume"].is_object());
        if !reported && !self.hotplug.has_disks(uid) {
            return None;
        }
        let outcome = self
            .hotplug
            .with_disks(uid, |disks| self.look(vmi, node, now, |seen| handler::pass(seen, disks)));
        self.hotplug.note_unplugged(&key, uid, outcome.unplugged);
        put(vmi, &["status", "volumeStatus"], outcome.status);
        outcome.after
    }

    /// What is said where a sidecar kept the domain from being defined.
    async fn without_domain(
        &self,
        who: &Identity,
        vmi: &Value,
        pod: &Value,
        stage: Stage,
    ) -> Result<Option<Duration>, ClientError> {
        match stage {
            Stage::Unmounted(reason) => {
                self.recorder.note(who, "kubelet", Note::warning(pod, "FailedMount", reason));
            }
            Stage::Panicked(reason) => {
                self.recorder.note(who, COMPONENT, Note::warning(vmi, "Stopped", format!("panic: {reason}")));
                // the launcher is gone before there is a guest
                let guest = || Guest::of(vmi);
                self.launchers.define(json::uid(pod), &json::key(pod), &json::key(vmi), guest);
                self.launchers.end(json::uid(pod), true);
            }
            Stage::Refused(reason) => {
                let message = format!("server error. command SyncVMI failed: {reason:?}");
                let mut updated = vmi.clone();
                let mut conditions = list(vmi, "/status/conditions").to_vec();
                update_condition(
                    &mut conditions,
                    json!({"type": "Synchronized", "status": "False", "lastProbeTime": null,
                        "lastTransitionTime": time(self.writer.client.now()),
                        "reason": "Synchronizing with the Domain failed.", "message": message}),
                );
                put(&mut updated, &["status", "conditions"], conditions);
                if updated != *vmi {
                    self.writer.write(who, &Write::to(&VMIS, vmi, "", Op::Update(updated))).await?;
                    self.recorder.note(who, COMPONENT, Note::warning(vmi, "SyncFailed", message));
                }
            }
            Stage::Waiting | Stage::Defined(_) => {}
        }
        Ok(Some(HOOKS_POLL))
    }

    /// This node's part when a guest comes to it.
    async fn as_target(&self, vmi: &Value) -> Result<(), ClientError> {
        let node = json::label(vmi, TARGET_NODE_LABEL);
        if node.is_empty() || !self.nodes.iter().any(|one| one == node) {
            return Ok(());
        }
        let pods = self.pods.indexed(json::uid(vmi));
        let Some(pod) = newest_on(&pods, node) else { return Ok(()) };
        let attachment = text(vmi, "/status/migrationState/targetAttachmentPodUID");
        if !attachment.is_empty() {
            self.hotplug.with_disks(json::uid(pod), |disks| {
                self.look(vmi, node, self.writer.client.now(), |seen| {
                    handler::mount_target(seen, attachment, disks);
                });
            });
        }
        let address = text(pod, "/status/hostIP");
        let domain = self.launchers.domain(json::uid(pod));
        if let Some(updated) = live_migration::target(vmi, node, address, domain, self.writer.client.now()) {
            if live_migration::completes(vmi, &updated) {
                self.launchers
                    .guest(json::uid(pod), |guest| live_migration::plug_guest(&mut guest.machine, vmi));
            }
            let who = Identity::virt_handler(node);
            let write = Write::to(&VMIS, vmi, "", Op::Update(updated));
            let answer = self.writer.write(&who, &write).await?;
            self.note_migration(&who, vmi, &answer);
        }
        Ok(())
    }

    /// This node's part when a guest leaves it: how long until the next look.
    async fn as_source(
        &self,
        key: &str,
        who: &Identity,
        node: &str,
        pods: &[Arc<Value>],
    ) -> Result<Option<Duration>, ClientError> {
        let Some(vmi) = self.vmis.get(key) else { return Ok(None) };
        let migration = text(&vmi, "/status/migrationState/migrationUid").to_owned();
        if migration.is_empty() {
            return Ok(None);
        }
        let named = |pod: &&Arc<Value>| text(&vmi, "/status/migrationState/targetPod") == json::name(pod);
        let target = pods.iter().find(named).filter(|pod| !pod_is_down(pod) && !is_deleting(pod));
        let now = self.writer.client.now();
        let began = self.transfers().get(&migration).copied();
        match live_migration::source(&vmi, node, began, target.is_some(), now) {
            SourceStep::Nothing => {
                self.transfers().remove(&migration);
                Ok(None)
            }
            SourceStep::Write(updated) => {
                let write = Write::to(&VMIS, &vmi, "", Op::Update(updated));
                let answer = self.writer.write(who, &write).await?;
                self.note_migration(who, &vmi, &answer);
                Ok(Some(Duration::ZERO))
            }
            SourceStep::Wait(left) => {
                self.transfers().entry(migration).or_insert(now);
                Ok(Some(left.max(Duration::from_millis(1))))
            }
            SourceStep::HandOver => {
                let source = newest_on(pods, node);
                if let (Some(source), Some(target)) = (source, target) {
                    if let Err(volume) = self.move_disks(json::uid(source), json::uid(target)) {
                        let write = Write::to(&VMIS, &vmi, "", Op::Update(lacks_disk(&vmi, &volume, now)));
                        let answer = self.writer.write(who, &write).await?;
                        self.note_migration(who, &vmi, &answer);
                        return Ok(Some(Duration::ZERO));
                    }
                    self.launchers.hand_over(json::uid(source), json::uid(target), &json::key(target));
                    self.hotplug.forget(json::uid(source));
                    // The target pod was made for the interfaces that the VMI has now.
                    self.launchers.guest(json::uid(target), |guest| guest.nics = Nics::of(&vmi));
                }
                Ok(None)
            }
        }
    }

    /// Gives the target what the guest has. `Err`: the volume that the target lacks.
    fn move_disks(&self, source: &str, target: &str) -> Result<(), String> {
        let guest = self.hotplug.with_disks(source, |disks| disks.clone());
        self.hotplug.with_disks(target, |disks| {
            *disks = handler::moved(&guest, disks)?;
            Ok(())
        })
    }

    fn transfers(&self) -> std::sync::MutexGuard<'_, HashMap<String, Timestamp>> {
        self.transfers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets launchers exit that have no guest any more, or never got one.
    fn tidy_up(&self, vmi: &Value, node: &str, pods: &[Arc<Value>]) {
        let migrated = vmi.pointer("/status/migrationState/completed") == Some(&Value::Bool(true));
        for pod in pods.iter().filter(|pod| text(pod, "/spec/nodeName") != node && !pod_is_down(pod)) {
            let uid = json::uid(pod);
            if migrated && self.launchers.domain(uid) == Some(Domain::Moved) {
                self.launchers.acknowledge(uid);
            }
            let named = text(vmi, "/status/migrationState/targetPod") == json::name(pod);
            if named && live_migration::target_is_left(vmi, text(pod, "/spec/nodeName")) {
                self.launchers.dismiss(uid, &json::key(pod), &json::key(vmi));
            }
        }
    }

    fn note_migration(&self, who: &Identity, before: &Value, vmi: &Value) {
        let state = |vmi: &Value, key: &str| vmi["status"]["migrationState"][key].clone();
        let set = |key: &str| state(before, key).is_null() && !state(vmi, key).is_null();
        let note = if set("targetNodeAddress") {
            let address = text(vmi, "/status/migrationState/targetNodeAddress");
            let message = format!("Migration Target is listening at {address}, on ports: 49152");
            Note::normal(vmi, "PreparingTarget", message)
        } else if set("failed") {
            let message = format!(
                "VirtualMachineInstance migration uid {} failed. reason:{}",
                text(vmi, "/status/migrationState/migrationUid"),
                text(vmi, "/status/migrationState/failureReason")
            );
            Note::warning(vmi, "Migrated", message)
        } else if set("endTimestamp") {
            let node = text(vmi, "/status/nodeName");
            Note::normal(vmi, "Migrated", format!("The VirtualMachineInstance migrated to node {node}."))
        } else if set("startTimestamp") {
            Note::normal(vmi, "Migrating", "VirtualMachineInstance is migrating.")
        } else {
            return;
        };
        self.recorder.note(who, COMPONENT, note);
    }

    fn note(&self, who: &Identity, vmi: &Value, before: &str) {
        let phase = text(vmi, "/status/phase");
        if phase == before {
            return;
        }
        let note = match phase {
            "Running" => {
                let defined = Note::normal(vmi, "Created", "VirtualMachineInstance defined.");
                self.recorder.note(who, COMPONENT, defined);
                Note::normal(vmi, "Started", "VirtualMachineInstance started.")
            }
            "Succeeded" => Note::normal(vmi, "Stopped", "The VirtualMachineInstance was shut down."),
            "Failed" => Note::warning(vmi, "Stopped", "The VirtualMachineInstance crashed."),
            _ => return,
        };
        self.recorder.note(who, COMPONENT, note);
    }
}

/// A migration whose target lacks a disk of the guest fails as QEMU does.
fn lacks_disk(vmi: &Value, volume: &str, now: Timestamp) -> Value {
    let mut failed = vmi.clone();
    let state = &mut failed["status"]["migrationState"];
    state["failed"] = true.into();
    state["completed"] = true.into();
    state["endTimestamp"] = time(now).into();
    state["failureReason"] =
        format!("Live migration failed: the target domain has no disk for volume {volume}").into();
    failed
}

/// The newest launcher pod of a node that is not down; a node may have an older one from before a
/// migration there and back.
fn newest_on<'a>(pods: &'a [Arc<Value>], node: &str) -> Option<&'a Arc<Value>> {
    let here = |pod: &&Arc<Value>| {
        json::label(pod, "kubevirt.io") == "virt-launcher" && text(pod, "/spec/nodeName") == node
    };
    let key = |pod: &&Arc<Value>| {
        (!pod_is_down(pod), text(pod, "/metadata/creationTimestamp").to_owned(), json::name(pod).to_owned())
    };
    pods.iter().filter(here).max_by_key(key)
}

/// The VMI as it should be, if that differs (`updateVMIStatus`).
pub fn decide(old: &Value, pod: &Value, domain: Domain, now: Timestamp) -> Option<Value> {
    let phase = text(old, "/status/phase");
    if !matches!(phase, "Scheduled" | "Running") {
        return None;
    }
    let mut vmi = old.clone();
    match domain {
        Domain::Off { crashed } | Domain::Gone { crashed } => {
            put(&mut vmi, &["status", "phase"], if crashed { "Failed" } else { "Succeeded" });
        }
        Domain::Running => describe_guest(&mut vmi, pod, now),
        Domain::Moved => return None,
    }
    record_phase(&mut vmi, now);
    (vmi != *old).then_some(vmi)
}

/// What the guest was asked to do and does: a pause, a freeze (`updatePausedConditions`,
/// `updateFSFreezeStatus`).
fn describe_state(vmi: &mut Value, guest: &Guest, now: Timestamp) {
    if text(vmi, "/status/phase") != "Running" {
        return;
    }
    guest.nics.describe(vmi);
    let mut conditions = list(vmi, "/status/conditions").to_vec();
    if guest.io_error.is_some() {
        let message = "VMI was paused, low-level IO error detected";
        update_condition(
            &mut conditions,
            json::new_condition("Paused", "True", "PausedIOError", message, now),
        );
    } else if guest.paused {
        let message = "VMI was paused by user";
        update_condition(
            &mut conditions,
            json::new_condition("Paused", "True", "PausedByUser", message, now),
        );
    } else {
        json::remove_condition(&mut conditions, "Paused");
    }
    put(vmi, &["status", "conditions"], conditions);
    if guest.frozen(now).is_some() {
        put(vmi, &["status", "fsFreezeStatus"], "frozen");
    } else {
        json::remove(vmi, &["status", "fsFreezeStatus"]);
    }
}

fn describe_guest(vmi: &mut Value, pod: &Value, now: Timestamp) {
    put(vmi, &["status", "phase"], "Running");
    put(
        vmi,
        &["status", "machine"],
        json!({"type": match text(vmi, "/spec/domain/machine/type") {
            "" | "q35" => CANONICAL_MACHINE,
            exact => exact,
        }}),
    );
    if text(vmi, "/status/selinuxContext").is_empty() {
        put(vmi, &["status", "selinuxContext"], "none");
    }
    let interfaces = interfaces(vmi, text(pod, "/status/podIP"));
    if !interfaces.is_empty() {
        put(vmi, &["status", "interfaces"], interfaces);
    }
    let volumes = volume_targets(vmi);
    if !volumes.is_empty() {
        put(vmi, &["status", "volumeStatus"], volumes);
    }
    let mut conditions = list(vmi, "/status/conditions").to_vec();
    let (why_not, block) = not_migratable(vmi);
    put(vmi, &["status", "migrationMethod"], if block { "BlockMigration" } else { "LiveMigration" });
    let mut set = |kind: &str, denial: Option<(&str, &str)>| {
        let mut condition = json!({"type": kind, "status": if denial.is_some() { "False" } else { "True" },
            "lastProbeTime": null, "lastTransitionTime": time(now)});
        if let Some((reason, message)) = denial {
            condition["reason"] = reason.into();
            condition["message"] = message.into();
        }
        update_condition(&mut conditions, condition);
    };
    let denial = why_not.as_ref().map(|(reason, message)| (*reason, message.as_str()));
    set("LiveMigratable", denial);
    // Local disks do not count here: storage migration takes them along.
    set(
        "StorageLiveMigratable",
        denial
            .filter(|(reason, _)| *reason != "DisksNotLiveMigratable")
            .map(|(_, message)| ("NotMigratable", message)),
    );
    if super::guest::manner(vmi) != "no-agent" {
        set("AgentConnected", None);
    }
    put(vmi, &["status", "conditions"], conditions);
}

fn interfaces(vmi: &Value, pod_ip: &str) -> Vec<Value> {
    list(vmi, "/spec/domain/devices/interfaces")
        .iter()
        .map(|interface| {
            let name = text(interface, "/name");
            let known = list(vmi, "/status/interfaces").iter().find(|one| one["name"] == name);
            let mut status = known.cloned().unwrap_or_else(|| json!({"name": name}));
            let on_pod_network = list(vmi, "/spec/networks")
                .iter()
                .any(|network| network["name"] == name && network.get("pod").is_some());
            status["infoSource"] = "domain, guest-agent".into();
            status["linkState"] = "up".into();
            status["queueCount"] = 1.into();
            if on_pod_network && !pod_ip.is_empty() {
                status["ipAddress"] = pod_ip.into();
                status["ipAddresses"] = json!([pod_ip]);
            }
            status
        })
        .collect()
}

/// Every volume with the guest's name of its disk: `vda`, `sda`, …, counted by bus.
fn volume_targets(vmi: &Value) -> Vec<Value> {
    let mut used = std::collections::HashMap::<&str, u8>::new();
    let mut targets = std::collections::HashMap::<&str, String>::new();
    for disk in list(vmi, "/spec/domain/devices/disks") {
        let bus = ["disk", "cdrom", "lun"]
            .iter()
            .map(|kind| text(disk, &format!("/{kind}/bus")))
            .find(|bus| !bus.is_empty());
        let prefix = if matches!(bus, Some("sata" | "scsi" | "usb")) { "sd" } else { "vd" };
        let count = used.entry(prefix).or_default();
        targets.insert(text(disk, "/name"), format!("{prefix}{}", char::from(b'a' + *count % 26)));
        *count += 1;
    }
    list(vmi, "/status/volumeStatus")
        .iter()
        .map(|volume| {
            let mut volume = volume.clone();
            if let Some(target) =
                targets.get(text(&volume, "/name")).filter(|_| volume.get("hotplugVolume").is_none())
            {
                volume["target"] = target.as_str().into();
            }
            volume
        })
        .collect()
}

/// Why a VMI cannot migrate, and whether its disks would have to be copied
/// (`calculateLiveMigrationCondition`).
fn not_migratable(vmi: &Value) -> (Option<(&'static str, String)>, bool) {
    let mut disk_problem = None;
    let mut block = false;
    for volume in list(vmi, "/spec/volumes") {
        let claim = ["/persistentVolumeClaim/claimName", "/dataVolume/name"]
            .iter()
            .find_map(|pointer| volume.pointer(pointer).and_then(Value::as_str));
        if let Some(claim) = claim {
            let info = list(vmi, "/status/volumeStatus")
                .iter()
                .find(|status| status["name"] == volume["name"])
                .and_then(|status| status.get("persistentVolumeClaimInfo"));
            let rule =
                "live migration requires that all PVCs must be shared (using ReadWriteMany access mode)";
            let problem = match info {
                None => {
                    Some(format!("cannot migrate VMI: Unable to determine if PVC {claim} is shared, {rule}"))
                }
                Some(info) if !list(info, "/accessModes").iter().any(|mode| mode == "ReadWriteMany") => {
                    Some(format!("cannot migrate VMI: PVC {claim} is not shared, {rule}"))
                }
                Some(_) => None,
            };
            if problem.is_some() {
                block = true;
                disk_problem = disk_problem.or(problem);
            }
        } else if volume.get("hostDisk").is_some_and(|disk| disk["shared"] != true) {
            block = true;
            disk_problem = disk_problem.or(Some("cannot migrate VMI with non-shared HostDisk".into()));
        }
    }
    let allowed_bridge =
        json::annotation(vmi, "kubevirt.io/allow-pod-bridge-network-live-migration").is_some();
    let on_pod_network = |interface: &&Value| {
        list(vmi, "/spec/networks")
            .iter()
            .any(|network| network["name"] == interface["name"] && network.get("pod").is_some())
    };
    let stuck = list(vmi, "/spec/domain/devices/interfaces").iter().filter(on_pod_network).any(|interface| {
        let bridge = interface.get("bridge").is_some() && allowed_bridge;
        interface.get("masquerade").is_none() && interface.get("binding").is_none() && !bridge
    });
    if stuck {
        let message = "cannot migrate VMI which does not use masquerade, bridge with \
                       kubevirt.io/allow-pod-bridge-network-live-migration VM annotation or a migratable plugin to \
                       connect to the pod network";
        return (Some(("InterfaceNotLiveMigratable", message.into())), block);
    }
    let devices = ["/spec/domain/devices/hostDevices", "/spec/domain/devices/gpus"];
    if devices.iter().any(|pointer| !list(vmi, pointer).is_empty()) {
        return (Some(("HostDeviceNotLiveMigratable", "VMI uses a PCI host devices".into())), block);
    }
    (disk_problem.map(|problem| ("DisksNotLiveMigratable", problem)), block)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vmi(phase: &str, spec: impl Into<Value>) -> Value {
        let spec: Value = spec.into();
        json!({"metadata": {"name": "v", "namespace": "n"}, "spec": spec,
            "status": {"phase": phase, "volumeStatus": list(&spec, "/volumes").iter()
                .map(|volume| json!({"name": volume["name"], "target": ""})).collect::<Value>()}})
    }

    fn decided(phase: &str, spec: impl Into<Value>, domain: Domain) -> Option<Value> {
        decide(&vmi(phase, spec), &json!({"status": {"podIP": "10.128.0.9"}}), domain, Timestamp::UNIX_EPOCH)
    }

    #[test]
    fn the_phase_follows_the_domain() {
        for (phase, domain, expected) in [
            ("Scheduled", Domain::Running, Some("Running")),
            ("Running", Domain::Off { crashed: false }, Some("Succeeded")),
            ("Running", Domain::Off { crashed: true }, Some("Failed")),
            ("Succeeded", Domain::Running, None),
            ("Scheduling", Domain::Running, None),
        ] {
            let got = decided(phase, json!({}), domain);
            assert_eq!(got.as_ref().map(|vmi| text(vmi, "/status/phase")), expected, "{phase} {domain:?}");
        }
    }

    #[test]
    fn a_pause_and_a_freeze_show_and_go() {
        let now = Timestamp::UNIX_EPOCH;
        let mut vmi = vmi("Running", json!({}));
        let mut guest = Guest::of(&json!({"spec": {"startStrategy": "Paused"}}));
        guest.freeze(Timestamp::MAX);
        describe_state(&mut vmi, &guest, now);
        let paused = json::condition(&vmi, "/status/conditions", "Paused").unwrap();
        assert_eq!(
            (text(paused, "/reason"), text(paused, "/message")),
            ("PausedByUser", "VMI was paused by user")
        );
        assert_eq!(vmi["status"]["fsFreezeStatus"], "frozen");
        describe_state(&mut vmi, &Guest::default(), now);
        assert_eq!(json::condition(&vmi, "/status/conditions", "Paused"), None);
        assert_eq!(vmi["status"].get("fsFreezeStatus"), None);
    }

    #[test]
    fn a_running_guest_is_described_once() {
        let spec = json!({
            "volumes": [{"name": "root", "containerDisk": {}}, {"name": "data", "containerDisk": {}}, {"name": "cd"}],
            "networks": [{"name": "default", "pod": {}}],
            "domain": {"devices": {"interfaces": [{"name": "default", "masquerade": {}}],
                "disks": [{"name": "data", "disk": {"bus": "virtio"}}, {"name": "root", "disk": {}}, {"name": "cd", "cdrom": {"bus": "sata"}}]}}});
        let first = decided("Scheduled", spec, Domain::Running).unwrap();
        let targets: Vec<_> =
            list(&first, "/status/volumeStatus").iter().map(|one| text(one, "/target")).collect();
        assert_eq!(targets, ["vdb", "vda", "sda"]);
        assert_eq!(text(&first, "/status/interfaces/0/ipAddress"), "10.128.0.9");
        assert!(json::has_condition(&first, "LiveMigratable", "True"));
        let again = decide(
            &first,
            &json!({"status": {"podIP": "10.128.0.9"}}),
            Domain::Running,
            Timestamp::UNIX_EPOCH,
        );
        assert_eq!(again, None);
    }

    #[test]
    fn why_a_vmi_cannot_migrate() {
        let pod_network = |interface: Value| {
            json!({"networks": [{"name": "default", "pod": {}}],
            "domain": {"devices": {"interfaces": [interface]}}})
        };
        for (spec, reason, storage) in [
            (pod_network(json!({"name": "default", "bridge": {}})), "InterfaceNotLiveMigratable", "False"),
            (
                json!({"domain": {"devices": {"gpus": [{"name": "g"}]}}}),
                "HostDeviceNotLiveMigratable",
                "False",
            ),
            (
                json!({"volumes": [{"name": "d", "persistentVolumeClaim": {"claimName": "c"}}]}),
                "DisksNotLiveMigratable",
                "True",
            ),
            (json!({"volumes": [{"name": "d", "hostDisk": {}}]}), "DisksNotLiveMigratable", "True"),
            (json!({}), "", "True"),
        ] {
            let vmi = decided("Scheduled", spec.clone(), Domain::Running).unwrap();
            let condition = json::condition(&vmi, "/status/conditions", "LiveMigratable").unwrap();
            assert_eq!(text(condition, "/reason"), reason, "{spec}");
            assert!(json::has_condition(&vmi, "StorageLiveMigratable", storage), "{spec}");
        }
    }
}
