//! Texts that are much alike, kept small: each as what it has that another one has not.
//!
//! A thousand virtual machines have nearly the same objects, and an object's earlier states are nearly its
//! present one. Packed against one text of its kind (a dictionary of Zstandard), a pod takes a tenth of its
//! 10 KiB. Packing takes some 20 µs, unpacking less than 10.

use std::cell::RefCell;
use std::fmt;
use std::sync::Arc;

use zstd::zstd_safe::{CCtx, CDict, DCtx, DDict, compress_bound};

/// Shorter texts are kept as they are.
const SHORT: usize = 256;
/// As much of a text is compared with others.
const COMPARED: usize = 32 << 10;
/// The fastest level that is no emergency measure: higher ones take longer and gain little.
const LEVEL: i32 = 1;
/// A kind with fewer texts packs none.
const FEW: u64 = 16;
/// A text that does not shrink so many times is not like the one that it was packed against.
const ALIKE: usize = 8;

thread_local! {
    static PACKING: RefCell<(CCtx<'static>, Vec<u8>)> = RefCell::new((CCtx::create(), Vec::new()));
    static UNPACKING: RefCell<DCtx<'static>> = RefCell::new(DCtx::create());
}

/// A text, packed.
pub struct Packed {
    bytes: Box<[u8]>,
    length: usize,
    against: Arc<DDict<'static>>,
}

impl fmt::Debug for Packed {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Packed")
            .field("bytes", &self.bytes.len())
            .field("length", &self.length)
            .finish_non_exhaustive()
    }
}

impl Packed {
    /// The text.
    pub fn unpack(&self) -> Vec<u8> {
        let mut text = Vec::with_capacity(self.length);
        let done = UNPACKING
            .with_borrow_mut(|context| context.decompress_using_ddict(&mut text, &self.bytes, &self.against));
        // What was packed here unpacks; a text that is empty would be visible at once.
        debug_assert_eq!(done, Ok(self.length));
        text
    }
}

/// Packs the texts of one kind.
#[derive(Default)]
pub struct Packer {
    seen: u64,
    /// At so many texts another one may become the one that the next are packed against. Twice as many each
    /// time: what is packed already keeps what it was packed against.
    change_at: u64,
    against: Option<(CDict<'static>, Arc<DDict<'static>>)>,
}

impl fmt::Debug for Packer {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Packer").field("seen", &self.seen).finish_non_exhaustive()
    }
}

impl Packer {
    /// Packs a text; `None`: that would gain nothing.
    pub fn pack(&mut self, text: &[u8]) -> Option<Packed> {
        if text.len() < SHORT {
            return None;
        }
        self.seen += 1;
        let packed = self.packed(text);
        let alike = packed.as_ref().is_some_and(|packed| packed.bytes.len() * ALIKE <= text.len());
        if !alike && self.seen >= self.change_at.max(FEW) {
            self.change_at = self.seen * 2;
            let sample = &text[..text.len().min(COMPARED)];
            self.against = Some((CDict::create(sample, LEVEL), Arc::new(DDict::create(sample))));
        }
        packed
    }

    fn packed(&self, text: &[u8]) -> Option<Packed> {
        let (dictionary, against) = self.against.as_ref()?;
        PACKING.with_borrow_mut(|(context, room)| {
            room.clear();
            room.reserve(compress_bound(text.len()));
            context.compress_using_cdict(room, text, dictionary).ok()?;
            let gains = room.len() < text.len() / 2;
            gains.then(|| Packed {
                bytes: room.as_slice().into(),
                length: text.len(),
                against: against.clone(),
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pod(number: u64, phase: &str) -> String {
        let containers: Vec<String> = (0..40)
            .map(|at| format!("{{\"name\":\"c{at}\",\"image\":\"registry/{}\"}}", at * 7919))
            .collect();
        format!(
            "{{\"name\":\"pod-{number}\",\"phase\":\"{phase}\",\"containers\":[{}]}}",
            containers.join(",")
        )
    }

    proptest! {
        #[test]
        fn a_text_unpacks_to_what_it_was(texts in prop::collection::vec(prop::collection::vec(0..4_u8, 0..2000), 40..80)) {
            let mut packer = Packer::default();
            for text in texts {
                if let Some(packed) = packer.pack(&text) {
                    prop_assert_eq!(packed.unpack(), text);
                }
            }
        }
    }

    #[test]
    fn texts_of_a_kind_shrink_tenfold_and_outlive_what_they_were_packed_against() {
        let mut packer = Packer::default();
        let phases = ["Pending", "Running"];
        let texts: Vec<String> =
            (0..200).map(|number| pod(number, phases[usize::from(number % 2 == 1)])).collect();
        let packed: Vec<Option<Packed>> = texts.iter().map(|text| packer.pack(text.as_bytes())).collect();
        drop(packer);
        let few = usize::try_from(FEW).unwrap();
        assert!(packed[..few].iter().all(Option::is_none), "a few texts are not worth it");
        for (text, packed) in texts.iter().zip(&packed).skip(few) {
            let packed = packed.as_ref().unwrap();
            assert_eq!(packed.unpack(), text.as_bytes());
            assert!(packed.bytes.len() * 10 < text.len(), "{} of {}", packed.bytes.len(), text.len());
        }
    }

    #[test]
    fn other_texts_become_what_is_packed_against() {
        let mut packer = Packer::default();
        for number in 0..40 {
            packer.pack(pod(number, "Running").as_bytes());
        }
        let words: Vec<String> = (1..200_u64).map(|word| (word * 0x9E37_79B9).to_string()).collect();
        let other = |number: u64| format!("{}{number}", words.concat());
        let shrinks = |packed: &Packed| packed.bytes.len() * ALIKE < packed.length;
        assert!(packer.pack(other(0).as_bytes()).is_none_or(|packed| !shrinks(&packed)));
        assert!(packer.pack(other(1).as_bytes()).is_some_and(|packed| shrinks(&packed)));
    }
}
