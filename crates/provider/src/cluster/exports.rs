//! Exports of VMs and snapshots: KubeVirt's export server is started for one, and its links are passed on.
//! `virt-steward export` fetches and converts them.

use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};

use super::Provider;
use super::objects::{Resource, VMIS, dry};
use super::waiting::until;
use crate::view::export::Export;
use crate::view::text;
use crate::wait::Progress;
use crate::{Error, Kind, VmId, identity};

/// What to export.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ExportWish {
    /// This snapshot of the VM instead of the VM, which would have to be off.
    pub snapshot: Option<String>,
    /// Hours after which the export goes away by itself; they cannot be extended.
    pub ttl_hours: Option<u16>,
}

/// The longest that an export may be there, hours.
const LONGEST: u16 = 720;

const V1: Resource = Resource::new("/apis/export.kubevirt.io/v1", "virtualmachineexports");
const V1BETA1: Resource = Resource::new("/apis/export.kubevirt.io/v1beta1", "virtualmachineexports");
const V1ALPHA1: Resource = Resource::new("/apis/export.kubevirt.io/v1alpha1", "virtualmachineexports");

impl Provider {
    /// The version of the API that is there: v1 since 1.9, v1beta1 since 1.3.
    async fn exports(&self, doing: &str) -> Result<&'static Resource, Error> {
        let group = self.find("/apis/export.kubevirt.io", doing).await?.ok_or_else(|| {
            let wrong = "the cluster does not serve `export.kubevirt.io`";
            Error::new(Kind::MissingCapability, doing, wrong, "KubeVirt has it since 0.55; see its version")
        })?;
        let served = |version| {
            let mut all = crate::view::list(&group, "/versions").iter();
            all.any(|one| text(one, "/version") == version)
        };
        Ok(if served("v1") {
            &V1
        } else if served("v1beta1") {
            &V1BETA1
        } else {
            &V1ALPHA1
        })
    }

    /// Asks for an export, once.
    pub async fn export(&self, vm: &VmId, wish: &ExportWish, dry_run: bool) -> Result<Export, Error> {
        let doing = format!("exporting VM `{vm}`");
        let hours = wish.ttl_hours.unwrap_or(2);
        if hours == 0 || hours > LONGEST {
            let wrong = format!("`ttlHours` is not from 1 to {LONGEST}");
            return Err(Error::new(Kind::InvalidArgument, doing, wrong, "give fewer hours"));
        }
        let exports = self.exports(&doing).await?;
        let source = if let Some(name) = &wish.snapshot {
            identity::subdomain("snapshot", name)?;
            let snapshot = self.get_snapshot(vm.namespace(), name).await?;
            if snapshot.vm != vm.name() || !snapshot.ready {
                let wrong = format!("snapshot `{name}` is of VM `{}` and {}", snapshot.vm, snapshot.phase);
                let remedy = "name a snapshot of this VM that is ready: `virt-steward snapshot list`";
                return Err(Error::new(Kind::WrongState, doing, wrong, remedy));
            }
            json!({"apiGroup": "snapshot.kubevirt.io", "kind": "VirtualMachineSnapshot", "name": name})
        } else {
            self.vm_object(vm, &doing).await?;
            // KubeVirt would leave the export pending as long as the VM runs (`vm-source.go`, v1.9)
            let instance = self.find(&VMIS.of(vm), &doing).await?;
            if instance.is_some_and(|vmi| !matches!(text(&vmi, "/status/phase"), "Succeeded" | "Failed")) {
                let remedy = "stop it first, or take a snapshot and export that";
                return Err(Error::new(Kind::WrongState, doing, "the VM runs", remedy));
            }
            json!({"apiGroup": "kubevirt.io", "kind": "VirtualMachine", "name": vm.name()})
        };
        let stem: String = vm.name().chars().take(200).collect();
        let (version, _) = exports.version();
        let object = json!({"apiVersion": version, "kind": "VirtualMachineExport",
            "metadata": {"namespace": vm.namespace(), "generateName": format!("{stem}-")},
            "spec": {"source": source, "ttlDuration": format!("{hours}h")}});
        let path = format!("{}{}", exports.collection(Some(vm.namespace())), dry(dry_run));
        Ok(Export::of(&self.create(&path, &object, &doing).await?))
    }

    /// One export.
    pub async fn get_export(&self, id: &VmId) -> Result<Export, Error> {
        let doing = format!("reading export `{id}`");
        let exports = self.exports(&doing).await?;
        Ok(Export::of(&self.get(&exports.of(id), &doing).await.map_err(gone)?))
    }

    /// Deletes an export; what it exports stays.
    pub async fn delete_export(&self, id: &VmId, dry_run: bool) -> Result<(), Error> {
        let doing = format!("deleting export `{id}`");
        let exports = self.exports(&doing).await?;
        let object: Value = self.get(&exports.of(id), &doing).await.map_err(gone)?;
        self.delete_object(exports, id, &object, dry_run, &doing).await
    }

    /// Waits until the volumes can be fetched.
    pub async fn wait_export(
        &self,
        export: &Export,
        timeout: Duration,
        note: &mut (dyn FnMut(&str) + Send),
    ) -> Result<Export, Error> {
        let doing = format!("exporting {}", export.source);
        let (doing, id) = (doing.as_str(), VmId::new(&export.namespace, &export.name)?);
        let id = &id;
        until(doing, timeout, note, || async move {
            let now = self.get_export(id).await?;
            let progress = match now.phase.as_str() {
                "Ready" => Progress::Done,
                "Skipped" => Progress::Failed("it has no volume that can be exported".into()),
                "Terminated" => Progress::Failed("the export has ended".into()),
                phase => Progress::Waiting(phase.into()),
            };
            Ok((progress, now))
        })
        .await
    }
}

/// Exports are not listed by us, and go by themselves.
fn gone(mut error: Error) -> Error {
    if error.kind == Kind::NotFound {
        error.remedy = "ask for another one: an export goes away when its time is over".into();
    }
    error
}
