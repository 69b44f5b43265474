//! From the volumes of a VM to those of its VMI (`pkg/storage/hotplug/hotplug.go:51-139`, VM:808-847): one patch with
//! all differences where volumes are declared, one call for each request with the older gate.

use apimachinery::tree::{Value, json};

use super::{entry, is_declared};
use crate::sim::json::{self, list, text};
use crate::sim::resource::VMIS;
use crate::sim::write::{Op, Write};

const DISKS: &str = "/domain/devices/disks";

fn named<'v>(all: &'v [Value], name: &Value) -> Option<&'v Value> {
    all.iter().find(|one| one["name"] == *name)
}

/// The patch that brings the hotplugged volumes of a VM to its VMI. A volume whose name has left comes back only when its
/// old status entry has gone.
pub fn patch(vm: &Value, vmi: &Value) -> Option<Write> {
    let template = vm.pointer("/spec/template/spec")?;
    let moves = text(vm, "/spec/updateVolumesStrategy") == "Migration";
    if text(vmi, "/status/phase") != "Running" || json::is_deleting(vmi) || moves {
        return None;
    }
    let (wanted, have) = (list(template, "/volumes"), list(&vmi["spec"], "/volumes"));
    let mut volumes: Vec<Value> = have
        .iter()
        .filter(|volume| !is_declared(volume) || named(wanted, &volume["name"]) == Some(volume))
        .cloned()
        .collect();
    let mut disks: Vec<Value> = list(&vmi["spec"], DISKS).to_vec();
    let left = |name: &Value| named(&volumes, name).is_none() && named(have, name).is_some();
    disks.retain(|disk| !left(&disk["name"]) || disk.get("cdrom").is_some());
    for volume in wanted.iter().filter(|volume| is_declared(volume)) {
        let name = &volume["name"];
        let waits = entry(vmi, name.as_str().unwrap_or_default())
            .is_some_and(|status| status["hotplugVolume"].is_object());
        if named(&volumes, name).is_some() || named(have, name).is_some() || waits {
            continue;
        }
        volumes.push(volume.clone());
        if named(&disks, name).is_none()
            && let Some(disk) = named(list(template, DISKS), name)
        {
            disks.push(disk.clone());
        }
    }
    changed(vmi, volumes, disks)
}

/// Both lists, guarded by what they were.
fn changed(vmi: &Value, volumes: Vec<Value>, disks: Vec<Value>) -> Option<Write> {
    let old_disks = list(&vmi["spec"], DISKS);
    if list(&vmi["spec"], "/volumes") == volumes.as_slice() && old_disks == disks.as_slice() {
        return None;
    }
    let [test_volumes, replace_volumes] =
        Write::test_and_replace("/spec/volumes", &vmi["spec"]["volumes"], &volumes.into());
    let path = "/spec/domain/devices/disks";
    let [test_disks, replace_disks] =
        Write::test_and_replace(path, vmi["spec"].pointer(DISKS).unwrap_or(&Value::Null), &disks.into());
    let patch = json!([test_volumes, test_disks, replace_volumes, replace_disks]);
    Some(Write::to(&VMIS, vmi, "", Op::JsonPatch(patch)))
}

/// One request of `status.volumeRequests`.
#[derive(Clone, Debug, PartialEq)]
pub struct Request<'a> {
    /// `addvolume` or `removevolume`
    pub verb: &'static str,
    pub options: &'a Value,
    /// The VMI has not got it yet.
    pub is_due: bool,
}

/// The requests in their order.
pub fn requests<'a>(vm: &'a Value, vmi: Option<&Value>) -> Vec<Request<'a>> {
    let running = vmi.filter(|vmi| text(vmi, "/status/phase") == "Running");
    let has = |options: &Value| {
        running.is_some_and(|vmi| named(list(&vmi["spec"], "/volumes"), &options["name"]).is_some())
    };
    list(vm, "/status/volumeRequests")
        .iter()
        .filter_map(|request| {
            if let Some(options) = request.get("addVolumeOptions").filter(|one| one.is_object()) {
                Some(Request { verb: "addvolume", options, is_due: running.is_some() && !has(options) })
            } else {
                let options = request.get("removeVolumeOptions").filter(|one| one.is_object())?;
                Some(Request { verb: "removevolume", options, is_due: has(options) })
            }
        })
        .collect()
}

/// The template with a request in it (`ApplyVolumeRequestOnVMISpec`); `None`: it is in it already.
pub fn applied(template: &Value, request: &Request<'_>) -> Option<Value> {
    let name = &request.options["name"];
    let (mut volumes, mut disks) = (list(template, "/volumes").to_vec(), list(template, DISKS).to_vec());
    if request.verb == "addvolume" {
        if named(&volumes, name).is_some() {
            return None;
        }
        let source = request.options["volumeSource"].as_object()?;
        let mut volume = json!({"name": name});
        for (kind, value) in source {
            volume[kind] = value.clone();
        }
        volumes.push(volume);
        disks.push(request.options["disk"].clone());
    } else {
        named(&volumes, name)?;
        volumes.retain(|volume| volume["name"] != *name);
        disks.retain(|disk| disk["name"] != *name);
    }
    let mut template = template.clone();
    template["volumes"] = volumes.into();
    json::put(&mut template, &["domain", "devices", "disks"], disks);
    Some(template)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn volume(name: &str, claim: &str) -> Value {
        json!({"name": name, "persistentVolumeClaim": {"claimName": claim, "hotpluggable": true}})
    }

    fn vm(volumes: Vec<Value>) -> Value {
        let mut disks: Vec<Value> =
            volumes.iter().map(|one| json!({"name": one["name"], "disk": {}})).collect();
        disks.insert(0, json!({"name": "root", "disk": {}}));
        let mut all = vec![json!({"name": "root", "containerDisk": {}})];
        all.extend(volumes);
        json!({"spec": {"template": {"spec": {"volumes": all, "domain": {"devices": {"disks": disks}}}}}})
    }

    fn vmi(volumes: Vec<Value>, status: &Value) -> Value {
        let spec = vm(volumes)["spec"]["template"]["spec"].clone();
        json!({"metadata": {"name": "v", "namespace": "n"}, "spec": spec, "status": {"phase": "Running", "volumeStatus": status}})
    }

    fn names(write: Option<Write>) -> Vec<String> {
        let Some(Op::JsonPatch(patch)) = write.map(|write| write.op) else { return vec!["nothing".into()] };
        assert_eq!(patch[0]["op"], "test");
        assert_eq!(patch[2]["path"], "/spec/volumes");
        list(&patch[2], "/value").iter().map(|one| text(one, "/name").to_owned()).collect()
    }

    #[test]
    fn all_differences_are_one_patch() {
        let (a, b, c) = (volume("a", "a"), volume("b", "b"), volume("c", "c"));
        let patch = patch(&vm(vec![b.clone(), c.clone()]), &vmi(vec![a, b.clone()], &json!([])));
        assert_eq!(names(patch), ["root", "b", "c"]);
        assert_eq!(names(super::patch(&vm(vec![b.clone()]), &vmi(vec![b], &json!([])))), ["nothing"]);
    }

    #[test]
    fn a_name_comes_back_when_its_old_entry_has_gone() {
        let (old, new) = (volume("a", "one"), volume("a", "two"));
        let entry = json!([{"name": "a", "hotplugVolume": {}, "phase": "Detaching"}]);
        assert_eq!(names(patch(&vm(vec![new.clone()]), &vmi(vec![old], &entry))), ["root"], "first it goes");
        assert_eq!(names(patch(&vm(vec![new.clone()]), &vmi(vec![], &entry))), ["nothing"]);
        assert_eq!(names(patch(&vm(vec![new]), &vmi(vec![], &json!([])))), ["root", "a"]);
    }

    #[test]
    fn nothing_is_taken_over_while_the_guest_does_not_run_or_volumes_migrate() {
        let wanted = vm(vec![volume("a", "a")]);
        let mut starting = vmi(vec![], &json!([]));
        starting["status"]["phase"] = "Scheduled".into();
        assert_eq!(names(patch(&wanted, &starting)), ["nothing"]);
        let mut moving = wanted;
        moving["spec"]["updateVolumesStrategy"] = "Migration".into();
        assert_eq!(names(patch(&moving, &vmi(vec![], &json!([])))), ["nothing"]);
    }

    #[test]
    fn requests_of_the_older_gate_are_carried_out_one_by_one() {
        let mut asked = vm(vec![]);
        asked["status"]["volumeRequests"] = json!([
            {"addVolumeOptions": {"name": "a", "disk": {"name": "a"}, "volumeSource": {"persistentVolumeClaim": {"claimName": "a"}}}},
            {"removeVolumeOptions": {"name": "root"}}]);
        let guest = vmi(vec![], &json!([]));
        let all = requests(&asked, Some(&guest));
        assert_eq!(
            all.iter().map(|one| (one.verb, one.is_due)).collect::<Vec<_>>(),
            [("addvolume", true), ("removevolume", true)]
        );
        let with = applied(&asked["spec"]["template"]["spec"], &all[0]).unwrap();
        assert_eq!(with["volumes"][1]["persistentVolumeClaim"]["claimName"], "a");
        assert_eq!(applied(&with, &all[0]), None);
        assert_eq!(list(&applied(&with, &all[1]).unwrap(), "/volumes").len(), 1);
        assert!(requests(&asked, None).iter().all(|one| !one.is_due));
    }
}
