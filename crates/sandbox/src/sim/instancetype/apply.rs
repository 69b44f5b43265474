//! Instance types and preferences laid over a template (`pkg/instancetype/apply`, `preference/apply`, v1.9): CPU, memory,
//! devices and placement from the instance type, which a template must not say itself, and what the preference would
//! like where nobody else says anything.

use apimachinery::quantity;
use apimachinery::tree::{Map, Value, json};

use crate::sim::json::{list, map, put, slot, text};

/// Lays both over a template's spec.
///
/// # Errors
/// The fields of the template that are in the way, as `domain.cpu.sockets`.
pub fn lay_over(
    spec: &mut Value,
    instancetype: Option<&Value>,
    preference: Option<&Value>,
) -> Result<(), Vec<String>> {
    if let Some(instancetype) = instancetype {
        let conflicts = conflicts(spec, instancetype);
        if !conflicts.is_empty() {
            return Err(conflicts);
        }
        cpu(spec, instancetype, preference);
        memory(spec, instancetype);
        for key in ["gpus", "hostDevices"] {
            if let Some(devices) = instancetype.get(key) {
                put(spec, &["domain", "devices", key], devices.clone());
            }
        }
        for (key, path) in [
            ("ioThreadsPolicy", &["domain", "ioThreadsPolicy"][..]),
            ("ioThreads", &["domain", "ioThreads"]),
            ("launchSecurity", &["domain", "launchSecurity"]),
            ("nodeSelector", &["nodeSelector"]),
            ("schedulerName", &["schedulerName"]),
        ] {
            if let Some(value) = instancetype.get(key) {
                put(spec, path, value.clone());
            }
        }
    }
    if let Some(preference) = preference {
        prefer(spec, preference);
    }
    Ok(())
}

/// What the template says although the instance type decides it.
fn conflicts(spec: &Value, instancetype: &Value) -> Vec<String> {
    let said = |pointer: &str| {
        spec.pointer(pointer).is_some_and(|value| match value {
            Value::Null | Value::Bool(false) => false,
            Value::Number(number) => number.as_i64() != Some(0),
            Value::String(text) => !text.is_empty(),
            Value::Array(list) => !list.is_empty(),
            Value::Object(map) => !map.is_empty(),
            Value::Bool(true) => true,
        })
    };
    let always = [
        "/domain/resources/requests/cpu",
        "/domain/resources/limits/cpu",
        "/domain/cpu/sockets",
        "/domain/cpu/cores",
        "/domain/cpu/threads",
        "/domain/memory/guest",
        "/domain/resources/requests/memory",
        "/domain/resources/limits/memory",
    ];
    let with = [
        ("/cpu/model", "/domain/cpu/model"),
        ("/cpu/dedicatedCPUPlacement", "/domain/cpu/dedicatedCpuPlacement"),
        ("/cpu/isolateEmulatorThread", "/domain/cpu/isolateEmulatorThread"),
        ("/cpu/numa", "/domain/cpu/numa"),
        ("/cpu/realtime", "/domain/cpu/realtime"),
        ("/memory/hugepages", "/domain/memory/hugepages"),
        ("/memory/maxGuest", "/domain/memory/maxGuest"),
        ("/gpus", "/domain/devices/gpus"),
        ("/hostDevices", "/domain/devices/hostDevices"),
        ("/ioThreadsPolicy", "/domain/ioThreadsPolicy"),
        ("/launchSecurity", "/domain/launchSecurity"),
        ("/schedulerName", "/schedulerName"),
    ];
    let given = |pointer: &&(&str, &str)| instancetype.pointer(pointer.0).is_some();
    let fields = always.into_iter().chain(with.iter().filter(given).map(|(_, field)| *field));
    fields.filter(|field| said(field)).map(|field| field[1..].replace('/', ".")).collect()
}

fn cpu(spec: &mut Value, instancetype: &Value, preference: Option<&Value>) {
    let given = instancetype.get("cpu").unwrap_or(&Value::Null);
    let cpu = slot(spec, &["domain", "cpu"]);
    if !cpu.is_object() {
        *cpu = json!({});
    }
    for (from, to) in [
        ("model", "model"),
        ("dedicatedCPUPlacement", "dedicatedCpuPlacement"),
        ("isolateEmulatorThread", "isolateEmulatorThread"),
        ("numa", "numa"),
        ("realtime", "realtime"),
        ("maxSockets", "maxSockets"),
    ] {
        if let Some(value) = given.get(from) {
            cpu[to] = value.clone();
        }
    }
    let (sockets, cores, threads) = topology(given["guest"].as_i64().unwrap_or(1), preference);
    for (key, count) in [("sockets", sockets), ("cores", cores), ("threads", threads)] {
        cpu[key] = count.into();
    }
}

/// Sockets, cores and threads of so many vCPUs (`applyGuestCPUTopology`).
fn topology(vcpus: i64, preference: Option<&Value>) -> (i64, i64, i64) {
    let preference = preference.unwrap_or(&Value::Null);
    if vcpus <= 1 {
        return (1, 1, 1);
    }
    match Topology::of(preference) {
        Topology::Cores => (1, vcpus, 1),
        Topology::Threads => (1, 1, vcpus),
        Topology::Spread => {
            let (ratio, across) = spread(preference);
            match across {
                "CoresThreads" => (1, vcpus / ratio, ratio),
                "SocketsCoresThreads" => (vcpus / 2 / ratio, ratio, 2),
                _ => (vcpus / ratio, ratio, 1),
            }
        }
        Topology::Sockets | Topology::Any => (vcpus, 1, 1),
    }
}

/// What a preference makes vCPUs of (`GetPreferredTopology`), by the present and the deprecated names.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Topology {
    Sockets,
    Cores,
    Threads,
    Spread,
    Any,
}

impl Topology {
    pub fn of(preference: &Value) -> Self {
        match text(preference, "/cpu/preferredCPUTopology") {
            "cores" | "preferCores" => Self::Cores,
            "threads" | "preferThreads" => Self::Threads,
            "spread" | "preferSpread" => Self::Spread,
            "any" | "preferAny" => Self::Any,
            _ => Self::Sockets,
        }
    }
}

/// The ratio of a spread topology, and what it is spread across (`GetSpreadOptions`).
pub fn spread(preference: &Value) -> (i64, &str) {
    let ratio = preference
        .pointer("/cpu/spreadOptions/ratio")
        .or(preference.get("preferSpreadSocketToCoreRatio"))
        .and_then(Value::as_i64)
        .filter(|ratio| *ratio > 0)
        .unwrap_or(2);
    let across = match text(preference, "/cpu/spreadOptions/across") {
        "" => "SocketsCores",
        across => across,
    };
    (ratio, across)
}

fn memory(spec: &mut Value, instancetype: &Value) {
    let given = instancetype.get("memory").unwrap_or(&Value::Null);
    for key in ["guest", "hugepages", "maxGuest"] {
        if let Some(value) = given.get(key) {
            put(spec, &["domain", "memory", key], value.clone());
        }
    }
    let percent = given["overcommitPercent"].as_i64().unwrap_or(0);
    if let Some(guest) = given.get("guest").and_then(quantity::units).filter(|_| (1..=100).contains(&percent))
    {
        let request = guest / 100 * (100 - percent) + guest % 100 * (100 - percent) / 100;
        put(spec, &["domain", "resources", "requests", "memory"], quantity::bytes(request));
    }
}

/// What the preference would like, where nothing is said.
fn prefer(spec: &mut Value, preference: &Value) {
    let set = |spec: &mut Value, path: &[&str], value: Option<&Value>| {
        let Some(value) = value else { return };
        let there = slot(spec, path);
        if there.is_null() || there.as_str() == Some("") {
            *there = value.clone();
        }
    };
    let of = |pointer: &str| preference.pointer(pointer);
    set(spec, &["domain", "machine", "type"], of("/machine/preferredMachineType"));
    set(spec, &["terminationGracePeriodSeconds"], of("/preferredTerminationGracePeriodSeconds"));
    set(spec, &["subdomain"], of("/preferredSubdomain"));
    set(spec, &["architecture"], of("/preferredArchitecture"));
    if of("/firmware/preferredEfi").is_some() && spec.pointer("/domain/firmware/bootloader").is_none() {
        set(spec, &["domain", "firmware", "bootloader", "efi"], of("/firmware/preferredEfi"));
    }
    for (preferred, path) in [
        ("/devices/preferredAutoattachGraphicsDevice", "autoattachGraphicsDevice"),
        ("/devices/preferredAutoattachMemBalloon", "autoattachMemBalloon"),
        ("/devices/preferredAutoattachPodInterface", "autoattachPodInterface"),
        ("/devices/preferredAutoattachSerialConsole", "autoattachSerialConsole"),
        ("/devices/preferredNetworkInterfaceMultiQueue", "networkInterfaceMultiqueue"),
        ("/devices/preferredBlockMultiQueue", "blockMultiQueue"),
        ("/devices/preferredRng", "rng"),
        ("/devices/preferredTPM", "tpm"),
    ] {
        set(spec, &["domain", "devices", path], of(preferred));
    }
    if let Some(features) = of("/features").and_then(Value::as_object) {
        for (key, value) in features {
            let mut name = key.trim_start_matches("preferred").to_owned();
            name[..1].make_ascii_lowercase();
            set(spec, &["domain", "features", &name], Some(value));
        }
    }
    let features = list(preference, "/cpu/preferredCPUFeatures");
    if !features.is_empty() {
        let mut have = list(spec, "/domain/cpu/features").to_vec();
        for feature in features {
            if have.iter().all(|one| one["name"] != feature["name"]) {
                have.push(feature.clone());
            }
        }
        put(spec, &["domain", "cpu", "features"], have);
    }
    let pods: Vec<Value> = list(spec, "/networks")
        .iter()
        .filter(|network| network.get("pod").is_some())
        .map(|network| network["name"].clone())
        .collect();
    let devices = map(preference, "/devices").cloned().unwrap_or_default();
    let devices_of = slot(spec, &["domain", "devices"]);
    for disk in devices_of.get_mut("disks").and_then(Value::as_array_mut).into_iter().flatten() {
        prefer_disk(disk, &devices);
    }
    for interface in devices_of.get_mut("interfaces").and_then(Value::as_array_mut).into_iter().flatten() {
        set(interface, &["model"], devices.get("preferredInterfaceModel"));
        let bound = ["bridge", "masquerade", "sriov", "binding", "macvtap", "passtBinding", "slirp"]
            .iter()
            .any(|binding| interface.get(*binding).is_some());
        if !bound && pods.contains(&interface["name"]) {
            set(interface, &["masquerade"], devices.get("preferredInterfaceMasquerade"));
        }
    }
}

fn prefer_disk(disk: &mut Value, devices: &Map) {
    if ["disk", "cdrom", "lun"].iter().all(|kind| disk.get(*kind).is_none()) {
        disk["disk"] = json!({});
    }
    for (kind, preferred) in
        [("disk", "preferredDiskBus"), ("cdrom", "preferredCdromBus"), ("lun", "preferredLunBus")]
    {
        if let Some(bus) = devices.get(preferred)
            && disk.get(kind).is_some()
            && text(disk, &format!("/{kind}/bus")).is_empty()
        {
            disk[kind]["bus"] = bus.clone();
        }
    }
    if disk.get("disk").is_none() {
        return;
    }
    for (key, preferred) in
        [("cache", "preferredDiskCache"), ("io", "preferredDiskIO"), ("blockSize", "preferredDiskBlockSize")]
    {
        if let Some(value) = devices.get(preferred)
            && disk.get(key).is_none()
        {
            disk[key] = value.clone();
        }
    }
    if let Some(thread) = devices.get("preferredDiskDedicatedIoThread")
        && disk.get("dedicatedIOThread").is_none()
        && disk["disk"]["bus"] == "virtio"
    {
        disk["dedicatedIOThread"] = thread.clone();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vcpus_become_what_the_preference_likes() {
        for (preferred, vcpus, expected) in [
            (json!({}), 4, (4, 1, 1)),
            (json!({"cpu": {"preferredCPUTopology": "cores"}}), 4, (1, 4, 1)),
            (json!({"cpu": {"preferredCPUTopology": "preferThreads"}}), 4, (1, 1, 4)),
            (json!({"cpu": {"preferredCPUTopology": "spread"}}), 6, (3, 2, 1)),
            (
                json!({"cpu": {"preferredCPUTopology": "spread", "spreadOptions": {"across": "CoresThreads", "ratio": 4}}}),
                8,
                (1, 2, 4),
            ),
            (
                json!({"cpu": {"preferredCPUTopology": "spread", "spreadOptions": {"across": "SocketsCoresThreads"}}}),
                8,
                (2, 2, 2),
            ),
            (json!({"cpu": {"preferredCPUTopology": "cores"}}), 1, (1, 1, 1)),
        ] {
            assert_eq!(topology(vcpus, Some(&preferred)), expected, "{preferred}");
        }
    }

    #[test]
    fn an_instance_type_decides_and_a_preference_completes() {
        let mut spec = json!({"networks": [{"name": "default", "pod": {}}], "domain": {"devices": {
            "disks": [{"name": "root"}, {"name": "cd", "cdrom": {}}, {"name": "own", "disk": {"bus": "sata"}}],
            "interfaces": [{"name": "default"}]}}});
        let instancetype = json!({"cpu": {"guest": 2, "model": "host-passthrough"},
            "memory": {"guest": "2Gi", "overcommitPercent": 50}, "nodeSelector": {"zone": "a"}});
        let preference = json!({"machine": {"preferredMachineType": "pc-q35-rhel9.4.0"},
            "cpu": {"preferredCPUFeatures": [{"name": "vmx", "policy": "require"}]},
            "features": {"preferredAcpi": {"enabled": true}},
            "devices": {"preferredDiskBus": "virtio", "preferredCdromBus": "sata", "preferredDiskCache": "none",
                "preferredInterfaceModel": "e1000", "preferredInterfaceMasquerade": {}}});
        lay_over(&mut spec, Some(&instancetype), Some(&preference)).unwrap();
        let domain = &spec["domain"];
        assert_eq!(
            domain["cpu"],
            json!({"sockets": 2, "cores": 1, "threads": 1, "model": "host-passthrough",
                "features": [{"name": "vmx", "policy": "require"}]})
        );
        assert_eq!(domain["memory"]["guest"], "2Gi");
        assert_eq!(domain["resources"]["requests"]["memory"], "1Gi");
        assert_eq!(domain["machine"]["type"], "pc-q35-rhel9.4.0");
        assert_eq!(domain["features"]["acpi"]["enabled"], true);
        assert_eq!(
            domain["devices"]["disks"],
            json!([{"name": "root", "disk": {"bus": "virtio"}, "cache": "none"}, {"name": "cd", "cdrom": {"bus": "sata"}},
                {"name": "own", "disk": {"bus": "sata"}, "cache": "none"}])
        );
        assert_eq!(
            domain["devices"]["interfaces"],
            json!([{"name": "default", "model": "e1000", "masquerade": {}}])
        );
        assert_eq!(spec["nodeSelector"], json!({"zone": "a"}));
    }

    #[test]
    fn what_the_template_says_itself_is_in_the_way() {
        let mut spec = json!({"domain": {"cpu": {"sockets": 2, "cores": 0}, "memory": {"guest": "1Gi"}}});
        let fields =
            lay_over(&mut spec, Some(&json!({"cpu": {"guest": 1}, "memory": {"guest": "1Gi"}})), None);
        assert_eq!(fields.unwrap_err(), ["domain.cpu.sockets", "domain.memory.guest"]);
    }
}
