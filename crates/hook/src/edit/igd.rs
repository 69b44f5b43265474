//! An Intel GPU as the only one of a guest: QEMU copies the host's `OpRegion`, in which drivers find
//! the panel and the video BIOS table (`x-igd-opregion`, QEMU `docs/igd-assign.txt`), and the device
//! is at 00:02.0 of the guest, where they look for it.
//!
//! ```text
//!  <qemu:override><qemu:device alias='…'><qemu:frontend><qemu:property name='x-igd-opregion' …/>
//!  <hostdev>…<address type='pci' domain='0x0000' bus='0x00' slot='0x02' function='0x0'/></hostdev>
//! ```
//!
//! `qemu:override` is of libvirt 8.2. KubeVirt declares the namespace in the first domain alone (v1.9),
//! so it is declared again on the element.

use roxmltree::Node;

use crate::arguments::Device;
use crate::domain::{Domain, QEMU, child, qemu};

use super::{EditError, Splice, append, attribute};

const PROPERTY: &str = "x-igd-opregion";
const ADDRESS: &str = "<address type='pci' domain='0x0000' bus='0x00' slot='0x02' function='0x0'/>";

/// What to replace next; nothing when the device is as it shall be.
pub(super) fn splice(domain: &Domain<'_>, device: &Device) -> Result<Option<Splice>, EditError> {
    let found = domain.find(device)?;
    let alias = found.alias().ok_or_else(|| EditError::NoAlias(device.clone()))?;
    if let Some(splice) = property(domain, alias) {
        return Ok(Some(splice));
    }
    Ok(match child(found.node(), "address") {
        None => Some(append(domain.text(), found.node(), ADDRESS)),
        Some(address) if is_slot_2(address) => None,
        Some(address) => Some(Splice { range: address.range(), text: ADDRESS.to_owned() }),
    })
}

/// The property of QEMU's device, in the deepest of its elements that is there.
fn property(domain: &Domain<'_>, alias: &str) -> Option<Splice> {
    let text = domain.text();
    let declared = format!("xmlns:qemu='{QEMU}'");
    let property =
        |declared: &str| format!("<qemu:property{declared} name='{PROPERTY}' type='bool' value='true'/>");
    let frontend = |declared: &str| format!("<qemu:frontend{declared}>{}</qemu:frontend>", property(""));
    let device = |declared: &str| {
        format!("<qemu:device{declared} alias='{}'>{}</qemu:device>", attribute(alias), frontend(""))
    };
    let declared = format!(" {declared}");
    let Some(overrides) = qemu(domain.root(), "override").next() else {
        let content = format!("<qemu:override{declared}>{}</qemu:override>", device(""));
        return Some(append(text, domain.root(), &content));
    };
    let Some(own) = qemu(overrides, "device").find(|device| device.attribute("alias") == Some(alias)) else {
        return Some(append(text, overrides, &device(&declared)));
    };
    let Some(front) = qemu(own, "frontend").next() else {
        return Some(append(text, own, &frontend(&declared)));
    };
    match qemu(front, "property").find(|property| property.attribute("name") == Some(PROPERTY)) {
        None => Some(append(text, front, &property(&declared))),
        Some(known) if known.attribute("value") == Some("true") => None,
        Some(known) => Some(Splice { range: known.range(), text: property(&declared) }),
    }
}

fn is_slot_2(address: Node<'_, '_>) -> bool {
    let number = |name: &str| {
        let text = address.attribute(name).unwrap_or("0");
        text.strip_prefix("0x").map_or_else(|| text.parse().ok(), |hex| u16::from_str_radix(hex, 16).ok())
    };
    let at = ["domain", "bus", "slot", "function"].map(number);
    address.attribute("type") == Some("pci") && at == [Some(0), Some(0), Some(2), Some(0)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::edit::{Edit, apply};

    fn edited(text: &str) -> Result<String, EditError> {
        apply(&Domain::parse(text.as_bytes()).unwrap(), &[Edit::Igd(Device::Alias("ua-a".into()))])
    }

    #[test]
    fn the_gpu_gets_its_opregion_and_slot_2_and_a_second_call_changes_nothing() {
        let before = "<domain><devices><hostdev><source><address bus='0x00' slot='0x02' function='0x0'/></source>\
            <alias name='ua-a'/></hostdev></devices>\n</domain>";
        let after = edited(before).unwrap();
        let expected = "<domain><devices><hostdev><source><address bus='0x00' slot='0x02' function='0x0'/></source>\
            <alias name='ua-a'/><address type='pci' domain='0x0000' bus='0x00' slot='0x02' function='0x0'/></hostdev>\
            </devices>\n<qemu:override xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>\
            <qemu:device alias='ua-a'><qemu:frontend>\
            <qemu:property name='x-igd-opregion' type='bool' value='true'/>\
            </qemu:frontend></qemu:device></qemu:override></domain>";
        assert_eq!(after, expected);
        assert_eq!(edited(&after).unwrap(), after);
    }

    #[test]
    fn what_is_there_is_kept_and_completed() {
        let with = |overrides: &str, address: &str| {
            format!(
                "<domain xmlns:q='{QEMU}'><devices><hostdev><alias name='ua-a'/>{address}</hostdev></devices>{overrides}</domain>"
            )
        };
        for (overrides, address) in [
            ("<q:override/>", "<address type='pci' bus='0x05' slot='0x00' function='0x0'/>"),
            ("<q:override><q:device alias='ua-b'/></q:override>", ""),
            ("<q:override><q:device alias='ua-a'/></q:override>", ADDRESS),
            ("<q:override><q:device alias='ua-a'><q:frontend/></q:device></q:override>", ADDRESS),
            (
                "<q:override><q:device alias='ua-a'><q:frontend><q:property name='x-igd-opregion' type='bool' value='false'/>\
                 <q:property name='x-vga' type='bool' value='true'/></q:frontend></q:device></q:override>",
                ADDRESS,
            ),
        ] {
            let before = with(overrides, address);
            let after = edited(&before).unwrap();
            let domain = Domain::parse(after.as_bytes()).unwrap();
            assert_eq!(splice(&domain, &Device::Alias("ua-a".into())), Ok(None), "{after}");
            assert_eq!(after.matches("x-igd-opregion").count(), 1, "{after}");
            assert_eq!(after.contains("x-vga"), before.contains("x-vga"));
            assert_eq!(after.contains("ua-b"), before.contains("ua-b"));
        }
        let slot = with("", ADDRESS).replace("slot='0x02'", "slot='2'");
        assert!(edited(&slot).unwrap().contains("slot='2'"), "libvirt's other spelling stays");
    }

    #[test]
    fn a_device_that_is_not_there_is_an_error() {
        let error = edited("<domain><devices/></domain>").unwrap_err().to_string();
        assert_eq!(error, "the domain has no host device `ua-a`; host devices: none");
    }
}
