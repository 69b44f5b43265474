//! Network interfaces of VMs.

use std::time::Duration;

use http::Method;
use serde_json::Value;

use super::Provider;
use super::objects::{NETWORK_ATTACHMENTS, VMIS, VMS, dry};
use super::waiting::until;
use crate::network::{self, Change, Effect, Nic, Wish};
use crate::view::detail::Interface;
use crate::view::{VmDetail, text};
use crate::wait::Progress;
use crate::{Error, Kind, VmId};

/// The content type of RFC 6902.
pub(super) const JSON_PATCH: &str = "application/json-patch+json";

impl Provider {
    /// The interfaces of a VM.
    pub async fn nics(&self, vm: &VmId) -> Result<Vec<Interface>, Error> {
        let doing = format!("reading the interfaces of VM `{vm}`");
        let (object, instance) = self.observe(vm, &doing).await?;
        Ok(VmDetail::of(&object, instance.as_ref(), &[], &[]).interfaces)
    }

    /// Changes the interfaces of a VM, and says when that takes effect. The patch is guarded by what it was
    /// made for.
    pub async fn change_nic(&self, vm: &VmId, wish: &Wish, dry_run: bool) -> Result<Change, Error> {
        let doing = format!("changing the interfaces of VM `{vm}`");
        let (object, instance) = self.observe(vm, &doing).await?;
        if let Wish::Add(nic) = wish {
            self.network_exists(vm, nic).await?;
        }
        let kubevirt = self.kubevirt_object().await;
        let default = kubevirt
            .as_ref()
            .map_or("", |one| text(one, "/spec/configuration/network/defaultNetworkInterface"));
        let default = if default.is_empty() { "bridge" } else { default };
        let change = network::plan(&object, instance.as_ref(), wish, default)?;
        if !change.patch.is_empty() {
            let path = format!("{}{}", VMS.of(vm), dry(dry_run));
            let patch = Value::Array(change.patch.clone());
            self.write(Method::PATCH, &path, JSON_PATCH, &patch, &doing).await?;
        }
        Ok(change)
    }

    /// `NetworkAttachmentDefinition`s are looked for, as far as the caller may read them: a VM with one that
    /// is not there does not start.
    async fn network_exists(&self, vm: &VmId, nic: &Nic) -> Result<(), Error> {
        if nic.network == "pod" {
            return Ok(());
        }
        let doing = format!("adding interface `{}` to VM `{vm}`", nic.name);
        let network = VmId::parse(&nic.network, vm.namespace())?;
        match self.get(&NETWORK_ATTACHMENTS.of(&network), &doing).await {
            Err(error) if error.kind == Kind::NotFound => {
                let kinds = NETWORK_ATTACHMENTS.collection(Some(network.namespace()));
                if self.find(&format!("{kinds}?limit=1"), &doing).await?.is_none() {
                    let wrong = "the cluster knows no NetworkAttachmentDefinition";
                    let remedy = "have Multus installed, or use the network `pod`";
                    return Err(Error::new(Kind::MissingCapability, doing, wrong, remedy));
                }
                let wrong = format!("there is no network `{network}`");
                let remedy = "see `kubectl get network-attachment-definitions -A`";
                Err(Error::new(Kind::NotFound, doing, wrong, remedy))
            }
            Err(error) if error.kind == Kind::Forbidden => Ok(()),
            other => other.map(drop),
        }
    }

    /// Waits until the guest has what was wished. What takes effect with a restart is not waited for.
    pub async fn wait_nic(
        &self,
        vm: &VmId,
        wish: &Wish,
        change: &Change,
        timeout: Duration,
        note: &mut (dyn FnMut(&str) + Send),
    ) -> Result<(), Error> {
        if matches!(change.effect, Effect::NextStart | Effect::AfterRestart) {
            return Ok(());
        }
        let doing = format!("waiting for the interfaces of VM `{vm}`");
        let doing = doing.as_str();
        until(doing, timeout, note, || async move {
            let instance = self.find(&VMIS.of(vm), doing).await?;
            let progress = if network::is_done(instance.as_ref(), wish) {
                Progress::Done
            } else {
                let moving = instance.as_ref().is_some_and(crate::view::migration::is_migrating);
                Progress::Waiting(match (change.effect, moving) {
                    (_, true) => "the VM is moving".into(),
                    (Effect::AfterMigration, false) => "waiting for a migration".into(),
                    _ => "waiting for the guest".into(),
                })
            };
            Ok((progress, ()))
        })
        .await
    }
}
