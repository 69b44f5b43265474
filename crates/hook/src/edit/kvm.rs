//! `<features><kvm><hidden state='on'/></kvm></features>` (libvirt `formatdomain`, "Hypervisor
//! features"): drivers that refuse to work in a VM do not find KVM's signature.
//!
//! KubeVirt has a field of its own for it (`domain.features.kvm.hidden`), which admission uses; the
//! edit is for sidecars that are written by hand, on VMs whose template may not be changed.

use crate::domain::{Domain, child};

use super::{Splice, append};

const HIDDEN: &str = "<hidden state='on'/>";

/// What to replace; nothing when the state is hidden.
pub(super) fn splice(domain: &Domain<'_>) -> Option<Splice> {
    let text = domain.text();
    let Some(features) = child(domain.root(), "features") else {
        let content = format!("<features><kvm>{HIDDEN}</kvm></features>");
        return Some(append(text, domain.root(), &content));
    };
    let Some(kvm) = child(features, "kvm") else {
        return Some(append(text, features, &format!("<kvm>{HIDDEN}</kvm>")));
    };
    match child(kvm, "hidden") {
        None => Some(append(text, kvm, HIDDEN)),
        Some(hidden) if hidden.attribute("state") == Some("on") => None,
        Some(hidden) => Some(Splice { range: hidden.range(), text: HIDDEN.to_owned() }),
    }
}

#[cfg(test)]
mod tests {
    use crate::domain::Domain;
    use crate::edit::{Edit, apply};

    #[test]
    fn the_state_is_hidden_wherever_it_has_to_be_written() {
        for (before, after) in [
            ("<domain/>", "<domain><features><kvm><hidden state='on'/></kvm></features></domain>"),
            (
                "<domain ><features/></domain>",
                "<domain ><features><kvm><hidden state='on'/></kvm></features></domain>",
            ),
            (
                "<domain><features><acpi/> </features></domain>",
                "<domain><features><acpi/> <kvm><hidden state='on'/></kvm></features></domain>",
            ),
            (
                "<domain><features><kvm><hint-dedicated state='on'/></kvm></features></domain>",
                "<domain><features><kvm><hint-dedicated state='on'/><hidden state='on'/></kvm></features></domain>",
            ),
            (
                "<domain><features><kvm><hidden state=\"off\"></hidden></kvm></features></domain>",
                "<domain><features><kvm><hidden state='on'/></kvm></features></domain>",
            ),
            (
                "<domain><features><kvm ><hidden state=\"on\" ></hidden></kvm></features></domain>",
                "<domain><features><kvm ><hidden state=\"on\" ></hidden></kvm></features></domain>",
            ),
        ] {
            let edited = apply(&Domain::parse(before.as_bytes()).unwrap(), &[Edit::HideKvm]).unwrap();
            assert_eq!(edited, after);
            assert_eq!(apply(&Domain::parse(after.as_bytes()).unwrap(), &[Edit::HideKvm]).unwrap(), after);
        }
    }
}
