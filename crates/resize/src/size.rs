//! How large a guest is, and what its launcher's container is given for it.

use serde::{Deserialize, Serialize};

/// What a resize changes of a guest.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
pub struct Size {
    /// `spec.domain.cpu.sockets`
    pub sockets: u32,
    /// `spec.domain.memory.guest`, bytes.
    pub guest: u64,
}

/// Request and limit of one resource.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, Hash, PartialEq, Serialize)]
pub struct Amount {
    /// What the scheduler counts; 0 when nothing is requested.
    pub request: u64,
    /// What the cgroup enforces; nothing when there is no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u64>,
}

impl Amount {
    /// The larger of both, side by side.
    fn max(self, other: Self) -> Self {
        // A limit can be neither added nor taken away, so both sides have one or none.
        Self { request: self.request.max(other.request), limit: self.limit.max(other.limit) }
    }

    fn covers(self, other: Self) -> bool {
        self.max(other) == self
    }
}

/// Resources of the container `compute`.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, Hash, PartialEq, Serialize)]
pub struct Compute {
    /// Thousandths of a CPU.
    pub cpu: Amount,
    /// Bytes.
    pub memory: Amount,
}

impl Compute {
    /// The larger of two in every part: what a pod needs while a guest changes between them.
    #[must_use]
    pub fn max(self, other: Self) -> Self {
        Self { cpu: self.cpu.max(other.cpu), memory: self.memory.max(other.memory) }
    }

    /// Whether it is at least as large as another in every part.
    pub fn covers(self, other: Self) -> bool {
        self.cpu.covers(other.cpu) && self.memory.covers(other.memory)
    }
}

/// What a VMI asks of its pod in `spec.domain.resources`.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, Hash, PartialEq, Serialize)]
pub struct Asked {
    /// `requests.cpu`, thousandths.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_request: Option<u64>,
    /// `limits.cpu`, thousandths.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_limit: Option<u64>,
    /// `requests.memory`, bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_request: Option<u64>,
    /// `limits.memory`, bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_limit: Option<u64>,
}
