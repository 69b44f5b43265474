//! What VMs use.

use super::Provider;
use super::request::encode;
use crate::usage::{self, Usage};
use crate::view::list;
use crate::{Error, Kind, identity};

impl Provider {
    /// What the VMs of a namespace use, or those of all; one request.
    pub async fn usage(&self, namespace: Option<&str>) -> Result<Vec<Usage>, Error> {
        let doing = "reading what VMs use";
        if let Some(namespace) = namespace {
            identity::label("namespace", namespace)?;
        }
        let place = namespace.map(|one| format!("/namespaces/{one}")).unwrap_or_default();
        let selector = encode("kubevirt.io=virt-launcher");
        let path = format!("/apis/metrics.k8s.io/v1beta1{place}/pods?labelSelector={selector}");
        let metrics = self.get(&path, doing).await.map_err(|error| match error.kind {
            Kind::NotFound => {
                let wrong = "the cluster does not serve `metrics.k8s.io`";
                let remedy = "have metrics-server, or an adapter for Prometheus, installed";
                Error::new(Kind::MissingCapability, doing, wrong, remedy)
            }
            _ => error,
        })?;
        Ok(list(&metrics, "/items").iter().filter_map(usage::of).collect())
    }
}
