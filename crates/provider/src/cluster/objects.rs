//! Where objects are, and reading the few that belong to one VM.

use serde_json::Value;

use super::Provider;
use super::request::encode;
use crate::view::{VmDetail, text};
use crate::{Error, VmId};

/// A kind in the API.
pub(super) struct Resource {
    /// `/apis/group/version`, or `/api/v1`.
    root: &'static str,
    plural: &'static str,
}

pub(super) const VMS: Resource = Resource { root: "/apis/kubevirt.io/v1", plural: "virtualmachines" };
pub(super) const VMIS: Resource =
    Resource { root: "/apis/kubevirt.io/v1", plural: "virtualmachineinstances" };
pub(super) const MIGRATIONS: Resource =
    Resource { root: "/apis/kubevirt.io/v1", plural: "virtualmachineinstancemigrations" };
pub(super) const SNAPSHOTS: Resource =
    Resource { root: "/apis/snapshot.kubevirt.io/v1beta1", plural: "virtualmachinesnapshots" };
pub(super) const SNAPSHOT_CONTENTS: Resource =
    Resource { root: "/apis/snapshot.kubevirt.io/v1beta1", plural: "virtualmachinesnapshotcontents" };
pub(super) const RESTORES: Resource =
    Resource { root: "/apis/snapshot.kubevirt.io/v1beta1", plural: "virtualmachinerestores" };
pub(super) const CLONES: Resource =
    Resource { root: "/apis/clone.kubevirt.io/v1beta1", plural: "virtualmachineclones" };
pub(super) const JOBS: Resource =
    Resource { root: "/apis/vm-feature-manager.io/v1alpha1", plural: "vmexportjobs" };
pub(super) const DATA_VOLUMES: Resource =
    Resource { root: "/apis/cdi.kubevirt.io/v1beta1", plural: "datavolumes" };
pub(super) const CLAIMS: Resource = Resource { root: "/api/v1", plural: "persistentvolumeclaims" };
pub(super) const PODS: Resource = Resource { root: "/api/v1", plural: "pods" };
pub(super) const EVENTS: Resource = Resource { root: "/api/v1", plural: "events" };

pub(super) const NODES: Resource = Resource { root: "/api/v1", plural: "nodes" };
pub(super) const STORAGE_CLASSES: Resource =
    Resource { root: "/apis/storage.k8s.io/v1", plural: "storageclasses" };
pub(super) const NETWORK_ATTACHMENTS: Resource =
    Resource { root: "/apis/k8s.cni.cncf.io/v1", plural: "network-attachment-definitions" };
pub(super) const TEMPLATES: Resource =
    Resource { root: "/apis/template.kubevirt.io/v1beta1", plural: "virtualmachinetemplates" };
pub(super) const TEMPLATE_REQUESTS: Resource =
    Resource { root: "/apis/template.kubevirt.io/v1beta1", plural: "virtualmachinetemplaterequests" };
pub(super) const INSTANCETYPES: Resource =
    Resource { root: "/apis/instancetype.kubevirt.io/v1beta1", plural: "virtualmachineinstancetypes" };
pub(super) const CLUSTER_INSTANCETYPES: Resource =
    Resource { root: "/apis/instancetype.kubevirt.io/v1beta1", plural: "virtualmachineclusterinstancetypes" };
pub(super) const PREFERENCES: Resource =
    Resource { root: "/apis/instancetype.kubevirt.io/v1beta1", plural: "virtualmachinepreferences" };
pub(super) const CLUSTER_PREFERENCES: Resource =
    Resource { root: "/apis/instancetype.kubevirt.io/v1beta1", plural: "virtualmachineclusterpreferences" };

impl Resource {
    pub(super) const fn new(root: &'static str, plural: &'static str) -> Self {
        Self { root, plural }
    }

    /// As in `export.kubevirt.io/v1`, and the plural.
    pub(super) fn version(&self) -> (&'static str, &'static str) {
        (self.root.trim_start_matches("/apis/"), self.plural)
    }

    /// What people call them, as in "listing snapshots".
    pub(super) fn words(&self) -> &'static str {
        match self.plural {
            "virtualmachines" | "virtualmachineinstances" => "VMs",
            "virtualmachineinstancemigrations" => "migrations",
            "virtualmachinesnapshots" => "snapshots",
            "virtualmachinetemplates" => "templates",
            "virtualmachineinstancetypes" | "virtualmachineclusterinstancetypes" => "instance types",
            "virtualmachinepreferences" | "virtualmachineclusterpreferences" => "preferences",
            "persistentvolumeclaims" => "claims",
            "vmexportjobs" => "export jobs",
            plural => plural,
        }
    }

    /// One that is in no namespace.
    pub(super) fn cluster_object(&self, name: &str) -> String {
        format!("{}/{}/{name}", self.root, self.plural)
    }

    /// All of them, or those of a namespace.
    pub(super) fn collection(&self, namespace: Option<&str>) -> String {
        match namespace {
            Some(namespace) => format!("{}/namespaces/{namespace}/{}", self.root, self.plural),
            None => format!("{}/{}", self.root, self.plural),
        }
    }

    /// One of them.
    pub(super) fn object(&self, namespace: &str, name: &str) -> String {
        format!("{}/{name}", self.collection(Some(namespace)))
    }

    /// The one that has the VM's name.
    pub(super) fn of(&self, vm: &VmId) -> String {
        self.object(vm.namespace(), vm.name())
    }
}

/// `?dryRun=All`, or nothing.
pub(super) fn dry(dry_run: bool) -> &'static str {
    if dry_run { "?dryRun=All" } else { "" }
}

/// The most objects of a list that is read in one piece: pods and events of one VM.
const FEW: usize = 500;

impl Provider {
    /// The VM as it is in the API, lossless.
    pub async fn vm_object(&self, vm: &VmId, doing: &str) -> Result<Value, Error> {
        self.get(&VMS.of(vm), doing).await
    }

    /// A VM and, when there is one, its instance.
    pub(super) async fn observe(&self, vm: &VmId, doing: &str) -> Result<(Value, Option<Value>), Error> {
        let instance = VMIS.of(vm);
        let (object, instance) = futures::join!(self.vm_object(vm, doing), self.find(&instance, doing));
        // what is wrong with both is said of the VM, whichever answer came first
        Ok((object?, instance?))
    }

    /// The KubeVirt object, when there is one that the caller may read.
    pub(super) async fn kubevirt_object(&self) -> Option<Value> {
        let mut found = self.few("/apis/kubevirt.io/v1/kubevirts", "").await;
        (!found.is_empty()).then(|| found.swap_remove(0))
    }

    /// The version of the API server.
    pub async fn version(&self) -> Result<String, Error> {
        let version = self.get("/version", "asking the cluster for its version").await?;
        Ok(text(&version, "/gitVersion").to_owned())
    }

    /// Everything about one VM, in four requests.
    pub async fn describe(&self, vm: &VmId) -> Result<VmDetail, Error> {
        let doing = format!("reading VM `{vm}`");
        let (object, instance) = self.observe(vm, &doing).await?;
        let pods = match &instance {
            Some(vmi) => {
                let selector = format!("kubevirt.io/created-by={}", text(vmi, "/metadata/uid"));
                self.few(
                    &PODS.collection(Some(vm.namespace())),
                    &format!("labelSelector={}", encode(&selector)),
                )
                .await
            }
            None => Vec::new(),
        };
        let about = format!("involvedObject.name={}", vm.name());
        let events = self
            .few(&EVENTS.collection(Some(vm.namespace())), &format!("fieldSelector={}", encode(&about)))
            .await;
        let events: Vec<Value> = events
            .into_iter()
            .filter(|event| text(event, "/involvedObject/kind").starts_with("VirtualMachine"))
            .collect();
        Ok(VmDetail::of(&object, instance.as_ref(), &pods, &events))
    }

    /// A short list that only adds to an answer: without the right to read it, it is empty.
    async fn few(&self, collection: &str, query: &str) -> Vec<Value> {
        let path = format!("{collection}?limit={FEW}&{query}");
        match self.get(&path, "reading what belongs to a VM").await {
            Ok(mut list) => match list.get_mut("items").map(Value::take) {
                Some(Value::Array(items)) => items,
                _ => Vec::new(),
            },
            Err(error) => {
                tracing::debug!(%error, path, "left out");
                Vec::new()
            }
        }
    }

    /// Creates a VM from an object; the API server fills in what it fills in.
    pub async fn create_vm(&self, namespace: &str, object: &Value, dry_run: bool) -> Result<Value, Error> {
        let name = match text(object, "/metadata/name") {
            "" => text(object, "/metadata/generateName"),
            name => name,
        };
        let doing = format!("creating VM `{namespace}/{name}`");
        let wrong = |wrong: &str, remedy: &str| {
            Error::new(crate::Kind::InvalidArgument, doing.clone(), wrong, remedy)
        };
        crate::identity::label("namespace", namespace)?;
        let is_vm = text(object, "/kind") == "VirtualMachine"
            && text(object, "/apiVersion").starts_with("kubevirt.io/");
        if !is_vm {
            return Err(wrong("it is no VirtualMachine of `kubevirt.io`", "give a VirtualMachine"));
        }
        if ![namespace, ""].contains(&text(object, "/metadata/namespace")) {
            let remedy = "leave `metadata.namespace` away, or ask for that namespace";
            return Err(wrong("the object names another namespace", remedy));
        }
        self.create(&format!("{}{}", VMS.collection(Some(namespace)), dry(dry_run)), object, &doing).await
    }
}
