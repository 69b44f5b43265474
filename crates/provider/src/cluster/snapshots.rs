//! Snapshots, restores and clones.

use std::time::Duration;

use serde_json::Value;

use super::Provider;
use super::objects::{CLONES, RESTORES, Resource, SNAPSHOT_CONTENTS, SNAPSHOTS, VMIS, VMS, dry};
use super::waiting::until;
use crate::clone::{self, Origin};
use crate::snapshot::{self, Snapshot};
use crate::view::text;
use crate::wait::Progress;
use crate::{Error, Kind, VmId, identity};

/// Something under way that has a name of its own.
#[derive(Clone, Debug, Eq, PartialEq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Underway {
    /// Its namespace.
    pub namespace: String,
    /// The name of the restore or clone.
    pub name: String,
    /// The VM that comes of it.
    pub vm: String,
}

impl Provider {
    /// Asks for a snapshot, once.
    pub async fn snapshot(&self, vm: &VmId, name: Option<&str>, dry_run: bool) -> Result<Snapshot, Error> {
        let doing = format!("taking a snapshot of VM `{vm}`");
        if let Some(name) = name {
            identity::subdomain("snapshot", name)?;
        }
        let object = self.vm_object(vm, &doing).await?;
        self.require_gate("Snapshot", &doing).await?;
        snapshot::possible(&object, &doing)?;
        let path = format!("{}{}", SNAPSHOTS.collection(Some(vm.namespace())), dry(dry_run));
        let created = self.create(&path, &snapshot::snapshot(vm, name), &doing).await;
        Ok(Snapshot::of(&created.map_err(|error| gated(error, "Snapshot"))?))
    }

    /// Snapshots of a namespace or of all, of one VM or of any.
    pub async fn snapshots(&self, namespace: Option<&str>, vm: Option<&str>) -> Result<Vec<Snapshot>, Error> {
        if let Some(namespace) = namespace {
            identity::label("namespace", namespace)?;
        }
        let all = self.all(&SNAPSHOTS, namespace, "").await?;
        let all = all.iter().map(Snapshot::of);
        Ok(all.filter(|snapshot| vm.is_none_or(|vm| snapshot.vm == vm)).collect())
    }

    /// One snapshot.
    pub async fn get_snapshot(&self, namespace: &str, name: &str) -> Result<Snapshot, Error> {
        let id = VmId::new(namespace, name)?;
        let doing = format!("reading snapshot `{id}`");
        let path = SNAPSHOTS.object(namespace, name);
        Ok(Snapshot::of(&self.get(&path, &doing).await.map_err(no_snapshot)?))
    }

    /// Deletes a snapshot and, by its own deletion policy, its contents.
    pub async fn delete_snapshot(&self, namespace: &str, name: &str, dry_run: bool) -> Result<(), Error> {
        let id = VmId::new(namespace, name)?;
        let doing = format!("deleting snapshot `{id}`");
        let path = SNAPSHOTS.object(namespace, name);
        let object = self.get(&path, &doing).await.map_err(no_snapshot)?;
        self.delete_object(&SNAPSHOTS, &id, &object, dry_run, &doing).await
    }

    /// Waits until a snapshot can be restored from.
    pub async fn wait_snapshot(
        &self,
        snapshot: &Snapshot,
        timeout: Duration,
        note: &mut (dyn FnMut(&str) + Send),
    ) -> Result<Snapshot, Error> {
        let doing = format!("taking snapshot `{}/{}`", snapshot.namespace, snapshot.name);
        let path = SNAPSHOTS.object(&snapshot.namespace, &snapshot.name);
        let (doing, path) = (doing.as_str(), path.as_str());
        until(doing, timeout, note, || async move {
            let snapshot = Snapshot::of(&self.get(path, doing).await?);
            Ok((snapshot.progress(), snapshot))
        })
        .await
    }

    /// Asks for a restore of a snapshot onto a VM, once. A VM that is there must be off, unless `stop`;
    /// one that is not there is made.
    pub async fn restore(
        &self,
        target: &VmId,
        snapshot: &str,
        stop: bool,
        dry_run: bool,
    ) -> Result<Underway, Error> {
        let doing = format!("restoring snapshot `{snapshot}` onto VM `{target}`");
        let found = self.get_snapshot(target.namespace(), snapshot).await?;
        if !found.ready {
            let wrong = found.error.unwrap_or_else(|| format!("the snapshot is {}", found.phase));
            let remedy = "wait until the snapshot is ready: `virt-steward snapshot list`";
            return Err(Error::new(Kind::WrongState, doing, wrong, remedy));
        }
        let instance = self.find(&VMIS.of(target), &doing).await?;
        let runs = instance.is_some_and(|vmi| !matches!(text(&vmi, "/status/phase"), "Succeeded" | "Failed"));
        if runs && !stop {
            let remedy = "stop it first, or let the restore stop it with `--stop`";
            return Err(Error::new(Kind::WrongState, doing, "the VM runs", remedy));
        }
        self.require_gate("Snapshot", &doing).await?;
        let path = format!("{}{}", RESTORES.collection(Some(target.namespace())), dry(dry_run));
        let created = self.create(&path, &snapshot::restore(target, snapshot, stop), &doing).await;
        Ok(underway(&created.map_err(|error| gated(error, "Snapshot"))?, target.name()))
    }

    /// Asks for a clone, once.
    pub async fn clone_vm(
        &self,
        namespace: &str,
        origin: &Origin,
        wish: &clone::Wish,
        dry_run: bool,
    ) -> Result<Underway, Error> {
        let target = VmId::new(namespace, &wish.target)?;
        let doing = match origin {
            Origin::Vm(name) => format!("cloning VM `{namespace}/{name}` to `{target}`"),
            Origin::Snapshot(name) => format!("cloning snapshot `{namespace}/{name}` to VM `{target}`"),
        };
        let source = match origin {
            Origin::Vm(name) => Some(self.vm_object(&VmId::new(namespace, name)?, &doing).await?),
            Origin::Snapshot(name) => self.snapshotted(namespace, name, &doing).await?,
        };
        clone::check(wish, source.as_ref(), &doing)?;
        if self.find(&VMS.of(&target), &doing).await?.is_some() {
            let remedy = "choose another name for the clone";
            return Err(Error::new(Kind::AlreadyExists, doing, "a VM of this name is there", remedy));
        }
        self.require_gate("Snapshot", &doing).await?;
        let path = format!("{}{}", CLONES.collection(Some(namespace)), dry(dry_run));
        let created = self.create(&path, &clone::object(namespace, origin, wish), &doing).await;
        Ok(underway(&created.map_err(|error| gated(error, "Snapshot"))?, target.name()))
    }

    /// The VM as it is in a snapshot, where it has its content and the caller may read that. One that is not ready
    /// yet can be cloned from: KubeVirt waits for it.
    async fn snapshotted(&self, namespace: &str, name: &str, doing: &str) -> Result<Option<Value>, Error> {
        let id = VmId::new(namespace, name)?;
        let object = self.get(&SNAPSHOTS.of(&id), doing).await.map_err(no_snapshot)?;
        let content = text(&object, "/status/virtualMachineSnapshotContentName");
        if content.is_empty() {
            return Ok(None);
        }
        match self.get(&SNAPSHOT_CONTENTS.object(namespace, content), doing).await {
            Ok(content) => Ok(content.pointer("/spec/source/virtualMachine").cloned()),
            Err(error) if matches!(error.kind, Kind::Forbidden | Kind::NotFound) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Waits until a restore has brought everything back.
    pub async fn wait_restore(
        &self,
        restore: &Underway,
        timeout: Duration,
        note: &mut (dyn FnMut(&str) + Send),
    ) -> Result<(), Error> {
        let doing = format!("restoring VM `{}/{}`", restore.namespace, restore.vm);
        self.follow(&RESTORES, restore, &doing, snapshot::restore_progress, timeout, note).await
    }

    /// Waits until a clone is there.
    pub async fn wait_clone(
        &self,
        clone: &Underway,
        timeout: Duration,
        note: &mut (dyn FnMut(&str) + Send),
    ) -> Result<(), Error> {
        let doing = format!("cloning to VM `{}/{}`", clone.namespace, clone.vm);
        self.follow(&CLONES, clone, &doing, clone::progress, timeout, note).await
    }

    async fn follow(
        &self,
        resource: &Resource,
        what: &Underway,
        doing: &str,
        progress: fn(&Value) -> Progress,
        timeout: Duration,
        note: &mut (dyn FnMut(&str) + Send),
    ) -> Result<(), Error> {
        let path = resource.object(&what.namespace, &what.name);
        let path = path.as_str();
        until(doing, timeout, note, || async move { Ok((progress(&self.get(path, doing).await?), ())) }).await
    }
}

fn underway(object: &Value, vm: &str) -> Underway {
    Underway {
        namespace: text(object, "/metadata/namespace").into(),
        name: text(object, "/metadata/name").into(),
        vm: vm.into(),
    }
}

fn no_snapshot(mut error: Error) -> Error {
    if error.kind == Kind::NotFound {
        error.remedy = "see which there are: `virt-steward snapshot list`".into();
    }
    error
}

/// virt-api's admission says only that the gate is off; this says what to do.
fn gated(mut error: Error, gate: &str) -> Error {
    if error.wrong.contains("gate") {
        error.kind = Kind::MissingCapability;
        error.remedy = format!("have the gate `{gate}` switched on in the KubeVirt object");
    }
    error
}
