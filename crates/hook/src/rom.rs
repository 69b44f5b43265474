//! Option ROMs (PCI Firmware Specification 3.3, section 5.1). QEMU takes any bytes for a ROM and
//! the guest's firmware then ignores it silently, so a wrong file must be found by us.
//!
//! ```text
//!  image ─ 55 aa │ size/512 │ … │ 18: offset of PCIR ──► PCIR: vendor, device, length/512, type, last?
//!    └─ length ─► next image, until the one marked last
//! ```

/// The offset of the pointer to the PCI data structure.
const DATA_POINTER: usize = 0x18;
/// Offsets within the PCI data structure.
const VENDOR: usize = 0x04;
const DEVICE: usize = 0x06;
const DEVICE_LIST: usize = 0x08;
const REVISION: usize = 0x0c;
const IMAGE_LENGTH: usize = 0x10;
const CODE_TYPE: usize = 0x14;
const INDICATOR: usize = 0x15;
/// The last field that is read from the PCI data structure ends here.
const DATA_LENGTH: usize = 0x18;
const UNIT: usize = 512;
/// The most images that one ROM is searched for.
const MAX_IMAGES: usize = 32;
/// The most entries of a list of devices.
const MAX_LISTED: usize = 1024;
/// What tools write for "any device" (`EfiRom -i 0xffff`).
const ANY: [u16; 2] = [0, 0xffff];

/// How many bytes from the start of a ROM decide about its first image: the pointer has 16 bits.
pub const HEADER: usize = 0x1_0000 + DATA_LENGTH;

/// The largest ROM, in bytes. A ConfigMap holds 1 MiB; PCI devices in the field have up to 16 MiB.
pub const MAX_ROM: usize = 16 << 20;

/// What is wrong with a ROM.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum RomError {
    /// Not a ROM at all.
    #[error(
        "it is not an option ROM: it begins with {0:#04x} {1:#04x} instead of 0x55 0xaa (a hex dump or base64 of the ROM is a common mistake)"
    )]
    Signature(u8, u8),
    /// A dump with the header of NVIDIA's flash tool.
    #[error("it has NVIDIA's flash header (NVGI) in front; cut everything before the first 0x55 0xaa away")]
    FlashHeader,
    /// A ROM of another bus.
    #[error("it is not a PCI option ROM: there is no PCIR structure where its header points")]
    NoPciData,
    /// A file that was cut.
    #[error("it is cut short: {actual} bytes of an image of {expected}")]
    Short {
        /// How long the file is.
        actual: usize,
        /// How long its header says that it is.
        expected: usize,
    },
    /// A file that was changed.
    #[error(
        "the checksum of its BIOS image is wrong (its bytes add up to {0:#04x}, not to 0); it is damaged or was edited"
    )]
    Checksum(u8),
    /// A file for another device.
    #[error(
        "it is for vendor {rom:04x}, the device is of vendor {device:04x}; it is the ROM of another device"
    )]
    Vendor {
        /// In the ROM.
        rom: u16,
        /// Of the device.
        device: u16,
    },
    /// A file that no device has.
    #[error("it is larger than {MAX_ROM} bytes")]
    TooLarge,
}

/// What runs an image.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Code {
    /// PC BIOS (code type 0).
    Bios,
    /// UEFI (code type 3).
    Uefi,
    /// Something else.
    Other(u8),
}

/// One image of a ROM.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Image {
    /// Where it begins.
    pub offset: usize,
    /// How long it is, in bytes.
    pub length: usize,
    /// The vendor that it is for.
    pub vendor: u16,
    /// The device that it is for; tools write `ffff` for any.
    pub device: u16,
    /// What runs it.
    pub code: Code,
    /// The last of the ROM, as it says itself.
    pub is_last: bool,
}

/// Checks the first [`HEADER`] bytes (or all, when there are fewer) of a ROM of `length` bytes.
/// Returns its first image.
pub fn check_start(start: &[u8], length: usize) -> Result<Image, RomError> {
    if length > MAX_ROM {
        return Err(RomError::TooLarge);
    }
    if start.starts_with(b"NVGI") {
        return Err(RomError::FlashHeader);
    }
    let image = image(start, 0)?;
    if length < image.length {
        return Err(RomError::Short { actual: length, expected: image.length });
    }
    Ok(image)
}

/// Checks a whole ROM. Returns its images, at least one.
///
/// The first image must be sound; what follows may be a vendor's own (NVIDIA appends some that are
/// no PCI images) and ends the list. BIOS images carry a checksum that `SeaBIOS` insists on; UEFI
/// images have none.
pub fn check(rom: &[u8]) -> Result<Vec<Image>, RomError> {
    let mut images = vec![check_start(rom, rom.len())?];
    while let Some(last) = images.last().filter(|image| !image.is_last) {
        let Ok(next) = image(rom, last.offset + last.length) else { break };
        if images.len() == MAX_IMAGES || next.offset + next.length > rom.len() {
            break;
        }
        images.push(next);
    }
    for image in images.iter().filter(|image| image.code == Code::Bios) {
        let bytes = rom.get(image.offset..image.offset + image.length).unwrap_or_default();
        checksum(bytes)?;
    }
    Ok(images)
}

/// Whether a ROM can be for a device. A wrong vendor is a wrong file. The device may differ: one
/// ROM serves a family, and AMD's GOP driver goes to the audio function.
pub fn check_vendor(images: &[Image], vendor: u16) -> Result<(), RomError> {
    match images.first() {
        Some(first) if images.iter().all(|image| image.vendor != vendor) => {
            Err(RomError::Vendor { rom: first.vendor, device: vendor })
        }
        _ => Ok(()),
    }
}

/// Whether a ROM says that it is for this very device: by its own number, by "any", or by the list
/// of devices that ROMs of PCI firmware 3.0 have. One that does not may still be the right one: AMD's
/// GOP driver names the GPU and goes to the audio function.
pub fn names_device(rom: &[u8], images: &[Image], vendor: u16, device: u16) -> bool {
    images.iter().filter(|image| image.vendor == vendor).any(|image| {
        image.device == device
            || ANY.contains(&image.device)
            || listed(rom, image.offset).any(|one| one == device)
    })
}

/// The list of devices behind the PCI data structure.
fn listed(rom: &[u8], offset: usize) -> impl Iterator<Item = u16> {
    let word = |at: usize| {
        let bytes = rom.get(at..at + 2)?;
        Some(u16::from_le_bytes([*bytes.first()?, *bytes.get(1)?]))
    };
    let data = offset + usize::from(word(offset + DATA_POINTER).unwrap_or_default());
    let has_list = rom.get(data + REVISION).is_some_and(|revision| *revision >= 3);
    let list = word(data + DEVICE_LIST).filter(|list| has_list && *list > 0);
    let start = list.map(|list| data + usize::from(list));
    (0..MAX_LISTED).map_while(move |index| word(start? + 2 * index)).take_while(|one| *one != 0)
}

fn image(rom: &[u8], offset: usize) -> Result<Image, RomError> {
    let byte = |at: usize| rom.get(offset + at).copied().unwrap_or_default();
    let word = |at: usize| u16::from_le_bytes([byte(at), byte(at + 1)]);
    if (byte(0), byte(1)) != (0x55, 0xaa) {
        return Err(RomError::Signature(byte(0), byte(1)));
    }
    let data = usize::from(word(DATA_POINTER));
    let is_data =
        rom.get(offset + data..offset + data + DATA_LENGTH).is_some_and(|data| data.starts_with(b"PCIR"));
    let length = usize::from(word(data + IMAGE_LENGTH)) * UNIT;
    if data == 0 || !is_data || length == 0 {
        return Err(RomError::NoPciData);
    }
    Ok(Image {
        offset,
        length,
        vendor: word(data + VENDOR),
        device: word(data + DEVICE),
        code: match byte(data + CODE_TYPE) {
            0 => Code::Bios,
            3 => Code::Uefi,
            other => Code::Other(other),
        },
        is_last: byte(data + INDICATOR) & 0x80 != 0,
    })
}

/// The bytes of a BIOS image add up to zero: over the length in its header, which `SeaBIOS` sums,
/// or over the whole image, which the specification names.
fn checksum(image: &[u8]) -> Result<(), RomError> {
    let sum = |bytes: &[u8]| bytes.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte));
    let initial = image.get(2).map_or(0, |units| usize::from(*units) * UNIT);
    let by_header = image.get(..initial).filter(|bytes| !bytes.is_empty()).map(sum);
    match sum(image) {
        0 => Ok(()),
        _ if by_header == Some(0) => Ok(()),
        sum => Err(RomError::Checksum(sum)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One image of `units` × 512 bytes in a file of `length` bytes.
    fn rom(units: u8, length: usize) -> Vec<u8> {
        let mut rom = vec![0; length];
        rom[..3].copy_from_slice(&[0x55, 0xaa, units]);
        rom[DATA_POINTER] = 0x1c;
        rom[0x1c..0x20].copy_from_slice(b"PCIR");
        rom[0x20..0x24].copy_from_slice(&[0x02, 0x10, 0x38, 0x16]);
        rom[0x1c + IMAGE_LENGTH] = units;
        rom[0x1c + INDICATOR] = 0x80;
        let end = length.min(usize::from(units).max(1) * UNIT);
        let sum = rom[..end].iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte));
        rom[0x40] = 0_u8.wrapping_sub(sum);
        rom
    }

    fn uefi(units: u8) -> Vec<u8> {
        let mut image = rom(units, usize::from(units) * UNIT);
        image[0x1c + CODE_TYPE] = 3;
        image
    }

    #[test]
    fn headers_are_checked() {
        let start = |rom: &[u8]| check_start(rom, rom.len()).map(|image| image.length);
        assert_eq!(start(&rom(1, 512)), Ok(512));
        assert_eq!(start(&rom(2, 2048)), Ok(1024));
        assert_eq!(start(&rom(2, 512)), Err(RomError::Short { actual: 512, expected: 1024 }));
        assert_eq!(start(&rom(0, 512)), Err(RomError::NoPciData));
        assert_eq!(start(b"VaqAAAAA"), Err(RomError::Signature(b'V', b'a')));
        assert_eq!(start(b"NVGI...."), Err(RomError::FlashHeader));
        assert_eq!(start(&[]), Err(RomError::Signature(0, 0)));
        assert_eq!(start(&[0x55, 0xaa]), Err(RomError::NoPciData));
        assert_eq!(check_start(&rom(1, 512), MAX_ROM + 1), Err(RomError::TooLarge));
        let mut far = rom(1, 512);
        far[DATA_POINTER..DATA_POINTER + 2].copy_from_slice(&[0xff, 0xff]);
        assert_eq!(start(&far), Err(RomError::NoPciData));
    }

    #[test]
    fn images_are_chained_and_a_bios_image_adds_up() {
        let images = check(&rom(1, 512)).unwrap();
        assert_eq!((images[0].vendor, images[0].device, images[0].code), (0x1002, 0x1638, Code::Bios));
        let mut damaged = rom(1, 512);
        damaged[0x80] = 7;
        assert_eq!(check(&damaged), Err(RomError::Checksum(7)));
        // the same damage in a UEFI image is not ours to see: it has no checksum
        let mut first = rom(1, 512);
        first[0x1c + INDICATOR] = 0;
        first[0x40] = first[0x40].wrapping_add(0x80);
        let both = [first.clone(), uefi(2)].concat();
        assert_eq!(
            check(&both).unwrap().iter().map(|image| image.code).collect::<Vec<_>>(),
            [Code::Bios, Code::Uefi]
        );
        // what a vendor appends ends the list
        assert_eq!(check(&[first, b"VN".repeat(256)].concat()).unwrap().len(), 1);
    }

    #[test]
    fn a_rom_of_another_vendor_is_refused_and_of_another_device_is_not() {
        let images = check(&rom(1, 512)).unwrap();
        assert_eq!(check_vendor(&images, 0x1002), Ok(()));
        assert_eq!(check_vendor(&images, 0x8086), Err(RomError::Vendor { rom: 0x1002, device: 0x8086 }));
    }

    #[test]
    fn a_rom_names_its_devices_by_number_by_list_or_by_any() {
        let names = |rom: &[u8], device| names_device(rom, &[image(rom, 0).unwrap()], 0x1002, device);
        let plain = rom(1, 512);
        assert!(names(&plain, 0x1638) && !names(&plain, 0x1637));
        assert!(!names_device(&plain, &[image(&plain, 0).unwrap()], 0x8086, 0x1638));
        let mut any = plain.clone();
        any[0x1c + DEVICE..0x1c + DEVICE + 2].copy_from_slice(&[0xff, 0xff]);
        assert!(names(&any, 0x1637));
        let mut list = plain;
        list[0x1c + DEVICE_LIST] = 0x20;
        list[0x3c..0x42].copy_from_slice(&[0x36, 0x16, 0x37, 0x16, 0, 0]);
        assert!(!names(&list, 0x1637), "the list came with revision 3");
        list[0x1c + REVISION] = 3;
        assert!(names(&list, 0x1637) && names(&list, 0x1636) && !names(&list, 0x1635));
        // a list that leaves the ROM ends there
        list[0x1c + DEVICE_LIST..0x1c + DEVICE_LIST + 2].copy_from_slice(&[0xe3, 0x01]);
        assert!(!names(&list, 0x1637));
    }
}
