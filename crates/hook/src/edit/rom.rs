//! `<rom bar='on' file='…'/>` on a host device (libvirt `formatdomain`, "Host device assignment").
//!
//! Not on `<interface>`: KubeVirt writes that back as `<rom enabled="">`, which libvirt refuses.

use crate::arguments::Device;
use crate::domain::{Domain, NoDevice};

use super::{Splice, append, attribute};

/// The ROM that a host device shall have.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct RomBar {
    /// Whose it is.
    pub device: Device,
    /// Where QEMU finds it.
    pub file: String,
}

impl RomBar {
    /// What to replace; nothing when the device has this ROM.
    pub(super) fn splice(&self, domain: &Domain<'_>) -> Result<Option<Splice>, NoDevice> {
        let device = domain.find(&self.device)?;
        let text = format!("<rom bar='on' file='{}'/>", attribute(&self.file));
        match device.child("rom") {
            Some(rom) => {
                let is_ours = rom.attributes().len() == 2
                    && rom.attribute("bar") == Some("on")
                    && rom.attribute("file") == Some(&self.file);
                Ok((!is_ours).then(|| Splice { range: rom.range(), text }))
            }
            None => Ok(Some(append(domain.text(), device.node(), &text))),
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::domain::Domain;
    use crate::edit::{Edit, EditError, RomBar, apply};

    fn rom(device: &str, file: &str) -> Edit {
        let device = match device.parse() {
            Ok(address) => crate::arguments::Device::Source(address),
            Err(_) => crate::arguments::Device::Alias(device.into()),
        };
        Edit::Rom(RomBar { device, file: file.into() })
    }

    fn edited(text: &str, edits: &[Edit]) -> Result<String, EditError> {
        apply(&Domain::parse(text.as_bytes()).unwrap(), edits)
    }

    #[test]
    fn a_rom_is_added_replaced_or_left() {
        let with = |inner: &str| {
            format!("<domain><devices><hostdev><alias name='ua-a'/>{inner}</hostdev></devices></domain>")
        };
        let wanted = with("<rom bar='on' file='/x'/>");
        for before in [
            "",
            "<rom bar='off'/>",
            "<rom file=\"/y\" bar=\"on\"></rom>",
            "<rom enabled='no' bar='on' file='/x'/>",
        ] {
            assert_eq!(edited(&with(before), &[rom("ua-a", "/x")]).as_deref(), Ok(&*wanted), "{before}");
        }
        // what is right already stays to the byte
        let same = with("<rom  file = \"/x\" bar='on'></rom>");
        assert_eq!(edited(&same, &[rom("ua-a", "/x")]).as_deref(), Ok(&*same));
    }

    #[test]
    fn several_devices_get_their_roms_in_any_order() {
        let text = "<domain><devices>\
            <hostdev><alias name='ua-a'/></hostdev>\
            <hostdev><source><address domain='0x0000' bus='0x07' slot='0x00' function='0x1'/></source></hostdev>\
            </devices></domain>";
        let edits = [rom("0000:07:00.1", "/audio & 'gop'"), rom("ua-a", "/vbios")];
        let expected = "<domain><devices>\
            <hostdev><alias name='ua-a'/><rom bar='on' file='/vbios'/></hostdev>\
            <hostdev><source><address domain='0x0000' bus='0x07' slot='0x00' function='0x1'/></source>\
            <rom bar='on' file='/audio &amp; &apos;gop&apos;'/></hostdev>\
            </devices></domain>";
        assert_eq!(edited(text, &edits).as_deref(), Ok(expected));
        let again = edited(expected, &edits);
        assert_eq!(again.as_deref(), Ok(expected), "a second call changes nothing");
    }

    #[test]
    fn a_device_that_is_not_there_is_an_error_and_nothing_is_edited() {
        let text = "<domain><devices><hostdev><alias name='ua-a'/></hostdev></devices></domain>";
        let error = edited(text, &[rom("ua-a", "/x"), rom("ua-b", "/y")]).unwrap_err().to_string();
        assert_eq!(error, "the domain has no host device `ua-b`; host devices: ua-a");
        assert_eq!(edited(text, &[rom("ua-a", "/x"), rom("ua-a", "/y")]), Err(EditError::Overlap));
    }
}
