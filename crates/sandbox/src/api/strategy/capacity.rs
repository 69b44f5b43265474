//! A resize that the pod's node could never satisfy is refused at once
//! (`pods/resize` admission, Kubernetes 1.36): only the pod's own requests count.

use apimachinery::tree::Value;
use apimachinery::{Cause, Status};

use super::super::{Api, Call};
use apimachinery::quantity::milli;

impl Api {
    /// # Errors
    /// 403 when the node is not there or too small.
    pub fn check_node_capacity(&self, call: &Call, pod: &Value) -> Result<(), Status> {
        if !call.kind.is("", "pods") || call.target.subresource != "resize" {
            return Ok(());
        }
        let Some(name) = pod["spec"]["nodeName"].as_str().filter(|name| !name.is_empty()) else {
            return Ok(());
        };
        let forbidden = |why: String| {
            let message = format!("pods {:?} is forbidden: {why}", call.target.name);
            Status::new(403, "Forbidden", message).about("", "pods", &call.target.name)
        };
        let Some(node) = self.store.read("nodes.", "", name) else {
            return Err(forbidden(format!("node {name:?} not found")));
        };
        let node = node.value();
        for (resource, unit) in [("cpu", 1), ("memory", 1000)] {
            let Some(allocatable) = milli(&node["status"]["allocatable"][resource]) else { continue };
            let containers = pod["spec"]["containers"].as_array().into_iter().flatten();
            let requested: i128 =
                containers.filter_map(|container| milli(&container["resources"]["requests"][resource])).sum();
            if requested > allocatable {
                let why = format!(
                    "node didn't have enough allocatable resources: {resource}, requested: {}, allocatable: {}",
                    requested / unit,
                    allocatable / unit
                );
                return Err(
                    forbidden(why).because(Cause { reason: "NodeCapacity".into(), ..Cause::default() })
                );
            }
        }
        Ok(())
    }
}
