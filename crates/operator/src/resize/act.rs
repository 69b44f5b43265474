//! One step as one write.

use resize::ledger::{LEDGER, Ledger, REPORT, WISH};
use resize::machine::Step;
use resize::quantity::{show_bytes, show_cpu};
use resize::size::{Amount, Compute};
use serde_json::{Map, Value, json};

use super::observe::{Observed, Problem};
use super::worker::{Context, Key};
use crate::kubernetes::RawError;

/// What became of a write.
pub enum Done {
    /// It is written.
    Written,
    /// The API server refused the pod's new resources, in these words; that is written down.
    Refused(String),
}

/// Carries a step out. Every write is guarded by what was seen; a conflict means to look again.
pub async fn act(
    context: &Context,
    key: &Key,
    observed: &Observed,
    step: &Step,
    now: i64,
) -> Result<Done, Problem> {
    match step {
        Step::Idle | Step::Wait(..) => {}
        Step::Record(ledger) => record(context, key, observed, Some(ledger)).await?,
        Step::Clear => record(context, key, observed, None).await?,
        Step::Resize(to) => match resize_pod(context, key, &observed.pod, *to).await {
            Err(RawError::Refused { code: 400 | 403 | 422, message }) => {
                if let Some(ledger) = &observed.seen.ledger {
                    record(context, key, observed, Some(&ledger.refused(&message, now))).await?;
                }
                return Ok(Done::Refused(message));
            }
            other => other?,
        },
        Step::Declare(end) => {
            let patch = declaration(&observed.vmi, end);
            context.as_kubevirt(&key.path("kubevirt.io/v1", "virtualmachineinstances"), &patch).await?;
        }
    }
    Ok(Done::Written)
}

/// Writes the ledger, or takes everything of ours but the policy away.
async fn record(
    context: &Context,
    key: &Key,
    observed: &Observed,
    ledger: Option<&Ledger>,
) -> Result<(), Problem> {
    let annotations = match ledger {
        Some(ledger) => json!({LEDGER: serde_json::to_string(ledger)?}),
        None => json!({LEDGER: null, WISH: null, REPORT: null}),
    };
    let metadata = &observed.vmi["metadata"];
    let patch = json!({"metadata": {
        "uid": metadata["uid"], "resourceVersion": metadata["resourceVersion"], "annotations": annotations}});
    context.api.merge(&key.path("kubevirt.io/v1", "virtualmachineinstances"), &patch).await?;
    Ok(())
}

/// A strategic merge patch: a JSON merge patch would replace the list of containers, and is refused.
async fn resize_pod(context: &Context, key: &Key, pod: &Value, to: Compute) -> Result<(), RawError> {
    let name = pod.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default();
    let path = format!("/api/v1/namespaces/{}/pods/{name}/resize", key.namespace);
    let metadata = &pod["metadata"];
    let patch = json!({
        "metadata": {"uid": metadata["uid"], "resourceVersion": metadata["resourceVersion"]},
        "spec": {"containers": [{"name": "compute", "resources": resources(to)}]}});
    context.api.strategic(&path, &patch).await.map(|_| ())
}

fn resources(to: Compute) -> Value {
    let list = |of: &dyn Fn(Amount) -> Option<u64>| {
        let mut list = Map::new();
        if let Some(cpu) = of(to.cpu) {
            list.insert("cpu".into(), show_cpu(cpu).into());
        }
        if let Some(memory) = of(to.memory) {
            list.insert("memory".into(), show_bytes(memory).into());
        }
        list
    };
    let mut resources = json!({"requests": list(&|amount| Some(amount.request))});
    let limits = list(&|amount| amount.limit);
    if !limits.is_empty() {
        resources["limits"] = limits.into();
    }
    resources
}

/// Spec and status of the declared size in one JSON patch: with only one of them KubeVirt would
/// find a difference and migrate.
fn declaration(vmi: &Value, end: &resize::ledger::End) -> Value {
    let cpu = &vmi["spec"]["domain"]["cpu"];
    let mut operations = vec![
        json!({"op": "test", "path": "/metadata/uid", "value": vmi["metadata"]["uid"]}),
        json!({"op": "test", "path": "/metadata/resourceVersion", "value": vmi["metadata"]["resourceVersion"]}),
        json!({"op": "add", "path": "/spec/domain/cpu/sockets", "value": end.size.sockets}),
        json!({"op": "add", "path": "/spec/domain/memory/guest", "value": show_bytes(end.size.guest)}),
        json!({"op": "add", "path": "/status/currentCPUTopology", "value":
            {"sockets": end.size.sockets, "cores": cpu["cores"], "threads": cpu["threads"]}}),
        json!({"op": "add", "path": "/status/memory/guestRequested", "value": show_bytes(end.size.guest)}),
    ];
    let asked = end.asked;
    for (path, value) in [
        ("requests/cpu", asked.cpu_request.map(show_cpu)),
        ("limits/cpu", asked.cpu_limit.map(show_cpu)),
        ("requests/memory", asked.memory_request.map(show_bytes)),
        ("limits/memory", asked.memory_limit.map(show_bytes)),
    ] {
        if let Some(value) = value {
            operations.push(
                json!({"op": "replace", "path": format!("/spec/domain/resources/{path}"), "value": value}),
            );
        }
    }
    // What says that KubeVirt still has to change the guest; nobody else takes it away.
    let stale = |one: &Value| matches!(one["type"].as_str(), Some("HotVCPUChange" | "HotMemoryChange"));
    let conditions = vmi["status"]["conditions"].as_array().map(Vec::as_slice).unwrap_or_default();
    if conditions.iter().any(stale) {
        let kept: Vec<&Value> = conditions.iter().filter(|one| !stale(one)).collect();
        operations.push(json!({"op": "replace", "path": "/status/conditions", "value": kept}));
    }
    operations.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_declaration_takes_kubevirts_open_conditions_away_with_what_it_says() {
        let vmi = json!({"metadata": {"uid": "u", "resourceVersion": "7"},
            "spec": {"domain": {"cpu": {"sockets": 2, "cores": 1, "threads": 1}}},
            "status": {"conditions": [{"type": "Ready", "status": "True"}, {"type": "HotVCPUChange", "status": "True"}]}});
        let end = resize::ledger::End {
            size: resize::Size { sockets: 4, guest: 2 << 30 },
            ..resize::ledger::End::default()
        };
        let operations = declaration(&vmi, &end);
        let find = |path: &str| {
            operations.as_array().unwrap().iter().find(|one| one["path"] == path).cloned().unwrap_or_default()
        };
        assert_eq!(find("/metadata/resourceVersion")["op"], "test");
        assert_eq!(find("/spec/domain/memory/guest")["value"], "2Gi");
        assert_eq!(
            find("/status/currentCPUTopology")["value"],
            json!({"sockets": 4, "cores": 1, "threads": 1})
        );
        assert_eq!(find("/status/conditions")["value"], json!([{"type": "Ready", "status": "True"}]));
    }

    #[test]
    fn limits_are_written_only_where_there_are_some() {
        let amount = |request, limit| Amount { request, limit };
        let to = Compute { cpu: amount(400, None), memory: amount(2 << 30, Some(4 << 30)) };
        assert_eq!(
            resources(to),
            json!({"requests": {"cpu": "400m", "memory": "2Gi"}, "limits": {"memory": "4Gi"}})
        );
        let none = Compute { memory: amount(1 << 30, None), ..to };
        assert!(resources(none).get("limits").is_none());
    }
}
