//! A PCI address that is read is printed so that it is read as the same again.
#![no_main]

use kubevirt::PciAddress;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if let Ok(address) = text.parse::<PciAddress>() {
        assert_eq!(address.to_string().parse(), Ok(address));
        assert_eq!(address.nodedev_name().parse(), Ok(address));
    }
});
