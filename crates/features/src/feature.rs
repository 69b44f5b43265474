use crate::config::{Config, ErrorMode, Switch};
use crate::json::Path;

/// The features, in the order in which they are applied: what others need comes first.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Feature {
    NestedVirt,
    CpuPinning,
    Hugepages,
    Numa,
    Realtime,
    PciPassthrough,
    VfioPassthrough,
    UsbPassthrough,
    GpuDevicePlugin,
    Vgpu,
    DraClaims,
    Sriov,
    VbiosInjection,
    KvmHidden,
    IgdOpregion,
    QemuArguments,
}

/// The annotations of a feature, made from its name.
macro_rules! keys {
    ($feature:expr, $suffix:literal) => {
        match $feature {
            Feature::NestedVirt => concat!("vm-feature-manager.io/nested-virt", $suffix),
            Feature::CpuPinning => concat!("vm-feature-manager.io/cpu-pinning", $suffix),
            Feature::Hugepages => concat!("vm-feature-manager.io/hugepages", $suffix),
            Feature::Numa => concat!("vm-feature-manager.io/numa", $suffix),
            Feature::Realtime => concat!("vm-feature-manager.io/realtime", $suffix),
            Feature::PciPassthrough => concat!("vm-feature-manager.io/pci-passthrough", $suffix),
            Feature::VfioPassthrough => concat!("vm-feature-manager.io/vfio-passthrough", $suffix),
            Feature::UsbPassthrough => concat!("vm-feature-manager.io/usb-passthrough", $suffix),
            Feature::GpuDevicePlugin => concat!("vm-feature-manager.io/gpu-device-plugin", $suffix),
            Feature::Vgpu => concat!("vm-feature-manager.io/vgpu", $suffix),
            Feature::DraClaims => concat!("vm-feature-manager.io/dra-claims", $suffix),
            Feature::Sriov => concat!("vm-feature-manager.io/sriov", $suffix),
            Feature::VbiosInjection => concat!("vm-feature-manager.io/vbios-injection", $suffix),
            Feature::KvmHidden => concat!("vm-feature-manager.io/kvm-hidden", $suffix),
            Feature::IgdOpregion => concat!("vm-feature-manager.io/igd-opregion", $suffix),
            Feature::QemuArguments => concat!("vm-feature-manager.io/qemu-arguments", $suffix),
        }
    };
}

impl Feature {
    pub(crate) const ALL: [Self; 16] = [
        Self::NestedVirt,
        Self::CpuPinning,
        Self::Hugepages,
        Self::Numa,
        Self::Realtime,
        Self::PciPassthrough,
        Self::VfioPassthrough,
        Self::UsbPassthrough,
        Self::GpuDevicePlugin,
        Self::Vgpu,
        Self::DraClaims,
        Self::Sriov,
        Self::VbiosInjection,
        Self::KvmHidden,
        Self::IgdOpregion,
        Self::QemuArguments,
    ];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::NestedVirt => "nested-virt",
            Self::CpuPinning => "cpu-pinning",
            Self::Hugepages => "hugepages",
            Self::Numa => "numa",
            Self::Realtime => "realtime",
            Self::PciPassthrough => "pci-passthrough",
            Self::VfioPassthrough => "vfio-passthrough",
            Self::UsbPassthrough => "usb-passthrough",
            Self::GpuDevicePlugin => "gpu-device-plugin",
            Self::Vgpu => "vgpu",
            Self::DraClaims => "dra-claims",
            Self::Sriov => "sriov",
            Self::VbiosInjection => "vbios-injection",
            Self::KvmHidden => "kvm-hidden",
            Self::IgdOpregion => "igd-opregion",
            Self::QemuArguments => "qemu-arguments",
        }
    }

    /// The annotations or labels that ask for it; the first wins.
    pub(crate) const fn requests(self) -> &'static [&'static str] {
        /// One key as a list.
        macro_rules! only {
            ($($feature:ident => $key:literal),*) => {
                match self {
                    $(Self::$feature => &[concat!("vm-feature-manager.io/", $key)],)*
                    Self::VbiosInjection => {
                        &["vm-feature-manager.io/vbios-injection", "vm-feature-manager.io/vbios-configmap"]
                    }
                }
            };
        }
        only!(
            NestedVirt => "nested-virt", CpuPinning => "cpu-pinning", Hugepages => "hugepages", Numa => "numa",
            Realtime => "realtime", PciPassthrough => "pci-passthrough", VfioPassthrough => "vfio-passthrough",
            UsbPassthrough => "usb-passthrough", GpuDevicePlugin => "gpu-device-plugin", Vgpu => "vgpu",
            DraClaims => "dra-claims", Sriov => "sriov", KvmHidden => "kvm-hidden",
            IgdOpregion => "igd-opregion", QemuArguments => "qemu-arguments"
        )
    }

    /// The annotation that says what was applied.
    pub(crate) const fn applied(self) -> &'static str {
        keys!(self, "-applied")
    }

    /// The annotation that says why it was not applied.
    pub(crate) const fn error(self) -> &'static str {
        keys!(self, "-error")
    }

    /// Whether the feature looks at what other features added, and how late it comes therefore.
    pub(crate) const fn rank(self) -> u8 {
        match self {
            Self::Numa => 1,
            Self::Realtime | Self::VbiosInjection | Self::IgdOpregion => 2,
            _ => 0,
        }
    }

    /// Whether an instancetype may give the same, which KubeVirt refuses as a conflict.
    pub(crate) const fn minds_instancetype(self) -> bool {
        matches!(
            self,
            Self::CpuPinning
                | Self::Hugepages
                | Self::Numa
                | Self::Realtime
                | Self::VfioPassthrough
                | Self::UsbPassthrough
                | Self::Vgpu
                | Self::DraClaims
        )
    }

    /// Whether a preference may make the result one that KubeVirt refuses.
    pub(crate) const fn minds_preference(self) -> bool {
        matches!(self, Self::CpuPinning | Self::Hugepages | Self::Numa | Self::Realtime)
    }

    /// What of the VM decides about the feature, beside the request for it.
    pub(crate) const fn inputs(self) -> &'static [Path] {
        const NODE_SELECTOR: Path = &["spec", "template", "spec", "nodeSelector"];
        const AFFINITY: Path = &["spec", "template", "spec", "affinity"];
        const ARCHITECTURE: Path = &["spec", "template", "spec", "architecture"];
        const CPU: Path = &["spec", "template", "spec", "domain", "cpu"];
        const CPU_FEATURES: Path = &["spec", "template", "spec", "domain", "cpu", "features"];
        const MEMORY: Path = &["spec", "template", "spec", "domain", "memory"];
        const RESOURCES: Path = &["spec", "template", "spec", "domain", "resources"];
        const INSTANCETYPE: Path = &["spec", "instancetype"];
        const HOST_DEVICES: Path = &["spec", "template", "spec", "domain", "devices", "hostDevices"];
        const GPUS: Path = &["spec", "template", "spec", "domain", "devices", "gpus"];
        const INTERFACES: Path = &["spec", "template", "spec", "domain", "devices", "interfaces"];
        const NETWORKS: Path = &["spec", "template", "spec", "networks"];
        const CLAIMS: Path = &["spec", "template", "spec", "resourceClaims"];
        const LIMITS: Path = &["spec", "template", "spec", "domain", "resources", "limits"];
        const VOLUMES: Path = &["spec", "template", "spec", "volumes"];
        const HOOKS: Path = &["spec", "template", "metadata", "annotations", crate::site::HOOK_SIDECARS];
        const LAUNCHER_HOOKS: Path = &["spec", "template", "metadata", "annotations", crate::launcher::HOOKS];
        const KVM: Path = &["spec", "template", "spec", "domain", "features", "kvm"];
        const PREFERENCE: Path = &["spec", "preference"];
        const SIDECAR_IMAGE: Path = &["metadata", "annotations", crate::SIDECAR_IMAGE];
        match self {
            Self::NestedVirt => &[NODE_SELECTOR, AFFINITY, ARCHITECTURE, CPU_FEATURES],
            Self::CpuPinning | Self::Hugepages | Self::Numa | Self::Realtime => {
                &[NODE_SELECTOR, AFFINITY, ARCHITECTURE, CPU, MEMORY, RESOURCES, INSTANCETYPE, PREFERENCE]
            }
            Self::PciPassthrough => &[NODE_SELECTOR, AFFINITY, HOST_DEVICES],
            Self::VfioPassthrough | Self::UsbPassthrough => &[HOST_DEVICES, INSTANCETYPE],
            Self::GpuDevicePlugin => &[HOST_DEVICES, GPUS, LIMITS],
            Self::Vgpu => &[HOST_DEVICES, GPUS, INSTANCETYPE],
            Self::DraClaims => &[HOST_DEVICES, GPUS, CLAIMS, INSTANCETYPE],
            Self::Sriov => &[INTERFACES, NETWORKS],
            Self::VbiosInjection => &[HOST_DEVICES, GPUS, VOLUMES, HOOKS, LAUNCHER_HOOKS, SIDECAR_IMAGE],
            Self::KvmHidden => &[KVM],
            Self::IgdOpregion => &[HOST_DEVICES, GPUS, HOOKS, LAUNCHER_HOOKS, SIDECAR_IMAGE],
            Self::QemuArguments => &[HOOKS, LAUNCHER_HOOKS, SIDECAR_IMAGE],
        }
    }

    /// Whether the administrator allows the feature, and what happens when it fails.
    pub(crate) fn policy(self, config: &Config) -> (bool, ErrorMode) {
        let of = |switch: &Switch| (switch.enabled, switch.error_handling);
        let (enabled, mode) = match self {
            Self::NestedVirt => {
                (config.nested_virtualization.enabled, config.nested_virtualization.error_handling)
            }
            Self::CpuPinning => of(&config.cpu_pinning),
            Self::Hugepages => of(&config.hugepages),
            Self::Numa => of(&config.numa),
            Self::Realtime => of(&config.realtime),
            Self::PciPassthrough => (config.pci_passthrough.enabled, config.pci_passthrough.error_handling),
            Self::VfioPassthrough => of(&config.vfio_passthrough),
            Self::UsbPassthrough => of(&config.usb_passthrough),
            Self::GpuDevicePlugin => {
                (config.gpu_device_plugin.enabled, config.gpu_device_plugin.error_handling)
            }
            Self::Vgpu => of(&config.vgpu),
            Self::DraClaims => of(&config.dra_claims),
            Self::Sriov => of(&config.sriov),
            Self::VbiosInjection => (config.vbios_injection.enabled, config.vbios_injection.error_handling),
            Self::KvmHidden => of(&config.kvm_hidden),
            Self::IgdOpregion => of(&config.igd_opregion),
            Self::QemuArguments => (config.qemu_arguments.enabled, config.qemu_arguments.error_handling),
        };
        (enabled, mode.unwrap_or(config.error_handling))
    }
}
