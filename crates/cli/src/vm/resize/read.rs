//! What a plan is made of, read from the cluster.

use ::resize::eligibility::Surroundings;
use ::resize::ledger::{self, POLICY};
use ::resize::machine::Wanted;
use ::resize::plan::{self, Plan};
use ::resize::{Policy, view};
use anyhow::Result;
use serde_json::Value;

use super::Where;
use crate::cluster::Cluster;
use crate::doctor::gather;
use crate::problem::Problem;

/// A VM with all around it; what is not there is null.
#[derive(Debug, Default)]
pub struct Found {
    pub vm: Value,
    pub vmi: Value,
    pub pod: Value,
    pub node: Value,
    pub kubevirt: Value,
    pub kubernetes_minor: u32,
    /// What the reconciler has put in force for the VM.
    pub policy: Option<Policy>,
    /// KubeVirt can move it. Without that, memory changes only where the operator may write the VMI as
    /// KubeVirt itself (design D2).
    pub migratable: bool,
    /// Whether the operator has that grant; nothing when it is not needed, or could not be asked about.
    pub grant: Option<bool>,
}

impl Where {
    /// The path of an object of KubeVirt that bears the VM's name.
    pub fn path(&self, resource: &str) -> String {
        format!("/apis/kubevirt.io/v1/namespaces/{}/{resource}/{}", self.namespace, self.name)
    }
}

/// Reads it all.
pub async fn find(cluster: &Cluster, of: &Where) -> Result<Found> {
    let vm = needed(cluster, &of.path("virtualmachines")).await?;
    let vmi = optional(cluster, &of.path("virtualmachineinstances")).await?;
    if vmi.is_null() {
        return Err(Problem::new(
            format!("resizing the VM `{}` in `{}`", of.name, of.namespace),
            "it does not run",
            "change its template; it takes effect at the next start",
        )
        .into());
    }
    let uid = vmi["metadata"]["uid"].as_str().unwrap_or_default();
    let pods =
        format!("/api/v1/namespaces/{}/pods?labelSelector=kubevirt.io%2Fcreated-by%3D{uid}", of.namespace);
    let mut pods = needed(cluster, &pods).await?;
    let pod = pods["items"]
        .as_array_mut()
        .and_then(|pods| pods.iter_mut().find(|pod| view::is_active_launcher(pod, &vmi)).map(Value::take))
        .unwrap_or_default();
    let node = match pod["spec"]["nodeName"].as_str() {
        Some(node) => optional(cluster, &format!("/api/v1/nodes/{node}")).await?,
        None => Value::Null,
    };
    let kubevirts = optional(cluster, "/apis/kubevirt.io/v1/kubevirts").await?;
    let version = needed(cluster, "/version").await?;
    let minor = version["minor"].as_str().unwrap_or_default().trim_end_matches('+').parse().unwrap_or(0);
    let kubevirt = kubevirts["items"].get(0).cloned().unwrap_or_default();
    let migratable = view::vmi(&vmi).migratable;
    let grant = if migratable { None } else { gather::grant(cluster, &kubevirt).await? };
    Ok(Found {
        policy: ledger::read::<Policy>(&vmi, POLICY).ok().flatten().filter(|policy| policy.in_place),
        migratable,
        grant,
        kubevirt,
        kubernetes_minor: minor,
        vm,
        vmi,
        pod,
        node,
    })
}

impl Found {
    /// The way to a wanted size.
    pub fn plan(&self, wanted: &Wanted) -> Plan {
        let around = Surroundings {
            pod: &self.pod,
            node: &self.node,
            kubernetes_minor: self.kubernetes_minor,
            live_update: view::is_live_update(&self.kubevirt),
            // What cannot be asked about is taken as absent, and that is said.
            may_declare: self.grant == Some(true),
        };
        plan::plan(&self.vmi, wanted, &view::rules(&self.kubevirt), &around)
    }
}

async fn needed(cluster: &Cluster, path: &str) -> Result<Value> {
    cluster.get(path).await.map_err(|error| {
        Problem::new(format!("reading `{path}`"), error, "check the name, and that you may read it").into()
    })
}

/// Null when it is not there, or not to be read.
async fn optional(cluster: &Cluster, path: &str) -> Result<Value> {
    match cluster.get(path).await {
        Err(kube::Error::Api(status)) if matches!(status.code, 403 | 404) => Ok(Value::Null),
        Err(error) => {
            Err(Problem::new(format!("reading `{path}`"), error, "check `kubectl cluster-info`").into())
        }
        Ok(object) => Ok(object),
    }
}
