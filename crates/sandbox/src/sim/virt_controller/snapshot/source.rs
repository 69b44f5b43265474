//! The VM that a snapshot is of: its lock, its guest, what it consists of (`source.go`, v1.9).

use std::sync::Arc;

use apimachinery::tree::{Value, json};

use super::{Snapshots, claims_of, failed, state};
use crate::sim::client::ClientError;
use crate::sim::json::{self, annotation, condition, finalizers, has_condition, is_deleting, list, text};
use crate::sim::resource::{CONTROLLER_REVISIONS, VMS};
use crate::sim::storage::data_volumes::{POPULATED_FOR, is_usable};
use crate::sim::virt_controller::PassError;
use crate::sim::write::{Op, Write};

/// On VMs that a snapshot is being taken of.
const FINALIZER: &str = "snapshot.kubevirt.io/snapshot-source-protection";

/// A VM and its guest, from the view of one snapshot.
pub struct Source {
    pub vm: Arc<Value>,
    pub vmi: Option<Arc<Value>>,
    pub locked: bool,
    pub lock_message: String,
}

impl Source {
    pub fn online(&self) -> bool {
        self.vmi.is_some()
    }

    pub fn paused(&self) -> bool {
        self.vmi.as_ref().is_some_and(|vmi| has_condition(vmi, "Paused", "True"))
    }

    pub fn has_agent(&self) -> bool {
        self.vmi.as_ref().is_some_and(|vmi| condition(vmi, "/status/conditions", "AgentConnected").is_some())
    }

    fn frozen(&self) -> bool {
        self.vmi.as_ref().is_some_and(|vmi| text(vmi, "/status/fsFreezeStatus") == "frozen")
    }
}

impl Snapshots {
    /// The VM of a snapshot; `None`: it is not there.
    pub(super) fn source(&self, snapshot: &Value) -> Option<Source> {
        let key = json::join_key(json::namespace(snapshot), text(snapshot, "/spec/source/name"));
        let vm = self.caches.vms.get(&key)?;
        let vmi = self.caches.vmis.get(&key);
        let locked = text(&vm, "/status/snapshotInProgress") == json::name(snapshot)
            && finalizers(&vm).contains(&FINALIZER);
        let message = if locked { "Source locked and operation in progress" } else { "Source not locked" };
        Some(Source { vm, vmi, locked, lock_message: message.into() })
    }

    /// Reserves the VM for a snapshot. When that is not possible now, the source says why.
    pub(super) async fn lock(&self, source: &mut Source, snapshot: &Value) -> Result<(), ClientError> {
        let (namespace, name) = (json::namespace(&source.vm).to_owned(), json::name(&source.vm).to_owned());
        let claims: Vec<String> =
            claims_of(&source.vm).iter().map(|(_, claim)| (*claim).to_owned()).collect();
        if let Some(why) = claims.iter().find_map(|claim| self.why_not(&namespace, claim)) {
            source.lock_message = format!("{} source {namespace}/{name} {why}", source.lock_message);
            return Ok(());
        }
        if !source.online() {
            let users = self.pods_using(&namespace, &claims);
            if users > 0 {
                source.lock_message = format!(
                    "{} source is offline but {users} pods using PVCs {claims:?}",
                    source.lock_message
                );
                return Ok(());
            }
        }
        let other = text(&source.vm, "/status/snapshotInProgress").to_owned();
        if !other.is_empty() && other != json::name(snapshot) {
            source.lock_message = format!("{} snapshot {other:?} in progress", source.lock_message);
            return Ok(());
        }
        let mut vm = source.vm.as_ref().clone();
        if other.is_empty() {
            vm["status"]["snapshotInProgress"] = json::name(snapshot).into();
            let write = Write::to(&VMS, &source.vm, "status", Op::Update(vm));
            vm = Arc::unwrap_or_clone(self.writer.write(&self.who, &write).await?);
        }
        let vm = self.guarded(&VMS, &vm, FINALIZER).await?;
        source.vm = Arc::new(vm);
        source.locked = true;
        source.lock_message = "Source locked and operation in progress".into();
        Ok(())
    }

    /// Lets the VM go.
    pub(super) async fn unlock(&self, source: &mut Source, snapshot: &Value) -> Result<(), ClientError> {
        if text(&source.vm, "/status/snapshotInProgress") != json::name(snapshot) {
            return Ok(());
        }
        let vm = self.released(&VMS, &source.vm, FINALIZER).await?;
        let mut free = vm.clone();
        json::remove(&mut free, &["status", "snapshotInProgress"]);
        match self.writer.write(&self.who, &Write::to(&VMS, &vm, "status", Op::Update(free))).await {
            Ok(vm) => source.vm = vm,
            Err(error) if error.code() == 404 => {}
            Err(error) => return Err(error),
        }
        source.locked = false;
        source.lock_message = "Source not locked".into();
        Ok(())
    }

    /// Why a claim cannot be snapshotted yet (`verifyVolumes`).
    fn why_not(&self, namespace: &str, name: &str) -> Option<String> {
        let key = json::join_key(namespace, name);
        let Some(claim) = self.storage().claims.get(&key) else {
            return Some(format!("volume doesnt exist: {name}"));
        };
        if is_deleting(&claim) {
            return Some(format!("volume is being deleted: {name}"));
        }
        if text(&claim, "/status/phase") != "Bound" {
            return Some(format!("volume not bound: {name}"));
        }
        let owner =
            list(&claim, "/metadata/ownerReferences").iter().find(|one| one["kind"] == "DataVolume")?;
        if annotation(&claim, POPULATED_FOR).is_some() {
            return None;
        }
        let volume = self.storage().data_volumes.get(&json::join_key(namespace, text(owner, "/name")));
        let populated = volume.is_none_or(|volume| is_usable(&volume));
        (!populated).then(|| format!("volume not populated: {name}"))
    }

    fn pods_using(&self, namespace: &str, claims: &[String]) -> usize {
        if claims.is_empty() {
            return 0;
        }
        let uses = |pod: &Arc<Value>| {
            json::namespace(pod) == namespace
                && !matches!(text(pod, "/status/phase"), "Succeeded" | "Failed")
                && list(pod, "/spec/volumes").iter().any(|volume| {
                    let claim = text(volume, "/persistentVolumeClaim/claimName");
                    claims.iter().any(|one| one == claim)
                })
        };
        self.caches.pods.all().iter().filter(|pod| uses(pod)).count()
    }

    /// Quiesces the guest, if it runs, has an agent and is not paused.
    pub(super) async fn freeze(&self, source: &Source, snapshot: &Value) -> Result<(), PassError> {
        if !source.locked {
            return Err(failed("attempting to freeze unlocked VM"));
        }
        if source.frozen() || source.paused() || !source.has_agent() {
            return Ok(());
        }
        let seconds = state::deadline(snapshot).as_secs();
        let body = json!({"unfreezeTimeout": format!("{}m{}s", seconds / 60, seconds % 60)});
        self.ask_guest(&source.vm, "freeze", &body).await?;
        Ok(())
    }

    /// The opposite.
    pub(super) async fn thaw(&self, source: &Source) -> Result<(), PassError> {
        if !source.locked || !source.has_agent() || source.paused() {
            return Ok(());
        }
        self.ask_guest(&source.vm, "unfreeze", &Value::Null).await?;
        Ok(())
    }

    async fn ask_guest(&self, vm: &Value, verb: &str, body: &Value) -> Result<(), ClientError> {
        let path = format!(
            "/apis/subresources.kubevirt.io/v1/namespaces/{}/virtualmachineinstances/{}/{verb}",
            json::namespace(vm),
            json::name(vm)
        );
        match self
            .writer
            .client
            .send(Some(&self.who), http::Method::PUT, &path, "application/json", body)
            .await
        {
            // The answer has no body.
            Ok(_) | Err(ClientError::Garbled { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// The VM as the snapshot keeps it: a running one as it was started, with the disks that it has now.
    pub(super) async fn captured(&self, source: &Source, snapshot: &Value) -> Result<Value, PassError> {
        let vm = &source.vm;
        let mut spec = vm["spec"].clone();
        if let Some(vmi) = &source.vmi {
            let name = text(vmi, "/status/virtualMachineRevisionName");
            let revision = self.revision(json::namespace(vm), name).await?;
            let revision = revision.ok_or_else(|| failed(format!("vm revision {name} doesn't exist")))?;
            let started = revision.pointer("/data/spec").cloned().unwrap_or_default();
            let current = std::mem::replace(&mut spec, started);
            for path in [
                &["template", "spec", "volumes"][..],
                &["template", "spec", "domain", "devices", "disks"][..],
                &["dataVolumeTemplates"][..],
            ] {
                let now = path.iter().try_fold(&current, |at, key| at.get(*key));
                match now {
                    Some(now) => json::put(&mut spec, path, now.clone()),
                    None => json::remove(&mut spec, path),
                }
            }
        }
        for field in ["instancetype", "preference"] {
            let name = text(&spec, &format!("/{field}/revisionName")).to_owned();
            if !name.is_empty() {
                let kept = self.keep_revision(vm, snapshot, &name).await?;
                spec[field]["revisionName"] = kept.into();
            }
        }
        let mut metadata = vm["metadata"].clone();
        json::remove(&mut metadata, &["managedFields"]);
        Ok(json!({"metadata": metadata, "spec": spec, "status": {}}))
    }

    pub(super) async fn revision(&self, namespace: &str, name: &str) -> Result<Option<Value>, ClientError> {
        let path = CONTROLLER_REVISIONS.path(namespace, name, "");
        match self.writer.client.get(Some(&self.who), &path).await {
            Ok(revision) => Ok(Some(revision)),
            Err(error) if error.code() == 404 => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Copies a revision of an instance type for the snapshot (`captureInstancetypeControllerRevision`).
    async fn keep_revision(&self, vm: &Value, snapshot: &Value, name: &str) -> Result<String, PassError> {
        let namespace = json::namespace(vm);
        let revision = self.revision(namespace, name).await?;
        let revision = revision
            .ok_or_else(|| failed(format!("Unable to fetch ControllerRevision {namespace}/{name}")))?;
        let copy = name.replacen(json::name(vm), json::name(snapshot), 1);
        self.copy_revision(&revision, &copy, Some(snapshot)).await?;
        Ok(copy)
    }

    /// Writes a revision under another name, owned by an object or by nobody.
    pub(super) async fn copy_revision(
        &self,
        revision: &Value,
        name: &str,
        owner: Option<&Value>,
    ) -> Result<(), ClientError> {
        let owners: Vec<Value> = owner
            .map(|owner| {
                json!({"apiVersion": owner["apiVersion"], "kind": owner["kind"], "name": json::name(owner),
                    "uid": json::uid(owner), "controller": true, "blockOwnerDeletion": true})
            })
            .into_iter()
            .collect();
        let object = json!({"apiVersion": "apps/v1", "kind": "ControllerRevision",
            "metadata": {"name": name, "namespace": json::namespace(revision),
                "labels": revision["metadata"]["labels"], "ownerReferences": owners},
            "data": revision["data"], "revision": revision["revision"]});
        match self.writer.write(&self.who, &Write::create(&CONTROLLER_REVISIONS, object)).await {
            Err(error) if error.code() != 409 => Err(error),
            _ => Ok(()),
        }
    }
}
