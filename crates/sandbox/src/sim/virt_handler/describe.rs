//! What a VMI says about its guest (`updateVMIStatus` and its like).

use apimachinery::tree::{Value, json};
use jiff::Timestamp;

use super::migratable::not_migratable;
use crate::sim::guest::{self, Guest};
use crate::sim::json::{self, list, put, text, time, update_condition};
use crate::sim::launcher::Domain;
use crate::sim::virt_controller::vmi::record_phase;

/// The machine type that libvirt makes of the alias `q35`.
pub const CANONICAL_MACHINE: &str = "pc-q35-rhel9.6.0";

/// The VMI as it should be, if that differs (`updateVMIStatus`).
pub fn decide(old: &Value, pod: &Value, domain: Domain, now: Timestamp) -> Option<Value> {
    let phase = text(old, "/status/phase");
    if !matches!(phase, "Scheduled" | "Running") {
        return None;
    }
    let mut vmi = old.clone();
    match domain {
        Domain::Off { crashed } | Domain::Gone { crashed } => {
            put(&mut vmi, &["status", "phase"], if crashed { "Failed" } else { "Succeeded" });
        }
        Domain::Running => describe_guest(&mut vmi, pod, now),
        Domain::Moved => return None,
    }
    record_phase(&mut vmi, now);
    (vmi != *old).then_some(vmi)
}

/// What the guest was asked to do and does: a pause, a freeze (`updatePausedConditions`,
/// `updateFSFreezeStatus`).
pub fn describe_state(vmi: &mut Value, guest: &Guest, now: Timestamp) {
    if text(vmi, "/status/phase") != "Running" {
        return;
    }
    guest.nics.describe(vmi);
    let mut conditions = list(vmi, "/status/conditions").to_vec();
    if guest.io_error.is_some() {
        let message = "VMI was paused, low-level IO error detected";
        update_condition(
            &mut conditions,
            json::new_condition("Paused", "True", "PausedIOError", message, now),
        );
    } else if guest.paused {
        let message = "VMI was paused by user";
        update_condition(
            &mut conditions,
            json::new_condition("Paused", "True", "PausedByUser", message, now),
        );
    } else {
        json::remove_condition(&mut conditions, "Paused");
    }
    put(vmi, &["status", "conditions"], conditions);
    if guest.frozen(now).is_some() {
        put(vmi, &["status", "fsFreezeStatus"], "frozen");
    } else {
        json::remove(vmi, &["status", "fsFreezeStatus"]);
    }
}

/// The launcher's `SELinux` context, on a node that has no `SELinux` (`updateSELinuxContext`): known as soon as there
/// is a launcher.
pub fn confine(vmi: &mut Value) {
    if text(vmi, "/status/selinuxContext").is_empty() {
        put(vmi, &["status", "selinuxContext"], "none");
    }
}

fn describe_guest(vmi: &mut Value, pod: &Value, now: Timestamp) {
    put(vmi, &["status", "phase"], "Running");
    put(
        vmi,
        &["status", "machine"],
        json!({"type": match text(vmi, "/spec/domain/machine/type") {
            "" | "q35" => CANONICAL_MACHINE,
            exact => exact,
        }}),
    );
    confine(vmi);
    let interfaces = interfaces(vmi, text(pod, "/status/podIP"));
    if !interfaces.is_empty() {
        put(vmi, &["status", "interfaces"], interfaces);
    }
    let volumes = volume_targets(vmi);
    if !volumes.is_empty() {
        put(vmi, &["status", "volumeStatus"], volumes);
    }
    let mut conditions = list(vmi, "/status/conditions").to_vec();
    let (why_not, block) = not_migratable(vmi);
    put(vmi, &["status", "migrationMethod"], if block { "BlockMigration" } else { "LiveMigration" });
    let mut set = |kind: &str, denial: Option<(&str, &str)>| {
        let mut condition = json!({"type": kind, "status": if denial.is_some() { "False" } else { "True" },
            "lastProbeTime": null, "lastTransitionTime": time(now)});
        if let Some((reason, message)) = denial {
            condition["reason"] = reason.into();
            condition["message"] = message.into();
        }
        update_condition(&mut conditions, condition);
    };
    let denial = why_not.as_ref().map(|(reason, message)| (*reason, message.as_str()));
    set("LiveMigratable", denial);
    // Local disks do not count here: storage migration takes them along.
    set(
        "StorageLiveMigratable",
        denial
            .filter(|(reason, _)| *reason != "DisksNotLiveMigratable")
            .map(|(_, message)| ("NotMigratable", message)),
    );
    if guest::manner(vmi) != "no-agent" {
        set("AgentConnected", None);
    }
    put(vmi, &["status", "conditions"], conditions);
}

fn interfaces(vmi: &Value, pod_ip: &str) -> Vec<Value> {
    list(vmi, "/spec/domain/devices/interfaces")
        .iter()
        .map(|interface| {
            let name = text(interface, "/name");
            let known = list(vmi, "/status/interfaces").iter().find(|one| one["name"] == name);
            let mut status = known.cloned().unwrap_or_else(|| json!({"name": name}));
            let on_pod_network = list(vmi, "/spec/networks")
                .iter()
                .any(|network| network["name"] == name && network.get("pod").is_some());
            status["infoSource"] = "domain, guest-agent".into();
            status["linkState"] = "up".into();
            status["queueCount"] = 1.into();
            if on_pod_network && !pod_ip.is_empty() {
                status["ipAddress"] = pod_ip.into();
                status["ipAddresses"] = json!([pod_ip]);
            }
            status
        })
        .collect()
}

/// Every volume with the guest's name of its disk: `vda`, `sda`, …, counted by bus.
pub fn volume_targets(vmi: &Value) -> Vec<Value> {
    let mut used = std::collections::HashMap::<&str, u8>::new();
    let mut targets = std::collections::HashMap::<&str, String>::new();
    for disk in list(vmi, "/spec/domain/devices/disks") {
        let bus = ["disk", "cdrom", "lun"]
            .iter()
            .map(|kind| text(disk, &format!("/{kind}/bus")))
            .find(|bus| !bus.is_empty());
        let prefix = if matches!(bus, Some("sata" | "scsi" | "usb")) { "sd" } else { "vd" };
        let count = used.entry(prefix).or_default();
        targets.insert(text(disk, "/name"), format!("{prefix}{}", char::from(b'a' + *count % 26)));
        *count += 1;
    }
    list(vmi, "/status/volumeStatus")
        .iter()
        .map(|volume| {
            let mut volume = volume.clone();
            if let Some(target) =
                targets.get(text(&volume, "/name")).filter(|_| volume.get("hotplugVolume").is_none())
            {
                volume["target"] = target.as_str().into();
            }
            volume
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vmi(phase: &str, spec: impl Into<Value>) -> Value {
        let spec: Value = spec.into();
        json!({"metadata": {"name": "v", "namespace": "n"}, "spec": spec,
            "status": {"phase": phase, "volumeStatus": list(&spec, "/volumes").iter()
                .map(|volume| json!({"name": volume["name"], "target": ""})).collect::<Value>()}})
    }

    fn decided(phase: &str, spec: impl Into<Value>, domain: Domain) -> Option<Value> {
        decide(&vmi(phase, spec), &json!({"status": {"podIP": "10.128.0.9"}}), domain, Timestamp::UNIX_EPOCH)
    }

    #[test]
    fn the_phase_follows_the_domain() {
        for (phase, domain, expected) in [
            ("Scheduled", Domain::Running, Some("Running")),
            ("Running", Domain::Off { crashed: false }, Some("Succeeded")),
            ("Running", Domain::Off { crashed: true }, Some("Failed")),
            ("Succeeded", Domain::Running, None),
            ("Scheduling", Domain::Running, None),
        ] {
            let got = decided(phase, json!({}), domain);
            assert_eq!(got.as_ref().map(|vmi| text(vmi, "/status/phase")), expected, "{phase} {domain:?}");
        }
    }

    #[test]
    fn a_pause_and_a_freeze_show_and_go() {
        let now = Timestamp::UNIX_EPOCH;
        let mut vmi = vmi("Running", json!({}));
        let mut guest = Guest::of(&json!({"spec": {"startStrategy": "Paused"}}));
        guest.freeze(Timestamp::MAX);
        describe_state(&mut vmi, &guest, now);
        let paused = json::condition(&vmi, "/status/conditions", "Paused").unwrap();
        assert_eq!(
            (text(paused, "/reason"), text(paused, "/message")),
            ("PausedByUser", "VMI was paused by user")
        );
        assert_eq!(vmi["status"]["fsFreezeStatus"], "frozen");
        describe_state(&mut vmi, &Guest::default(), now);
        assert_eq!(json::condition(&vmi, "/status/conditions", "Paused"), None);
        assert_eq!(vmi["status"].get("fsFreezeStatus"), None);
    }

    #[test]
    fn a_running_guest_is_described_once() {
        let spec = json!({
            "volumes": [{"name": "root", "containerDisk": {}}, {"name": "data", "containerDisk": {}}, {"name": "cd"}],
            "networks": [{"name": "default", "pod": {}}],
            "domain": {"devices": {"interfaces": [{"name": "default", "masquerade": {}}],
                "disks": [{"name": "data", "disk": {"bus": "virtio"}}, {"name": "root", "disk": {}}, {"name": "cd", "cdrom": {"bus": "sata"}}]}}});
        let first = decided("Scheduled", spec, Domain::Running).unwrap();
        let targets: Vec<_> =
            list(&first, "/status/volumeStatus").iter().map(|one| text(one, "/target")).collect();
        assert_eq!(targets, ["vdb", "vda", "sda"]);
        assert_eq!(text(&first, "/status/interfaces/0/ipAddress"), "10.128.0.9");
        assert!(json::has_condition(&first, "LiveMigratable", "True"));
        let again = decide(
            &first,
            &json!({"status": {"podIP": "10.128.0.9"}}),
            Domain::Running,
            Timestamp::UNIX_EPOCH,
        );
        assert_eq!(again, None);
    }

    #[test]
    fn why_a_vmi_cannot_migrate() {
        let pod_network = |interface: Value| {
            json!({"networks": [{"name": "default", "pod": {}}],
            "domain": {"devices": {"interfaces": [interface]}}})
        };
        for (spec, reason, storage) in [
            (pod_network(json!({"name": "default", "bridge": {}})), "InterfaceNotLiveMigratable", "False"),
            (
                json!({"domain": {"devices": {"gpus": [{"name": "g"}]}}}),
                "HostDeviceNotLiveMigratable",
                "False",
            ),
            (
                json!({"volumes": [{"name": "d", "persistentVolumeClaim": {"claimName": "c"}}]}),
                "DisksNotLiveMigratable",
                "True",
            ),
            (json!({"volumes": [{"name": "d", "hostDisk": {}}]}), "DisksNotLiveMigratable", "True"),
            (json!({}), "", "True"),
        ] {
            let vmi = decided("Scheduled", spec.clone(), Domain::Running).unwrap();
            let condition = json::condition(&vmi, "/status/conditions", "LiveMigratable").unwrap();
            assert_eq!(text(condition, "/reason"), reason, "{spec}");
            assert!(json::has_condition(&vmi, "StorageLiveMigratable", storage), "{spec}");
        }
    }
}
