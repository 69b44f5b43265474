//! Reading a descriptor: ours, VMware's, VirtualBox's.

use std::collections::HashMap;

use quick_xml::XmlVersion;
use quick_xml::events::{BytesStart, Event};

use super::machine::{Bus, Firmware, Machine, MachineDisk, Nic, Os};
use crate::{Error, Result};

/// The longest descriptor that is read, in bytes; real ones have some tens of KiB.
pub(super) const MAX_DESCRIPTOR: u64 = 4 << 20;
const MAX_DEPTH: usize = 32;
const MAX_ELEMENTS: usize = 50_000;

/// Reads a descriptor. Files are checked to be plain names: a descriptor cannot make anybody open
/// anything outside its directory.
pub fn parse(text: &str) -> Result<Machine> {
    let root = tree(text)?;
    if root.name != "Envelope" {
        return Err(Error::ovf(format!("its root element is `{}` instead of `Envelope`", root.name)));
    }
    let Some(system) = root.child("VirtualSystem") else {
        return Err(Error::ovf("it has no VirtualSystem (collections of machines are not read)"));
    };
    let mut machine = Machine {
        name: system.child_text("Name").unwrap_or_else(|| system.attribute("id")).to_owned(),
        cores_per_socket: 1,
        ..Machine::default()
    };
    if let Some(os) = system.child("OperatingSystemSection") {
        machine.os = Os {
            cim: os.attribute("id").parse().unwrap_or(1),
            vmware: os.attribute("osType").to_owned(),
            description: os.child_text("Description").unwrap_or_default().to_owned(),
        };
    }
    if let Some(text) = system.child("AnnotationSection").and_then(|section| section.child_text("Annotation"))
    {
        text.clone_into(&mut machine.annotation);
    }
    let disks = stated_disks(&root)?;
    if let Some(hardware) = system.child("VirtualHardwareSection") {
        read_hardware(hardware, &disks, &mut machine)?;
    }
    Ok(machine)
}

/// The disks of the `DiskSection` by id.
fn stated_disks(root: &Element) -> Result<HashMap<String, MachineDisk>> {
    let mut files = HashMap::new();
    for file in root.child("References").into_iter().flat_map(|list| list.all("File")) {
        let name = file.attribute("href");
        if !is_plain(name) {
            return Err(Error::ovf(format!("the file `{name}` is not a plain name beside the descriptor")));
        }
        if !matches!(file.attribute("compression"), "" | "identity") {
            return Err(Error::ovf(format!("the file `{name}` is compressed as a whole; unpack it first")));
        }
        files.insert(file.attribute("id"), (name, file.attribute("size").parse().unwrap_or(0)));
    }
    let mut disks = HashMap::new();
    for disk in root.child("DiskSection").into_iter().flat_map(|list| list.all("Disk")) {
        let id = disk.attribute("diskId");
        let capacity = capacity(disk)?;
        let (file, file_size) = match disk.attribute("fileRef") {
            "" => ("", 0),
            reference => *files.get(reference).ok_or_else(|| {
                Error::ovf(format!("the disk `{id}` refers to the file `{reference}`, which is not listed"))
            })?,
        };
        let populated = disk.attribute("populatedSize").parse().ok();
        let disk = MachineDisk {
            name: id.to_owned(),
            file: file.to_owned(),
            file_size,
            capacity,
            populated,
            bus: Bus::default(),
        };
        disks.insert(id.to_owned(), disk);
    }
    Ok(disks)
}

/// A name that stays in its directory.
pub(super) fn is_plain(name: &str) -> bool {
    !name.is_empty() && !matches!(name, "." | "..") && !name.contains(['/', '\\', '\0'])
}

fn capacity(disk: &Element) -> Result<u64> {
    let bad = || {
        let stated = (disk.attribute("capacity"), disk.attribute("capacityAllocationUnits"));
        Error::ovf(format!("`{}` of `{}` is no capacity of a disk", stated.0, stated.1))
    };
    let count: u64 = disk.attribute("capacity").parse().map_err(|_| bad())?;
    let unit = units(disk.attribute("capacityAllocationUnits")).ok_or_else(bad)?;
    count.checked_mul(unit).ok_or_else(bad)
}

/// Programmatic units (DSP0004, annex C) as they occur: `byte`, `byte * 2^20`, and old names.
fn units(text: &str) -> Option<u64> {
    let words: String = text.split_whitespace().collect::<String>().to_ascii_lowercase();
    match words.as_str() {
        "" | "byte" | "bytes" => Some(1),
        "kilobytes" | "kb" => Some(1 << 10),
        "megabytes" | "mb" => Some(1 << 20),
        "gigabytes" | "gb" => Some(1 << 30),
        other => {
            let power = other.strip_prefix("byte*2^")?.parse().ok()?;
            1_u64.checked_shl(power).filter(|unit| *unit > 0)
        }
    }
}

fn read_hardware(
    hardware: &Element,
    disks: &HashMap<String, MachineDisk>,
    machine: &mut Machine,
) -> Result<()> {
    let mut controllers = HashMap::new();
    let item_names = ["Item", "StorageItem", "EthernetPortItem"];
    let items: Vec<&Element> =
        hardware.children.iter().filter(|child| item_names.contains(&child.name.as_str())).collect();
    for item in &items {
        let text = |name: &str| item.child_text(name).unwrap_or_default();
        let bus = match (text("ResourceType"), text("ResourceSubType").to_ascii_lowercase().as_str()) {
            ("6", "lsilogic" | "lsilogicsas" | "buslogic") => Bus::Lsilogic,
            ("6", _) => Bus::Pvscsi,
            ("5" | "20", _) => Bus::Sata,
            _ => continue,
        };
        controllers.insert(text("InstanceID"), bus);
    }
    for item in &items {
        let text = |name: &str| item.child_text(name).unwrap_or_default();
        match text("ResourceType") {
            "3" => {
                machine.cpus = text("VirtualQuantity").parse().unwrap_or(0);
                machine.cores_per_socket = text("CoresPerSocket").parse().unwrap_or(1);
            }
            "4" => {
                let count: u64 = text("VirtualQuantity").parse().unwrap_or(0);
                // virt-v2v takes the plain number as MiB; so do we when nothing is said.
                let unit = match text("AllocationUnits") {
                    "" => Some(1 << 20),
                    stated => units(stated),
                };
                let unit = unit.ok_or_else(|| {
                    Error::ovf(format!("`{}` is no unit of memory", text("AllocationUnits")))
                })?;
                machine.memory_mib = count.saturating_mul(unit) >> 20;
            }
            "10" => machine.nics.push(Nic {
                network: text("Connection").to_owned(),
                mac: Some(text("Address").to_owned()).filter(|mac| !mac.is_empty()),
                model: text("ResourceSubType").parse().unwrap_or_default(),
            }),
            "17" => {
                let resource = text("HostResource");
                let id = resource.strip_prefix("ovf:").unwrap_or(resource).strip_prefix("/disk/");
                let disk = id.and_then(|id| disks.get(id)).ok_or_else(|| {
                    Error::ovf(format!("a drive refers to `{resource}`, which is no disk of the DiskSection"))
                })?;
                let bus = controllers.get(text("Parent")).copied().unwrap_or_default();
                machine.disks.push(MachineDisk { bus, ..disk.clone() });
            }
            _ => {}
        }
    }
    for config in hardware.all("Config") {
        match (config.attribute("key"), config.attribute("value")) {
            ("firmware", "efi") => machine.firmware = Firmware::Efi,
            ("bootOptions.efiSecureBootEnabled", "true") => machine.secure_boot = true,
            _ => {}
        }
    }
    Ok(())
}

/// An element without its namespace: descriptors use one prefix for one thing, and readers in the
/// field look at local names as well.
#[derive(Default)]
pub(super) struct Element {
    pub name: String,
    attributes: Vec<(String, String)>,
    pub children: Vec<Element>,
    text: String,
}

impl Element {
    fn of(start: &BytesStart<'_>) -> Result<Self> {
        let mut element = Self { name: local(start.name().0), ..Self::default() };
        for attribute in start.attributes() {
            let attribute = attribute.map_err(|error| Error::ovf(error.to_string()))?;
            let value = attribute.normalized_value(XmlVersion::Implicit1_0);
            let value = value.map_err(|error| Error::ovf(error.to_string()))?;
            element.attributes.push((local(attribute.key.0), value.into_owned()));
        }
        Ok(element)
    }

    pub fn attribute(&self, name: &str) -> &str {
        self.attributes.iter().find(|(key, _)| key == name).map_or("", |(_, value)| value)
    }

    pub fn child(&self, name: &str) -> Option<&Element> {
        self.children.iter().find(|child| child.name == name)
    }

    pub fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Element> {
        self.children.iter().filter(move |child| child.name == name)
    }

    pub fn child_text(&self, name: &str) -> Option<&str> {
        self.child(name).map(|child| child.text.trim())
    }
}

fn local(name: &str) -> String {
    name.rsplit_once(':').map_or(name, |(_, local)| local).to_owned()
}

/// The tree of a document. Entities beyond the five of XML itself are refused, so nothing expands.
pub(super) fn tree(text: &str) -> Result<Element> {
    let mut reader = quick_xml::Reader::from_str(text.trim_start_matches('\u{feff}'));
    let mut open: Vec<Element> = Vec::new();
    let mut root = None;
    let mut elements = 0;
    loop {
        let event = reader.read_event().map_err(|error| {
            Error::ovf(format!("it is no XML at byte {}: {error}", reader.error_position()))
        })?;
        let closed = match event {
            Event::Start(start) => {
                open.push(Element::of(&start)?);
                elements += 1;
                None
            }
            Event::Empty(start) => {
                elements += 1;
                Some(Element::of(&start)?)
            }
            Event::End(_) => open.pop(),
            Event::Text(text) => {
                if let Some(element) = open.last_mut() {
                    element.text.push_str(&text.xml10_content());
                }
                None
            }
            Event::CData(text) => {
                if let Some(element) = open.last_mut() {
                    element.text.push_str(&text.xml10_content());
                }
                None
            }
            Event::GeneralRef(reference) => {
                let c = match &*reference {
                    "amp" => '&',
                    "lt" => '<',
                    "gt" => '>',
                    "quot" => '"',
                    "apos" => '\'',
                    other => reference
                        .resolve_char_ref()
                        .ok()
                        .flatten()
                        .ok_or_else(|| Error::ovf(format!("the entity `&{other};` is not known")))?,
                };
                if let Some(element) = open.last_mut() {
                    element.text.push(c);
                }
                None
            }
            Event::DocType(_) => return Err(Error::ovf("it has a document type, which no descriptor needs")),
            Event::Eof => break,
            Event::Decl(_) | Event::PI(_) | Event::Comment(_) => None,
        };
        if open.len() > MAX_DEPTH || elements > MAX_ELEMENTS {
            return Err(Error::ovf("it has too many elements, or they are too deep"));
        }
        if let Some(element) = closed {
            match open.last_mut() {
                Some(parent) => parent.children.push(element),
                None if root.is_none() => root = Some(element),
                None => return Err(Error::ovf("it has two root elements")),
            }
        }
    }
    if !open.is_empty() {
        return Err(Error::ovf("an element is not closed: the descriptor was cut short"));
    }
    root.ok_or_else(|| Error::ovf("it is empty"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may fail by panicking")]
mod tests {
    use super::super::{NicModel, render};
    use super::*;

    fn machine() -> Machine {
        let disk = |name: &str, bus| MachineDisk {
            name: name.into(),
            file: format!("vm-{name}.vmdk"),
            file_size: 4096,
            capacity: 10 << 30,
            populated: Some(5),
            bus,
        };
        Machine {
            name: "a <vm> & \"more\"".into(),
            os: Os::guess("rhel.9"),
            cpus: 8,
            cores_per_socket: 4,
            memory_mib: 8192,
            firmware: Firmware::Efi,
            secure_boot: true,
            disks: (0..18)
                .map(|index| disk(&format!("d{index}"), if index == 3 { Bus::Sata } else { Bus::Pvscsi }))
                .collect(),
            nics: vec![
                Nic { network: "pod".into(), mac: Some("02:00:00:00:00:01".into()), ..Nic::default() },
                Nic { network: "vlan & 7".into(), mac: None, model: NicModel::E1000 },
            ],
            annotation: "line one\nline two".into(),
        }
    }

    #[test]
    fn a_descriptor_is_read_as_it_is_written() {
        let written = machine();
        let mut read = parse(&render(&written)).unwrap();
        // Disks are grouped by controller, and the descriptor calls them by their ids.
        read.disks.sort_by_key(|disk| disk.file.clone());
        let mut expected = written;
        for (index, disk) in expected.disks.iter_mut().enumerate() {
            disk.name = format!("vmdisk{}", index + 1);
        }
        expected.disks.sort_by_key(|disk| disk.file.clone());
        assert_eq!(read, expected);
    }

    #[test]
    fn unit_seven_of_a_scsi_controller_is_left_free() {
        let text = render(&machine());
        let units: Vec<&str> = text
            .split("<Item>")
            .filter(|item| item.contains("<rasd:ResourceType>17<"))
            .map(|item| item.split_once("AddressOnParent>").unwrap().1.split_once('<').unwrap().0)
            .collect();
        // 17 disks on SCSI fill one controller (15) and begin another, one is on SATA.
        let expected = "0 1 2 3 4 5 6 8 9 10 11 12 13 14 15 0 1 0";
        assert_eq!(units.join(" "), expected);
    }

    #[test]
    fn what_others_write_is_read_and_what_is_dangerous_is_refused() {
        let old = r#"<Envelope xmlns="http://schemas.dmtf.org/ovf/envelope/1" xmlns:ovf="x">
          <References><File ovf:href="d.vmdk" ovf:id="f"/></References>
          <DiskSection><Disk ovf:diskId="d" ovf:fileRef="f" ovf:capacity="10" ovf:capacityAllocationUnits="byte * 2^30"/></DiskSection>
          <VirtualSystem ovf:id="old"><VirtualHardwareSection>
            <Item><rasd:ResourceType>3</rasd:ResourceType><rasd:VirtualQuantity>2</rasd:VirtualQuantity></Item>
            <Item><rasd:AllocationUnits>MegaBytes</rasd:AllocationUnits><rasd:ResourceType>4</rasd:ResourceType><rasd:VirtualQuantity>512</rasd:VirtualQuantity></Item>
            <Item><rasd:HostResource>/disk/d</rasd:HostResource><rasd:ResourceType>17</rasd:ResourceType></Item>
          </VirtualHardwareSection></VirtualSystem></Envelope>"#;
        let machine = parse(old).unwrap();
        assert_eq!((machine.name.as_str(), machine.cpus, machine.memory_mib), ("old", 2, 512));
        assert_eq!(machine.disks[0].capacity, 10 << 30);
        for (change, complaint) in [
            (("d.vmdk", "../d.vmdk"), "plain name"),
            (("ovf:fileRef=\"f\"", "ovf:fileRef=\"g\""), "not listed"),
            (("byte * 2^30", "byte * 2^99"), "capacity"),
            (("</References>", "&evil;</References>"), "not known"),
            (("<Envelope", "<!DOCTYPE x [<!ENTITY evil 'x'>]><Envelope"), "document type"),
            (("</VirtualSystem></Envelope>", ""), "cut short"),
            (("/disk/d<", "/disk/other<"), "no disk"),
        ] {
            let error = parse(&old.replacen(change.0, change.1, 1)).unwrap_err().to_string();
            assert!(error.contains(complaint), "{error}");
        }
    }
}
