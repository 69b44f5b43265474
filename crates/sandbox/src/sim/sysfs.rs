//! The kernel's files of simulated nodes, for agents that read them: below a directory one root for each node,
//! with `/sys` and `/proc`. What is there is what the device plugins offer, and a graphics card and a network card
//! that the host uses itself.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::Path;

use super::{CpuVendor, SimConfig, node};

/// Writes the roots of all nodes.
pub fn write(root: &Path, config: &SimConfig) -> io::Result<()> {
    (0..config.nodes).try_for_each(|index| host(&root.join(node::name(index)), config, index))
}

struct Function<'a> {
    address: String,
    id: (&'a str, &'a str),
    class: &'a str,
    driver: &'a str,
    group: u32,
    numa: u32,
}

fn host(root: &Path, config: &SimConfig, index: u32) -> io::Result<()> {
    let sys = root.join("sys");
    let (vendor, module) = match node::vendor(config, index) {
        CpuVendor::Amd => ("AuthenticAMD", "kvm_amd"),
        CpuVendor::Intel | CpuVendor::Mixed => ("GenuineIntel", "kvm_intel"),
    };
    file(
        &root.join("proc/cpuinfo"),
        &format!("processor\t: 0\nvendor_id\t: {vendor}\nmodel name\t: simulated\n"),
    )?;
    let nested = if config.nested_virt { "Y\n" } else { "N\n" };
    file(&sys.join("module").join(module).join("parameters/nested"), nested)?;
    for number in 0..2 {
        fs::create_dir_all(sys.join(format!("devices/system/node/node{number}")))?;
    }
    fs::create_dir_all(sys.join("bus/pci/devices"))?;
    let mut group = 1;
    for (kind, device) in config.devices.iter().enumerate() {
        let selector = device.selector.to_ascii_lowercase();
        let id = selector.split_once(':').unwrap_or_default();
        // NVIDIA and AMD make graphics cards, the others network cards, as far as the sandbox goes
        let class = if matches!(id.0, "10de" | "1002") { "030000" } else { "020000" };
        for number in 0..config.devices_per_node {
            let address = format!("0000:{:02x}:00.0", 0x10 * (kind + 1) + number as usize);
            write_function(
                &sys,
                &Function { address, id, class, driver: "vfio-pci", group, numa: number % 2 },
            )?;
            group += 1;
        }
    }
    let own = [
        ("0000:03:00.0", ("1002", "73bf"), "030000", "amdgpu"),
        ("0000:03:00.1", ("1002", "ab28"), "040300", "snd_hda_intel"),
    ];
    for (address, id, class, driver) in own {
        write_function(&sys, &Function { address: address.to_owned(), id, class, driver, group, numa: 0 })?;
    }
    let nic = Function {
        address: "0000:04:00.0".to_owned(),
        id: ("8086", "1593"),
        class: "020000",
        driver: "ice",
        group: group + 1,
        numa: 1,
    };
    let path = write_function(&sys, &nic)?;
    file(&path.join("sriov_totalvfs"), "128\n")?;
    file(&path.join("sriov_numvfs"), "1\n")?;
    let virtual_function = Function {
        address: "0000:04:01.0".to_owned(),
        id: ("8086", "1889"),
        driver: "vfio-pci",
        group: group + 2,
        ..nic
    };
    let path = write_function(&sys, &virtual_function)?;
    symlink("../0000:04:00.0", path.join("physfn"))
}

fn write_function(sys: &Path, function: &Function<'_>) -> io::Result<std::path::PathBuf> {
    let path = sys.join("devices/pci0000:00").join(&function.address);
    for (name, value) in [("vendor", function.id.0), ("device", function.id.1), ("class", function.class)] {
        file(&path.join(name), &format!("0x{value}\n"))?;
    }
    file(&path.join("numa_node"), &format!("{}\n", function.numa))?;
    if function.class.starts_with("03") {
        file(&path.join("rom"), "")?;
    }
    fs::create_dir_all(sys.join(format!("kernel/iommu_groups/{}", function.group)))?;
    symlink(format!("../../../bus/pci/drivers/{}", function.driver), path.join("driver"))?;
    symlink(format!("../../../kernel/iommu_groups/{}", function.group), path.join("iommu_group"))?;
    symlink(
        format!("../../../devices/pci0000:00/{}", function.address),
        sys.join("bus/pci/devices").join(&function.address),
    )?;
    Ok(path)
}

fn file(path: &Path, content: &str) -> io::Result<()> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    fs::write(path, content)
}
