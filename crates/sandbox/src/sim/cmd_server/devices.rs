//! The devices of a domain, with the addresses that libvirt gives them.

use apimachinery::tree::{Value, json};

use super::domain::{go_name, memory_target};
use crate::sim::guest::{self, Guest};
use crate::sim::json::{list, text};
use crate::sim::virt_handler::volume_targets;

/// Root ports that KubeVirt keeps for what is plugged later.
const PORTS: usize = 8;

/// `Spec.Devices` of a domain.
pub fn describe(vmi: &Value, guest: &Guest) -> Value {
    let (nics, disks) = (nics(vmi), disks(vmi));
    // libvirt hands out buses in this order: interfaces, controllers, disks, the balloon, what came later.
    let mut bus = 0_usize;
    let mut next = || {
        bus += 1;
        address(bus, 0, 0)
    };
    let interfaces: Vec<Value> =
        nics.iter().enumerate().map(|(index, one)| interface(one, index, &next())).collect();
    let (scsi, serial) = (next(), next());
    let disks: Vec<Value> = disks
        .into_iter()
        .map(|(mut disk, is_virtio)| {
            disk["Address"] = if is_virtio { next() } else { Value::Null };
            disk
        })
        .collect();
    let balloon = next();
    let memory = guest.machine.virtio_mem().map(|device| {
        json!({"XMLName": go_name("memory"), "Model": "virtio-mem", "Target": memory_target(device),
            "Alias": alias("virtiomem0", false), "Address": next()})
    });
    let run = format!("/var/run/kubevirt-private/{}", guest.machine.uid());
    let console = json!({"Mode": "bind", "Path": format!("{run}/virt-serial0")});
    let input = |kind: &str, index: usize| json!({"Type": kind, "Bus": "ps2", "Alias": alias(&format!("input{index}"), false), "Address": null, "Model": ""});
    json!({
        "Emulator": "/usr/bin/qemu-system-x86_64",
        "Interfaces": or_null(interfaces),
        "Channels": [channel(vmi, guest)],
        "HostDevices": or_null(host_devices(vmi)),
        "PanicDevices": null,
        "Controllers": controllers(&scsi, &serial),
        "Video": [{"Model": {"Type": "vga", "Heads": 1, "Ram": null, "VRam": 16384, "VGAMem": null}}],
        "Graphics": [{"AutoPort": "", "DefaultMode": "",
            "Listen": {"Type": "socket", "Address": "", "Network": "", "Socket": format!("{run}/virt-vnc")},
            "PasswdValidTo": "", "Port": 0, "TLSPort": 0, "Type": "vnc"}],
        "Ballooning": {"Model": "virtio-non-transitional", "Stats": null, "Address": balloon, "Driver": null,
            "FreePageReporting": "on"},
        "Disks": or_null(disks),
        "Inputs": [input("mouse", 0), input("keyboard", 1)],
        "Serials": [{"Type": "unix", "Target": {"Port": 0}, "Source": console, "Alias": alias("serial0", false),
            "Log": {"File": format!("{run}/virt-serial0-log"), "Append": "on"}}],
        "Consoles": [{"Type": "unix", "Target": {"Type": "serial", "Port": 0}, "Source": console,
            "Alias": alias("serial0", false)}],
        // A q35 machine has one of its own.
        "Watchdogs": [{"Model": "itco", "Action": "reset", "Alias": alias("watchdog0", false), "Address": null}],
        "Rng": null, "Filesystems": null, "Redirs": null, "SoundCards": null, "TPMs": null, "VSOCK": null,
        "Memory": memory, "IOMMU": null,
    })
}

/// An empty slice in Go is `null`.
fn or_null(all: Vec<Value>) -> Value {
    if all.is_empty() { Value::Null } else { all.into() }
}

fn alias(name: &str, user_defined: bool) -> Value {
    json!({"Name": name, "UserDefined": user_defined})
}

fn address(bus: usize, slot: usize, function: usize) -> Value {
    json!({"Type": "pci", "Domain": "0x0000", "Bus": format!("{bus:#04x}"), "Slot": format!("{slot:#04x}"),
        "Function": format!("{function:#x}"), "Controller": "", "Target": "", "Unit": "", "UUID": "", "Device": "",
        "CSSID": "", "SSID": "", "DevNo": ""})
}

fn channel(vmi: &Value, guest: &Guest) -> Value {
    let name = "org.qemu.guest_agent.0";
    let state = if guest::manner(vmi) == "no-agent" { "disconnected" } else { "connected" };
    json!({"Type": "unix",
        "Source": {"Mode": "bind", "Path": format!("/var/run/libvirt/qemu/run/channel/1-{}/{name}", guest.machine.domain)},
        "Target": {"Name": name, "Type": "virtio", "Address": "", "Port": 0, "State": state}})
}

fn controllers(scsi: &Value, serial: &Value) -> Vec<Value> {
    let virtio = "virtio-non-transitional";
    let one = |kind: &str, index: usize, model: &str, name: &str, address: &Value| {
        json!({"Type": kind, "Index": index.to_string(), "Model": model, "Driver": null, "Alias": alias(name, false),
            "Address": address, "PCIHole64": null, "Target": null})
    };
    let mut all = vec![
        one("usb", 0, "none", "usb", &Value::Null),
        one("scsi", 0, virtio, "scsi0", scsi),
        one("virtio-serial", 0, virtio, "virtio-serial0", serial),
        // q35 has it at this place.
        one("sata", 0, "", "ide", &address(0, 0x1f, 2)),
        one("pci", 0, "pcie-root", "pcie.0", &Value::Null),
    ];
    for port in 1..=PORTS {
        let mut controller =
            one("pci", port, "pcie-root-port", &format!("pci.{port}"), &address(0, 2, port - 1));
        controller["Target"] = json!({"Hotplug": "", "BusNr": null, "NUMANode": null});
        all.push(controller);
    }
    all
}

/// The interfaces that the domain has, by the status of the VMI.
fn nics(vmi: &Value) -> Vec<&Value> {
    list(vmi, "/status/interfaces").iter().filter(|one| text(one, "/infoSource").contains("domain")).collect()
}

fn interface(status: &Value, index: usize, address: &Value) -> Value {
    json!({"XMLName": go_name("interface"), "Address": address, "Type": "ethernet", "TrustGuestRxFilters": "",
        "Source": {"Network": "", "Device": "", "Bridge": "", "Mode": "", "Address": null},
        "Target": {"Device": format!("tap{index}"), "Managed": "no"}, "Model": {"Type": "virtio-non-transitional"},
        "MAC": {"MAC": text(status, "/mac")}, "MTU": {"Size": "1500"}, "BandWidth": null, "BootOrder": null,
        "LinkState": if text(status, "/linkState") == "down" { json!({"State": "down"}) } else { Value::Null },
        "FilterRef": null, "Alias": alias(text(status, "/name"), true), "Driver": null, "Rom": {"Enabled": "no"},
        "ACPI": null, "Backend": null, "PortForward": null})
}

fn host_devices(vmi: &Value) -> Vec<Value> {
    let kinds = [("hostDevices", "hostdevice"), ("gpus", "gpu")];
    let all = kinds.iter().flat_map(|(key, prefix)| {
        list(vmi, &format!("/spec/domain/devices/{key}")).iter().map(move |one| (*prefix, one))
    });
    all.map(|(prefix, one)| {
        json!({"XMLName": go_name("hostdev"), "Source": {"Address": null}, "Type": "pci", "BootOrder": null,
            "Managed": "no", "Mode": "subsystem", "Model": "", "Address": null,
            "Alias": alias(&format!("{prefix}-{}", text(one, "/name")), true), "Display": "", "RamFB": "",
            "Driver": null, "ACPI": null})
    })
    .collect()
}

/// Every disk that has a name in the guest, without its address, and whether it is on the PCI bus.
fn disks(vmi: &Value) -> Vec<(Value, bool)> {
    let targets = volume_targets(vmi);
    let all = targets.iter().filter(|volume| !text(volume, "/target").is_empty());
    all.enumerate().map(|(index, volume)| disk(vmi, volume, index)).collect()
}

fn disk(vmi: &Value, volume: &Value, index: usize) -> (Value, bool) {
    let (name, target) = (text(volume, "/name"), text(volume, "/target"));
    let spec = list(vmi, "/spec/domain/devices/disks").iter().find(|disk| text(disk, "/name") == name);
    let kind =
        ["disk", "cdrom", "lun"].into_iter().find(|kind| spec.is_some_and(|disk| disk.get(*kind).is_some()));
    let kind = kind.unwrap_or("disk");
    let bus = spec.map_or("", |disk| text(disk, &format!("/{kind}/bus")));
    let bus = match (bus, kind) {
        ("", "cdrom") => "sata",
        ("", _) => "virtio",
        (bus, _) => bus,
    };
    let (path, is_block, format) = source(vmi, volume, index);
    let is_virtio = bus == "virtio";
    let described = json!({
        "Device": kind, "Snapshot": "", "Type": if is_block { "block" } else { "file" },
        "Source": {"Dev": if is_block { path.as_str() } else { "" }, "File": if is_block { "" } else { path.as_str() },
            "StartupPolicy": "", "Protocol": "", "Name": "", "Host": null, "Reservations": null, "Slices": null,
            "DataStore": null},
        "Target": {"Bus": bus, "Device": target, "Tray": ""},
        "Serial": spec.map_or("", |disk| text(disk, "/serial")),
        "Driver": {"Cache": "none", "ErrorPolicy": "stop", "IO": if is_block { "native" } else { "" }, "Name": "qemu",
            "Type": format, "IOThread": null, "IOThreads": null, "Queues": null, "Discard": "unmap", "IOMMU": ""},
        "ReadOnly": if kind == "cdrom" { json!({}) } else { Value::Null },
        "Auth": null, "Alias": alias(name, true), "BackingStore": {"Type": "", "Format": null, "Source": null},
        "BootOrder": spec.and_then(|disk| disk.get("bootOrder")).map(|order| json!({"Order": order})),
        "Address": null, "Model": if is_virtio { "virtio-non-transitional" } else { "" }, "BlockIO": null,
        "FilesystemOverhead": null, "Capacity": null, "Shareable": null,
    });
    (described, is_virtio)
}

/// Where a disk is in its launcher, whether that is a block device, and in which format.
fn source(vmi: &Value, volume: &Value, index: usize) -> (String, bool, &'static str) {
    let name = text(volume, "/name");
    let is_block = text(volume, "/persistentVolumeClaimInfo/volumeMode") == "Block";
    let hotplugged = volume.get("hotplugVolume").is_some();
    let kind = list(vmi, "/spec/volumes").iter().find(|one| text(one, "/name") == name);
    let is = |key: &str| kind.is_some_and(|one| one.get(key).is_some());
    match (hotplugged, is_block) {
        (true, true) => (format!("/var/run/kubevirt/hotplug-disks/{name}"), true, "raw"),
        (true, false) => (format!("/var/run/kubevirt/hotplug-disks/{name}.img"), false, "raw"),
        (false, true) => (format!("/dev/{name}"), true, "raw"),
        _ if is("containerDisk") => {
            (format!("/var/run/kubevirt-ephemeral-disks/disk-data/{name}/disk.qcow2"), false, "qcow2")
        }
        _ if is("cloudInitNoCloud") || is("cloudInitConfigDrive") => {
            let (namespace, owner) = (text(vmi, "/metadata/namespace"), text(vmi, "/metadata/name"));
            (
                format!("/var/run/kubevirt-ephemeral-disks/cloud-init-data/{namespace}/{owner}/noCloud.iso"),
                false,
                "raw",
            )
        }
        _ if is("emptyDisk") => (format!("/var/run/libvirt/empty-disks/{name}.qcow2"), false, "qcow2"),
        _ if is("persistentVolumeClaim") || is("dataVolume") => {
            (format!("/var/run/kubevirt-private/vmi-disks/{name}/disk.img"), false, "raw")
        }
        _ => (format!("/var/run/kubevirt-private/vmi-disks/{name}/disk{index}.img"), false, "raw"),
    }
}

/// `DomainStats.Net`: what is counted of interfaces is in the metrics of virt-handler alone.
pub fn traffic(vmi: &Value) -> Vec<Value> {
    nics(vmi).iter().enumerate().map(|(index, one)| counted("tap", index, text(one, "/name"))).collect()
}

fn counted(prefix: &str, index: usize, alias: &str) -> Value {
    let mut object =
        json!({"NameSet": true, "Name": format!("{prefix}{index}"), "AliasSet": true, "Alias": alias});
    for key in ["RxBytes", "RxPkts", "RxErrs", "RxDrop", "TxBytes", "TxPkts", "TxErrs", "TxDrop"] {
        object[format!("{key}Set")] = false.into();
        object[key] = 0.into();
    }
    object
}

/// `DomainStats.Block`.
pub fn block(vmi: &Value) -> Vec<Value> {
    let disks = disks(vmi);
    let all = disks.iter().enumerate();
    all.map(|(index, (disk, _))| {
        let path = [text(disk, "/Source/File"), text(disk, "/Source/Dev")].concat();
        let mut object = json!({"NameSet": true, "Name": text(disk, "/Target/Device"), "Alias": text(disk, "/Alias/Name"),
            "BackingIndexSet": true, "BackingIndex": index + 1, "PathSet": true, "Path": path});
        for key in ["RdReqs", "RdBytes", "RdTimes", "WrReqs", "WrBytes", "WrTimes", "FlReqs", "FlTimes", "Errors",
            "Allocation", "Capacity", "Physical"]
        {
            object[format!("{key}Set")] = false.into();
            object[key] = 0.into();
        }
        object
    })
    .collect()
}
