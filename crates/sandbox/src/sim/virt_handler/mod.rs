//! The virt-handlers of all simulated nodes: they start guests and write down what becomes of
//! them (`pkg/virt-handler/vm.go`, v1.9).
//!
//! ```text
//!  Scheduled ──guest starts──► Running ──guest ends──► Succeeded (shut down) / Failed (crashed)
//! ```

mod describe;
pub mod heartbeat;
mod migratable;
mod migration;

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use apimachinery::tree::{Value, json};
use jiff::Timestamp;
use tokio_util::sync::CancellationToken;

use super::cache::Cache;
use super::client::ClientError;
use super::events::{Note, Recorder};
use super::guest::Guest;
use super::hooks::{Hooks, Stage};
use super::hotplug::{self, Hotplug, handler, memory_dump};
use super::identity::Identity;
use super::json::{self, is_deleting, list, put, text, time, update_condition};
use super::launcher::{Domain, Launchers};
use super::live_migration;
use super::queue::Queue;
use super::resource::VMIS;
use super::virt_controller::vmi::{pod_is_down, pod_is_ready};
use super::write::{Op, Write, Writer};
use describe::describe_state;
pub use describe::{CANONICAL_MACHINE, decide, volume_targets};

const COMPONENT: &str = "virt-handler";
const WORKERS: usize = 24;
/// How often sidecars that are not ready are looked at.
const HOOKS_POLL: Duration = Duration::from_millis(100);
/// How often volumes are looked for that a guest cannot start without.
const VOLUMES_POLL: Duration = Duration::from_millis(100);

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
        heartbeat::start(nodes.clone(), writer.clone(), stop.clone());
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
        let mut updated = vmi.clone();
        put(&mut updated, &["status", "volumeStatus"], status);
        // virt-controller makes no attachment pod without it.
        describe::confine(&mut updated);
        if updated != *vmi {
            self.writer.write(who, &Write::to(&VMIS, vmi, "", Op::Update(updated))).await?;
        }
        Ok(Some(VOLUMES_POLL))
    }

    /// Mounts, plugs, unplugs and unmounts, and writes down how far all of it is: when to look again.
    fn volumes(&self, vmi: &mut Value, pod: &Value, now: Timestamp) -> Option<Duration> {
        let (uid, node) = (json::uid(pod), text(pod, "/spec/nodeName"));
        let key = json::key(vmi);
        self.hotplug.dump_memory(vmi, uid, now);
        let reported = list(vmi, "/status/volumeStatus").iter().any(|one| one["hotplugVolume"].is_object());
        if !reported && !self.hotplug.has_disks(uid) {
            return None;
        }
        let outcome = self
            .hotplug
            .with_disks(uid, |disks| self.look(vmi, node, now, |seen| handler::pass(seen, disks)));
        self.hotplug.note_unplugged(&key, uid, outcome.unplugged);
        let mut status = outcome.status;
        let dump = self.launchers.guest(uid, |guest| guest.dump.clone()).flatten();
        let again = memory_dump::describe(&mut status, json::name(vmi), dump.as_ref(), now);
        put(vmi, &["status", "volumeStatus"], status);
        [outcome.after, again].into_iter().flatten().min()
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
