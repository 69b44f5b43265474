//! The rules of those who read descriptors, each as its reader applies it, over what is written here.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may fail by panicking")]

use std::collections::{BTreeMap, BTreeSet};

use super::read::{Element, tree};
use super::{Bus, Firmware, Machine, MachineDisk, Nic, NicModel, Os, render};

/// A machine with every kind of thing: more disks than one controller takes, two networks, one of them twice.
fn machine() -> Machine {
    let disk = |number: usize| MachineDisk {
        name: format!("d{number}"),
        file: format!("vm-d{number}.vmdk"),
        file_size: 70_000 + number as u64,
        capacity: (10 << 30) + 512 * number as u64,
        populated: Some(5 << 20),
        bus: [Bus::Pvscsi, Bus::Pvscsi, Bus::Lsilogic, Bus::Sata][number % 4],
    };
    let nic = |network: &str, mac: Option<&str>, model| Nic {
        network: network.into(),
        mac: mac.map(str::to_owned),
        model,
    };
    Machine {
        name: "shop web".into(),
        os: Os::guess("fedora"),
        cpus: 8,
        cores_per_socket: 4,
        memory_mib: 8192,
        firmware: Firmware::Efi,
        secure_boot: true,
        disks: (0..40).map(disk).collect(),
        nics: vec![
            nic("lan", Some("02:00:00:00:00:01"), NicModel::VmxNet3),
            nic("lan", None, NicModel::E1000),
            nic("backup", None, NicModel::E1000e),
        ],
        annotation: "from a test".into(),
    }
}

fn envelope() -> Element {
    tree(&render(&machine())).unwrap()
}

fn system(envelope: &Element) -> &Element {
    envelope.child("VirtualSystem").unwrap()
}

fn hardware(envelope: &Element) -> &Element {
    system(envelope).child("VirtualHardwareSection").unwrap()
}

/// Items of a resource type.
fn items<'a>(envelope: &'a Element, kind: &str) -> Vec<&'a Element> {
    hardware(envelope).all("Item").filter(|item| item.child_text("ResourceType") == Some(kind)).collect()
}

fn text<'a>(element: &'a Element, name: &str) -> &'a str {
    element.child_text(name).unwrap_or_default()
}

fn names(element: &Element) -> Vec<&str> {
    element.children.iter().map(|child| child.name.as_str()).collect()
}

#[test]
fn vmware_finds_every_section_in_the_order_of_the_schema() {
    // DSP0243: a strict reader takes the sections and the fields of an item in this order alone.
    let envelope = envelope();
    assert_eq!(names(&envelope), ["References", "DiskSection", "NetworkSection", "VirtualSystem"]);
    assert_eq!(
        names(system(&envelope)),
        ["Info", "Name", "OperatingSystemSection", "AnnotationSection", "VirtualHardwareSection"]
    );
    let hardware = hardware(&envelope);
    let kinds: Vec<&str> = names(hardware);
    let mut sorted = kinds.clone();
    sorted.sort_by_key(|kind| ["Info", "System", "Item", "Config"].iter().position(|known| known == kind));
    assert_eq!(kinds, sorted);
    for item in hardware.all("Item") {
        let fields: Vec<&str> = names(item).into_iter().filter(|name| *name != "CoresPerSocket").collect();
        assert!(fields.is_sorted(), "{fields:?}");
    }
    assert_eq!(text(hardware.child("System").unwrap(), "VirtualSystemType"), "vmx-14");
    assert_eq!(
        system(&envelope).child("OperatingSystemSection").unwrap().attribute("osType"),
        "fedora64Guest"
    );
}

#[test]
fn vmware_finds_files_disks_and_networks_by_what_refers_to_them() {
    let envelope = envelope();
    let files: BTreeMap<&str, &Element> =
        envelope.child("References").unwrap().all("File").map(|file| (file.attribute("id"), file)).collect();
    let disks: BTreeMap<&str, &Element> = envelope
        .child("DiskSection")
        .unwrap()
        .all("Disk")
        .map(|disk| (disk.attribute("diskId"), disk))
        .collect();
    assert_eq!((files.len(), disks.len()), (40, 40));
    for disk in disks.values() {
        // vSphere knows the disk's format by this very text, and wants to know how long the file is.
        let format = "http://www.vmware.com/interfaces/specifications/vmdk.html#streamOptimized";
        assert_eq!(disk.attribute("format"), format);
        let file = files[disk.attribute("fileRef")];
        assert!(file.attribute("size").parse::<u64>().unwrap() >= 70_000);
        assert!(disk.attribute("capacity").parse::<u64>().unwrap().is_multiple_of(512));
        assert_eq!(disk.attribute("capacityAllocationUnits"), "byte");
    }
    let networks: Vec<&str> =
        envelope.child("NetworkSection").unwrap().all("Network").map(|one| one.attribute("name")).collect();
    assert_eq!(networks, ["backup", "lan"], "each once");
    let nics = items(&envelope, "10");
    assert_eq!(nics.iter().map(|nic| text(nic, "Connection")).collect::<Vec<_>>(), ["lan", "lan", "backup"]);
    let models: Vec<&str> = nics.iter().map(|nic| text(nic, "ResourceSubType")).collect();
    assert_eq!(models, ["VmxNet3", "E1000", "E1000e"]);
    assert_eq!((text(nics[0], "Address"), text(nics[1], "Address")), ("02:00:00:00:00:01", ""));
}

#[test]
fn controllers_have_numbers_of_their_own_and_disks_a_place_on_one() {
    let envelope = envelope();
    let ids: Vec<&str> = hardware(&envelope).all("Item").map(|item| text(item, "InstanceID")).collect();
    assert_eq!(ids.iter().collect::<BTreeSet<_>>().len(), ids.len(), "InstanceIDs are unique");
    // Two of one bus at one address are one to VMware, whatever their kind. It has four of each.
    for (kind, subtypes) in [("6", &["VirtualSCSI", "lsilogic"][..]), ("20", &["AHCI"])] {
        let controllers = items(&envelope, kind);
        let addresses: BTreeSet<&str> = controllers.iter().map(|one| text(one, "Address")).collect();
        assert_eq!(addresses.len(), controllers.len(), "type {kind}");
        assert!(controllers.len() <= 4);
        assert!(controllers.iter().all(|one| subtypes.contains(&text(one, "ResourceSubType"))));
    }
    let mut places = BTreeSet::new();
    for disk in items(&envelope, "17") {
        let (parent, unit) = (text(disk, "Parent"), text(disk, "AddressOnParent").parse::<u32>().unwrap());
        let controller =
            hardware(&envelope).all("Item").find(|item| text(item, "InstanceID") == parent).unwrap();
        let scsi = text(controller, "ResourceType") == "6";
        assert!(!scsi || (unit != 7 && unit < 16), "unit 7 is the controller's own");
        assert!(places.insert((parent, unit)), "two disks at {parent}:{unit}");
    }
    assert_eq!(places.len(), 40);
}

#[test]
fn virtualbox_can_count_what_it_finds() {
    // ovfreader.cpp: an Envelope with a namespace; a capacity that is a number; known units of memory; controllers of
    // type 20 are AHCI, VirtioSCSI or NVMe.
    let text_of = render(&machine());
    assert!(text_of.contains("<Envelope xmlns=\"http://schemas.dmtf.org/ovf/envelope/1\""));
    let envelope = envelope();
    for disk in envelope.child("DiskSection").unwrap().all("Disk") {
        assert!(!disk.attribute("diskId").is_empty() && disk.attribute("capacity").parse::<u64>().is_ok());
    }
    let memory = items(&envelope, "4");
    assert_eq!(memory.len(), 1);
    assert!(
        ["MegaBytes", "MB", "byte * 2^20", "GigaBytes", "GB", "byte * 2^30"]
            .contains(&text(memory[0], "AllocationUnits"))
    );
    assert!(items(&envelope, "20").iter().all(|one| text(one, "ResourceSubType") == "AHCI"));
}

#[test]
fn virt_v2v_finds_machine_and_disks_where_it_looks() {
    // input/OVF.ml looks elements up with their prefixes, takes memory as MiB whatever its units, and knows the
    // firmware by two words.
    let text_of = render(&machine());
    for prefix in
        ["rasd:ResourceType", "rasd:VirtualQuantity", "rasd:HostResource", "vmw:CoresPerSocket", "vmw:Config"]
    {
        assert!(text_of.contains(&format!("<{prefix}")), "{prefix}");
    }
    let envelope = envelope();
    assert_eq!(text(system(&envelope), "Name"), "shop web");
    assert_eq!(text(items(&envelope, "4")[0], "VirtualQuantity"), "8192");
    let cpu = items(&envelope, "3")[0];
    assert_eq!((text(cpu, "VirtualQuantity"), text(cpu, "CoresPerSocket")), ("8", "4"));
    let configs: BTreeMap<&str, &str> =
        hardware(&envelope).all("Config").map(|one| (one.attribute("key"), one.attribute("value"))).collect();
    assert_eq!(configs["firmware"], "efi");
    assert_eq!(configs["bootOptions.efiSecureBootEnabled"], "true");
    let bios = Machine { firmware: Firmware::Bios, secure_boot: false, ..machine() };
    let bios = tree(&render(&bios)).unwrap();
    let configs: Vec<_> = hardware(&bios).all("Config").map(|one| one.attribute("value")).collect();
    assert_eq!(configs, ["bios"], "secure boot says nothing without UEFI");
    for disk in items(&envelope, "17") {
        let resource = text(disk, "HostResource");
        let id = resource.strip_prefix("ovf:").unwrap_or(resource).strip_prefix("/disk/").unwrap();
        let stated =
            envelope.child("DiskSection").unwrap().all("Disk").find(|one| one.attribute("diskId") == id);
        let file = stated.unwrap().attribute("fileRef");
        let file = envelope
            .child("References")
            .unwrap()
            .all("File")
            .find(|one| one.attribute("id") == file)
            .unwrap();
        assert!(["", "identity", "gzip"].contains(&file.attribute("compression")));
        let parent = text(disk, "Parent");
        let parent = hardware(&envelope).all("Item").find(|item| text(item, "InstanceID") == parent).unwrap();
        assert!(["5", "6", "20"].contains(&text(parent, "ResourceType")));
    }
}
