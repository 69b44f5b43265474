//! What one admission costs: time by criterion, allocations counted once and printed.
#![allow(missing_docs, reason = "criterion_group! makes an undocumented function")]

#[path = "../tests/common/mod.rs"]
mod common;

use std::hint::black_box;

use common::{A10, MANAGED, NAMESPACE, NIC, World, patched, vm, without};
use criterion::{Criterion, criterion_group, criterion_main};
use features::{Request, Verdict};
use serde_json::{Value, json};

const KIB: usize = 1024;
const THREE: [(&str, &str); 3] =
    [("nested-virt", "enabled"), ("pci-passthrough", NIC), ("gpu-device-plugin", A10)];

/// A VM of about so many bytes of JSON: disks, volumes and some cloud-init, as real ones have.
fn sized(annotations: &[(&str, &str)], bytes: usize) -> Value {
    let mut vm = vm(annotations);
    let spec = &mut vm["spec"]["template"]["spec"];
    let user_data =
        "#cloud-config\npackages: [qemu-guest-agent]\nruncmd:\n- systemctl enable --now qemu-guest-agent\n";
    spec["volumes"] = json!([{"name": "init", "cloudInitNoCloud": {"userData": user_data.repeat(4)}}]);
    spec["evictionStrategy"] = json!("LiveMigrate");
    spec["networks"] = json!([{"name": "default", "pod": {}}]);
    let mut index = 0;
    while vm.to_string().len() < bytes {
        let spec = &mut vm["spec"]["template"]["spec"];
        let name = format!("disk-{index}");
        let disk =
            json!({"name": name, "bootOrder": index + 1, "disk": {"bus": "virtio"}, "serial": "0123456789"});
        spec["domain"]["devices"]["disks"]
            .as_array_mut()
            .into_iter()
            .for_each(|disks| disks.push(disk.clone()));
        let volume =
            json!({"name": name, "persistentVolumeClaim": {"claimName": name, "hotpluggable": false}});
        spec["volumes"].as_array_mut().into_iter().for_each(|volumes| volumes.push(volume.clone()));
        index += 1;
    }
    vm
}

fn admit(world: &World, object: &Value, old_object: Option<&Value>) -> Verdict {
    let request = Request { namespace: NAMESPACE, object, old_object };
    black_box(features::needs(&request, &world.config, &world.lookups));
    features::admit(&request, &world.cluster, &world.lookups, &world.config)
}

/// The patch as it goes to the API server.
fn admit_and_serialize(world: &World, object: &Value, old_object: Option<&Value>) -> Vec<u8> {
    serde_json::to_vec(&admit(world, object, old_object).patch).unwrap_or_default()
}

/// CPU time of one call, which other processes on the machine do not change much. Linux tells
/// the CPU time of a thread in `/proc/thread-self/schedstat`; elsewhere there is no figure.
fn cpu_micros(call: impl Fn()) -> String {
    const CALLS: u32 = 20_000;
    let cpu_nanos = || -> Option<f64> {
        std::fs::read_to_string("/proc/thread-self/schedstat").ok()?.split(' ').next()?.parse().ok()
    };
    let before = cpu_nanos();
    for _ in 0..CALLS {
        call();
    }
    match before.zip(cpu_nanos()) {
        Some((before, after)) => format!("{:.2}", (after - before) / 1000.0 / f64::from(CALLS)),
        None => "-".to_owned(),
    }
}

fn admission(criterion: &mut Criterion) {
    let world = World::default();
    let mut cases: Vec<(String, Value, Option<Value>)> = Vec::new();
    for size in [3, 10, 50] {
        cases.push((format!("nothing asked, {size} KiB"), sized(&[], size * KIB), None));
        cases.push((format!("three features, create, {size} KiB"), sized(&THREE, size * KIB), None));
    }
    let plain = sized(&THREE, 3 * KIB);
    let stored = patched(&plain, &admit(&world, &plain, None));
    assert!(stored["metadata"]["annotations"][MANAGED].is_string(), "the features are given");
    cases.push(("three features, update without change, 3 KiB".into(), stored.clone(), Some(stored.clone())));
    let quiet = THREE.iter().fold(stored.clone(), |vm, (name, _)| without(&vm, name));
    cases.push(("three features, undo, 3 KiB".into(), quiet, Some(stored)));
    let roms = sized(&[("pci-passthrough", A10), ("vbios-injection", "rom")], 3 * KIB);
    cases.push(("device and ROM, create, 3 KiB".into(), roms, None));

    println!("{:<46} {:>11} {:>9} {:>10} {:>9}", "case", "allocations", "bytes", "operations", "CPU us");
    for (name, object, old) in &cases {
        let operations = admit(&world, object, old.as_ref()).patch.0.len();
        let counted = allocation_counter::measure(|| {
            black_box(admit_and_serialize(&world, object, old.as_ref()));
        });
        let micros = cpu_micros(|| drop(black_box(admit_and_serialize(&world, object, old.as_ref()))));
        println!(
            "{name:<46} {:>11} {:>9} {operations:>10} {micros:>9}",
            counted.count_total, counted.bytes_total
        );
    }
    for (name, object, old) in &cases {
        criterion.bench_function(name, |bencher| {
            bencher.iter(|| admit_and_serialize(black_box(&world), black_box(object), old.as_ref()));
        });
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(50).measurement_time(std::time::Duration::from_secs(2)).warm_up_time(std::time::Duration::from_millis(500));
    targets = admission
}
criterion_main!(benches);
