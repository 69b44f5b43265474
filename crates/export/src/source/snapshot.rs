//! A snapshot of a running VM, taken to be exported and removed afterwards.
//!
//! ```text
//!  (none) ─► created ─► readyToUse ─► exported ─► removed
//!               └─► Failed, or not ready in time: an error, and it is removed
//! ```
//!
//! `KubeVirt` exports no running VM (export.go, v1.9); a `VirtualMachineSnapshot` of one is taken online, with
//! the guest's file systems frozen when its agent runs.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;

use super::objects::Objects;
use crate::retry::{Looks, pause};
use crate::{Error, Result};

/// A snapshot that was taken for an export.
#[derive(Clone)]
pub struct Snapshot {
    objects: Objects,
    name: String,
    /// What the snapshot says it lacks, for example that no agent froze the guest.
    pub indications: Vec<String>,
}

impl std::fmt::Debug for Snapshot {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Snapshot").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Snapshot {
    /// Takes a snapshot of a VM and waits until it can be used. With `again`, one of that name that an earlier
    /// run left is used; otherwise it is removed first.
    ///
    /// # Errors
    /// What the API refuses, and why the snapshot failed.
    pub async fn take(
        client: kube::Client,
        (namespace, vm): (&str, &str),
        name: &str,
        again: bool,
        within: Duration,
    ) -> Result<Self> {
        let objects = Objects::new(client, namespace);
        let mut snapshot = Self { objects, name: name.into(), indications: Vec::new() };
        if !again {
            snapshot.remove_and_wait(within).await?;
        }
        snapshot.create(vm).await?;
        match snapshot.ready(within).await {
            Ok(indications) => {
                snapshot.indications = indications;
                Ok(snapshot)
            }
            Err(error) => {
                // Nobody comes back for one that failed.
                let _ = snapshot.delete().await;
                Err(error)
            }
        }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    fn object(&self) -> String {
        format!("VirtualMachineSnapshot {}/{}", self.objects.namespace, self.name)
    }

    fn path(&self, name: &str) -> String {
        self.objects.path("/apis/snapshot.kubevirt.io/v1beta1", "virtualmachinesnapshots", name)
    }

    async fn create(&self, vm: &str) -> Result<()> {
        let object = json!({"apiVersion": "snapshot.kubevirt.io/v1beta1", "kind": "VirtualMachineSnapshot",
            "metadata": {"name": self.name, "namespace": self.objects.namespace,
                "labels": {"app.kubernetes.io/managed-by": "virt-steward"}},
            "spec": {"source": {"apiGroup": "kubevirt.io", "kind": "VirtualMachine", "name": vm}}});
        self.objects.create(&self.path(""), &self.object(), &object).await.map(|_| ())
    }

    async fn ready(&self, within: Duration) -> Result<Vec<String>> {
        let end = Instant::now() + within;
        let mut looks = Looks::default();
        let mut failures = 0;
        loop {
            let found = match self.objects.get(&self.path(&self.name), &self.object()).await {
                Ok(found) => found.unwrap_or_default(),
                Err(error) => {
                    failures += 1;
                    if !error.is_passing() || failures > 8 {
                        return Err(error);
                    }
                    tokio::time::sleep(pause(failures, 2)).await;
                    continue;
                }
            };
            let status = &found["status"];
            if status["readyToUse"] == true {
                let all = status["sourceIndications"].as_array().into_iter().flatten();
                let text = |one: &Value| {
                    one["message"].as_str().or_else(|| one["indication"].as_str()).map(str::to_owned)
                };
                // These two are as good as it gets: of a running VM, frozen by its agent.
                let good = |one: &&Value| one["indication"] == "Online" || one["indication"] == "GuestAgent";
                return Ok(all.filter(|one| !good(one)).filter_map(text).collect());
            }
            let why = status["error"]["message"].as_str().unwrap_or_default();
            if status["phase"] == "Failed" {
                return Err(Error::Object { object: self.object(), wrong: format!("it failed: {why}") });
            }
            if Instant::now() >= end {
                let why = if why.is_empty() { String::new() } else { format!(" ({why})") };
                let wrong = format!(
                    "it is not ready after {} s{why}; the storage class needs a VolumeSnapshotClass of its driver",
                    within.as_secs()
                );
                return Err(Error::Object { object: self.object(), wrong });
            }
            tokio::time::sleep(looks.next()).await;
        }
    }

    async fn remove_and_wait(&self, within: Duration) -> Result<()> {
        self.delete().await?;
        let end = Instant::now() + within;
        let mut looks = Looks::default();
        loop {
            match self.objects.get(&self.path(&self.name), &self.object()).await? {
                None => return Ok(()),
                Some(_) if Instant::now() >= end => {
                    let wrong =
                        "one of an earlier export does not go away; remove its finalizers' reason first";
                    return Err(Error::Object { object: self.object(), wrong: wrong.into() });
                }
                Some(_) => tokio::time::sleep(looks.next()).await,
            }
        }
    }

    /// Removes the snapshot.
    ///
    /// # Errors
    /// What the API refuses; what is gone already is no error.
    pub async fn delete(&self) -> Result<()> {
        self.objects.delete(&self.path(&self.name), &self.object()).await
    }
}
