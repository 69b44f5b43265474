//! Hotplugged volumes: what is read before each step, and how a step is written. The steps themselves are
//! `hotplug::plan`'s.

use std::collections::BTreeMap;

use hotplug::plan::{Addition, Circumstances, Claim, DiskKind, Seen, Source, Wish};
use hotplug::view::{AttachmentPod, Instance, Launcher, Node};
use http::Method;
use kubevirt::{KubeVirtView, Version, feature_gates};
use serde_json::{Value, json};

use super::Provider;
use super::networks::JSON_PATCH;
use super::objects::{
    BACKUPS, CLAIMS, DATA_VOLUMES, MIGRATIONS, NODES, PODS, Resource, SNAPSHOTS, STORAGE_CLASSES, VMIS, VMS,
};
use super::request::encode;
use crate::view::text;
use crate::{Error, Kind, VmId};

/// The objects, as they were read.
#[derive(Debug)]
pub struct VolumeSnapshot {
    vm: Value,
    vmi: Option<Value>,
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

impl VolumeSnapshot {
    /// What `hotplug::plan` looks at.
    pub fn seen(&self) -> Seen<'_> {
        Seen {
            vm: &self.vm,
            instance: self.vmi.as_ref().map(Instance::read),
            pods: self.pods.iter().filter_map(AttachmentPod::read).collect(),
            claims: self.claims.clone(),
            circumstances: self.circumstances.clone(),
        }
    }
}

impl Provider {
    /// How KubeVirt takes volumes here: `HotplugVolumes` switches the declarative way off (vm.go:3577,
    /// v1.9).
    pub async fn hotplug_way(&self) -> Result<Way, Error> {
        let doing = "finding out how KubeVirt takes volumes";
        let installed = self.several("KubeVirt objects", "/apis/kubevirt.io/v1/kubevirts").await;
        let installed = installed.map_err(|wrong| {
            Error::new(
                Kind::Forbidden,
                doing,
                wrong,
                "have the ClusterRole `kubevirt.io:default` bound to you",
            )
        })?;
        let Some(kubevirt) = installed.and_then(|all| all.into_iter().next()) else {
            let (wrong, remedy) = ("there is no KubeVirt object", "install KubeVirt");
            return Err(Error::new(Kind::MissingCapability, doing, wrong, remedy));
        };
        let view = KubeVirtView(&kubevirt);
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
        let wrong = "volume hotplug is switched off in KubeVirt";
        let remedy = format!("add `{gate}` to spec.configuration.developerConfiguration.featureGates");
        Err(Error::new(Kind::MissingCapability, doing, wrong, remedy))
    }

    /// Reads everything that a step depends on.
    pub async fn observe_volumes(&self, id: &VmId, additions: &[Addition]) -> Result<VolumeSnapshot, Error> {
        let doing = format!("reading the volumes of VM `{id}`");
        let (vm, vmi) = self.observe(id, &doing).await?;
        let mut circumstances = Circumstances {
            migration: self.unfinished(&MIGRATIONS, id, "/spec/vmiName", &doing).await?,
            snapshot: self.unfinished(&SNAPSHOTS, id, "/spec/source/name", &doing).await?,
            backup: self.unfinished(&BACKUPS, id, "/spec/source/name", &doing).await?,
            ..Circumstances::default()
        };
        let mut pods = Vec::new();
        if let Some(vmi) = &vmi {
            let launchers = self.labelled(id, "kubevirt.io=virt-launcher", &doing).await?;
            let (uid, node) = (text(vmi, "/metadata/uid"), text(vmi, "/status/nodeName"));
            let active = launchers.iter().find(|pod| {
                let launcher = Launcher::read(pod);
                launcher.instance == uid && launcher.node == node && !launcher.down
            });
            circumstances.launcher_not_ready = active.is_none();
            if let Some(active) = active {
                let launcher = Launcher::read(active);
                let own = |pod: &Value| {
                    AttachmentPod::read(pod).is_some_and(|pod| pod.launcher == Some(launcher.uid))
                };
                pods = self.labelled(id, "kubevirt.io=hotplug-disk", &doing).await?;
                pods.retain(own);
            }
            // who may not read nodes is told nothing about them
            if let Ok(Some(object)) = self.find(&NODES.cluster_object(node), &doing).await {
                circumstances.node_not_ready = Node::read(&object).away_since.is_some();
            }
        }
        let claims = self.addable(id, additions, &doing).await?;
        Ok(VolumeSnapshot { vm, vmi, pods, claims, circumstances })
    }

    async fn labelled(&self, id: &VmId, selector: &str, doing: &str) -> Result<Vec<Value>, Error> {
        let path = format!("{}?labelSelector={}", PODS.collection(Some(id.namespace())), encode(selector));
        Ok(crate::view::list(&self.get(&path, doing).await?, "/items").to_vec())
    }

    /// The name of an operation on this VM that has not ended. A kind that the cluster does not
    /// know has none.
    async fn unfinished(
        &self,
        resource: &Resource,
        id: &VmId,
        target: &str,
        doing: &str,
    ) -> Result<Option<String>, Error> {
        let items = self.find(&resource.collection(Some(id.namespace())), doing).await?.unwrap_or_default();
        let open = crate::view::list(&items, "/items").iter().find(|object| {
            let phase = text(object, "/status/phase");
            let done = matches!(phase, "Succeeded" | "Failed")
                || object.pointer("/status/readyToUse") == Some(&Value::Bool(true))
                || object.pointer("/status/error").is_some_and(|error| !error.is_null());
            text(object, target) == id.name() && !done
        });
        Ok(open.map(|object| text(object, "/metadata/name").to_owned()))
    }

    async fn addable(
        &self,
        id: &VmId,
        additions: &[Addition],
        doing: &str,
    ) -> Result<BTreeMap<String, Claim>, Error> {
        let mut claims = BTreeMap::new();
        if additions.is_empty() {
            return Ok(claims);
        }
        let machines = self.all(&VMIS, Some(id.namespace()), "").await?;
        for addition in additions {
            let (Source::Claim(name) | Source::DataVolume(name)) = &addition.source;
            crate::identity::subdomain("claim", name)?;
            let Some(object) = self.find(&CLAIMS.object(id.namespace(), name), doing).await? else {
                continue;
            };
            let data_volume = self.find(&DATA_VOLUMES.object(id.namespace(), name), doing).await?;
            let class = text(&object, "/spec/storageClassName");
            let binding = match class {
                "" => None,
                // without the right to read classes a claim is taken as one that binds at once
                class => self.find(&STORAGE_CLASSES.cluster_object(class), doing).await.unwrap_or_default(),
            };
            let waits =
                binding.is_some_and(|class| text(&class, "/volumeBindingMode") == "WaitForFirstConsumer");
            let mut claim = Claim::read(&object, data_volume.as_ref(), waits);
            claim.held_by = machines
                .iter()
                .map(Instance::read)
                .filter(|other| other.name != id.name() && !other.is_final)
                .filter(|other| other.volumes.iter().any(|volume| volume.claim == name))
                .map(|other| format!("VM {}", other.name))
                .collect();
            claims.insert(name.clone(), claim);
        }
        Ok(claims)
    }

    /// Writes a step; `false`: somebody else was faster, look again. By calls, it writes the first of the
    /// changes only, and each is waited for before the next (rule O2).
    pub async fn write_volumes(
        &self,
        id: &VmId,
        way: Way,
        wish: &Wish,
        patch: &[Value],
        (adds, removes): (&[String], &[String]),
    ) -> Result<bool, Error> {
        let doing = format!("changing the volumes of VM `{id}`");
        match way {
            Way::Declarative => {
                let body = Value::Array(patch.to_vec());
                match self.write(Method::PATCH, &VMS.of(id), JSON_PATCH, &body, &doing).await {
                    Ok(_) => Ok(true),
                    Err(error) if error.kind == Kind::Conflict => Ok(false),
                    // A failed `test` is 422 with this word; a webhook's refusal is not.
                    Err(error) if error.kind == Kind::Refused && error.wrong.contains("test") => Ok(false),
                    Err(error) => Err(error),
                }
            }
            Way::Calls => {
                let (verb, body) = match (removes.first(), adds.first()) {
                    (Some(name), _) => ("removevolume", json!({"name": name})),
                    (None, Some(name)) => match wish.add.iter().find(|one| one.name == *name) {
                        Some(addition) => ("addvolume", add_options(addition)),
                        None => return Ok(false),
                    },
                    (None, None) => return Ok(true),
                };
                let (namespace, name) = (id.namespace(), id.name());
                let path = format!(
                    "/apis/subresources.kubevirt.io/v1/namespaces/{namespace}/virtualmachines/{name}/{verb}"
                );
                self.write(Method::PUT, &path, "application/json", &body, &doing).await?;
                Ok(true)
            }
        }
    }
}

/// `AddVolumeOptions`
fn add_options(addition: &Addition) -> Value {
    let bus = match addition.bus {
        Some(hotplug::plan::Bus::Virtio) => "virtio",
        Some(hotplug::plan::Bus::Sata) => "sata",
        _ => "scsi",
    };
    let field = match addition.kind {
        DiskKind::Disk => "disk",
        DiskKind::Lun => "lun",
        DiskKind::Cdrom => "cdrom",
    };
    let mut disk = json!({"name": addition.name, field: {"bus": bus}});
    if let Some(serial) = &addition.serial {
        disk["serial"] = serial.as_str().into();
    }
    if let Some(cache) = &addition.cache {
        disk["cache"] = cache.as_str().into();
    }
    let source = match &addition.source {
        Source::Claim(claim) => json!({"persistentVolumeClaim": {"claimName": claim, "hotpluggable": true}}),
        Source::DataVolume(name) => json!({"dataVolume": {"name": name, "hotpluggable": true}}),
    };
    json!({"name": addition.name, "disk": disk, "volumeSource": source})
}
