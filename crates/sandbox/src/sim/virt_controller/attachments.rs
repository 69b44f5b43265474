//! virt-controller's part in hotplugged volumes: it reads, lets `hotplug` decide, and writes.

use std::collections::BTreeMap;
use std::sync::Arc;

use apimachinery::tree::{Value, json};
use tokio_util::sync::CancellationToken;

use super::vm::is_final;
use super::vm_status::SyncError;
use super::{Caches, vmi};
use crate::sim::client::ClientError;
use crate::sim::cluster::ClusterConfig;
use crate::sim::events::{Note, Recorder};
use crate::sim::hotplug::informer::Informer;
use crate::sim::hotplug::pod::{self, Content};
use crate::sim::hotplug::{Hotplug, attachment, hotplugged, status, takeover};
use crate::sim::identity::Identity;
use crate::sim::json::{self, is_deleting, list, text};
use crate::sim::queue::Queue;
use crate::sim::resource::{DATA_VOLUMES, PODS, VMIS, VMS};
use crate::sim::virt_controller::launcher_pod::claim_of;
use crate::sim::write::{Op, Write, Writer};

const COMPONENT: &str = "virtualmachine-controller";

/// What became of a pass over the attachment pods of a VMI.
pub enum Synced {
    Nothing,
    Wrote,
    Failed(SyncError),
}

/// The attachment pods of all VMIs.
#[derive(Clone)]
pub struct Attachments {
    who: Identity,
    writer: Writer,
    recorder: Recorder,
    caches: Caches,
    node: Arc<Hotplug>,
    informer: Informer,
}

impl Attachments {
    /// Follows attachment pods and claims, and asks for work on their VMIs.
    pub fn start(
        writer: Writer,
        recorder: Recorder,
        (caches, node): (&Caches, &Arc<Hotplug>),
        queue: &Queue,
        stop: &CancellationToken,
    ) -> Self {
        let (pods, of_pods) = (caches.pods.clone(), queue.clone());
        let informer = Informer::start(&caches.pods, node.timing.informer_lag, stop, move |pod| {
            let owner = list(pod, "/metadata/ownerReferences").iter().find(|one| one["controller"] == true);
            let launcher =
                owner.and_then(|one| pods.get(&json::join_key(json::namespace(pod), text(one, "/name"))));
            let vmi = launcher.as_deref().and_then(|launcher| {
                list(launcher, "/metadata/ownerReferences").iter().find(|one| one["kind"] == VMIS.kind)
            });
            if let Some(vmi) = vmi {
                of_pods.add(&json::join_key(json::namespace(pod), text(vmi, "/name")));
            }
        });
        let (vmis, of_claims) = (caches.vmis.clone(), queue.clone());
        caches.storage.claims.on_change(move |change| {
            let claim = change.object();
            for vmi in vmis.all() {
                let uses = |volume: &Value| claim_of(volume) == Some(json::name(claim));
                if json::namespace(&vmi) == json::namespace(claim)
                    && list(&vmi, "/spec/volumes").iter().any(uses)
                {
                    of_claims.add(&json::key(&vmi));
                }
            }
        });
        let (writer, recorder) = (writer, recorder);
        Self {
            who: Identity::virt_controller(),
            writer,
            recorder,
            caches: caches.clone(),
            node: node.clone(),
            informer,
        }
    }

    fn claim(&self, namespace: &str, name: &str) -> Option<Arc<Value>> {
        self.caches.storage.claims.get(&json::join_key(namespace, name))
    }

    /// The oldest attachment pod of a launcher pod.
    pub fn first_of(&self, launcher: &Value) -> Option<Arc<Value>> {
        self.informer.of(json::uid(launcher)).into_iter().next()
    }

    /// Creates and deletes attachment pods (`handleHotplugVolumes` and what is around it).
    pub async fn sync(
        &self,
        key: &str,
        seen: &vmi::Observation<'_>,
        launcher: Option<&Value>,
    ) -> Result<Synced, ClientError> {
        self.delete_orphans(key, seen, launcher).await?;
        let Some(launcher) = launcher else { return Ok(Synced::Nothing) };
        let pods = self.informer.of(json::uid(launcher));
        let temporary: Vec<&Arc<Value>> = pods.iter().filter(|pod| pod::is_temporary(pod)).collect();
        self.delete_temporary(seen.vmi, &temporary).await?;
        let over = is_final(seen.vmi) || (self.node.rules.deletes_with_the_vmi && is_deleting(seen.vmi));
        if over {
            let live: Vec<Arc<Value>> = pods.into_iter().filter(|pod| !is_deleting(pod)).collect();
            return self.delete(key, seen.vmi, &live).await;
        }
        if is_deleting(seen.vmi) || is_deleting(launcher) || !vmi::pod_is_ready(launcher) {
            return Ok(Synced::Nothing);
        }
        let nothing = pods.is_empty() && hotplugged(seen.vmi, launcher).is_empty();
        if nothing || !self.informer.is_satisfied(key) {
            return Ok(Synced::Nothing);
        }
        let namespace = json::namespace(seen.vmi);
        let phases = self.data_volumes(seen.vmi, launcher).await?;
        let claims = |name: &str| self.claim(namespace, name);
        let data_volumes = |name: &str| phases.get(name).cloned();
        let plan = attachment::decide(&attachment::Observation {
            vmi: seen.vmi,
            launcher,
            pods: &pods,
            claims: &claims,
            data_volumes: &data_volumes,
            rules: self.node.rules,
        });
        let plan = match plan {
            Ok(plan) => plan,
            Err(error) => return Ok(Synced::Failed(error)),
        };
        let mut wrote = false;
        // Until virt-handler has said which `SELinux` context the launcher has, no pod can be rendered; the error is
        // dropped, so nobody is told (`createAttachmentPodTemplate`, `matchSELinuxLevelOfVMI`).
        let confined = !text(seen.vmi, "/status/selinuxContext").is_empty();
        for (volume, claim) in plan.triggers.iter().filter(|_| confined) {
            let trigger = pod::render_trigger(seen.vmi, launcher, Content { volume, claim }, self.node.rules);
            match self.trigger(seen.vmi, trigger, text(volume, "/name")).await? {
                Ok(pod) => self.informer.expect_created(key, json::uid(&pod)),
                Err(error) => return Ok(Synced::Failed(error)),
            }
            wrote = true;
        }
        if confined && plan.create.is_some() {
            match self.create(seen.vmi, launcher, &plan.contents(), None).await? {
                Ok(pod) => self.informer.expect_created(key, json::uid(&pod)),
                Err(error) => return Ok(Synced::Failed(error)),
            }
            wrote = true;
        }
        match self.delete(key, seen.vmi, &plan.delete).await? {
            Synced::Nothing if wrote => Ok(Synced::Wrote),
            other => Ok(other),
        }
    }

    /// Attachment pods of launchers that have ended, such as the source of a migration.
    async fn delete_orphans(
        &self,
        key: &str,
        seen: &vmi::Observation<'_>,
        current: Option<&Value>,
    ) -> Result<(), ClientError> {
        let current = current.map_or("", json::uid);
        for launcher in seen.pods.iter().filter(|pod| vmi::pod_is_down(pod) && json::uid(pod) != current) {
            let live: Vec<Arc<Value>> =
                self.informer.of(json::uid(launcher)).into_iter().filter(|pod| !is_deleting(pod)).collect();
            // A refusal is logged and nothing else.
            self.delete(key, seen.vmi, &live).await?;
        }
        Ok(())
    }

    /// Phases of the `DataVolumes` that own claims of hotplugged volumes.
    async fn data_volumes(
        &self,
        vmi: &Value,
        launcher: &Value,
    ) -> Result<BTreeMap<String, String>, ClientError> {
        let mut phases = BTreeMap::new();
        let namespace = json::namespace(vmi);
        for claim in hotplugged(vmi, launcher).into_iter().filter_map(claim_of) {
            let owned = self.claim(namespace, claim).is_some_and(|claim| {
                list(&claim, "/metadata/ownerReferences")
                    .iter()
                    .any(|owner| owner["kind"] == DATA_VOLUMES.kind)
            });
            if !owned {
                continue;
            }
            let path = DATA_VOLUMES.path(namespace, claim, "");
            match self.writer.client.get(Some(&self.who), &path).await {
                Ok(volume) => {
                    phases.insert(claim.to_owned(), text(&volume, "/status/phase").to_owned());
                }
                Err(error) if error.code() == 404 => {}
                Err(error) => return Err(error),
            }
        }
        Ok(phases)
    }

    async fn create(
        &self,
        vmi: &Value,
        launcher: &Value,
        contents: &[Content<'_>],
        migration: Option<&str>,
    ) -> Result<Result<Value, SyncError>, ClientError> {
        let pod = pod::render(vmi, launcher, contents, migration, self.node.rules);
        match self.writer.write(&self.who, &Write::create(&PODS, pod)).await {
            Ok(pod) => {
                let message = format!("Created attachment pod {}", json::name(&pod));
                self.recorder.note(&self.who, COMPONENT, Note::normal(vmi, "SuccessfulCreate", message));
                Ok(Ok(Arc::unwrap_or_clone(pod)))
            }
            Err(error) if error.code() != 0 => {
                let message = format!("Error creating attachment pod: {}", error.message());
                self.recorder.note(&self.who, COMPONENT, Note::warning(vmi, "FailedCreate", message.clone()));
                Ok(Err(SyncError { reason: "FailedCreate", message }))
            }
            Err(error) => Err(error),
        }
    }

    /// Creates a pod that gets a claim bound.
    async fn trigger(
        &self,
        vmi: &Value,
        pod: Value,
        volume: &str,
    ) -> Result<Result<Value, SyncError>, ClientError> {
        match self.writer.write(&self.who, &Write::create(&PODS, pod)).await {
            Ok(pod) => {
                let message = format!("Created hotplug trigger pod for volume {volume}");
                self.recorder.note(&self.who, COMPONENT, Note::normal(vmi, "SuccessfulCreate", message));
                Ok(Ok(Arc::unwrap_or_clone(pod)))
            }
            Err(error) if error.code() != 0 => {
                let why = error.message();
                let told =
                    format!("Error creating hotplug population trigger pod for volume {volume}: {why}");
                self.recorder.note(&self.who, COMPONENT, Note::warning(vmi, "FailedCreate", told));
                let message = format!("Error creating hotplug population trigger pod {why}");
                Ok(Err(SyncError { reason: "FailedCreate", message }))
            }
            Err(error) => Err(error),
        }
    }

    /// Lets pods go that got a claim bound, once they have run; they are said to be deleted each time
    /// (`deleteRunningOrFinishedWFFCPods`).
    pub async fn delete_temporary(&self, vmi: &Value, pods: &[&Arc<Value>]) -> Result<(), ClientError> {
        for pod in pods.iter().filter(|pod| !is_deleting(pod)) {
            let name = json::name(pod);
            if matches!(text(pod, "/status/phase"), "Running" | "Succeeded" | "Failed") {
                let options = json!({"kind": "DeleteOptions", "apiVersion": "v1", "gracePeriodSeconds": 0});
                match self.writer.write(&self.who, &Write::to(&PODS, pod, "", Op::Delete(options))).await {
                    Err(error) if error.code() != 404 => {
                        let message = format!("Failed to delete WaitForFirstConsumer temporary pod {name}");
                        self.recorder.note(&self.who, COMPONENT, Note::warning(vmi, "FailedDelete", message));
                        return Err(error);
                    }
                    _ => {}
                }
            }
            let message = format!("Deleted WaitForFirstConsumer temporary pod {name}");
            self.recorder.note(&self.who, COMPONENT, Note::normal(vmi, "SuccessfulDelete", message));
        }
        Ok(())
    }

    /// Deletes pods one after the other, until one is refused.
    async fn delete(&self, key: &str, vmi: &Value, pods: &[Arc<Value>]) -> Result<Synced, ClientError> {
        let mut synced = Synced::Nothing;
        for pod in pods {
            self.informer.expect_deleted(key, json::uid(pod));
            let options = json!({"kind": "DeleteOptions", "apiVersion": "v1", "gracePeriodSeconds": 0});
            match self.writer.write(&self.who, &Write::to(&PODS, pod, "", Op::Delete(options))).await {
                Ok(_) => {
                    let message = format!("Deleted attachment pod {}", json::name(pod));
                    self.recorder.note(&self.who, COMPONENT, Note::normal(vmi, "SuccessfulDelete", message));
                    synced = Synced::Wrote;
                }
                Err(error) if error.code() == 404 => self.informer.forget(key),
                Err(error) if error.code() != 0 => {
                    self.informer.forget(key);
                    let message =
                        format!("Failed to delete attachment pod {}: {}", json::name(pod), error.message());
                    self.recorder.note(
                        &self.who,
                        COMPONENT,
                        Note::warning(vmi, "FailedDelete", message.clone()),
                    );
                    return Ok(Synced::Failed(SyncError { reason: "FailedDelete", message }));
                }
                Err(error) => {
                    self.informer.forget(key);
                    return Err(error);
                }
            }
        }
        Ok(synced)
    }

    /// `status.volumeStatus` as it should be; `None`: nothing of it is virt-controller's.
    pub fn status(&self, vmi: &Value, launcher: Option<&Value>) -> Option<Vec<Value>> {
        let launcher = launcher.filter(|_| matches!(text(vmi, "/status/phase"), "Scheduled" | "Running"))?;
        let pods = self.informer.of(json::uid(launcher));
        let namespace = json::namespace(vmi);
        let concerned = list(vmi, "/status/volumeStatus").iter().any(|one| one["hotplugVolume"].is_object())
            || list(vmi, "/spec/volumes")
                .iter()
                .filter_map(claim_of)
                .any(|name| self.claim(namespace, name).is_some())
            || !hotplugged(vmi, launcher).is_empty();
        concerned.then(|| {
            status::decide(&status::Observation {
                vmi,
                launcher,
                pods: &pods,
                claims: &|name| self.claim(namespace, name),
                rules: self.node.rules,
            })
        })
    }

    /// The attachment pod of a migration's target: all volumes that there are at this moment.
    pub async fn create_for_target(
        &self,
        migration: &Value,
        vmi: &Value,
        source: &Value,
        target: &Value,
    ) -> Result<Option<String>, ClientError> {
        let namespace = json::namespace(vmi);
        let claims: Vec<(&Value, Arc<Value>)> = hotplugged(vmi, source)
            .into_iter()
            .filter_map(|volume| Some((volume, self.claim(namespace, claim_of(volume)?)?)))
            .collect();
        let contents: Vec<Content<'_>> =
            claims.iter().map(|(volume, claim)| Content { volume, claim }).collect();
        let created = self.create(vmi, target, &contents, Some(json::uid(migration))).await?;
        Ok(created.err().map(|error| error.message))
    }

    /// Brings the volumes of a VM to its VMI.
    pub async fn take_over(
        &self,
        vm: &Value,
        vmi: Option<&Value>,
        config: &ClusterConfig,
    ) -> Result<Option<SyncError>, ClientError> {
        let refused = |error: ClientError| {
            if error.code() == 0 {
                return Err(error);
            }
            let message =
                format!("Error encountered while handling volume hotplug requests: {}", error.message());
            Ok(Some(SyncError { reason: "HotPlugVolumeError", message }))
        };
        if is_deleting(vm) {
            return Ok(None);
        }
        if config.gate("HotplugVolumes") {
            return match self.serve_requests(vm, vmi).await {
                Err(error) => refused(error),
                Ok(()) => Ok(None),
            };
        }
        if !config.gate("DeclarativeHotplugVolumes") {
            return Ok(None);
        }
        let Some(write) = vmi.and_then(|vmi| takeover::patch(vm, vmi)) else { return Ok(None) };
        match self.writer.write(&self.who, &write).await {
            Err(error) => refused(error),
            Ok(_) => Ok(None),
        }
    }

    /// One call of the VMI for each request, then the VM's template, then the request is done.
    async fn serve_requests(&self, vm: &Value, vmi: Option<&Value>) -> Result<(), ClientError> {
        let requests = takeover::requests(vm, vmi);
        if requests.is_empty() {
            return Ok(());
        }
        let mut template = vm["spec"]["template"]["spec"].clone();
        for request in &requests {
            if request.is_due {
                let path = format!(
                    "/apis/subresources.kubevirt.io/v1/namespaces/{}/virtualmachineinstances/{}/{}",
                    json::namespace(vm),
                    json::name(vm),
                    request.verb
                );
                let client = &self.writer.client;
                client
                    .send(Some(&self.who), http::Method::PUT, &path, "application/json", request.options)
                    .await?;
            }
            if let Some(applied) = takeover::applied(&template, request) {
                template = applied;
            }
        }
        let mut newest = vm.clone();
        if vm["spec"]["template"]["spec"] != template {
            newest["spec"]["template"]["spec"] = template;
            newest = Arc::unwrap_or_clone(
                self.writer.write(&self.who, &Write::to(&VMS, vm, "", Op::Update(newest))).await?,
            );
        }
        let path = "/status/volumeRequests";
        let patch = json!([{"op": "test", "path": path, "value": vm["status"]["volumeRequests"]},
            {"op": "remove", "path": path}]);
        self.writer.write(&self.who, &Write::to(&VMS, &newest, "status", Op::JsonPatch(patch))).await?;
        Ok(())
    }
}
