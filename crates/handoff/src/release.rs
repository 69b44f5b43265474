//! What distinguishes releases of KubeVirt in the handoff.

use std::fmt;
use std::str::FromStr;

/// A release whose rules are known.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Release {
    /// v1.3.1; v1.4 and v1.5 differ in [`Release::deletes_with_the_vmi`] only.
    V1_3_1,
    /// v1.6.
    V1_6,
    /// v1.8.
    V1_8,
    /// v1.9.0.
    V1_9_0,
    /// The main branch of August 2026.
    Main,
    /// The main branch with pull request 18862, which was not merged.
    Pr18862,
}

/// Text that names no release.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ParseReleaseError(String);

impl fmt::Display for ParseReleaseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\" is none of 1.3.1, 1.6, 1.8, 1.9.0, main, 18862", self.0)
    }
}

impl std::error::Error for ParseReleaseError {}

impl Release {
    /// All of them, oldest first.
    pub const ALL: [Self; 6] =
        [Self::V1_3_1, Self::V1_6, Self::V1_8, Self::V1_9_0, Self::Main, Self::Pr18862];

    /// How people call it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::V1_3_1 => "1.3.1",
            Self::V1_6 => "1.6",
            Self::V1_8 => "1.8",
            Self::V1_9_0 => "1.9.0",
            Self::Main => "main",
            Self::Pr18862 => "18862",
        }
    }

    /// The oldest release with the same rules: whatever happens to it happens to this one.
    #[must_use]
    pub fn eldest_alike(self) -> Self {
        let rules = |release: Self| {
            [
                release.waits_for_unplug(),
                release.unmounts_by_spec(),
                release.keeps_only_what_is_needed(),
                release.mounts_by_volume(),
                release.mounts_by_spec(),
                release.deletes_with_the_vmi(),
                release.pending_is_enough(),
            ]
        };
        Self::ALL.into_iter().find(|other| rules(*other) == rules(self)).unwrap_or(self)
    }

    /// Old pods with volumes that are on their way out of the guest are kept
    /// (`volumeReadyForPodDelete`, 82109067f2).
    pub fn waits_for_unplug(self) -> bool {
        self >= Self::V1_6
    }

    /// virt-handler unmounts what left the spec; before, what has no status entry any more, which
    /// goes only with the pod (mount.go:651, v1.3.1).
    pub fn unmounts_by_spec(self) -> bool {
        self >= Self::V1_6
    }

    /// The old pod is kept only if it holds something that is needed (#18045).
    pub fn keeps_only_what_is_needed(self) -> bool {
        self >= Self::V1_9_0
    }

    /// Each volume is mounted from the pod that its own status names; before, all from the first
    /// one that any status names (#18105).
    pub fn mounts_by_volume(self) -> bool {
        self >= Self::V1_9_0
    }

    /// Nothing is mounted that is not in the spec (#18044, after v1.9.0).
    pub fn mounts_by_spec(self) -> bool {
        self >= Self::Main
    }

    /// All pods go as soon as the VMI is to be deleted, while the guest is still shutting down
    /// (vmi.go:1580, until 799e36a854 in v1.4).
    pub fn deletes_with_the_vmi(self) -> bool {
        self == Self::V1_3_1
    }

    /// The old pod goes as soon as there is a new one, running or not (#18862).
    pub fn pending_is_enough(self) -> bool {
        self == Self::Pr18862
    }
}

impl fmt::Display for Release {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Release {
    type Err = ParseReleaseError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let plain = text.strip_prefix('v').unwrap_or(text);
        Self::ALL
            .into_iter()
            .find(|release| release.name() == plain)
            .ok_or_else(|| ParseReleaseError(text.chars().take(40).collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_that_differ_in_nothing_stand_for_each_other() {
        let eldest = Release::ALL.map(Release::eldest_alike);
        let [oldest, six, eight, nine, main, early] = Release::ALL;
        assert_eq!(eldest, [oldest, six, six, nine, main, early]);
        assert_ne!(six, eight);
    }
}
