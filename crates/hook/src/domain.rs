//! A libvirt domain as KubeVirt sends it: read, never written anew.

use std::fmt;

use roxmltree::{Document, Node, ParsingOptions};

use crate::address::Address;
use crate::arguments::Device;

/// The largest domain, in bytes; KubeVirt's are 2 to 6 kB.
pub const MAX_DOMAIN: usize = 4 << 20;
/// The most elements and attributes of a domain.
const MAX_NODES: u32 = 200_000;
/// The namespace of what libvirt passes to QEMU as it is.
pub(crate) const QEMU: &str = "http://libvirt.org/schemas/domain/qemu/1.0";
/// The most candidates that an error names.
const MAX_CANDIDATES: usize = 8;

/// The domain cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum DomainError {
    /// Not text.
    #[error("the domain is not UTF-8")]
    Encoding,
    /// Too long.
    #[error("the domain is larger than {MAX_DOMAIN} bytes")]
    TooLarge,
    /// Not XML.
    #[error("the domain is not XML: {0}")]
    Xml(#[from] roxmltree::Error),
    /// Not a domain.
    #[error("the document is a <{0}>, not a <domain>")]
    NoDomain(String),
}

/// The device is not in the domain.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("the domain has no host device `{device}`; host devices: {candidates}")]
pub struct NoDevice {
    /// What was looked for.
    pub device: Device,
    /// What is there.
    pub candidates: String,
}

/// A domain.
#[derive(Debug)]
pub struct Domain<'x> {
    text: &'x str,
    document: Document<'x>,
}

impl<'x> Domain<'x> {
    /// Reads a domain. A document type definition is refused: libvirt writes none, and entities
    /// that are defined in it would let a small document grow.
    pub fn parse(bytes: &'x [u8]) -> Result<Self, DomainError> {
        if bytes.len() > MAX_DOMAIN {
            return Err(DomainError::TooLarge);
        }
        let text = std::str::from_utf8(bytes).map_err(|_| DomainError::Encoding)?;
        let options =
            ParsingOptions { allow_dtd: false, nodes_limit: MAX_NODES, ..ParsingOptions::default() };
        let document = Document::parse_with_options(text, options)?;
        let name = document.root_element().tag_name();
        if name.namespace().is_some() || name.name() != "domain" {
            return Err(DomainError::NoDomain(name.name().chars().take(64).collect()));
        }
        Ok(Self { text, document })
    }

    /// The text as it came.
    pub fn text(&self) -> &'x str {
        self.text
    }

    /// `<domain>`.
    pub(crate) fn root(&self) -> Node<'_, 'x> {
        self.document.root_element()
    }

    /// The `<hostdev>` elements of the domain.
    pub fn host_devices(&self) -> impl Iterator<Item = HostDevice<'_, 'x>> {
        children(self.document.root_element(), "devices")
            .flat_map(|devices| children(devices, "hostdev"))
            .map(HostDevice)
    }

    /// The `<hostdev>` of a device.
    pub fn find(&self, device: &Device) -> Result<HostDevice<'_, 'x>, NoDevice> {
        let is_meant = |found: &HostDevice<'_, 'x>| match device {
            Device::Alias(alias) => found.alias() == Some(alias),
            Device::Source(address) => found.source() == Some(*address),
        };
        self.host_devices()
            .find(is_meant)
            .ok_or_else(|| NoDevice { device: device.clone(), candidates: self.candidates() })
    }

    fn candidates(&self) -> String {
        let mut known: Vec<String> = self.host_devices().map(|device| device.to_string()).collect();
        let more = known.len().saturating_sub(MAX_CANDIDATES);
        known.truncate(MAX_CANDIDATES);
        match (known.is_empty(), more) {
            (true, _) => "none".to_owned(),
            (_, 0) => known.join(", "),
            _ => format!("{} and {more} more", known.join(", ")),
        }
    }
}

/// A `<hostdev>`.
#[derive(Clone, Copy, Debug)]
pub struct HostDevice<'a, 'x>(Node<'a, 'x>);

impl<'a, 'x> HostDevice<'a, 'x> {
    /// Its alias.
    pub fn alias(&self) -> Option<&'a str> {
        child(self.0, "alias")?.attribute("name")
    }

    /// Its address on the host; USB and mediated devices have none.
    pub fn source(&self) -> Option<Address> {
        let address = child(child(self.0, "source")?, "address")?;
        if address.attribute("type").is_some_and(|kind| kind != "pci") {
            return None;
        }
        let number = |name: &str| {
            let text = address.attribute(name)?;
            match text.strip_prefix("0x") {
                Some(hex) => u16::from_str_radix(hex, 16).ok(),
                None => text.parse().ok(),
            }
        };
        let byte = |name: &str| u8::try_from(number(name)?).ok();
        Address::new(number("domain").unwrap_or_default(), byte("bus")?, byte("slot")?, byte("function")?)
    }

    /// A child element.
    pub(crate) fn child(&self, name: &str) -> Option<Node<'a, 'x>> {
        child(self.0, name)
    }

    /// The element.
    pub(crate) fn node(&self) -> Node<'a, 'x> {
        self.0
    }
}

impl fmt::Display for HostDevice<'_, '_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.alias().unwrap_or("(no alias)"))?;
        self.source().map_or(Ok(()), |address| write!(out, " ({address})"))
    }
}

/// Elements of libvirt have no namespace; those of others (`qemu:`, `kubevirt`) have one.
fn children<'a, 'x>(parent: Node<'a, 'x>, name: &'static str) -> impl Iterator<Item = Node<'a, 'x>> {
    parent.children().filter(move |node| is(*node, name))
}

pub(crate) fn child<'a, 'x>(parent: Node<'a, 'x>, name: &str) -> Option<Node<'a, 'x>> {
    parent.children().find(|node| is(*node, name))
}

/// Elements of QEMU's namespace, whatever their prefix is.
pub(crate) fn qemu<'a, 'x>(parent: Node<'a, 'x>, name: &'static str) -> impl Iterator<Item = Node<'a, 'x>> {
    parent.children().filter(move |node| {
        node.is_element() && node.tag_name().namespace() == Some(QEMU) && node.tag_name().name() == name
    })
}

fn is(node: Node<'_, '_>, name: &str) -> bool {
    node.is_element() && node.tag_name().namespace().is_none() && node.tag_name().name() == name
}

#[cfg(test)]
mod tests {
    use super::*;

    const TWO: &str = r#"<domain xmlns:q="urn:q"><devices>
        <q:hostdev><alias name="ua-hostdevice-fake"/></q:hostdev>
        <hostdev type="pci"><source><address type="pci" domain="0x0000" bus="0x07" slot="0x00" function="0x1"/></source>
          <alias name="ua-hostdevice-igpu"></alias><address type="pci" domain="0" bus="9" slot="0" function="0"/></hostdev>
        <hostdev type="usb"><source><address bus="1" device="4"/></source><alias name="ua-usb-host-key"/></hostdev>
      </devices><metadata><hostdev><alias name="ua-hostdevice-notes"/></hostdev></metadata></domain>"#;

    #[test]
    fn host_devices_are_found_by_alias_and_by_their_address_on_the_host() {
        let domain = Domain::parse(TWO.as_bytes()).unwrap();
        let alias = |name: &str| Device::Alias(name.into());
        assert_eq!(
            domain.find(&alias("ua-hostdevice-igpu")).unwrap().to_string(),
            "ua-hostdevice-igpu (0000:07:00.1)"
        );
        assert!(domain.find(&Device::Source("0000:07:00.1".parse().unwrap())).is_ok());
        // neither the address in the guest, nor elements of others, nor notes
        for wrong in [
            Device::Source("0000:09:00.0".parse().unwrap()),
            alias("ua-hostdevice-fake"),
            alias("ua-hostdevice-notes"),
        ] {
            let error = domain.find(&wrong).unwrap_err().to_string();
            assert!(error.contains("ua-hostdevice-igpu (0000:07:00.1), ua-usb-host-key"), "{error}");
        }
    }

    #[test]
    fn what_is_no_domain_is_refused() {
        let deep = "<a>".repeat(100_000);
        for (text, expected) in [
            ("", "not XML"),
            ("<domain>", "not XML"),
            ("<network/>", "a <network>, not a <domain>"),
            ("<domain xmlns='urn:x'/>", "not a <domain>"),
            ("<!DOCTYPE d [<!ENTITY a 'b'>]><domain>&a;</domain>", "not XML"),
            (deep.as_str(), "not XML"),
        ] {
            let error = Domain::parse(text.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
        assert!(matches!(Domain::parse(b"<domain>\xff</domain>"), Err(DomainError::Encoding)));
        assert!(matches!(Domain::parse(&vec![b' '; MAX_DOMAIN + 1]), Err(DomainError::TooLarge)));
    }
}
