//! What has to survive a restart, kept in annotations of the VMI: the wish that was held, and how
//! far a resize has come. What can be seen is not written down.

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::size::{Asked, Compute, Size};

/// Written by the webhook: what virt-controller wanted to write and was held from.
pub const WISH: &str = "vm-feature-manager.io/resize-wish";
/// Written by the reconciler: the [`Ledger`].
pub const LEDGER: &str = "vm-feature-manager.io/resize-state";
/// Written by the agent: the [`Report`].
pub const REPORT: &str = "vm-feature-manager.io/resize-guest";
/// Written by the reconciler: the policy in force, so that the webhook needs nothing but the VMI.
pub const POLICY: &str = "vm-feature-manager.io/resize-policy";

/// The longest message that is kept, characters.
const MESSAGE: usize = 400;

/// What was held.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, Hash, PartialEq, Serialize)]
pub struct Wish {
    /// Sockets that virt-controller wanted to set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sockets: Option<u32>,
    /// Guest memory that it wanted to set, bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest: Option<u64>,
}

/// One end of a resize: a size, and what belongs to it.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, Hash, PartialEq, Serialize)]
pub struct End {
    /// Of the guest.
    pub size: Size,
    /// `spec.domain.resources` of the VMI.
    #[serde(default)]
    pub asked: Asked,
    /// Resources of the launcher's container.
    pub pod: Compute,
}

/// How far a resize has come; the module [`crate::machine`] draws them.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, PartialEq, Serialize)]
pub enum Phase {
    /// The pod is being given what both ends need. The guest has not been touched in this phase.
    Preparing,
    /// The guest is being changed.
    Plugging,
    /// The guest has it; virt-controller's next patch may pass.
    Declaring,
    /// The VMI says it; the pod gives up what is no longer needed.
    Trimming,
    /// Everything goes back to the old end.
    Returning,
    /// Given over to KubeVirt: its patches pass unchanged.
    Open,
    /// Given up; patches stay held until the owner asks for something else.
    Stopped,
}

impl Phase {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Preparing,
        Self::Plugging,
        Self::Declaring,
        Self::Trimming,
        Self::Returning,
        Self::Open,
        Self::Stopped,
    ];

    /// Its name, for metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Preparing => "preparing",
            Self::Plugging => "plugging",
            Self::Declaring => "declaring",
            Self::Trimming => "trimming",
            Self::Returning => "returning",
            Self::Open => "open",
            Self::Stopped => "stopped",
        }
    }

    /// Somebody works on it: neither given over nor given up.
    pub const fn is_under_way(self) -> bool {
        !matches!(self, Self::Open | Self::Stopped)
    }

    fn changes_the_guest(self) -> bool {
        // While it is being declared, too: a guest reset takes virtio-mem away for a while.
        matches!(self, Self::Plugging | Self::Declaring | Self::Returning)
    }
}

/// Where a return leads to.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, Hash, PartialEq, Serialize)]
pub enum Then {
    /// Nothing is wanted any more.
    #[default]
    Forget,
    /// KubeVirt does it: [`Phase::Open`].
    Open,
    /// [`Phase::Stopped`]
    Stop,
    /// Stopped, to be tried again at the time in [`Ledger::retry_at`].
    Retry,
}

/// Why a resize did not go on.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, PartialEq, Serialize)]
pub enum Cause {
    /// kubelet keeps the resize waiting for room.
    Deferred,
    /// kubelet cannot ever do it on this node.
    Infeasible,
    /// kubelet tried and failed, or does not answer in time.
    Error,
    /// The API server refused: quota, LimitRange, node capacity.
    Refused,
    /// The agent cannot reach the guest.
    Agent,
    /// The guest does not take, or give back, what it was told to.
    Guest,
    /// The owner took the wish back.
    Withdrawn,
    /// In place is not possible for this VM.
    Ineligible,
    /// The owner switched it off.
    Disabled,
    /// The owner took more vCPUs back after the guest had them; vCPUs are never unplugged.
    Stranded,
}

impl Cause {
    /// Its name, for metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Deferred => "deferred",
            Self::Infeasible => "infeasible",
            Self::Error => "error",
            Self::Refused => "refused",
            Self::Agent => "agent",
            Self::Guest => "guest",
            Self::Withdrawn => "withdrawn",
            Self::Ineligible => "ineligible",
            Self::Disabled => "disabled",
            Self::Stranded => "stranded",
        }
    }

    /// The owner wanted it so.
    pub const fn is_wanted(self) -> bool {
        matches!(self, Self::Withdrawn | Self::Disabled)
    }
}

/// A cause with what was said about it.
#[derive(Clone, Debug, Deserialize, Eq, Hash, PartialEq, Serialize)]
pub struct Reason {
    /// What kind of thing happened.
    pub cause: Cause,
    /// The words of whoever said no.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
}

impl Reason {
    /// A reason with a message, cut to a length that fits an annotation.
    pub fn new(cause: Cause, message: &str) -> Self {
        Self { cause, message: message.chars().take(MESSAGE).collect() }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.cause)?;
        if self.message.is_empty() { Ok(()) } else { write!(f, ": {}", self.message) }
    }
}

/// The API server's refusal of a pod resize.
#[derive(Clone, Debug, Deserialize, Eq, Hash, PartialEq, Serialize)]
pub struct Refusal {
    /// When, seconds since 1970.
    pub at: i64,
    /// Its words.
    pub message: String,
}

/// The state of one resize.
#[derive(Clone, Debug, Deserialize, Eq, Hash, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Ledger {
    /// How far it is.
    pub phase: Phase,
    /// The uid of the launcher pod that all of this is about.
    pub pod: String,
    /// Where it started.
    pub from: End,
    /// Where it goes.
    pub to: End,
    /// When the phase began, seconds since 1970.
    pub since: i64,
    /// When the resize began, seconds since 1970; 0 when an older version began it.
    #[serde(default)]
    pub begun: i64,
    /// The guest may have been changed: it has to be asked before anything goes back.
    #[serde(default)]
    pub touched: bool,
    /// What the agent is to bring the guest to. vCPUs are only ever added.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task: Option<Size>,
    /// Why it goes back, is open, or has stopped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<Reason>,
    /// Where [`Phase::Returning`] leads to.
    #[serde(default)]
    pub then: Then,
    /// When a stopped resize is tried again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_at: Option<i64>,
    /// The last refusal of the pod resize that this phase needs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refusal: Option<Refusal>,
}

impl Ledger {
    /// This ledger in another phase, which begins now.
    #[must_use]
    pub fn at(&self, phase: Phase, now: i64) -> Self {
        Self { phase, since: now, refusal: None, ..self.clone() }
    }

    /// This ledger with the API server's refusal in it.
    #[must_use]
    pub fn refused(&self, message: &str, now: i64) -> Self {
        let message = message.chars().take(MESSAGE).collect();
        Self { refusal: Some(Refusal { at: now, message }), ..self.clone() }
    }

    /// What the agent may do now: its task, while a phase changes the guest.
    pub fn task_now(&self) -> Option<Size> {
        self.task.filter(|_| self.phase.changes_the_guest())
    }

    /// Whether the agent is to look at the guest at all, with a task or without one.
    pub fn asks_for_a_report(&self) -> bool {
        self.touched && (self.phase.changes_the_guest() || self.phase == Phase::Preparing)
    }

    /// The end that the guest is known to have, so that a patch to it may pass with the status.
    pub fn declared(&self) -> Option<&End> {
        match self.phase {
            Phase::Declaring => Some(&self.to),
            Phase::Stopped if self.is_stranded() => Some(&self.from),
            _ => None,
        }
    }

    /// The owner took vCPUs back that the guest has and keeps.
    pub fn is_stranded(&self) -> bool {
        self.reason.as_ref().is_some_and(|reason| reason.cause == Cause::Stranded)
    }
}

/// What the agent found in a launcher after it had carried out a task.
#[derive(Clone, Debug, Deserialize, Eq, Hash, PartialEq, Serialize)]
pub struct Report {
    /// The uid of the pod.
    pub pod: String,
    /// The task that was carried out last; nothing when it only looked. The agent does one thing at
    /// a time, so an older task cannot come after it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task: Option<Size>,
    /// vCPUs that are enabled.
    pub vcpus: u32,
    /// Boot memory and what virtio-mem was asked for, bytes.
    pub requested: u64,
    /// Boot memory and what virtio-mem gives, bytes.
    pub current: u64,
    /// What the launcher said, when it was not yes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trouble: Option<String>,
}

/// Reads an annotation of ours. `Ok(None)`: it is not there.
///
/// # Errors
/// Somebody else wrote it, or a newer version of ours: nothing is done about this VMI then.
pub fn read<T: serde::de::DeserializeOwned>(object: &Value, annotation: &str) -> Result<Option<T>, Foreign> {
    let text = object
        .get("metadata")
        .and_then(|metadata| metadata.get("annotations")?.get(annotation))
        .and_then(Value::as_str);
    let Some(text) = text else { return Ok(None) };
    serde_json::from_str(text)
        .map(Some)
        .map_err(|error| Foreign { annotation: annotation.to_owned(), why: error.to_string() })
}

/// An annotation of ours that cannot be read.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Foreign {
    /// Its name.
    pub annotation: String,
    /// What is wrong with it.
    pub why: String,
}

impl fmt::Display for Foreign {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { annotation, why } = self;
        write!(f, "the annotation {annotation} cannot be read ({why}): remove it to start anew")
    }
}

impl std::error::Error for Foreign {}
