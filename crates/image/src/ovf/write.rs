//! Writing a descriptor.

use std::fmt::Write;

use super::STREAM_OPTIMIZED;
use super::machine::{Bus, Firmware, Machine};

/// The hardware version that is asked for: the oldest with secure boot and `NVMe`, which ESXi 6.7
/// and later, Workstation 15 and later take. Manifests of it are SHA-256.
const HARDWARE: &str = "vmx-14";

/// Disks on one SCSI controller: units 0 to 15, of which 7 is the controller itself.
const SCSI_UNITS: u32 = 15;
/// Ports of one AHCI controller.
const SATA_UNITS: u32 = 30;

/// The descriptor of a machine; the same machine gives the same text. What stands in it follows
/// the readers: VMware (`References` with sizes, exact format URI, `vmw:` configuration),
/// VirtualBox (numeric capacity, `byte * 2^20` memory), virt-v2v (memory as a plain number of MiB,
/// `ovf:/disk/` resources, parents of type 6 or 20).
pub fn render(machine: &Machine) -> String {
    let mut out = String::with_capacity(8192);
    head(&mut out, machine);
    hardware(&mut out, machine);
    out.push_str("  </VirtualSystem>\n</Envelope>\n");
    out
}

fn head(out: &mut String, machine: &Machine) {
    out.push_str(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n\
         <Envelope xmlns=\"http://schemas.dmtf.org/ovf/envelope/1\" \
         xmlns:ovf=\"http://schemas.dmtf.org/ovf/envelope/1\" \
         xmlns:rasd=\"http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_ResourceAllocationSettingData\" \
         xmlns:vssd=\"http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_VirtualSystemSettingData\" \
         xmlns:vmw=\"http://www.vmware.com/schema/ovf\" \
         xmlns:xsi=\"http://www.w3.org/2001/XMLSchema-instance\">\n",
    );
    out.push_str("  <References>\n");
    for (index, disk) in machine.disks.iter().enumerate() {
        let size =
            if disk.file_size == 0 { String::new() } else { format!(" ovf:size=\"{}\"", disk.file_size) };
        let _ = writeln!(
            out,
            "    <File ovf:href=\"{}\" ovf:id=\"file{}\"{size}/>",
            escape(&disk.file),
            index + 1
        );
    }
    out.push_str("  </References>\n  <DiskSection>\n    <Info>Virtual disks</Info>\n");
    for (index, disk) in machine.disks.iter().enumerate() {
        let populated =
            disk.populated.map(|bytes| format!(" ovf:populatedSize=\"{bytes}\"")).unwrap_or_default();
        let _ = writeln!(
            out,
            "    <Disk ovf:capacity=\"{}\" ovf:capacityAllocationUnits=\"byte\" ovf:diskId=\"vmdisk{n}\" \
             ovf:fileRef=\"file{n}\" ovf:format=\"{STREAM_OPTIMIZED}\"{populated}/>",
            disk.capacity.next_multiple_of(512),
            n = index + 1
        );
    }
    out.push_str("  </DiskSection>\n  <NetworkSection>\n    <Info>Logical networks</Info>\n");
    let mut networks: Vec<&str> = machine.nics.iter().map(|nic| nic.network.as_str()).collect();
    networks.sort_unstable();
    networks.dedup();
    for network in networks {
        let name = escape(network);
        let _ = writeln!(
            out,
            "    <Network ovf:name=\"{name}\">\n      <Description>{name}</Description>\n    </Network>"
        );
    }
    let _ = writeln!(
        out,
        "  </NetworkSection>\n  <VirtualSystem ovf:id=\"{name}\">\n    <Info>A virtual machine</Info>\n    \
         <Name>{name}</Name>\n    <OperatingSystemSection ovf:id=\"{}\" vmw:osType=\"{}\">\n      \
         <Info>The guest operating system</Info>\n      <Description>{}</Description>\n    \
         </OperatingSystemSection>",
        machine.os.cim,
        escape(&machine.os.vmware),
        escape(&machine.os.description),
        name = escape(&machine.name),
    );
    if !machine.annotation.is_empty() {
        let _ = writeln!(
            out,
            "    <AnnotationSection>\n      <Info>Where this machine comes from</Info>\n      \
             <Annotation>{}</Annotation>\n    </AnnotationSection>",
            escape(&machine.annotation)
        );
    }
}

fn hardware(out: &mut String, machine: &Machine) {
    let _ = writeln!(
        out,
        "    <VirtualHardwareSection>\n      <Info>Virtual hardware</Info>\n      <System>\n        \
         <vssd:ElementName>Virtual Hardware Family</vssd:ElementName>\n        \
         <vssd:InstanceID>0</vssd:InstanceID>\n        \
         <vssd:VirtualSystemIdentifier>{}</vssd:VirtualSystemIdentifier>\n        \
         <vssd:VirtualSystemType>{HARDWARE}</vssd:VirtualSystemType>\n      </System>",
        escape(&machine.name)
    );
    let mut items = Items { out, next: 1 };
    items.put(&[
        ("AllocationUnits", "hertz * 10^6"),
        ("Description", "Number of virtual CPUs"),
        ("ElementName", &format!("{} virtual CPU(s)", machine.cpus)),
        ("InstanceID", ""),
        ("ResourceType", "3"),
        ("VirtualQuantity", &machine.cpus.to_string()),
        ("vmw:CoresPerSocket", &machine.cores_per_socket.max(1).to_string()),
    ]);
    items.put(&[
        ("AllocationUnits", "byte * 2^20"),
        ("Description", "Memory size"),
        ("ElementName", &format!("{} MB of memory", machine.memory_mib)),
        ("InstanceID", ""),
        ("ResourceType", "4"),
        ("VirtualQuantity", &machine.memory_mib.to_string()),
    ]);
    disks(&mut items, machine);
    for (index, nic) in machine.nics.iter().enumerate() {
        let mut fields = vec![("AddressOnParent", (index + 7).to_string())];
        if let Some(mac) = &nic.mac {
            fields.insert(0, ("Address", mac.clone()));
        }
        let model = nic.model.name();
        fields.push(("AutomaticAllocation", "true".into()));
        fields.push(("Connection", nic.network.clone()));
        fields.push(("Description", format!("{model} adapter on \"{}\"", nic.network)));
        fields.push(("ElementName", format!("Network adapter {}", index + 1)));
        fields.push(("InstanceID", String::new()));
        fields.push(("ResourceSubType", model.into()));
        fields.push(("ResourceType", "10".into()));
        let fields: Vec<(&str, &str)> = fields.iter().map(|(key, value)| (*key, value.as_str())).collect();
        items.put(&fields);
    }
    let firmware = match machine.firmware {
        Firmware::Bios => "bios",
        Firmware::Efi => "efi",
    };
    config(out, "firmware", firmware);
    if machine.firmware == Firmware::Efi {
        let secure = if machine.secure_boot { "true" } else { "false" };
        config(out, "bootOptions.efiSecureBootEnabled", secure);
    }
    out.push_str("    </VirtualHardwareSection>\n");
}

/// Controllers as they are needed, each followed by its disks.
fn disks(items: &mut Items<'_>, machine: &Machine) {
    let mut scsi = 0;
    for bus in [Bus::Pvscsi, Bus::Lsilogic, Bus::Sata] {
        let units = if bus == Bus::Sata { SATA_UNITS } else { SCSI_UNITS };
        let of_bus: Vec<_> = machine.disks.iter().enumerate().filter(|(_, disk)| disk.bus == bus).collect();
        for (number, group) in of_bus.chunks(units as usize).enumerate() {
            // Both kinds of SCSI controllers share the numbers of the SCSI bus.
            let number = if bus == Bus::Sata { number } else { scsi };
            scsi += usize::from(bus != Bus::Sata);
            let (kind, subtype, name) = match bus {
                Bus::Pvscsi => ("6", "VirtualSCSI", "SCSI controller"),
                Bus::Lsilogic => ("6", "lsilogic", "SCSI controller"),
                Bus::Sata => ("20", "AHCI", "SATA controller"),
            };
            let parent = items.put(&[
                ("Address", &number.to_string()),
                ("Description", name),
                ("ElementName", &format!("{name} {number}")),
                ("InstanceID", ""),
                ("ResourceSubType", subtype),
                ("ResourceType", kind),
            ]);
            for (position, (index, disk)) in group.iter().enumerate() {
                // Unit 7 of a SCSI controller is the controller.
                let unit = if bus != Bus::Sata && position >= 7 { position + 1 } else { position };
                items.put(&[
                    ("AddressOnParent", &unit.to_string()),
                    ("Description", &format!("Disk {}", disk.name)),
                    ("ElementName", &format!("Hard disk {}", index + 1)),
                    ("HostResource", &format!("ovf:/disk/vmdisk{}", index + 1)),
                    ("InstanceID", ""),
                    ("Parent", &parent.to_string()),
                    ("ResourceType", "17"),
                ]);
            }
        }
    }
}

struct Items<'a> {
    out: &'a mut String,
    next: u32,
}

impl Items<'_> {
    /// Writes an item; an empty `InstanceID` takes the next number, which is answered. The fields
    /// stand in the order of the schema, which is alphabetical.
    fn put(&mut self, fields: &[(&str, &str)]) -> u32 {
        let id = self.next;
        self.next += 1;
        self.out.push_str("      <Item>\n");
        for (key, value) in fields {
            match *key {
                "InstanceID" => {
                    let _ = writeln!(self.out, "        <rasd:InstanceID>{id}</rasd:InstanceID>");
                }
                "vmw:CoresPerSocket" => {
                    let _ = writeln!(
                        self.out,
                        "        <vmw:CoresPerSocket ovf:required=\"false\">{value}</vmw:CoresPerSocket>"
                    );
                }
                key => {
                    let _ = writeln!(self.out, "        <rasd:{key}>{}</rasd:{key}>", escape(value));
                }
            }
        }
        self.out.push_str("      </Item>\n");
        id
    }
}

fn config(out: &mut String, key: &str, value: &str) {
    let _ =
        writeln!(out, "      <vmw:Config ovf:required=\"false\" vmw:key=\"{key}\" vmw:value=\"{value}\"/>");
}

/// Text for an element or an attribute. What XML 1.0 cannot say at all becomes U+FFFD.
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\n' | '\r' | '\t' => {
                let _ = write!(out, "&#{};", u32::from(c));
            }
            c if c < ' ' || matches!(c, '\u{fffe}' | '\u{ffff}') => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}
