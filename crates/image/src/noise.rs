//! Data that nothing can compress.

/// Bytes of the sample.
const SAMPLE: usize = 4096;
/// Places that the sample is taken from.
const PLACES: usize = 4;
/// The sum of the squares of how often each byte is in the sample. Random bytes give 69,616, with a standard
/// deviation of 362; program text gives several times that.
const EVEN: u32 = 77_000;

/// Whether the bytes of a sample are as evenly spread as those of random, encrypted or compressed data: compressing
/// it is work in vain.
pub(crate) fn is_noise(data: &[u8]) -> bool {
    let piece = SAMPLE / PLACES;
    if data.len() < SAMPLE {
        return false;
    }
    let mut counts = [0_u32; 256];
    for place in 0..PLACES {
        let start = (data.len() - piece) / (PLACES - 1) * place;
        for byte in data.get(start..start + piece).unwrap_or_default() {
            counts[usize::from(*byte)] += 1;
        }
    }
    counts.iter().map(|count| count * count).sum::<u32>() < EVEN
}

#[cfg(test)]
mod tests {
    use super::is_noise;

    #[test]
    fn random_bytes_are_noise_and_anything_with_a_pattern_is_not() {
        let mut state = 1_u64;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()[2]
        };
        for _ in 0..200 {
            let noise: Vec<u8> = (0..65536).map(|_| next()).collect();
            assert!(is_noise(&noise));
            let hexadecimal: Vec<u8> =
                noise.iter().map(|byte| b"0123456789abcdef"[usize::from(byte % 16)]).collect();
            assert!(!is_noise(&hexadecimal));
            let mut half = noise;
            half[30_000..].fill(7);
            assert!(!is_noise(&half));
        }
        assert!(!is_noise(&[1, 2, 3]) && !is_noise(&vec![0; 65536]));
    }
}
