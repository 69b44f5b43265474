//! What a node has that VMs could have: read from `/sys` and `/proc`, published as `NodeInventory` (ADR 16).
//!
//! ```text
//!  /sys/bus/pci/devices, /sys/kernel/iommu_groups, /sys/module/kvm_*, /proc/cpuinfo ─► Host ─► apply, when it changed
//! ```
//!
//! Every container sees these files, so this needs no right on the host: no mount, no capability, no root.

mod cpu;
mod pci;
mod publish;

use std::fs;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use kubevirt::inventory::Host;

pub use publish::{PublishError, Publisher};

/// The most of a file that is read; those of the kernel have a few bytes, `cpuinfo` a few kB per CPU.
const MAX_FILE: u64 = 64 << 10;

/// Where the kernel's files are.
#[derive(Clone, Debug)]
pub struct Roots {
    /// `/sys`
    pub sys: PathBuf,
    /// `/proc`
    pub proc: PathBuf,
}

impl Roots {
    /// Those below a directory; `/` for this host.
    pub fn below(root: &Path) -> Self {
        Self { sys: root.join("sys"), proc: root.join("proc") }
    }
}

/// What this host has.
///
/// # Errors
/// When the kernel lists no PCI devices at all; what single devices do not say is left out.
pub fn read(node: &str, roots: &Roots) -> io::Result<Host> {
    let pci_devices = pci::devices(&roots.sys)?;
    Ok(Host {
        node: node.to_owned(),
        cpu: cpu::read(roots),
        iommu: !names(&roots.sys.join("kernel/iommu_groups")).is_empty(),
        numa_nodes: numa_nodes(&roots.sys),
        pci_devices,
    })
}

fn numa_nodes(sys: &Path) -> u32 {
    let nodes = names(&sys.join("devices/system/node"));
    let is_node =
        |name: &String| name.strip_prefix("node").is_some_and(|number| number.parse::<u32>().is_ok());
    u32::try_from(nodes.iter().filter(|name| is_node(name)).count()).unwrap_or(u32::MAX)
}

/// The entries of a directory, in order; none when it is not there.
fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten();
    let mut names: Vec<String> =
        entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect();
    names.sort_unstable();
    names
}

/// A file's text without white space at its ends; nothing when it cannot be read.
fn text(path: &Path) -> Option<String> {
    let mut content = Vec::new();
    fs::File::open(path).ok()?.take(MAX_FILE).read_to_end(&mut content).ok()?;
    Some(String::from_utf8_lossy(&content).trim().to_owned())
}
