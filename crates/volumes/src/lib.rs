//! Hotplugged volumes of a VM, through an API server: what `virt-steward volume` does, as a library.
//!
//! ```text
//!  Change ──► observe ──► hotplug::plan::next ──► hold, wait, claims: say so, and look again
//!               ▲                 │
//!               │                 ├─► patch (with the locks of its claims) ──┐
//!               └─────────────────┴─► take back, search for the bad volume ──┘
//! ```
//!
//! Decisions are [`hotplug::plan`]'s; here are the requests, the clock, and the locks of claims that move between VMs.
//! Every request is made with the caller's own identity.
//!
//! ```no_run
//! # async fn example(client: kube::Client) -> Result<(), volumes::Error> {
//! use hotplug::plan::Addition;
//! use volumes::{Change, Machine, Outcome, Pace};
//!
//! let machine = Machine::new(client, "default", "web");
//! let change = Change { add: vec![Addition::claim("data"), Addition::claim("logs")], ..Change::default() };
//! match machine.change(change, &Pace::default(), &mut |news| println!("{news}")).await? {
//!     Outcome::Done => println!("attached"),
//!     Outcome::Planned(patch) => println!("{patch}"),
//!     Outcome::TakenBack(volumes) => println!("these cannot be attached: {}", volumes.join(", ")),
//! }
//! # Ok(())
//! # }
//! ```

mod api;
mod apply;
mod locks;
mod observe;
mod status;
mod step;

use std::time::Duration;

use hotplug::plan::{Addition, PlanError};
use http::{HeaderName, HeaderValue};
use serde_json::Value;

use api::Api;
pub use observe::Way;
pub use status::{Report, VolumeReport};
pub use step::Stand;

/// What went wrong, one variant for each thing that was done.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The API server refused, or was not reached.
    #[error("{doing}: {wrong}")]
    Api {
        /// With the object.
        doing: String,
        /// What the server said.
        wrong: String,
        /// The HTTP status; 0 when there was no answer.
        code: u16,
    },
    /// There is no such VM.
    #[error("reading virtual machine {0}: there is none")]
    NoSuchMachine(String),
    /// There is no `KubeVirt` object.
    #[error("finding out how KubeVirt takes volumes: there is no KubeVirt object")]
    NoKubeVirt,
    /// Volumes cannot be hotplugged in this cluster.
    #[error("finding out how KubeVirt takes volumes: volume hotplug is switched off in KubeVirt")]
    SwitchedOff {
        /// The feature gate that switches it on.
        gate: &'static str,
    },
    /// The wish cannot be written.
    #[error("changing the volumes of {machine}: {source}")]
    Plan {
        /// `namespace/name`
        machine: String,
        /// Why.
        source: PlanError,
    },
    /// Somebody else changes the VM all the time.
    #[error("changing the volumes of {0}: somebody else changes the VM all the time")]
    Contended(String),
    /// What was under way did not come to rest, and there was nothing to take back.
    #[error("changing the volumes of {machine}: it did not come to rest within {limit} s: {waits}")]
    NotSettled {
        /// `namespace/name`
        machine: String,
        /// Seconds.
        limit: i64,
        /// What is waited for, in words.
        waits: String,
    },
}

/// What a VM should get and lose.
#[derive(Clone, Debug, Default)]
pub struct Change {
    /// What it should get.
    pub add: Vec<Addition>,
    /// What it should lose, by name; goes first, and is waited for.
    pub remove: Vec<String>,
    /// All other hotplugged volumes are detached first, and attached again together with the new ones: the way for drivers
    /// that publish a volume to one pod of a node only. The guest is without them for as long as it takes.
    pub detach_others: bool,
}

/// How a change is carried out.
#[derive(Clone, Debug)]
pub struct Pace {
    /// Seconds after which additions that are not in the guest are taken back.
    pub limit: i64,
    /// Wait until the guest has what it should.
    pub wait: bool,
    /// Write nothing.
    pub dry_run: bool,
    /// How often it is looked.
    pub interval: Duration,
    /// Tells this caller's locks from those of others; unique in the cluster.
    pub holder: String,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            limit: 300,
            wait: true,
            dry_run: false,
            interval: Duration::from_millis(500),
            holder: format!("volumes-{}", std::process::id()),
        }
    }
}

/// How a change ended.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// All is as wished; written, when nobody waits.
    Done,
    /// What would be written first; null: something is waited for before that.
    Planned(Value),
    /// These volumes could not be attached, and are no longer asked for. All others are attached.
    TakenBack(Vec<String>),
}

/// A VM in a cluster.
#[derive(Clone)]
pub struct Machine {
    api: Api,
    namespace: String,
    name: String,
}

impl std::fmt::Debug for Machine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Machine").field(&self.label()).finish()
    }
}

impl Machine {
    /// The VM of a name, which has to be the name of an object.
    pub fn new(client: kube::Client, namespace: &str, name: &str) -> Self {
        Self { api: Api::new(client), namespace: namespace.to_owned(), name: name.to_owned() }
    }

    /// The same with headers on every request, which say for whom it is made.
    #[must_use]
    pub fn with_headers(mut self, headers: Vec<(HeaderName, HeaderValue)>) -> Self {
        self.api = self.api.with_headers(headers);
        self
    }

    /// `namespace/name`
    pub fn label(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A service works for many callers at once.
    #[test]
    fn what_is_waited_for_can_move_between_threads() {
        fn check<T: Send>(_: T) {}
        let _ = |machine: &Machine, change: Change| {
            check(machine.step(&change, "holder", false));
            check(machine.report());
            check(machine.change(change.clone(), &Pace::default(), &mut |_| ()));
        };
    }
}
