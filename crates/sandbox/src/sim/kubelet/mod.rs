//! The kubelets of all simulated nodes in one client: one watch for all of them, constant work
//! per pod.

mod debug;
pub mod decide;
mod pressure;
pub mod resize;

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use apimachinery::tree::{Value, json};
use jiff::Timestamp;
use tokio_util::sync::CancellationToken;

use super::SimConfig;
use super::batch::programs::Programs;
use super::cache::{Cache, Change};
use super::client::ClientError;
use super::events::{Note, Recorder};
use super::hotplug::{Hotplug, is_attachment};
use super::identity::Identity;
use super::json::{self, map, micro_time, text, time};
use super::launcher::Launchers;
use super::node;
use super::node_lifecycle::taints::readiness;
use super::queue::Queue;
use super::requests::{self, Amounts};
use super::resource::{LEASES, NODES, PODS};
use super::write::{Op, Write, Writer};
use decide::{Observation, Step};

const COMPONENT: &str = "kubelet";
const WORKERS: usize = 32;
/// How often a volume that cannot be published is tried again.
const PUBLISH_RETRY: Duration = Duration::from_millis(500);
/// How often a node's Lease is renewed (`nodeLeaseDurationSeconds` / 4).
const HEARTBEAT: Duration = Duration::from_secs(10);
/// How often a resize that waits for room is tried again; kubelet takes 30 s and then 3 minutes.
const RESIZE_RETRY: Duration = Duration::from_secs(5);
/// How often a node that is short of something is looked at (`evictionMonitoringPeriod`).
const EVICTION: Duration = Duration::from_secs(10);
/// How often an unchanged Node status is written (`nodeStatusReportFrequency`).
const STATUS_REPORT: Duration = Duration::from_mins(5);

/// The kubelets.
pub struct Kubelet {
    nodes: HashMap<String, Node>,
    writer: Writer,
    recorder: Recorder,
    pods: Arc<Cache>,
    node_cache: Arc<Cache>,
    launchers: Arc<Launchers>,
    hotplug: Arc<Hotplug>,
    programs: Programs,
    queue: Queue,
    /// Nodes that are, or were, short of something.
    pressed: Queue,
    next_ip: AtomicU32,
    /// The address of virt-handlers that somebody outside calls.
    handlers: Option<IpAddr>,
    admitted: Mutex<Admitted>,
}

struct Node {
    who: Identity,
    address: String,
}

/// What each node has promised to pods.
#[derive(Default)]
struct Admitted {
    pods: HashMap<String, Admission>,
    used: HashMap<String, (Amounts, usize)>,
}

#[derive(Clone)]
struct Admission {
    node: String,
    requests: Amounts,
    pod_ip: String,
}

impl Admitted {
    fn admit(&mut self, uid: &str, admission: Admission) {
        let (used, pods) = self.used.entry(admission.node.clone()).or_default();
        requests::add(used, &admission.requests);
        *pods += 1;
        self.pods.insert(uid.to_owned(), admission);
    }

    fn release(&mut self, uid: &str) {
        let Some(admission) = self.pods.remove(uid) else { return };
        if let Some((used, pods)) = self.used.get_mut(&admission.node) {
            requests::subtract(used, &admission.requests);
            *pods = pods.saturating_sub(1);
        }
    }
}

impl Kubelet {
    /// Runs the pods of the nodes that `config` describes.
    pub fn start(
        config: &SimConfig,
        writer: Writer,
        recorder: Recorder,
        (pods, node_cache): (&Arc<Cache>, &Arc<Cache>),
        (launchers, hotplug, programs): (&Arc<Launchers>, &Arc<Hotplug>, &Programs),
        stop: &CancellationToken,
    ) -> Arc<Self> {
        let nodes = (0..config.nodes)
            .map(|index| {
                let name = node::name(index);
                (name.clone(), Node { who: Identity::kubelet(&name), address: node::address(index) })
            })
            .collect();
        let kubelet = Arc::new(Self {
            nodes,
            writer,
            recorder,
            pods: pods.clone(),
            node_cache: node_cache.clone(),
            launchers: launchers.clone(),
            hotplug: hotplug.clone(),
            programs: programs.clone(),
            queue: Queue::default(),
            pressed: Queue::default(),
            next_ip: AtomicU32::new(1),
            handlers: config.handler_address.map(|address| address.ip()),
            admitted: Mutex::default(),
        });
        let on_pod = kubelet.clone();
        pods.on_change(move |change| on_pod.pod_changed(change));
        let on_node = kubelet.clone();
        node_cache.on_change(move |change| on_node.node_changed(change));
        let queue = kubelet.queue.clone();
        launchers.on_change(move |launcher| queue.add(&launcher.pod));
        let queue = kubelet.queue.clone();
        programs.on_end(move |pod| queue.add(pod));
        let (queue, work) = (kubelet.queue.clone(), kubelet.clone());
        queue.run(COMPONENT, WORKERS, stop, move |key| {
            let kubelet = work.clone();
            async move { kubelet.reconcile(&key).await }
        });
        let (queue, work) = (kubelet.pressed.clone(), kubelet.clone());
        queue.run("eviction", 1, stop, move |name| {
            let kubelet = work.clone();
            async move { kubelet.relieve(&name).await }
        });
        kubelet
    }

    fn admitted(&self) -> MutexGuard<'_, Admitted> {
        self.admitted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pod_changed(&self, change: &Change<'_>) {
        let pod = change.object();
        if !self.nodes.contains_key(text(pod, "/spec/nodeName")) {
            return;
        }
        if change.new.is_none() || !requests::holds(pod) {
            self.admitted().release(json::uid(pod));
            self.take_down(pod);
        }
        if change.new.is_some() {
            self.queue.add(change.key);
        } else {
            self.launchers.forget(json::uid(pod));
            self.hotplug.forget(json::uid(pod));
            self.programs.forget(json::uid(pod));
        }
    }

    /// What a node's annotation says of resizes decides about pods that nobody else would look at again.
    fn node_changed(&self, change: &Change<'_>) {
        let name = json::name(change.object());
        let old = change.old.map(|old| &**old);
        let short = [old, change.new].map(|node| node.and_then(|node| pressure::of(node)));
        if self.nodes.contains_key(name) && short[0] != short[1] {
            self.pressed.add(name);
        }
        let fault = |object: Option<&Arc<Value>>| {
            object.and_then(|object| json::annotation(object, resize::FAULT).map(str::to_owned))
        };
        if old.is_none() || fault(old) == fault(change.new) {
            return;
        }
        let node = json::name(change.object());
        for pod in self.pods.all().iter().filter(|pod| text(pod, "/spec/nodeName") == node) {
            self.queue.add(&json::key(pod));
        }
    }

    /// A look of a node's eviction manager: its conditions, and one pod less as long as it is short of something.
    async fn relieve(&self, name: &str) -> Result<Option<Duration>, ClientError> {
        let (Some(node), Some(object)) = (self.nodes.get(name), self.node_cache.get(name)) else {
            return Ok(None);
        };
        let (shortage, now) = (pressure::of(&object), self.writer.client.now());
        if let Some(status) = pressure::conditions(&object, shortage, now) {
            let body = json!({"status": status});
            self.writer
                .write(&node.who, &Write::to(&NODES, &object, "status", Op::StrategicPatch(body)))
                .await?;
        }
        let Some(shortage) = shortage else { return Ok(None) };
        let pods = self.pods.all();
        let here = pods.iter().map(|pod| &**pod);
        let here = here.filter(|pod| text(pod, "/spec/nodeName") == name && requests::holds(pod));
        if let Some(pod) = pressure::victim(here, shortage) {
            let message = pressure::message(&object, pod, shortage);
            self.recorder.note(&node.who, COMPONENT, Note::warning(pod, "Evicted", message.clone()));
            self.patch(node, pod, pressure::evicted(pod, &message, now)).await?;
            // Nobody asks the guest.
            self.launchers.end(json::uid(pod), true);
            self.programs.stop(json::uid(pod));
        }
        Ok(Some(EVICTION))
    }

    /// Takes the volumes of a pod down that has ended: after a while, since it has gone from the API first.
    fn take_down(&self, pod: &Value) {
        let (node, uid) = (text(pod, "/spec/nodeName").to_owned(), json::uid(pod).to_owned());
        if self.hotplug.storage.claims_of(&node, &uid).is_empty() {
            return;
        }
        let hotplug = self.hotplug.clone();
        tokio::spawn(async move {
            tokio::time::sleep(hotplug.timing.unpublish_after).await;
            hotplug.unpublish(&node, &uid);
        });
    }

    /// Publishes what a pod uses, if it is about to start; when to try again if that is not possible.
    fn publish(&self, node: &Node, pod: &Value) -> Option<Duration> {
        let starts = text(pod, "/status/phase") == "Pending"
            && pod.pointer("/status/startTime").is_some()
            && !json::is_deleting(pod);
        if starts
            && is_attachment(pod)
            && let Some(left) = self.hotplug.still_starting(pod)
        {
            return Some(left);
        }
        let (reason, message) = if starts { self.hotplug.publish(pod).err()? } else { return None };
        self.recorder.note(&node.who, COMPONENT, Note::warning(pod, reason, message));
        Some(PUBLISH_RETRY)
    }

    /// How much longer the container of an attachment pod is not ready.
    fn unready(&self, pod: &Value, now: Timestamp) -> Option<Duration> {
        let wait = self.hotplug.timing.ready_after;
        if wait.is_zero() || !is_attachment(pod) {
            return None;
        }
        let started = json::list(pod, "/status/containerStatuses")
            .iter()
            .find_map(|one| text(one, "/state/running/startedAt").parse::<Timestamp>().ok());
        let ran = started
            .map_or(Duration::ZERO, |at| Duration::try_from(now.duration_since(at)).unwrap_or_default());
        let was_ready = json::list(pod, "/status/containerStatuses").iter().any(|one| one["ready"] == true);
        (!was_ready && ran < wait).then(|| wait.saturating_sub(ran))
    }

    async fn reconcile(&self, key: &str) -> Result<Option<Duration>, ClientError> {
        // Pending, Running, Ready: more steps than these follow a change from outside.
        for _ in 0..8 {
            let Some(pod) = self.pods.get(key) else { return Ok(None) };
            let Some(node) = self.nodes.get(text(&pod, "/spec/nodeName")) else { return Ok(None) };
            let (rejection, pod_ip) = self.admission(&pod);
            if let Some(wait) = self.publish(node, &pod) {
                return Ok(Some(wait));
            }
            let now = self.writer.client.now();
            let unready = self.unready(&pod, now);
            let seen = Observation {
                pod: &pod,
                unready: unready.is_some(),
                domain: self.launchers.domain(json::uid(&pod)).or_else(|| self.programs.state(&pod)),
                rejection,
                host_ip: &node.address,
                pod_ip: &pod_ip,
            };
            match decide::decide(&seen, now) {
                Step::Nothing => match self.resized(&pod, now).or_else(|| debug::decide(&pod, now)) {
                    Some(status) => self.patch(node, &pod, status).await?,
                    None => return Ok(remaining_grace(&pod, now).or_else(|| deferred(&pod)).or(unready)),
                },
                Step::Stop => {
                    self.launchers.end(json::uid(&pod), false);
                    self.programs.stop(json::uid(&pod));
                    return Ok(remaining_grace(&pod, now));
                }
                Step::Patch(mut status) => {
                    if let Some((code, message)) = self.programs.end(json::uid(&pod)) {
                        decide::exited(&mut status, code, &message);
                    }
                    if let Some((reason, message)) = &seen.rejection {
                        let reason = if reason.starts_with("OutOf") { "OutOfResources" } else { "Rejected" };
                        self.recorder.note(
                            &node.who,
                            COMPONENT,
                            Note::warning(&pod, reason, message.clone()),
                        );
                    }
                    self.patch(node, &pod, status).await?;
                }
                Step::Remove => return self.remove(node, &pod).await,
            }
        }
        Ok(None)
    }

    /// What is next for a pod whose resources were changed; what is allocated is promised at once.
    fn resized(&self, pod: &Value, now: Timestamp) -> Option<Value> {
        if json::is_deleting(pod) || text(pod, "/status/phase") != "Running" {
            return None;
        }
        let (uid, name) = (json::uid(pod), text(pod, "/spec/nodeName"));
        let object = self.node_cache.get(name)?;
        let allocatable = requests::of_list(map(&object, "/status/allocatable"));
        let mut admitted = self.admitted();
        let own = admitted.pods.get(uid)?.clone();
        let mut others = admitted.used.get(name).map(|(used, _)| used.clone()).unwrap_or_default();
        requests::subtract(&mut others, &own.requests);
        let node = resize::Node { object: &object, allocatable: &allocatable, others: &others };
        let status = resize::decide(pod, &node, now)?;
        if status.get("containerStatuses").is_some() {
            admitted.release(uid);
            admitted.admit(uid, Admission { requests: requests::of_pod(pod), ..own });
        }
        Some(status)
    }

    async fn patch(&self, node: &Node, pod: &Value, status: Value) -> Result<(), ClientError> {
        let body = json!({"metadata": {"uid": json::uid(pod)}, "status": status});
        let write = Write::to(&PODS, pod, "status", Op::StrategicPatch(body));
        match self.writer.write(&node.who, &write).await {
            Err(error) if error.code() != 404 => Err(error),
            _ => Ok(()),
        }
    }

    async fn remove(&self, node: &Node, pod: &Value) -> Result<Option<Duration>, ClientError> {
        let options = json!({"kind": "DeleteOptions", "apiVersion": "v1", "gracePeriodSeconds": 0,
            "preconditions": {"uid": json::uid(pod)}});
        let write = Write::to(&PODS, pod, "", Op::Delete(options));
        match self.writer.write(&node.who, &write).await {
            // Gone, or another pod of the same name.
            Err(error) if !matches!(error.code(), 404 | 409) => Err(error),
            _ => Ok(None),
        }
    }

    /// Promises the node's resources to a pod that is new to it, or says why it cannot have them.
    fn admission(&self, pod: &Value) -> (Option<(String, String)>, String) {
        let uid = json::uid(pod);
        let mut admitted = self.admitted();
        if let Some(admission) = admitted.pods.get(uid) {
            return (None, admission.pod_ip.clone());
        }
        if !requests::holds(pod) {
            return (None, String::new());
        }
        let node = text(pod, "/spec/nodeName");
        let requests = requests::of_pod(pod);
        let is_new = pod.pointer("/status/startTime").is_none();
        if is_new {
            let object = self.node_cache.get(node);
            let allocatable =
                requests::of_list(object.as_deref().and_then(|node| map(node, "/status/allocatable")));
            let (used, pods) = admitted.used.get(node).cloned().unwrap_or_default();
            if let Some(rejection) = decide::rejection(&requests, &allocatable, &used, pods) {
                return (Some(rejection), String::new());
            }
        }
        let handlers = self.handlers.filter(|_| json::label(pod, "kubevirt.io") == "virt-handler");
        let pod_ip = match text(pod, "/status/podIP") {
            "" => handlers.map_or_else(|| self.draw_ip(), |address| address.to_string()),
            known => known.to_owned(),
        };
        admitted.admit(uid, Admission { node: node.to_owned(), requests, pod_ip: pod_ip.clone() });
        (None, pod_ip)
    }

    fn draw_ip(&self) -> String {
        let number = self.next_ip.fetch_add(1, Ordering::Relaxed);
        let [_, high, middle, low] = number.to_be_bytes();
        format!("10.{}.{middle}.{low}", 128 | (high & 127))
    }

    /// Registers the nodes and keeps them alive until `stop`.
    pub async fn keep_nodes(
        self: Arc<Self>,
        config: SimConfig,
        stop: CancellationToken,
    ) -> Result<(), ClientError> {
        for index in 0..config.nodes {
            self.register(&config, index).await?;
        }
        tokio::spawn(async move {
            let mut round: u32 = 0;
            let every = u32::try_from(STATUS_REPORT.as_secs() / HEARTBEAT.as_secs()).unwrap_or(30);
            loop {
                tokio::select! {
                    biased;
                    () = stop.cancelled() => return,
                    () = tokio::time::sleep(HEARTBEAT) => {}
                }
                round += 1;
                let beats = (0..config.nodes).map(|index| {
                    let (kubelet, name) = (&self, node::name(index));
                    async move {
                        let result = kubelet.heartbeat(&name, round.is_multiple_of(every)).await;
                        (name, result)
                    }
                });
                // All at once: a node that cannot be reached must not make the others late.
                for (name, result) in futures::future::join_all(beats).await {
                    if let Err(error) = result {
                        tracing::warn!(node = name, %error, "a heartbeat is lost");
                    }
                }
            }
        });
        Ok(())
    }

    async fn register(&self, config: &SimConfig, index: u32) -> Result<(), ClientError> {
        let now = self.writer.client.now();
        let object = node::object(config, index, now);
        let who = Identity::kubelet(json::name(&object));
        match self.writer.write(&who, &Write::create(&NODES, object.clone())).await {
            Ok(_) => {}
            Err(error) if error.code() == 409 => {}
            Err(error) => return Err(error),
        }
        // Some servers drop the status of a create; a node that comes back has a new one.
        let body = json!({"status": object["status"]});
        self.writer.write(&who, &Write::to(&NODES, &object, "status", Op::StrategicPatch(body))).await?;
        self.renew_lease(&who, json::name(&object), now).await
    }

    async fn heartbeat(&self, name: &str, with_status: bool) -> Result<(), ClientError> {
        let (Some(node), now) = (self.nodes.get(name), self.writer.client.now()) else { return Ok(()) };
        self.renew_lease(&node.who, name, now).await?;
        let Some(object) = self.node_cache.get(name) else { return Ok(()) };
        if readiness(&object) == "Unknown" {
            return self.report_again(node, &object, now).await;
        }
        if with_status {
            let at = time(now);
            let beat: Value = json::list(&object, "/status/conditions")
                .iter()
                .map(|condition| json!({"type": condition["type"], "lastHeartbeatTime": at}))
                .collect();
            let body = json!({"status": {"conditions": beat}});
            self.writer
                .write(&node.who, &Write::to(&NODES, &object, "status", Op::StrategicPatch(body)))
                .await?;
        }
        Ok(())
    }

    /// The node was taken for lost: kubelet says how it is, and how its pods are.
    async fn report_again(&self, node: &Node, object: &Value, now: Timestamp) -> Result<(), ClientError> {
        let body = json!({"status": {"conditions": node::conditions(now)}});
        self.writer.write(&node.who, &Write::to(&NODES, object, "status", Op::StrategicPatch(body))).await?;
        if pressure::of(object).is_some() {
            self.pressed.add(json::name(object));
        }
        for pod in self.pods.all().iter().filter(|pod| text(pod, "/spec/nodeName") == json::name(object)) {
            let key = json::key(pod);
            self.queue.forget(&key);
            self.queue.add(&key);
        }
        Ok(())
    }

    async fn renew_lease(&self, who: &Identity, name: &str, now: Timestamp) -> Result<(), ClientError> {
        let spec = json!({"holderIdentity": name, "leaseDurationSeconds": 40, "renewTime": micro_time(now)});
        let lease = json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
            "metadata": {"name": name, "namespace": "kube-node-lease"}, "spec": spec});
        let renewal = Write::to(&LEASES, &lease, "", Op::MergePatch(json!({"spec": spec})));
        match self.writer.write(who, &renewal).await {
            Err(error) if error.code() == 404 => {
                self.writer.write(who, &Write::create(&LEASES, lease)).await.map(|_| ())
            }
            other => other.map(|_| ()),
        }
    }
}

/// When a resize that waits for room is looked at again.
fn deferred(pod: &Value) -> Option<Duration> {
    let pending = json::condition(pod, "/status/conditions", "PodResizePending")?;
    (text(pending, "/reason") == "Deferred").then_some(RESIZE_RETRY)
}

/// How long a pod that is being deleted still has, if it has to be looked at again by then.
fn remaining_grace(pod: &Value, now: Timestamp) -> Option<Duration> {
    let due: Timestamp = text(pod, "/metadata/deletionTimestamp").parse().ok()?;
    Some(Duration::try_from(due.duration_since(now)).unwrap_or_default().max(Duration::from_millis(100)))
}
