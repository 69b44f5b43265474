//! Whether a guest can go to another node.

use apimachinery::tree::Value;

use crate::sim::json::{self, list};

/// Why a VMI cannot migrate, and whether its disks would have to be copied
/// (`calculateLiveMigrationCondition`).
pub fn not_migratable(vmi: &Value) -> (Option<(&'static str, String)>, bool) {
    let mut disk_problem = None;
    let moved =
        |name: &Value| list(vmi, "/status/migratedVolumes").iter().any(|one| one["volumeName"] == *name);
    let mut block = !list(vmi, "/status/migratedVolumes").is_empty();
    for volume in list(vmi, "/spec/volumes") {
        let claim = ["/persistentVolumeClaim/claimName", "/dataVolume/name"]
            .iter()
            .find_map(|pointer| volume.pointer(pointer).and_then(Value::as_str));
        if let Some(claim) = claim {
            let info = list(vmi, "/status/volumeStatus")
                .iter()
                .find(|status| status["name"] == volume["name"])
                .and_then(|status| status.get("persistentVolumeClaimInfo"));
            let rule =
                "live migration requires that all PVCs must be shared (using ReadWriteMany access mode)";
            let problem = match info {
                None => {
                    Some(format!("cannot migrate VMI: Unable to determine if PVC {claim} is shared, {rule}"))
                }
                Some(info)
                    if !list(info, "/accessModes").iter().any(|mode| mode == "ReadWriteMany")
                        && !moved(&volume["name"]) =>
                {
                    Some(format!("cannot migrate VMI: PVC {claim} is not shared, {rule}"))
                }
                Some(_) => None,
            };
            if problem.is_some() {
                block = true;
                disk_problem = disk_problem.or(problem);
            }
        } else if volume.get("hostDisk").is_some_and(|disk| disk["shared"] != true) {
            block = true;
            disk_problem = disk_problem.or(Some("cannot migrate VMI with non-shared HostDisk".into()));
        }
    }
    let allowed_bridge =
        json::annotation(vmi, "kubevirt.io/allow-pod-bridge-network-live-migration").is_some();
    let on_pod_network = |interface: &&Value| {
        list(vmi, "/spec/networks")
            .iter()
            .any(|network| network["name"] == interface["name"] && network.get("pod").is_some())
    };
    let stuck = list(vmi, "/spec/domain/devices/interfaces").iter().filter(on_pod_network).any(|interface| {
        let bridge = interface.get("bridge").is_some() && allowed_bridge;
        interface.get("masquerade").is_none() && interface.get("binding").is_none() && !bridge
    });
    if stuck {
        let message = "cannot migrate VMI which does not use masquerade, bridge with \
                       kubevirt.io/allow-pod-bridge-network-live-migration VM annotation or a migratable plugin to \
                       connect to the pod network";
        return (Some(("InterfaceNotLiveMigratable", message.into())), block);
    }
    let devices = ["/spec/domain/devices/hostDevices", "/spec/domain/devices/gpus"];
    if devices.iter().any(|pointer| !list(vmi, pointer).is_empty()) {
        return (Some(("HostDeviceNotLiveMigratable", "VMI uses a PCI host devices".into())), block);
    }
    (disk_problem.map(|problem| ("DisksNotLiveMigratable", problem)), block)
}
