//! How long it takes until many VMs run, from the start of the sandbox, and what it costs:
//! `cargo bench -p sandbox --bench sim_scale -- 1000`.

#![allow(clippy::unwrap_used, clippy::print_stdout)] // a bench prints, and ends when something fails

use std::time::{Duration, Instant};

use http::Request;
use http_body_util::BodyExt as _;
use kube::client::Body;
use sandbox::sim::connect;
use sandbox::{Options, Sandbox};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// How a VM says that it is ready; nothing else in it reads so.
const READY: &[u8] = br#""ready":true"#;
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
        let asked = Instant::now();
        if ready(&client).await == vms {
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

/// Counts the VMs that are ready while their list arrives: kept as a whole, it would be part of what is measured.
async fn ready(client: &kube::Client) -> usize {
    let request = Request::get("/apis/kubevirt.io/v1/virtualmachines").body(Body::empty()).unwrap();
    let mut body = client.send(request).await.unwrap().into_body();
    let (mut count, mut tail) = (0, Vec::new());
    while let Some(frame) = body.frame().await {
        tail.extend_from_slice(frame.unwrap().data_ref().unwrap());
        count += memchr::memmem::find_iter(&tail, READY).count();
        tail.drain(..tail.len().saturating_sub(READY.len() - 1));
    }
    count
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
