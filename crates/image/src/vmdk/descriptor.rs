//! The text descriptor inside a VMDK.

use std::fmt::Write;

use super::SECTOR;

/// The descriptor of a single-extent disk. `content_id` must differ from 0 and 0xffffffff; it is
/// derived from the disk, so that the same input gives the same file.
pub(super) fn render(create_type: &str, sectors: u64, content_id: u32, file_name: &str) -> String {
    // The geometry that VMware's own tools state for large disks.
    let cylinders = sectors.div_ceil(255 * 63).min(65535);
    let long_id = format!("{content_id:08x}").repeat(4);
    let mut text = String::new();
    let _ = write!(
        text,
        "# Disk DescriptorFile\nversion=1\nCID={content_id:08x}\nparentCID=ffffffff\n\
         createType=\"{create_type}\"\n\n# Extent description\n\
         RW {sectors} SPARSE \"{file_name}\"\n\n# The Disk Data Base\n#DDB\n\n\
         ddb.adapterType = \"lsilogic\"\nddb.geometry.cylinders = \"{cylinders}\"\n\
         ddb.geometry.heads = \"255\"\nddb.geometry.sectors = \"63\"\n\
         ddb.longContentID = \"{long_id}\"\nddb.toolsInstallType = \"4\"\n\
         ddb.toolsVersion = \"2147483647\"\nddb.virtualHWVersion = \"4\"\n"
    );
    text
}

/// A content id from the size of the disk: deterministic and never one of the two reserved values.
pub(super) fn content_id(sectors: u64) -> u32 {
    let mixed = sectors.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
    u32::try_from(mixed).unwrap_or(1).clamp(1, u32::MAX - 1)
}

/// The text, padded to whole sectors.
pub(super) fn padded(text: &str, sectors: u64) -> Vec<u8> {
    let mut out = text.as_bytes().to_vec();
    out.resize(usize::try_from(sectors * SECTOR).unwrap_or(usize::MAX), 0);
    out
}

/// The value of `createType`, when the text has one.
pub(super) fn create_type(text: &str) -> Option<String> {
    let line = text.lines().find_map(|line| line.trim().strip_prefix("createType="))?;
    Some(line.trim_matches('"').to_owned())
}
