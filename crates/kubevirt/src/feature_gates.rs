//! Whether a KubeVirt feature gate is on, as KubeVirt itself decides it.
//!
//! ```text
//!  GA ─────────────────────────────► on   (cannot be switched off)
//!  named in featureGates ──────────► on
//!  named in disabledFeatureGates ──► off  (KubeVirt v1.8, VEP 104)
//!  Beta and KubeVirt >= v1.9 ──────► on   (VEP 229)
//!  otherwise ──────────────────────► off
//! ```
//!
//! Stages are those of `pkg/virt-config/featuregate/{active,inactive}.go` up to v1.9.

use crate::{KubeVirtView, Version};

/// `hostDevices` in a VM.
pub const HOST_DEVICES: &str = "HostDevices";
/// The `hooks.kubevirt.io/hookSidecars` annotation.
pub const SIDECAR: &str = "Sidecar";
/// `Plugin` objects (VEP 190), which rewrite the domain of every VM.
pub const PLUGINS: &str = "Plugins";
/// `devices.gpus`
pub const GPU: &str = "GPU";
/// `cpu.numa`
pub const NUMA: &str = "NUMA";
/// Node labels for dedicated CPUs.
pub const CPU_MANAGER: &str = "CPUManager";
/// `gpus[].claimName`
pub const GPUS_WITH_DRA: &str = "GPUsWithDRA";
/// `hostDevices[].claimName`
pub const HOST_DEVICES_WITH_DRA: &str = "HostDevicesWithDRA";

/// Since when a gate is Beta and GA; a gate in neither column is Alpha.
struct Stages {
    name: &'static str,
    beta: Option<Version>,
    general: Option<Version>,
}

/// A gate, and the minor releases of v1 in which it became Beta and GA.
const fn stages(name: &'static str, beta: Option<u32>, general: Option<u32>) -> Stages {
    Stages { name, beta: release(beta), general: release(general) }
}

const fn release(minor: Option<u32>) -> Option<Version> {
    match minor {
        Some(minor) => Some(Version::new(1, minor)),
        None => None,
    }
}

/// The first release of the v1 line, for gates that were GA before it.
const ALWAYS: Option<u32> = Some(0);

const GATES: [Stages; 28] = [
    stages("Template", Some(9), None),
    stages(HOST_DEVICES, None, None),
    stages(SIDECAR, None, None),
    stages(PLUGINS, None, None),
    stages(CPU_MANAGER, None, None),
    stages("AlignCPUs", None, None),
    stages("Root", None, None),
    stages("HostDisk", None, None),
    stages("DeclarativeHotplugVolumes", Some(9), None),
    stages("HotplugVolumes", None, None),
    stages("IncrementalBackup", None, None),
    stages("UtilityVolumes", None, None),
    stages(GPUS_WITH_DRA, Some(9), None),
    stages(HOST_DEVICES_WITH_DRA, Some(9), None),
    stages("NodeRestriction", Some(6), None),
    stages("ImageVolume", Some(7), None),
    stages("Snapshot", Some(3), None),
    stages("VMExport", Some(3), Some(9)),
    stages("PanicDevices", Some(7), Some(9)),
    stages("VideoConfig", Some(7), Some(9)),
    stages("MigrationPriorityQueue", Some(8), Some(9)),
    stages("PersistentReservation", None, Some(9)),
    stages("ExpandDisks", None, Some(8)),
    stages("VMLiveUpdateFeatures", None, Some(5)),
    stages("HotplugNICs", Some(3), Some(4)),
    stages(NUMA, None, Some(4)),
    stages(GPU, None, ALWAYS),
    stages("LiveMigration", None, ALWAYS),
];

/// The release from which Beta gates are on unless disabled (VEP 229).
const BETA_ON: Version = Version::new(1, 9);

/// Gates that are younger than the line: a release before ignores the name.
const YOUNG: [(&str, Version); 1] = [(PLUGINS, Version::new(1, 9))];

/// Whether the gate is on in this cluster. Without a readable version only what the CR says
/// and gates that have always been GA count.
pub fn is_enabled(kubevirt: KubeVirtView<'_>, gate: &str) -> bool {
    let version = kubevirt.version().unwrap_or(Version::new(1, 0));
    let is_young = |(name, since): &(&str, Version)| *name == gate && version < *since;
    if kubevirt.version().is_some() && YOUNG.iter().any(is_young) {
        return false;
    }
    let known = GATES.iter().find(|known| known.name == gate);
    let reached = |since: Option<Version>| since.is_some_and(|since| version >= since);
    if known.is_some_and(|known| reached(known.general)) || kubevirt.lists_gate(gate) {
        return true;
    }
    !kubevirt.disables_gate(gate) && version >= BETA_ON && known.is_some_and(|known| reached(known.beta))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_rule_is_kubevirts() {
        // gate, version, listed, disabled, on
        for (gate, version, listed, disabled, on) in [
            (HOST_DEVICES, "v1.9.0", false, false, false),
            (HOST_DEVICES, "v1.9.0", true, false, true),
            (HOST_DEVICES, "v1.9.0", true, true, true),
            (GPU, "v1.2.2", false, true, true),
            (NUMA, "v1.3.0", false, false, false),
            (NUMA, "v1.4.0", false, true, true),
            ("Snapshot", "v1.8.0", false, false, false),
            ("Snapshot", "v1.9.0", false, false, true),
            ("Snapshot", "v1.9.0", false, true, false),
            (GPUS_WITH_DRA, "v1.8.4", true, false, true),
            ("VMExport", "v1.9.1", false, true, true),
            (PLUGINS, "v1.8.2", true, false, false),
            (PLUGINS, "v1.9.0", true, false, true),
            (PLUGINS, "devel", true, false, true),
            ("NoSuchGate", "v1.9.0", false, false, false),
            ("NoSuchGate", "v1.9.0", true, false, true),
            (SIDECAR, "devel", true, false, true),
        ] {
            let names = |named: bool| if named { vec![gate] } else { vec![] };
            let cr = json!({
                "spec": {"configuration": {"developerConfiguration": {
                    "featureGates": names(listed), "disabledFeatureGates": names(disabled)}}},
                "status": {"observedKubeVirtVersion": version},
            });
            assert_eq!(is_enabled(KubeVirtView(&cr), gate), on, "{gate} {version} {listed} {disabled}");
        }
    }
}
