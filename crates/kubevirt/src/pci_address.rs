use std::fmt;
use std::str::FromStr;

/// A PCI address: domain, bus, device ("slot") and function.
///
/// ```
/// let address: kubevirt::PciAddress = "0000:0A:1F.7".parse()?;
/// assert_eq!(address.to_string(), "0000:0a:1f.7");
/// assert_eq!(address.nodedev_name(), "pci_0000_0a_1f_7");
/// # Ok::<(), kubevirt::ParsePciAddressError>(())
/// ```
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct PciAddress {
    domain: u32,
    bus: u8,
    device: u8,
    function: u8,
}

/// Why a text is not a PCI address.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("`{0}` is not a PCI address of the form DDDD:BB:DD.F, for example 0000:00:02.0")]
pub struct ParsePciAddressError(String);

impl PciAddress {
    /// The name that libvirt gives the device (`virsh nodedev-list`): `pci_0000_00_02_0`.
    pub fn nodedev_name(self) -> String {
        format!("pci_{:04x}_{:02x}_{:02x}_{:x}", self.domain, self.bus, self.device, self.function)
    }

    /// `0000-00-02-0`, usable in Kubernetes names and libvirt aliases.
    pub fn dashed(self) -> String {
        format!("{:04x}-{:02x}-{:02x}-{:x}", self.domain, self.bus, self.device, self.function)
    }

    fn from_parts(domain: &str, bus: &str, device: &str, function: &str) -> Option<Self> {
        // Linux prints at least four digits and more where a host bridge lives in a virtual
        // domain (Intel VMD: 10000:e1:00.0).
        if !(4..=8).contains(&domain.len()) || bus.len() != 2 || device.len() != 2 || function.len() != 1 {
            return None;
        }
        let hex = |text: &str| {
            text.bytes()
                .all(|byte| byte.is_ascii_hexdigit())
                .then(|| u32::from_str_radix(text, 16).ok())
                .flatten()
        };
        let device = u8::try_from(hex(device)?).ok().filter(|device| *device < 0x20)?;
        let function = u8::try_from(hex(function)?).ok().filter(|function| *function < 8)?;
        Some(Self { domain: hex(domain)?, bus: u8::try_from(hex(bus)?).ok()?, device, function })
    }
}

impl FromStr for PciAddress {
    type Err = ParsePciAddressError;

    /// Accepts `0000:00:02.0` in any case, `00:02.0` (domain 0, as `lspci` prints it) and
    /// libvirt's `pci_0000_00_02_0`, which is also a legal label value.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parsed = if let Some(rest) = text.strip_prefix("pci_") {
            let mut parts = rest.split('_');
            match (parts.next(), parts.next(), parts.next(), parts.next(), parts.next()) {
                (Some(domain), Some(bus), Some(device), Some(function), None) => {
                    Self::from_parts(domain, bus, device, function)
                }
                _ => None,
            }
        } else {
            text.rsplit_once('.').and_then(|(rest, function)| {
                let (rest, device) = rest.rsplit_once(':')?;
                let (domain, bus) = rest.rsplit_once(':').unwrap_or(("0000", rest));
                Self::from_parts(domain, bus, device, function)
            })
        };
        parsed.ok_or_else(|| ParsePciAddressError(text.chars().take(64).collect()))
    }
}

impl fmt::Display for PciAddress {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:04x}:{:02x}:{:02x}.{:x}", self.domain, self.bus, self.device, self.function)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_common_spelling_is_one_address() {
        for text in ["0000:0a:02.1", "0000:0A:02.1", "0a:02.1", "pci_0000_0a_02_1", "00000000:0a:02.1"] {
            let address: PciAddress = text.parse().unwrap();
            assert_eq!(address.to_string(), "0000:0a:02.1", "{text}");
        }
        assert_eq!("10000:e1:00.0".parse::<PciAddress>().unwrap().to_string(), "10000:e1:00.0");
    }

    #[test]
    fn what_is_no_address_is_refused() {
        for text in [
            "",
            ".",
            ":",
            "0000:00:02",
            "0000:00:02.8",
            "0000:00:20.0",
            "000:00:02.0",
            "0000:0:02.0",
            "0000:00:2.0",
            "0000:00:02.00",
            "g000:00:02.0",
            "0000:00:02.0 ",
            "+000:00:02.0",
            "nvidia.com/gpu",
            "pci_0000_00_02",
            "pci_0000_00_02_0_0",
            "123456789:00:02.0",
            "0000:00:é2.0",
        ] {
            assert!(text.parse::<PciAddress>().is_err(), "{text}");
        }
    }
}
