//! Carries a plan out: events, status, Jobs.

use export::job::plan::{Note, Plan};
use export::job::{GROUP, VERSION};
use serde_json::{Value, json};

use super::{Context, Key};
use crate::kubernetes::RawError;

/// Every write is idempotent or guarded: the status by its resourceVersion, Jobs by their names.
pub(super) async fn act(context: &Context, key: &Key, object: &Value, plan: &Plan) -> Result<(), RawError> {
    if !plan.status.is_null() {
        let metadata = &object["metadata"];
        let patch = json!({"metadata": {"uid": metadata["uid"], "resourceVersion": metadata["resourceVersion"]},
            "status": plan.status});
        context.api.merge(&format!("{}/status", key.path()), &patch).await?;
    }
    // After the status that remembers them, so that a conflict does not say everything twice.
    for note in &plan.notes {
        tell(context, key, object, note).await;
    }
    let jobs = format!("/apis/batch/v1/namespaces/{}/jobs", key.namespace);
    for name in &plan.delete {
        // The owner is the same whatever the Job's uid is: its name follows from run and VM.
        match context.api.delete_in_background(&format!("{jobs}/{name}")).await {
            Err(error) if error.code() != Some(404) => return Err(error),
            _ => tracing::info!(job = %key, name, "ended"),
        }
    }
    for job in &plan.create {
        match context.api.create(&jobs, job).await {
            // Made by the look before this one.
            Err(error) if error.code() == Some(409) => {}
            Err(error) => return Err(error),
            Ok(_) => {
                let name = job["metadata"]["name"].as_str().unwrap_or_default();
                tracing::info!(job = %key, name, "started");
            }
        }
    }
    Ok(())
}

/// Tells an event; one that is lost is no reason to stop.
async fn tell(context: &Context, key: &Key, object: &Value, note: &Note) {
    context.metrics.export_event(note.reason);
    let now = (context.clock)();
    let at = now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    // Names of events are the object's and a number that does not come twice.
    let name =
        format!("{}.{:x}", key.name.get(..key.name.len().min(200)).unwrap_or_default(), now.as_nanosecond());
    let event = json!({"apiVersion": "v1", "kind": "Event",
        "metadata": {"name": name, "namespace": key.namespace},
        "involvedObject": {"apiVersion": format!("{GROUP}/{VERSION}"), "kind": "VMExportJob", "name": key.name,
            "namespace": key.namespace, "uid": object["metadata"]["uid"]},
        "type": if note.warning { "Warning" } else { "Normal" },
        "reason": note.reason,
        "message": note.message.chars().take(1000).collect::<String>(),
        "source": {"component": "virt-steward"}, "reportingComponent": "virt-steward", "reportingInstance": "",
        "firstTimestamp": at, "lastTimestamp": at, "count": 1});
    if let Err(error) =
        context.api.create(&format!("/api/v1/namespaces/{}/events", key.namespace), &event).await
    {
        tracing::debug!(job = %key, %error, reason = note.reason, "an event is lost");
    }
}
