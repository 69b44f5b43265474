//! A `VirtualMachine` in the terms of an OVF descriptor.

use std::collections::{BTreeMap, BTreeSet};

use image::ovf::{Bus, Firmware, Machine, MachineDisk, Nic, NicModel, Os};
use serde_json::Value;

/// A volume of a VM that can be exported.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct VmVolume {
    /// The name of the volume and of its disk.
    pub name: String,
    /// The claim that holds it.
    pub claim: String,
    bus: Bus,
}

impl VmVolume {
    /// A volume that is no claim, such as a file.
    pub fn plain(name: &str) -> Self {
        Self { name: name.into(), claim: String::new(), bus: Bus::default() }
    }

    /// A claim by itself.
    pub fn of_claim(claim: &str) -> Self {
        Self { claim: claim.into(), ..Self::plain(claim) }
    }
}

/// The volumes on claims and data volumes, in boot order. A disk without a boot order comes behind
/// those with one, as KubeVirt sorts them; CD-ROMs are left out when `cdroms` is false. A volume that nothing uses
/// is a disk, too: KubeVirt adds it (`SetDefaultVolumeDisk`, defaults.go).
pub fn volumes(vm: &Value, cdroms: bool) -> Vec<VmVolume> {
    let spec = &vm["spec"]["template"]["spec"];
    let devices = &spec["domain"]["devices"];
    let claims: Vec<(&str, &str)> = list(&spec["volumes"])
        .filter_map(|volume| {
            let claim = volume["persistentVolumeClaim"]["claimName"].as_str();
            Some((volume["name"].as_str()?, claim.or_else(|| volume["dataVolume"]["name"].as_str())?))
        })
        .collect();
    let mut out: Vec<(u64, VmVolume)> = list(&devices["disks"])
        .filter(|disk| cdroms || disk["cdrom"].is_null())
        .filter_map(|disk| {
            let name = disk["name"].as_str()?;
            let (_, claim) = claims.iter().find(|(volume, _)| *volume == name)?;
            let stated = ["disk", "lun", "cdrom"].iter().find_map(|kind| disk[kind]["bus"].as_str());
            let bus = match stated {
                Some("sata" | "ide") => Bus::Sata,
                _ => Bus::Pvscsi,
            };
            let order = disk["bootOrder"].as_u64().unwrap_or(u64::MAX);
            Some((order, VmVolume { name: name.into(), claim: (*claim).into(), bus }))
        })
        .collect();
    let used: BTreeSet<&str> = list(&devices["disks"])
        .chain(list(&devices["filesystems"]))
        .filter_map(|device| device["name"].as_str())
        .collect();
    let unused = claims.iter().filter(|(name, _)| !used.contains(name));
    out.extend(unused.map(|(name, claim)| {
        let bus = Bus::Pvscsi;
        (u64::MAX, VmVolume { name: (*name).into(), claim: (*claim).into(), bus })
    }));
    // Stable: the order of the manifest decides among equals.
    out.sort_by_key(|(order, _)| *order);
    out.into_iter().map(|(_, volume)| volume).collect()
}

/// The machine, and what an importer should know. `expanded` is the VM with what its instance type and preference
/// give (subresource `expand-spec`), or the VM. `vmi` helps where it is there: the guest agent knows the system best.
/// `volumes` are the disks that go along.
pub fn machine(
    vm: &Value,
    expanded: &Value,
    vmi: Option<&Value>,
    volumes: &[VmVolume],
) -> (Machine, Vec<String>) {
    // Where the instance type could not be asked, what the guest got is what it gave.
    let spec = match vmi {
        Some(vmi) if !expanded["spec"]["instancetype"].is_null() => &vmi["spec"],
        _ => &expanded["spec"]["template"]["spec"],
    };
    let domain = &spec["domain"];
    let (sockets, cores, threads) = topology(domain);
    let mut warnings = Vec::new();
    let name = vm["metadata"]["name"].as_str().unwrap_or("vm").to_owned();
    // Without `guest`, the guest gets what is requested, which is the limit where there is one alone.
    let resources = &domain["resources"];
    let memory = domain["memory"]["guest"]
        .as_str()
        .or_else(|| resources["requests"]["memory"].as_str())
        .or_else(|| resources["limits"]["memory"].as_str())
        .and_then(memory_mib);
    let memory_mib = memory.unwrap_or_else(|| {
        warnings.push(
            "the VM states no memory and its instance type could not be read (it needs `get` of \
             virtualmachines/expand-spec): 1024 MiB are written"
                .into(),
        );
        1024
    });
    let efi = &domain["firmware"]["bootloader"]["efi"];
    let has_efi = efi.is_object();
    let machine = Machine {
        os: Os::guess(&system(vm, vmi)),
        cpus: u32::try_from(sockets * cores * threads).unwrap_or(1),
        cores_per_socket: u32::try_from(cores * threads).unwrap_or(1),
        memory_mib,
        firmware: if has_efi { Firmware::Efi } else { Firmware::Bios },
        // On unless it is switched off (KubeVirt `EFI.SecureBoot`).
        secure_boot: has_efi && efi["secureBoot"] != false,
        disks: volumes
            .iter()
            .map(|volume| MachineDisk {
                name: volume.name.clone(),
                file: format!("{name}-{}.vmdk", volume.name),
                bus: volume.bus,
                ..MachineDisk::default()
            })
            .collect(),
        nics: nics(spec),
        annotation: format!(
            "VirtualMachine {}/{name}, exported from KubeVirt. Its manifest is in {name}.vm.json.",
            vm["metadata"]["namespace"].as_str().unwrap_or("default")
        ),
        name,
    };
    if volumes.iter().any(|volume| volume.bus == Bus::Pvscsi) {
        let guest = if machine.os.vmware.starts_with("windows") {
            "a Windows guest made for virtio needs a driver"
        } else {
            "a guest made for virtio may lack, in its boot image, the driver"
        };
        warnings
            .push(format!("{guest} for VMware's controllers: convert it with virt-v2v if it does not boot"));
    }
    let kinds = ["tpm", "gpus", "hostDevices", "filesystems"];
    for kind in kinds.into_iter().filter(|kind| !domain["devices"][kind].is_null()) {
        warnings.push(format!("devices.{kind} has no counterpart in the descriptor and is left out of it"));
    }
    (machine, warnings)
}

/// Sockets, cores and threads. Where none is stated, `KubeVirt` makes a socket of each CPU that is a limit or is
/// requested (`GetCPUTopology`, pkg/virt-launcher/virtwrap/converter/vcpu).
fn topology(domain: &Value) -> (u64, u64, u64) {
    let stated = |key: &str| domain["cpu"][key].as_u64().filter(|count| *count > 0);
    let resources = &domain["resources"];
    let of_resources = || {
        let cpus = ["limits", "requests"].iter().find_map(|kind| cpus(&resources[kind]["cpu"]));
        (cpus.unwrap_or(1), 1, 1)
    };
    let or_one = |key: &str| stated(key).map_or(1, |count| count.min(4096));
    if ["sockets", "cores", "threads"].iter().all(|key| stated(key).is_none()) {
        return of_resources();
    }
    (or_one("sockets"), or_one("cores"), or_one("threads"))
}

/// A quantity of CPUs, rounded up.
fn cpus(quantity: &Value) -> Option<u64> {
    let text = quantity.as_str().map(str::to_owned).or_else(|| quantity.as_u64().map(|n| n.to_string()))?;
    let millis = if let Some(millis) = text.strip_suffix('m') {
        millis.parse::<u64>().ok()?
    } else {
        let (whole, fraction) = text.split_once('.').unwrap_or((&text, ""));
        let more = u64::from(fraction.bytes().any(|digit| digit != b'0'));
        whole.parse::<u64>().ok()?.checked_mul(1000)? + more
    };
    Some(millis.div_ceil(1000).clamp(1, 4096))
}

fn nics(spec: &Value) -> Vec<Nic> {
    let networks: BTreeMap<&str, &Value> =
        list(&spec["networks"]).filter_map(|network| Some((network["name"].as_str()?, network))).collect();
    list(&spec["domain"]["devices"]["interfaces"])
        .filter(|interface| interface["state"] != "absent")
        .map(|interface| {
            let name = interface["name"].as_str().unwrap_or("default");
            let multus = networks.get(name).and_then(|network| network["multus"]["networkName"].as_str());
            Nic {
                network: multus.unwrap_or(name).to_owned(),
                mac: interface["macAddress"].as_str().map(|mac| mac.replace('-', ":")),
                model: match interface["model"].as_str() {
                    Some("e1000") => NicModel::E1000,
                    Some("e1000e") => NicModel::E1000e,
                    _ => NicModel::VmxNet3,
                },
            }
        })
        .collect()
}

/// What is known of the guest's system: the agent, then labels and the preference.
fn system(vm: &Value, vmi: Option<&Value>) -> String {
    let agent = vmi.and_then(|vmi| {
        let info = &vmi["status"]["guestOSInfo"];
        info["prettyName"].as_str().or_else(|| info["name"].as_str())
    });
    let annotations = &vm["spec"]["template"]["metadata"]["annotations"];
    let labels = &vm["metadata"]["labels"];
    agent
        .or_else(|| annotations["vm.kubevirt.io/os"].as_str())
        .or_else(|| labels["vm.kubevirt.io/os"].as_str())
        .or_else(|| labels["kubevirt.io/os"].as_str())
        .or_else(|| vm["spec"]["preference"]["name"].as_str())
        .unwrap_or_default()
        .to_owned()
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

/// A quantity of memory in MiB, rounded up.
fn memory_mib(text: &str) -> Option<u64> {
    bytes(text).map(|bytes| bytes.div_ceil(1 << 20))
}

/// A quantity of bytes. The forms that memory and storage have in manifests: a whole or decimal
/// number with a binary or decimal suffix (`resource.Quantity`).
pub fn bytes(text: &str) -> Option<u64> {
    let split = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, suffix) = text.split_at(split);
    let unit: u64 = match suffix {
        "" => 1,
        "k" => 1000,
        "M" => 1_000_000,
        "G" => 1_000_000_000,
        "T" => 1_000_000_000_000,
        "Ki" => 1 << 10,
        "Mi" => 1 << 20,
        "Gi" => 1 << 30,
        "Ti" => 1 << 40,
        _ => return None,
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let mut bytes = u128::from(whole.parse::<u64>().ok()?) * u128::from(unit);
    if !fraction.is_empty() {
        let digits = fraction.get(..fraction.len().min(9))?;
        let scale = 10_u128.pow(u32::try_from(digits.len()).ok()?);
        bytes += u128::from(digits.parse::<u64>().ok()?) * u128::from(unit) / scale;
    }
    u64::try_from(bytes).ok()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may fail by panicking")]
mod tests {
    use serde_json::json;

    use super::*;

    fn vm() -> Value {
        json!({"metadata": {"name": "web", "namespace": "shop", "labels": {"kubevirt.io/os": "rhel9"}},
        "spec": {"template": {"spec": {
            "domain": {
                "cpu": {"sockets": 2, "cores": 4},
                "memory": {"guest": "2.5Gi"},
                "firmware": {"bootloader": {"efi": {}}},
                "devices": {
                    "tpm": {},
                    "disks": [
                        {"name": "data", "disk": {"bus": "sata"}},
                        {"name": "install", "cdrom": {"bus": "sata"}},
                        {"name": "init", "disk": {"bus": "virtio"}},
                        {"name": "root", "bootOrder": 1, "disk": {"bus": "virtio"}},
                    ],
                    "interfaces": [
                        {"name": "default", "masquerade": {}},
                        {"name": "lan", "bridge": {}, "macAddress": "02-00-00-00-00-01", "model": "e1000e"},
                        {"name": "old", "bridge": {}, "state": "absent"},
                    ],
                },
            },
            "networks": [{"name": "default", "pod": {}}, {"name": "lan", "multus": {"networkName": "shop/vlan7"}}],
            "volumes": [
                {"name": "root", "dataVolume": {"name": "web-root"}},
                {"name": "data", "persistentVolumeClaim": {"claimName": "web-data"}},
                {"name": "install", "persistentVolumeClaim": {"claimName": "iso"}},
                {"name": "init", "cloudInitNoCloud": {"userData": "x"}},
            ],
        }}}})
    }

    #[test]
    fn the_boot_disk_is_first_and_what_is_no_claim_is_left_out() {
        let names = |cdroms| {
            volumes(&vm(), cdroms).iter().map(|volume| volume.claim.clone()).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(names(false), "web-root web-data");
        assert_eq!(names(true), "web-root web-data iso");
    }

    #[test]
    fn a_vm_is_described_as_vmware_would_have_it() {
        let (machine, warnings) = machine(&vm(), &vm(), None, &volumes(&vm(), false));
        assert_eq!((machine.cpus, machine.cores_per_socket, machine.memory_mib), (8, 4, 2560));
        assert_eq!((machine.firmware, machine.secure_boot), (Firmware::Efi, true));
        assert_eq!(machine.os.vmware, "rhel9_64Guest");
        assert_eq!(machine.disks.iter().map(|disk| disk.bus).collect::<Vec<_>>(), [Bus::Pvscsi, Bus::Sata]);
        let lan = Nic {
            network: "shop/vlan7".into(),
            mac: Some("02:00:00:00:00:01".into()),
            model: NicModel::E1000e,
        };
        assert_eq!(machine.nics, [Nic { network: "default".into(), ..Nic::default() }, lan]);
        assert_eq!(warnings.len(), 2, "{warnings:?}");
        assert!(warnings[0].contains("boot image") && warnings[1].contains("devices.tpm"), "{warnings:?}");
        let vmi = json!({"status": {"guestOSInfo": {"prettyName": "Windows Server 2022 Datacenter"}}});
        let (machine, warnings) = super::machine(&vm(), &vm(), Some(&vmi), &volumes(&vm(), false));
        assert_eq!(machine.os.vmware, "windows2019srvNext_64Guest");
        assert!(warnings.iter().any(|warning| warning.contains("virt-v2v")), "{warnings:?}");
    }

    #[test]
    fn what_an_instance_type_gives_is_described_and_a_volume_without_a_disk_is_one() {
        let vm = json!({"metadata": {"name": "web", "namespace": "shop"}, "spec": {
        "instancetype": {"name": "u1.large"}, "preference": {"name": "fedora"},
        "template": {"spec": {
            "domain": {"devices": {"filesystems": [{"name": "share", "virtiofs": {}}]}},
            "volumes": [
                {"name": "root", "dataVolume": {"name": "web-root"}},
                {"name": "share", "persistentVolumeClaim": {"claimName": "web-share"}},
            ],
        }}}});
        let mut expanded = vm.clone();
        let spec = expanded["spec"].as_object_mut().unwrap();
        spec.remove("instancetype");
        spec.remove("preference");
        expanded["spec"]["template"]["spec"]["domain"] = json!({"cpu": {"sockets": 1, "cores": 2, "threads": 1},
            "memory": {"guest": "8Gi"}, "firmware": {"bootloader": {"efi": {"secureBoot": false}}}, "devices": {
            "filesystems": [{"name": "share", "virtiofs": {}}],
            "disks": [{"name": "root", "disk": {"bus": "sata"}}]}});
        let names = |vm| volumes(vm, false).iter().map(|one| one.claim.clone()).collect::<Vec<_>>();
        assert_eq!(names(&vm), ["web-root"]);
        assert_eq!(names(&expanded), ["web-root"]);
        let (machine, _) = super::machine(&vm, &expanded, None, &volumes(&expanded, false));
        assert_eq!((machine.cpus, machine.cores_per_socket, machine.memory_mib), (2, 2, 8192));
        assert_eq!((machine.firmware, machine.secure_boot), (Firmware::Efi, false));
        assert_eq!((machine.os.vmware.as_str(), machine.disks[0].bus), ("fedora64Guest", Bus::Sata));
        let vmi = json!({"spec": expanded["spec"]["template"]["spec"]});
        let (given, _) = super::machine(&vm, &vm, Some(&vmi), &volumes(&vm, false));
        assert_eq!((given.cpus, given.memory_mib), (2, 8192), "what the guest got");
        let (alone, warnings) = super::machine(&vm, &vm, None, &volumes(&vm, false));
        assert_eq!(alone.memory_mib, 1024);
        assert!(warnings.iter().any(|warning| warning.contains("expand-spec")), "{warnings:?}");
    }

    #[test]
    fn what_is_requested_is_what_a_guest_without_a_topology_gets() {
        let vm = |domain: Value| json!({"metadata": {"name": "web"}, "spec": {"template": {"spec": {"domain": domain}}}});
        for (domain, cpus, memory) in [
            (json!({"resources": {"requests": {"cpu": "3", "memory": "2Gi"}}}), (3, 1), 2048),
            (json!({"resources": {"requests": {"cpu": "1500m"}, "limits": {"memory": "1Gi"}}}), (2, 1), 1024),
            (json!({"resources": {"requests": {"cpu": "1"}, "limits": {"cpu": 4}}}), (4, 1), 1024),
            (json!({"resources": {"requests": {"cpu": "2.5"}}}), (3, 1), 1024),
            (json!({"cpu": {"cores": 2}, "resources": {"requests": {"cpu": "8"}}}), (2, 2), 1024),
            (json!({"cpu": {"model": "host-model"}, "resources": {"limits": {"cpu": "2"}}}), (2, 1), 1024),
            (json!({}), (1, 1), 1024),
        ] {
            let vm = vm(domain);
            let (machine, _) = machine(&vm, &vm, None, &[]);
            assert_eq!(
                ((machine.cpus, machine.cores_per_socket), machine.memory_mib),
                (cpus, memory),
                "{vm}"
            );
        }
    }

    #[test]
    fn memory_in_every_form() {
        for (text, mib) in [
            ("1Gi", Some(1024)),
            ("1.5Gi", Some(1536)),
            ("1G", Some(954)),
            ("1073741824", Some(1024)),
            ("512Mi", Some(512)),
            ("1", Some(1)),
            ("1X", None),
            ("", None),
        ] {
            assert_eq!(memory_mib(text), mib, "{text}");
        }
    }
}
