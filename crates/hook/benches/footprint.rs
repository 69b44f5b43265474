//! How large the program is: its file, and its memory when it waits, after 20 defines with a ROM of 1 MiB, and at
//! the most. Every VM with a ROM has one, so more than 8 MiB of either fails.
//!
//! ```text
//! cargo bench -p hook --bench footprint
//! ```
#![allow(clippy::unwrap_used, clippy::panic, reason = "a measurement may fail this way")]

#[path = "../tests/common/mod.rs"]
mod common;

use common::{Sidecar, rom_for};
use hook_api::callbacks::OnDefineDomainParams;
use hook_api::{ON_DEFINE_DOMAIN, V1ALPHA3, callback_path};

const LIMIT_KIB: u64 = 8 << 10;
const DOMAIN: &str =
    "<domain><devices><hostdev><alias name='ua-hostdevice-igpu'/></hostdev></devices></domain>";

fn main() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let figures = runtime.block_on(measure());
    let mut is_too_much = false;
    for (what, kib) in figures {
        println!("{what:<42} {kib:>6} KiB");
        is_too_much |= kib >= LIMIT_KIB;
    }
    assert!(!is_too_much, "more than {LIMIT_KIB} KiB");
}

async fn measure() -> [(&'static str, u64); 4] {
    // one image of 1 MiB, the most that a ConfigMap holds
    let mut rom = rom_for(0x10de, 0x1eb8, 1);
    rom.resize(1 << 20, 0);
    let sidecar = Sidecar::start(&["ua-hostdevice-igpu"], &rom).await;
    let id = sidecar.child.id().unwrap();
    let idle = status(id, "VmRSS");
    for _ in 0..20 {
        let asked = OnDefineDomainParams { domain_xml: DOMAIN.into(), vmi: b"{}".to_vec() };
        sidecar.call(&callback_path(V1ALPHA3, ON_DEFINE_DOMAIN), &asked).await.unwrap();
    }
    let file = std::fs::metadata(env!("CARGO_BIN_EXE_virt-steward-hook")).unwrap().len() / 1024;
    [
        ("program", file),
        ("memory when it waits", idle),
        ("memory after 20 defines, a ROM of 1 MiB", status(id, "VmRSS")),
        ("memory at the most", status(id, "VmHWM")),
    ]
}

/// A figure of a process in KiB.
fn status(id: u32, name: &str) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{id}/status")).unwrap();
    let line = text.lines().find(|line| line.starts_with(name)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}
