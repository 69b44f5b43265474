//! `pods/binding`: how a scheduler places a pod.

use std::sync::Arc;

use apimachinery::Status;
use apimachinery::tree::Value;

use super::super::meta::{self, text};
use super::super::reply::Reply;
use super::super::{Api, Call, decode};
use super::{done, set_condition};
use crate::clock::seconds;

impl Api {
    /// `POST …/pods/x/binding`
    ///
    /// # Errors
    /// 404; 409 when the pod is placed or going away.
    pub async fn bind(self: &Arc<Self>, call: &mut Call) -> Result<Reply, Status> {
        let binding = decode::parse(&call.content_type, &call.body)?;
        let named = text(&binding, "name");
        if !named.is_empty() && named != call.target.name {
            return Err(Status::bad_request(format!(
                "name in URL does not match name in Binding object: {named} does not match {}",
                call.target.name
            )));
        }
        let node = binding["target"]["name"].as_str().unwrap_or_default().to_owned();
        if node.is_empty() {
            return Err(Status::bad_request("Binding: target.name is required"));
        }
        let uid = text(&binding, "uid").to_owned();
        let now = seconds(self.clock.now());
        let name = call.target.name.clone();
        let _reserved = self.admit_action(call, &binding).await?;
        self.change_system(call, &|current| {
            let conflict = |why: &str| Err(Status::conflict("", "pods/binding", &name, why));
            if !uid.is_empty() && uid != text(current, "uid") {
                return conflict("the UID in the precondition does not match the UID in record");
            }
            if meta::terminating(current) {
                return conflict(&format!("pod {name} is being deleted, cannot be assigned to a host"));
            }
            if let Some(there) = current["spec"]["nodeName"].as_str().filter(|there| !there.is_empty()) {
                return conflict(&format!("pod {name} is already assigned to node {there:?}"));
            }
            let mut pod: Value = current.clone();
            pod["spec"]["nodeName"] = node.clone().into();
            set_condition(&mut pod, "PodScheduled", "True", &now);
            let annotations = binding["metadata"]["annotations"].as_object().into_iter().flatten();
            for (key, value) in annotations {
                pod["metadata"]["annotations"][key.as_str()] = value.clone();
            }
            Ok(pod)
        })?;
        Ok(done())
    }
}
