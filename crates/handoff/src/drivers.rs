//! Storage drivers, by what they do to a volume in use.

use std::fmt;
use std::str::FromStr;

/// A class of CSI drivers.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Driver {
    /// Refuses to unstage a volume that is open.
    BusyCheck,
    /// Unstages a volume when its last pod on the node has gone, open or not.
    ForceTeardown,
    /// As before, and refuses to publish a volume to a second pod of the node (#10275, #18862).
    ExclusivePublish,
    /// Makes a device for each publication, which goes with it (#9708).
    PerPublishDevice,
}

impl Driver {
    /// All of them.
    pub const ALL: [Self; 4] =
        [Self::BusyCheck, Self::ForceTeardown, Self::ExclusivePublish, Self::PerPublishDevice];

    /// Its name on a command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::BusyCheck => "busy-check",
            Self::ForceTeardown => "force-teardown",
            Self::ExclusivePublish => "exclusive-publish",
            Self::PerPublishDevice => "per-publish-device",
        }
    }
}

impl fmt::Display for Driver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Driver {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let names = Self::ALL.map(Self::name).join(", ");
        Self::ALL
            .into_iter()
            .find(|driver| driver.name() == text)
            .ok_or_else(|| format!("\"{}\" is none of {names}", text.chars().take(40).collect::<String>()))
    }
}
