//! A class for each kind of driver, and the
//! attachment of volumes to nodes (`VolumeAttachment`), which follows the pods that list a claim, whether they use it or
//! not.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use apimachinery::tree::{Value, json};
use tokio_util::sync::CancellationToken;

use super::Hotplug;
use super::storage::Profile;
use crate::sim::cache::Cache;
use crate::sim::client::ClientError;
use crate::sim::identity::Identity;
use crate::sim::json::{self, list, text};
use crate::sim::queue::Queue;
use crate::sim::resource::VOLUME_ATTACHMENTS;
use crate::sim::storage::DRIVER;
use crate::sim::virt_controller::launcher_pod::claim_of;
use crate::sim::write::{Op, Write, Writer};

/// The parameter that says what the driver does.
pub const PROFILE: &str = "profile";
const WORKERS: usize = 8;
/// How often a volume that a kubelet still has is looked at.
const RETRY: Duration = Duration::from_millis(100);

/// A class for each kind of driver, and one that binds with its first pod.
pub fn classes() -> Vec<Value> {
    let class = |name: &str, profile: Profile, binding: &str| {
        json!({"apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": {"name": name},
            "provisioner": DRIVER, "parameters": {PROFILE: profile.name()}, "reclaimPolicy": "Delete",
            "volumeBindingMode": binding, "allowVolumeExpansion": true})
    };
    let mut all: Vec<Value> =
        Profile::ALL.iter().map(|profile| class(profile.name(), *profile, "Immediate")).collect();
    all.push(class("first-consumer", Profile::BusyCheck, "WaitForFirstConsumer"));
    all
}

/// The name of the volume behind a claim.
pub fn volume_name(claim: &Value) -> String {
    match text(claim, "/spec/volumeName") {
        "" => format!("pvc-{}", json::uid(claim)),
        name => name.to_owned(),
    }
}

/// Whether only one node may have a claim at a time.
pub fn is_single_node(claim: &Value) -> bool {
    !list(claim, "/spec/accessModes").iter().any(|mode| mode == "ReadWriteMany" || mode == "ReadOnlyMany")
}

/// Uid of a pod → its node.
type Pods = BTreeMap<String, String>;

/// Attaches volumes.
pub struct Volumes {
    who: Identity,
    writer: Writer,
    claims: Arc<Cache>,
    classes: Arc<Cache>,
    hotplug: Arc<Hotplug>,
    queue: Queue,
    /// By claim: the pods on nodes that list it.
    users: Mutex<BTreeMap<String, Pods>>,
}

impl Volumes {
    /// Starts attaching.
    pub fn start(
        writer: Writer,
        (claims, classes, pods): (&Arc<Cache>, &Arc<Cache>, &Arc<Cache>),
        hotplug: &Arc<Hotplug>,
        stop: &CancellationToken,
    ) {
        let volumes = Arc::new(Self {
            who: Identity::storage(),
            writer,
            claims: claims.clone(),
            classes: classes.clone(),
            hotplug: hotplug.clone(),
            queue: Queue::default(),
            users: Mutex::default(),
        });
        let queue = volumes.queue.clone();
        claims.on_change(move |change| queue.add(change.key));
        let on_pod = volumes.clone();
        pods.on_change(move |change| on_pod.pod_changed(change.object(), change.new.is_none()));
        let queue = volumes.queue.clone();
        queue.run("volumes", WORKERS, stop, move |key| {
            let volumes = volumes.clone();
            async move { volumes.reconcile(&key).await }
        });
    }

    fn users(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Pods>> {
        self.users.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pod_changed(&self, pod: &Value, gone: bool) {
        let node = text(pod, "/spec/nodeName");
        if node.is_empty() {
            return;
        }
        let over = gone || matches!(text(pod, "/status/phase"), "Succeeded" | "Failed");
        for claim in list(pod, "/spec/volumes").iter().filter_map(claim_of) {
            let key = json::join_key(json::namespace(pod), claim);
            let mut all = self.users();
            let pods = all.entry(key.clone()).or_default();
            let changed = if over {
                pods.remove(json::uid(pod)).is_some()
            } else {
                pods.insert(json::uid(pod).to_owned(), node.to_owned()).is_none()
            };
            drop(all);
            if changed {
                self.queue.add(&key);
            }
        }
    }

    async fn reconcile(&self, key: &str) -> Result<Option<Duration>, ClientError> {
        let Some(claim) = self.claims.get(key) else {
            self.users().remove(key);
            return Ok(None);
        };
        let Some(class) = self.classes.get(text(&claim, "/spec/storageClassName")) else { return Ok(None) };
        if text(&class, "/provisioner") != DRIVER {
            return Ok(None);
        }
        let wanted: BTreeSet<String> =
            self.users().get(key).map(|pods| pods.values().cloned().collect()).unwrap_or_default();
        if text(&claim, "/status/phase") != "Bound" {
            return Ok(None);
        }
        self.attach(key, &claim, &wanted).await
    }

    /// Attaches a volume to the nodes whose pods list it: to one at a time when it is for one node only. It is
    /// detached when no pod lists it and no kubelet has it any more.
    async fn attach(
        &self,
        key: &str,
        claim: &Value,
        wanted: &BTreeSet<String>,
    ) -> Result<Option<Duration>, ClientError> {
        let storage = &self.hotplug.storage;
        let attached = storage.attached(key);
        let volume = volume_name(claim);
        let mut again = None;
        for node in attached.difference(wanted) {
            if storage.is_on(node, key) {
                again = Some(RETRY);
                continue;
            }
            storage.attach(node, key, false);
            let name = attachment_name(&volume, node);
            let gone = json!({"metadata": {"name": name}});
            match self
                .writer
                .write(&self.who, &Write::to(&VOLUME_ATTACHMENTS, &gone, "", Op::Delete(Value::Null)))
                .await
            {
                Err(error) if error.code() != 404 => return Err(error),
                _ => {}
            }
        }
        for node in wanted.difference(&attached) {
            if is_single_node(claim) && !storage.attached(key).is_empty() {
                again = Some(RETRY);
                break;
            }
            let object = json!({"apiVersion": "storage.k8s.io/v1", "kind": "VolumeAttachment",
                "metadata": {"name": attachment_name(&volume, node)},
                "spec": {"attacher": DRIVER, "nodeName": node, "source": {"persistentVolumeName": volume}}});
            match self.writer.write(&self.who, &Write::create(&VOLUME_ATTACHMENTS, object.clone())).await {
                Err(error) if error.code() != 409 => return Err(error),
                _ => {}
            }
            let status = json!({"status": {"attached": true}});
            self.writer
                .write(&self.who, &Write::to(&VOLUME_ATTACHMENTS, &object, "status", Op::MergePatch(status)))
                .await?;
            storage.attach(node, key, true);
        }
        Ok(again)
    }
}

/// `csi-<hash>`, the same for a volume and a node whenever it is attached.
fn attachment_name(volume: &str, node: &str) -> String {
    let drawn = |salt: u64| crate::sim::node::draw_text(salt, &format!("{volume}/{node}"));
    format!("csi-{:016x}{:016x}", drawn(1), drawn(2))
}

/// The resources of a driver, for kubelets: what it does to a volume in use.
pub fn profile_of(classes: &Cache, claim: &Value) -> Profile {
    classes
        .get(text(claim, "/spec/storageClassName"))
        .filter(|class| text(class, "/provisioner") == DRIVER)
        .map(|class| Profile::of(text(&class, &format!("/parameters/{PROFILE}"))))
        .unwrap_or_default()
}

/// Whether the simulation provides a claim.
pub fn is_ours(classes: &Cache, claim: &Value) -> bool {
    let class = classes.get(text(claim, "/spec/storageClassName"));
    class.is_some_and(|class| text(&class, "/provisioner") == DRIVER)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_a_class_for_each_kind_of_driver() {
        let names: Vec<String> = classes().iter().map(|class| json::name(class).to_owned()).collect();
        assert_eq!(
            names,
            ["busy-check", "force-teardown", "exclusive-publish", "per-publish-device", "first-consumer"]
        );
        for (class, profile) in classes().iter().zip(Profile::ALL) {
            assert_eq!(Profile::of(text(class, "/parameters/profile")), profile);
        }
    }

    #[test]
    fn one_node_at_a_time_unless_the_modes_say_more() {
        for (modes, single) in
            [(json!(["ReadWriteOnce"]), true), (json!(["ReadWriteOnce", "ReadWriteMany"]), false)]
        {
            assert_eq!(is_single_node(&json!({"spec": {"accessModes": modes}})), single);
        }
        assert_ne!(attachment_name("v", "n1"), attachment_name("v", "n2"));
    }
}
