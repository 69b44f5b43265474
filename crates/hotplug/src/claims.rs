//! Claims that move between VMs (rule O5): detach everywhere first, then attach, and take locks
//! in one order, so that no VM waits for a claim while it holds one that another waits for.

use std::collections::BTreeSet;

use serde::Serialize;

use crate::view::{AttachmentPod, Instance};

/// One claim on its way from a VM to another.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd, Serialize)]
pub struct Move {
    /// The claim.
    pub claim: String,
    /// The VM that has it.
    pub from: String,
    /// The VM that gets it.
    pub to: String,
}

/// The locks of some moves, in the order in which they are taken: each claim once, by name.
pub fn lock_order(moves: &[Move]) -> Vec<&str> {
    let claims: BTreeSet<&str> = moves.iter().map(|one| one.claim.as_str()).collect();
    claims.into_iter().collect()
}

/// The name of the Lease that locks a claim. Claims may be as long as any object's name, so the
/// prefix is short and a long name is cut and told apart by a checksum.
pub fn lock_name(claim: &str) -> String {
    const PREFIX: &str = "hotplug-claim-";
    const MOST: usize = 253;
    if PREFIX.len() + claim.len() <= MOST {
        return format!("{PREFIX}{claim}");
    }
    // FNV-1a: not for secrets, only to keep two long names apart.
    let sum = claim
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |sum, byte| (sum ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    let kept: String = claim.chars().take(MOST - PREFIX.len() - 17).collect();
    format!("{PREFIX}{kept}-{sum:016x}")
}

/// Who still has a claim.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", tag = "holder")]
pub enum Holder {
    /// A VMI has it in its spec or still reports on it.
    Instance {
        /// Its name.
        name: String,
    },
    /// An attachment pod lists it.
    Pod {
        /// Its name.
        name: String,
    },
    /// A node has it attached.
    Node {
        /// Its name.
        name: String,
    },
}

impl Holder {
    /// In words, for people.
    pub fn words(&self) -> String {
        match self {
            Self::Instance { name } => format!("VM {name}"),
            Self::Pod { name } => format!("attachment pod {name}"),
            Self::Node { name } => format!("node {name}"),
        }
    }
}

/// Who keeps a claim from being attached to the VMI `to`: other VMIs, their attachment pods, and
/// nodes other than its own that have it attached (`attached`, from `VolumeAttachment`s). A pod that
/// is gone from the API may still be published on its node for a moment, since attachment pods
/// are deleted without grace; the `VolumeAttachment` tells.
pub fn holders(
    claim: &str,
    to: &Instance<'_>,
    others: &[Instance<'_>],
    pods: &[AttachmentPod<'_>],
    attached: &[&str],
) -> Vec<Holder> {
    let instances = others
        .iter()
        .filter(|other| other.uid != to.uid && !other.is_final)
        .filter(|other| other.volumes.iter().any(|volume| volume.claim == claim))
        .map(|other| Holder::Instance { name: other.name.into() });
    let pods = pods
        .iter()
        .filter(|pod| !pod.phase.is_final() && pod.usage(claim).is_some())
        .map(|pod| Holder::Pod { name: pod.name.into() });
    let nodes =
        attached.iter().filter(|node| **node != to.node).map(|node| Holder::Node { name: (*node).into() });
    instances.chain(pods).chain(nodes).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(claim: &str, from: &str, to: &str) -> Move {
        Move { claim: claim.into(), from: from.into(), to: to.into() }
    }

    #[test]
    fn locks_are_taken_in_one_order_whoever_asks() {
        let exchange = [one("q", "b", "a"), one("p", "a", "b")];
        let reverse = [one("p", "a", "b"), one("q", "b", "a")];
        assert_eq!(lock_order(&exchange), ["p", "q"]);
        assert_eq!(lock_order(&exchange), lock_order(&reverse));
        assert_eq!(lock_order(&[one("p", "a", "b"), one("p", "b", "c")]), ["p"]);
    }

    #[test]
    fn lock_names_fit_and_differ() {
        assert_eq!(lock_name("data"), "hotplug-claim-data");
        let (one, other) = (format!("{}a", "x".repeat(252)), format!("{}b", "x".repeat(252)));
        assert_eq!(lock_name(&one).len(), 253);
        assert_ne!(lock_name(&one), lock_name(&other));
    }
}
