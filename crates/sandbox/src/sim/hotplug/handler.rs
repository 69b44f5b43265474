//! virt-handler's and virt-launcher's part: device nodes and mounts in the launcher (`hotplug-disk/mount.go`), disks of
//! the domain (`manager.go:1541-1596`), and what virt-handler writes about them (`vm.go:497-555`).
//!
//! ```text
//!  AttachedToNode ─mounted─► MountedToPod ─in the domain─► Ready ─left the spec, unplugged, unmounted─► UnMountedFromPod
//! ```

use std::collections::BTreeSet;
use std::time::Duration;

use apimachinery::tree::Value;
use jiff::{SignedDuration, Timestamp};

use super::disks::{Disk, Disks, Stage};
use super::status::say;
use super::storage::Device;
use super::{KEEPS, Rules, Timing, entry};
use crate::sim::json::{self, list, text};
use crate::sim::virt_controller::launcher_pod::claim_of;

/// What a node sees of one VMI.
pub struct Observation<'a> {
    pub vmi: &'a Value,
    pub rules: Rules,
    pub timing: Timing,
    pub now: Timestamp,
    /// The device of a claim as published to an attachment pod, by its uid.
    pub device: &'a dyn Fn(&str, &str) -> Option<Device>,
    /// Whether there is something behind a device.
    pub alive: &'a dyn Fn(Device) -> bool,
}

/// What came of a pass.
#[derive(Debug, Default, PartialEq)]
pub struct Outcome {
    /// `status.volumeStatus` as it should be.
    pub status: Vec<Value>,
    /// Wanted volumes that were unplugged because their phase had gone back.
    pub unplugged: Vec<String>,
    /// When to look again.
    pub after: Option<Duration>,
}

/// How often a mount that is not there yet is looked for (`HV:1915`).
const RETRY: Duration = Duration::from_secs(1);

fn in_spec(vmi: &Value, volume: &str) -> bool {
    list(vmi, "/spec/volumes").iter().any(|one| one["name"] == volume)
}

fn claim<'v>(vmi: &'v Value, volume: &str) -> &'v str {
    list(vmi, "/spec/volumes")
        .iter()
        .find(|one| one["name"] == volume)
        .and_then(claim_of)
        .or_else(|| Some(text(entry(vmi, volume)?, "/persistentVolumeClaimInfo/claimName")))
        .unwrap_or_default()
}

/// Entries of the status that are about hotplugged volumes.
fn entries(vmi: &Value) -> impl Iterator<Item = &Value> {
    list(vmi, "/status/volumeStatus").iter().filter(|status| status["hotplugVolume"].is_object())
}

/// Makes volumes visible in the launcher. True: something is waited for.
pub fn mount(seen: &Observation<'_>, disks: &mut Disks) -> bool {
    let mut waits = false;
    let mut first = "";
    for status in entries(seen.vmi) {
        let name = text(status, "/name");
        let mut source = text(status, "/hotplugVolume/attachPodUID");
        if !seen.rules.mounts_by_volume {
            // The first uid that is found is taken for all that follow (mount.go:354-356, v1.3.1).
            if first.is_empty() {
                first = source;
            }
            source = first;
        }
        if source.is_empty() || (seen.rules.mounts_by_spec && !in_spec(seen.vmi, name)) {
            continue;
        }
        if disks.mounts.contains_key(name) || disks.plugged.contains_key(name) {
            continue;
        }
        match (seen.device)(source, claim(seen.vmi, name)) {
            Some(device) => {
                disks.mounts.insert(name.to_owned(), device);
            }
            None => waits |= in_spec(seen.vmi, name),
        }
    }
    waits
}

/// A migration's target mounts all that the guest has from one pod (migration-target.go:809-816).
pub fn mount_target(seen: &Observation<'_>, source: &str, disks: &mut Disks) {
    for status in entries(seen.vmi) {
        let name = text(status, "/name");
        if in_spec(seen.vmi, name)
            && let Some(device) = (seen.device)(source, claim(seen.vmi, name))
        {
            disks.mounts.entry(name.to_owned()).or_insert(device);
        }
    }
}

/// Volumes that the domain should have (`configurator.go:123`).
fn wanted(vmi: &Value) -> BTreeSet<&str> {
    let visible = |status: &&Value| matches!(text(status, "/phase"), "MountedToPod" | "Ready");
    entries(vmi)
        .filter(visible)
        .map(|status| text(status, "/name"))
        .filter(|name| in_spec(vmi, name) && !is_dump(vmi, name))
        .collect()
}

/// Memory is dumped into it: the guest does not have it.
fn is_dump(vmi: &Value, volume: &str) -> bool {
    list(vmi, "/spec/volumes").iter().any(|one| one["name"] == volume && one.get("memoryDump").is_some())
}

fn keeps(vmi: &Value, volume: &str) -> bool {
    json::annotation(vmi, KEEPS).is_some_and(|all| all.split(',').any(|one| one == "*" || one == volume))
}

/// The name prefix of a disk in the guest.
fn prefix(vmi: &Value, volume: &str) -> &'static str {
    let disk = list(vmi, "/spec/domain/devices/disks").iter().find(|disk| disk["name"] == volume);
    let bus = disk.and_then(|disk| {
        ["/disk/bus", "/cdrom/bus", "/lun/bus"]
            .iter()
            .map(|path| text(disk, path))
            .find(|bus| !bus.is_empty())
    });
    if bus == Some("virtio") { "vd" } else { "sd" }
}

/// Brings the domain's disks in line: unplugs first, then plugs in. The wanted volumes that it unplugs.
fn sync(seen: &Observation<'_>, disks: &mut Disks) -> Vec<String> {
    let vmi = seen.vmi;
    let wanted = wanted(vmi);
    let due = |after: Duration| {
        seen.now.checked_add(SignedDuration::try_from(after).unwrap_or_default()).unwrap_or(seen.now)
    };
    let stands_still = disks.failed.is_some();
    let mut unplugged = Vec::new();
    for (name, disk) in &mut disks.plugged {
        if wanted.contains(name.as_str()) || matches!(disk.stage, Stage::Going(_)) {
            continue;
        }
        let lets_go = !keeps(vmi, name) && !stands_still;
        disk.stage = Stage::Going(lets_go.then(|| due(seen.timing.unplug)));
        if in_spec(vmi, name) {
            unplugged.push(name.clone());
        }
    }
    let others: Vec<&str> = list(vmi, "/status/volumeStatus")
        .iter()
        .filter(|status| !status["hotplugVolume"].is_object())
        .map(|status| text(status, "/target"))
        .collect();
    for name in wanted {
        let Some(device) = disks.mounts.get(name).copied().filter(|device| (seen.alive)(*device)) else {
            continue;
        };
        // A disk goes into a paused guest as into any other: QEMU asks the guest only when one is to go.
        if disks.plugged.contains_key(name) {
            continue;
        }
        let target = disks.free_target(prefix(vmi, name), &others);
        let stage = Stage::Coming(due(seen.timing.plug));
        disks.plugged.insert(name.to_owned(), Disk { device, target, stage });
    }
    unplugged
}

/// Takes volumes from the launcher that are wanted no more, and that the guest has let go of before this pass.
fn unmount(seen: &Observation<'_>, disks: &mut Disks, before: &BTreeSet<String>) -> bool {
    let mut left = false;
    disks.mounts.retain(|name, _| {
        let over = if seen.rules.unmounts_by_spec {
            !in_spec(seen.vmi, name)
        } else {
            entry(seen.vmi, name).is_none()
        };
        if over && before.contains(name) {
            left = true;
        }
        !over || before.contains(name)
    });
    left
}

/// A whole pass over a running guest.
pub fn pass(seen: &Observation<'_>, disks: &mut Disks) -> Outcome {
    let before: BTreeSet<String> = disks.plugged.keys().cloned().collect();
    let _ = disks.advance(seen.now);
    let waits = mount(seen, disks);
    let unplugged = sync(seen, disks);
    let still = unmount(seen, disks, &before) && disks.plugged.len() < before.len();
    let next = disks.advance(seen.now);
    let mut after = next.map(|at| Duration::try_from(at.duration_since(seen.now)).unwrap_or_default());
    if waits {
        after = Some(after.map_or(RETRY, |after| after.min(RETRY)));
    }
    if still {
        after = Some(Duration::from_millis(1));
    }
    Outcome { status: describe(seen, disks), unplugged, after }
}

/// The status as it shows what the launcher and the guest have.
pub fn describe(seen: &Observation<'_>, disks: &Disks) -> Vec<Value> {
    let mut all = list(seen.vmi, "/status/volumeStatus").to_vec();
    for status in all.iter_mut().filter(|status| status["hotplugVolume"].is_object()) {
        let name = text(status, "/name").to_owned();
        let phase = text(status, "/phase").to_owned();
        let wanted = in_spec(seen.vmi, &name);
        let disk = disks.plugged.get(&name).filter(|disk| disk.is_in_domain());
        let target = disk.map_or("", |disk| disk.target.as_str());
        status["target"] = target.into();
        if !target.is_empty() {
            if wanted && phase != "Ready" {
                let message = format!("Successfully attach hotplugged volume {name} to VM");
                say(status, "Ready", "VolumeReady", message);
            }
            continue;
        }
        let mounted = disks.mounts.contains_key(&name);
        let may_mount = wanted || !seen.rules.mounts_by_spec;
        if mounted && may_mount && matches!(phase.as_str(), "Bound" | "Pending" | "AttachedToNode") {
            let message = format!("Volume {name} has been mounted in virt-launcher pod");
            say(status, "MountedToPod", "VolumeMountedToPod", message);
        } else if !mounted && !wanted && matches!(phase.as_str(), "Ready" | "MountedToPod" | "AttachedToNode")
        {
            let message = format!("Volume {name} has been unmounted from virt-launcher pod");
            say(status, "UnMountedFromPod", "VolumeUnMountedFromPod", message);
        }
    }
    all
}

/// Whether a guest may start: all its hotplugged volumes are there (`vm.go:2136-2160`).
pub fn may_boot(vmi: &Value, disks: &Disks) -> bool {
    list(vmi, "/spec/volumes")
        .iter()
        .filter(|volume| super::is_marked(volume))
        .all(|volume| disks.mounts.contains_key(text(volume, "/name")))
}

/// The guest starts with the disks that its launcher has.
pub fn boot(vmi: &Value, disks: &mut Disks) {
    let mounts: Vec<(String, Device)> = disks
        .mounts
        .iter()
        .filter(|(name, _)| in_spec(vmi, name) && !is_dump(vmi, name))
        .map(|(name, device)| (name.clone(), *device))
        .collect();
    let others: Vec<&str> = list(vmi, "/status/volumeStatus")
        .iter()
        .filter(|status| !status["hotplugVolume"].is_object())
        .map(|status| text(status, "/target"))
        .collect();
    for (name, device) in mounts {
        let target = disks.free_target(prefix(vmi, &name), &others);
        disks.plugged.insert(name, Disk { device, target, stage: Stage::In });
    }
}

/// The disks of a guest that has moved: the same, with the devices of the target. `Err`: the target lacks one.
pub fn moved(guest: &Disks, target: &Disks) -> Result<Disks, String> {
    let mut arrived =
        Disks { mounts: target.mounts.clone(), plugged: guest.plugged.clone(), failed: guest.failed.clone() };
    for (name, disk) in &mut arrived.plugged {
        disk.device = *target.mounts.get(name).ok_or_else(|| name.clone())?;
    }
    Ok(arrived)
}

#[cfg(test)]
mod tests {
    use apimachinery::tree::json;

    use super::*;

    struct Node {
        vmi: Value,
        disks: Disks,
        rules: Rules,
        second: i64,
    }

    impl Node {
        fn new(rules: Rules, spec: &[&str]) -> Self {
            Self { vmi: vmi(spec), disks: Disks::default(), rules, second: 0 }
        }

        /// A second later; uid `p` has everything, `q` nothing.
        fn pass(&mut self) -> Vec<String> {
            self.second += 1;
            let seen = Observation {
                vmi: &self.vmi,
                rules: self.rules,
                timing: Timing::default(),
                now: Timestamp::from_second(self.second).unwrap(),
                device: &|pod, claim| (pod == "p").then(|| u64::from(claim.as_bytes()[0])),
                alive: &|_| true,
            };
            let outcome = pass(&seen, &mut self.disks);
            self.vmi["status"]["volumeStatus"] = outcome.status.clone().into();
            outcome
                .status
                .iter()
                .map(|one| format!("{} {} {}", text(one, "/name"), text(one, "/phase"), text(one, "/target")))
                .collect()
        }
    }

    fn vmi(spec: &[&str]) -> Value {
        let volumes: Value = spec
            .iter()
            .map(|name| json!({"name": name, "persistentVolumeClaim": {"claimName": name, "hotpluggable": true}}))
            .collect();
        let status: Value = spec
            .iter()
            .map(|name| json!({"name": name, "target": "", "phase": "AttachedToNode", "hotplugVolume": {"attachPodUID": "p"},
                "persistentVolumeClaimInfo": {"claimName": name}}))
            .collect();
        json!({"spec": {"volumes": volumes, "domain": {"devices": {"disks": []}}}, "status": {"volumeStatus": status}})
    }

    #[test]
    fn a_volume_comes_and_goes_in_the_recorded_steps() {
        let mut node = Node::new(Rules::MAIN, &["a"]);
        assert_eq!(node.pass(), ["a MountedToPod "]);
        node.pass();
        assert_eq!(node.pass(), ["a Ready sda"]);
        node.vmi["spec"]["volumes"] = json!([]);
        assert_eq!(node.pass(), ["a Ready sda"], "asked to go");
        assert_eq!(node.pass(), ["a Ready "], "let go");
        assert_eq!(node.pass(), ["a UnMountedFromPod "]);
        assert!(node.disks.mounts.is_empty() && node.disks.plugged.is_empty());
    }

    #[test]
    fn a_guest_that_keeps_its_disk_keeps_its_mount() {
        let mut node = Node::new(Rules::MAIN, &["a"]);
        for _ in 0..3 {
            node.pass();
        }
        json::put(&mut node.vmi, &["metadata", "annotations", KEEPS], "a");
        node.vmi["spec"]["volumes"] = json!([]);
        for _ in 0..5 {
            assert_eq!(node.pass(), ["a Ready sda"]);
        }
    }

    #[test]
    fn a_phase_that_goes_back_unplugs_a_disk_that_is_wanted() {
        let mut node = Node::new(Rules::MAIN, &["a"]);
        node.pass();
        node.pass();
        node.vmi["status"]["volumeStatus"][0]["phase"] = "Bound".into();
        let seen = Observation {
            vmi: &node.vmi,
            rules: node.rules,
            timing: Timing::default(),
            now: Timestamp::from_second(9).unwrap(),
            device: &|_, _| None,
            alive: &|_| true,
        };
        assert_eq!(pass(&seen, &mut node.disks).unplugged, ["a"], "W7");
    }

    #[test]
    fn up_to_1_5_nothing_is_unmounted_before_the_status_entry_has_gone() {
        let mut node = Node::new(Rules::V1_3, &["a"]);
        for _ in 0..3 {
            node.pass();
        }
        node.vmi["spec"]["volumes"] = json!([]);
        for _ in 0..3 {
            node.pass();
        }
        assert!(node.disks.plugged.is_empty() && node.disks.mounts.contains_key("a"));
        node.vmi["status"]["volumeStatus"] = json!([]);
        node.pass();
        assert!(node.disks.mounts.is_empty());
    }

    #[test]
    fn older_handlers_mount_all_from_the_first_pod() {
        let mut node = Node::new(Rules::V1_8, &["a", "b"]);
        node.vmi["status"]["volumeStatus"][0]["hotplugVolume"]["attachPodUID"] = "q".into();
        node.pass();
        assert!(node.disks.mounts.is_empty(), "q has nothing");
        node.rules = Rules::V1_9;
        node.pass();
        assert_eq!(node.disks.mounts.keys().collect::<Vec<_>>(), ["b"]);
    }

    #[test]
    fn a_guest_moves_only_to_where_all_its_disks_are() {
        let mut node = Node::new(Rules::MAIN, &["a"]);
        for _ in 0..3 {
            node.pass();
        }
        assert_eq!(moved(&node.disks, &Disks::default()), Err("a".into()));
        let target = Disks { mounts: [("a".to_owned(), 7)].into(), ..Disks::default() };
        assert_eq!(moved(&node.disks, &target).unwrap().plugged["a"].device, 7);
    }
}
