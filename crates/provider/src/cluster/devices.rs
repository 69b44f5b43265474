//! Host devices of VMs.

use http::Method;
use serde_json::Value;

use super::Provider;
use super::networks::JSON_PATCH;
use super::objects::{VMS, dry};
use crate::device::{self, Change, Wish};
use crate::{Error, VmId};

impl Provider {
    /// Attaches a GPU or another host device, or detaches it: at the next start.
    pub async fn change_device(&self, vm: &VmId, wish: &Wish, dry_run: bool) -> Result<Change, Error> {
        let doing = format!("changing the devices of VM `{vm}`");
        let (object, instance) = self.observe(vm, &doing).await?;
        let kubevirt = self.kubevirt_object().await;
        if wish.device.is_some() {
            self.require_gate(wish.sort.gate(), &doing).await?;
        }
        let change = device::plan(&object, instance.as_ref(), kubevirt.as_ref(), wish)?;
        let path = format!("{}{}", VMS.of(vm), dry(dry_run));
        let patch = Value::Array(change.patch.clone());
        self.write(Method::PATCH, &path, JSON_PATCH, &patch, &doing).await?;
        Ok(change)
    }
}
