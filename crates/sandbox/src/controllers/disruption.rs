//! The status of `PodDisruptionBudgets` (`pkg/controller/disruption`, Kubernetes 1.36). Percentages
//! are taken of the pods that are there, not of what their controllers want.

use std::sync::Arc;

use apimachinery::selector::LabelSelector;
use apimachinery::tree::{Value, json};

use crate::api::{Api, is_ready};
use crate::clock::seconds;

/// Counts the pods of every budget in a namespace. True: nothing is left to do.
pub fn reconcile(api: &Arc<Api>, namespace: &str) -> bool {
    let (_, budgets) = api.store.select("poddisruptionbudgets.policy", Some(namespace));
    if budgets.is_empty() {
        return true;
    }
    let (_, pods) = api.store.select("pods.", Some(namespace));
    let pods: Vec<Arc<Value>> = pods.iter().map(|stored| stored.value()).collect();
    let mut done = true;
    for budget in budgets {
        let name = &budget.header().name;
        let Ok(call) = api.internal("policy", "poddisruptionbudgets", namespace, name) else { continue };
        let now = seconds(api.clock.now());
        let written = api.change_system(&call, &|current| Ok(counted(current, &pods, &now)));
        done &= written.is_ok() || written.is_err_and(|status| status.code == 404);
    }
    done
}

fn counted(budget: &Value, pods: &[Arc<Value>], now: &str) -> Value {
    let selector =
        LabelSelector::from_object(&budget["spec"]["selector"]).unwrap_or_else(|_| LabelSelector::nothing());
    let live = |pod: &&Arc<Value>| {
        selector.matches_object(pod)
            && !matches!(pod["status"]["phase"].as_str(), Some("Succeeded" | "Failed"))
    };
    let of_budget: Vec<&Arc<Value>> = pods.iter().filter(live).collect();
    let expected = i64::try_from(of_budget.len()).unwrap_or(i64::MAX);
    let disrupted = |pod: &Value| {
        let name = pod["metadata"]["name"].as_str().unwrap_or_default();
        !budget["status"]["disruptedPods"][name].is_null()
    };
    let healthy = of_budget
        .iter()
        .filter(|pod| is_ready(pod) && pod["metadata"]["deletionTimestamp"].is_null() && !disrupted(pod))
        .count();
    let current = i64::try_from(healthy).unwrap_or(i64::MAX);
    let spec = &budget["spec"];
    let desired = if spec["maxUnavailable"].is_null() {
        portion(&spec["minAvailable"], expected)
    } else {
        (expected - portion(&spec["maxUnavailable"], expected)).max(0)
    };
    let allowed = (current - desired).max(0);
    let mut out = budget.clone();
    let status = json!({"disruptionsAllowed": if expected == 0 { 0 } else { allowed }, "currentHealthy": current,
        "desiredHealthy": desired, "expectedPods": expected,
        "observedGeneration": budget["metadata"]["generation"]});
    for (key, value) in status.as_object().into_iter().flatten() {
        out["status"][key.as_str()] = value.clone();
    }
    forget_gone(&mut out, &of_budget);
    condition(&mut out, allowed > 0 && expected > 0, now);
    out
}

/// Evicted pods that are gone or going no longer count as disrupted.
fn forget_gone(budget: &mut Value, pods: &[&Arc<Value>]) {
    let Some(disrupted) = budget["status"]["disruptedPods"].as_object_mut() else { return };
    disrupted.retain(|name, _| {
        pods.iter().any(|pod| {
            pod["metadata"]["name"] == name.as_str() && pod["metadata"]["deletionTimestamp"].is_null()
        })
    });
    if disrupted.is_empty()
        && let Some(status) = budget["status"].as_object_mut()
    {
        status.remove("disruptedPods");
    }
}

fn condition(budget: &mut Value, allowed: bool, now: &str) {
    let (status, reason) = if allowed { ("True", "SufficientPods") } else { ("False", "InsufficientPods") };
    let there = &budget["status"]["conditions"][0];
    if there["status"] == status {
        return;
    }
    let generation = budget["metadata"]["generation"].clone();
    budget["status"]["conditions"] = json!([{"type": "DisruptionAllowed", "status": status, "reason": reason,
        "message": "", "observedGeneration": generation, "lastTransitionTime": now}]);
}

/// A number, or a percentage of `total` rounded up.
fn portion(value: &Value, total: i64) -> i64 {
    match value {
        Value::Number(number) => number.as_i64().unwrap_or_default(),
        Value::String(text) => {
            let percent: i64 = text.trim_end_matches('%').parse().unwrap_or_default();
            (total * percent + 99) / 100
        }
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(name: &str, ready: &str) -> Arc<Value> {
        Arc::new(json!({"metadata": {"name": name, "labels": {"a": "b"}}, "status": {"phase": "Running",
            "conditions": [{"type": "Ready", "status": ready}]}}))
    }

    #[test]
    fn budgets_count_ready_pods() {
        let pods = [pod("1", "True"), pod("2", "True"), pod("3", "False")];
        let cases = [
            (json!({"minAvailable": 1}), 1, 1),
            (json!({"minAvailable": "50%"}), 2, 0),
            (json!({"maxUnavailable": 2}), 1, 1),
        ];
        for (mut spec, desired, allowed) in cases {
            spec["selector"] = json!({"matchLabels": {"a": "b"}});
            let budget = json!({"metadata": {"generation": 1}, "spec": spec, "status": {}});
            let status = counted(&budget, &pods, "now")["status"].clone();
            assert_eq!(
                (&status["desiredHealthy"], &status["disruptionsAllowed"]),
                (&json!(desired), &json!(allowed)),
                "{spec}"
            );
        }
    }
}
