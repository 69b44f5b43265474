//! What is read before each step.

use std::collections::BTreeMap;

use anyhow::Result;
use hotplug::plan::{Addition, Circumstances, Claim, Seen, Source};
use hotplug::view::{AttachmentPod, Instance, Launcher, Node};
use kubevirt::{KubeVirtView, Version, feature_gates};
use serde_json::Value;

use super::Vm;
use crate::problem::Problem;

/// The objects, as they were read.
pub(super) struct Snapshot {
    pub(super) vm: Value,
    vmi: Value,
    pods: Vec<Value>,
    claims: BTreeMap<String, Claim>,
    circumstances: Circumstances,
}

/// How KubeVirt takes volumes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Way {
    /// `DeclarativeHotplugVolumes`: what stands in the VM is attached.
    Declarative,
    /// `HotplugVolumes`: one call for each volume.
    Calls,
}

fn text<'a>(object: &'a Value, path: &str) -> &'a str {
    object.pointer(path).and_then(Value::as_str).unwrap_or_default()
}

impl Vm {
    fn kubevirt(&self, plural: &str) -> String {
        format!("/apis/kubevirt.io/v1/namespaces/{}/{plural}", self.namespace)
    }

    fn core(&self, plural: &str) -> String {
        format!("/api/v1/namespaces/{}/{plural}", self.namespace)
    }

    pub(super) fn path(&self) -> String {
        format!("{}/{}", self.kubevirt("virtualmachines"), self.name)
    }

    /// An object, or null when it is not there.
    async fn find(&self, path: &str) -> Result<Value> {
        match self.cluster.get(path).await {
            Ok(object) => Ok(object),
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(Value::Null),
            Err(error) => {
                let remedy = "check the connection, and your rights: `kubectl auth can-i --list`";
                Err(Problem::new(format!("reading `{path}`"), error, remedy).into())
            }
        }
    }

    async fn items(&self, path: &str) -> Result<Vec<Value>> {
        let mut list = self.find(path).await?;
        Ok(match list["items"].take() {
            Value::Array(items) => items,
            _ => Vec::new(),
        })
    }

    /// How KubeVirt takes volumes here: `HotplugVolumes` switches the declarative way off (vm.go:3577,
    /// v1.9).
    pub(super) async fn way(&self) -> Result<Way> {
        let installed = self.items("/apis/kubevirt.io/v1/kubevirts").await?;
        let doing = "finding out how KubeVirt takes volumes";
        let Some(kubevirt) = installed.first() else {
            return Err(Problem::new(doing, "there is no KubeVirt object", "install KubeVirt").into());
        };
        let view = KubeVirtView(kubevirt);
        if feature_gates::is_enabled(view, "HotplugVolumes") {
            return Ok(Way::Calls);
        }
        if feature_gates::is_enabled(view, "DeclarativeHotplugVolumes") {
            return Ok(Way::Declarative);
        }
        let gate = if view.version().is_some_and(|version| version >= Version::new(1, 6)) {
            "DeclarativeHotplugVolumes"
        } else {
            "HotplugVolumes"
        };
        let remedy = format!("add `{gate}` to spec.configuration.developerConfiguration.featureGates");
        Err(Problem::new(doing, "volume hotplug is switched off in KubeVirt", remedy).into())
    }

    /// Reads everything that a step depends on.
    pub(super) async fn observe(&self, additions: &[Addition]) -> Result<Snapshot> {
        let vm = self.find(&self.path()).await?;
        if vm.is_null() {
            let doing = format!("reading virtual machine {}", self.label());
            return Err(Problem::new(doing, "there is none", "see `kubectl get virtualmachines`").into());
        }
        let vmi = self.find(&format!("{}/{}", self.kubevirt("virtualmachineinstances"), self.name)).await?;
        let mut circumstances = Circumstances {
            migration: self
                .unfinished(&self.kubevirt("virtualmachineinstancemigrations"), "/spec/vmiName")
                .await?,
            snapshot: self
                .unfinished(
                    &format!(
                        "/apis/snapshot.kubevirt.io/v1beta1/namespaces/{}/virtualmachinesnapshots",
                        self.namespace
                    ),
                    "/spec/source/name",
                )
                .await?,
            backup: self
                .unfinished(
                    &format!(
                        "/apis/backup.kubevirt.io/v1alpha1/namespaces/{}/virtualmachinebackups",
                        self.namespace
                    ),
                    "/spec/source/name",
                )
                .await?,
            ..Circumstances::default()
        };
        let mut pods = Vec::new();
        if !vmi.is_null() {
            let selector = format!("{}?labelSelector=kubevirt.io%3Dvirt-launcher", self.core("pods"));
            let launchers = self.items(&selector).await?;
            let (uid, node) = (text(&vmi, "/metadata/uid"), text(&vmi, "/status/nodeName"));
            let active = launchers.iter().find(|pod| {
                let launcher = Launcher::read(pod);
                launcher.instance == uid && launcher.node == node && !launcher.down
            });
            circumstances.launcher_not_ready = active.is_none();
            if let Some(active) = active {
                let launcher = Launcher::read(active);
                let selector = format!("{}?labelSelector=kubevirt.io%3Dhotplug-disk", self.core("pods"));
                let all = self.items(&selector).await?;
                let own = |pod: &Value| {
                    AttachmentPod::read(pod).is_some_and(|pod| pod.launcher == Some(launcher.uid))
                };
                pods = all.into_iter().filter(own).collect();
            }
            if let Ok(object) = self.find(&format!("/api/v1/nodes/{node}")).await
                && !object.is_null()
            {
                circumstances.node_not_ready = Node::read(&object).away_since.is_some();
            }
        }
        let claims = self.claims(additions).await?;
        Ok(Snapshot { vm, vmi, pods, claims, circumstances })
    }

    /// The name of an operation on this VM that has not ended. A kind that the cluster does not
    /// know has none.
    async fn unfinished(&self, collection: &str, target: &str) -> Result<Option<String>> {
        let items = self.items(collection).await?;
        let open = items.iter().find(|object| {
            let phase = text(object, "/status/phase");
            let done = matches!(phase, "Succeeded" | "Failed")
                || object.pointer("/status/readyToUse") == Some(&Value::Bool(true))
                || object.pointer("/status/error").is_some_and(|error| !error.is_null());
            text(object, target) == self.name && !done
        });
        Ok(open.map(|object| text(object, "/metadata/name").to_owned()))
    }

    async fn claims(&self, additions: &[Addition]) -> Result<BTreeMap<String, Claim>> {
        let mut claims = BTreeMap::new();
        if additions.is_empty() {
            return Ok(claims);
        }
        let machines = self.items(&self.kubevirt("virtualmachineinstances")).await?;
        for addition in additions {
            let (Source::Claim(name) | Source::DataVolume(name)) = &addition.source;
            let object = self.find(&format!("{}/{name}", self.core("persistentvolumeclaims"))).await?;
            if object.is_null() {
                continue;
            }
            let path =
                format!("/apis/cdi.kubevirt.io/v1beta1/namespaces/{}/datavolumes/{name}", self.namespace);
            let data_volume = Some(self.find(&path).await?).filter(|object| !object.is_null());
            let class = text(&object, "/spec/storageClassName");
            let binding = self.find(&format!("/apis/storage.k8s.io/v1/storageclasses/{class}")).await?;
            let waits = !class.is_empty() && text(&binding, "/volumeBindingMode") == "WaitForFirstConsumer";
            let mut claim = Claim::read(&object, data_volume.as_ref(), waits);
            claim.held_by = machines
                .iter()
                .map(Instance::read)
                .filter(|other| other.name != self.name && !other.is_final)
                .filter(|other| other.volumes.iter().any(|volume| volume.claim == name))
                .map(|other| other.name.to_owned())
                .collect();
            claims.insert(name.clone(), claim);
        }
        Ok(claims)
    }
}

impl Snapshot {
    /// What `hotplug::plan` looks at.
    pub(super) fn seen(&self) -> Seen<'_> {
        Seen {
            vm: &self.vm,
            instance: (!self.vmi.is_null()).then(|| Instance::read(&self.vmi)),
            pods: self.pods.iter().filter_map(AttachmentPod::read).collect(),
            claims: self.claims.clone(),
            circumstances: self.circumstances.clone(),
        }
    }
}
