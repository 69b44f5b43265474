use crate::json::Path;

/// A container in a VirtualMachine that features add to.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Site {
    /// A list of CPU features.
    CpuFeatures,
    /// Terms of the required node affinity; an addition is the list of alternatives, of which a
    /// node must meet one (see [`crate::terms`]).
    NodeAffinity,
    /// A list of host devices.
    HostDevices,
    /// A list of GPUs.
    Gpus,
    /// A mapping of resource limits; an addition is a mapping with one key.
    Limits,
    /// A JSON list inside of a string (see [`crate::hook_list`]).
    HookSidecars,
}

/// The annotation, on the pod template of a VM, from which KubeVirt starts hook sidecars
/// (`pkg/hooks/hooks.go`).
pub(crate) const HOOK_SIDECARS: &str = "hooks.kubevirt.io/hookSidecars";

impl Site {
    pub(crate) const ALL: [Self; 6] = [
        Self::CpuFeatures,
        Self::NodeAffinity,
        Self::HostDevices,
        Self::Gpus,
        Self::Limits,
        Self::HookSidecars,
    ];

    /// The name under which the undo record keeps additions.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::CpuFeatures => "cpuFeatures",
            Self::NodeAffinity => "nodeAffinity",
            Self::HostDevices => "hostDevices",
            Self::Gpus => "gpus",
            Self::Limits => "limits",
            Self::HookSidecars => "hookSidecars",
        }
    }

    pub(crate) fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|site| site.name() == name)
    }

    /// Where the container is.
    pub(crate) fn path(self) -> Path {
        match self {
            Self::CpuFeatures => &["spec", "template", "spec", "domain", "cpu", "features"],
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
            Self::Limits => &["spec", "template", "spec", "domain", "resources", "limits"],
            Self::HookSidecars => &["spec", "template", "metadata", "annotations", HOOK_SIDECARS],
        }
    }

    /// The container is written as one value rather than member by member.
    pub(crate) fn is_written_whole(self) -> bool {
        matches!(self, Self::NodeAffinity | Self::HookSidecars)
    }
}
