//! Instance types and preferences.

use serde_json::Value;

use super::Provider;
use super::objects::{CLUSTER_INSTANCETYPES, CLUSTER_PREFERENCES, INSTANCETYPES, PREFERENCES, Resource};
use crate::instancetype::{Instancetype, Preference};
use crate::{Error, Kind, identity};

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
