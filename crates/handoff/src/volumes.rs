//! Sets of the volumes of one VM.

use std::fmt;

/// Volumes that one VM may have here.
pub const MOST_VOLUMES: usize = 8;

/// A volume, counted from 0.
pub type Volume = u8;

/// A set of volumes.
#[derive(Clone, Copy, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Volumes(u8);

impl Volumes {
    /// No volume.
    pub const NONE: Self = Self(0);

    /// These volumes.
    pub fn of(volumes: &[Volume]) -> Self {
        volumes.iter().fold(Self::NONE, |set, volume| set.with(*volume))
    }

    /// The first `count` volumes.
    pub fn first(count: usize) -> Self {
        (0..count.min(MOST_VOLUMES)).fold(Self::NONE, |set, at| set.with(u8::try_from(at).unwrap_or(0)))
    }

    /// Whether it is one of them.
    pub const fn has(self, volume: Volume) -> bool {
        self.0 >> volume & 1 == 1
    }

    /// With one more.
    #[must_use]
    pub const fn with(self, volume: Volume) -> Self {
        Self(self.0 | 1 << volume)
    }

    /// Without one.
    #[must_use]
    pub const fn without(self, volume: Volume) -> Self {
        Self(self.0 & !(1 << volume))
    }

    /// Those of both.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// Those of either.
    #[must_use]
    pub const fn or(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Those that are not in the other.
    #[must_use]
    pub const fn minus(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// Whether there is none.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// How many.
    pub const fn len(self) -> usize {
        self.0.count_ones() as usize
    }

    /// Whether all of these are in the other.
    pub const fn within(self, other: Self) -> bool {
        self.0 & !other.0 == 0
    }

    /// A bit for each.
    pub(crate) const fn bits(self) -> u8 {
        self.0
    }

    /// One after the other.
    pub fn iter(self) -> impl Iterator<Item = Volume> {
        (0..8).filter(move |volume| self.has(*volume))
    }
}

impl fmt::Debug for Volumes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}
