use crate::json::Path;

/// A container in a VirtualMachine that features add to.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Site {
    /// The mapping of CPU settings; an addition is a mapping with one key.
    Cpu,
    /// A list of CPU features.
    CpuFeatures,
    /// The mapping of memory settings; an addition is a mapping with one key.
    Memory,
    /// Terms of the required node affinity; an addition is the list of alternatives, of which a
    /// node must meet one (see [`crate::terms`]).
    NodeAffinity,
    /// A list of host devices.
    HostDevices,
    /// A list of GPUs.
    Gpus,
    /// A list of network interfaces.
    Interfaces,
    /// A list of networks.
    Networks,
    /// A list of claims for devices (DRA).
    ResourceClaims,
    /// A mapping of resource limits; an addition is a mapping with one key.
    Limits,
    /// The mapping of KVM's settings; an addition is a mapping with one key.
    Kvm,
    /// A JSON list inside of a string (see [`crate::hook_list`]).
    HookSidecars,
    /// The same, for what our webhook adds to launcher pods.
    LauncherHooks,
}

/// What a container is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Shape {
    List,
    Mapping,
    /// A list that is written as one value.
    Terms,
    /// A list inside of a string.
    Text,
}

/// The annotation, on the pod template of a VM, from which KubeVirt starts hook sidecars
/// (`pkg/hooks/hooks.go`).
pub(crate) const HOOK_SIDECARS: &str = "hooks.kubevirt.io/hookSidecars";

impl Site {
    pub(crate) const ALL: [Self; 13] = [
        Self::Cpu,
        Self::CpuFeatures,
        Self::Memory,
        Self::NodeAffinity,
        Self::HostDevices,
        Self::Gpus,
        Self::Interfaces,
        Self::Networks,
        Self::ResourceClaims,
        Self::Limits,
        Self::Kvm,
        Self::HookSidecars,
        Self::LauncherHooks,
    ];

    /// The name under which the undo record keeps additions.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::CpuFeatures => "cpuFeatures",
            Self::Memory => "memory",
            Self::NodeAffinity => "nodeAffinity",
            Self::HostDevices => "hostDevices",
            Self::Gpus => "gpus",
            Self::Interfaces => "interfaces",
            Self::Networks => "networks",
            Self::ResourceClaims => "resourceClaims",
            Self::Limits => "limits",
            Self::Kvm => "kvm",
            Self::HookSidecars => "hookSidecars",
            Self::LauncherHooks => "launcherHooks",
        }
    }

    pub(crate) fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|site| site.name() == name)
    }

    /// Where the container is.
    pub(crate) fn path(self) -> Path {
        match self {
            Self::Cpu => &["spec", "template", "spec", "domain", "cpu"],
            Self::CpuFeatures => &["spec", "template", "spec", "domain", "cpu", "features"],
            Self::Memory => &["spec", "template", "spec", "domain", "memory"],
            Self::NodeAffinity => &[
                "spec",
                "template",
                "spec",
                "affinity",
                "nodeAffinity",
                "requiredDuringSchedulingIgnoredDuringExecution",
                "nodeSelectorTerms",
            ],
            Self::HostDevices => &["spec", "template", "spec", "domain", "devices", "hostDevices"],
            Self::Gpus => &["spec", "template", "spec", "domain", "devices", "gpus"],
            Self::Interfaces => &["spec", "template", "spec", "domain", "devices", "interfaces"],
            Self::Networks => &["spec", "template", "spec", "networks"],
            Self::ResourceClaims => &["spec", "template", "spec", "resourceClaims"],
            Self::Limits => &["spec", "template", "spec", "domain", "resources", "limits"],
            Self::Kvm => &["spec", "template", "spec", "domain", "features", "kvm"],
            Self::HookSidecars => &["spec", "template", "metadata", "annotations", HOOK_SIDECARS],
            Self::LauncherHooks => &["spec", "template", "metadata", "annotations", crate::launcher::HOOKS],
        }
    }

    /// What the container is.
    pub(crate) fn shape(self) -> Shape {
        match self {
            Self::CpuFeatures
            | Self::HostDevices
            | Self::Gpus
            | Self::Interfaces
            | Self::Networks
            | Self::ResourceClaims => Shape::List,
            Self::Cpu | Self::Memory | Self::Limits | Self::Kvm => Shape::Mapping,
            Self::NodeAffinity => Shape::Terms,
            Self::HookSidecars | Self::LauncherHooks => Shape::Text,
        }
    }

    /// The container is written as one value rather than member by member.
    pub(crate) fn is_written_whole(self) -> bool {
        matches!(self.shape(), Shape::Terms | Shape::Text)
    }
}
