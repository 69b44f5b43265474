//! What an administrator says about a `StorageClass`, and the limits that hold for all.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::Seconds;
use crate::annotations::{EXCLUSIVE_PUBLISH, PIN, STRICT};
use crate::view::says_true;

/// The opt-ins of one `StorageClass`.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub struct Class {
    /// [`STRICT`]
    pub strict: bool,
    /// [`EXCLUSIVE_PUBLISH`]
    pub exclusive_publish: bool,
    /// [`PIN`]
    pub pin: bool,
}

impl Class {
    /// Reads a `StorageClass`; anything that is not one has no opt-ins.
    pub fn read(class: &Value) -> Self {
        let says = |key: &str| says_true(class, "annotations", key);
        Self { strict: says(STRICT), exclusive_publish: says(EXCLUSIVE_PUBLISH), pin: says(PIN) }
    }

    /// Whether nothing was opted for.
    pub fn is_plain(self) -> bool {
        self == Self::default()
    }
}

/// The classes of claims, by name of the claim; a claim that is not in it has no opt-ins.
pub type Classes<'a> = BTreeMap<&'a str, Class>;

/// Times after which something is let through although it is not as it should be, in seconds.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Limits {
    /// An attachment pod that is Pending for longer may go: while one is Pending, virt-controller
    /// creates no other (volume-hotplug.go:214, v1.9).
    pub pending: Seconds,
    /// With [`EXCLUSIVE_PUBLISH`]: how long a replacement that cannot be mounted is waited for.
    pub exclusive: Seconds,
    /// After a guest should have shut down, until its volumes may be taken from it.
    pub slack: Seconds,
    /// How long a grant counts. It has to outlive a DELETE request, which an API server ends after
    /// 60 s (`--request-timeout`).
    pub grant: Seconds,
    /// How long the gate holds a change of volumes back.
    pub gate: Seconds,
    /// How long the gate keeps a volume from coming back after it has left: virt-handler up to v1.5
    /// may otherwise take what it has not unmounted yet for what it should mount (#16159, #17139).
    pub comeback: Seconds,
}

impl Default for Limits {
    fn default() -> Self {
        Self { pending: 120, exclusive: 15, slack: 60, grant: 90, gate: 120, comeback: 2 }
    }
}
