//! The processors, and whether guests on them can have guests.

use kubevirt::inventory::Cpu;

use super::{Roots, text};

/// Vendors by what processors call themselves (`cpuid` leaf 0).
const VENDORS: [(&str, &str); 2] = [("GenuineIntel", "Intel"), ("AuthenticAMD", "AMD")];

/// Reads the first processor; those of a host are alike.
pub(super) fn read(roots: &Roots) -> Cpu {
    let info = text(&roots.proc.join("cpuinfo")).unwrap_or_default();
    let field = |name: &str| {
        let line = info.lines().find(|line| line.split(':').next().is_some_and(|key| key.trim() == name));
        line.and_then(|line| line.split_once(':')).map(|(_, value)| value.trim().to_owned())
    };
    let vendor = field("vendor_id").or_else(|| field("CPU implementer")).unwrap_or_default();
    let known = VENDORS.iter().find(|(own, _)| *own == vendor).map(|(_, name)| (*name).to_owned());
    Cpu {
        vendor: known.unwrap_or(vendor),
        model: field("model name").unwrap_or_default(),
        nested: nested(roots),
    }
}

/// The parameter `nested` of the kvm module: `Y` or `N`, and `1` or `0` in older kernels.
fn nested(roots: &Roots) -> Option<bool> {
    let module = |name: &str| text(&roots.sys.join("module").join(name).join("parameters/nested"));
    let value = module("kvm_intel").or_else(|| module("kvm_amd"))?;
    Some(matches!(value.as_str(), "Y" | "y" | "1"))
}
