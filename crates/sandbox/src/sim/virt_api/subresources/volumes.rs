//! Adding and removing volumes through virt-api (`pkg/virt-api/rest/volumes.go`, v1.9): the patch of
//! the VM's or VMI's spec, guarded by `test`, or why not.

use apimachinery::Status;
use apimachinery::tree::{Value, json};

use super::refusal::{VMI_NOT_RUNNING, vm_conflict, vmi_conflict};
use crate::sim::cluster::ClusterConfig;
use crate::sim::json::{self, list, text};
use crate::sim::resource::{VMIS, VMS};
use crate::sim::virt_controller::launcher_pod::disk_claim_of;
use crate::sim::write::{Op, Write};

/// `addvolume` or `removevolume`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Change {
    Add,
    Remove,
}

impl Change {
    fn options(self) -> &'static str {
        match self {
            Self::Add => "AddVolumeOptions",
            Self::Remove => "RemoveVolumeOptions",
        }
    }
}

/// Whether the request can be read and the cluster serves it; the options as they are used.
pub fn checked(change: Change, options: &Value, config: &ClusterConfig) -> Result<Value, Status> {
    if !config.gate("HotplugVolumes") && !config.gate("DeclarativeHotplugVolumes") {
        let message = "Enable DeclarativeHotplugVolumes or HotplugVolumes feature gate to use this API.";
        return Err(Status::bad_request(message));
    }
    let missing = |what: &str| Err(Status::bad_request(format!("{} requires {what}", change.options())));
    let mut options = options.clone();
    if text(&options, "/name").is_empty() {
        return missing("name to be set");
    }
    if change == Change::Add {
        if !options["disk"].is_object() {
            return missing("disk to not be nil");
        }
        if !options["volumeSource"].is_object() {
            return missing("VolumeSource to not be nil");
        }
        options["disk"]["name"] = options["name"].clone();
        for source in ["dataVolume", "persistentVolumeClaim"] {
            if let Some(source) = options["volumeSource"].get_mut(source).filter(|one| one.is_object()) {
                source["hotpluggable"] = true.into();
                break;
            }
        }
    }
    Ok(options)
}

/// The write to a VM: its spec, or a request in its status with the older gate `HotplugVolumes`.
pub fn of_vm(vm: &Value, change: Change, options: &Value, config: &ClusterConfig) -> Result<Write, Status> {
    let conflict = |message: String| vm_conflict(json::name(vm), &message);
    verify(list(vm, "/spec/template/spec/volumes"), change, options).map_err(conflict)?;
    if config.gate("HotplugVolumes") {
        let patch = request(vm, change, options).map_err(conflict)?;
        return Ok(Write::to(&VMS, vm, "status", Op::JsonPatch(patch)));
    }
    let patch = patch("/spec/template/spec", &vm["spec"]["template"]["spec"], change, options);
    Ok(Write::to(&VMS, vm, "", Op::JsonPatch(patch)))
}

/// The write to a VMI that no VM owns.
pub fn of_vmi(vmi: &Value, change: Change, options: &Value, config: &ClusterConfig) -> Result<Write, Status> {
    let (namespace, name) = (json::namespace(vmi), json::name(vmi));
    let owned = list(vmi, "/metadata/ownerReferences")
        .iter()
        .any(|owner| owner["controller"] == true && owner["kind"] == VMS.kind);
    if owned && !config.gate("HotplugVolumes") {
        return Err(Status::bad_request(format!("VMI {namespace}/{name} is owned by a VM")));
    }
    if text(vmi, "/status/phase") != "Running" {
        return Err(vmi_conflict(name, VMI_NOT_RUNNING));
    }
    verify(list(vmi, "/spec/volumes"), change, options).map_err(|message| vmi_conflict(name, &message))?;
    Ok(Write::to(&VMIS, vmi, "", Op::JsonPatch(patch("/spec", &vmi["spec"], change, options))))
}

/// The claim or data volume that is to be added.
fn source_name(options: &Value) -> &str {
    disk_claim_of(&options["volumeSource"]).unwrap_or_default()
}

fn verify(volumes: &[Value], change: Change, options: &Value) -> Result<(), String> {
    let name = text(options, "/name");
    for volume in volumes {
        let source = disk_claim_of(volume);
        let named = volume["name"] == name;
        match change {
            Change::Add if named => {
                return Err(format!(
                    "Unable to add volume [{name}] because volume with that name already exists"
                ));
            }
            Change::Add if source.is_some_and(|source| source == source_name(options)) => {
                let source = source_name(options);
                return Err(format!("Unable to add volume source [{source}] because it already exists"));
            }
            Change::Remove if named || source == Some(name) => {
                let hotpluggable = ["dataVolume", "persistentVolumeClaim"]
                    .iter()
                    .any(|kind| volume[*kind]["hotpluggable"] == true);
                let name = text(volume, "/name");
                return if hotpluggable {
                    Ok(())
                } else {
                    Err(format!("Unable to remove volume [{name}] because it is not hotpluggable"))
                };
            }
            _ => {}
        }
    }
    match change {
        Change::Add => Ok(()),
        Change::Remove => Err(format!("Unable to remove volume [{name}] because it does not exist")),
    }
}

/// `ApplyVolumeRequestOnVMISpec`
fn applied(spec: &Value, change: Change, options: &Value) -> (Vec<Value>, Vec<Value>) {
    let (mut volumes, mut disks) =
        (list(spec, "/volumes").to_vec(), list(spec, "/domain/devices/disks").to_vec());
    let name = text(options, "/name");
    match change {
        Change::Add => {
            let mut volume = json!({"name": name});
            for source in ["persistentVolumeClaim", "dataVolume"] {
                if let Some(source_of) = options["volumeSource"].get(source) {
                    volume[source] = source_of.clone();
                    break;
                }
            }
            volumes.push(volume);
            disks.push(options["disk"].clone());
        }
        Change::Remove => {
            volumes.retain(|volume| volume["name"] != name);
            disks.retain(|disk| disk["name"] != name);
        }
    }
    (volumes, disks)
}

/// `generateVolumeRequestPatch`
fn patch(prefix: &str, spec: &Value, change: Change, options: &Value) -> Value {
    let (volumes, disks) = applied(spec, change, options);
    let pairs = [
        (format!("{prefix}/volumes"), "/volumes", volumes),
        (format!("{prefix}/domain/devices/disks"), "/domain/devices/disks", disks),
    ];
    let old = |pointer: &str| spec.pointer(pointer).cloned().unwrap_or(Value::Null);
    let tests = pairs.iter().map(|(path, at, _)| json!({"op": "test", "path": path, "value": old(at)}));
    let changes = pairs.iter().map(|(path, at, new)| {
        let op = if list(spec, at).is_empty() { "add" } else { "replace" };
        json!({"op": op, "path": path, "value": new})
    });
    tests.chain(changes).collect()
}

/// `generateVMVolumeRequestPatch`
fn request(vm: &Value, change: Change, options: &Value) -> Result<Value, String> {
    let path = "/status/volumeRequests";
    let old = list(vm, path);
    let name = text(options, "/name");
    let about = |request: &Value, key: &str| text(request, &format!("/{key}/name")) == name;
    let mut new = Vec::new();
    for request in old {
        let removes = about(request, "removeVolumeOptions");
        match (change, about(request, "addVolumeOptions")) {
            (Change::Add, true) => {
                return Err(format!("add volume request for volume [{name}] already exists"));
            }
            (Change::Add, _) if removes => {
                return Err(format!(
                    "unable to add volume since a remove volume request for volume [{name}] already exists and is still being processed"
                ));
            }
            (Change::Remove, true) => {}
            (Change::Remove, _) if removes => {
                return Err(format!(
                    "a remove volume request for volume [{name}] already exists and is still being processed"
                ));
            }
            _ => new.push(request.clone()),
        }
    }
    new.push(match change {
        Change::Add => json!({"addVolumeOptions": options}),
        Change::Remove => json!({"removeVolumeOptions": options}),
    });
    let tested = vm.pointer(path).cloned().unwrap_or(Value::Null);
    let op = if old.is_empty() { "add" } else { "replace" };
    Ok(json!([{"op": "test", "path": path, "value": tested}, {"op": op, "path": path, "value": new}]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(gates: &[&str]) -> ClusterConfig {
        ClusterConfig::of(
            &json!({"spec": {"configuration": {"developerConfiguration": {"featureGates": gates}}},
            "status": {"observedKubeVirtVersion": "v1.9.0"}}),
        )
    }

    fn vm() -> Value {
        json!({"metadata": {"name": "v", "namespace": "n"}, "spec": {"template": {"spec": {
            "volumes": [{"name": "root", "containerDisk": {}},
                {"name": "data", "persistentVolumeClaim": {"claimName": "c1", "hotpluggable": true}}],
            "domain": {"devices": {"disks": [{"name": "root", "disk": {}}, {"name": "data", "disk": {}}]}}}}}})
    }

    fn add(name: &str, claim: &str) -> Value {
        json!({"name": name, "disk": {"disk": {"bus": "scsi"}},
            "volumeSource": {"persistentVolumeClaim": {"claimName": claim}}})
    }

    #[test]
    fn a_volume_goes_into_the_spec_and_out_again() {
        let config = config(&[]);
        let options = checked(Change::Add, &add("more", "c2"), &config).unwrap();
        let Op::JsonPatch(operations) = of_vm(&vm(), Change::Add, &options, &config).unwrap().op else {
            panic!()
        };
        assert_eq!(operations[0]["value"], vm()["spec"]["template"]["spec"]["volumes"]);
        let patched = apimachinery::patch::json_patch(&vm(), &operations).unwrap();
        let spec = &patched["spec"]["template"]["spec"];
        assert_eq!(
            spec["volumes"][2],
            json!({"name": "more", "persistentVolumeClaim": {"claimName": "c2", "hotpluggable": true}})
        );
        assert_eq!(spec["domain"]["devices"]["disks"][2], json!({"name": "more", "disk": {"bus": "scsi"}}));
        let options = checked(Change::Remove, &json!({"name": "more"}), &config).unwrap();
        let Op::JsonPatch(operations) = of_vm(&patched, Change::Remove, &options, &config).unwrap().op else {
            panic!()
        };
        assert_eq!(apimachinery::patch::json_patch(&patched, &operations).unwrap(), vm());
    }

    #[test]
    fn refusals() {
        let config = config(&[]);
        let message = |change, options: Value| match checked(change, &options, &config)
            .and_then(|options| of_vm(&vm(), change, &options, &config))
        {
            Ok(_) => String::new(),
            Err(status) => {
                format!("{} {}", status.code, status.message.rsplit(": ").next().unwrap_or_default())
            }
        };
        let remove = |name: &str| json!({"name": name});
        for (change, options, expected) in [
            (Change::Add, json!({}), "400 AddVolumeOptions requires name to be set"),
            (Change::Add, json!({"name": "x"}), "400 AddVolumeOptions requires disk to not be nil"),
            (Change::Remove, json!({}), "400 RemoveVolumeOptions requires name to be set"),
            (
                Change::Add,
                add("root", "c9"),
                "409 Unable to add volume [root] because volume with that name already exists",
            ),
            (Change::Add, add("x", "c1"), "409 Unable to add volume source [c1] because it already exists"),
            (
                Change::Remove,
                remove("root"),
                "409 Unable to remove volume [root] because it is not hotpluggable",
            ),
            (Change::Remove, remove("x"), "409 Unable to remove volume [x] because it does not exist"),
            (Change::Remove, remove("c1"), ""),
        ] {
            assert_eq!(message(change, options.clone()), expected, "{options}");
        }
        let mut vmi = json!({"metadata": {"name": "v", "namespace": "n",
            "ownerReferences": [{"controller": true, "kind": "VirtualMachine"}]}, "status": {"phase": "Running"}});
        let options = add("x", "c9");
        assert_eq!(
            of_vmi(&vmi, Change::Add, &options, &config).unwrap_err().message,
            "VMI n/v is owned by a VM"
        );
        json::remove(&mut vmi, &["metadata", "ownerReferences"]);
        assert!(of_vmi(&vmi, Change::Add, &options, &config).is_ok());
    }

    #[test]
    fn the_older_gate_asks_through_the_status() {
        let config = config(&["HotplugVolumes"]);
        let write = of_vm(&vm(), Change::Add, &add("x", "c9"), &config).unwrap();
        assert_eq!(write.subresource, "status");
        let mut asked = vm();
        asked["status"]["volumeRequests"] = json!([{"addVolumeOptions": {"name": "x"}}]);
        let status = of_vm(&asked, Change::Add, &add("x", "c9"), &config).unwrap_err();
        assert!(status.message.ends_with("add volume request for volume [x] already exists"), "{status}");
    }
}
