//! Zero detection.

/// One page of zeros: comparing slices of equal length is a `memcmp`, which runs at memory speed.
static ZEROS: [u8; 4096] = [0; 4096];

/// Whether every byte is zero. The first page that is not ends the search.
pub fn is_zero(data: &[u8]) -> bool {
    data.chunks(ZEROS.len()).all(|page| page == &ZEROS[..page.len()])
}

#[cfg(test)]
mod tests {
    use super::is_zero;

    #[test]
    fn one_byte_anywhere_is_seen() {
        let mut data = vec![0; 10_000];
        assert!(is_zero(&data));
        assert!(is_zero(&[]));
        for position in [0, 1, 4095, 4096, 8191, 9999] {
            data[position] = 1;
            assert!(!is_zero(&data), "{position}");
            data[position] = 0;
        }
    }
}
