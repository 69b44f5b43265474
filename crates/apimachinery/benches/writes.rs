//! What each write of an object costs: tracking who owns its fields, and checking it.

use std::hint::black_box;

use apimachinery::ObjectType;
use apimachinery::apply::{Reset, Writer, apply, track_update};
use apimachinery::schema::Schema;
use apimachinery::tree::{Value, json};
use criterion::{Criterion, criterion_group, criterion_main};
use jiff::Timestamp;

/// A virtual machine with `disks` disks and as many conditions.
fn machine(disks: usize) -> Value {
    let list = |key: &str| -> Vec<Value> {
        (0..disks).map(|n| json!({key: format!("{key}-{n}"), "bus": "virtio"})).collect()
    };
    json!({"apiVersion": "kubevirt.io/v1", "kind": "VirtualMachine",
        "metadata": {"name": "vm", "namespace": "ns", "uid": "u", "resourceVersion": "1", "labels": {"app": "a"}},
        "spec": {"runStrategy": "Always", "template": {"spec": {"domain": {"cpu": {"sockets": 1},
            "memory": {"guest": "1Gi"}, "devices": {"disks": list("name")}}}}},
        "status": {"printableStatus": "Running", "conditions": list("type")}})
}

fn schema() -> Value {
    json!({"type": "object", "properties": {
        "spec": {"type": "object", "properties": {"runStrategy": {"type": "string", "enum": ["Always", "Halted"]},
            "template": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}},
        "status": {"type": "object", "properties": {"printableStatus": {"type": "string"},
            "conditions": {"type": "array", "items": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}}}}})
}

fn writes(c: &mut Criterion) {
    let now = Timestamp::UNIX_EPOCH;
    let owner = Writer { manager: "admin", api_version: "kubevirt.io/v1", subresource: "" };
    let controller = Writer { manager: "virt-controller", subresource: "status", ..owner };
    let mut live = machine(8);
    let typed = ObjectType::from_crd_schema(&schema());
    track_update(None, &mut live, &typed, &owner, Reset::Status, now);
    let mut next = live.clone();
    next["status"]["printableStatus"] = "Starting".into();
    track_update(Some(&live), &mut next, &typed, &controller, Reset::AllButStatus, now);
    for (name, ty) in [("schema", typed.clone()), ("schemaless", ObjectType::schemaless())] {
        c.bench_function(&format!("track a status update, {name}"), |b| {
            b.iter(|| {
                let mut new = next.clone();
                new["status"]["printableStatus"] = "Running".into();
                track_update(Some(&next), &mut new, &ty, &controller, Reset::AllButStatus, now);
                black_box(new)
            });
        });
    }
    let config = json!({"apiVersion": "kubevirt.io/v1", "kind": "VirtualMachine",
        "metadata": {"name": "vm", "namespace": "ns", "labels": {"team": "b"}}, "spec": {"runStrategy": "Halted"}});
    c.bench_function("apply a label and a field by force", |b| {
        b.iter(|| black_box(apply(Some(&next), &config, &typed, &owner, true, Reset::Status, now)));
    });
    if let Ok(schema) = Schema::parse(&schema(), "schema") {
        c.bench_function("validate", |b| b.iter(|| black_box(schema.validate(&next, None))));
    }
}

criterion_group!(benches, writes);
criterion_main!(benches);
