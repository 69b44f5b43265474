//! Live migrations: what stands in the way of one, and how one is doing.

use serde::Serialize;
use serde_json::Value;

use super::condition::blocker;
use super::json::{condition, some, text};
use crate::usage::{Samples, Source, whole};

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
    /// How much of the guest's memory has gone over, while it goes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub transfer: Option<Transfer>,
    /// Why that cannot be said, when somebody wanted to know.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub transfer_unknown: Option<String>,
}

/// How much of a guest's memory has gone over, as the virt-handler tells that the guest leaves. The guest writes
/// meanwhile, and what it has written goes once more: it may go back.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Transfer {
    /// Hundredths that need not go any more; 100 only when it is over, which the phase says.
    pub percent: u8,
    /// What there is, bytes.
    pub total_bytes: u64,
    /// What has still to go, bytes.
    pub remaining_bytes: u64,
    /// What the guest writes, bytes a second.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dirty_bytes_per_second: Option<u64>,
    /// What goes over, bytes a second.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes_per_second: Option<u64>,
    /// Where the figures are from.
    pub source: Source,
}

/// `docs/observability/metrics.md`, v1.9: all, what remains, what the guest writes, what goes over.
pub(crate) const TRANSFER: [&str; 4] = [
    "kubevirt_vmi_migration_data_bytes_total",
    "kubevirt_vmi_migration_data_remaining_bytes",
    "kubevirt_vmi_migration_dirty_memory_rate_bytes",
    "kubevirt_vmi_migration_memory_transfer_rate_bytes",
];

impl Transfer {
    /// Reads the metrics of a node; `None` where they say nothing about a migration of this VM.
    pub fn of(samples: &Samples, namespace: &str, vm: &str) -> Option<Self> {
        let key = (namespace.to_owned(), vm.to_owned());
        let [total, remaining, dirty, rate] = TRANSFER.map(|name| samples.get(name, &key).and_then(whole));
        let (total, remaining) = (total.filter(|bytes| *bytes > 0)?, remaining?);
        let gone = u128::from(total.saturating_sub(remaining));
        let percent = gone * 100 / u128::from(total);
        Some(Self {
            percent: u8::try_from(percent).map_or(99, |percent| percent.min(99)),
            total_bytes: total,
            remaining_bytes: remaining,
            dirty_bytes_per_second: dirty,
            bytes_per_second: rate,
            source: Source::VirtHandler,
        })
    }
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
            transfer: None,
            transfer_unknown: None,
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

    /// Where it stands, in a few words.
    pub fn standing(&self) -> String {
        let mut words = self.phase.clone();
        if let Some(target) = &self.target {
            words = format!("{words} to {target}");
        }
        match &self.transfer {
            Some(transfer) => format!("{words}, {} % of its memory", transfer.percent),
            None => words,
        }
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
    fn memory_that_went_over_is_counted_in_hundredths() {
        let [total, remaining, dirty, rate] = TRANSFER;
        let read = |all: u64, rest: u64| {
            let of = "{namespace=\"a\",name=\"web\"}";
            let mut samples = Samples::default();
            samples.read(&format!(
                "{total}{of} {all}\n{remaining}{of} {rest}\n{dirty}{of} 8e6\n{rate}{of} 1e9\n"
            ));
            Transfer::of(&samples, "a", "web")
        };
        let percent = |all, rest| read(all, rest).map(|transfer| transfer.percent);
        assert_eq!(percent(4 << 30, 4 << 30), Some(0));
        assert_eq!(percent(4 << 30, 3 << 30), Some(25));
        assert_eq!(percent(4 << 30, 0), Some(99), "whether it is over is not said by this");
        assert_eq!(percent(1 << 30, 2 << 30), Some(0), "more is to go than there was");
        assert_eq!(percent(0, 0), None);
        assert_eq!(Transfer::of(&Samples::default(), "a", "web"), None);
        let read = read(4 << 30, 3 << 30).unwrap();
        assert_eq!(
            (read.dirty_bytes_per_second, read.bytes_per_second),
            (Some(8_000_000), Some(1_000_000_000))
        );
        let vmim = json!({"status": {"phase": "Running", "migrationState": {"targetNode": "n2"}}});
        let mut migration = Migration::of(&vmim);
        assert_eq!(migration.standing(), "Running to n2");
        migration.transfer = Some(read);
        assert_eq!(migration.standing(), "Running to n2, 25 % of its memory");
    }

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
