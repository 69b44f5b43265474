//! The schemas of the OpenAPI document.

use serde_json::{Value, json};

use crate::error::KINDS;

fn object(required: &[&str], properties: Value) -> Value {
    let mut schema = json!({"type": "object", "required": required});
    schema["properties"] = properties;
    schema
}

/// The same, and null, which stands for nothing.
fn or_null(mut schema: Value) -> Value {
    schema["type"] = json!([schema["type"], "null"]);
    if let Some(values) = schema.get_mut("enum").and_then(Value::as_array_mut) {
        values.push(Value::Null);
    }
    schema
}

/// A body: nothing but what is named is taken. Texts and numbers that may be left out may be null as well.
fn body(required: &[&str], mut properties: Value) -> Value {
    for (name, schema) in properties.as_object_mut().into_iter().flatten() {
        let plain = schema["type"] == "string" || schema["type"] == "integer";
        if plain && schema.get("enum").is_none() && !required.contains(&name.as_str()) {
            *schema = or_null(schema.take());
        }
    }
    let mut schema = object(required, properties);
    schema["additionalProperties"] = false.into();
    schema
}

fn text() -> Value {
    json!({"type": "string"})
}

fn flag() -> Value {
    json!({"type": "boolean"})
}

fn count() -> Value {
    json!({"type": "integer", "minimum": 0})
}

fn texts() -> Value {
    json!({"type": "array", "items": text()})
}

fn objects() -> Value {
    json!({"type": "array", "items": {"type": "object"}})
}

fn reference(to: &str) -> Value {
    json!({"$ref": format!("#/components/schemas/{to}")})
}

fn list(of: &str) -> Value {
    object(&["items"], json!({"items": {"type": "array", "items": reference(of)}}))
}

/// A body of something that can be waited for.
fn waiting(required: &[&str], more: Value) -> Value {
    let mut properties = json!({"dryRun": flag(), "wait": flag(),
        "timeoutSeconds": {"type": "integer", "minimum": 0, "maximum": 300, "default": 60}});
    if let (Value::Object(all), Value::Object(more)) = (&mut properties, more) {
        all.extend(more);
    }
    body(required, properties)
}

/// Every schema by name.
pub(super) fn schemas() -> Value {
    let mut all = basics();
    for part in [machines(), orders(), snapshots(), inside(), inventory(), templates(), jobs()] {
        if let (Value::Object(all), Value::Object(part)) = (&mut all, part) {
            all.extend(part);
        }
    }
    all
}

fn basics() -> Value {
    let codes: Vec<&str> = KINDS.iter().map(|kind| kind.code()).collect();
    json!({
        "Problem": object(&["type", "code", "title", "status", "detail", "remedy"], json!({"type": text(),
            "code": {"type": "string", "enum": codes}, "title": text(), "status": {"type": "integer"},
            "detail": text(), "remedy": text()})),
        "Health": object(&["status"], json!({"status": text()})),
        "Status": object(&["program", "started", "kubernetes", "namespace"],
            json!({"program": text(), "started": text(), "kubernetes": text(), "namespace": text()})),
        "Capabilities": object(&["kubernetes", "gates", "apis", "storage", "nodes", "permissions", "missing"],
            json!({"kubernetes": text(), "kubevirt": {"type": "object"}, "gates": objects(), "apis": objects(),
                "cdi": text(), "exportProxy": text(), "storage": objects(), "nodes": objects(),
                "permissions": objects(), "missing": texts()})),
        "DryRun": body(&[], json!({"dryRun": flag()})),
        "Deleted": object(&["namespace", "name", "dryRun"],
            json!({"namespace": text(), "name": text(), "dryRun": flag()})),
        "Underway": object(&["namespace", "name", "vm"],
            json!({"namespace": text(), "name": text(), "vm": text()})),
    })
}

fn machines() -> Value {
    let vm = json!({"namespace": text(), "name": text(), "status": text(), "runStrategy": text(), "ready": flag(),
        "node": text(), "addresses": texts(), "vcpus": count(), "memoryBytes": count(), "migratable": flag(),
        "agentConnected": flag(), "guestOs": text(), "created": text(), "notes": texts(),
        "usage": reference("Usage")});
    let mut detail = vm.clone();
    for (name, schema) in [
        ("uid", text()),
        ("instancetype", text()),
        ("preference", text()),
        ("launcher", text()),
        ("disks", objects()),
        ("interfaces", objects()),
        ("conditions", objects()),
        ("migrationBlockers", objects()),
        ("events", objects()),
    ] {
        detail[name] = schema;
    }
    let of_vm = [
        "namespace",
        "name",
        "status",
        "runStrategy",
        "ready",
        "addresses",
        "agentConnected",
        "created",
        "notes",
    ];
    let rate = || count();
    json!({
        "Vm": object(&of_vm, vm),
        "VmList": list("Vm"),
        "VmDetail": object(&of_vm, detail),
        "Change": object(&["type", "vm"], json!({"type": {"type": "string", "enum": ["updated", "removed"]},
            "vm": reference("Vm")})),
        "ListRequest": body(&[], json!({"namespace": text(), "allNamespaces": flag(), "labelSelector": text(),
            "name": text(), "status": texts(), "node": text(), "usage": flag(),
            "sortBy": or_null(json!({"type": "string",
                "enum": ["name", "status", "node", "age", "cpu", "memory"]}))})),
        "Usage": object(&["namespace", "name", "memoryOf", "measured", "window", "source"],
            json!({"namespace": text(), "name": text(), "cpuMilli": count(), "memoryBytes": count(),
                "memoryOf": {"type": "string", "enum": ["guest", "launcher"]},
                "diskReadBytesPerSecond": rate(), "diskWriteBytesPerSecond": rate(),
                "networkReceiveBytesPerSecond": rate(), "networkTransmitBytesPerSecond": rate(),
                "measured": text(), "window": text(), "source": text()})),
        "UsageReport": object(&["source", "items", "notes"], json!({"source": text(),
            "items": {"type": "array", "items": reference("Usage")}, "notes": texts()})),
    })
}

fn orders() -> Value {
    json!({
        "Done": object(&["namespace", "name", "operation", "dryRun"],
            json!({"namespace": text(), "name": text(), "operation": text(), "dryRun": flag()})),
        "OrderRequest": waiting(&[], json!({})),
        "StartRequest": waiting(&[], json!({"paused": flag()})),
        "StopRequest": waiting(&[], json!({"gracePeriodSeconds":
            {"type": "integer", "minimum": 0, "maximum": u32::MAX}})),
        "RestartRequest": waiting(&[], json!({"force": flag()})),
        "MigrateRequest": waiting(&[], json!({"node": text()})),
        "Migration": object(&["namespace", "name", "vm", "phase", "created"], json!({"namespace": text(),
            "name": text(), "vm": text(), "phase": text(), "source": text(), "target": text(), "mode": text(),
            "started": text(), "ended": text(), "policy": text(), "failure": text(), "created": text(),
            "transfer": reference("Transfer"), "transferUnknown": text()})),
        "Transfer": object(&["percent", "totalBytes", "remainingBytes", "source"],
            json!({"percent": {"type": "integer", "minimum": 0, "maximum": 100}, "totalBytes": count(),
                "remainingBytes": count(), "dirtyBytesPerSecond": count(), "bytesPerSecond": count(),
                "source": text()})),
        "MigrationList": list("Migration"),
        "DeleteRequest": waiting(&[], json!({
            "disks": {"type": "string", "enum": ["with-vm", "keep", "all"], "default": "with-vm"}})),
        "DeletePlan": object(&["uid", "resourceVersion", "orphan", "disks"],
            json!({"uid": text(), "resourceVersion": text(), "orphan": flag(), "disks": objects()})),
    })
}

fn snapshots() -> Value {
    json!({
        "SnapshotRequest": waiting(&[], json!({"name": text()})),
        "Snapshot": object(
            &["namespace", "name", "vm", "phase", "ready", "included", "excluded", "indications", "created"],
            json!({"namespace": text(), "name": text(), "vm": text(), "phase": text(), "ready": flag(),
                "included": texts(), "excluded": texts(), "indications": texts(), "error": text(),
                "created": text()})),
        "SnapshotList": list("Snapshot"),
        "RestoreRequest": waiting(&["snapshot"], json!({"snapshot": text(), "stop": flag(), "target": text()})),
        "CloneRequest": waiting(&["target"], json!({"target": text(), "snapshot": text(), "serial": text(),
            "macAddresses": {"type": "object", "additionalProperties": text()}})),
        "ExportRequest": waiting(&[], json!({"snapshot": text(),
            "ttlHours": {"type": "integer", "minimum": 1, "maximum": 720, "default": 2}})),
        "Export": object(&["namespace", "name", "source", "phase", "links"], json!({"namespace": text(),
            "name": text(), "source": text(), "phase": text(), "expires": text(), "tokenSecret": text(),
            "links": objects()})),
        "Volume": object(&["name", "device", "bus", "source", "reference"], json!({"name": text(),
            "device": text(), "bus": text(), "source": text(), "reference": text(), "target": text(),
            "hotplug": text(), "claim": {"type": "object"}})),
        "VolumeList": list("Volume"),
        "VolumeRequest": waiting(&[], json!({"remove": texts(), "add": {"type": "array", "items": body(&["name"],
            json!({"name": text(), "claim": text(), "dataVolume": text(), "serial": text(), "readOnly": flag(),
                "bus": or_null(json!({"type": "string", "enum": ["scsi", "virtio", "sata"]})),
                "cache": or_null(json!({"type": "string", "enum": ["none", "writethrough", "writeback"]})),
                "device": or_null(json!({"type": "string", "enum": ["disk", "lun", "cdrom"]}))}))}})),
        "VolumeChange": object(&["state", "adds", "removes", "waits"],
            json!({"state": {"type": "string", "enum": ["written", "done", "held"]}, "adds": texts(),
                "removes": texts(), "waits": texts()})),
        "ExpandRequest": waiting(&["size"], json!({"size": text()})),
        "Expansion": object(&["namespace", "claim", "fromBytes", "toBytes"],
            json!({"namespace": text(), "claim": text(), "fromBytes": count(), "toBytes": count()})),
    })
}

fn inside() -> Value {
    let effect =
        || json!({"type": "string", "enum": ["next-start", "now", "after-migration", "after-restart"]});
    json!({
        "Nic": object(&["name", "binding", "network", "addresses"], json!({"name": text(), "binding": text(),
            "network": text(), "mac": text(), "link": text(), "addresses": texts(), "guestName": text()})),
        "NicList": list("Nic"),
        "NicRequest": waiting(&["name", "network"], json!({"name": text(), "network": text(), "mac": text(),
            "model": text(), "binding": {"type": "string", "enum": ["bridge", "sriov", "masquerade"]},
            "migrate": flag()})),
        "NicChange": object(&["patch", "effect", "why"],
            json!({"patch": objects(), "effect": effect(), "why": text()})),
        "LinkRequest": waiting(&["state"], json!({"state": {"type": "string", "enum": ["up", "down"]}})),
        "DeviceRequest": body(&["name"], json!({"name": text(), "device": text(), "dryRun": flag(),
            "onNextStart": flag(), "sort": {"type": "string", "enum": ["gpu", "host-device"]}})),
        "DeviceChange": object(&["patch", "effect"], json!({"patch": objects(), "effect": effect()})),
        "Guest": object(&["os", "users", "fileSystems"],
            json!({"os": {"type": "object"}, "users": objects(), "fileSystems": objects()})),
    })
}

fn inventory() -> Value {
    let node = json!({"name": text(), "ready": flag(), "cordoned": flag(), "runsVms": flag(), "vms": count(),
        "migratable": count(), "guestVcpus": count(), "guestMemoryBytes": count(),
        "allocatableCpuMilli": count(), "allocatableMemoryBytes": count(), "devices": {"type": "object"},
        "kubelet": text()});
    let mut detail = node.clone();
    for name in ["taints", "features", "running"] {
        detail[name] = texts();
    }
    let of_node = ["name", "ready", "cordoned", "runsVms", "vms", "devices"];
    json!({
        "Node": object(&of_node, node),
        "NodeList": list("Node"),
        "NodeDetail": object(&of_node, detail),
        "Instancetype": object(&["kind", "name", "vcpus", "gpus", "traits"], json!({"kind": text(),
            "namespace": text(), "name": text(), "vcpus": count(), "memoryBytes": count(), "gpus": texts(),
            "traits": texts()})),
        "InstancetypeList": list("Instancetype"),
        "Preference": object(&["kind", "name"], json!({"kind": text(), "namespace": text(), "name": text(),
            "displayName": text(), "diskBus": text(), "interfaceModel": text(),
            "requires": {"type": "array"}})),
        "PreferenceList": list("Preference"),
    })
}

fn templates() -> Value {
    let parameters = || json!({"type": "object", "additionalProperties": text()});
    json!({
        "Template": object(&["namespace", "name", "ready", "parameters", "created"], json!({"namespace": text(),
            "name": text(), "ready": flag(), "parameters": objects(), "message": text(), "created": text()})),
        "TemplateList": list("Template"),
        "ProcessRequest": body(&[], json!({"parameters": parameters()})),
        "CreateFromTemplate": body(&[], json!({"parameters": parameters(), "dryRun": flag()})),
        "Processed": object(&["virtualMachine"],
            json!({"virtualMachine": {"type": "object"}, "message": text()})),
        "TemplateRequest": waiting(&["name"], json!({"name": text()})),
    })
}

fn jobs() -> Value {
    json!({
        "JobFile": json!({"oneOf": [{"$ref": "#/components/schemas/JobRequest"},
            {"type": "array", "minItems": 1, "maxItems": 500, "items": {"$ref": "#/components/schemas/JobRequest"}},
            {"type": "object", "required": ["jobs"], "additionalProperties": false, "properties": {"jobs":
                {"type": "array", "minItems": 1, "maxItems": 500,
                    "items": {"$ref": "#/components/schemas/JobRequest"}}}}]}),
        "JobRequest": object(&["output_dir"], json!({"vm_path": text(), "output_dir": text(), "provider": text(),
            "format": {"type": "string", "enum": ["raw", "qcow2", "vmdk", "ova", "ovf"]}, "name": text(),
            "metadata": {"type": "object"}, "options": {"type": "object"}})),
        "Submitted": object(&["job_ids", "accepted", "rejected", "errors", "timestamp"], json!({"job_ids": texts(),
            "accepted": count(), "rejected": count(), "errors": objects(), "timestamp": text()})),
        "JobQuery": body(&[], json!({"job_ids": texts(), "status": texts(), "namespace": text(), "all": flag(),
            "limit": count()})),
        "Job": object(&["id", "namespace", "name", "status", "source", "destination", "format", "progress", "exports",
            "created"], json!({"id": text(), "namespace": text(), "name": text(),
            "status": {"type": "string",
                "enum": ["pending", "running", "completed", "failed", "cancelled", "scheduled"]},
            "source": {"type": "object"}, "destination": {"type": "object"}, "format": text(), "schedule": text(),
            "progress": {"type": "object"}, "exports": {"type": "object"}, "message": text(), "created": text(),
            "completed": text(), "next": text()})),
        "JobList": object(&["jobs", "total"], json!({"total": count(),
            "jobs": {"type": "array", "items": {"$ref": "#/components/schemas/Job"}}})),
        "JobIds": body(&["job_ids"], json!({"job_ids": texts()})),
        "Cancelled": object(&["cancelled", "errors"], json!({"cancelled": texts(), "errors": objects()})),
        "Resumed": object(&["resumed", "errors"], json!({"resumed": texts(), "errors": objects()})),
        "JobsDeleted": object(&["deleted", "errors"], json!({"deleted": texts(), "errors": objects()})),
        "JobProgress": object(&["id", "status", "progress", "exports"], json!({"id": text(), "status": text(),
            "progress": {"type": "object"}, "exports": {"type": "object"}})),
        "JobLogs": object(&["id", "logs"], json!({"id": text(), "logs": objects()})),
    })
}
