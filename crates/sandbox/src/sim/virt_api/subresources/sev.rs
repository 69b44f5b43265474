//! `sev/…`: attestation of encrypted guests (`pkg/virt-api/rest/sev.go`, v1.9). No simulated node has SEV, so nothing
//! that is attested runs: what comes before is checked in the order and with the words of the real one.

use apimachinery::Status;
use apimachinery::tree::{Value, json};

use super::refusal::{VMI_NOT_RUNNING, vmi_conflict};
use crate::sim::json::{self, condition, text};
use crate::sim::resource::VMIS;
use crate::sim::write::{Op, Write};

const NOT_REQUESTED: &str = "Attestation not requested for VMI";

fn conflict<T>(vmi: &Value, why: &str) -> Result<T, Status> {
    Err(vmi_conflict(json::name(vmi), why))
}

fn phase(vmi: &Value) -> &str {
    text(vmi, "/status/phase")
}

fn is_requested(vmi: &Value) -> bool {
    vmi.pointer("/spec/domain/launchSecurity/sev/attestation").is_some_and(Value::is_object)
}

/// Whether the platform's certificates can be fetched.
pub fn may_fetch(vmi: &Value) -> Result<(), Status> {
    if !matches!(phase(vmi), "Scheduled" | "Running") {
        return conflict(vmi, "VMI is not assigned to a node yet");
    }
    if is_requested(vmi) { Ok(()) } else { conflict(vmi, NOT_REQUESTED) }
}

/// Whether the launch can be measured, or a secret injected.
pub fn may_attest(vmi: &Value) -> Result<(), Status> {
    if phase(vmi) != "Running" {
        return conflict(vmi, VMI_NOT_RUNNING);
    }
    if !is_requested(vmi) {
        return conflict(vmi, NOT_REQUESTED);
    }
    if condition(vmi, "/status/conditions", "Paused").is_none() {
        return conflict(vmi, "VMI is not paused");
    }
    Ok(())
}

/// What is wrong with the parameters of a session.
pub fn checked(options: &Value) -> Result<(), Status> {
    for (pointer, message) in [("/session", "Session blob is required"), ("/dhCert", "DH cert is required")] {
        if text(options, pointer).is_empty() {
            return Err(Status::bad_request(message));
        }
    }
    Ok(())
}

/// The write that gives a guest the parameters of its session.
pub fn set_up(vmi: &Value, options: &Value) -> Result<Write, Status> {
    if phase(vmi) != "Scheduled" {
        return conflict(vmi, "VMI is not in Scheduled phase");
    }
    if !is_requested(vmi) {
        return conflict(vmi, NOT_REQUESTED);
    }
    let path = "/spec/domain/launchSecurity/sev";
    let old = vmi.pointer(path).cloned().unwrap_or_default();
    if !text(&old, "/session").is_empty() || !text(&old, "/dhCert").is_empty() {
        return conflict(vmi, "Session already defined");
    }
    let mut new = old.clone();
    new["session"] = options["session"].clone();
    new["dhCert"] = options["dhCert"].clone();
    Ok(Write::to(&VMIS, vmi, "", Op::JsonPatch(json!(Write::test_and_replace(path, &old, &new)))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_said_in_order() {
        let vmi = |phase: &str, sev: Value| {
            json!({"metadata": {"name": "v", "namespace": "n"}, "status": {"phase": phase},
                "spec": {"domain": {"launchSecurity": {"sev": sev}}}})
        };
        let why = |result: Result<(), Status>| {
            let message = result.err().map(|status| status.message).unwrap_or_default();
            message.split_once("\"v\": ").map_or(message.clone(), |(_, why)| why.to_owned())
        };
        let attested = || json!({"attestation": {}});
        assert_eq!(why(may_fetch(&vmi("Pending", attested()))), "VMI is not assigned to a node yet");
        assert_eq!(why(may_fetch(&vmi("Running", json!({})))), NOT_REQUESTED);
        assert_eq!(why(may_fetch(&vmi("Running", attested()))), "");
        assert_eq!(why(may_attest(&vmi("Running", attested()))), "VMI is not paused");
        assert_eq!(why(checked(&json!({"session": "s"}))), "DH cert is required");
        let options = json!({"session": "s", "dhCert": "d"});
        assert_eq!(
            why(set_up(&vmi("Running", attested()), &options).map(|_| ())),
            "VMI is not in Scheduled phase"
        );
        let twice = json!({"attestation": {}, "session": "s"});
        assert_eq!(why(set_up(&vmi("Scheduled", twice), &options).map(|_| ())), "Session already defined");
        let write = set_up(&vmi("Scheduled", attested()), &options).unwrap();
        let Op::JsonPatch(patch) = write.op else { panic!("a patch") };
        assert_eq!(patch[1]["value"], json!({"attestation": {}, "session": "s", "dhCert": "d"}));
    }
}
