use crate::config::{Config, ErrorMode};
use crate::json::Path;

/// The features, in the order in which they are applied.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Feature {
    NestedVirt,
    PciPassthrough,
    GpuDevicePlugin,
    VbiosInjection,
}

impl Feature {
    pub(crate) const ALL: [Self; 4] =
        [Self::NestedVirt, Self::PciPassthrough, Self::GpuDevicePlugin, Self::VbiosInjection];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::NestedVirt => "nested-virt",
            Self::PciPassthrough => "pci-passthrough",
            Self::GpuDevicePlugin => "gpu-device-plugin",
            Self::VbiosInjection => "vbios-injection",
        }
    }

    /// The annotations or labels that ask for it; the first wins.
    pub(crate) const fn requests(self) -> &'static [&'static str] {
        match self {
            Self::NestedVirt => &["vm-feature-manager.io/nested-virt"],
            Self::PciPassthrough => &["vm-feature-manager.io/pci-passthrough"],
            Self::GpuDevicePlugin => &["vm-feature-manager.io/gpu-device-plugin"],
            Self::VbiosInjection => {
                &["vm-feature-manager.io/vbios-injection", "vm-feature-manager.io/vbios-configmap"]
            }
        }
    }

    /// The annotation that says what was applied.
    pub(crate) const fn applied(self) -> &'static str {
        match self {
            Self::NestedVirt => "vm-feature-manager.io/nested-virt-applied",
            Self::PciPassthrough => "vm-feature-manager.io/pci-passthrough-applied",
            Self::GpuDevicePlugin => "vm-feature-manager.io/gpu-device-plugin-applied",
            Self::VbiosInjection => "vm-feature-manager.io/vbios-injection-applied",
        }
    }

    /// The annotation that says why it was not applied.
    pub(crate) const fn error(self) -> &'static str {
        match self {
            Self::NestedVirt => "vm-feature-manager.io/nested-virt-error",
            Self::PciPassthrough => "vm-feature-manager.io/pci-passthrough-error",
            Self::GpuDevicePlugin => "vm-feature-manager.io/gpu-device-plugin-error",
            Self::VbiosInjection => "vm-feature-manager.io/vbios-injection-error",
        }
    }

    /// What of the VM decides about the feature, beside the request for it.
    pub(crate) const fn inputs(self) -> &'static [Path] {
        const NODE_SELECTOR: Path = &["spec", "template", "spec", "nodeSelector"];
        const AFFINITY: Path = &["spec", "template", "spec", "affinity"];
        const ARCHITECTURE: Path = &["spec", "template", "spec", "architecture"];
        const CPU_FEATURES: Path = &["spec", "template", "spec", "domain", "cpu", "features"];
        const HOST_DEVICES: Path = &["spec", "template", "spec", "domain", "devices", "hostDevices"];
        const GPUS: Path = &["spec", "template", "spec", "domain", "devices", "gpus"];
        const LIMITS: Path = &["spec", "template", "spec", "domain", "resources", "limits"];
        const VOLUMES: Path = &["spec", "template", "spec", "volumes"];
        const HOOKS: Path = &["spec", "template", "metadata", "annotations", crate::site::HOOK_SIDECARS];
        const SIDECAR_IMAGE: Path = &["metadata", "annotations", crate::SIDECAR_IMAGE];
        match self {
            Self::NestedVirt => &[NODE_SELECTOR, AFFINITY, ARCHITECTURE, CPU_FEATURES],
            Self::PciPassthrough => &[NODE_SELECTOR, AFFINITY, HOST_DEVICES],
            Self::GpuDevicePlugin => &[HOST_DEVICES, GPUS, LIMITS],
            Self::VbiosInjection => &[HOST_DEVICES, GPUS, VOLUMES, HOOKS, SIDECAR_IMAGE],
        }
    }

    /// Whether the administrator allows the feature, and what happens when it fails.
    pub(crate) fn policy(self, config: &Config) -> (bool, ErrorMode) {
        let (enabled, mode) = match self {
            Self::NestedVirt => {
                (config.nested_virtualization.enabled, config.nested_virtualization.error_handling)
            }
            Self::PciPassthrough => (config.pci_passthrough.enabled, config.pci_passthrough.error_handling),
            Self::GpuDevicePlugin => {
                (config.gpu_device_plugin.enabled, config.gpu_device_plugin.error_handling)
            }
            Self::VbiosInjection => (config.vbios_injection.enabled, config.vbios_injection.error_handling),
        };
        (enabled, mode.unwrap_or(config.error_handling))
    }
}
