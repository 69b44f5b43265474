//! The screen of a guest: coloured bars, grey while it is paused, and a PNG of it.

use std::io::Write as _;

use flate2::write::ZlibEncoder;
use flate2::{Compression, Crc};

/// In pixels.
pub const WIDTH: u16 = 320;
/// In pixels.
pub const HEIGHT: u16 = 200;

const BARS: [[u8; 3]; 8] = [
    [235, 235, 235],
    [235, 235, 16],
    [16, 235, 235],
    [16, 235, 16],
    [235, 16, 235],
    [235, 16, 16],
    [16, 16, 235],
    [16, 16, 16],
];

/// Red, green and blue at a place.
pub fn pixel(x: u16, _y: u16, paused: bool) -> [u8; 3] {
    let [red, green, blue] = BARS[usize::from(x) * BARS.len() / usize::from(WIDTH) % BARS.len()];
    if !paused {
        return [red, green, blue];
    }
    // ITU-R BT.601, in 256ths.
    let grey = (u32::from(red) * 77 + u32::from(green) * 150 + u32::from(blue) * 29) >> 8;
    [u8::try_from(grey).unwrap_or(u8::MAX); 3]
}

/// The screen as a PNG (ISO/IEC 15948): 8 bits a channel, no filter, one `IDAT`.
///
/// # Errors
/// When the compressor fails, which it does not in memory.
pub fn png(paused: bool) -> std::io::Result<Vec<u8>> {
    let mut rows = ZlibEncoder::new(Vec::new(), Compression::fast());
    for y in 0..HEIGHT {
        rows.write_all(&[0])?;
        for x in 0..WIDTH {
            rows.write_all(&pixel(x, y, paused))?;
        }
    }
    let mut header = Vec::new();
    header.extend_from_slice(&u32::from(WIDTH).to_be_bytes());
    header.extend_from_slice(&u32::from(HEIGHT).to_be_bytes());
    header.extend_from_slice(&[8, 2, 0, 0, 0]);
    let mut file = b"\x89PNG\r\n\x1a\n".to_vec();
    for (kind, data) in [(b"IHDR", header), (b"IDAT", rows.finish()?), (b"IEND", Vec::new())] {
        let mut sum = Crc::new();
        sum.update(kind);
        sum.update(&data);
        file.extend_from_slice(&u32::try_from(data.len()).unwrap_or(u32::MAX).to_be_bytes());
        file.extend_from_slice(kind);
        file.extend_from_slice(&data);
        file.extend_from_slice(&sum.sum().to_be_bytes());
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    #[test]
    fn a_screenshot_is_a_png_with_every_pixel() {
        for paused in [false, true] {
            let file = png(paused).unwrap();
            assert_eq!(&file[..8], b"\x89PNG\r\n\x1a\n");
            assert_eq!(&file[12..24], b"IHDR\0\0\x01\x40\0\0\0\xc8");
            let length = usize::try_from(u32::from_be_bytes(file[33..37].try_into().unwrap())).unwrap();
            let mut rows = Vec::new();
            flate2::read::ZlibDecoder::new(&file[41..41 + length]).read_to_end(&mut rows).unwrap();
            assert_eq!(rows.len(), usize::from(HEIGHT) * (1 + 3 * usize::from(WIDTH)));
            assert_eq!(rows[1..4], pixel(0, 0, paused));
            assert_eq!(&file[file.len() - 8..file.len() - 4], b"IEND");
        }
    }
}
