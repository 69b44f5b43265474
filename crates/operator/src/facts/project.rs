//! Objects cut down to what decides, as they come off the wire: the rest of a Node (images,
//! conditions, heartbeats) is never held.

use std::borrow::Cow;

use features::{Node, PciDevice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{ApiResource, DynamicObject};
use kube::core::ClusterResourceScope;
use kube::{Resource, ResourceExt};
use kubevirt::inventory::Host;
use serde::Deserialize;
use serde_json::Value;

/// A Node with as much of its status as decides.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct NodeView {
    metadata: ObjectMeta,
    spec: Option<NodeSpec>,
    status: Option<NodeStatus>,
}

#[derive(Clone, Debug, Deserialize)]
struct NodeStatus {
    /// A Node has a dozen resources.
    #[serde(default)]
    allocatable: Value,
}

#[derive(Clone, Debug, Deserialize)]
struct NodeSpec {
    unschedulable: Option<bool>,
}

impl Resource for NodeView {
    type DynamicType = ();
    type Scope = ClusterResourceScope;

    fn kind((): &()) -> Cow<'_, str> {
        "Node".into()
    }

    fn group((): &()) -> Cow<'_, str> {
        "".into()
    }

    fn version((): &()) -> Cow<'_, str> {
        "v1".into()
    }

    fn plural((): &()) -> Cow<'_, str> {
        "nodes".into()
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

pub(super) fn node(view: NodeView) -> Node {
    Node {
        name: view.name_any(),
        labels: view.metadata.labels.unwrap_or_default(),
        unschedulable: view.spec.and_then(|spec| spec.unschedulable).unwrap_or_default(),
        allocatable: view.status.map(|status| Node::allocatable(&status.allocatable)).unwrap_or_default(),
    }
}

/// `namespace/name`, or `name`.
pub(super) fn key(object: &DynamicObject) -> String {
    match &object.metadata.namespace {
        Some(namespace) => format!("{namespace}/{}", object.name_any()),
        None => object.name_any(),
    }
}

/// The CR raw, without the bookkeeping that changes with every write.
pub(super) fn kubevirt(object: DynamicObject, kind: &ApiResource) -> Value {
    let mut value = object.data;
    value["apiVersion"] = kind.api_version.clone().into();
    value["kind"] = kind.kind.clone().into();
    value["metadata"] = serde_json::json!({"name": object.metadata.name, "namespace": object.metadata.namespace,
            "annotations": object.metadata.annotations});
    value
}

/// harvester/pcidevices v1beta1, `PCIDevice`; the claim is joined later.
pub(super) fn device(object: &DynamicObject) -> PciDevice {
    let status = |field: &str| object.data["status"][field].as_str().unwrap_or_default().to_owned();
    PciDevice {
        name: object.name_any(),
        address: status("address"),
        node_name: status("nodeName"),
        resource_name: status("resourceName"),
        iommu_group: status("iommuGroup"),
        passthrough_enabled: false,
    }
}

/// What a node agent found; one that cannot be read says nothing about its node.
pub(super) fn host(object: &DynamicObject) -> Host {
    let name = object.name_any();
    let value = serde_json::json!({"metadata": {"name": name}, "status": object.data.get("status")});
    Host::from_object(&value).unwrap_or(Host { node: name, ..Host::default() })
}

/// harvester/pcidevices v1beta1, `PCIDeviceClaim`.
pub(super) fn claim(object: &DynamicObject) -> bool {
    object.data["status"]["passthroughEnabled"].as_bool().unwrap_or_default()
}
