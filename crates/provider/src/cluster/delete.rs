//! Deleting a VM, with a plan for its disks that is shown before it is carried out.

use http::Method;
use serde_json::{Value, json};

use super::Provider;
use super::objects::{CLAIMS, DATA_VOLUMES, VMS, dry};
use crate::disposal::{self, Disks, Fate, Plan};
use crate::view::text;
use crate::{Error, Kind, VmId};

impl Provider {
    /// What would happen.
    pub async fn plan_delete(&self, vm: &VmId, wish: Disks) -> Result<Plan, Error> {
        let doing = format!("deleting VM `{vm}`");
        let (object, instance) = self.observe(vm, &doing).await?;
        let mut others = self.all(&VMS, Some(vm.namespace()), "").await?;
        others.retain(|other| text(other, "/metadata/name") != vm.name());
        disposal::plan(&object, instance.as_ref(), &others, wish).map_err(|refusal| {
            let remedy = format!("stop it first: `virt-steward vm stop {vm} --wait`");
            Error::new(Kind::WrongState, doing, refusal.to_string(), remedy)
        })
    }

    /// Carries a plan out. The VM goes only if it is still the one that the plan was made for, whatever has
    /// become of its status since (a resourceVersion would be stale within a second of a start); disks that
    /// go by name are deleted after it, and stay until no pod uses them.
    pub async fn delete(&self, vm: &VmId, plan: &Plan, dry_run: bool) -> Result<(), Error> {
        let doing = format!("deleting VM `{vm}`");
        let options = json!({"kind": "DeleteOptions", "apiVersion": "v1",
            "propagationPolicy": if plan.orphan { "Orphan" } else { "Background" },
            "preconditions": {"uid": plan.uid}});
        let path = format!("{}{}", VMS.of(vm), dry(dry_run));
        self.write(Method::DELETE, &path, "application/json", &options, &doing).await?;
        for disk in plan.disks.iter().filter(|disk| disk.fate == Fate::Deleted && disk.by_name) {
            self.delete_disk(vm.namespace(), &disk.source, &disk.reference, dry_run).await?;
        }
        Ok(())
    }

    async fn delete_disk(
        &self,
        namespace: &str,
        source: &str,
        name: &str,
        dry_run: bool,
    ) -> Result<(), Error> {
        crate::identity::subdomain("disk", name)?;
        let doing = format!("deleting {source} `{namespace}/{name}`");
        let of = if source == "dataVolume" { &DATA_VOLUMES } else { &CLAIMS };
        let path = of.object(namespace, name);
        let Some(object) = self.find(&path, &doing).await? else { return Ok(()) };
        let uid: &Value = &object["metadata"]["uid"];
        let options = json!({"kind": "DeleteOptions", "apiVersion": "v1", "preconditions": {"uid": uid}});
        let path = format!("{path}{}", dry(dry_run));
        match self.write(Method::DELETE, &path, "application/json", &options, &doing).await {
            Err(error) if error.kind == Kind::NotFound => Ok(()),
            result => result.map(drop),
        }
    }
}
