//! The libvirt domain of a VMI, written as virt-launcher writes it: tabs, double quotes, explicit
//! closing tags. Only what host devices, memory and CPUs need is there.
//!
//! A domain is defined twice. Before the second time virt-launcher reads back what libvirt made
//! of it, with addresses in the guest and without the namespace of QEMU, and forgets what its own
//! types do not know: the ROM of a host device for one (`api/schema.go`, v1.9).

use std::fmt::Write as _;

use apimachinery::tree::Value;
use kubevirt::{KubeVirtView, PermittedKind};

use crate::sim::json::{integer, list, text};
use crate::sim::node::uuid;

/// Which time a domain is defined.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Round {
    /// From the VMI.
    First,
    /// From what libvirt made of the first.
    Second,
}

/// Host devices get made-up addresses in a PCI domain that no host has, so that nothing on the
/// machine below is taken for one of them.
const PCI_DOMAIN: u32 = 0xfff0;

struct HostDevice<'a> {
    kind: PermittedKind,
    alias: String,
    entry: &'a Value,
}

/// The domain of a VMI whose devices the `KubeVirt` object permits.
pub fn xml(vmi: &Value, kubevirt: Option<&Value>, round: Round) -> String {
    let mut xml = String::new();
    // writing to a String does not fail
    let _ = write(&mut xml, vmi, kubevirt, round);
    xml
}

fn write(xml: &mut String, vmi: &Value, kubevirt: Option<&Value>, round: Round) -> std::fmt::Result {
    let namespace = match round {
        Round::First => r#" xmlns:qemu="http://libvirt.org/schemas/domain/qemu/1.0""#,
        Round::Second => "",
    };
    let (name, space) = (text(vmi, "/metadata/name"), text(vmi, "/metadata/namespace"));
    writeln!(xml, r#"<domain type="kvm"{namespace}>"#)?;
    writeln!(xml, "\t<name>{space}_{name}</name>")?;
    let memory = vmi.pointer("/spec/domain/memory/guest");
    let bytes = memory.and_then(apimachinery::quantity::units).unwrap_or_default();
    writeln!(xml, "\t<memory unit=\"b\">{bytes}</memory>")?;
    writeln!(xml, "\t<os>\n\t\t<type arch=\"x86_64\" machine=\"q35\">hvm</type>\n\t</os>")?;
    writeln!(xml, "\t<devices>")?;
    for (index, device) in devices(vmi, kubevirt).iter().enumerate() {
        host_device(xml, device, index, round)?;
    }
    writeln!(xml, "\t\t<controller type=\"usb\" index=\"0\" model=\"none\"></controller>")?;
    writeln!(xml, "\t\t<memballoon model=\"virtio-non-transitional\"></memballoon>\n\t</devices>")?;
    writeln!(
        xml,
        "\t<metadata>\n\t\t<kubevirt xmlns=\"http://kubevirt.io\">\n\t\t\t<uid></uid>\n\t\t</kubevirt>\n\t</metadata>"
    )?;
    let count = |field: &str| integer(vmi, &format!("/spec/domain/cpu/{field}")).max(1);
    let (sockets, cores, threads) = (count("sockets"), count("cores"), count("threads"));
    writeln!(xml, "\t<vcpu placement=\"static\">{}</vcpu>", sockets * cores * threads)?;
    xml.write_str("</domain>")
}

/// The devices in the order in which virt-launcher writes them: host devices, then GPUs.
fn devices<'a>(vmi: &'a Value, kubevirt: Option<&Value>) -> Vec<HostDevice<'a>> {
    let plain = kubevirt.cloned().map(serde_json::Value::from);
    let kind = |entry: &Value| {
        let mut permitted = plain.iter().flat_map(|kubevirt| KubeVirtView(kubevirt).permitted_devices());
        let found = permitted.find(|device| device.resource_name == text(entry, "/deviceName"));
        found.map_or(PermittedKind::Pci, |device| device.kind)
    };
    let mut devices = Vec::new();
    for (pointer, name) in
        [("/spec/domain/devices/hostDevices", "hostdevice"), ("/spec/domain/devices/gpus", "gpu")]
    {
        for entry in list(vmi, pointer) {
            let kind = kind(entry);
            let by_claim = entry.get("claimName").is_some();
            let prefix = match kind {
                PermittedKind::Usb => "ua-usb-host".to_owned(),
                _ if by_claim => format!("ua-dra-{name}"),
                _ => format!("ua-{name}"),
            };
            devices.push(HostDevice { kind, alias: format!("{prefix}-{}", text(entry, "/name")), entry });
        }
    }
    devices
}

fn host_device(xml: &mut String, device: &HostDevice<'_>, index: usize, round: Round) -> std::fmt::Result {
    let bus = index + 1;
    let mode = match (round, device.kind) {
        (Round::First, PermittedKind::Pci) => "",
        _ => r#" mode="subsystem""#,
    };
    match device.kind {
        PermittedKind::Pci => {
            writeln!(xml, "\t\t<hostdev type=\"pci\"{mode} managed=\"no\">\n\t\t\t<source>")?;
            writeln!(
                xml,
                "\t\t\t\t<address type=\"pci\" domain=\"{PCI_DOMAIN:#06x}\" bus=\"{bus:#04x}\" slot=\"0x00\" function=\"0x0\"></address>"
            )?;
        }
        PermittedKind::Usb => {
            writeln!(xml, "\t\t<hostdev type=\"usb\"{mode} managed=\"no\">\n\t\t\t<source>")?;
            writeln!(xml, "\t\t\t\t<address bus=\"1\" device=\"{bus}\"></address>")?;
        }
        PermittedKind::Mediated => {
            let shown = |pointer: &str, default: bool| {
                let on = device.entry.pointer(pointer).and_then(Value::as_bool).unwrap_or(default);
                if on { "on" } else { "off" }
            };
            let display = shown("/virtualGPUOptions/display/enabled", true);
            let ram = shown("/virtualGPUOptions/display/ramFB/enabled", display == "on");
            writeln!(
                xml,
                "\t\t<hostdev type=\"mdev\"{mode} model=\"vfio-pci\" display=\"{display}\" ramfb=\"{ram}\">\n\t\t\t<source>"
            )?;
            writeln!(xml, "\t\t\t\t<address uuid=\"{}\"></address>", uuid(1, &device.alias))?;
        }
    }
    writeln!(xml, "\t\t\t</source>\n\t\t\t<alias name=\"{}\"></alias>", device.alias)?;
    if round == Round::Second && device.kind != PermittedKind::Usb {
        writeln!(
            xml,
            "\t\t\t<address type=\"pci\" domain=\"0x0000\" bus=\"{:#04x}\" slot=\"0x00\" function=\"0x0\"></address>",
            bus + 4
        )?;
    }
    writeln!(xml, "\t\t</hostdev>")
}

/// Whether virt-launcher and libvirt can read a domain; the error is encoding/xml's.
pub fn check(xml: &[u8]) -> Result<(), String> {
    if xml.is_empty() {
        return Err("EOF".to_owned());
    }
    let text =
        std::str::from_utf8(xml).map_err(|_| "XML syntax error on line 1: invalid UTF-8".to_owned())?;
    roxmltree::Document::parse(text).map(drop).map_err(|error| match error {
        // has no position of its own: Go stands behind the last byte
        roxmltree::Error::UnclosedRootNode | roxmltree::Error::UnexpectedEndOfStream => {
            format!("XML syntax error on line {}: unexpected EOF", 1 + text.matches('\n').count())
        }
        error => format!("XML syntax error on line {}: {error}", error.pos().row),
    })
}

/// A domain as KubeVirt's own types leave it (`translate.ToLibvirtDomain` of `api.DomainSpec`, v1.9): ROMs of
/// host devices and what is QEMU's own are gone.
pub fn through_kubevirts_types(xml: Vec<u8>) -> Vec<u8> {
    const QEMU: &str = "http://libvirt.org/schemas/domain/qemu/1.0";
    let Ok(text) = String::from_utf8(xml) else { return Vec::new() };
    let mut gone: Vec<std::ops::Range<usize>> = Vec::new();
    if let Ok(document) = roxmltree::Document::parse(&text) {
        for node in document.descendants().filter(roxmltree::Node::is_element) {
            let parent = node.parent_element();
            let is_rom =
                node.has_tag_name("rom") && parent.is_some_and(|parent| parent.has_tag_name("hostdev"));
            let is_qemu = node.tag_name().namespace() == Some(QEMU);
            // ancestors come first
            if (is_rom || is_qemu) && !gone.iter().any(|outer| outer.contains(&node.range().start)) {
                gone.push(node.range());
            }
        }
    }
    let mut text = text;
    for range in gone.into_iter().rev() {
        text.replace_range(range, "");
    }
    text.into_bytes()
}

/// The ROM files that QEMU would open for a domain.
pub fn roms(xml: &[u8]) -> Vec<String> {
    let text = std::str::from_utf8(xml).unwrap_or_default();
    let Ok(document) = roxmltree::Document::parse(text) else { return Vec::new() };
    let roms = document.descendants().filter(|node| {
        node.has_tag_name("rom") && node.parent_element().is_some_and(|parent| parent.has_tag_name("hostdev"))
    });
    roms.filter_map(|rom| rom.attribute("file")).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use apimachinery::tree::json;

    use super::*;

    fn kubevirt() -> Value {
        json!({"spec": {"configuration": {"permittedHostDevices": {
            "pciHostDevices": [{"resourceName": "amd.com/IGPU"}],
            "mediatedDevices": [{"resourceName": "nvidia.com/GRID"}],
            "usb": [{"resourceName": "kubevirt.io/key"}]}}}})
    }

    #[test]
    fn every_kind_of_device_is_written_as_virt_launcher_writes_it() {
        let vmi = json!({"metadata": {"name": "v", "namespace": "n"}, "spec": {"domain": {
            "memory": {"guest": "1Gi"}, "cpu": {"sockets": 2},
            "devices": {"hostDevices": [{"name": "igpu", "deviceName": "amd.com/IGPU"}, {"name": "key", "deviceName": "kubevirt.io/key"}],
                "gpus": [{"name": "grid", "deviceName": "nvidia.com/GRID"}]}}}});
        let first = xml(&vmi, Some(&kubevirt()), Round::First);
        let second = xml(&vmi, Some(&kubevirt()), Round::Second);
        for part in [
            "<memory unit=\"b\">1073741824</memory>",
            "\t\t<hostdev type=\"pci\" managed=\"no\">",
            "<alias name=\"ua-hostdevice-igpu\"></alias>",
            "<hostdev type=\"usb\" mode=\"subsystem\" managed=\"no\">",
            "<alias name=\"ua-usb-host-key\"></alias>",
            "<hostdev type=\"mdev\" mode=\"subsystem\" model=\"vfio-pci\" display=\"on\" ramfb=\"on\">",
            "<alias name=\"ua-gpu-grid\"></alias>",
            "<vcpu placement=\"static\">2</vcpu>",
            "xmlns:qemu",
        ] {
            assert!(first.contains(part), "{part} in {first}");
        }
        assert!(
            second.contains("<hostdev type=\"pci\" mode=\"subsystem\"") && !second.contains("xmlns:qemu")
        );
        assert_eq!((check(first.as_bytes()), check(second.as_bytes())), (Ok(()), Ok(())));
    }

    #[test]
    fn what_kubevirt_does_not_know_is_gone_and_the_rest_stays() {
        let full = "<domain><devices><hostdev><alias name='a'/><rom file='/x'/></hostdev><interface><rom file='/y'/></interface></devices>\
            <qemu:commandline xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'><qemu:arg value='-x'/></qemu:commandline></domain>";
        let left = "<domain><devices><hostdev><alias name='a'/></hostdev><interface><rom file='/y'/></interface></devices></domain>";
        assert_eq!(through_kubevirts_types(full.into()), left.as_bytes());
        assert_eq!(through_kubevirts_types(left.into()), left.as_bytes());
    }

    #[test]
    fn broken_domains_are_refused_in_gos_words() {
        assert_eq!(check(b""), Err("EOF".into()));
        assert_eq!(check(b"<domain>\n<a>\n"), Err("XML syntax error on line 3: unexpected EOF".into()));
    }
}
