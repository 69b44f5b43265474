//! Live reads of everything that a step depends on.

use resize::eligibility::{self, Surroundings};
use resize::ledger::{self, LEDGER, Ledger, REPORT, WISH};
use resize::machine::Seen;
use resize::plan::plan;
use resize::view;
use serde_json::Value;

use super::worker::{Context, Key};
use crate::kubernetes::RawError;

/// What was read of one VMI's surroundings.
pub struct Observed {
    pub vmi: Value,
    pub pod: Value,
    pub seen: Seen,
}

/// Reads it all. `vmi` was read a moment ago, and its resourceVersion guards what is written.
pub async fn observe(context: &Context, key: &Key, vmi: Value) -> Result<Observed, Problem> {
    let api = &context.api;
    let (migrations, kubevirts) = (
        key.in_namespace("kubevirt.io/v1", "virtualmachineinstancemigrations"),
        "/apis/kubevirt.io/v1/kubevirts",
    );
    // None of them says what to read of another one, and each is newer than the VMI.
    let (vm, pod, node, migrations, kubevirts, kubernetes_minor) = tokio::try_join!(
        vm(context, key, &vmi),
        launcher(context, key, &vmi),
        node(context, &vmi),
        async { Ok(api.get(&migrations).await?) },
        async { Ok(api.get(kubevirts).await?) },
        async { Ok(context.kubernetes_minor().await?) },
    )?;
    let kubevirt = kubevirts["items"].get(0).cloned().unwrap_or_default();
    let wanted = view::wanted(&vm);
    let seen_vmi = view::vmi(&vmi);
    let rules = view::rules(&kubevirt);
    let mut seen = Seen {
        wanted,
        vmi: seen_vmi,
        pod: (!pod.is_null()).then(|| view::pod(&pod)),
        migrating: eligibility::is_migrating(&vmi) || is_migrated(&migrations, &key.name),
        report: ledger::read(&vmi, REPORT)?,
        ledger: ledger::read::<Ledger>(&vmi, LEDGER)?,
        wish: ledger::read(&vmi, WISH)?,
        obstacles: Vec::new(),
        rules,
        may_declare: context.config.declare_memory,
    };
    let around = Surroundings {
        pod: &pod,
        node: &node,
        kubernetes_minor,
        live_update: view::is_live_update(&kubevirt),
        may_declare: seen.may_declare,
    };
    seen.obstacles =
        wanted.map(|wanted| plan(&vmi, &wanted, &seen.rules, &around).obstacles).unwrap_or_default();
    Ok(Observed { vmi, pod, seen })
}

/// The VM with its instancetype expanded; null when there is none (any more).
async fn vm(context: &Context, key: &Key, vmi: &Value) -> Result<Value, Problem> {
    let owned = vmi
        .pointer("/metadata/ownerReferences")
        .and_then(Value::as_array)
        .is_some_and(|owners| owners.iter().any(|owner| owner["kind"] == "VirtualMachine"));
    if !owned {
        return Ok(Value::Null);
    }
    let vm = match context.api.get(&key.path("kubevirt.io/v1", "virtualmachines")).await {
        Err(error) if error.code() == Some(404) => return Ok(Value::Null),
        other => other?,
    };
    if vm["spec"].get("instancetype").is_some_and(Value::is_object) {
        let path = format!("{}/expand-spec", key.path("subresources.kubevirt.io/v1", "virtualmachines"));
        return Ok(context.api.get(&path).await?);
    }
    Ok(vm)
}

/// The node that the guest is on, which is that of its pod as well; null when there is none (any more).
async fn node(context: &Context, vmi: &Value) -> Result<Value, Problem> {
    let name = vmi.pointer("/status/nodeName").and_then(Value::as_str).unwrap_or_default();
    if name.is_empty() {
        return Ok(Value::Null);
    }
    match context.api.get(&format!("/api/v1/nodes/{name}")).await {
        Err(error) if error.code() == Some(404) => Ok(Value::Null),
        other => Ok(other?),
    }
}

/// The pod that the guest runs in: the newest that can be it; null when there is none.
async fn launcher(context: &Context, key: &Key, vmi: &Value) -> Result<Value, Problem> {
    let uid = vmi.pointer("/metadata/uid").and_then(Value::as_str).unwrap_or_default();
    let path =
        format!("/api/v1/namespaces/{}/pods?labelSelector=kubevirt.io%2Fcreated-by%3D{uid}", key.namespace);
    let mut pods = context.api.get(&path).await?;
    let pods = pods["items"].as_array_mut().map(std::mem::take).unwrap_or_default();
    let created = |pod: &Value| pod["metadata"]["creationTimestamp"].as_str().unwrap_or_default().to_owned();
    Ok(pods
        .into_iter()
        .filter(|pod| view::is_active_launcher(pod, vmi))
        .max_by_key(created)
        .unwrap_or_default())
}

/// Whether a migration of that VMI is not final.
fn is_migrated(migrations: &Value, name: &str) -> bool {
    migrations["items"].as_array().into_iter().flatten().any(|migration| {
        migration["spec"]["vmiName"] == name
            && !matches!(migration["status"]["phase"].as_str(), Some("Succeeded" | "Failed"))
    })
}

/// Why nothing could be decided, or done.
#[derive(Debug, thiserror::Error)]
pub enum Problem {
    /// The API server.
    #[error(transparent)]
    Api(#[from] RawError),
    /// An annotation that is not ours, or newer than we are.
    #[error(transparent)]
    Foreign(#[from] ledger::Foreign),
    /// Something cannot be written as JSON.
    #[error("write an annotation: {0}")]
    Write(#[from] serde_json::Error),
}

impl Problem {
    /// Somebody else wrote in between: look again.
    pub fn is_conflict(&self) -> bool {
        matches!(self, Self::Api(error) if matches!(error.code(), Some(404 | 409)))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_migration_counts_until_it_is_final_and_only_of_its_vmi() {
        let with = |phase: &str| json!({"items": [{"spec": {"vmiName": "a"}, "status": {"phase": phase}}, {"spec": {"vmiName": "b"}}]});
        assert!(is_migrated(&with("Scheduling"), "a"));
        assert!(!is_migrated(&with("Succeeded"), "a"));
        assert!(!is_migrated(&with("Failed"), "a"));
        assert!(is_migrated(&with("Failed"), "b"), "one without a status has just been made");
    }
}
