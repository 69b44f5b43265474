//! What an administrator chooses about features.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::policy::Availability;

/// Where a user's wishes are read from. The cloud-init map `x_kubevirt_features` is read in
/// every case; the chosen source wins over it.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// `metadata.annotations` of the VirtualMachine.
    #[default]
    Annotations,
    /// `metadata.labels` of the VirtualMachine. Label values carry no `/` and no JSON.
    Labels,
    /// Annotations, and labels for features that no annotation speaks of.
    Both,
}

/// What happens to a request when a feature that it asks for cannot be given.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
pub enum ErrorMode {
    /// The request is denied with the reason.
    #[default]
    #[serde(rename = "reject", alias = "Reject")]
    Reject,
    /// The request is allowed without this feature; the reason is written to the
    /// `<feature>-error` annotation and returned as a warning.
    #[serde(rename = "allow-and-log", alias = "allow", alias = "KeepLabel", alias = "AllowAndLog")]
    AllowAndLog,
    /// As `allow-and-log`, and the annotation or label that asked for it is removed.
    #[serde(rename = "strip-label", alias = "StripLabel")]
    StripLabel,
}

/// The `features` section of the configuration.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Config {
    /// Where wishes are read from.
    pub source: Source,
    /// The error mode of features that do not set their own.
    pub error_handling: ErrorMode,
    /// Whether `<feature>-applied` annotations are written.
    pub add_tracking_annotations: bool,
    /// Whether Secrets that cloud-init volumes name are read for `x_kubevirt_features`. Needs
    /// the right to get Secrets; without it every such VM gets a warning.
    pub user_data_secrets: bool,
    /// `vm-feature-manager.io/nested-virt`
    pub nested_virtualization: NestedVirtualization,
    /// `vm-feature-manager.io/vbios-injection`
    pub vbios_injection: VbiosInjection,
    /// `vm-feature-manager.io/pci-passthrough`
    pub pci_passthrough: PciPassthrough,
    /// `vm-feature-manager.io/gpu-device-plugin`
    pub gpu_device_plugin: GpuDevicePlugin,
    /// `vm-feature-manager.io/vfio-passthrough`
    pub vfio_passthrough: Switch,
    /// `vm-feature-manager.io/usb-passthrough`
    pub usb_passthrough: Switch,
    /// `vm-feature-manager.io/vgpu`
    pub vgpu: Switch,
    /// `vm-feature-manager.io/dra-claims`
    pub dra_claims: Switch,
    /// `vm-feature-manager.io/sriov`
    pub sriov: Switch,
    /// `vm-feature-manager.io/cpu-pinning`
    pub cpu_pinning: Switch,
    /// `vm-feature-manager.io/hugepages`
    pub hugepages: Switch,
    /// `vm-feature-manager.io/numa`
    pub numa: Switch,
    /// `vm-feature-manager.io/realtime`
    pub realtime: Switch,
    /// `vm-feature-manager.io/kvm-hidden`
    pub kvm_hidden: Switch,
    /// `vm-feature-manager.io/igd-opregion`
    pub igd_opregion: Switch,
    /// `vm-feature-manager.io/qemu-arguments`
    pub qemu_arguments: QemuArguments,
    /// What `/validate` says of a VM that no node can ever take, where no policy says it.
    pub availability: Availability,
}

/// A feature without settings of its own.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Switch {
    /// Whether the feature may be asked for.
    pub enabled: bool,
    /// Overrides [`Config::error_handling`].
    pub error_handling: Option<ErrorMode>,
}

impl Default for Switch {
    fn default() -> Self {
        Self { enabled: true, error_handling: None }
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            source: Source::default(),
            error_handling: ErrorMode::default(),
            add_tracking_annotations: true,
            user_data_secrets: true,
            nested_virtualization: NestedVirtualization::default(),
            vbios_injection: VbiosInjection::default(),
            pci_passthrough: PciPassthrough::default(),
            gpu_device_plugin: GpuDevicePlugin::default(),
            vfio_passthrough: Switch::default(),
            usb_passthrough: Switch::default(),
            vgpu: Switch::default(),
            dra_claims: Switch::default(),
            sriov: Switch::default(),
            cpu_pinning: Switch::default(),
            hugepages: Switch::default(),
            numa: Switch::default(),
            realtime: Switch::default(),
            kvm_hidden: Switch::default(),
            igd_opregion: Switch::default(),
            qemu_arguments: QemuArguments::default(),
            availability: Availability::default(),
        }
    }
}

/// Nested virtualisation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct NestedVirtualization {
    /// Whether the feature may be asked for.
    pub enabled: bool,
    /// Overrides [`Config::error_handling`].
    pub error_handling: Option<ErrorMode>,
    /// Choose `svm` or `vmx` from the nodes' labels. When off, both are asked for as `optional`.
    pub auto_detect: bool,
}

impl Default for NestedVirtualization {
    fn default() -> Self {
        Self { enabled: true, error_handling: None, auto_detect: true }
    }
}

/// Arguments for QEMU that KubeVirt has no field for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct QemuArguments {
    /// Whether the feature may be asked for.
    pub enabled: bool,
    /// Overrides [`Config::error_handling`].
    pub error_handling: Option<ErrorMode>,
    /// What may be asked for: an option with its value (`-fw_cfg name=opt/x,string=1`), or the
    /// beginning of one, that ends in `*`. Empty: nothing.
    pub allowed: Vec<String>,
}

impl Default for QemuArguments {
    fn default() -> Self {
        Self { enabled: true, error_handling: None, allowed: Vec::new() }
    }
}

/// How our hook gets into the pod of a VM.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HookPath {
    /// As a Plugin where ours is registered, as a hook sidecar otherwise.
    #[default]
    Auto,
    /// As a hook sidecar (gate `Sidecar`).
    Sidecar,
    /// As the sidecar of a Plugin (VEP 190, gate `Plugins`).
    Plugin,
}

/// vBIOS ROMs for passed-through devices, and what else goes through our hook.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct VbiosInjection {
    /// Whether the feature may be asked for.
    pub enabled: bool,
    /// Overrides [`Config::error_handling`].
    pub error_handling: Option<ErrorMode>,
    /// Our hook sidecar image, best by digest. Empty: the feature answers that no image is set.
    pub hook_image: String,
    /// `Always`, `IfNotPresent` or `Never`.
    pub image_pull_policy: String,
    /// Images that the `sidecar-image` annotation may choose: exact references, or prefixes
    /// that end in `*`. Empty: the annotation is refused.
    pub allowed_images: Vec<String>,
    /// The key of a ConfigMap that holds the ROM when the annotation names none.
    pub config_map_key: String,
    /// How the hook gets into pods.
    pub hook_path: HookPath,
    /// Register our Plugin and the webhook for launcher pods, for clusters with the gate `Plugins`.
    /// From then on KubeVirt writes the domains of all VMs anew, which takes away what hook sidecars
    /// of others add that it does not know.
    pub register_plugin: bool,
}

impl Default for VbiosInjection {
    fn default() -> Self {
        Self {
            enabled: true,
            error_handling: None,
            hook_image: String::new(),
            image_pull_policy: "IfNotPresent".into(),
            allowed_images: Vec::new(),
            config_map_key: "rom".into(),
            hook_path: HookPath::default(),
            register_plugin: false,
        }
    }
}

/// How a PCI address becomes a `deviceName`.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DeviceNames {
    /// The permitted resource name of the device.
    #[default]
    Resolve,
    /// `pci_0000_00_02_0`, as the program before this one wrote it.
    Raw,
}

/// PCI passthrough.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct PciPassthrough {
    /// Whether the feature may be asked for.
    pub enabled: bool,
    /// Overrides [`Config::error_handling`].
    pub error_handling: Option<ErrorMode>,
    /// The most devices that one VM may ask for, IOMMU mates included.
    pub max_devices: usize,
    /// How addresses become device names.
    pub device_names: DeviceNames,
    /// An administrator's map from address (`0000:00:02.0`, or `node/0000:00:02.0`) to a
    /// permitted resource name, for clusters without an inventory.
    pub address_map: BTreeMap<String, String>,
}

impl Default for PciPassthrough {
    fn default() -> Self {
        Self {
            enabled: true,
            error_handling: None,
            max_devices: 8,
            device_names: DeviceNames::default(),
            address_map: BTreeMap::new(),
        }
    }
}

/// How a GPU is asked for.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum GpuMode {
    /// An entry in `devices.gpus`: the guest gets the device.
    #[default]
    Devices,
    /// `domain.resources.limits`, as the program before this one wrote it: the pod takes a
    /// GPU, the guest gets nothing (KubeVirt builds no hostdev from limits).
    Limits,
}

/// GPUs by device plugin.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct GpuDevicePlugin {
    /// Whether the feature may be asked for.
    pub enabled: bool,
    /// Overrides [`Config::error_handling`].
    pub error_handling: Option<ErrorMode>,
    /// Resource names that may be asked for; an entry `nvidia.com/*` allows a vendor.
    /// Empty: every permitted device.
    pub allowed_plugins: Vec<String>,
    /// Where the GPU is written.
    pub mode: GpuMode,
}

impl Default for GpuDevicePlugin {
    fn default() -> Self {
        Self { enabled: true, error_handling: None, allowed_plugins: Vec::new(), mode: GpuMode::default() }
    }
}
