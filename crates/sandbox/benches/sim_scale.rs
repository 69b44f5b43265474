//! How long it takes until many VMs run, from the start of the sandbox, and what it costs:
//! `cargo bench -p sandbox --bench sim_scale -- 1000`.

#![allow(clippy::unwrap_used, clippy::print_stdout)] // a bench prints, and ends when something fails

use std::time::{Duration, Instant};

use http::Request;
use sandbox::sim::connect;
use sandbox::{Options, Sandbox};
use serde::Deserialize;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// What is looked at of a list of VMs; the rest is skipped, so that looking costs little.
#[derive(Deserialize)]
struct Vms {
    items: Vec<Vm>,
}

#[derive(Deserialize)]
struct Vm {
    status: Option<VmStatus>,
}

#[derive(Deserialize)]
struct VmStatus {
    #[serde(default)]
    ready: bool,
}

/// VMs per node.
const PER_NODE: usize = 250;

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    let vms = std::env::args().find_map(|arg| arg.parse().ok()).unwrap_or(1000);
    let started = Instant::now();
    let options = Options { nodes: usize::div_ceil(vms, PER_NODE), vms, ..Options::default() };
    let sandbox = Sandbox::start(options).await.unwrap();
    let created = started.elapsed();
    let client = connect(&sandbox.kubeconfig()).await.unwrap();
    loop {
        let path = "/apis/kubevirt.io/v1/virtualmachines";
        let asked = Instant::now();
        let list: Vms = client.request(Request::get(path).body(Vec::new()).unwrap()).await.unwrap();
        let ready = |vm: &&Vm| vm.status.as_ref().is_some_and(|status| status.ready);
        if list.items.iter().filter(ready).count() == vms {
            break;
        }
        tokio::time::sleep(Duration::from_millis(200).max(asked.elapsed() * 10)).await;
    }
    let total = started.elapsed();
    println!(
        "{vms} VMs: created after {:.2} s, all Running and ready after {:.2} s, {:.1} s of CPU, {} MiB resident at most",
        created.as_secs_f64(),
        total.as_secs_f64(),
        cpu_seconds(),
        peak_mib()
    );
    sandbox.shutdown().await;
}

fn status_line(key: &str) -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    status.lines().find_map(|line| line.strip_prefix(key)?.split_whitespace().next()?.parse().ok())
}

fn peak_mib() -> u64 {
    status_line("VmHWM:").unwrap_or(0) / 1024
}

/// User and system time of the process, in seconds of 100 ticks.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |index: usize| fields.get(index).and_then(|text| text.parse::<u32>().ok()).unwrap_or(0);
    f64::from(ticks(11) + ticks(12)) / 100.0
}
