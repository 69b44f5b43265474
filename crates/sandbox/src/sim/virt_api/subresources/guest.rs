//! What virt-api asks of a VMI before it calls the node (`lifecycle.go`, `console.go`, `vnc.go`,
//! `usbredir.go`, `portforward.go`, v1.9).

use std::time::Duration;

use apimachinery::Status;
use apimachinery::tree::Value;

use super::refusal::{NO_AGENT, NOT_RUNNING, VMI_NOT_RUNNING, vm_conflict, vmi_conflict, vmi_forbidden};
use crate::sim::handler_calls::{Order, Stream};
use crate::sim::json::{self, condition, has_condition, text};

fn is_running(vmi: &Value) -> bool {
    text(vmi, "/status/phase") == "Running"
}

fn has(vmi: &Value, kind: &str) -> bool {
    condition(vmi, "/status/conditions", kind).is_some()
}

fn no(vmi: &Value, why: &str) -> Status {
    vmi_conflict(json::name(vmi), why)
}

/// Whether an order can go to the guest. `vm` counts for unpause alone: a snapshot in progress
/// keeps the guest paused.
pub fn may_order(vmi: &Value, vm: Option<&Value>, order: Order) -> Result<(), Status> {
    let name = json::name(vmi);
    match order {
        Order::Unpause if vm.is_some_and(|vm| !text(vm, "/status/snapshotInProgress").is_empty()) => {
            return Err(vm_conflict(name, "VM snapshot is in progress"));
        }
        // virt-api has no test of its own for a reset; the connection to the node has one.
        Order::Reset => {}
        Order::Unpause | Order::Unfreeze if !is_running(vmi) => return Err(no(vmi, VMI_NOT_RUNNING)),
        _ if !is_running(vmi) => return Err(no(vmi, NOT_RUNNING)),
        _ => {}
    }
    match order {
        Order::Pause => {
            if vmi.pointer("/spec/livenessProbe").is_some() {
                let why = "Pausing VMIs with LivenessProbe is currently not supported";
                return Err(vmi_forbidden(name, why));
            }
            if has(vmi, "Paused") {
                return Err(no(vmi, "VMI is already paused"));
            }
            let migration = vmi.pointer("/status/migrationState").filter(|state| state.is_object());
            if migration.is_some_and(|state| state["completed"] != true) {
                let why = format!("Cannot pause VM '{name}' because it is currently being migrated");
                return Err(no(vmi, &why));
            }
        }
        Order::Unpause if !has(vmi, "Paused") => return Err(no(vmi, "VMI is not paused")),
        Order::SoftReboot => {
            if has_condition(vmi, "Paused", "True") {
                return Err(no(vmi, "VMI is paused"));
            }
            let no_acpi = vmi.pointer("/spec/domain/features/acpi/enabled") == Some(&Value::Bool(false));
            if !has(vmi, "AgentConnected") && no_acpi {
                return Err(no(vmi, "VMI neither have the agent connected nor the ACPI feature enabled"));
            }
        }
        _ => {}
    }
    reachable(vmi).map_err(|mut status| {
        if order == Order::Reset {
            let phase = text(vmi, "/status/phase");
            status.message =
                format!("Failed to reset non-running VMI with phase {phase}: {}", status.message);
        }
        status
    })
}

/// Whether the node of a VMI can be called (`getVirtHandlerConnForVMI`).
fn reachable(vmi: &Value) -> Result<(), Status> {
    match text(vmi, "/status/phase") {
        "Running" | "Scheduled" => Ok(()),
        phase => Err(Status::bad_request(format!(
            "Unable to connect to VirtualMachineInstance because phase is {phase} instead of Running or Scheduled"
        ))),
    }
}

/// Whether the guest's agent can be asked.
pub fn may_ask(vmi: &Value) -> Result<(), Status> {
    if !is_running(vmi) {
        return Err(no(vmi, VMI_NOT_RUNNING));
    }
    if !has(vmi, "AgentConnected") {
        return Err(no(vmi, NO_AGENT));
    }
    Ok(())
}

/// Whether a backup can be asked for, or a checkpoint defined.
pub fn may_back_up(vmi: &Value, verb: &str) -> Result<(), Status> {
    if verb == "backup" && !is_running(vmi) {
        return Err(no(vmi, NOT_RUNNING));
    }
    if verb != "backup" && text(vmi, "/status/changedBlockTracking/state") != "Enabled" {
        return Err(no(vmi, "ChangedBlockTracking is not enabled"));
    }
    reachable(vmi)
}

/// Whether there is a screen to look at.
pub fn may_see(vmi: &Value) -> Result<(), Status> {
    if vmi.pointer("/spec/domain/devices/autoattachGraphicsDevice") == Some(&Value::Bool(false)) {
        return Err(Status::bad_request("No graphics devices are present."));
    }
    if is_running(vmi) { Ok(()) } else { Err(Status::bad_request(VMI_NOT_RUNNING)) }
}

/// Whether a connection into the guest can be made.
pub fn may_connect(vmi: &Value, stream: Stream) -> Result<(), Status> {
    match stream {
        Stream::Vnc => may_see(vmi),
        Stream::Console => {
            if vmi.pointer("/spec/domain/devices/autoattachSerialConsole") == Some(&Value::Bool(false)) {
                return Err(Status::bad_request("No serial consoles are present."));
            }
            if text(vmi, "/status/phase") == "Failed" {
                return Err(no(vmi, "VMI is in failed status"));
            }
            if is_running(vmi) { Ok(()) } else { Err(Status::bad_request(VMI_NOT_RUNNING)) }
        }
        Stream::UsbRedirection => {
            if text(vmi, "/spec/architecture") == "s390x" {
                return Err(no(vmi, "No USB support on s390x"));
            }
            if vmi.pointer("/spec/domain/devices/clientPassthrough").is_none() {
                return Err(no(vmi, "Not configured with USB Redirection"));
            }
            if is_running(vmi) { Ok(()) } else { Err(Status::bad_request(VMI_NOT_RUNNING)) }
        }
        Stream::Vsock(_) => {
            let attached = vmi.pointer("/spec/domain/devices/autoattachVSOCK") == Some(&Value::Bool(true));
            if attached { reachable(vmi) } else { Err(Status::bad_request("VSOCK is not attached.")) }
        }
        Stream::Port(_) => {
            if has(vmi, "Paused") {
                return Err(no(vmi, "VMI is paused"));
            }
            if json::list(vmi, "/status/interfaces").is_empty() {
                return Err(Status::bad_request("no network interfaces are present"));
            }
            Ok(())
        }
    }
}

/// The time after which a freeze ends by itself, from the body of `freeze`.
///
/// # Errors
/// What virt-handler answers with 400.
pub fn thaw_after(body: &Value) -> Result<Duration, String> {
    let unset = || "Unfreeze timeout in freeze request is not set".to_owned();
    let asked = text(body, "/unfreezeTimeout");
    if asked.is_empty() {
        return Err(unset());
    }
    json::go_duration(asked).ok_or_else(|| "failed to unmarshal unfreeze timeout".to_owned())
}

#[cfg(test)]
mod tests {
    use apimachinery::tree::json;

    use super::*;

    #[test]
    fn what_the_state_of_a_vmi_forbids() {
        let vmi = |phase: &str, conditions: &[&str]| {
            let conditions: Vec<Value> =
                conditions.iter().map(|kind| json!({"type": kind, "status": "True"})).collect();
            json!({"metadata": {"name": "v"}, "spec": {"domain": {"features": {"acpi": {"enabled": false}}}},
                "status": {"phase": phase, "conditions": conditions}})
        };
        let minute = Order::Freeze(Duration::from_mins(1));
        for (order, phase, conditions, expected) in [
            (Order::Pause, "Running", &[][..], ""),
            (Order::Pause, "Running", &["Paused"][..], "VMI is already paused"),
            (Order::Pause, "Scheduled", &[][..], "VM is not running"),
            (Order::Unpause, "Running", &["Paused"][..], ""),
            (Order::Unpause, "Running", &[][..], "VMI is not paused"),
            (Order::Unpause, "Failed", &[][..], "VMI is not running"),
            (minute, "Scheduling", &[][..], "VM is not running"),
            (Order::SoftReboot, "Running", &["Paused"][..], "VMI is paused"),
            (
                Order::SoftReboot,
                "Running",
                &[][..],
                "VMI neither have the agent connected nor the ACPI feature enabled",
            ),
            (Order::SoftReboot, "Running", &["AgentConnected"][..], ""),
            (Order::Reset, "Running", &[][..], ""),
            (
                Order::Reset,
                "Pending",
                &[][..],
                "Failed to reset non-running VMI with phase Pending: Unable to connect to VirtualMachineInstance \
                 because phase is Pending instead of Running or Scheduled",
            ),
        ] {
            let got = may_order(&vmi(phase, conditions), None, order).err().map(|status| status.message);
            let got = got.unwrap_or_default();
            let got = got.split_once("\"v\": ").map_or(got.as_str(), |(_, why)| why);
            assert_eq!(got, expected, "{order:?} {phase} {conditions:?}");
        }
        let mut migrating = vmi("Running", &[]);
        migrating["status"]["migrationState"] = json!({"startTimestamp": "t"});
        assert_eq!(may_order(&migrating, None, Order::Pause).unwrap_err().code, 409);
        migrating["spec"]["livenessProbe"] = json!({});
        assert_eq!(may_order(&migrating, None, Order::Pause).unwrap_err().code, 403);
        let vm = json!({"status": {"snapshotInProgress": "s"}});
        let status = may_order(&vmi("Running", &["Paused"]), Some(&vm), Order::Unpause).unwrap_err();
        assert!(status.message.ends_with("VM snapshot is in progress"));
    }

    #[test]
    fn durations_are_read_as_go_writes_them() {
        for (text, millis) in [
            ("5m0s", Some(300_000)),
            ("1h", Some(3_600_000)),
            ("1.5s", Some(1500)),
            ("300ms", Some(300)),
            ("5", None),
            ("x", None),
        ] {
            assert_eq!(json::go_duration(text), millis.map(Duration::from_millis), "{text}");
        }
        assert!(thaw_after(&json!({})).is_err());
    }
}
