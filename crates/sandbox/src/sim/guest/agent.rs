//! What qemu-guest-agent tells (`VirtualMachineInstanceGuestAgentInfo` and the lists, v1.9).

use apimachinery::quantity;
use apimachinery::tree::{Value, json};

use crate::sim::json::{self, list, text};
use crate::sim::node::draw_text;

/// `guestosinfo`
pub fn information(vmi: &Value, frozen: bool) -> Value {
    let mut information = json!({
        "guestAgentVersion": "9.2.0",
        "hostname": match text(vmi, "/spec/hostname") {
            "" => json::name(vmi),
            name => name,
        },
        "os": system(vmi),
        "timezone": "UTC, 0",
        "fsFreezeStatus": if frozen { "frozen" } else { "thawed" },
        "fsInfo": {"disks": disks(vmi)},
    });
    for (key, value) in [("apiVersion", "kubevirt.io/v1"), ("kind", "VirtualMachineInstanceGuestAgentInfo")] {
        information[key] = value.into();
    }
    information
}

/// What a guest is by the name of its disk's image: id, name, version where the image has no tag, and what stands
/// behind the version.
const SYSTEMS: [(&str, &str, &str, &str); 5] = [
    ("fedora", "Fedora Linux", "41", "Cloud Edition"),
    ("ubuntu", "Ubuntu", "24.04", "LTS"),
    ("debian", "Debian GNU/Linux", "12", "bookworm"),
    ("centos-stream", "CentOS Stream", "9", ""),
    ("opensuse-leap", "openSUSE Leap", "15.6", ""),
];

/// `os`: as the image of the first container disk says, Fedora otherwise.
pub fn system(vmi: &Value) -> Value {
    let image = list(vmi, "/spec/volumes").iter().map(|volume| text(volume, "/containerDisk/image"));
    let image = image.into_iter().find(|image| !image.is_empty()).unwrap_or_default();
    let last = image.rsplit('/').next().unwrap_or_default();
    let (name, tag) = last.split_once([':', '@']).unwrap_or((last, ""));
    let known = SYSTEMS.iter().find(|(id, ..)| name.contains(id)).unwrap_or(&SYSTEMS[0]);
    let (id, name, usual, suffix) = known;
    let tagged = tag.starts_with(|first: char| first.is_ascii_digit()) && image.contains(id);
    let number = if tagged { tag } else { usual };
    let version = if suffix.is_empty() { number.to_owned() } else { format!("{number} ({suffix})") };
    json!({
        "id": id,
        "name": name,
        "prettyName": format!("{name} {version}"),
        "version": version,
        "versionId": number,
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

/// How much of a file system is used, and its size: that of its claim, or of a container disk.
fn filled(vmi: &Value, volume: &Value) -> (u64, u64) {
    let capacity = volume.pointer("/persistentVolumeClaimInfo/capacity/storage").and_then(quantity::units);
    let total = capacity.and_then(|bytes| u64::try_from(bytes).ok()).filter(|bytes| *bytes > 0);
    let total = total.unwrap_or(10_000_000_000);
    let drawn = draw_text(0, &format!("{}/{}", json::uid(vmi), text(volume, "/name")));
    // Between a tenth and two thirds.
    (total / 10 + drawn % (total / 2 + 1), total)
}

/// One file system for each disk that the domain has.
fn disks(vmi: &Value) -> Vec<Value> {
    let volumes = list(vmi, "/status/volumeStatus").iter();
    let attached = volumes.filter(|volume| !text(volume, "/target").is_empty());
    attached
        .enumerate()
        .map(|(index, volume)| {
            let (target, name) = (text(volume, "/target"), text(volume, "/name"));
            let (used, total) = filled(vmi, volume);
            let mount = if index == 0 { "/".to_owned() } else { format!("/mnt/{name}") };
            json!({"diskName": format!("{target}1"), "mountPoint": mount, "fileSystemType": "ext4",
                "usedBytes": used, "totalBytes": total,
                "disk": [{"busType": if target.starts_with("vd") { "virtio" } else { "scsi" }, "serial": name}]})
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_is_what_its_image_says() {
        let of = |image: &str| {
            let vmi = json!({"metadata": {"name": "v"}, "spec": {"hostname": "h", "volumes": [{"name": "c"},
                {"name": "root", "containerDisk": {"image": image}}]}});
            let information = information(&vmi, false);
            assert_eq!(information["hostname"], "h");
            text(&information, "/os/prettyName").to_owned()
        };
        assert_eq!(of("quay.io/containerdisks/fedora:42"), "Fedora Linux 42 (Cloud Edition)");
        assert_eq!(of("quay.io/containerdisks/ubuntu:22.04"), "Ubuntu 22.04 (LTS)");
        assert_eq!(of("registry.example:5000/debian@sha256:0"), "Debian GNU/Linux 12 (bookworm)");
        assert_eq!(of("registry.example/windows:2022"), "Fedora Linux 41 (Cloud Edition)");
        assert_eq!(of(""), "Fedora Linux 41 (Cloud Edition)");
    }

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
