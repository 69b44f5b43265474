//! The running domain as a launcher tells of it: `api.Domain` in JSON, with Go's names and every field, as
//! `GetDomain` was recorded (v1.9, libvirt 11.3). Made from the VMI when somebody asks.

use apimachinery::tree::{Value, json};
use jiff::Timestamp;

use super::devices;
use crate::sim::guest::machine::{Machine, VirtioMem};
use crate::sim::guest::{self, Guest, agent};
use crate::sim::json::{integer, list, text};
use crate::sim::metrics::Load;
use crate::sim::virt_handler::CANONICAL_MACHINE;

/// What `GetDomain` answers about the guest of a VMI.
pub fn describe(vmi: &Value, guest: &Guest, now: Timestamp) -> Value {
    let machine = &guest.machine;
    let (namespace, name) = machine.domain.split_once('_').unwrap_or_default();
    json!({
        "kind": "Domain", "apiVersion": "1.2.2",
        // The uid is in the metadata of the domain alone.
        "ObjectMeta": {"name": name, "namespace": namespace},
        "Spec": spec(vmi, guest, now),
        "Status": status(vmi, guest),
    })
}

fn spec(vmi: &Value, guest: &Guest, now: Timestamp) -> Value {
    let machine = &guest.machine;
    let most = machine.boot() + machine.virtio_mem().map_or(0, |device| device.size);
    let mut spec = json!({
        "XMLName": go_name("domain"), "Type": "kvm", "XmlNS": "",
        "Name": machine.domain, "UUID": text(vmi, "/spec/domain/firmware/uuid"),
        "Memory": kib(most), "CurrentMemory": kib(machine.counted()), "MaxMemory": null,
        "MemoryBacking": null, "OS": system(vmi), "SysInfo": smbios(vmi),
        "Devices": devices::describe(vmi, guest),
        "Clock": {"Offset": "utc", "Timezone": "", "Adjustment": "", "Timer": null},
        "Resource": null, "QEMUCmd": null, "Metadata": {"KubeVirt": metadata(vmi, guest, now)},
        "Features": features(vmi), "CPU": cpu(vmi, machine),
        "VCPU": {"Placement": "static", "CPUs": machine.most_vcpus()},
        "VCPUs": {"VCPU": vcpus(machine)}, "CPUTune": null, "NUMATune": null, "IOThreads": null,
        "LaunchSecurity": null, "OnReboot": "restart", "IOMMUFD": null,
    });
    // Without room to grow a domain has none of it.
    if let Some(most) = vmi.pointer("/spec/domain/memory/maxGuest").and_then(apimachinery::quantity::units) {
        spec["MaxMemory"] = json!({"Value": most >> 10, "Unit": "KiB", "Slots": 0});
    }
    spec
}

/// An `xml.Name`, which Go marshals along.
pub fn go_name(local: &str) -> Value {
    json!({"Space": "", "Local": local})
}

/// Bytes as libvirt writes them.
pub fn kib(bytes: i64) -> Value {
    json!({"Value": bytes >> 10, "Unit": "KiB"})
}

/// A virtio-mem device's target.
pub fn memory_target(device: VirtioMem) -> Value {
    json!({"Size": kib(device.size), "Requested": kib(device.requested), "Current": kib(device.current),
        "Node": "0", "Block": kib(device.block), "Address": {"Base": "0x100000000"}})
}

fn system(vmi: &Value) -> Value {
    let machine = [text(vmi, "/status/machine/type"), text(vmi, "/spec/domain/machine/type")];
    let machine = machine.into_iter().find(|one| !matches!(*one, "" | "q35")).unwrap_or(CANONICAL_MACHINE);
    json!({"Firmware": "", "FirmwareInfo": null,
        "Type": {"OS": "hvm", "Arch": "x86_64", "Machine": machine},
        "ACPI": null, "SMBios": {"Mode": "sysinfo"}, "BootOrder": [{"Dev": "hd"}], "BootMenu": null, "BIOS": null,
        "BootLoader": null, "NVRam": null, "Kernel": "", "Initrd": "", "KernelArgs": ""})
}

fn smbios(vmi: &Value) -> Value {
    let mut entries = vec![json!({"Name": "uuid", "Value": text(vmi, "/spec/domain/firmware/uuid")})];
    let serial = text(vmi, "/spec/domain/firmware/serial");
    if !serial.is_empty() {
        entries.push(json!({"Name": "serial", "Value": serial}));
    }
    json!({"Type": "smbios", "System": entries, "BIOS": null, "BaseBoard": null, "Chassis": null})
}

fn metadata(vmi: &Value, guest: &Guest, now: Timestamp) -> Value {
    let seconds = vmi.pointer("/spec/terminationGracePeriodSeconds").and_then(Value::as_i64).unwrap_or(30);
    json!({
        "UID": guest.machine.uid(),
        "GracePeriod": {"DeletionGracePeriodSeconds": seconds, "DeletionTimestamp": null, "MarkedForGracefulShutdown": null},
        "Migration": null, "Backup": null, "AccessCredential": null,
        "MemoryDump": guest.dump.as_ref().map(|dump| dump.metadata(now)),
    })
}

fn features(vmi: &Value) -> Value {
    let off = vmi.pointer("/spec/domain/features/acpi/enabled") == Some(&Value::Bool(false));
    let acpi = if off { Value::Null } else { json!({}) };
    json!({"ACPI": acpi, "APIC": null, "Hyperv": null, "SMM": null, "KVM": null, "PVSpinlock": null, "PMU": null,
        "VMPort": {"State": "off"}})
}

fn cpu(vmi: &Value, machine: &Machine) -> Value {
    let count = |field: &str| integer(vmi, &format!("/spec/domain/cpu/{field}")).max(1);
    let (cores, threads) = (count("cores"), count("threads"));
    let model = match text(vmi, "/spec/domain/cpu/model") {
        // libvirt names what the host is.
        "" | "host-model" | "host-passthrough" => "Skylake-Server-IBRS",
        named => named,
    };
    let mut features = vec![json!({"Name": "hypervisor", "Policy": "require"})];
    for feature in list(vmi, "/spec/domain/cpu/features") {
        let policy = match text(feature, "/policy") {
            "" => "require",
            policy => policy,
        };
        features.push(json!({"Name": text(feature, "/name"), "Policy": policy}));
    }
    let all = machine.most_vcpus();
    let numa = machine.boot() >> 10;
    json!({
        "Mode": "custom", "Model": model, "Features": features,
        "Topology": {"Sockets": all / (cores * threads), "Cores": cores, "Threads": threads},
        "NUMA": {"Cells": [{"ID": "0", "CPUs": format!("0-{}", all - 1), "Memory": numa, "Unit": "KiB",
            "MemoryAccess": "", "Distances": null}]},
    })
}

/// Those of the first socket cannot be unplugged. The order is that in which they came.
fn vcpus(machine: &Machine) -> Vec<Value> {
    let one = |id: i64| {
        let on = id < machine.vcpus;
        json!({"ID": id, "Enabled": if on { "yes" } else { "no" },
            "Hotpluggable": if id < machine.per_socket() { "no" } else { "yes" }, "Order": if on { id + 1 } else { 0 }})
    };
    (0..machine.most_vcpus()).map(one).collect()
}

fn status(vmi: &Value, guest: &Guest) -> Value {
    let (status, reason) = match (guest.paused, &guest.io_error) {
        (_, Some(_)) => ("Paused", "IOError"),
        (true, None) => ("Paused", "User"),
        (false, None) => ("Running", "Unknown"),
    };
    let has_agent = guest::manner(vmi) != "no-agent";
    let os = if has_agent { agent::system(vmi) } else { Value::Null };
    let field = |key: &str| text(&os, key).to_owned();
    let interfaces: Vec<Value> = list(vmi, "/status/interfaces")
        .iter()
        .filter(|_| has_agent)
        .enumerate()
        .map(|(index, one)| {
            json!({"Mac": text(one, "/mac"), "Ip": text(one, "/ipAddress"), "IPs": one["ipAddresses"],
                "InterfaceName": format!("eth{index}")})
        })
        .collect();
    json!({
        "Status": status, "Reason": reason,
        "Interfaces": if interfaces.is_empty() { Value::Null } else { interfaces.into() },
        "OSInfo": {"Name": field("/name"), "KernelRelease": field("/kernelRelease"), "Version": field("/version"),
            "PrettyName": field("/prettyName"), "VersionId": field("/versionId"),
            "KernelVersion": field("/kernelVersion"), "Machine": field("/machine"), "Id": field("/id")},
        "FSFreezeStatus": {"Status": text(vmi, "/status/fsFreezeStatus")},
        "GuestPanicInfo": null, "PanicCount": 0,
    })
}

/// What `GetDomainStats` answers about a load, in the form of `stats.DomainStats`. What a domain without agent and
/// without a migration does not know is not set.
pub fn statistics(vmi: &Value, guest: &Guest, load: Option<&Load>) -> Value {
    let machine = &guest.machine;
    #[allow(clippy::cast_possible_truncation, reason = "a count of nanoseconds and bytes")]
    let whole = |number: f64| number as i64;
    let nanoseconds = load.map_or(0, |load| whole(load.cpu_seconds() * 1e9));
    let usable = load.map_or(0, |load| whole(load.usable()) >> 10);
    let available = load.map_or(0, |load| whole(load.available()) >> 10);
    let resident = load.map_or(0, |load| whole(load.resident()) >> 10);
    let mut memory = json!({"TotalSet": true, "Total": machine.counted() >> 10});
    for (key, value) in [
        ("Unused", usable),
        ("Cached", 0),
        ("Available", available),
        ("ActualBalloon", machine.boot() >> 10),
        ("RSS", resident),
        ("SwapIn", 0),
        ("SwapOut", 0),
        ("MajorFault", 0),
        ("MinorFault", 0),
        ("Usable", usable),
    ] {
        memory[format!("{key}Set")] = true.into();
        memory[key] = value.into();
    }
    let unset = |keys: &[&str]| {
        let mut object = json!({});
        for key in keys {
            object[format!("{key}Set")] = false.into();
            object[*key] = 0.into();
        }
        object
    };
    let vcpu = |id: i64| {
        let on = id < machine.vcpus;
        let time = if id < machine.online() { nanoseconds / machine.online().max(1) } else { 0 };
        json!({"StateSet": true, "State": i32::from(on), "TimeSet": on, "Time": time, "WaitSet": on, "Wait": 0,
            "DelaySet": on, "Delay": 0})
    };
    let (kernel, user) = (nanoseconds / 5, nanoseconds - nanoseconds / 5);
    json!({
        "Name": machine.domain, "UUID": text(vmi, "/spec/domain/firmware/uuid"),
        "Cpu": {"TimeSet": true, "Time": nanoseconds, "UserSet": true, "User": user, "SystemSet": true, "System": kernel},
        "Memory": memory,
        "MigrateDomainJobInfo": unset(&["DataTotal", "DataProcessed", "MemoryBps", "DataRemaining", "MemDirtyRate"]),
        "Vcpu": (0..machine.most_vcpus()).map(vcpu).collect::<Vec<_>>(),
        "Net": devices::traffic(vmi),
        "Block": devices::block(vmi),
        "CPUMapSet": true,
        // No vCPU is bound to a CPU of the node.
        "CPUMap": (0..machine.vcpus).map(|_| json!([true, true])).collect::<Vec<_>>(),
        "DirtyRate": unset(&["CalcStatus", "CalcStartTime", "CalcPeriod", "MegabytesPerSecond"]),
        "Load": unset(&["Load1m", "Load5m", "Load15m"]),
    })
}
