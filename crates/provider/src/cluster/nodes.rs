//! Nodes, and the VMs on them.

use serde::Serialize;
use serde_json::Value;

use super::Provider;
use super::objects::{NODES, VMIS};
use super::slim;
use crate::view::node::{NodeSummary, features, join, taints};
use crate::view::{VmSummary, text};
use crate::{Error, Kind, identity};

/// A node in full.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeDetail {
    /// What a list shows.
    #[serde(flatten)]
    pub summary: NodeSummary,
    /// Its taints.
    pub taints: Vec<String>,
    /// What KubeVirt's node labeller found.
    pub features: Vec<String>,
    /// The VMs that run there, as `namespace/name`.
    pub running: Vec<String>,
}

impl Provider {
    /// All nodes, with what runs on them, without a request per node.
    pub async fn nodes(&self) -> Result<Vec<NodeSummary>, Error> {
        // Of two refusals the same one is told each time, whichever came first.
        let (nodes, vmis) = futures::join!(self.all(&NODES, None, ""), self.all(&VMIS, None, ""));
        Ok(join(&nodes?, &vmis?))
    }

    /// One node.
    pub async fn node(&self, name: &str) -> Result<NodeDetail, Error> {
        identity::subdomain("node", name)?;
        let doing = format!("reading node `{name}`");
        let node = self.get(&NODES.cluster_object(name), &doing).await.map_err(|mut error| {
            if error.kind == Kind::NotFound {
                error.remedy = "see which there are: `virt-steward node list`".into();
            }
            error
        })?;
        let vmis = self.all(&VMIS, None, "").await?;
        let here: Vec<Value> =
            vmis.iter().filter(|vmi| text(vmi, "/status/nodeName") == name).map(slim::vmi).collect();
        let mut running: Vec<String> = vmis
            .iter()
            .filter(|vmi| text(vmi, "/status/nodeName") == name)
            .filter(|vmi| !matches!(text(vmi, "/status/phase"), "Succeeded" | "Failed"))
            .map(|vmi| VmSummary::of(vmi, None))
            .map(|vm| format!("{}/{}", vm.namespace, vm.name))
            .collect();
        running.sort_unstable();
        let mut summary = NodeSummary::of(&node);
        for vmi in &here {
            summary.count(vmi);
        }
        Ok(NodeDetail { summary, taints: taints(&node), features: features(&node), running })
    }
}
