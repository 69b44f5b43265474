//! What qemu-guest-agent tells (`VirtualMachineInstanceGuestAgentInfo` and the lists, v1.9).

use serde_json::{Value, json};

use crate::sim::json::{self, list, text};

/// `guestosinfo`
pub fn information(vmi: &Value, frozen: bool) -> Value {
    let mut information = json!({
        "guestAgentVersion": "9.2.0",
        "hostname": json::name(vmi),
        "os": system(),
        "timezone": "UTC, 0",
        "fsFreezeStatus": if frozen { "frozen" } else { "thawed" },
        "fsInfo": {"disks": disks(vmi)},
    });
    for (key, value) in [("apiVersion", "kubevirt.io/v1"), ("kind", "VirtualMachineInstanceGuestAgentInfo")] {
        information[key] = value.into();
    }
    information
}

/// `status.guestOSInfo`
pub fn system() -> Value {
    json!({
        "id": "fedora",
        "name": "Fedora Linux",
        "prettyName": "Fedora Linux 41 (Cloud Edition)",
        "version": "41 (Cloud Edition)",
        "versionId": "41",
        "kernelRelease": "6.12.0-sandbox",
        "kernelVersion": "#1 SMP PREEMPT_DYNAMIC",
        "machine": "x86_64",
    })
}

/// `userlist`: nobody is logged in but at the serial console.
pub fn users() -> Value {
    json!({"apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstanceGuestOSUserList", "metadata": {},
        "items": []})
}

/// `filesystemlist`
pub fn file_systems(vmi: &Value) -> Value {
    json!({"apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstanceFileSystemList", "metadata": {},
        "items": disks(vmi)})
}

/// One file system for each disk that the domain has.
fn disks(vmi: &Value) -> Vec<Value> {
    let volumes = list(vmi, "/status/volumeStatus").iter();
    let attached = volumes.filter(|volume| !text(volume, "/target").is_empty());
    attached
        .enumerate()
        .map(|(index, volume)| {
            let (target, name) = (text(volume, "/target"), text(volume, "/name"));
            let mount = if index == 0 { "/".to_owned() } else { format!("/mnt/{name}") };
            json!({"diskName": format!("{target}1"), "mountPoint": mount, "fileSystemType": "ext4",
                "usedBytes": 1_500_000_000_u64, "totalBytes": 10_000_000_000_u64,
                "disk": [{"busType": if target.starts_with("vd") { "virtio" } else { "scsi" }, "serial": name}]})
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_disk_is_the_root_and_detached_ones_do_not_show() {
        let vmi = json!({"metadata": {"name": "v"}, "status": {"volumeStatus": [
            {"name": "root", "target": "vda"}, {"name": "gone", "target": ""}, {"name": "data", "target": "sda"}]}});
        let mounts: Vec<_> = list(&file_systems(&vmi), "/items")
            .iter()
            .map(|one| text(one, "/mountPoint").to_owned())
            .collect();
        assert_eq!(mounts, ["/", "/mnt/data"]);
        assert_eq!(information(&vmi, true)["fsFreezeStatus"], "frozen");
    }
}
