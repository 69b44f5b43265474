//! What distinguishes releases in the handoff of hotplugged volumes, with the change that brought it.

use crate::sim::Release;

/// The rules of one release.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[allow(clippy::struct_excessive_bools, reason = "independent rules, each with its own history")]
pub struct Rules {
    /// An old pod with a volume that is on its way out of the guest stays (`volumeReadyForPodDelete`,
    /// 82109067f2, v1.6).
    pub waits_for_unplug: bool,
    /// virt-handler unmounts what left the spec (v1.6); before, what has no status entry any more, which goes
    /// only with the pod (mount.go:651, v1.3.1).
    pub unmounts_by_spec: bool,
    /// A matching pod that is being deleted is not the current one (v1.6.6, v1.7.4, v1.8.0).
    pub skips_deleted: bool,
    /// An old pod is kept only when it holds something that is needed (`podContainsVolumesToPreserve`, #18045,
    /// v1.9).
    pub keeps_only_what_is_needed: bool,
    /// Each volume is mounted from the pod that its own status names; before, all from the first that any names
    /// (#18105, v1.9).
    pub mounts_by_volume: bool,
    /// Nothing is mounted that has left the spec (#18044, after v1.9.0).
    pub mounts_by_spec: bool,
    /// Attachment pods name their VMI (bbaf3b03e3, after v1.9.0).
    pub names_owner: bool,
    /// All pods go as soon as the VMI is to be deleted, while the guest shuts down (vmi.go:1580, until 799e36a854
    /// in v1.4).
    pub deletes_with_the_vmi: bool,
    /// The old pod goes as soon as there is a new one, running or not (#18862, not merged).
    pub pending_is_enough: bool,
}

impl Rules {
    /// The rules of a release.
    pub fn of(release: Release) -> Self {
        match release {
            Release::V1_3 => Self::V1_3,
            Release::V1_4 | Release::V1_5 => Self::V1_4,
            Release::V1_6 | Release::V1_7 => Self::V1_6,
            Release::V1_8 => Self::V1_8,
            Release::V1_9 => Self::V1_9,
            Release::Main => Self::MAIN,
            Release::Pr18862 => Self::PR_18862,
        }
    }

    /// v1.3.1
    pub const V1_3: Self = Self { deletes_with_the_vmi: true, ..Self::V1_4 };
    /// v1.4 and v1.5
    pub const V1_4: Self = Self {
        waits_for_unplug: false,
        unmounts_by_spec: false,
        skips_deleted: false,
        keeps_only_what_is_needed: false,
        mounts_by_volume: false,
        mounts_by_spec: false,
        names_owner: false,
        deletes_with_the_vmi: false,
        pending_is_enough: false,
    };
    /// v1.6.0 and v1.7.0
    pub const V1_6: Self = Self { waits_for_unplug: true, unmounts_by_spec: true, ..Self::V1_4 };
    /// v1.8
    pub const V1_8: Self = Self { skips_deleted: true, ..Self::V1_6 };
    /// v1.9.0
    pub const V1_9: Self = Self { keeps_only_what_is_needed: true, mounts_by_volume: true, ..Self::V1_8 };
    /// The main branch of August 2026.
    pub const MAIN: Self = Self { mounts_by_spec: true, names_owner: true, ..Self::V1_9 };
    /// The same with #18862.
    pub const PR_18862: Self = Self { pending_is_enough: true, ..Self::MAIN };
}
