//! What virt-controller does about a request to dump a guest's memory (`pkg/storage/memorydump`, v1.9).
//!
//! ```text
//!  Associating ─volume in VM and VMI─► InProgress ─dumped─► Unmounting ─gone from the VMI─► Completed
//!                                          └────failed────► Failed
//!  Dissociating ─gone from VMI and VM─► (none)
//! ```

use apimachinery::tree::{Map, Value, json};

use crate::sim::hotplug::entry;
use crate::sim::json::{self, is_deleting, list, map, text};
use crate::sim::resource::{CLAIMS, VMIS, VMS};
use crate::sim::write::{Op, Write};

/// On a claim: the file that it holds, or that the dump failed.
const ANNOTATION: &str = "kubevirt.io/memory-dump";
/// The reason of the `Failure` condition.
pub const REASON: &str = "MemoryDumpError";
/// What the message of the `Failure` condition begins with.
pub const DOING: &str = "Error encountered while handling memory dump request";

/// The claim of a request, and its phase; `None`: there is no request.
fn request(vm: &Value) -> Option<(&str, &str)> {
    let request = vm.pointer("/status/memoryDumpRequest").filter(|one| one.is_object())?;
    Some((text(request, "/claimName"), text(request, "/phase")))
}

/// The claim of a request whose dump is over: a VMI that is made now does not get it again.
pub fn completed(vm: &Value) -> Option<&str> {
    request(vm).filter(|(_, phase)| !matches!(*phase, "Associating" | "InProgress")).map(|(claim, _)| claim)
}

/// Takes the volume of a dump out of a template or VMI spec.
pub fn remove_volume(spec: &mut Value, claim: &str) {
    if let Some(volumes) = spec.get_mut("volumes").and_then(Value::as_array_mut) {
        volumes.retain(|volume| volume["name"] != claim);
    }
}

fn has_volume(spec: &Value, claim: &str) -> bool {
    list(spec, "/volumes").iter().any(|volume| volume["name"] == claim)
}

fn add_volume(spec: &mut Value, claim: &str) {
    if has_volume(spec, claim) {
        return;
    }
    let mut volumes = list(spec, "/volumes").to_vec();
    volumes.push(json!({"name": claim, "memoryDump": {"claimName": claim, "hotpluggable": true}}));
    spec["volumes"] = volumes.into();
}

/// The writes for a request, in order: the claim's annotation, the VMI's volumes, the VM's. `claim` is the claim that the
/// request names, as far as it is there.
///
/// # Errors
/// Why it cannot be followed.
pub fn handle(vm: &Value, vmi: Option<&Value>, claim: Option<&Value>) -> Result<Vec<Write>, String> {
    let Some((name, phase)) = request(vm) else { return Ok(Vec::new()) };
    let mut template = vm["spec"]["template"]["spec"].clone();
    let mut writes = Vec::new();
    match phase {
        "Associating" => {
            let Some(vmi) = vmi.filter(|vmi| !is_deleting(vmi) && text(vmi, "/status/phase") == "Running")
            else {
                return Ok(writes);
            };
            add_volume(&mut template, name);
            let mut spec = vmi["spec"].clone();
            add_volume(&mut spec, name);
            writes.extend(of_vmi(vmi, &spec));
        }
        "Unmounting" | "Failed" => {
            writes.extend(annotated(vm, phase, name, claim)?);
            writes.extend(without_volume(vmi, name));
        }
        "Dissociating" => {
            writes.extend(without_volume(vmi, name));
            remove_volume(&mut template, name);
        }
        _ => {}
    }
    if vm["spec"]["template"]["spec"] != template {
        let mut changed = vm.clone();
        changed["spec"]["template"]["spec"] = template;
        writes.push(Write::to(&VMS, vm, "", Op::Update(changed)));
    }
    Ok(writes)
}

fn without_volume(vmi: Option<&Value>, name: &str) -> Option<Write> {
    let vmi = vmi?;
    let mut spec = vmi["spec"].clone();
    remove_volume(&mut spec, name);
    of_vmi(vmi, &spec)
}

/// The volumes of a VMI, guarded by what they were.
fn of_vmi(vmi: &Value, spec: &Value) -> Option<Write> {
    let (old, new) = (&vmi["spec"]["volumes"], &spec["volumes"]);
    if old == new {
        return None;
    }
    let patch = Write::test_and_replace("/spec/volumes", old, new);
    Some(Write::to(&VMIS, vmi, "", Op::JsonPatch(json!(patch))))
}

/// Says on the claim what is in it; `None`: it says so already, or there is nothing to say.
fn annotated(vm: &Value, phase: &str, name: &str, claim: Option<&Value>) -> Result<Option<Write>, String> {
    let Some(claim) = claim else {
        return Err(format!("Error when trying to update memory dump annotation, pvc {name} not found"));
    };
    let value = match phase {
        "Failed" => "Memory dump failed",
        _ => match text(vm, "/status/memoryDumpRequest/fileName") {
            "" => return Ok(None),
            file => file,
        },
    };
    if json::annotation(claim, ANNOTATION) == Some(value) {
        return Ok(None);
    }
    let patch = if map(claim, "/metadata/annotations").is_none_or(Map::is_empty) {
        json!([{"op": "add", "path": "/metadata/annotations", "value": {(ANNOTATION): value}}])
    } else {
        let path = format!("/metadata/annotations/{}", ANNOTATION.replace('/', "~1"));
        json!([{"op": "replace", "path": path, "value": value}])
    };
    Ok(Some(Write::to(&CLAIMS, claim, "", Op::JsonPatch(patch))))
}

/// Moves the request in a VM's status on to where VM and VMI are (`UpdateRequest`).
pub fn advance(status: &mut Value, vm: &Value, vmi: Option<&Value>) {
    let Some((claim, phase)) = request(vm) else { return };
    let (claim, mounted) = (claim.to_owned(), vmi.and_then(|vmi| entry(vmi, claim)));
    let in_template = has_volume(&vm["spec"]["template"]["spec"], &claim);
    let mut request = status["memoryDumpRequest"].clone();
    if request["remove"] == true {
        request["phase"] = "Dissociating".into();
    }
    match phase {
        "Associating" if in_template => request["phase"] = "InProgress".into(),
        "InProgress" => follow(&mut request, mounted),
        "Unmounting" if mounted.is_none() => request["phase"] = "Completed".into(),
        "Dissociating" if mounted.is_none() && !in_template => {
            json::remove(status, &["memoryDumpRequest"]);
            return;
        }
        "Completed" | "Unmounting" | "Dissociating" => return,
        _ => {}
    }
    status["memoryDumpRequest"] = request;
}

/// What the volume's status says of a dump under way.
fn follow(request: &mut Value, volume: Option<&Value>) {
    let Some(volume) = volume.filter(|volume| volume["memoryDumpVolume"].is_object()) else { return };
    let dump = &volume["memoryDumpVolume"];
    if let Some(started) = dump.get("startTimestamp") {
        request["startTimestamp"] = started.clone();
    }
    let phase = match text(volume, "/phase") {
        "MemoryDumpCompleted" => "Unmounting",
        "MemoryDumpFailed" => "Failed",
        _ => return,
    };
    request["phase"] = phase.into();
    if let Some(ended) = dump.get("endTimestamp") {
        request["endTimestamp"] = ended.clone();
    }
    if phase == "Failed" {
        request["message"] = volume["message"].clone();
    } else {
        request["fileName"] = dump["targetFileName"].clone();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vm(phase: &str, volumes: &[&str]) -> Value {
        let volumes: Vec<Value> = volumes.iter().map(|name| json!({"name": name})).collect();
        json!({"metadata": {"name": "v", "namespace": "n"}, "spec": {"template": {"spec": {"volumes": volumes}}},
            "status": {"memoryDumpRequest": {"claimName": "d", "phase": phase}}})
    }

    fn vmi(volumes: &[&str], status: &Value) -> Value {
        let volumes: Vec<Value> = volumes.iter().map(|name| json!({"name": name})).collect();
        json!({"metadata": {"name": "v", "namespace": "n"}, "spec": {"volumes": volumes},
            "status": {"phase": "Running", "volumeStatus": status}})
    }

    fn written(vm: &Value, vmi: Option<&Value>, claim: Option<&Value>) -> Vec<&'static str> {
        handle(vm, vmi, claim).unwrap().iter().map(|write| write.resource.plural).collect()
    }

    #[test]
    fn volumes_come_and_go_with_the_phases() {
        let claim = json!({"metadata": {"name": "d", "namespace": "n"}});
        let (vms, vmis, claims) = (VMS.plural, VMIS.plural, CLAIMS.plural);
        let running = vmi(&["root"], &json!([]));
        let with = vmi(&["root", "d"], &json!([]));
        assert_eq!(written(&vm("Associating", &["root"]), Some(&running), None), [vmis, vms]);
        assert_eq!(written(&vm("Associating", &["root"]), None, None), Vec::<&str>::new(), "it does not run");
        assert_eq!(written(&vm("InProgress", &["root", "d"]), Some(&with), None), Vec::<&str>::new());
        let mut done = vm("Unmounting", &["root", "d"]);
        done["status"]["memoryDumpRequest"]["fileName"] = "f".into();
        assert_eq!(written(&done, Some(&with), Some(&claim)), [claims, vmis]);
        let mut said = claim.clone();
        json::put(&mut said, &["metadata", "annotations", ANNOTATION], "f");
        assert_eq!(written(&done, Some(&running), Some(&said)), Vec::<&str>::new());
        assert_eq!(
            handle(&done, None, None).unwrap_err(),
            "Error when trying to update memory dump annotation, pvc d not found"
        );
        assert_eq!(written(&vm("Dissociating", &["root", "d"]), Some(&with), None), [vmis, vms]);
    }

    #[test]
    fn a_request_moves_on_with_what_shows() {
        let dump = |phase: &str| {
            json!([{"name": "d", "phase": phase, "message": "m", "memoryDumpVolume":
                {"claimName": "d", "targetFileName": "f", "startTimestamp": "s", "endTimestamp": "e"}}])
        };
        let nothing = json!([]);
        for (phase, volumes, status, expected) in [
            ("Associating", &["root"][..], &nothing, "Associating"),
            ("Associating", &["root", "d"], &nothing, "InProgress"),
            ("InProgress", &["d"], &dump("MemoryDumpInProgress"), "InProgress"),
            ("InProgress", &["d"], &dump("MemoryDumpCompleted"), "Unmounting"),
            ("InProgress", &["d"], &dump("MemoryDumpFailed"), "Failed"),
            ("Unmounting", &["d"], &dump("Detaching"), "Unmounting"),
            ("Unmounting", &["d"], &nothing, "Completed"),
            ("Dissociating", &["d"], &nothing, "Dissociating"),
            ("Dissociating", &["root"], &nothing, ""),
        ] {
            let vm = vm(phase, volumes);
            let mut after = vm["status"].clone();
            advance(&mut after, &vm, Some(&vmi(volumes, status)));
            assert_eq!(text(&after, "/memoryDumpRequest/phase"), expected, "{phase} {status}");
            if expected == "Failed" {
                assert_eq!(after["memoryDumpRequest"]["message"], "m");
            }
            if expected == "Unmounting" && phase == "InProgress" {
                assert_eq!(after["memoryDumpRequest"]["fileName"], "f");
            }
        }
        assert_eq!(completed(&vm("Unmounting", &[])), Some("d"));
        assert_eq!(completed(&vm("InProgress", &[])), None);
    }
}
