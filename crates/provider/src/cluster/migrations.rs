//! Live migrations. The object is created by us, since `virtualmachines/migrate` does not tell which
//! one it made (`pkg/virt-api/rest/lifecycle.go`, v1.9).

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::Provider;
use super::objects::{MIGRATIONS, NODES, VMIS, dry};
use super::request::encode;
use super::transfer::Meter;
use super::waiting::until;
use crate::identity;
use crate::view::migration::{Migration, blockers};
use crate::view::{list, text};
use crate::wait::Progress;
use crate::{Error, Kind, VmId};

/// Where to.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct MigrateTo {
    /// This node, by its `kubernetes.io/hostname`; none: wherever the scheduler puts it.
    pub node: Option<String>,
}

impl Provider {
    /// Asks for a migration, once.
    pub async fn migrate(&self, vm: &VmId, to: &MigrateTo, dry_run: bool) -> Result<Migration, Error> {
        let doing = format!("migrating VM `{vm}`");
        if let Some(node) = &to.node {
            identity::subdomain("node", node)?;
        }
        let (object, instance) = self.observe(vm, &doing).await?;
        if let Some(blocker) = blockers(&object, instance.as_ref()).into_iter().next() {
            return Err(Error::new(Kind::WrongState, doing, blocker.message, blocker.remedy));
        }
        let here = instance.as_ref().map_or("", |vmi| text(vmi, "/status/nodeName"));
        if to.node.as_deref() == Some(here) {
            let remedy = "name another node, or none";
            return Err(Error::new(Kind::WrongState, doing, format!("it runs on `{here}` already"), remedy));
        }
        if let Some(node) = &to.node {
            self.takes_vms(node, &doing).await?;
        }
        let mut migration = json!({"apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstanceMigration",
            "metadata": {"generateName": "virt-steward-migrate-", "namespace": vm.namespace()},
            "spec": {"vmiName": vm.name()}});
        if let Some(node) = &to.node {
            // it only narrows where the VM may go, so a node that the VM does not fit on stays Pending
            migration["spec"]["addedNodeSelector"] = json!({"kubernetes.io/hostname": node});
        }
        let path = format!("{}{}", MIGRATIONS.collection(Some(vm.namespace())), dry(dry_run));
        let created = self.create(&path, &migration, &doing).await.map_err(|mut error| {
            if error.kind == Kind::Forbidden {
                // since v1.5 namespace administrators may not (rbac/cluster.go)
                error.remedy = "have the ClusterRole `kubevirt.io:migrate` bound to you".into();
            }
            error
        })?;
        Ok(Migration::of(&created))
    }

    /// Looks whether there is a node of this host name that takes VMs, as far as the caller may read nodes: KubeVirt would
    /// wait for five minutes for one that there is not (`migration.go`, v1.9).
    async fn takes_vms(&self, host: &str, doing: &str) -> Result<(), Error> {
        let label = encode(&format!("kubernetes.io/hostname={host}"));
        let path = format!("{}?labelSelector={label}", NODES.collection(None));
        let found = match self.get(&path, doing).await {
            Err(error) if error.kind == Kind::Forbidden => return Ok(()),
            found => found?,
        };
        let Some(node) = list(&found, "/items").first() else {
            let wrong = format!("there is no node `{host}`");
            return Err(Error::new(
                Kind::NotFound,
                doing,
                wrong,
                "see which there are: `virt-steward node list`",
            ));
        };
        if node.pointer("/spec/unschedulable") == Some(&Value::Bool(true)) {
            let remedy = format!("name another node, or let it take pods again: `kubectl uncordon {host}`");
            return Err(Error::new(Kind::WrongState, doing, format!("node `{host}` is cordoned"), remedy));
        }
        Ok(())
    }

    /// Migrations of a namespace, or of all.
    pub async fn migrations(&self, namespace: Option<&str>) -> Result<Vec<Migration>, Error> {
        if let Some(namespace) = namespace {
            identity::label("namespace", namespace)?;
        }
        let all = self.all(&MIGRATIONS, namespace, "").await?;
        Ok(all.iter().map(Migration::of).collect())
    }

    /// One migration, with what its instance tells while it is under way, and how much of the memory has gone over.
    pub async fn migration(&self, id: &VmId) -> Result<Migration, Error> {
        let doing = format!("reading migration `{id}`");
        let object = self.get(&MIGRATIONS.of(id), &doing).await.map_err(no_migration)?;
        let mut migration = self.with_instance(&object, &doing).await?;
        Meter::default().read(self, &mut migration).await;
        Ok(migration)
    }

    /// Reads a migration; while it is under way its instance tells more.
    async fn with_instance(&self, object: &Value, doing: &str) -> Result<Migration, Error> {
        let mut migration = Migration::of(object);
        if !migration.is_over() && !migration.vm.is_empty() {
            let vm = VmId::new(&migration.namespace, &migration.vm)?;
            if let Some(instance) = self.find(&VMIS.of(&vm), doing).await? {
                migration.add_state_of(&instance, text(object, "/metadata/uid"));
            }
        }
        Ok(migration)
    }

    /// Ends one migration by its name, by deleting it as KubeVirt wants it.
    pub async fn end_migration(&self, id: &VmId, dry_run: bool) -> Result<Migration, Error> {
        let doing = format!("cancelling migration `{id}`");
        let object = self.get(&MIGRATIONS.of(id), &doing).await.map_err(no_migration)?;
        let migration = Migration::of(&object);
        if migration.is_over() {
            let wrong = format!("it is over: {}", migration.phase);
            return Err(Error::new(Kind::WrongState, doing, wrong, "nothing is to be done"));
        }
        self.delete_object(&MIGRATIONS, id, &object, dry_run, &doing).await?;
        Ok(migration)
    }

    /// Ends the migration of a VM that is under way, by deleting it as KubeVirt wants it.
    pub async fn cancel_migration(&self, vm: &VmId, dry_run: bool) -> Result<Migration, Error> {
        let doing = format!("cancelling the migration of VM `{vm}`");
        let all = self.all(&MIGRATIONS, Some(vm.namespace()), "").await?;
        let found = all.iter().find(|one| {
            text(one, "/spec/vmiName") == vm.name()
                && !Migration::of(one).is_over()
                && text(one, "/metadata/deletionTimestamp").is_empty()
        });
        let Some(found) = found else {
            self.vm_object(vm, &doing).await?;
            let remedy = "nothing is to be done";
            return Err(Error::new(Kind::WrongState, doing, "none is under way", remedy));
        };
        let migration = Migration::of(found);
        let id = VmId::new(vm.namespace(), &migration.name)?;
        self.delete_object(&MIGRATIONS, &id, found, dry_run, &doing).await?;
        Ok(migration)
    }

    /// Waits until a migration has ended well.
    pub async fn wait_migration(
        &self,
        migration: &Migration,
        timeout: Duration,
        note: &mut (dyn FnMut(&str) + Send),
    ) -> Result<Migration, Error> {
        let doing = format!("migrating VM `{}/{}`", migration.namespace, migration.vm);
        let (doing, path) = (doing.as_str(), MIGRATIONS.object(&migration.namespace, &migration.name));
        let path = path.as_str();
        let meter = &tokio::sync::Mutex::new(Meter::default());
        until(doing, timeout, note, || async move {
            let Some(object): Option<Value> = self.find(path, doing).await? else {
                return Ok((Progress::Failed("the migration was cancelled".into()), None));
            };
            let mut now = self.with_instance(&object, doing).await?;
            meter.lock().await.read(self, &mut now).await;
            let progress = match now.phase.as_str() {
                "Succeeded" => Progress::Done,
                "Failed" => Progress::Failed(now.failure.clone().unwrap_or("the migration failed".into())),
                _ => Progress::Waiting(now.standing()),
            };
            Ok((progress, Some(now)))
        })
        .await?
        .ok_or_else(|| Error::new(Kind::NotFound, doing, "the migration is gone", "look for its VM"))
    }
}

fn no_migration(mut error: Error) -> Error {
    if error.kind == Kind::NotFound {
        error.remedy = "see which there are: `virt-steward migration list`".into();
    }
    error
}
