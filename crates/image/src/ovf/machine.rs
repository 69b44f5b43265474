//! A virtual machine, as far as an OVF descriptor can say it.

use serde::Serialize;

/// What a descriptor describes.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Machine {
    /// The machine's name.
    pub name: String,
    /// The guest's operating system.
    pub os: Os,
    /// Virtual CPUs, all sockets together.
    pub cpus: u32,
    /// Cores in a socket.
    pub cores_per_socket: u32,
    /// Memory in MiB.
    pub memory_mib: u64,
    /// What the machine boots with.
    pub firmware: Firmware,
    /// UEFI checks signatures.
    pub secure_boot: bool,
    /// The disks, in boot order.
    pub disks: Vec<MachineDisk>,
    /// The network interfaces, in order.
    pub nics: Vec<Nic>,
    /// Free text for people.
    pub annotation: String,
}

/// A guest's operating system.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Os {
    /// `CIM_OperatingSystem.OSType`
    pub cim: u16,
    /// VMware's `osType`, for example `rhel9_64Guest`.
    pub vmware: String,
    /// For people.
    pub description: String,
}

impl Default for Os {
    fn default() -> Self {
        Self::guess("")
    }
}

/// What people call a system (lower case, the first word that is found counts), its CIM number and
/// VMware's name. Newer releases come first.
const KNOWN: [(&str, u16, &str); 31] = [
    ("windows 11", 120, "windows11_64Guest"),
    ("windows11", 120, "windows11_64Guest"),
    ("win11", 120, "windows11_64Guest"),
    ("windows 10", 120, "windows9_64Guest"),
    ("windows10", 120, "windows9_64Guest"),
    ("win10", 120, "windows9_64Guest"),
    ("2025", 112, "windows2022srvNext_64Guest"),
    ("2022", 112, "windows2019srvNext_64Guest"),
    ("2k22", 112, "windows2019srvNext_64Guest"),
    ("2019", 112, "windows2019srv_64Guest"),
    ("2k19", 112, "windows2019srv_64Guest"),
    ("2016", 112, "windows9Server64Guest"),
    ("2k16", 112, "windows9Server64Guest"),
    ("windows", 112, "windows9Server64Guest"),
    ("rhel 9", 80, "rhel9_64Guest"),
    ("rhel9", 80, "rhel9_64Guest"),
    ("rhel 8", 80, "rhel8_64Guest"),
    ("rhel8", 80, "rhel8_64Guest"),
    ("rhel 7", 80, "rhel7_64Guest"),
    ("rhel", 80, "rhel9_64Guest"),
    ("red hat", 80, "rhel9_64Guest"),
    ("centos", 107, "centos8_64Guest"),
    ("fedora", 101, "fedora64Guest"),
    ("ubuntu", 94, "ubuntu64Guest"),
    ("debian", 96, "debian11_64Guest"),
    ("opensuse", 101, "opensuse64Guest"),
    ("suse", 85, "sles15_64Guest"),
    ("sles", 85, "sles15_64Guest"),
    ("oracle", 109, "oracleLinux8_64Guest"),
    ("freebsd", 78, "freebsd12_64Guest"),
    ("linux", 101, "otherLinux64Guest"),
];

impl Os {
    /// The system behind what the guest agent, a label or a preference says, for example
    /// `Red Hat Enterprise Linux 9.4` or `windows.11.virtio`. Nothing known: "other, 64 bit".
    pub fn guess(said: &str) -> Self {
        let words = said.to_lowercase().replace(['.', '-', '_'], " ");
        let found = KNOWN.iter().find(|(name, _, _)| words.contains(name));
        let (cim, vmware) = found.map_or((102, "otherGuest64"), |(_, cim, vmware)| (*cim, *vmware));
        let description = if said.is_empty() { "Other 64-bit" } else { said };
        Self { cim, vmware: vmware.into(), description: description.into() }
    }
}

/// What a machine boots with.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Firmware {
    /// BIOS
    #[default]
    Bios,
    /// UEFI
    Efi,
}

/// The controller that a disk is on.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Bus {
    /// VMware's paravirtual SCSI: for guests with virtio disks, which have a driver for it or can
    /// be given one.
    #[default]
    Pvscsi,
    /// LSI Logic SCSI.
    Lsilogic,
    /// AHCI.
    Sata,
}

/// A disk of a machine.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct MachineDisk {
    /// The volume's name.
    pub name: String,
    /// The file that holds it, a plain name.
    pub file: String,
    /// The length of that file in bytes; 0: not known.
    pub file_size: u64,
    /// The size that the guest sees, in bytes.
    pub capacity: u64,
    /// Bytes of the disk that hold data, when that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub populated: Option<u64>,
    /// Its controller.
    pub bus: Bus,
}

impl MachineDisk {
    /// States what is known once the disk was written.
    pub fn made(&mut self, file: &str, summary: &crate::Summary, file_size: u64) {
        file.clone_into(&mut self.file);
        self.capacity = summary.virtual_size;
        self.file_size = file_size;
        self.populated = Some(summary.data);
    }
}

/// A network interface.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Nic {
    /// The network that it is connected to.
    pub network: String,
    /// The hardware address, when it is stated.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mac: Option<String>,
    /// The model.
    pub model: NicModel,
}

/// The model of a network interface.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize)]
pub enum NicModel {
    /// VMware's paravirtual one; the counterpart of virtio.
    #[default]
    VmxNet3,
    /// Intel 82545EM.
    E1000,
    /// Intel 82574L.
    E1000e,
}

impl NicModel {
    /// `ResourceSubType`
    pub fn name(self) -> &'static str {
        match self {
            Self::VmxNet3 => "VmxNet3",
            Self::E1000 => "E1000",
            Self::E1000e => "E1000e",
        }
    }
}

impl std::str::FromStr for NicModel {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let known = [Self::VmxNet3, Self::E1000, Self::E1000e];
        known.into_iter().find(|model| model.name().eq_ignore_ascii_case(text)).ok_or(())
    }
}

#[cfg(test)]
mod tests {
    use super::Os;

    #[test]
    fn systems_are_known_by_what_people_call_them() {
        for (said, vmware) in [
            ("Red Hat Enterprise Linux 9.4 (Plow)", "rhel9_64Guest"),
            ("rhel.8", "rhel8_64Guest"),
            ("windows.11.virtio", "windows11_64Guest"),
            ("Microsoft Windows Server 2022 Datacenter", "windows2019srvNext_64Guest"),
            ("windows.2k19", "windows2019srv_64Guest"),
            ("Ubuntu 24.04.1 LTS", "ubuntu64Guest"),
            ("Fedora Linux 41", "fedora64Guest"),
            ("Alpine Linux v3.20", "otherLinux64Guest"),
            ("", "otherGuest64"),
            ("Plan 9", "otherGuest64"),
        ] {
            assert_eq!(Os::guess(said).vmware, vmware, "{said}");
        }
    }
}
