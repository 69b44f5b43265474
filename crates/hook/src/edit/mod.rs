//! Edits of a domain. Each edit is a module that says which bytes it replaces; every other byte
//! stays as it is, whatever it is: namespaces such as `qemu:commandline`, comments, entities,
//! white space, quotes.
//!
//! KubeVirt defines a domain up to three times per start and forgets elements that it does not
//! know between them (v1.9, `manager.go`), so an edit looks at the domain as it is and does again
//! what is missing; where nothing is missing it changes nothing.
//!
//! ```text
//!  domain ─► edit ─► splice ─► domain ─► edit ─► splice ─► … ─► text
//! ```

mod igd;
mod kvm;
mod qemu;
mod rom;

use std::ops::Range;

use roxmltree::Node;

use crate::arguments::Device;
use crate::domain::{Domain, DomainError, NoDevice};
pub use rom::RomBar;

/// A named edit.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Edit {
    /// The ROM of a host device.
    Rom(RomBar),
    /// `<features><kvm><hidden state='on'/>`: the guest does not see that it runs in KVM.
    HideKvm,
    /// An Intel GPU gets its `OpRegion`, and slot 2 of the guest, where its drivers look for it.
    Igd(Device),
    /// More arguments for QEMU, in this order.
    QemuArguments(Vec<String>),
}

/// An edit is not possible.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum EditError {
    /// The device is not there.
    #[error(transparent)]
    NoDevice(#[from] NoDevice),
    /// QEMU's settings of a device go by its alias.
    #[error("host device `{0}` has no alias, by which QEMU could be told about it")]
    NoAlias(Device),
    /// Two edits of the same thing.
    #[error("two edits are about the same element of the domain")]
    Overlap,
    /// An edit made something of the domain that is none.
    #[error("an edit broke the domain ({0}); this is an error of virt-steward-hook")]
    Broken(String),
}

/// The most splices of one edit.
const MAX_STEPS: usize = 4;

/// Bytes that replace others.
#[derive(Clone, Debug, Eq, PartialEq)]
struct Splice {
    range: Range<usize>,
    text: String,
}

/// The domain with all edits made, or none when one of them is not possible.
pub fn apply(domain: &Domain<'_>, edits: &[Edit]) -> Result<String, EditError> {
    let is_repeated = |index: usize, edit: &Edit| edits.iter().take(index).any(|other| are_same(edit, other));
    if edits.iter().enumerate().any(|(index, edit)| is_repeated(index, edit)) {
        return Err(EditError::Overlap);
    }
    let mut text = domain.text().to_owned();
    for edit in edits {
        // an edit may be a few splices, of which the later look at what the earlier made
        let mut left = MAX_STEPS;
        while let Some(next) = step(&text, edit)? {
            left = left
                .checked_sub(1)
                .ok_or_else(|| EditError::Broken("it does not come to an end".to_owned()))?;
            text.replace_range(next.range, &next.text);
        }
    }
    Ok(text)
}

/// The next splice that an edit needs; nothing: it is made.
fn step(text: &str, edit: &Edit) -> Result<Option<Splice>, EditError> {
    let domain =
        Domain::parse(text.as_bytes()).map_err(|error: DomainError| EditError::Broken(error.to_string()))?;
    match edit {
        Edit::Rom(rom) => Ok(rom.splice(&domain)?),
        Edit::HideKvm => Ok(kvm::splice(&domain)),
        Edit::Igd(device) => igd::splice(&domain, device),
        Edit::QemuArguments(arguments) => Ok(qemu::splice(&domain, arguments)),
    }
}

fn are_same(one: &Edit, other: &Edit) -> bool {
    match (one, other) {
        (Edit::Rom(one), Edit::Rom(other)) => one.device == other.device,
        (Edit::HideKvm, Edit::HideKvm)
        | (Edit::Igd(_), Edit::Igd(_))
        | (Edit::QemuArguments(_), Edit::QemuArguments(_)) => true,
        _ => false,
    }
}

/// New content at the end of an element.
fn append(text: &str, node: Node<'_, '_>, content: &str) -> Splice {
    let range = node.range();
    let element = text.get(range.clone()).unwrap_or_default();
    if element.ends_with("/>") {
        // it has no closing tag yet; its name is as it was written, with its prefix
        let name = element.trim_start_matches('<');
        let name =
            name.split(|letter: char| letter.is_whitespace() || letter == '/').next().unwrap_or_default();
        return Splice { range: range.end - 2..range.end, text: format!(">{content}</{name}>") };
    }
    let end = range.start + element.rfind("</").unwrap_or(element.len());
    Splice { range: end..end, text: content.to_owned() }
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
