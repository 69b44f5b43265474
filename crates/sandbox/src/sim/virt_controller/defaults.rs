//! Defaults that virt-controller and virt-api both give a VMI spec (`pkg/util`, `pkg/network/vmispec`).

use apimachinery::tree::{Value, json};

use crate::sim::json::{list, slot, text};

/// A disk for every volume that has none (`SetDefaultVolumeDisk`).
pub fn disks_for_volumes(spec: &mut Value) {
    let used: Vec<String> = ["/domain/devices/disks", "/domain/devices/filesystems"]
        .iter()
        .flat_map(|pointer| list(spec, pointer))
        .map(|device| text(device, "/name").to_owned())
        .collect();
    let missing: Vec<Value> = list(spec, "/volumes")
        .iter()
        .filter(|volume| volume.get("memoryDump").is_none())
        .map(|volume| text(volume, "/name"))
        .filter(|name| !used.iter().any(|one| one == name))
        .map(|name| json!({"name": name}))
        .collect();
    append(spec, &["domain", "devices", "disks"], missing);
}

/// The pod network on a bridge when nothing is said about networks (`SetDefaultNetworkInterface`).
pub fn pod_network(spec: &mut Value) {
    let automatic = spec.pointer("/domain/devices/autoattachPodInterface") != Some(&Value::Bool(false));
    if !automatic
        || !list(spec, "/networks").is_empty()
        || !list(spec, "/domain/devices/interfaces").is_empty()
    {
        return;
    }
    append(spec, &["domain", "devices", "interfaces"], vec![json!({"name": "default", "bridge": {}})]);
    append(spec, &["networks"], vec![json!({"name": "default", "pod": {}})]);
}

fn append(object: &mut Value, path: &[&str], items: Vec<Value>) {
    if items.is_empty() {
        return;
    }
    let at = slot(object, path);
    match at {
        Value::Array(list) => list.extend(items),
        other => *other = items.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_stays_and_what_is_missing_is_added() {
        let mut spec = json!({"volumes": [{"name": "a"}, {"name": "b"}, {"name": "m", "memoryDump": {}}],
            "domain": {"devices": {"disks": [{"name": "a", "disk": {}}]}}});
        disks_for_volumes(&mut spec);
        assert_eq!(spec["domain"]["devices"]["disks"], json!([{"name": "a", "disk": {}}, {"name": "b"}]));
        for (devices, networks, added) in [
            (json!({}), json!([]), true),
            (json!({"autoattachPodInterface": false}), json!([]), false),
            (json!({"interfaces": [{"name": "x"}]}), json!([{"name": "x"}]), false),
        ] {
            let mut spec = json!({"domain": {"devices": devices}, "networks": networks});
            let before = spec.clone();
            pod_network(&mut spec);
            assert_eq!(spec != before, added, "{before}");
        }
    }
}
