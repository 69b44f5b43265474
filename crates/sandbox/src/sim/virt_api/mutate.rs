//! What virt-api's mutating webhooks change (`mutating-webhook/mutators` and `pkg/defaults`, v1.9).

use apimachinery::tree::{Value, json};
use jiff::Timestamp;

use super::KUBEVIRT_USERS;
use crate::sim::cluster::ClusterConfig;
use crate::sim::json::{is_deleting, list, put, text};
use crate::sim::node::uuid;
use crate::sim::virt_controller::defaults::{disks_for_volumes, pod_network};
use crate::sim::virt_controller::vmi::{FINALIZER, record_phase};
use apimachinery::quantity::{bytes, units};

/// The most vCPUs that sockets may be hotplugged up to.
const MAX_VCPUS: i64 = 512;

/// A VM as virt-api wants it; `None` when it is already so. `vm` is the request's object with matchers inferred and
/// what a preference decides early.
pub fn virtual_machine(request: &Value, mut vm: Value, config: &ClusterConfig) -> Option<Vec<Value>> {
    let old = &request["object"];
    if is_deleting(old) || !old["spec"]["template"].is_object() {
        return None;
    }
    let creates = request["operation"] == "CREATE";
    let spec = &mut vm["spec"]["template"]["spec"];
    if creates {
        // The request's uid is unique, and the same in a replay.
        for key in ["uuid", "serial"] {
            if text(spec, &format!("/domain/firmware/{key}")).is_empty() {
                put(spec, &["domain", "firmware", key], uuid(0, &format!("{key}/{}", text(request, "/uid"))));
            }
        }
    }
    set_architecture(spec, config);
    set_machine(spec);
    if !spec["domain"]["resources"].is_object() {
        put(spec, &["domain", "resources"], json!({}));
    }
    if creates && has_pcie(spec) {
        topology_version(&mut vm["spec"]["template"]["metadata"]);
    }
    replace(old, &vm, &["spec", "metadata"])
}

/// A VMI as virt-api wants it: defaults on create, and no status from strangers on update.
pub fn instance(request: &Value, config: &ClusterConfig, now: Timestamp) -> Option<Vec<Value>> {
    let new = &request["object"];
    if request["operation"] == "UPDATE" {
        let status = request["oldObject"].get("status").unwrap_or(&Value::Null);
        let stranger = !KUBEVIRT_USERS.contains(&text(request, "/userInfo/username"));
        let changed = new.get("status").unwrap_or(&Value::Null) != status;
        return (stranger && changed)
            .then(|| vec![json!({"op": "replace", "path": "/status", "value": status})]);
    }
    let mut vmi = new.clone();
    set_defaults(&mut vmi, config);
    let mut finalizers = list(&vmi, "/metadata/finalizers").to_vec();
    finalizers.push(FINALIZER.into());
    put(&mut vmi, &["metadata", "finalizers"], finalizers);
    put(&mut vmi, &["status", "phase"], "Pending");
    record_phase(&mut vmi, now);
    replace(new, &vmi, &["spec", "metadata", "status"])
}

/// Whole parts are replaced, as virt-api does; `add` where there was none. Of the metadata only what differs: the
/// components here do not read `managedFields`, and must not lose them.
fn replace(old: &Value, new: &Value, parts: &[&str]) -> Option<Vec<Value>> {
    let operation = |old: Option<&Value>, new: Option<&Value>, path: String| {
        let op = match (old, new) {
            (old, new) if old == new => return None,
            (Some(_), _) => "replace",
            (None, _) => "add",
        };
        Some(json!({"op": op, "path": path, "value": new}))
    };
    let mut operations = Vec::new();
    for part in parts {
        match (old.get(*part), new[*part].as_object()) {
            (Some(old), Some(new)) if *part == "metadata" => {
                let changed = new
                    .iter()
                    .filter_map(|(key, new)| operation(old.get(key), Some(new), format!("/metadata/{key}")));
                operations.extend(changed);
            }
            (old, _) => operations.extend(operation(old, new.get(*part), format!("/{part}"))),
        }
    }
    (!operations.is_empty()).then_some(operations)
}

fn set_architecture(spec: &mut Value, config: &ClusterConfig) {
    if text(spec, "/architecture").is_empty() && !config.default_architecture.is_empty() {
        spec["architecture"] = config.default_architecture.clone().into();
    }
}

fn set_machine(spec: &mut Value) {
    if text(spec, "/domain/machine/type").is_empty() {
        let machine = match text(spec, "/architecture") {
            "arm64" => "virt",
            "s390x" => "s390-ccw-virtio",
            _ => "q35",
        };
        put(spec, &["domain", "machine", "type"], machine);
    }
}

fn has_pcie(spec: &Value) -> bool {
    let machine = text(spec, "/domain/machine/type");
    matches!(text(spec, "/architecture"), "amd64" | "arm64" | "")
        && (machine.is_empty() || machine.contains("q35") || machine.starts_with("virt"))
}

fn topology_version(metadata: &mut Value) {
    if metadata.pointer("/annotations/kubevirt.io~1pci-topology-version").is_none() {
        put(metadata, &["annotations", "kubevirt.io/pci-topology-version"], "v3");
    }
}

/// The defaults of a VMI's spec that both a new VMI gets and a VM is validated with
/// (`SetDefaultVirtualMachineInstanceSpec`).
pub fn set_spec_defaults(spec: &mut Value, config: &ClusterConfig) {
    set_architecture(spec, config);
    set_machine(spec);
    let resource = |spec: &Value, side: &str, name: &str| {
        spec.pointer(&format!("/domain/resources/{side}/{name}")).cloned()
    };
    if let (Some(limit), None) = (resource(spec, "limits", "cpu"), resource(spec, "requests", "cpu")) {
        put(spec, &["domain", "resources", "requests", "cpu"], limit);
    }
    if spec.pointer("/domain/memory/guest").is_none() {
        let page = spec.pointer("/domain/memory/hugepages/pageSize").cloned();
        let guest =
            resource(spec, "requests", "memory").or_else(|| resource(spec, "limits", "memory")).or(page);
        if let Some(guest) = guest {
            put(spec, &["domain", "memory", "guest"], guest);
        }
    }
    set_topology(spec);
    for volume in spec.get_mut("volumes").and_then(Value::as_array_mut).into_iter().flatten() {
        if let Some(disk) =
            volume.get_mut("containerDisk").filter(|disk| text(disk, "/imagePullPolicy").is_empty())
        {
            let image = text(disk, "/image");
            let moving = image.ends_with(":latest") || !image.contains([':', '@']);
            disk["imagePullPolicy"] = if moving { "Always" } else { "IfNotPresent" }.into();
        }
    }
    if text(spec, "/evictionStrategy").is_empty() {
        spec["evictionStrategy"] = config.eviction_strategy.clone().into();
    }
    pod_network(spec);
    disks_for_volumes(spec);
}

fn set_topology(spec: &mut Value) {
    let given = |key: &str| spec.pointer(&format!("/domain/cpu/{key}")).and_then(Value::as_i64).unwrap_or(0);
    if ["sockets", "cores", "threads"].iter().any(|key| given(key) != 0) {
        return;
    }
    let asked = ["limits", "requests"]
        .iter()
        .find_map(|side| spec.pointer(&format!("/domain/resources/{side}/cpu")).and_then(units));
    for (key, count) in [("cores", 1), ("sockets", asked.unwrap_or(1).max(1)), ("threads", 1)] {
        put(spec, &["domain", "cpu", key], count);
    }
}

fn set_defaults(vmi: &mut Value, config: &ClusterConfig) {
    let spec = &mut vmi["spec"];
    if !spec.is_object() {
        *spec = json!({});
    }
    set_spec_defaults(spec, config);
    if spec.pointer("/domain/features/acpi/enabled").is_none() {
        put(spec, &["domain", "features", "acpi", "enabled"], true);
    }
    for disk in spec.pointer_mut("/domain/devices/disks").and_then(Value::as_array_mut).into_iter().flatten()
    {
        if ["disk", "cdrom", "lun"].iter().all(|kind| disk.get(*kind).is_none()) {
            disk["disk"] = json!({});
        }
        for kind in ["disk", "cdrom", "lun"] {
            if disk.get(kind).is_some() && text(disk, &format!("/{kind}/bus")).is_empty() {
                disk[kind]["bus"] = "sata".into();
            }
        }
    }
    if text(spec, "/domain/cpu/model").is_empty() {
        put(spec, &["domain", "cpu", "model"], "host-model");
    }
    if let Some(guest) = spec.pointer("/domain/memory/guest").cloned() {
        let memory = json!({"guestAtBoot": guest, "guestCurrent": guest, "guestRequested": guest});
        put(vmi, &["status", "memory"], memory);
    }
    let cpu = &vmi["spec"]["domain"]["cpu"];
    let topology = json!({"sockets": cpu["sockets"].as_i64().unwrap_or(0), "cores": cpu["cores"].as_i64().unwrap_or(0),
        "threads": cpu["threads"].as_i64().unwrap_or(0)});
    if vmi.pointer("/status/currentCPUTopology").is_none() {
        put(vmi, &["status", "currentCPUTopology"], topology);
    }
    if config.live_update && text(vmi, "/spec/architecture") != "arm64" {
        allow_hotplug(&mut vmi["spec"], config.max_hotplug_ratio);
    }
    if has_pcie(&vmi["spec"]) {
        topology_version(&mut vmi["metadata"]);
    }
    // Without the gate Root guests run as the user qemu.
    put(vmi, &["status", "runtimeUser"], if config.gate("Root") { 0 } else { 107 });
}

/// Room to grow: sockets and memory up to `ratio` times what the guest boots with.
fn allow_hotplug(spec: &mut Value, ratio: i64) {
    let of =
        |key: &str| spec.pointer(&format!("/domain/cpu/{key}")).and_then(Value::as_i64).unwrap_or(1).max(1);
    let (sockets, per_socket) = (of("sockets"), of("cores") * of("threads"));
    if spec.pointer("/domain/cpu/maxSockets").and_then(Value::as_i64).unwrap_or(0) == 0 {
        let mut most = sockets * ratio;
        if most * per_socket > MAX_VCPUS {
            most = (MAX_VCPUS / per_socket).max(sockets);
        }
        put(spec, &["domain", "cpu", "maxSockets"], most);
    }
    let Some(guest) = spec.pointer("/domain/memory/guest").and_then(units) else { return };
    let most = guest.saturating_mul(ratio);
    if spec.pointer("/domain/memory/maxGuest").is_none() && memory_can_grow(spec, guest, most) {
        put(spec, &["domain", "memory", "maxGuest"], bytes(most));
    }
}

/// `ValidateLiveUpdateMemory` (`pkg/liveupdate/memory`, v1.9).
fn memory_can_grow(spec: &Value, guest: i64, most: i64) -> bool {
    let huge = text(spec, "/domain/memory/hugepages/pageSize") == "1Gi";
    let block: i64 = if huge { 1 << 30 } else { 2 << 20 };
    let excluded =
        ["/domain/cpu/realtime", "/domain/cpu/numa/guestMappingPassthrough", "/domain/launchSecurity"];
    text(spec, "/architecture") == "amd64"
        && guest >= 1 << 30
        && most > guest
        && guest % block == 0
        && most % block == 0
        && excluded.iter().all(|pointer| spec.pointer(pointer).is_none())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::json::annotation;

    fn config() -> ClusterConfig {
        ClusterConfig::of(&json!({"status": {"defaultArchitecture": "amd64"}}))
    }

    fn applied(request: &Value, operations: Option<Vec<Value>>) -> Value {
        let mut object = request["object"].clone();
        apimachinery::patch::apply_operations(&mut object, &operations.unwrap_or_default()).unwrap();
        object
    }

    fn vm_request(spec: impl Into<Value>) -> Value {
        let spec: Value = spec.into();
        json!({"uid": "r1", "operation": "CREATE", "object": {"metadata": {"name": "v"},
            "spec": {"runStrategy": "Always", "template": {"spec": spec}}}})
    }

    #[test]
    fn a_vm_gets_machine_architecture_firmware_and_topology_version_once() {
        let request = vm_request(json!({"domain": {"devices": {}}}));
        let vm = applied(&request, virtual_machine(&request, request["object"].clone(), &config()));
        let spec = &vm["spec"]["template"]["spec"];
        assert_eq!((text(spec, "/architecture"), text(spec, "/domain/machine/type")), ("amd64", "q35"));
        assert_eq!(text(spec, "/domain/firmware/uuid").len(), 36);
        assert_eq!(annotation(&vm["spec"]["template"], "kubevirt.io/pci-topology-version"), Some("v3"));
        let again = json!({"uid": "r2", "operation": "UPDATE", "object": vm});
        assert_eq!(virtual_machine(&again, again["object"].clone(), &config()), None);
    }

    #[test]
    fn lists_that_are_not_there_stay_away() {
        let request = json!({"operation": "CREATE", "object": {"metadata": {"name": "v"},
            "spec": {"domain": {"devices": {}, "memory": {"guest": "1Gi"}}}}});
        let vmi = applied(&request, instance(&request, &config(), Timestamp::UNIX_EPOCH));
        assert_eq!(vmi.pointer("/spec/volumes"), None, "null is no list, and the definition refuses it");
        assert_eq!(vmi.pointer("/spec/domain/devices/disks"), None);
    }

    #[test]
    fn a_vmi_gets_the_recorded_defaults() {
        let request = json!({"operation": "CREATE", "object": {"metadata": {"name": "v", "finalizers": ["x"]},
            "spec": {"architecture": "amd64", "domain": {"cpu": {"cores": 1, "sockets": 2, "threads": 1},
                "devices": {"disks": [{"name": "root", "disk": {"bus": "virtio"}}], "interfaces": [{"name": "default", "masquerade": {}}]},
                "machine": {"type": "q35"}, "memory": {"guest": "1Gi"}, "resources": {}},
                "networks": [{"name": "default", "pod": {}}],
                "volumes": [{"name": "root", "containerDisk": {"image": "registry.example/fedora:41"}}]}}});
        let vmi = applied(&request, instance(&request, &config(), Timestamp::UNIX_EPOCH));
        let domain = &vmi["spec"]["domain"];
        assert_eq!(
            domain["cpu"],
            json!({"cores": 1, "maxSockets": 8, "model": "host-model", "sockets": 2, "threads": 1})
        );
        assert_eq!(domain["memory"], json!({"guest": "1Gi", "maxGuest": "4Gi"}));
        assert_eq!(domain["features"], json!({"acpi": {"enabled": true}}));
        assert_eq!(vmi["spec"]["evictionStrategy"], "None");
        assert_eq!(vmi["metadata"]["finalizers"], json!(["x", FINALIZER]));
        assert_eq!(vmi["status"]["currentCPUTopology"], json!({"cores": 1, "sockets": 2, "threads": 1}));
        assert_eq!(vmi["status"]["runtimeUser"], 107);
        assert_eq!(text(&vmi, "/spec/volumes/0/containerDisk/imagePullPolicy"), "IfNotPresent");
    }

    #[test]
    fn growth_is_bounded_and_not_for_every_vm() {
        for (domain, sockets, guest) in [
            (json!({"cpu": {"sockets": 64, "cores": 4}, "memory": {"guest": "1Gi"}}), Some(128), "4Gi"),
            (json!({"cpu": {"sockets": 2}, "memory": {"guest": "512Mi"}}), Some(8), ""),
            (
                json!({"cpu": {"sockets": 2, "maxSockets": 3, "realtime": {}}, "memory": {"guest": "1Gi"}}),
                Some(3),
                "",
            ),
        ] {
            let mut spec = json!({"architecture": "amd64", "domain": domain});
            allow_hotplug(&mut spec, 4);
            assert_eq!(spec.pointer("/domain/cpu/maxSockets").and_then(Value::as_i64), sockets, "{spec}");
            assert_eq!(text(&spec, "/domain/memory/maxGuest"), guest, "{spec}");
        }
    }

    #[test]
    fn a_status_from_a_stranger_is_reverted_and_from_kubevirt_it_stays() {
        for (user, reverted) in [("admin", true), (KUBEVIRT_USERS[0], false)] {
            let request = json!({"operation": "UPDATE", "userInfo": {"username": user},
                "object": {"status": {"phase": "Running"}}, "oldObject": {"status": {"phase": "Pending"}}});
            let vmi = applied(&request, instance(&request, &config(), Timestamp::UNIX_EPOCH));
            assert_eq!(vmi["status"]["phase"], if reverted { "Pending" } else { "Running" }, "{user}");
        }
    }
}
