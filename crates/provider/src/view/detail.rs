//! Everything worth knowing about one VM.

use serde::Serialize;
use serde_json::Value;

use super::condition::{self, Explained};
use super::json::{list, some, text};
use super::migration::{self, Blocker};
use super::summary::VmSummary;

/// A VM in full. Field names are those of `-o json` and of the REST service.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct VmDetail {
    /// What a list shows.
    #[serde(flatten)]
    pub summary: VmSummary,
    /// The object's identity.
    pub uid: String,
    /// Its instance type, as `kind/name`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub instancetype: Option<String>,
    /// Its preference, as `kind/name`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub preference: Option<String>,
    /// The pod that runs the guest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub launcher: Option<String>,
    /// Its disks, in the order of the spec, then what is attached beyond it.
    pub disks: Vec<Disk>,
    /// Its network interfaces.
    pub interfaces: Vec<Interface>,
    /// Its conditions, with what they mean.
    pub conditions: Vec<Explained>,
    /// What keeps it from being migrated.
    pub migration_blockers: Vec<Blocker>,
    /// What happened to it, latest last.
    pub events: Vec<Event>,
}

/// A disk or file system of a VM.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Disk {
    /// The volume's name.
    pub name: String,
    /// `disk`, `lun`, `cdrom` or `filesystem`; empty for a volume without a device.
    pub device: String,
    /// The bus, as in `virtio`.
    pub bus: String,
    /// What kind of volume it is, as in `persistentVolumeClaim`.
    pub source: String,
    /// The claim, data volume, image or secret behind it.
    pub reference: String,
    /// The target in the guest, as in `vda`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// Whether it was attached while the VM ran, and in which phase that is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hotplug: Option<String>,
}

/// A network interface of a VM.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Interface {
    /// The interface's name.
    pub name: String,
    /// `masquerade`, `bridge`, `sriov` or another binding.
    pub binding: String,
    /// `pod`, or the Multus network.
    pub network: String,
    /// The hardware address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mac: Option<String>,
    /// `up` or `down`, and `absent` while it is being unplugged.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub link: Option<String>,
    /// Addresses.
    pub addresses: Vec<String>,
    /// The name in the guest, which the agent knows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub guest_name: Option<String>,
}

/// Something that happened.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Event {
    /// When it was last seen, RFC 3339.
    pub last_seen: String,
    /// `Normal` or `Warning`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The reason.
    pub reason: String,
    /// The message.
    pub message: String,
    /// How often.
    pub count: u64,
}

/// The most events that are shown.
const EVENTS: usize = 20;

impl VmDetail {
    /// Reads a VM, its VMI, its launcher pods and the events about it.
    pub fn of(vm: &Value, vmi: Option<&Value>, pods: &[Value], events: &[Value]) -> Self {
        let reference = |pointer: &str| {
            let name = some(vm, &format!("{pointer}/name"))?;
            let kind = some(vm, &format!("{pointer}/kind"));
            Some(format!("{}/{name}", kind.as_deref().unwrap_or("cluster")))
        };
        Self {
            summary: VmSummary::of(vm, vmi),
            uid: text(vm, "/metadata/uid").into(),
            instancetype: reference("/spec/instancetype"),
            preference: reference("/spec/preference"),
            launcher: vmi.and_then(|vmi| launcher(vmi, pods)),
            disks: disks(vm, vmi),
            interfaces: interfaces(vm, vmi),
            conditions: condition::explain(vm, vmi),
            migration_blockers: migration::blockers(vm, vmi),
            events: timeline(events),
        }
    }
}

/// The active pod by `status.activePods`, on the node that the guest runs on (v1.9).
fn launcher(vmi: &Value, pods: &[Value]) -> Option<String> {
    let node = text(vmi, "/status/nodeName");
    let active = vmi.pointer("/status/activePods")?.as_object()?;
    let uid = active.iter().find(|(_, on)| on.as_str() == Some(node)).map(|(uid, _)| uid.as_str())?;
    let pod = pods.iter().find(|pod| text(pod, "/metadata/uid") == uid)?;
    some(pod, "/metadata/name")
}

fn disks(vm: &Value, vmi: Option<&Value>) -> Vec<Disk> {
    let spec = "/spec/template/spec";
    let of_vm = (
        list(vm, &format!("{spec}/volumes")),
        list(vm, &format!("{spec}/domain/devices/disks")),
        list(vm, &format!("{spec}/domain/devices/filesystems")),
    );
    let (mut volumes, mut devices): (Vec<&Value>, Vec<&Value>) =
        (of_vm.0.iter().collect(), of_vm.1.iter().collect());
    if let Some(vmi) = vmi {
        let known = |volume: &&Value| !of_vm.0.iter().any(|one| one["name"] == volume["name"]);
        volumes.extend(list(vmi, "/spec/volumes").iter().filter(known));
        devices.extend(list(vmi, "/spec/domain/devices/disks"));
    }
    volumes
        .into_iter()
        .map(|volume| {
            let name = text(volume, "/name");
            let device = devices.iter().find(|disk| text(disk, "/name") == name);
            let shared = of_vm.2.iter().any(|one| text(one, "/name") == name);
            let kind =
                device.and_then(|disk| ["disk", "lun", "cdrom"].into_iter().find(|k| disk.get(k).is_some()));
            // a disk entry without a type is a disk (defaults.go, v1.9)
            let kind = kind.unwrap_or(if device.is_some() {
                "disk"
            } else if shared {
                "filesystem"
            } else {
                ""
            });
            let status = vmi.and_then(|vmi| {
                list(vmi, "/status/volumeStatus").iter().find(|one| text(one, "/name") == name)
            });
            let (source, reference) = source(volume);
            Disk {
                name: name.into(),
                device: kind.into(),
                bus: device.map(|disk| text(disk, &format!("/{kind}/bus"))).unwrap_or_default().into(),
                source,
                reference,
                target: status.and_then(|status| some(status, "/target")),
                hotplug: status
                    .filter(|status| status.get("hotplugVolume").is_some())
                    .and_then(|status| some(status, "/phase")),
            }
        })
        .collect()
}

/// The kind of a volume and what it refers to.
pub fn source(volume: &Value) -> (String, String) {
    let Some((kind, about)) = volume.as_object().and_then(|map| map.iter().find(|(key, _)| *key != "name"))
    else {
        return (String::new(), String::new());
    };
    let reference = ["name", "claimName", "image", "secretName", "path", "capacity"]
        .into_iter()
        .find_map(|key| about.get(key).and_then(Value::as_str))
        .or_else(|| about.pointer("/persistentVolumeClaim/claimName").and_then(Value::as_str));
    (kind.clone(), reference.unwrap_or_default().into())
}

fn interfaces(vm: &Value, vmi: Option<&Value>) -> Vec<Interface> {
    let spec = "/spec/template/spec";
    let networks = list(vm, &format!("{spec}/networks"));
    let states = vmi.map(|vmi| list(vmi, "/status/interfaces")).unwrap_or_default();
    list(vm, &format!("{spec}/domain/devices/interfaces"))
        .iter()
        .map(|interface| {
            let name = text(interface, "/name");
            let network = networks.iter().find(|network| text(network, "/name") == name);
            let state = states.iter().find(|state| text(state, "/name") == name);
            let binding = ["masquerade", "bridge", "sriov", "slirp", "macvtap", "passt", "passtBinding"]
                .into_iter()
                .find(|binding| interface.get(binding).is_some());
            let addresses = state.map(|state| list(state, "/ipAddresses")).unwrap_or_default();
            Interface {
                name: name.into(),
                binding: binding.unwrap_or_else(|| text(interface, "/binding/name")).into(),
                network: network.and_then(|one| some(one, "/multus/networkName")).unwrap_or("pod".into()),
                mac: state.and_then(|state| some(state, "/mac")).or_else(|| some(interface, "/macAddress")),
                link: some(interface, "/state")
                    .filter(|state| state == "absent")
                    .or_else(|| state.and_then(|state| some(state, "/linkState")))
                    .or_else(|| some(interface, "/state")),
                addresses: addresses.iter().filter_map(Value::as_str).map(str::to_owned).collect(),
                guest_name: state.and_then(|state| some(state, "/interfaceName")),
            }
        })
        .collect()
}

/// The last events, oldest first.
fn timeline(events: &[Value]) -> Vec<Event> {
    let mut found: Vec<Event> = events
        .iter()
        .map(|event| Event {
            last_seen: ["/lastTimestamp", "/eventTime", "/metadata/creationTimestamp"]
                .into_iter()
                .find_map(|pointer| some(event, pointer))
                .unwrap_or_default(),
            kind: text(event, "/type").into(),
            reason: text(event, "/reason").into(),
            message: text(event, "/message").into(),
            count: event.pointer("/count").and_then(Value::as_u64).unwrap_or(1),
        })
        .collect();
    found.sort_by(|a, b| a.last_seen.cmp(&b.last_seen));
    let surplus = found.len().saturating_sub(EVENTS);
    found.drain(..surplus);
    found
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn disks_and_interfaces_join_spec_and_status() {
        let vm = json!({"metadata": {"name": "web"}, "spec": {"template": {"spec": {
            "domain": {"devices": {
                "disks": [{"name": "root", "disk": {"bus": "virtio"}}, {"name": "iso", "cdrom": {"bus": "sata"}}],
                "interfaces": [{"name": "default", "masquerade": {}}, {"name": "lan", "bridge": {}}]}},
            "networks": [{"name": "default", "pod": {}}, {"name": "lan", "multus": {"networkName": "prod/vlan7"}}],
            "volumes": [{"name": "root", "dataVolume": {"name": "web-root"}},
                {"name": "iso", "persistentVolumeClaim": {"claimName": "tools"}},
                {"name": "init", "cloudInitNoCloud": {"userData": "#cloud-config"}}]}}}});
        let vmi = json!({"spec": {"volumes": [{"name": "extra", "persistentVolumeClaim": {"claimName": "x"}}],
            "domain": {"devices": {"disks": [{"name": "extra", "disk": {"bus": "scsi"}}]}}},
            "status": {"nodeName": "n1", "activePods": {"u1": "n0", "u2": "n1"},
                "volumeStatus": [{"name": "root", "target": "vda"},
                    {"name": "extra", "target": "sda", "phase": "Ready", "hotplugVolume": {}}],
                "interfaces": [{"name": "lan", "mac": "02:00:00:00:00:01", "ipAddresses": ["10.1.1.1"]}]}});
        let pods = [
            json!({"metadata": {"name": "virt-launcher-a", "uid": "u1"}}),
            json!({"metadata": {"name": "virt-launcher-b", "uid": "u2"}}),
        ];
        let detail = VmDetail::of(&vm, Some(&vmi), &pods, &[]);
        assert_eq!(detail.launcher.as_deref(), Some("virt-launcher-b"));
        let disks: Vec<_> = detail
            .disks
            .iter()
            .map(|d| {
                (d.name.as_str(), d.device.as_str(), d.bus.as_str(), d.source.as_str(), d.reference.as_str())
            })
            .collect();
        assert_eq!(
            disks,
            [
                ("root", "disk", "virtio", "dataVolume", "web-root"),
                ("iso", "cdrom", "sata", "persistentVolumeClaim", "tools"),
                ("init", "", "", "cloudInitNoCloud", ""),
                ("extra", "disk", "scsi", "persistentVolumeClaim", "x"),
            ]
        );
        assert_eq!(detail.disks[3].hotplug.as_deref(), Some("Ready"));
        assert_eq!(detail.interfaces[1].network, "prod/vlan7");
        assert_eq!(detail.interfaces[1].mac.as_deref(), Some("02:00:00:00:00:01"));
        let broken = json!({"spec": {"template": {"spec": {"volumes": [3, {"name": 1}], "domain": 7}}}});
        assert_eq!(VmDetail::of(&broken, Some(&broken), &pods, &[json!(1)]).disks.len(), 2);
    }
}
