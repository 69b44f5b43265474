//! `pods/eviction`: a deletion that asks the disruption budgets first
//! (`pkg/registry/core/pod/storage/eviction.go`, Kubernetes 1.36).

use std::sync::Arc;

use apimachinery::selector::LabelSelector;
use apimachinery::tree::{Value, json};
use apimachinery::{Cause, Status};

use super::super::delete::Options;
use super::super::meta::{self, text};
use super::super::reply::Reply;
use super::super::{Api, Call, decode};
use super::{done, set_condition};
use crate::clock::seconds;

impl Api {
    /// `POST …/pods/x/eviction`
    ///
    /// # Errors
    /// 404, 409 for preconditions, 429 when a budget forbids it, whatever admission says.
    pub async fn evict(self: &Arc<Self>, call: &mut Call) -> Result<Reply, Status> {
        let eviction = decode::parse(&call.content_type, &call.body)?;
        let named = text(&eviction, "name");
        if !named.is_empty() && named != call.target.name {
            return Err(Status::bad_request(format!(
                "name in URL does not match name in Eviction object: {} does not match {named}",
                call.target.name
            )));
        }
        let mut options = Options::from_object(&eviction["deleteOptions"])?;
        options.dry_run |= call.query.dry_run("CreateOptions")?;
        let stored = self.stored(call)?;
        let _reserved = self.admit_action(call, &eviction).await?;
        let pod = stored.value();
        super::super::delete::preconditions(call, &options, &pod)?;
        if !ignores_budgets(&pod) {
            self.spend(call, &pod, options.dry_run)?;
        }
        if !options.dry_run && !meta::terminating(&pod) {
            self.mark_disrupted(call)?;
        }
        let mut deletion = call.clone();
        deletion.target.subresource = String::new();
        self.delete_object(&mut deletion, &options).await?;
        call.warnings.append(&mut deletion.warnings);
        Ok(done())
    }

    /// Tells whoever owns the pod why it goes (KEP-3329).
    fn mark_disrupted(&self, call: &Call) -> Result<(), Status> {
        let now = seconds(self.clock.now());
        self.change_system(call, &|current| {
            let mut pod = current.clone();
            set_condition(&mut pod, "DisruptionTarget", "True", &now);
            let conditions = pod["status"]["conditions"].as_array_mut().into_iter().flatten();
            for condition in conditions.filter(|condition| condition["type"] == "DisruptionTarget") {
                condition["reason"] = "EvictionByEvictionAPI".into();
                condition["message"] = "Eviction API: evicting".into();
            }
            Ok(pod)
        })?;
        Ok(())
    }

    /// Takes one disruption from the pod's budget.
    fn spend(&self, call: &Call, pod: &Value, dry_run: bool) -> Result<(), Status> {
        let budgets = self.budgets_of(pod);
        let budget = match budgets.as_slice() {
            [] => return Ok(()),
            [budget] => budget,
            _ => {
                let message = "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support.";
                return Err(Status::internal(message));
            }
        };
        let name = text(budget, "name").to_owned();
        let count = |key: &str| budget["status"][key].as_i64().unwrap_or_default();
        if !is_ready(pod) && unhealthy_may_go(budget) {
            return Ok(());
        }
        if budget["status"]["observedGeneration"].as_i64().unwrap_or_default()
            < budget["metadata"]["generation"].as_i64().unwrap_or_default()
        {
            return Err(blocked(
                &format!("The disruption budget {name} is still being processed by the server."),
                Some(10),
            ));
        }
        if count("disruptionsAllowed") <= 0 {
            let message = format!(
                "The disruption budget {name} needs {} healthy pods and has {} currently",
                count("desiredHealthy"),
                count("currentHealthy")
            );
            return Err(blocked(&message, None));
        }
        if dry_run {
            return Ok(());
        }
        let now = seconds(self.clock.now());
        let mut about = self.internal("policy", "poddisruptionbudgets", text(pod, "namespace"), &name)?;
        about.user = call.user.clone();
        self.change_system(&about, &|current| {
            let allowed = current["status"]["disruptionsAllowed"].as_i64().unwrap_or_default();
            if allowed <= 0 {
                return Err(blocked(
                    &format!("The disruption budget {name} does not allow evicting pods currently"),
                    None,
                ));
            }
            let mut budget = current.clone();
            budget["status"]["disruptionsAllowed"] = (allowed - 1).into();
            budget["status"]["disruptedPods"][text(pod, "name")] = now.clone().into();
            Ok(budget)
        })?;
        Ok(())
    }

    fn budgets_of(&self, pod: &Value) -> Vec<Arc<Value>> {
        let (_, budgets) = self.store.select("poddisruptionbudgets.policy", Some(text(pod, "namespace")));
        let selects = |budget: &Arc<Value>| {
            LabelSelector::from_object(&budget["spec"]["selector"])
                .is_ok_and(|selector| selector.matches_object(pod))
        };
        budgets.iter().map(|stored| stored.value()).filter(selects).collect()
    }
}

/// Pods that have ended, have not begun or are on their way out do not count.
fn ignores_budgets(pod: &Value) -> bool {
    matches!(pod["status"]["phase"].as_str(), Some("Pending" | "Succeeded" | "Failed"))
        || meta::terminating(pod)
}

/// Is the pod's condition Ready true?
pub fn is_ready(pod: &Value) -> bool {
    let mut conditions = pod["status"]["conditions"].as_array().into_iter().flatten();
    conditions.any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
}

/// `unhealthyPodEvictionPolicy` (KEP-3017)
fn unhealthy_may_go(budget: &Value) -> bool {
    if budget["spec"]["unhealthyPodEvictionPolicy"] == "AlwaysAllow" {
        return true;
    }
    let count = |key: &str| budget["status"][key].as_i64().unwrap_or_default();
    count("desiredHealthy") > 0 && count("currentHealthy") >= count("desiredHealthy")
}

fn blocked(message: &str, retry: Option<u64>) -> Status {
    let why = "Cannot evict pod as it would violate the pod's disruption budget.";
    Status {
        details: retry.map(|seconds| json!({"retryAfterSeconds": seconds})),
        causes: vec![Cause {
            reason: "DisruptionBudget".into(),
            message: message.into(),
            ..Cause::default()
        }],
        ..Status::new(429, "TooManyRequests", why)
    }
}
