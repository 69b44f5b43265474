//! One decision, from raw objects to the step, and one ruling of the webhook.

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use resize::ledger::{LEDGER, POLICY, WISH};
use resize::machine::Seen;
use resize::{Policy, decide, hook, ledger, view};
use serde_json::{Value, json};

fn vmi(sockets: u32, wish: bool) -> Value {
    let policy = Policy { in_place: true, ..Policy::default() };
    let mut vmi = json!({
        "metadata": {"name": "v", "uid": "u", "annotations": {POLICY: serde_json::to_string(&policy).unwrap_or_default()}},
        "spec": {"architecture": "amd64", "domain": {
            "cpu": {"sockets": sockets, "cores": 1, "threads": 1, "maxSockets": 8},
            "memory": {"guest": "1Gi", "maxGuest": "8Gi"}, "resources": {}}},
        "status": {"phase": "Running", "nodeName": "node01", "activePods": {"pod-1": "node01"},
            "conditions": [{"type": "LiveMigratable", "status": "True"}],
            "currentCPUTopology": {"sockets": 2, "cores": 1, "threads": 1},
            "memory": {"guestAtBoot": "1Gi", "guestCurrent": "1Gi", "guestRequested": "1Gi"}},
    });
    if wish {
        vmi["metadata"]["annotations"][WISH] = r#"{"sockets":4}"#.into();
    }
    vmi
}

fn pod() -> Value {
    json!({
        "metadata": {"uid": "pod-1", "generation": 1},
        "spec": {"containers": [{"name": "compute", "resources": {"requests": {"cpu": "200m", "memory": "1320Mi"}}}]},
        "status": {"phase": "Running", "observedGeneration": 1, "containerStatuses": [{"name": "compute",
            "allocatedResources": {"cpu": "200m", "memory": "1320Mi"},
            "resources": {"requests": {"cpu": "200m", "memory": "1320Mi"}}}]},
    })
}

fn benches(criterion: &mut Criterion) {
    let (object, pod) = (vmi(2, true), pod());
    let vm = json!({"spec": {"template": {"spec": {"domain": {"cpu": {"sockets": 4}, "memory": {"guest": "1Gi"}}}}}});
    let policy = Policy { in_place: true, ..Policy::default() };
    criterion.bench_function("observe and decide", |bencher| {
        bencher.iter(|| {
            let seen = Seen {
                wanted: view::wanted(black_box(&vm)),
                vmi: view::vmi(black_box(&object)),
                pod: Some(view::pod(black_box(&pod))),
                migrating: false,
                report: ledger::read(&object, ledger::REPORT).ok().flatten(),
                ledger: ledger::read(&object, LEDGER).ok().flatten(),
                wish: ledger::read(&object, WISH).ok().flatten(),
                obstacles: Vec::new(),
                rules: resize::resources::Rules::default(),
                may_declare: false,
            };
            decide(&seen, &policy, 0)
        });
    });
    let (old, new) = (vmi(2, false), vmi(4, false));
    criterion.bench_function("hold a patch", |bencher| {
        bencher.iter(|| hook::review(black_box(&old), black_box(&new)));
    });
}

criterion_group!(all, benches);
criterion_main!(all);
