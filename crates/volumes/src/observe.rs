//! What is read before each step.

use std::collections::{BTreeMap, BTreeSet};

use hotplug::claims::{Holder, holders};
use hotplug::plan::{Addition, Circumstances, Claim, Seen};
use hotplug::view::{AttachmentPod, Instance, Launcher, Node};
use kubevirt::{KubeVirtView, Version, feature_gates};
use serde_json::Value;

use crate::{Error, Machine};

/// The objects, as they were read.
pub(crate) struct Snapshot {
    pub(crate) vm: Value,
    vmi: Value,
    pods: Vec<Value>,
    claims: BTreeMap<String, Claim>,
    circumstances: Circumstances,
}

/// How KubeVirt takes volumes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Way {
    /// `DeclarativeHotplugVolumes`: what stands in the VM is attached.
    Declarative,
    /// `HotplugVolumes`: one call for each volume.
    Calls,
}

fn text<'a>(object: &'a Value, path: &str) -> &'a str {
    object.pointer(path).and_then(Value::as_str).unwrap_or_default()
}

impl Machine {
    fn kubevirt(&self, plural: &str) -> String {
        format!("/apis/kubevirt.io/v1/namespaces/{}/{plural}", self.namespace)
    }

    fn core(&self, plural: &str) -> String {
        format!("/api/v1/namespaces/{}/{plural}", self.namespace)
    }

    pub(crate) fn path(&self) -> String {
        format!("{}/{}", self.kubevirt("virtualmachines"), self.name)
    }

    /// How KubeVirt takes volumes here: `HotplugVolumes` switches the declarative way off (vm.go:3577,
    /// v1.9).
    ///
    /// # Errors
    /// There is no KubeVirt, or hotplug is off, or it cannot be read.
    pub async fn way(&self) -> Result<Way, Error> {
        let installed = self.api.items("/apis/kubevirt.io/v1/kubevirts").await?;
        let kubevirt = installed.first().ok_or(Error::NoKubeVirt)?;
        let view = KubeVirtView(kubevirt);
        if feature_gates::is_enabled(view, "HotplugVolumes") {
            return Ok(Way::Calls);
        }
        if feature_gates::is_enabled(view, "DeclarativeHotplugVolumes") {
            return Ok(Way::Declarative);
        }
        let declarative = view.version().is_some_and(|version| version >= Version::new(1, 6));
        Err(Error::SwitchedOff {
            gate: if declarative { "DeclarativeHotplugVolumes" } else { "HotplugVolumes" },
        })
    }

    /// Reads everything that a step depends on.
    pub(crate) async fn observe(&self, additions: &[Addition]) -> Result<Snapshot, Error> {
        let vm = self.api.find(&self.path()).await?;
        if vm.is_null() {
            return Err(Error::NoSuchMachine(self.label()));
        }
        let vmi =
            self.api.find(&format!("{}/{}", self.kubevirt("virtualmachineinstances"), self.name)).await?;
        let mut circumstances = self.circumstances().await?;
        let selector = format!("{}?labelSelector=kubevirt.io%3Dhotplug-disk", self.core("pods"));
        let all = self.api.items(&selector).await?;
        let mut pods = Vec::new();
        if !vmi.is_null() {
            let selector = format!("{}?labelSelector=kubevirt.io%3Dvirt-launcher", self.core("pods"));
            let launchers = self.api.items(&selector).await?;
            let (uid, node) = (text(&vmi, "/metadata/uid"), text(&vmi, "/status/nodeName"));
            let active = launchers
                .iter()
                .map(Launcher::read)
                .find(|launcher| launcher.instance == uid && launcher.node == node && !launcher.down);
            circumstances.launcher_not_ready = active.is_none();
            if let Some(active) = active {
                let own = |pod: &&Value| {
                    AttachmentPod::read(pod).is_some_and(|pod| pod.launcher == Some(active.uid))
                };
                pods = all.iter().filter(own).cloned().collect();
            }
            // Who may not read nodes goes on without.
            if let Ok(object) = self.api.find(&format!("/api/v1/nodes/{node}")).await
                && !object.is_null()
            {
                circumstances.node_not_ready = Node::read(&object).away_since.is_some();
            }
        }
        let claims = self.claims(additions, &vmi, &all).await?;
        Ok(Snapshot { vm, vmi, pods, claims, circumstances })
    }

    async fn circumstances(&self) -> Result<Circumstances, Error> {
        let of = |group: &str, plural: &str| format!("/apis/{group}/namespaces/{}/{plural}", self.namespace);
        let snapshots = of("snapshot.kubevirt.io/v1beta1", "virtualmachinesnapshots");
        let backups = of("backup.kubevirt.io/v1alpha1", "virtualmachinebackups");
        let migrations = self.kubevirt("virtualmachineinstancemigrations");
        Ok(Circumstances {
            migration: self.unfinished(&migrations, "/spec/vmiName").await?,
            snapshot: self.unfinished(&snapshots, "/spec/source/name").await?,
            backup: self.unfinished(&backups, "/spec/source/name").await?,
            ..Circumstances::default()
        })
    }

    /// The name of an operation on this VM that has not ended. A kind that the cluster does not
    /// know has none.
    async fn unfinished(&self, collection: &str, target: &str) -> Result<Option<String>, Error> {
        let items = self.api.items(collection).await?;
        let open = items.iter().find(|object| {
            let phase = text(object, "/status/phase");
            let done = matches!(phase, "Succeeded" | "Failed")
                || object.pointer("/status/readyToUse") == Some(&Value::Bool(true))
                || object.pointer("/status/error").is_some_and(|error| !error.is_null());
            text(object, target) == self.name && !done
        });
        Ok(open.map(|object| text(object, "/metadata/name").to_owned()))
    }

    async fn claims(
        &self,
        additions: &[Addition],
        vmi: &Value,
        pods: &[Value],
    ) -> Result<BTreeMap<String, Claim>, Error> {
        let mut claims = BTreeMap::new();
        if additions.is_empty() {
            return Ok(claims);
        }
        let machines = self.api.items(&self.kubevirt("virtualmachineinstances")).await?;
        // Cluster-scoped: who may not read them does without.
        let attachments =
            self.api.items("/apis/storage.k8s.io/v1/volumeattachments").await.unwrap_or_default();
        let to = Instance::read(vmi);
        let others: Vec<Instance<'_>> =
            machines.iter().map(Instance::read).filter(|other| other.name != self.name).collect();
        let foreign: Vec<AttachmentPod<'_>> = pods
            .iter()
            .filter_map(AttachmentPod::read)
            .filter(|pod| !self.is_own(pod, vmi, &machines))
            .collect();
        for name in additions.iter().map(Addition::claim_name).collect::<BTreeSet<_>>() {
            let object = self.api.find(&format!("{}/{name}", self.core("persistentvolumeclaims"))).await?;
            if object.is_null() {
                continue;
            }
            let path =
                format!("/apis/cdi.kubevirt.io/v1beta1/namespaces/{}/datavolumes/{name}", self.namespace);
            let data_volume = Some(self.api.find(&path).await?).filter(|object| !object.is_null());
            let class = text(&object, "/spec/storageClassName");
            let waits = !class.is_empty() && {
                let binding = self.api.find(&format!("/apis/storage.k8s.io/v1/storageclasses/{class}")).await;
                binding.is_ok_and(|class| text(&class, "/volumeBindingMode") == "WaitForFirstConsumer")
            };
            let mut claim = Claim::read(&object, data_volume.as_ref(), waits);
            let volume = text(&object, "/spec/volumeName");
            let nodes: Vec<&str> = attachments
                .iter()
                .filter(|one| !volume.is_empty() && text(one, "/spec/source/persistentVolumeName") == volume)
                .map(|one| text(one, "/spec/nodeName"))
                .collect();
            claim.held_by = holders(name, &to, &others, &foreign, &nodes).iter().map(Holder::words).collect();
            claims.insert(name.to_owned(), claim);
        }
        Ok(claims)
    }

    /// Whether an attachment pod serves this VM: its node is the VM's, and no other VM of the namespace names it.
    fn is_own(&self, pod: &AttachmentPod<'_>, vmi: &Value, machines: &[Value]) -> bool {
        let prefix = format!("virt-launcher-{}-", self.name);
        let named = machines.iter().map(Instance::read).any(|other| {
            other.name != self.name && other.status.iter().any(|status| status.attach_pod == pod.uid)
        });
        !vmi.is_null() && !named && pod.launcher_name.starts_with(&prefix)
    }
}

impl Snapshot {
    /// What `hotplug::plan` looks at.
    pub(crate) fn seen(&self) -> Seen<'_> {
        Seen {
            vm: &self.vm,
            instance: (!self.vmi.is_null()).then(|| Instance::read(&self.vmi)),
            pods: self.pods.iter().filter_map(AttachmentPod::read).collect(),
            claims: self.claims.clone(),
            circumstances: self.circumstances.clone(),
        }
    }

    /// Of these volumes the claims that only one node may have, in the order in which they are locked.
    pub(crate) fn exclusive<'w>(&self, additions: &'w [Addition], names: &[String]) -> Vec<&'w str> {
        let single = |claim: &str| self.claims.get(claim).is_some_and(Claim::is_single_node);
        let claims: BTreeSet<&str> = additions
            .iter()
            .filter(|one| names.contains(&one.name))
            .map(Addition::claim_name)
            .filter(|claim| single(claim))
            .collect();
        claims.into_iter().collect()
    }
}
