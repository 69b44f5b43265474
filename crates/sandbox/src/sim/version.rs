//! Which release of `KubeVirt` is simulated, and what distinguishes releases.
//!
//! The release stands in the `KubeVirt` object (`status.observedKubeVirtVersion`), as in a real cluster;
//! components read it from there (`ClusterConfig::release`). A rule that a release brought
//! is a method here, named after what it does, with the source; whether a feature gate is on follows from
//! `kubevirt::feature_gates`.

use std::fmt;
use std::str::FromStr;

use kubevirt::Version;

/// A release of `KubeVirt`, by its minor version.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Release {
    /// v1.3.1, before hotplug pods were kept for guests that have not let go.
    V1_3,
    /// v1.4, with GA of NIC hotplug.
    V1_4,
    /// v1.5, with live update on by default.
    V1_5,
    /// v1.6, with declarative hotplug (Alpha).
    V1_6,
    /// v1.7.
    V1_7,
    /// v1.8.
    V1_8,
    /// What most of the simulation was recorded of.
    #[default]
    V1_9,
    /// The main branch of August 2026.
    Main,
    /// The same with pull request 18862, which was not merged: an attachment pod goes as soon as another is there.
    Pr18862,
}

/// Text that names no release.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ParseReleaseError(String);

impl fmt::Display for ParseReleaseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\" is none of 1.3, 1.4, 1.5, 1.6, 1.7, 1.8, 1.9, main, 18862", self.0)
    }
}

impl std::error::Error for ParseReleaseError {}

impl Release {
    /// All of them, oldest first.
    pub const ALL: [Self; 9] = [
        Self::V1_3,
        Self::V1_4,
        Self::V1_5,
        Self::V1_6,
        Self::V1_7,
        Self::V1_8,
        Self::V1_9,
        Self::Main,
        Self::Pr18862,
    ];

    /// How people call it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::V1_3 => "1.3",
            Self::V1_4 => "1.4",
            Self::V1_5 => "1.5",
            Self::V1_6 => "1.6",
            Self::V1_7 => "1.7",
            Self::V1_8 => "1.8",
            Self::V1_9 => "1.9",
            Self::Main => "main",
            Self::Pr18862 => "18862",
        }
    }

    /// The version that the `KubeVirt` object and image tags show: the patch release whose source the rules
    /// were read in. `main` shows what its next release is to be called, since a development build without a
    /// version would turn every gate rule off.
    pub const fn tag(self) -> &'static str {
        match self {
            Self::V1_3 => "v1.3.1",
            Self::V1_4 => "v1.4.0",
            Self::V1_5 => "v1.5.3",
            Self::V1_6 => "v1.6.0",
            Self::V1_7 => "v1.7.0",
            Self::V1_8 => "v1.8.4",
            Self::V1_9 => "v1.9.0",
            Self::Main => "v1.10.0-alpha.0",
            Self::Pr18862 => "v1.10.0-alpha.0-18862",
        }
    }

    /// The release that a `KubeVirt` object reports, the nearest one that is known; the default where it
    /// reports nothing that can be read.
    pub fn of(observed: &str) -> Self {
        if observed == Self::Pr18862.tag() {
            return Self::Pr18862;
        }
        match Version::parse(observed) {
            Some(Version { major: 1, minor }) if minor < 3 => Self::V1_3,
            Some(Version { major: 1, minor }) => Self::ALL
                .get(minor as usize - 3)
                .copied()
                .filter(|one| *one < Self::Main)
                .unwrap_or(Self::Main),
            _ => Self::default(),
        }
    }

    /// The image of a component: `quay.io/kubevirt/NAME:TAG`.
    pub fn image(self, name: &str) -> String {
        format!("quay.io/kubevirt/{name}:{}", self.tag())
    }

    /// virt-api's admission of evictions looks at attachment pods too (v1.6.1,
    /// `hotplug-pod-eviction-interceptor.kubevirt.io`); before, they are evicted like any pod.
    pub fn intercepts_attachment_pods(self) -> bool {
        self >= Self::V1_7
    }

    /// Migrations carry a priority and wait in a queue of priorities (`MigrationPriorityQueue`, Beta in v1.8, GA
    /// in v1.9).
    pub fn has_migration_priorities(self) -> bool {
        self >= Self::V1_8
    }

    /// The API versions of `export.kubevirt.io`: v1 came with GA in v1.9.
    pub fn serves_export_v1(self) -> bool {
        self >= Self::V1_9
    }

    /// `clone.kubevirt.io/v1beta1` is served (v1.6); before, v1alpha1 alone.
    pub fn serves_clone_v1beta1(self) -> bool {
        self >= Self::V1_6
    }

    /// VMs name the copies of their instance types in `status.instancetypeRef` and `preferenceRef` (v1.5); before, in
    /// `spec.instancetype.revisionName`.
    pub fn keeps_instancetypes_in_status(self) -> bool {
        self >= Self::V1_5
    }

    /// Volumes of running VMs move to other claims without any gate (v1.5).
    pub fn migrates_volumes(self) -> bool {
        self >= Self::V1_5
    }

    /// `VirtualMachineBackup` and its tracker are served (`backup.kubevirt.io`, v1.8).
    pub fn serves_backups(self) -> bool {
        self >= Self::V1_8
    }

    /// `VirtualMachineTemplate` is served (`template.kubevirt.io`, v1.8, VEP 76).
    pub fn serves_templates(self) -> bool {
        self >= Self::V1_8
    }

    /// `Plugin` objects are served (`plugin.kubevirt.io`, v1.9, VEP 190).
    pub fn serves_plugins(self) -> bool {
        self >= Self::V1_9
    }
}

impl fmt::Display for Release {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Release {
    type Err = ParseReleaseError;

    /// `1.6`, `v1.6` or a patch release of it such as `1.6.2`, and `main`.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let plain = text.strip_prefix('v').unwrap_or(text);
        let minor = plain.match_indices('.').nth(1).map_or(plain, |(dot, _)| &plain[..dot]);
        Self::ALL
            .into_iter()
            .find(|release| release.name() == minor)
            .ok_or_else(|| ParseReleaseError(text.chars().take(40).collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_tags_and_patch_releases_find_their_release() {
        for release in Release::ALL {
            assert_eq!(release.name().parse(), Ok(release));
            assert_eq!(Release::of(release.tag()), release);
        }
        assert_eq!("v1.6.2".parse(), Ok(Release::V1_6));
        assert_eq!(Release::of("v1.2.0"), Release::V1_3, "the oldest that is known");
        assert_eq!(Release::of("devel"), Release::V1_9);
        for wrong in ["", "1.2", "2.0", "1", "mainly"] {
            let error = wrong.parse::<Release>().unwrap_err().to_string();
            assert!(error.contains("is none of 1.3"), "{error}");
        }
    }
}
