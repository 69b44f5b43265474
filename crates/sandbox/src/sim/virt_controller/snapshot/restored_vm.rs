//! The VM that a restore writes (`generateRestoredVMSpec`, `patchVM`, v1.9), and the claims that it is made of
//! (`CreateRestorePVCDef`).

use apimachinery::tree::{Value, json};

use crate::sim::json::{self, list, map, text};
use crate::sim::virt_controller::vm::run_strategy;

/// On claims and VMs: the restore that wrote them last, as `NAME-UID`.
pub const LAST_RESTORE: &str = "restore.kubevirt.io/lastRestoreUID";
const CONTENT_TYPE: &str = "cdi.kubevirt.io/storage.contentType";
/// Annotations of a claim that are about its old volume.
const OLD: [&str; 6] = [
    "pv.kubernetes.io",
    "volume.beta.kubernetes.io",
    "cdi.kubevirt.io",
    "volume.kubernetes.io",
    "k8s.io/CloneRequest",
    "k8s.io/CloneOf",
];

/// The value of [`LAST_RESTORE`].
pub fn mark(restore: &Value) -> String {
    format!("{}-{}", json::name(restore), json::uid(restore))
}

/// Whether a restore has written an object already.
pub fn is_marked(restore: &Value, object: &Value) -> bool {
    json::annotation(object, LAST_RESTORE) == Some(mark(restore).as_str())
}

/// The name of a restored volume's claim.
pub fn volume_name(restore: &Value, volume: &str, claim: &str) -> String {
    let named = list(restore, "/spec/volumeRestoreOverrides")
        .iter()
        .find(|one| one["volumeName"] == volume)
        .map(|one| text(one, "/restoreName"))
        .filter(|name| !name.is_empty());
    if let Some(name) = named {
        return name.to_owned();
    }
    match text(restore, "/spec/volumeRestorePolicy") {
        "InPlace" => claim.to_owned(),
        "PrefixTargetName" => {
            let name = format!("{}-{volume}", text(restore, "/spec/target/name"));
            name[..name.len().min(63)].trim_end_matches('-').to_owned()
        }
        _ => format!("restore-{}-{volume}", json::uid(restore)),
    }
}

/// The claim of a restored volume. `owner`: the VM, when it is there; `data_volume`: whose claim it is to be.
pub fn claim(
    restore: &Value,
    backup: &Value,
    volume_snapshot: &Value,
    name: &str,
    source_vm: &Value,
    (owner, data_volume): (Option<&Value>, Option<&str>),
) -> Value {
    let old = &backup["persistentVolumeClaim"];
    let mut annotations = map(old, "/metadata/annotations").cloned().unwrap_or_default();
    annotations.retain(|key, _| key == CONTENT_TYPE || OLD.iter().all(|prefix| !key.starts_with(prefix)));
    let mut labels = map(old, "/metadata/labels").cloned().unwrap_or_default();
    labels.insert("restore.kubevirt.io/source-vm-name".into(), json::name(source_vm).into());
    labels.insert("restore.kubevirt.io/source-vm-namespace".into(), json::namespace(source_vm).into());
    annotations.insert(super::RESTORE_NAME.into(), json::name(restore).into());
    annotations.insert(LAST_RESTORE.into(), mark(restore).into());
    let over = list(restore, "/spec/volumeRestoreOverrides")
        .iter()
        .find(|one| one["volumeName"] == backup["volumeName"]);
    for (key, into) in [("/labels", &mut labels), ("/annotations", &mut annotations)] {
        for (key, value) in over.and_then(|over| map(over, key)).into_iter().flatten() {
            into.insert(key.clone(), value.clone());
        }
    }
    let mut resources = old["spec"]["resources"].clone();
    let bytes = |value: &Value| apimachinery::quantity::units(value).unwrap_or(0);
    if let Some(size) = volume_snapshot.pointer("/status/restoreSize")
        && bytes(size) > resources.pointer("/requests/storage").map_or(0, bytes)
    {
        json::put(&mut resources, &["requests", "storage"], size.clone());
    }
    let source = json!({"apiGroup": "snapshot.storage.k8s.io", "kind": "VolumeSnapshot", "name": json::name(volume_snapshot)});
    let mut claim = json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim",
        "metadata": {"name": name, "namespace": json::namespace(restore)},
        "spec": {"accessModes": old["spec"]["accessModes"], "resources": resources,
            "storageClassName": old["spec"]["storageClassName"], "dataSource": source, "dataSourceRef": source}});
    if let Some(mode) = old["spec"].get("volumeMode") {
        claim["spec"]["volumeMode"] = mode.clone();
    }
    let owned = text(restore, "/spec/volumeOwnershipPolicy") != "None";
    if let Some(data_volume) = data_volume {
        annotations.insert(crate::sim::storage::data_volumes::POPULATED_FOR.into(), data_volume.into());
    } else if let Some(owner) = owner.filter(|_| owned) {
        claim["metadata"]["ownerReferences"] = json!([owner_of(owner)]);
    }
    claim["metadata"]["annotations"] = annotations.into();
    claim["metadata"]["labels"] = labels.into();
    claim
}

/// A reference to a VM that owns.
pub fn owner_of(vm: &Value) -> Value {
    json!({"apiVersion": "kubevirt.io/v1", "kind": "VirtualMachine", "name": json::name(vm),
        "uid": json::uid(vm), "controller": true, "blockOwnerDeletion": true})
}

/// The `DataVolume` template of a name.
pub fn template<'a>(vm: &'a Value, name: &str) -> Option<&'a Value> {
    list(vm, "/spec/dataVolumeTemplates").iter().find(|one| text(one, "/metadata/name") == name)
}

/// The VM as it is to be. `restores` is `status.restores`; `target` is the VM that is there.
pub fn restored(restore: &Value, snapshot_vm: &Value, target: Option<&Value>) -> Value {
    let restores = list(restore, "/status/restores");
    let mut spec = snapshot_vm["spec"].clone();
    let mut volumes = Vec::new();
    for volume in list(snapshot_vm, "/spec/template/spec/volumes") {
        if volume.get("memoryDump").is_some() {
            continue;
        }
        let done = restores.iter().find(|one| one["volumeName"] == volume["name"]);
        let mut volume = volume.clone();
        if let Some(done) = done {
            let old = text(&volume, "/dataVolume/name").to_owned();
            let new = text(done, "/dataVolumeName");
            if old.is_empty() {
                json::put(
                    &mut volume,
                    &["persistentVolumeClaim", "claimName"],
                    done["persistentVolumeClaimName"].clone(),
                );
            } else if !new.is_empty() && template(snapshot_vm, &old).is_some() {
                json::put(&mut volume, &["dataVolume", "name"], new);
                for one in spec["dataVolumeTemplates"].as_array_mut().into_iter().flatten() {
                    if text(one, "/metadata/name") == old {
                        one["metadata"]["name"] = new.into();
                    }
                }
            } else {
                volume = json!({"name": volume["name"],
                    "persistentVolumeClaim": {"claimName": done["persistentVolumeClaimName"]}});
            }
        }
        volumes.push(volume);
    }
    if !volumes.is_empty() {
        json::put(&mut spec, &["template", "spec", "volumes"], volumes);
    }
    let mut vm = if let Some(target) = target {
        let mut vm = target.clone();
        if target.pointer("/spec/running").is_some_and(|running| !running.is_null()) {
            spec["running"] = false.into();
            json::remove(&mut spec, &["runStrategy"]);
        } else {
            spec["runStrategy"] = run_strategy(target).unwrap_or("Halted").into();
            json::remove(&mut spec, &["running"]);
        }
        vm["spec"] = spec;
        vm
    } else {
        if spec.get("running").is_some_and(|running| !running.is_null()) {
            spec["running"] = false.into();
        } else {
            spec["runStrategy"] = "Halted".into();
        }
        let mut metadata =
            json!({"name": restore["spec"]["target"]["name"], "namespace": json::namespace(restore)});
        for key in ["labels", "annotations"] {
            if let Some(value) = snapshot_vm["metadata"].get(key) {
                metadata[key] = value.clone();
            }
        }
        json!({"apiVersion": "kubevirt.io/v1", "kind": "VirtualMachine", "metadata": metadata, "spec": spec})
    };
    json::put(&mut vm, &["metadata", "annotations", LAST_RESTORE], mark(restore));
    vm
}

/// Applies the patches of a restore, each an RFC 6902 operation as text. As with the library that `KubeVirt` uses,
/// what is replaced need not be there; and what is empty afterwards is left out, as Go's `omitempty` does.
///
/// # Errors
/// Which patch does not fit.
pub fn patched(vm: &Value, patches: &[Value]) -> Result<Value, String> {
    let mut patched = vm.clone();
    for patch in patches {
        let text_of = patch.as_str().unwrap_or_default();
        let mut operation: Value = serde_json::from_str(text_of)
            .map_err(|error| format!("cannot decode vm patches {text_of}: {error}"))?;
        let path = text(&operation, "/path").to_owned();
        let parent = path.rsplit_once('/').map_or("", |(parent, _)| parent);
        if operation["op"] == "replace"
            && patched.pointer(&path).is_none()
            && patched.pointer(parent).is_some_and(Value::is_object)
        {
            operation["op"] = "add".into();
        }
        patched = apimachinery::patch::json_patch(&patched, &json!([operation]))
            .map_err(|error| format!("failed to apply patch for VM {text_of}: {error}"))?;
        if patched.pointer(&path) == Some(&Value::from(String::new()))
            && let Some(Value::Object(fields)) = patched.pointer_mut(parent)
        {
            let key = path.rsplit('/').next().unwrap_or_default().replace("~1", "/").replace("~0", "~");
            fields.remove(&key);
        }
    }
    Ok(patched)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn restore(policy: &str) -> Value {
        json!({"metadata": {"name": "r", "namespace": "n", "uid": "ru"}, "spec": {"target": {"name": "t"},
            "volumeRestorePolicy": policy}, "status": {"restores": [
                {"volumeName": "root", "persistentVolumeClaimName": "new-root", "dataVolumeName": "new-root"},
                {"volumeName": "data", "persistentVolumeClaimName": "new-data"}]}})
    }

    fn snapshot_vm() -> Value {
        json!({"metadata": {"name": "v", "namespace": "n", "uid": "vu", "labels": {"a": "b"}}, "spec": {
            "runStrategy": "Always", "dataVolumeTemplates": [{"metadata": {"name": "v-root"}, "spec": {}}],
            "template": {"spec": {"domain": {"devices": {"interfaces": [{"name": "default"}]}, "firmware": {"uuid": "old"}},
                "volumes": [{"name": "root", "dataVolume": {"name": "v-root"}},
                    {"name": "data", "persistentVolumeClaim": {"claimName": "v-data"}},
                    {"name": "dump", "memoryDump": {"claimName": "d"}}, {"name": "init", "cloudInitNoCloud": {}}]}}}})
    }

    #[test]
    fn names_follow_override_and_policy() {
        for (policy, name) in [
            ("", "restore-ru-root"),
            ("RandomizeNames", "restore-ru-root"),
            ("InPlace", "c"),
            ("PrefixTargetName", "t-root"),
        ] {
            assert_eq!(volume_name(&restore(policy), "root", "c"), name);
        }
        let mut named = restore("InPlace");
        named["spec"]["volumeRestoreOverrides"] = json!([{"volumeName": "root", "restoreName": "mine"}]);
        assert_eq!(volume_name(&named, "root", "c"), "mine");
    }

    #[test]
    fn a_new_vm_is_halted_and_an_old_one_keeps_its_strategy() {
        let new = restored(&restore(""), &snapshot_vm(), None);
        assert_eq!((text(&new, "/metadata/name"), text(&new, "/spec/runStrategy")), ("t", "Halted"));
        assert_eq!(text(&new, "/metadata/labels/a"), "b");
        assert_eq!(
            new["spec"]["template"]["spec"]["volumes"],
            json!([{"name": "root", "dataVolume": {"name": "new-root"}},
                {"name": "data", "persistentVolumeClaim": {"claimName": "new-data"}}, {"name": "init", "cloudInitNoCloud": {}}])
        );
        assert_eq!(new["spec"]["dataVolumeTemplates"][0]["metadata"]["name"], "new-root");
        let target = json!({"metadata": {"name": "v", "uid": "vu"}, "spec": {"runStrategy": "Manual"}});
        let old = restored(&restore(""), &snapshot_vm(), Some(&target));
        assert_eq!(text(&old, "/spec/runStrategy"), "Manual");
        assert!(is_marked(&restore(""), &old) && !is_marked(&restore(""), &target));
    }

    #[test]
    fn patches_may_replace_what_is_not_there_and_drop_what_is_empty() {
        let patches = [
            json!(
                r#"{"op":"replace","path":"/spec/template/spec/domain/devices/interfaces/0/macAddress","value":"02:00:00:00:00:01"}"#
            ),
            json!(r#"{"op":"replace","path":"/spec/template/spec/domain/firmware/uuid","value":""}"#),
            json!(r#"{"op":"remove","path":"/metadata/labels/a"}"#),
        ];
        let vm = patched(&snapshot_vm(), &patches).unwrap();
        let domain = &vm["spec"]["template"]["spec"]["domain"];
        assert_eq!(domain["devices"]["interfaces"][0]["macAddress"], "02:00:00:00:00:01");
        assert_eq!((&domain["firmware"], &vm["metadata"]["labels"]), (&json!({}), &json!({})));
        assert!(patched(&snapshot_vm(), &[json!(r#"{"op":"remove","path":"/spec/nothing"}"#)]).is_err());
        assert!(patched(&snapshot_vm(), &[json!("{")]).is_err());
    }

    #[test]
    fn a_claim_has_the_source_the_size_and_none_of_the_old_volume() {
        let backup = json!({"volumeName": "root", "persistentVolumeClaim": {"metadata": {"labels": {"l": "1"}, "annotations": {
            "pv.kubernetes.io/bind-completed": "yes", "cdi.kubevirt.io/storage.contentType": "kubevirt", "mine": "1"}},
            "spec": {"accessModes": ["ReadWriteMany"], "storageClassName": "standard", "volumeMode": "Block",
                "resources": {"requests": {"storage": "1Gi"}}, "volumeName": "pvc-old"}}});
        let snapshot = json!({"metadata": {"name": "vs"}, "status": {"restoreSize": "2Gi"}});
        let claim = claim(&restore(""), &backup, &snapshot, "c", &snapshot_vm(), (None, None));
        let keys: Vec<_> = map(&claim, "/metadata/annotations")
            .unwrap()
            .keys()
            .map(apimachinery::tree::Text::as_str)
            .collect();
        assert_eq!(
            keys,
            ["cdi.kubevirt.io/storage.contentType", "mine", LAST_RESTORE, super::super::RESTORE_NAME]
        );
        assert_eq!(claim["spec"]["resources"]["requests"]["storage"], "2Gi");
        assert_eq!((text(&claim, "/spec/dataSource/name"), claim["spec"].get("volumeName")), ("vs", None));
    }
}
