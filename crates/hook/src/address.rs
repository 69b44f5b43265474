//! PCI addresses as sysfs writes them: `0000:07:00.0`.

use std::fmt;
use std::str::FromStr;

/// A PCI address.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Address {
    /// The domain (segment).
    pub domain: u16,
    /// The bus.
    pub bus: u8,
    /// The slot, 0 to 31.
    pub slot: u8,
    /// The function, 0 to 7.
    pub function: u8,
}

/// The text is not an address.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("not a PCI address; write it as 0000:07:00.0")]
pub struct NoAddress;

impl Address {
    /// An address from its parts, when slot and function are in range.
    pub fn new(domain: u16, bus: u8, slot: u8, function: u8) -> Option<Self> {
        (slot < 32 && function < 8).then_some(Self { domain, bus, slot, function })
    }
}

impl FromStr for Address {
    type Err = NoAddress;

    fn from_str(text: &str) -> Result<Self, NoAddress> {
        let (domain, rest) = text.split_once(':').ok_or(NoAddress)?;
        let (bus, rest) = rest.split_once(':').ok_or(NoAddress)?;
        let (slot, function) = rest.split_once('.').ok_or(NoAddress)?;
        let hex = |text: &str, digits: usize| {
            let is_hex = text.len() == digits && text.bytes().all(|byte| byte.is_ascii_hexdigit());
            is_hex.then(|| u16::from_str_radix(text, 16).ok()).flatten().ok_or(NoAddress)
        };
        let byte = |text: &str, digits: usize| u8::try_from(hex(text, digits)?).map_err(|_| NoAddress);
        Self::new(hex(domain, 4)?, byte(bus, 2)?, byte(slot, 2)?, byte(function, 1)?).ok_or(NoAddress)
    }
}

impl fmt::Display for Address {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{:04x}:{:02x}:{:02x}.{}", self.domain, self.bus, self.slot, self.function)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_as_sysfs_writes_them() {
        for good in ["0000:07:00.0", "ffff:ff:1f.7", "0000:0a:02.1"] {
            assert_eq!(good.parse::<Address>().unwrap().to_string(), good);
        }
        for bad in
            ["", "07:00.0", "0000:07:00.8", "0000:07:20.0", "0000:07:00", "+000:07:00.0", "ua-hostdevice-x"]
        {
            assert_eq!(bad.parse::<Address>(), Err(NoAddress), "{bad}");
        }
    }
}
