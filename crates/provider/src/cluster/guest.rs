//! Questions to the guest agent.

use serde_json::Value;

use super::Provider;
use super::lifecycle::runs;
use super::objects::VMIS;
use crate::view::guest::{GuestFileSystem, GuestOs, GuestUser, file_systems, users};
use crate::view::holds;
use crate::{Error, Kind, VmId};

impl Provider {
    /// What the guest is.
    pub async fn guest_os(&self, vm: &VmId) -> Result<GuestOs, Error> {
        Ok(GuestOs::of(&self.ask_guest(vm, "guestosinfo").await?))
    }

    /// Who is logged in.
    pub async fn guest_users(&self, vm: &VmId) -> Result<Vec<GuestUser>, Error> {
        Ok(users(&self.ask_guest(vm, "userlist").await?))
    }

    /// What is mounted.
    pub async fn guest_file_systems(&self, vm: &VmId) -> Result<Vec<GuestFileSystem>, Error> {
        Ok(file_systems(&self.ask_guest(vm, "filesystemlist").await?))
    }

    async fn ask_guest(&self, vm: &VmId, question: &str) -> Result<Value, Error> {
        let doing = format!("asking the guest of VM `{vm}`");
        let instance = self.running_instance(vm, &doing).await?;
        if !holds(&instance, "AgentConnected") {
            let wrong = "its guest agent is not connected";
            let remedy = "install and start qemu-guest-agent in the guest";
            return Err(Error::new(Kind::MissingCapability, doing, wrong, remedy));
        }
        self.get(&super::streams::subresource(vm, question), &doing).await
    }

    /// The instance of a VM that runs; what is off says so in words.
    pub(super) async fn running_instance(&self, vm: &VmId, doing: &str) -> Result<Value, Error> {
        let instance = self.find(&VMIS.of(vm), doing).await?;
        if instance.is_none() {
            // a VM that is not there is not off
            self.vm_object(vm, doing).await?;
        }
        runs(vm, instance.as_ref(), doing).cloned()
    }
}
