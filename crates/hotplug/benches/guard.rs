//! How long a verdict takes in process: views of a pod, a VMI with eight volumes and three siblings,
//! and the decision; reading JSON is not in it.
#![allow(clippy::expect_used, reason = "what fails here fails the benchmark")]

#[path = "../tests/common/mod.rs"]
mod common;

use std::hint::black_box;

use common::{NOW, Use, World, pod, vmi};
use criterion::{Criterion, criterion_group, criterion_main};
use hotplug::guard::decide;
use hotplug::policy::Limits;
use hotplug::record::Record;

const NAMES: [&str; 8] = ["a", "b", "c", "d", "e", "f", "g", "h"];

fn verdict(criterion: &mut Criterion) {
    let volumes: Vec<(&str, Use)> = NAMES.iter().map(|name| (*name, Use::Device)).collect();
    let covered = World {
        pod: pod("old", &volumes),
        others: ["x", "y", "z"].iter().map(|name| pod(name, &volumes)).collect(),
        vmi: vmi(&NAMES),
        ..World::uncovered()
    };
    let denied = World { others: Vec::new(), ..covered.clone() };
    let (record, limits) = (Record::default(), Limits::default());
    for (name, world) in [("allow, eight volumes, three siblings", covered), ("deny, eight volumes", denied)]
    {
        criterion.bench_function(name, |bencher| {
            bencher.iter(|| decide(&black_box(&world).observe(), &record, &limits, NOW));
        });
    }
}

criterion_group!(benches, verdict);
criterion_main!(benches);
