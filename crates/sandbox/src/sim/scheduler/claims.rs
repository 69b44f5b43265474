//! Pods that ask for devices by claim (plugin `DynamicResources`): what is allocated and reserved before they are
//! bound. One at a time: who allocates next has to see what was given.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use apimachinery::tree::{Value, json};

use super::{Scheduler, Verdict};
use crate::sim::client::ClientError;
use crate::sim::dra::{self, Allocation};
use crate::sim::json;
use crate::sim::resource::RESOURCE_CLAIMS;
use crate::sim::write::{Op, Write};

/// Devices become free without a change of pods or nodes.
const AGAIN: Duration = Duration::from_secs(2);

impl Scheduler {
    pub(super) async fn with_claims(
        &self,
        key: &str,
        pod: &Arc<Value>,
    ) -> Result<Option<Duration>, ClientError> {
        let _alone = self.allocating.lock().await;
        let inventory = match dra::observe(&self.writer.client, &self.who, pod).await? {
            Ok(inventory) => inventory,
            Err(missing) => {
                self.report(pod, &missing).await?;
                return Ok(Some(AGAIN));
            }
        };
        let by_node = inventory.by_node();
        let only: HashSet<&str> = by_node.keys().copied().collect();
        match self.choose(key, pod, Some(&only)) {
            None => Ok(None),
            Some(Verdict::Unschedulable(message)) => {
                self.report(pod, &message).await?;
                Ok(Some(AGAIN))
            }
            Some(Verdict::Bind(node)) => {
                for one in by_node.get(node.as_str()).into_iter().flatten() {
                    if let Err(error) = self.reserve(pod, one).await {
                        self.state().release(json::uid(pod));
                        return Err(error);
                    }
                }
                self.bind(pod, &node).await
            }
        }
    }

    async fn reserve(&self, pod: &Value, one: &Allocation) -> Result<(), ClientError> {
        let Some(status) = reserved(pod, one) else { return Ok(()) };
        let write = Write::to(&RESOURCE_CLAIMS, &one.claim, "status", Op::MergePatch(status));
        self.writer.write(&self.who, &write).await.map(drop)
    }
}

/// The status of a claim that is allocated, and reserved for a pod; nothing when it is already.
fn reserved(pod: &Value, one: &Allocation) -> Option<Value> {
    let mut users = json::list(&one.claim, "/status/reservedFor").to_vec();
    let is_reserved = users.iter().any(|user| user["uid"] == *json::uid(pod));
    if is_reserved && one.allocation.is_none() {
        return None;
    }
    if !is_reserved {
        users.push(json!({"resource": "pods", "name": json::name(pod), "uid": json::uid(pod)}));
    }
    let mut status = json!({"reservedFor": users});
    if let Some(allocation) = &one.allocation {
        status["allocation"] = allocation.clone();
    }
    Some(json!({"metadata": {"resourceVersion": one.claim["metadata"]["resourceVersion"]}, "status": status}))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_claim_is_reserved_for_each_pod_once() {
        let pod = json!({"metadata": {"name": "p", "uid": "u"}});
        let claim =
            json!({"metadata": {"resourceVersion": "3"}, "status": {"reservedFor": [{"uid": "other"}]}});
        let one = Allocation { claim, allocation: None };
        let status = reserved(&pod, &one).unwrap();
        assert_eq!(status["status"]["reservedFor"].as_array().map(|list| list.len()), Some(2));
        assert_eq!(status["status"].get("allocation"), None);
        let mut again = one.clone();
        again.claim["status"] = status["status"].clone();
        assert_eq!(reserved(&pod, &again), None);
    }
}
