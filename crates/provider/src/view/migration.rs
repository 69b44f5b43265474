//! Live migrations: what stands in the way of one, and how one is doing.

use serde::Serialize;
use serde_json::Value;

use super::condition::blocker;
use super::json::{condition, some, text};

/// Something that stands in the way.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Blocker {
    /// KubeVirt's reason, or ours for what KubeVirt says without one.
    pub reason: String,
    /// What is wrong.
    pub message: String,
    /// What to do.
    pub remedy: String,
}

/// What keeps a VM from being migrated now; empty when nothing does.
pub fn blockers(vm: &Value, vmi: Option<&Value>) -> Vec<Blocker> {
    let of = |reason: &str, message: String, remedy: &str| Blocker {
        reason: reason.into(),
        message,
        remedy: remedy.into(),
    };
    let Some(vmi) = vmi else {
        return vec![of(
            "NotRunning",
            "the VM is off".into(),
            "start it; a VM that is off needs no migration",
        )];
    };
    let mut found = Vec::new();
    let phase = text(vmi, "/status/phase");
    if phase != "Running" {
        found.push(of("NotRunning", format!("the instance is {phase}"), "wait until it runs"));
    }
    if is_migrating(vmi) {
        found.push(of(
            "MigrationInProgress",
            "it is being migrated already".into(),
            "wait for it, or end it with `virt-steward vm migrate --cancel`",
        ));
    }
    if !text(vm, "/metadata/deletionTimestamp").is_empty() {
        found.push(of("Deleting", "the VM is being deleted".into(), "nothing is to be done"));
    }
    if let Some(condition) = condition(vmi, "LiveMigratable").filter(|one| text(one, "/status") == "False") {
        let reason = text(condition, "/reason");
        found.push(of(reason, text(condition, "/message").into(), blocker(reason)));
    }
    found
}

/// Whether a migration has begun and not ended (`status.migrationState`, v1.9).
pub fn is_migrating(vmi: &Value) -> bool {
    !text(vmi, "/status/migrationState/startTimestamp").is_empty()
        && text(vmi, "/status/migrationState/endTimestamp").is_empty()
}

/// A `VirtualMachineInstanceMigration` in short.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Migration {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// The VM.
    pub vm: String,
    /// `Pending`, `Scheduling`, `Scheduled`, `PreparingTarget`, `TargetReady`, `Running`, `Succeeded` or `Failed`.
    pub phase: String,
    /// Where from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// Where to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// `PreCopy`, `PostCopy` or `Paused`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<String>,
    /// When memory began to move, RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub started: Option<String>,
    /// When it ended, RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ended: Option<String>,
    /// The `MigrationPolicy` that tuned it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub policy: Option<String>,
    /// Why it failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
    /// When it was asked for, RFC 3339.
    pub created: String,
}

impl Migration {
    /// Reads a migration.
    pub fn of(vmim: &Value) -> Self {
        let phase = text(vmim, "/status/phase");
        Self {
            namespace: text(vmim, "/metadata/namespace").into(),
            name: text(vmim, "/metadata/name").into(),
            vm: text(vmim, "/spec/vmiName").into(),
            phase: if phase.is_empty() { "Pending" } else { phase }.into(),
            source: some(vmim, "/status/migrationState/sourceNode"),
            target: some(vmim, "/status/migrationState/targetNode"),
            mode: some(vmim, "/status/migrationState/mode"),
            started: some(vmim, "/status/migrationState/startTimestamp"),
            ended: some(vmim, "/status/migrationState/endTimestamp"),
            policy: some(vmim, "/status/migrationState/migrationPolicyName"),
            failure: some(vmim, "/status/migrationState/failureReason"),
            created: text(vmim, "/metadata/creationTimestamp").into(),
        }
    }

    /// Takes over what an instance tells about this migration; `uid` is the migration's.
    pub fn add_state_of(&mut self, vmi: &Value, uid: &str) {
        let state = "/status/migrationState";
        if text(vmi, &format!("{state}/migrationUid")) != uid {
            return;
        }
        let of = |key: &str| some(vmi, &format!("{state}/{key}"));
        self.source = self.source.take().or_else(|| of("sourceNode"));
        self.target = self.target.take().or_else(|| of("targetNode"));
        self.mode = self.mode.take().or_else(|| of("mode"));
        self.started = self.started.take().or_else(|| of("startTimestamp"));
        self.policy = self.policy.take().or_else(|| of("migrationPolicyName"));
    }

    /// Whether it has ended, one way or the other.
    pub fn is_over(&self) -> bool {
        matches!(self.phase.as_str(), "Succeeded" | "Failed")
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_obstacle_is_named_with_what_to_do() {
        let reasons = |vm: Value, vmi: Option<Value>| -> Vec<String> {
            let found = blockers(&vm, vmi.as_ref());
            assert!(found.iter().all(|one| !one.remedy.is_empty()));
            found.into_iter().map(|one| one.reason).collect()
        };
        let running = json!({"status": {"phase": "Running", "conditions": [{"type": "LiveMigratable", "status": "True"}]}});
        let stuck = json!({"status": {"phase": "Running", "migrationState": {"startTimestamp": "t"},
            "conditions": [{"type": "LiveMigratable", "status": "False", "reason": "DisksNotLiveMigratable",
                "message": "cannot migrate VMI: PVC a is not shared"}]}});
        assert_eq!(reasons(json!({}), Some(running.clone())), Vec::<String>::new());
        assert_eq!(reasons(json!({}), None), ["NotRunning"]);
        assert_eq!(reasons(json!({}), Some(json!({"status": {"phase": "Scheduling"}}))), ["NotRunning"]);
        assert_eq!(reasons(json!({}), Some(stuck)), ["MigrationInProgress", "DisksNotLiveMigratable"]);
        assert_eq!(reasons(json!({"metadata": {"deletionTimestamp": "t"}}), Some(running)), ["Deleting"]);
    }
}
