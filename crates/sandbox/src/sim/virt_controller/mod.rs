//! virt-controller: from a `VirtualMachine` to a VMI to a launcher pod.

mod attachments;
pub mod clone;
pub mod data_volumes;
pub mod defaults;
mod doubts;
mod evacuation;
pub mod launcher_pod;
mod live_update;
mod memory_dump;
pub mod migration;
mod networks;
mod nics;
mod nodes;
mod overhead;
mod running_vm;
pub mod snapshot;
pub mod templates;
pub mod vm;
mod vm_instancetype;
pub mod vm_status;
pub mod vmi;
pub mod volume_migration;
mod workload_updater;

use std::sync::atomic::AtomicU32;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use apimachinery::tree::Value;
use tokio_util::sync::CancellationToken;

use super::backup::tracking;
use super::cache::{Cache, Change};
use super::client::ClientError;
use super::cluster::ClusterConfig;
use super::events::{Note, Recorder};
use super::hotplug::Hotplug;
use super::hotplug::pod::is_temporary;
use super::identity::Identity;
use super::instancetype;
use super::json::{self, finalizers, is_deleting, text};
use super::node::draw_text;
use super::queue::Queue;
use super::resource::{CONTROLLER_REVISIONS, VMIS, VMS};
use super::storage::StorageCaches;
use super::write::{Op, Write, Writer};
use attachments::{Attachments, Synced};
use clone::Clones;
use data_volumes::{Prepared, Users, Volumes};
use doubts::Doubts;
use evacuation::Evacuation;
use migration::Migrations;
use migration::decide::JOB_LABEL;
use snapshot::Snapshots;
use templates::Templates;
use vm::{Expectation, Plan};
use vm_status::SyncError;
use workload_updater::WorkloadUpdater;

const COMPONENT: &str = "virtualmachine-controller";
/// Threads of the VM and of the VMI controller. The real ones have 3 and 10; the simulation has
/// more because its waiting costs nothing.
const WORKERS: usize = 24;
/// How many passes over one key follow each other before others get a turn.
const PASSES: usize = 8;

/// How many revisions are remembered.
const REVISIONS: usize = 1024;

/// The caches that the controllers read.
#[derive(Clone)]
pub struct Caches {
    pub vms: Arc<Cache>,
    pub vmis: Arc<Cache>,
    /// Indexed by the uid of the owner.
    pub pods: Arc<Cache>,
    pub kubevirts: Arc<Cache>,
    /// Indexed by the name of the VMI.
    pub migrations: Arc<Cache>,
    pub policies: Arc<Cache>,
    pub nodes: Arc<Cache>,
    pub namespaces: Arc<Cache>,
    /// Indexed by the name of the VM.
    pub snapshots: Arc<Cache>,
    pub contents: Arc<Cache>,
    /// Indexed by the name of the target.
    pub restores: Arc<Cache>,
    pub clones: Arc<Cache>,
    pub template_requests: Arc<Cache>,
    pub storage: StorageCaches,
    /// How often virt-controller has been started anew.
    pub restarts: Arc<AtomicU32>,
    pub settings: Arc<RwLock<Arc<ClusterConfig>>>,
    /// How long virt-handlers may be silent.
    pub heartbeat: Duration,
}

impl Caches {
    /// What the `KubeVirt` object configures at the moment.
    pub fn config(&self) -> Arc<ClusterConfig> {
        self.settings.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Follows the `KubeVirt` object.
    pub fn follow_config(&self) {
        let settings = self.settings.clone();
        self.kubevirts.on_change(move |change| {
            let config = Arc::new(ClusterConfig::of(change.new.map_or(&Value::Null, AsRef::as_ref)));
            *settings.write().unwrap_or_else(PoisonError::into_inner) = config;
        });
    }
}

/// A pass that failed: it is tried again with a delay.
#[derive(Debug, thiserror::Error)]
enum PassError {
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error("{0}")]
    Sync(String),
}

/// The VM controller and the VMI controller.
pub struct VirtController {
    seed: u64,
    who: Identity,
    writer: Writer,
    recorder: Recorder,
    caches: Caches,
    hotplug: Attachments,
    vm_queue: Queue,
    vmi_queue: Queue,
    /// Specs of VMs that VMIs were started with; a revision never changes.
    revisions: Mutex<std::collections::HashMap<String, Arc<Value>>>,
    /// Which VMs have a claim.
    claim_users: Arc<Users>,
    /// Which VMIs without a VM do.
    claim_instances: Arc<Users>,
    /// About launcher pods of VMIs.
    doubts: Doubts,
}

impl VirtController {
    /// Starts all controllers.
    pub fn start(
        seed: u64,
        writer: Writer,
        recorder: Recorder,
        (caches, hotplug): (&Caches, &Arc<Hotplug>),
        stop: &CancellationToken,
    ) {
        caches.follow_config();
        let vmi_queue = Queue::default();
        let hotplug =
            Attachments::start(writer.clone(), recorder.clone(), (caches, hotplug), &vmi_queue, stop);
        Migrations::start(writer.clone(), recorder.clone(), (caches, &hotplug), stop);
        Evacuation::start(writer.clone(), recorder.clone(), caches, stop);
        nodes::start(writer.clone(), recorder.clone(), caches, caches.heartbeat, stop);
        WorkloadUpdater::start(seed, writer.clone(), recorder.clone(), caches, stop);
        Snapshots::start(writer.clone(), recorder.clone(), caches, stop);
        Clones::start(writer.clone(), recorder.clone(), caches, stop);
        Templates::start(writer.clone(), caches, stop);
        let controller = Arc::new(Self {
            seed,
            who: Identity::virt_controller(),
            writer,
            recorder,
            caches: caches.clone(),
            hotplug,
            vm_queue: Queue::default(),
            vmi_queue,
            revisions: Mutex::default(),
            claim_users: Arc::default(),
            claim_instances: Arc::default(),
            doubts: Doubts::new(caches),
        });
        controller.listen();
        let vms = controller.clone();
        controller.vm_queue.run("vm", WORKERS, stop, move |key| {
            let controller = vms.clone();
            async move { controller.reconcile_vm(&key).await }
        });
        let vmis = controller.clone();
        controller.vmi_queue.run("vmi", WORKERS, stop, move |key| {
            let controller = vmis.clone();
            async move { controller.reconcile_vmi(&key).await }
        });
    }

    fn listen(self: &Arc<Self>) {
        let on_vm = self.clone();
        self.caches.vms.on_change(move |change| {
            on_vm.claim_users.changed(change, "/spec/template/spec/volumes");
            on_vm.vm_queue.add(change.key);
        });
        for cache in [&self.caches.storage.claims, &self.caches.storage.data_volumes] {
            let on_claim = self.clone();
            cache.on_change(move |change| {
                for vm in on_claim.claim_users.of(change.key) {
                    on_claim.vm_queue.add(&vm);
                    on_claim.vmi_queue.add(&vm);
                }
                for vmi in on_claim.claim_instances.of(change.key) {
                    on_claim.vmi_queue.add(&vmi);
                }
            });
        }
        for cache in [&self.caches.storage.classes, &self.caches.storage.snapshot_classes] {
            let on_class = self.clone();
            cache.on_change(move |_| {
                for vm in on_class.claim_users.everybody() {
                    on_class.vm_queue.add(&vm);
                }
            });
        }
        let on_vmi = self.clone();
        self.caches.vmis.on_change(move |change| {
            if json::controller_uid(change.object()).is_empty() {
                on_vmi.claim_instances.changed(change, "/spec/volumes");
            }
            on_vmi.vmi_queue.add(change.key);
            on_vmi.vm_queue.add(change.key);
        });
        let on_pod = self.clone();
        self.caches.pods.on_change(move |change| on_pod.pod_changed(change));
    }

    fn pod_changed(&self, change: &Change<'_>) {
        let pod = change.object();
        let owner =
            json::list(pod, "/metadata/ownerReferences").iter().find(|owner| owner["controller"] == true);
        if let Some(owner) = owner.filter(|owner| owner["kind"] == VMIS.kind) {
            self.vmi_queue.add(&json::join_key(json::namespace(pod), text(owner, "/name")));
        }
    }

    fn config(&self) -> Arc<ClusterConfig> {
        self.caches.config()
    }

    /// The VMI of a VM: the one of its name, if the VM owns it.
    fn vmi_of(&self, key: &str, vm: &Value) -> Option<Arc<Value>> {
        self.caches.vmis.get(key).filter(|vmi| json::controller_uid(vmi) == json::uid(vm))
    }

    async fn reconcile_vm(&self, key: &str) -> Result<Option<Duration>, PassError> {
        for _ in 0..PASSES {
            let Some(vm) = self.caches.vms.get(key) else { return Ok(None) };
            let vmi = self.vmi_of(key, &vm);
            let now = self.writer.client.now();
            let dice = draw_text(self.seed, &format!("{key}/{}", vmi.as_deref().map_or("", json::uid)));
            let volumes = Volumes::of(&vm, &self.caches.storage);
            let seen = vm::Observation { vm: &vm, vmi: vmi.as_deref(), now, dice, volumes: &volumes };
            let mut plan = vm::decide(&seen);
            let mut error = None;
            let matched = instancetype::is_matched(&vm);
            if matched && plan.with_status && !is_deleting(&vm) {
                let config = self.config();
                let synced = instancetype::revisions::sync(&self.writer, self.finder(), &vm, &config).await;
                if matches!(synced, Ok(instancetype::revisions::Synced::Wrote)) {
                    continue;
                }
                error = synced.err().map(|failure| self.note_instancetype(&vm, failure)).transpose()?;
            }
            if error.is_none() && plan.expects == Expectation::Start {
                error = self.prepare_volumes(&vm, &mut plan).await?;
            }
            if error.is_none() && plan.expects == Expectation::Start && matched {
                match self.finder().apply_to_start(&vm).await {
                    Ok(expanded) => {
                        plan = vm::decide(&vm::Observation { vm: &expanded, ..seen }).recorded(&vm);
                    }
                    Err(failure) => error = Some(self.note_unstartable(&vm, failure)?),
                }
            }
            if error.is_some() {
                plan.writes.clear();
            }
            let namespace = self.caches.namespaces.get(json::namespace(&vm));
            tracking::mark(&mut plan.writes, &vm, namespace.as_deref(), &self.config());
            if error.is_none() {
                error = self.carry_out(&vm, &plan).await?;
            }
            if !plan.with_status {
                continue;
            }
            let mut marked = vm.as_ref().clone();
            if error.is_none() && plan.writes.is_empty() {
                self.bump_generation(&vm, vmi.as_deref()).await?;
                error = self.hotplug.take_over(&vm, vmi.as_deref(), &self.config()).await?;
            }
            if error.is_none() && plan.writes.is_empty() && !is_deleting(&vm) {
                match self.dump_memory(&vm, key).await? {
                    Ok(true) => continue,
                    Ok(false) => {}
                    Err(failure) => error = Some(failure),
                }
            }
            if error.is_none() && plan.writes.is_empty() {
                error = self.update_live(&mut marked, vmi.as_deref(), now).await?;
            }
            if error.is_none()
                && plan.writes.is_empty()
                && let Some(pruned) = nics::pruned(&vm, vmi.as_deref())
            {
                self.writer.write(&self.who, &Write::to(&VMS, &vm, "", Op::Update(pruned))).await?;
                continue;
            }
            let expects = if error.is_none() { plan.expects } else { Expectation::None };
            // What was written to the VMI just now shows in the same status.
            let vmi = self.vmi_of(key, &vm);
            let seen = vm::Observation { vm: &marked, vmi: vmi.as_deref(), now, dice, volumes: &volumes };
            let mut status = vm_status::status(&seen, expects, error.as_ref());
            tracking::sync(&mut status, &marked, vmi.as_deref(), namespace.as_deref(), &self.config());
            let changed = vm.get("status") != Some(&status);
            if changed {
                self.writer.write(&self.who, &vm::status_write(&vm, status)).await?;
            }
            if let Some(error) = error {
                return Err(PassError::Sync(error.message));
            }
            if let Some(vmi) = vmi.filter(|vmi| vm::is_final(vmi) && finalizers(vmi).contains(&vm::FINALIZER))
            {
                // What there was to see of the VMI is on the VM now.
                self.writer.write(&self.who, &vm::without_finalizer(&VMIS, &vmi)).await?;
            }
            if !changed && plan.writes.is_empty() {
                return Ok(plan.after);
            }
        }
        self.vm_queue.add(key);
        Ok(None)
    }

    /// Makes the `DataVolumes` of a VM that is about to start; while they are not usable, it does not.
    async fn prepare_volumes(&self, vm: &Value, plan: &mut Plan) -> Result<Option<SyncError>, ClientError> {
        let acting = (&self.writer, &self.recorder, &self.who);
        let error = match data_volumes::ensure(vm, &self.caches.storage, acting).await? {
            Ok(true) => return Ok(None),
            Ok(false) => None,
            Err(error) => Some(error),
        };
        plan.writes.clear();
        plan.expects = Expectation::None;
        Ok(error)
    }

    /// Carries a plan out. What the API server refuses becomes the VM's `Failure` condition when
    /// the status is written in the same pass, and an error otherwise.
    async fn carry_out(&self, vm: &Value, plan: &Plan) -> Result<Option<SyncError>, ClientError> {
        for write in &plan.writes {
            match self.writer.write(&self.who, write).await {
                Ok(_) => self.note_vm(vm, write, None),
                // The revision of a generation never changes, and a VMI can only be deleted once.
                Err(error) if error.code() == 409 && write.resource == &CONTROLLER_REVISIONS => {}
                Err(error) if error.code() == 404 && matches!(write.op, Op::Delete(_)) => {}
                Err(error) if plan.with_status && error.code() != 0 => {
                    self.note_vm(vm, write, Some(&error));
                    let what = if matches!(write.op, Op::Delete(_)) {
                        "failure while deleting VMI"
                    } else {
                        "failure while starting VMI"
                    };
                    let message = format!("{what}: {}", error.message());
                    return Ok(Some(SyncError { reason: plan.failure_reason, message }));
                }
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    fn note_vm(&self, vm: &Value, write: &Write, error: Option<&ClientError>) {
        if write.resource != &VMIS {
            return;
        }
        let note = match (&write.op, error) {
            (Op::Create(_), None) => Note::normal(
                vm,
                "SuccessfulCreate",
                format!(
                    "Started the virtual machine by creating the new virtual machine instance {}",
                    json::name(vm)
                ),
            ),
            (Op::Create(_), Some(error)) => {
                let message = format!("Error creating virtual machine instance: {}", error.message());
                Note::warning(vm, "FailedCreate", message)
            }
            (Op::Delete(_), None) => {
                let vmi = self.caches.vmis.get(&json::join_key(&write.namespace, &write.name));
                let uid = vmi.as_deref().map_or("", json::uid);
                let message =
                    format!("Stopped the virtual machine by deleting the virtual machine instance {uid}");
                Note::normal(vm, "SuccessfulDelete", message)
            }
            (Op::Delete(_), Some(error)) => {
                let message =
                    format!("Error deleting virtual machine instance {}: {}", write.name, error.message());
                Note::warning(vm, "FailedDelete", message)
            }
            _ => return,
        };
        self.recorder.note(&self.who, COMPONENT, note);
    }

    async fn reconcile_vmi(&self, key: &str) -> Result<Option<Duration>, PassError> {
        for _ in 0..PASSES {
            let Some(vmi) = self.caches.vmis.get(key) else { return Ok(None) };
            if let Some(annotated) = vm::with_observed_version(&vmi) {
                self.writer.write(&self.who, &Write::to(&VMIS, &vmi, "", Op::Update(annotated))).await?;
                continue;
            }
            let pods = self.caches.pods.indexed(json::uid(&vmi));
            let owner =
                self.caches.vms.get(key).is_some_and(|vm| json::controller_uid(&vmi) == json::uid(&vm));
            let now = self.writer.client.now();
            let seen = vmi::Observation { vmi: &vmi, pods: &pods, has_owner: owner, now };
            let (made, mut error) = self.sync_pods(&seen).await?;
            let pod = made.as_ref().or_else(|| vmi::current_pod(&seen));
            let mut wrote = made.is_some();
            if error.is_none() {
                (wrote, error) = match self.hotplug.sync(key, &seen, pod).await? {
                    Synced::Nothing => (wrote, None),
                    Synced::Wrote => (true, None),
                    Synced::Failed(failure) => (wrote, Some(failure)),
                };
            }
            let volumes = self.hotplug.status(&vmi, pod);
            if let Some(pod) = pod {
                for write in vmi::pod_writes(&vmi, pod, now) {
                    self.writer.write(&self.who, &write).await?;
                    wrote = true;
                }
            }
            if let Some(write) = vmi::status_write(&seen, pod, volumes, error.as_ref()) {
                self.writer.write(&self.who, &write).await?;
                wrote = true;
            }
            if let Some(error) = error {
                return Err(PassError::Sync(error.message));
            }
            if !wrote {
                return Ok(nics::waits(&vmi).then_some(nics::LOOK_AGAIN));
            }
        }
        self.vmi_queue.add(key);
        Ok(None)
    }

    /// Makes the launcher pod, or deletes the pods of a VMI that goes away.
    async fn sync_pods(
        &self,
        seen: &vmi::Observation<'_>,
    ) -> Result<(Option<Value>, Option<SyncError>), ClientError> {
        for write in vmi::pods_to_delete(seen) {
            match self.writer.write(&self.who, &write).await {
                Ok(_) => {
                    let message = format!("Deleted virtual machine pod {}", write.name);
                    self.recorder.note(
                        &self.who,
                        COMPONENT,
                        Note::normal(seen.vmi, "SuccessfulDelete", message),
                    );
                }
                Err(error) if error.code() == 404 => {}
                Err(error) => return Err(error),
            }
        }
        if !vmi::needs_pod(seen) || is_deleting(seen.vmi) {
            return Ok((None, None));
        }
        let (vmi, uid) = (seen.vmi, json::uid(seen.vmi));
        let with = (json::namespace(vmi), "kubevirt.io/created-by", uid);
        let acting = (&self.writer, &self.caches, &self.who);
        let own = |pod: &Value| json::label(pod, JOB_LABEL).is_empty() && json::controller_uid(pod) == uid;
        if let Some(pod) = self.doubts.settle(uid, with, acting, own).await? {
            return Ok((Some(pod), None));
        }
        let prepared = data_volumes::for_launcher(vmi, &self.caches.storage);
        let temporary: Vec<&Arc<Value>> = seen.pods.iter().filter(|pod| is_temporary(pod)).collect();
        let first_consumer = prepared == Prepared::FirstConsumer;
        if !temporary.is_empty() {
            if !first_consumer {
                self.hotplug.delete_temporary(vmi, &temporary).await?;
            }
            return Ok((None, None));
        }
        match prepared {
            Prepared::Yes | Prepared::FirstConsumer => {}
            Prepared::NotYet => return Ok((None, None)),
            Prepared::No(error) => {
                self.recorder.note(
                    &self.who,
                    COMPONENT,
                    Note::warning(vmi, error.reason, error.message.clone()),
                );
                return Ok((None, Some(error)));
            }
        }
        let render = if first_consumer { launcher_pod::render_temporary } else { launcher_pod::render };
        let rendered = match render(seen.vmi, &self.config()) {
            Ok(pod) => networks::attach(&self.writer.client, &self.who, seen.vmi, pod).await?,
            Err(error) => Err(error),
        };
        let pod = match rendered {
            Ok(pod) => pod,
            Err(error) => return Ok((None, Some(error))),
        };
        match self.writer.write(&self.who, &Write::create(&super::resource::PODS, pod)).await {
            Ok(pod) => {
                let message = format!("Created virtual machine pod {}", json::name(&pod));
                self.recorder.note(&self.who, COMPONENT, Note::normal(seen.vmi, "SuccessfulCreate", message));
                Ok((Some(Arc::unwrap_or_clone(pod)).filter(|pod| !is_temporary(pod)), None))
            }
            Err(error) if error.code() != 0 => {
                let message = error.message();
                let note = Note::warning(seen.vmi, "FailedCreate", format!("Error creating pod: {message}"));
                self.recorder.note(&self.who, COMPONENT, note);
                let message = format!("failed to create virtual machine pod: {message}");
                Ok((None, Some(SyncError { reason: "FailedCreate", message })))
            }
            Err(error) => {
                self.doubts.add(uid);
                Err(error)
            }
        }
    }
}
