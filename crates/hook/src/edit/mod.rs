//! Edits of a domain. Each edit is a module that says which bytes it replaces; every other byte
//! stays as it is, whatever it is: namespaces such as `qemu:commandline`, comments, entities,
//! white space, quotes.
//!
//! KubeVirt defines a domain up to three times per start and forgets elements that it does not
//! know between them (v1.9, `manager.go`), so an edit looks at the domain as it is and does again
//! what is missing; where nothing is missing it changes nothing.

mod rom;

use std::ops::Range;

use crate::domain::{Domain, NoDevice};
pub use rom::RomBar;

/// A named edit.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Edit {
    /// The ROM of a host device.
    Rom(RomBar),
}

/// An edit is not possible.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum EditError {
    /// The device is not there.
    #[error(transparent)]
    NoDevice(#[from] NoDevice),
    /// Two edits of the same bytes.
    #[error("two edits are about the same element of the domain")]
    Overlap,
}

/// Bytes that replace others.
#[derive(Clone, Debug, Eq, PartialEq)]
struct Splice {
    range: Range<usize>,
    text: String,
}

/// The domain with all edits made, or none when one of them is not possible.
pub fn apply(domain: &Domain<'_>, edits: &[Edit]) -> Result<String, EditError> {
    let mut splices = Vec::with_capacity(edits.len());
    for edit in edits {
        match edit {
            Edit::Rom(rom) => splices.extend(rom.splice(domain)?),
        }
    }
    splice(domain.text(), splices)
}

fn splice(text: &str, mut splices: Vec<Splice>) -> Result<String, EditError> {
    splices.sort_by_key(|splice| (splice.range.start, splice.range.end));
    let mut result =
        String::with_capacity(text.len() + splices.iter().map(|one| one.text.len()).sum::<usize>());
    let mut at = 0;
    let mut written: Option<Range<usize>> = None;
    for Splice { range, text: new } in splices {
        if written.is_some_and(|before| range.start < before.end || range == before) {
            return Err(EditError::Overlap);
        }
        result.push_str(text.get(at..range.start).unwrap_or_default());
        result.push_str(&new);
        at = range.end;
        written = Some(range);
    }
    result.push_str(text.get(at..).unwrap_or_default());
    Ok(result)
}

/// A text as the value of an attribute in single quotes.
fn attribute(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '\'' => escaped.push_str("&apos;"),
            '\t' | '\n' | '\r' => {
                escaped.push_str("&#");
                escaped.push_str(&u32::from(letter).to_string());
                escaped.push(';');
            }
            other => escaped.push(other),
        }
    }
    escaped
}
