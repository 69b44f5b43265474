//! A sink whose SHA-256 is taken while it is written, as long as that goes front to back.

use std::io::{Seek, SeekFrom, Write};

use image::ovf::Sum;

static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

/// See the module.
pub(super) struct Hashed<W> {
    pub sink: W,
    /// Of what was written; `None`: it was written again somewhere, or nobody asks for it.
    sum: Option<Sum>,
    position: u64,
    length: u64,
}

impl<W> Hashed<W> {
    /// `wanted` is false where the beginning is known to be written last: the digest would be for nothing.
    pub fn new(sink: W, wanted: bool) -> Self {
        Self { sink, sum: wanted.then(Sum::default), position: 0, length: 0 }
    }

    /// The sink, and the digest of all that went into it.
    pub fn end(self) -> (W, Option<String>) {
        (self.sink, self.sum.map(Sum::hex))
    }
}

impl<W: Write> Write for Hashed<W> {
    fn write(&mut self, data: &[u8]) -> std::io::Result<usize> {
        let written = self.sink.write(data)?;
        if self.position < self.length {
            self.sum = None;
        }
        if let Some(sum) = &mut self.sum {
            // What was left out on the way is zeros.
            while self.length < self.position {
                let gap = usize::try_from(self.position - self.length).unwrap_or(ZEROS.len());
                let gap = gap.min(ZEROS.len());
                sum.update(ZEROS.get(..gap).unwrap_or_default());
                self.length += gap as u64;
            }
            sum.update(data.get(..written).unwrap_or_default());
        }
        self.position += written as u64;
        self.length = self.length.max(self.position);
        Ok(written)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.sink.flush()
    }
}

impl<W: Seek> Seek for Hashed<W> {
    fn seek(&mut self, to: SeekFrom) -> std::io::Result<u64> {
        self.position = self.sink.seek(to)?;
        Ok(self.position)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may fail by panicking")]
mod tests {
    use std::io::Cursor;

    use super::*;

    #[test]
    fn what_is_left_out_counts_as_zeros_and_going_back_ends_it() {
        let mut sink = Hashed::new(Cursor::new(Vec::new()), true);
        sink.write_all(b"begin").unwrap();
        sink.seek(SeekFrom::Start(100_000)).unwrap();
        sink.write_all(b"end").unwrap();
        let (written, sum) = sink.end();
        assert_eq!(sum.unwrap(), Sum::of(written.get_ref()));
        let mut sink = Hashed::new(Cursor::new(Vec::new()), true);
        sink.write_all(b"begin").unwrap();
        sink.seek(SeekFrom::Start(0)).unwrap();
        sink.write_all(b"B").unwrap();
        assert_eq!(sink.end().1, None);
        assert_eq!(Hashed::new(Cursor::new(Vec::<u8>::new()), false).end().1, None);
    }
}
