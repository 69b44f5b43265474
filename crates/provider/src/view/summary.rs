//! One line about a VM, out of the VM and its VMI.

use serde::Serialize;
use serde_json::Value;

use super::json::{condition, holds, list, some, text};
use crate::usage::Usage;

/// A VM in short. Field names are those of `-o json`, of YAML and of the REST service.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct VmSummary {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// KubeVirt's `status.printableStatus`; `Unknown` before the controller has seen the VM.
    pub status: String,
    /// `Always`, `Manual`, `Halted`, `Once`, `RerunOnFailure` or `WaitAsReceiver`.
    pub run_strategy: String,
    /// Whether the guest is ready.
    pub ready: bool,
    /// Where it runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// Addresses of its interfaces.
    pub addresses: Vec<String>,
    /// Virtual CPUs, unless only the instance type says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vcpus: Option<u64>,
    /// Guest memory in bytes, unless only the instance type says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
    /// Whether it can be migrated while it runs; unknown while it does not run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub migratable: Option<bool>,
    /// Whether the guest agent is connected.
    pub agent_connected: bool,
    /// What the guest says that it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub guest_os: Option<String>,
    /// When the VM was made, RFC 3339.
    pub created: String,
    /// What somebody should look at, as in `RestartRequired`.
    pub notes: Vec<String>,
    /// What it uses, when that was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usage: Option<Box<Usage>>,
}

impl VmSummary {
    /// Reads a VM and, when it runs, its VMI.
    pub fn of(vm: &Value, vmi: Option<&Value>) -> Self {
        let status = text(vm, "/status/printableStatus");
        let notes = ["Failure", "RestartRequired", "ManualRecoveryRequired"];
        Self {
            namespace: text(vm, "/metadata/namespace").into(),
            name: text(vm, "/metadata/name").into(),
            status: if status.is_empty() { "Unknown" } else { status }.into(),
            run_strategy: run_strategy(vm).into(),
            ready: holds(vm, "Ready"),
            node: vmi.and_then(|vmi| some(vmi, "/status/nodeName")),
            addresses: vmi.map(addresses).unwrap_or_default(),
            vcpus: vcpus(vm, vmi),
            memory_bytes: memory(vm, vmi),
            migratable: vmi
                .and_then(|vmi| condition(vmi, "LiveMigratable"))
                .map(|condition| text(condition, "/status") == "True"),
            agent_connected: vmi.is_some_and(|vmi| holds(vmi, "AgentConnected")),
            guest_os: vmi.and_then(|vmi| {
                some(vmi, "/status/guestOSInfo/prettyName").or_else(|| some(vmi, "/status/guestOSInfo/name"))
            }),
            created: text(vm, "/metadata/creationTimestamp").into(),
            notes: notes.iter().filter(|kind| holds(vm, kind)).map(|kind| (*kind).into()).collect(),
            usage: None,
        }
    }
}

/// `spec.runStrategy`, or what the deprecated `running` means; neither is Halted (types.go, v1.9).
pub fn run_strategy(vm: &Value) -> &str {
    match (vm.pointer("/spec/runStrategy").and_then(Value::as_str), vm.pointer("/spec/running")) {
        (Some(strategy), _) => strategy,
        (None, Some(Value::Bool(true))) => "Always",
        _ => "Halted",
    }
}

fn addresses(vmi: &Value) -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    for interface in list(vmi, "/status/interfaces") {
        let main = some(interface, "/ipAddress");
        let all = list(interface, "/ipAddresses").iter().filter_map(Value::as_str).map(str::to_owned);
        for address in main.into_iter().chain(all) {
            if !found.contains(&address) {
                found.push(address);
            }
        }
    }
    found
}

/// Sockets times cores times threads; an absent factor is one (types.go, CPU, v1.9).
fn vcpus(vm: &Value, vmi: Option<&Value>) -> Option<u64> {
    let current = vmi.and_then(|vmi| vmi.pointer("/status/currentCPUTopology"));
    let topology = current.or_else(|| vm.pointer("/spec/template/spec/domain/cpu"))?;
    let factor = |key: &str| topology.get(key).and_then(Value::as_u64).filter(|n| *n > 0).unwrap_or(1);
    factor("sockets").checked_mul(factor("cores"))?.checked_mul(factor("threads"))
}

fn memory(vm: &Value, vmi: Option<&Value>) -> Option<u64> {
    let domain = "/spec/template/spec/domain";
    let text = vmi
        .and_then(|vmi| some(vmi, "/status/memory/guestCurrent"))
        .or_else(|| vmi.and_then(|vmi| some(vmi, "/spec/domain/memory/guest")))
        .or_else(|| some(vm, &format!("{domain}/memory/guest")))
        .or_else(|| some(vm, &format!("{domain}/resources/requests/memory")))?;
    bytes(&text)
}

/// A Kubernetes quantity in whole units.
pub(crate) fn bytes(text: &str) -> Option<u64> {
    u64::try_from(apimachinery::quantity::units(&Value::from(text))?).ok()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_running_vm_is_read_from_both_objects() {
        let vm = json!({"metadata": {"namespace": "a", "name": "web", "creationTimestamp": "2026-11-01T00:00:00Z"},
            "spec": {"runStrategy": "Always", "template": {"spec": {"domain": {"memory": {"guest": "1Gi"}}}}},
            "status": {"printableStatus": "Running", "conditions": [
                {"type": "Ready", "status": "True"}, {"type": "RestartRequired", "status": "True"}]}});
        let vmi = json!({"spec": {"domain": {"memory": {"guest": "1Gi"}}}, "status": {"nodeName": "node-1",
            "currentCPUTopology": {"sockets": 2, "cores": 2}, "memory": {"guestCurrent": "2Gi"},
            "guestOSInfo": {"prettyName": "Fedora 41"},
            "interfaces": [{"ipAddress": "10.0.0.1", "ipAddresses": ["10.0.0.1", "fd00::1"]}],
            "conditions": [{"type": "LiveMigratable", "status": "False"}, {"type": "AgentConnected", "status": "True"}]}});
        let summary = VmSummary::of(&vm, Some(&vmi));
        assert_eq!((summary.vcpus, summary.memory_bytes), (Some(4), Some(2 << 30)));
        assert_eq!(summary.addresses, ["10.0.0.1", "fd00::1"]);
        assert_eq!((summary.node.as_deref(), summary.migratable), (Some("node-1"), Some(false)));
        assert_eq!(summary.notes, ["RestartRequired"]);
        assert!(summary.ready && summary.agent_connected);
    }

    #[test]
    fn what_is_not_there_is_not_invented() {
        let summary = VmSummary::of(&json!({"metadata": {"name": "x"}, "spec": {"running": true}}), None);
        assert_eq!((summary.status.as_str(), summary.run_strategy.as_str()), ("Unknown", "Always"));
        assert_eq!((summary.vcpus, summary.memory_bytes, summary.migratable), (None, None, None));
        let broken = json!({"metadata": 3, "spec": {"template": []}, "status": "x"});
        assert_eq!(VmSummary::of(&broken, Some(&broken)).run_strategy, "Halted");
    }
}
