//! The resource claim controller (`pkg/controller/resourceclaim`): claims from templates, and their end.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use apimachinery::tree::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::sim::cache::Cache;
use crate::sim::client::ClientError;
use crate::sim::identity::Identity;
use crate::sim::json::{self, list, text};
use crate::sim::queue::Queue;
use crate::sim::requests;
use crate::sim::resource::{PODS, RESOURCE_CLAIM_TEMPLATES, RESOURCE_CLAIMS};
use crate::sim::write::{Op, Write, Writer};

/// Names the entry of the pod that a claim was made for.
const POD_CLAIM_NAME: &str = "resource.kubernetes.io/pod-claim-name";

/// Starts to follow pods that ask for devices by claim.
pub fn start(writer: Writer, pods: &Arc<Cache>, stop: &CancellationToken) {
    let queue = Queue::default();
    // Pods that are gone, until what they used is free.
    let gone: Arc<Mutex<HashMap<String, Arc<Value>>>> = Arc::default();
    let (changed, left) = (queue.clone(), gone.clone());
    pods.on_change(move |change| {
        if !super::asks(change.object()) {
            return;
        }
        if let (None, Some(pod)) = (change.new, change.old) {
            left.lock()
                .unwrap_or_else(PoisonError::into_inner)
                .insert(change.key.to_owned(), Arc::clone(pod));
        }
        changed.add(change.key);
    });
    let pods = pods.clone();
    queue.run("resource-claim-controller", 2, stop, move |key| {
        let (pods, writer, gone) = (pods.clone(), writer.clone(), gone.clone());
        async move {
            let last = gone.lock().unwrap_or_else(PoisonError::into_inner).get(&key).cloned();
            if let Some(pod) = last {
                let_go(&writer, &pod).await?;
                gone.lock().unwrap_or_else(PoisonError::into_inner).remove(&key);
            }
            match pods.get(&key) {
                Some(pod) if !requests::holds(&pod) => let_go(&writer, &pod).await,
                Some(pod) if !json::is_deleting(&pod) => make(&writer, &pod).await,
                _ => Ok(None),
            }
        }
    });
}

/// Makes the claims that a pod names by template and does not have.
async fn make(writer: &Writer, pod: &Value) -> Result<Option<Duration>, ClientError> {
    let who = Identity::claim_controller();
    let mut statuses = list(pod, "/status/resourceClaimStatuses").to_vec();
    let known = statuses.len();
    for entry in list(pod, "/spec/resourceClaims") {
        let template = text(entry, "/resourceClaimTemplateName");
        if template.is_empty() || statuses.iter().any(|status| status["name"] == entry["name"]) {
            continue;
        }
        let path = RESOURCE_CLAIM_TEMPLATES.path(json::namespace(pod), template, "");
        // a template that is not there is waited for, with the queue's delay
        let template = writer.client.get(Some(&who), &path).await?;
        let claim =
            writer.write(&who, &Write::create(&RESOURCE_CLAIMS, claim(pod, entry, &template))).await?;
        statuses.push(json!({"name": entry["name"], "resourceClaimName": json::name(&claim)}));
    }
    if statuses.len() > known {
        let body = json!({"status": {"resourceClaimStatuses": statuses}});
        writer.write(&who, &Write::to(&PODS, pod, "status", Op::MergePatch(body))).await?;
    }
    Ok(None)
}

fn claim(pod: &Value, entry: &Value, template: &Value) -> Value {
    let mut claim = json!({"apiVersion": "resource.k8s.io/v1", "kind": "ResourceClaim",
        "metadata": template.pointer("/spec/metadata").filter(|value| value.is_object()).cloned().unwrap_or_else(|| json!({})),
        "spec": template["spec"]["spec"]});
    let name = text(entry, "/name");
    let metadata = &mut claim["metadata"];
    metadata["generateName"] = format!("{}-{name}-", json::name(pod)).into();
    metadata["namespace"] = json::namespace(pod).into();
    metadata["annotations"][POD_CLAIM_NAME] = name.into();
    metadata["ownerReferences"] = json!([{"apiVersion": "v1", "kind": "Pod", "name": json::name(pod),
        "uid": json::uid(pod), "controller": true, "blockOwnerDeletion": true}]);
    claim
}

/// Deletes what was made for a pod that has ended, and frees what it shared.
async fn let_go(writer: &Writer, pod: &Value) -> Result<Option<Duration>, ClientError> {
    let who = Identity::claim_controller();
    for entry in list(pod, "/spec/resourceClaims") {
        let Some(name) = super::claim_name(pod, entry) else { continue };
        let path = RESOURCE_CLAIMS.path(json::namespace(pod), name, "");
        let claim = match writer.client.get(Some(&who), &path).await {
            Ok(claim) => claim,
            Err(error) if error.code() == 404 => continue,
            Err(error) => return Err(error),
        };
        let write = if json::controller_uid(&claim) == json::uid(pod) {
            let options = json!({"preconditions": {"uid": json::uid(&claim)}});
            Write::to(&RESOURCE_CLAIMS, &claim, "", Op::Delete(options))
        } else {
            let Some(status) = without(&claim, json::uid(pod)) else { continue };
            Write::to(&RESOURCE_CLAIMS, &claim, "status", Op::MergePatch(status))
        };
        match writer.write(&who, &write).await {
            Err(error) if error.code() != 404 => return Err(error),
            _ => {}
        }
    }
    Ok(None)
}

/// The status of a claim that a pod does not use any more; who is the last frees the devices.
fn without(claim: &Value, pod: &str) -> Option<Value> {
    let users = list(claim, "/status/reservedFor");
    let left: Vec<&Value> = users.iter().filter(|user| user["uid"] != pod).collect();
    if left.len() == users.len() {
        return None;
    }
    let mut status = json!({"reservedFor": left});
    if left.is_empty() {
        status["allocation"] = Value::Null;
    }
    Some(json!({"metadata": {"resourceVersion": claim["metadata"]["resourceVersion"]}, "status": status}))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_user_frees_the_devices() {
        let of = |users: &[&str]| {
            let users: Vec<Value> = users.iter().map(|uid| json!({"resource": "pods", "uid": uid})).collect();
            json!({"metadata": {"resourceVersion": "7"}, "status": {"reservedFor": users, "allocation": {}}})
        };
        assert_eq!(without(&of(&["a"]), "b"), None);
        let shared = without(&of(&["a", "b"]), "b").unwrap();
        assert_eq!(shared["status"], json!({"reservedFor": [{"resource": "pods", "uid": "a"}]}));
        let last = without(&of(&["b"]), "b").unwrap();
        assert_eq!(last["status"], json!({"reservedFor": [], "allocation": null}));
        assert_eq!(last["metadata"]["resourceVersion"], "7");
    }

    #[test]
    fn a_claim_belongs_to_its_pod() {
        let pod = json!({"metadata": {"name": "p", "namespace": "ns", "uid": "u"}});
        let template = json!({"spec": {"metadata": {"labels": {"a": "b"}}, "spec": {"devices": {}}}});
        let claim = claim(&pod, &json!({"name": "gpu"}), &template);
        assert_eq!(claim["metadata"]["generateName"], "p-gpu-");
        assert_eq!(claim["metadata"]["labels"], json!({"a": "b"}));
        assert_eq!((json::controller_uid(&claim), &claim["spec"]), ("u", &json!({"devices": {}})));
    }
}
