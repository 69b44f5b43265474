//! Dynamic resource allocation (`resource.k8s.io/v1`, Kubernetes 1.36), for devices that are given whole:
//! a driver on every node, the controller that makes claims from templates, and what the scheduler allocates.
//!
//! ```text
//!  ResourceClaimTemplate ──(pod names it)──► controller makes the ResourceClaim
//!  ResourceSlice (driver, per node) ──────► scheduler allocates, reserves for the pod, then binds it
//!  the pod has ended ─────────────────────► controller deletes the claim, or lets go of a shared one
//! ```
//!
//! Not simulated: partitionable devices, shared counters, taints of devices, admin access, constraints, and
//! the finalizer on allocated claims.

mod allocate;
mod controller;

use apimachinery::tree::{Value, json};
use futures::stream::{self, TryStreamExt};

pub use allocate::{Allocation, Inventory};
pub use controller::start;

use super::client::{Client, ClientError};
use super::identity::Identity;
use super::json::{self, list, text};
use super::resource::{DEVICE_CLASSES, NODES, RESOURCE_CLAIMS, RESOURCE_SLICES, Resource};
use super::{SimConfig, node};

/// The driver of Kubernetes' own example (`kubernetes-sigs/dra-example-driver`), whose names people know.
const DRIVER: &str = "gpu.example.com";
/// Slices that are written at once.
const WRITERS: usize = 16;

/// What the driver publishes: a class, and the devices of each node. The nodes have to be there.
pub async fn publish(client: &Client, config: &SimConfig) -> Result<(), ClientError> {
    let class = json!({"apiVersion": "resource.k8s.io/v1", "kind": "DeviceClass", "metadata": {"name": DRIVER},
        "spec": {"selectors": [{"cel": {"expression": format!("device.driver == '{DRIVER}'")}}]}});
    create(client, &DEVICE_CLASSES, &class).await?;
    stream::iter((0..config.nodes).map(Ok))
        .try_for_each_concurrent(WRITERS, |index| async move {
            let node = client.get(None, &NODES.path("", &node::name(index), "")).await?;
            create(client, &RESOURCE_SLICES, &slice(&node, config.devices_per_node)).await
        })
        .await
}

/// The devices of one node; they go with it.
fn slice(node: &Value, devices: u32) -> Value {
    let name = json::name(node);
    let devices: Vec<Value> = (0..devices)
        .map(|index| {
            json!({"name": format!("gpu-{index}"), "attributes": {
                "index": {"int": index}, "model": {"string": "LATEST-GPU-MODEL"},
                "resource.kubernetes.io/pciBusID": {"string": format!("0000:{:02x}:00.0", 0xc1 + index)}},
                "capacity": {"memory": {"value": "80Gi"}}})
        })
        .collect();
    json!({"apiVersion": "resource.k8s.io/v1", "kind": "ResourceSlice",
        "metadata": {"name": format!("{name}-{DRIVER}"), "ownerReferences": [{"apiVersion": "v1", "kind": "Node",
            "name": name, "uid": json::uid(node), "controller": true}]},
        "spec": {"driver": DRIVER, "nodeName": name, "devices": devices,
            "pool": {"name": name, "generation": 1, "resourceSliceCount": 1}}})
}

/// Creates an object; one that is there already stays as it is.
async fn create(client: &Client, resource: &Resource, object: &Value) -> Result<(), ClientError> {
    let path = resource.path("", "", "");
    match client.send(None, http::Method::POST, &path, "application/json", object).await {
        Err(error) if error.code() != 409 => Err(error),
        _ => Ok(()),
    }
}

/// Whether a pod asks for devices by claim.
pub fn asks(pod: &Value) -> bool {
    !list(pod, "/spec/resourceClaims").is_empty()
}

/// The names of a pod's claims; nothing while one of a template has not been made.
pub fn claim_names(pod: &Value) -> Option<Vec<&str>> {
    list(pod, "/spec/resourceClaims").iter().map(|entry| claim_name(pod, entry)).collect()
}

/// The claim that is meant by an entry of `spec.resourceClaims`.
fn claim_name<'a>(pod: &'a Value, entry: &'a Value) -> Option<&'a str> {
    match text(entry, "/resourceClaimName") {
        "" => list(pod, "/status/resourceClaimStatuses")
            .iter()
            .find(|status| status["name"] == entry["name"])
            .map(|status| text(status, "/resourceClaimName"))
            .filter(|name| !name.is_empty()),
        name => Some(name),
    }
}

/// What is there to allocate from, and the pod's own claims; an error's text says what is missing.
pub async fn observe(
    client: &Client,
    who: &Identity,
    pod: &Value,
) -> Result<Result<Inventory, String>, ClientError> {
    let Some(names) = claim_names(pod) else {
        return Ok(Err("waiting for the pod's ResourceClaims to be created".into()));
    };
    let all = async |resource: &Resource| -> Result<Vec<Value>, ClientError> {
        Ok(list(&client.get(Some(who), &resource.path("", "", "")).await?, "/items").to_vec())
    };
    let (classes, slices, claims) =
        (all(&DEVICE_CLASSES).await?, all(&RESOURCE_SLICES).await?, all(&RESOURCE_CLAIMS).await?);
    let namespace = json::namespace(pod);
    let own = |name: &&str| {
        let found =
            claims.iter().find(|claim| json::namespace(claim) == namespace && json::name(claim) == *name);
        found.cloned().ok_or_else(|| format!("resourceclaim \"{name}\" not found"))
    };
    let own: Result<Vec<Value>, String> = names.iter().map(own).collect();
    Ok(own.map(|own| Inventory::new(own, &claims, classes, slices)))
}
