//! Dumps of a guest's memory through virt-api (`pkg/virt-api/rest/memorydump.go`, v1.9): the patch of the VM's status, or
//! why not.

use apimachinery::tree::{Value, json};
use apimachinery::{Status, quantity};

use super::refusal::{VMI_NOT_RUNNING, vm_conflict, vmi_conflict};
use crate::sim::cluster::ClusterConfig;
use crate::sim::json::{self, list, text};
use crate::sim::resource::VMS;
use crate::sim::write::{Op, Write};

/// What a dump takes beside the guest's memory, bytes (`CalcExpectedMemoryDumpSize`).
const OVERHEAD: i64 = 100 << 20;
const MIB: i64 = 1 << 20;

/// Whether the cluster serves it.
pub fn served(config: &ClusterConfig) -> Result<(), Status> {
    if config.gate("HotplugVolumes") || config.gate("DeclarativeHotplugVolumes") {
        return Ok(());
    }
    let message = "Enable DeclarativeHotplugVolumes or HotplugVolumes feature gate to use this API.";
    Err(Status::bad_request(message))
}

/// The claim of a request: its own, or the one of the last.
pub fn claim_of<'a>(vm: &'a Value, options: &'a Value) -> Result<&'a str, Status> {
    let last = text(vm, "/status/memoryDumpRequest/claimName");
    match (text(options, "/claimName"), last) {
        ("", "") => Err(Status::bad_request("Memory dump requires claim name to be set")),
        ("", last) => Ok(last),
        (wanted, last) if !last.is_empty() && wanted != last => Err(vm_conflict(
            json::name(vm),
            &format!(
                "can't request memory dump for pvc [{wanted}] while pvc [{last}] is still associated as the memory dump \
                 pvc"
            ),
        )),
        (wanted, _) => Ok(wanted),
    }
}

/// Whether the guest runs.
pub fn may_dump(vmi: &Value) -> Result<(), Status> {
    if text(vmi, "/status/phase") == "Running" {
        return Ok(());
    }
    Err(vmi_conflict(json::name(vmi), VMI_NOT_RUNNING))
}

/// Whether a claim can take a dump. As in v1.9 only what the VMI *requests* of memory counts, not what its guest has.
pub fn fits(vmi: &Value, claim: &Value) -> Result<(), Status> {
    let conflict =
        |why: &str| Err(Status::conflict("kubevirt.io", "persistentvolumeclaim", json::name(claim), why));
    if text(claim, "/spec/volumeMode") == "Block" {
        return conflict("pvc should be filesystem pvc");
    }
    let modes = list(claim, "/spec/accessModes");
    if !modes.is_empty() && modes.iter().all(|mode| mode == "ReadOnlyMany") {
        return conflict("pvc access mode can't be read only");
    }
    let bytes =
        |object: &Value, pointer: &str| object.pointer(pointer).and_then(quantity::units).unwrap_or(0);
    // Rounded up to thousands, and shown so.
    let size = bytes(claim, "/spec/resources/requests/storage").saturating_add(999) / 1000 * 1000;
    let dump = bytes(vmi, "/spec/domain/resources/requests/memory").saturating_add(OVERHEAD);
    // The share of a file system itself, 0.055, where CDI says nothing else.
    let needed = (dump.saturating_mul(1055) / 1000 + MIB - 1) / MIB * MIB;
    if size < needed {
        let (size, needed) = (decimal(size), quantity::bytes(needed));
        return conflict(&format!("pvc size [{size}] should be bigger then [{needed}]"));
    }
    Ok(())
}

/// A quantity in the largest decimal unit that is exact.
fn decimal(mut value: i64) -> String {
    let mut unit = 0;
    while value != 0 && value % 1000 == 0 && unit < 4 {
        value /= 1000;
        unit += 1;
    }
    format!("{value}{}", ["", "k", "M", "G", "T"][unit])
}

/// The write of a new request.
pub fn request(vm: &Value, claim: &str) -> Result<Write, Status> {
    let phase = text(vm, "/status/memoryDumpRequest/phase");
    let conflict = |why: String| vm_conflict(json::name(vm), &why);
    match phase {
        "" | "Completed" | "Failed" => Ok(written(vm, &json!({"claimName": claim, "phase": "Associating"}))),
        "Dissociating" => Err(conflict(format!(
            "can't dump memory for pvc [{claim}] a remove memory dump request is in progress"
        ))),
        _ => Err(conflict(format!("memory dump request for pvc [{claim}] already in progress"))),
    }
}

/// The write of a request to let go of the claim.
pub fn removal(vm: &Value) -> Result<Write, Status> {
    let last = &vm["status"]["memoryDumpRequest"];
    let conflict = |why: String| Err(vm_conflict(json::name(vm), &why));
    if !last.is_object() {
        let name = json::name(vm);
        return conflict(format!("can't remove memory dump association for vm {name}, no association found"));
    }
    let claim = text(last, "/claimName");
    if last["remove"] == true {
        return conflict(format!("memory dump remove request for pvc [{claim}] already exists"));
    }
    Ok(written(vm, &json!({"claimName": claim, "phase": "Dissociating", "remove": true})))
}

fn written(vm: &Value, request: &Value) -> Write {
    let path = "/status/memoryDumpRequest";
    let old = vm.pointer(path).unwrap_or(&Value::Null);
    let op = if old.is_null() { "add" } else { "replace" };
    let patch =
        json!([{"op": "test", "path": path, "value": old}, {"op": op, "path": path, "value": request}]);
    Write::to(&VMS, vm, "status", Op::JsonPatch(patch))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_claim_has_to_be_a_writable_file_system_with_room() {
        let vmi = json!({"spec": {"domain": {"resources": {"requests": {"memory": "1Gi"}}}}});
        let claim = |mode: &str, access: &str, size: &str| {
            json!({"metadata": {"name": "d"}, "spec": {"volumeMode": mode, "accessModes": [access],
                "resources": {"requests": {"storage": size}}}})
        };
        for (claim, expected) in [
            (claim("Filesystem", "ReadWriteOnce", "2Gi"), ""),
            (claim("Block", "ReadWriteOnce", "2Gi"), "pvc should be filesystem pvc"),
            (claim("Filesystem", "ReadOnlyMany", "2Gi"), "pvc access mode can't be read only"),
            (
                claim("Filesystem", "ReadWriteOnce", "1Gi"),
                "pvc size [1073742k] should be bigger then [1186Mi]",
            ),
            (claim("Filesystem", "ReadWriteOnce", "1G"), "pvc size [1G] should be bigger then [1186Mi]"),
        ] {
            let message = fits(&vmi, &claim).err().map_or(String::new(), |status| status.message);
            assert!(message.ends_with(expected) && message.is_empty() == expected.is_empty(), "{message}");
        }
    }

    #[test]
    fn one_request_at_a_time() {
        let vm = |phase: &str| json!({"metadata": {"name": "v"}, "status": {"memoryDumpRequest": {"claimName": "d", "phase": phase}}});
        for (phase, refused) in
            [("Completed", false), ("Failed", false), ("InProgress", true), ("Dissociating", true)]
        {
            assert_eq!(request(&vm(phase), "d").is_err(), refused, "{phase}");
        }
        assert!(removal(&vm("InProgress")).is_ok());
        assert!(removal(&json!({"metadata": {"name": "v"}})).is_err());
        assert_eq!(claim_of(&vm("Completed"), &json!({})).unwrap(), "d");
        let (last, other) = (vm("Completed"), json!({"claimName": "e"}));
        assert!(claim_of(&last, &other).unwrap_err().message.contains("is still associated"));
    }
}
