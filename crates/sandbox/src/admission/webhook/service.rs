//! From a Service to an address that can be dialled: what kube-proxy and cluster DNS do in a cluster.

use apimachinery::tree::{List, Value};

use crate::objects::Objects;

/// `clientConfig.service`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Service {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// The Service's port, not the pod's.
    pub port: u16,
}

impl Service {
    /// The name that the server's certificate must carry.
    pub fn host(&self) -> String {
        format!("{}.{}.svc", self.name, self.namespace)
    }
}

/// The first ready endpoint behind a Service's port: from its `EndpointSlices`, else its Endpoints; an
/// `ExternalName` leads to that host.
///
/// # Errors
/// Worded as a real API server words them (`k8s.io/apiserver pkg/util/proxy`, 1.36).
pub fn resolve(objects: &dyn Objects, service: &Service) -> Result<(String, u16), String> {
    let Service { namespace, name, port } = service;
    let object = objects.get("", "services", namespace, name).ok_or(format!("service {name:?} not found"))?;
    if object["spec"]["type"] == "ExternalName" {
        let host = object["spec"]["externalName"].as_str().unwrap_or_default();
        return Ok((host.to_owned(), *port));
    }
    let ports = object["spec"]["ports"].as_array().map(List::as_slice).unwrap_or_default();
    let found = ports.iter().find(|entry| entry["port"].as_u64() == Some(u64::from(*port)));
    let entry = found.ok_or(format!("no service port {port} found for service {name:?}"))?;
    from_slices(objects, service, entry)
        .or_else(|| from_endpoints(objects, service, entry))
        .ok_or(format!("no endpoints available for service {name:?}"))
}

fn from_slices(objects: &dyn Objects, service: &Service, entry: &Value) -> Option<(String, u16)> {
    let slices = objects.list("discovery.k8s.io", "endpointslices");
    slices.iter().find_map(|slice| {
        let metadata = &slice["metadata"];
        let labelled = metadata["labels"]["kubernetes.io/service-name"] == service.name.as_str();
        if metadata["namespace"] != service.namespace.as_str() || !labelled {
            return None;
        }
        let port = port_of(&slice["ports"], entry)?;
        let ready = |endpoint: &&Value| endpoint["conditions"]["ready"] != false;
        let endpoint = slice["endpoints"].as_array()?.iter().find(ready)?;
        Some((endpoint["addresses"][0].as_str()?.to_owned(), port))
    })
}

fn from_endpoints(objects: &dyn Objects, service: &Service, entry: &Value) -> Option<(String, u16)> {
    let endpoints = objects.get("", "endpoints", &service.namespace, &service.name)?;
    endpoints["subsets"].as_array()?.iter().find_map(|subset| {
        let port = port_of(&subset["ports"], entry)?;
        Some((subset["addresses"][0]["ip"].as_str()?.to_owned(), port))
    })
}

/// The endpoint port that belongs to a port of the Service: they share their name.
fn port_of(ports: &Value, entry: &Value) -> Option<u16> {
    let name = |port: &Value| port["name"].as_str().unwrap_or_default().to_owned();
    let port = ports.as_array()?.iter().find(|port| name(port) == name(entry))?;
    port["port"].as_u64().and_then(|port| u16::try_from(port).ok())
}
