//! What can go wrong with an image.

use std::io;

/// The result of image operations.
pub type Result<T> = std::result::Result<T, Error>;

/// What was being done when it failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The source could not be read.
    #[error("cannot read {length} bytes at offset {offset} of the source")]
    Read {
        /// In bytes, from the start of the guest's disk or of the file.
        offset: u64,
        /// In bytes.
        length: u64,
        /// Why.
        source: io::Error,
    },
    /// The destination could not be written.
    #[error("cannot write the {what}")]
    Write {
        /// For example `grain tables`.
        what: &'static str,
        /// Why.
        source: io::Error,
    },
    /// The file is not what its header says, or it uses what cannot be read here.
    #[error("cannot read this {format} image: {why}")]
    Malformed {
        /// `qcow2` or `VMDK`.
        format: &'static str,
        /// What is wrong with it.
        why: String,
    },
    /// The request cannot be carried out with this format.
    #[error("cannot write a {format} image: {why}")]
    Unsupported {
        /// The format that was asked for.
        format: &'static str,
        /// Why not, and what to choose instead.
        why: String,
    },
    /// A cluster or grain could not be compressed.
    #[error("cannot compress the data at offset {offset}: {why}")]
    Compress {
        /// In bytes, from the start of the guest's disk.
        offset: u64,
        /// The compressor's words.
        why: String,
    },
    /// A point to go on from does not fit.
    #[error("cannot go on from where an earlier run broke off: {0}")]
    Resume(&'static str),
    /// Who follows the conversion could not note how far it is.
    #[error("cannot note how far the image is")]
    Note(#[source] io::Error),
    /// The caller asked to stop.
    #[error("stopped before the image was complete")]
    Stopped,
}

impl Error {
    pub(crate) fn qcow2(why: impl Into<String>) -> Self {
        Self::Malformed { format: "qcow2", why: why.into() }
    }

    pub(crate) fn vmdk(why: impl Into<String>) -> Self {
        Self::Malformed { format: "VMDK", why: why.into() }
    }

    pub(crate) fn ovf(why: impl Into<String>) -> Self {
        Self::Malformed { format: "OVF", why: why.into() }
    }

    pub(crate) fn ova(why: impl Into<String>) -> Self {
        Self::Malformed { format: "OVA", why: why.into() }
    }

    pub(crate) fn resume(why: &'static str) -> Self {
        Self::Resume(why)
    }

    pub(crate) fn write(what: &'static str) -> impl Fn(io::Error) -> Self {
        move |source| Self::Write { what, source }
    }
}
