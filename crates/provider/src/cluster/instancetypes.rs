//! Instance types and preferences.

use serde_json::Value;

use super::Provider;
use super::objects::{CLUSTER_INSTANCETYPES, CLUSTER_PREFERENCES, INSTANCETYPES, PREFERENCES, Resource};
use crate::instancetype::{Instancetype, Preference};
use crate::{Error, Kind, VmId, identity};

impl Provider {
    /// Instance types of the cluster, and of a namespace or of all.
    pub async fn instancetypes(&self, namespace: Option<&str>) -> Result<Vec<Instancetype>, Error> {
        let (cluster, own) = self.both(&CLUSTER_INSTANCETYPES, &INSTANCETYPES, namespace).await?;
        let cluster = cluster.iter().map(|one| Instancetype::of("VirtualMachineClusterInstancetype", one));
        let own = own.iter().map(|one| Instancetype::of("VirtualMachineInstancetype", one));
        Ok(cluster.chain(own).collect())
    }

    /// Preferences of the cluster, and of a namespace or of all.
    pub async fn preferences(&self, namespace: Option<&str>) -> Result<Vec<Preference>, Error> {
        let (cluster, own) = self.both(&CLUSTER_PREFERENCES, &PREFERENCES, namespace).await?;
        let cluster = cluster.iter().map(|one| Preference::of("VirtualMachineClusterPreference", one));
        let own = own.iter().map(|one| Preference::of("VirtualMachinePreference", one));
        Ok(cluster.chain(own).collect())
    }

    /// The instance type that a VM of a namespace means by a name: the namespace's own, or the cluster's.
    pub async fn instancetype(&self, id: &VmId) -> Result<Instancetype, Error> {
        let doing = format!("reading instance type `{}`", id.name());
        let found = self.either(&INSTANCETYPES, &CLUSTER_INSTANCETYPES, id, &doing).await?;
        found.map_or_else(
            || Err(absent(&doing, id, "instancetype")),
            |(own, one)| {
                let kind =
                    if own { "VirtualMachineInstancetype" } else { "VirtualMachineClusterInstancetype" };
                Ok(Instancetype::of(kind, &one))
            },
        )
    }

    /// The preference that a VM of a namespace means by a name: the namespace's own, or the cluster's.
    pub async fn preference(&self, id: &VmId) -> Result<Preference, Error> {
        let doing = format!("reading preference `{}`", id.name());
        let found = self.either(&PREFERENCES, &CLUSTER_PREFERENCES, id, &doing).await?;
        found.map_or_else(
            || Err(absent(&doing, id, "preference")),
            |(own, one)| {
                let kind = if own { "VirtualMachinePreference" } else { "VirtualMachineClusterPreference" };
                Ok(Preference::of(kind, &one))
            },
        )
    }

    /// The namespace's object of a name, or the cluster's; and whether it is the namespace's.
    async fn either(
        &self,
        own: &Resource,
        cluster: &Resource,
        id: &VmId,
        doing: &str,
    ) -> Result<Option<(bool, Value)>, Error> {
        if let Some(found) = self.find(&own.of(id), doing).await? {
            return Ok(Some((true, found)));
        }
        let found = self.find(&cluster.cluster_object(id.name()), doing).await?;
        Ok(found.map(|one| (false, one)))
    }

    async fn both(
        &self,
        cluster: &'static Resource,
        own: &'static Resource,
        namespace: Option<&str>,
    ) -> Result<(Vec<Value>, Vec<Value>), Error> {
        if let Some(namespace) = namespace {
            identity::label("namespace", namespace)?;
        }
        let (all, own) = futures::join!(self.all(cluster, None, ""), self.all(own, namespace, ""));
        // who may not read the cluster's may well read the namespace's
        let all = match all {
            Err(error) if error.kind == Kind::Forbidden => Vec::new(),
            other => other?,
        };
        Ok((all, own?))
    }
}

fn absent(doing: &str, id: &VmId, verb: &str) -> Error {
    let wrong = format!("neither namespace `{}` nor the cluster has one of this name", id.namespace());
    Error::new(Kind::NotFound, doing, wrong, format!("see which there are: `virt-steward {verb} list`"))
}
