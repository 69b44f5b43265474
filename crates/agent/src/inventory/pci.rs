//! PCI devices (kernel `Documentation/ABI/testing/sysfs-bus-pci`).

use std::fs;
use std::io;
use std::path::Path;

use kubevirt::PciAddress;
use kubevirt::inventory::{MAX_DEVICES, PciFunction, Sriov};

use super::{names, text};

/// The class of bridges: VFIO does not mind them in a group, and no guest can have one.
const BRIDGE: &str = "06";

/// The devices that are no bridges, by address.
pub(super) fn devices(sys: &Path) -> io::Result<Vec<PciFunction>> {
    let directory = sys.join("bus/pci/devices");
    fs::read_dir(&directory)?;
    let found = names(&directory).into_iter().filter_map(|name| {
        let address: PciAddress = name.parse().ok()?;
        device(&directory.join(&name), address)
    });
    Ok(found.filter(|device| !device.class.starts_with(BRIDGE)).take(MAX_DEVICES).collect())
}

/// One device; nothing when it says neither vendor nor number.
fn device(path: &Path, address: PciAddress) -> Option<PciFunction> {
    let hex = |name: &str, digits: usize| {
        let text = text(&path.join(name))?;
        let text = text.strip_prefix("0x")?.to_ascii_lowercase();
        (text.len() == digits && text.bytes().all(|byte| byte.is_ascii_hexdigit())).then_some(text)
    };
    let number = |name: &str| text(&path.join(name))?.parse::<i64>().ok();
    let count = |name: &str| number(name).and_then(|count| u32::try_from(count).ok());
    let link = |name: &str| {
        let target = fs::read_link(path.join(name)).ok()?;
        target.file_name()?.to_str().map(str::to_owned)
    };
    let total = count("sriov_totalvfs").filter(|total| *total > 0);
    Some(PciFunction {
        address: address.to_string(),
        vendor: hex("vendor", 4)?,
        device: hex("device", 4)?,
        class: hex("class", 6).unwrap_or_default(),
        driver: link("driver").unwrap_or_default(),
        iommu_group: link("iommu_group").unwrap_or_default(),
        // -1: the firmware does not say
        numa_node: count("numa_node"),
        rom: path.join("rom").exists(),
        sriov: total.map(|total| Sriov { total, enabled: count("sriov_numvfs").unwrap_or_default() }),
        physical_function: link("physfn").unwrap_or_default(),
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::super::{Roots, read};

    /// A tree of files and links as the kernel has it.
    struct Tree(tempfile::TempDir);

    impl Tree {
        fn file(&self, path: &str, content: &str) {
            let path = self.0.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, content).unwrap();
        }

        fn link(&self, path: &str, target: &str) {
            let path = self.0.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            symlink(target, path).unwrap();
        }

        /// A device where the kernel has it, and the link to it on the bus.
        fn device(&self, address: &str, id: (&str, &str), class: &str, driver: &str, group: &str) -> String {
            let path = format!("sys/devices/pci0000:00/{address}");
            for (name, content) in [("vendor", id.0), ("device", id.1), ("class", class)] {
                self.file(&format!("{path}/{name}"), &format!("0x{content}\n"));
            }
            self.file(&format!("{path}/numa_node"), "-1\n");
            if !driver.is_empty() {
                self.link(&format!("{path}/driver"), &format!("../../../bus/pci/drivers/{driver}"));
            }
            if !group.is_empty() {
                self.link(&format!("{path}/iommu_group"), &format!("../../../kernel/iommu_groups/{group}"));
                self.file(&format!("sys/kernel/iommu_groups/{group}/type"), "DMA\n");
            }
            self.link(
                &format!("sys/bus/pci/devices/{address}"),
                &format!("../../../devices/pci0000:00/{address}"),
            );
            path
        }
    }

    #[test]
    fn a_host_is_read_as_the_kernel_describes_it() {
        let tree = Tree(tempfile::tempdir().unwrap());
        tree.device("0000:00:01.0", ("8086", "1901"), "060400", "pcieport", "1");
        let gpu = tree.device("0000:07:00.0", ("10de", "1EB8"), "030200", "vfio-pci", "7");
        tree.file(&format!("{gpu}/numa_node"), "1\n");
        tree.file(&format!("{gpu}/rom"), "");
        let nic = tree.device("0000:81:00.0", ("8086", "1572"), "020000", "i40e", "12");
        tree.file(&format!("{nic}/sriov_totalvfs"), "64\n");
        tree.file(&format!("{nic}/sriov_numvfs"), "2\n");
        let vf = tree.device("0000:81:02.0", ("8086", "154c"), "020000", "", "");
        tree.link(&format!("{vf}/physfn"), "../0000:81:00.0");
        // what is no device, or says nothing
        tree.file("sys/bus/pci/devices/README", "");
        tree.file("sys/bus/pci/devices/0000:99:00.0/vendor", "none");
        for node in ["node0", "node1", "power"] {
            tree.file(&format!("sys/devices/system/node/{node}/x"), "");
        }
        tree.file("sys/module/kvm_amd/parameters/nested", "1\n");
        tree.file(
            "proc/cpuinfo",
            "processor\t: 0\nvendor_id\t: AuthenticAMD\nmodel name\t: AMD EPYC 7302P\n\nprocessor\t: 1\n",
        );
        let host = read("n1", &Roots::below(tree.0.path())).unwrap();
        assert_eq!((host.node.as_str(), host.iommu, host.numa_nodes), ("n1", true, 2));
        assert_eq!(
            (host.cpu.vendor.as_str(), host.cpu.model.as_str(), host.cpu.nested),
            ("AMD", "AMD EPYC 7302P", Some(true))
        );
        let addresses: Vec<&str> = host.pci_devices.iter().map(|device| device.address.as_str()).collect();
        assert_eq!(addresses, ["0000:07:00.0", "0000:81:00.0", "0000:81:02.0"], "bridges are left out");
        let [gpu, nic, vf] = &host.pci_devices[..] else { panic!() };
        assert_eq!(
            (gpu.selector().as_str(), gpu.class.as_str(), gpu.driver.as_str()),
            ("10DE:1EB8", "030200", "vfio-pci")
        );
        assert_eq!((gpu.iommu_group.as_str(), gpu.numa_node, gpu.rom), ("7", Some(1), true));
        assert_eq!(nic.sriov.map(|sriov| (sriov.total, sriov.enabled)), Some((64, 2)));
        assert_eq!((nic.numa_node, nic.rom), (None, false));
        assert_eq!((vf.physical_function.as_str(), vf.driver.as_str(), vf.sriov), ("0000:81:00.0", "", None));
    }

    #[test]
    fn a_host_without_iommu_kvm_or_pci_says_so() {
        let tree = Tree(tempfile::tempdir().unwrap());
        assert!(read("n1", &Roots::below(tree.0.path())).is_err(), "no PCI bus is no sysfs");
        std::fs::create_dir_all(tree.0.path().join("sys/bus/pci/devices")).unwrap();
        tree.file("proc/cpuinfo", "processor\t: 0\nCPU implementer\t: 0x41\n");
        let host = read("n1", &Roots::below(tree.0.path())).unwrap();
        assert_eq!((host.iommu, host.cpu.nested, host.pci_devices.len()), (false, None, 0));
        assert_eq!(host.cpu.vendor, "0x41");
        tree.file("sys/module/kvm_intel/parameters/nested", "N\n");
        assert_eq!(read("n1", &Roots::below(tree.0.path())).unwrap().cpu.nested, Some(false));
    }
}
