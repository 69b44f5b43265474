//! Option ROM headers (PCI Firmware Specification 3.3, section 5.1). QEMU takes any bytes for a
//! ROM and the guest's firmware then ignores it silently, so a wrong file must be found here.

/// The offset of the pointer to the PCI data structure.
const DATA_POINTER: usize = 0x18;
/// The length of an image, in units of 512 bytes, within the PCI data structure.
const IMAGE_LENGTH: usize = 0x10;
/// The last field that is read from the PCI data structure ends here.
const DATA_LENGTH: usize = 0x18;
const UNIT: usize = 512;

/// How many bytes from the start of a ROM decide: the pointer has 16 bits.
pub(crate) const HEADER: usize = 0x1_0000 + DATA_LENGTH;

/// What is wrong with a ROM.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub(crate) enum RomError {
    #[error(
        "it is not an option ROM: it begins with {0:#04x} {1:#04x} instead of 0x55 0xaa (a hex dump or base64 of the ROM is a common mistake)"
    )]
    Signature(u8, u8),
    #[error("it is not a PCI option ROM: there is no PCIR structure where its header points")]
    NoPciData,
    #[error("it is cut short: {actual} bytes of an image of {expected}")]
    Short { actual: usize, expected: usize },
}

/// Checks the first [`HEADER`] bytes (or all, when there are fewer) of a ROM of `length` bytes.
pub(crate) fn check(start: &[u8], length: usize) -> Result<(), RomError> {
    let byte = |offset: usize| start.get(offset).copied().unwrap_or_default();
    let word = |offset: usize| usize::from(u16::from_le_bytes([byte(offset), byte(offset + 1)]));
    if (byte(0), byte(1)) != (0x55, 0xaa) {
        return Err(RomError::Signature(byte(0), byte(1)));
    }
    let data = word(DATA_POINTER);
    let is_data = start.get(data..data + DATA_LENGTH).is_some_and(|data| data.starts_with(b"PCIR"));
    if data == 0 || !is_data {
        return Err(RomError::NoPciData);
    }
    let expected = word(data + IMAGE_LENGTH) * UNIT;
    if expected == 0 {
        return Err(RomError::NoPciData);
    }
    if length < expected {
        return Err(RomError::Short { actual: length, expected });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rom(images: u8, length: usize) -> Vec<u8> {
        let mut rom = vec![0; length];
        rom[..2].copy_from_slice(&[0x55, 0xaa]);
        rom[DATA_POINTER] = 0x1c;
        rom[0x1c..0x20].copy_from_slice(b"PCIR");
        rom[0x1c + IMAGE_LENGTH] = images;
        rom
    }

    #[test]
    fn headers_are_checked() {
        assert_eq!(check(&rom(1, 512), 512), Ok(()));
        assert_eq!(check(&rom(2, 2048), 2048), Ok(()));
        assert_eq!(check(&rom(2, 512), 512), Err(RomError::Short { actual: 512, expected: 1024 }));
        assert_eq!(check(&rom(0, 512), 512), Err(RomError::NoPciData));
        assert_eq!(check(b"VaqAAAAA", 8), Err(RomError::Signature(b'V', b'a')));
        assert_eq!(check(&[], 0), Err(RomError::Signature(0, 0)));
        assert_eq!(check(&[0x55, 0xaa], 2), Err(RomError::NoPciData));
        let mut far = rom(1, 512);
        far[DATA_POINTER..DATA_POINTER + 2].copy_from_slice(&[0xff, 0xff]);
        assert_eq!(check(&far, 512), Err(RomError::NoPciData));
    }
}
