//! Volumes on nodes: what kubelets have published for which pod, the devices behind, and what drivers do to a
//! device in use. Pods are counted as kubelets count them: those that *use* a volume in a container; one that
//! only lists it does not hold it on the node ("Skipping unused volume", `desired_state_of_world_populator.go`).
//!
//! ```text
//!  publish(pod) ──► device ──► guests open it
//!                     │ unpublish(last pod of the node): unstage
//!                     ├ busy-check: refused while it is open; the device lives
//!                     ├ force-teardown, exclusive-publish: the device dies
//!                     └ per-publish-device: each publication has its own, which dies with it
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// What a driver does to a volume in use.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub enum Profile {
    /// Refuses to unstage a volume that is open.
    #[default]
    BusyCheck,
    /// Unstages a volume when its last pod on the node has gone, open or not.
    ForceTeardown,
    /// As before, and refuses to publish a volume to a second pod of the node.
    ExclusivePublish,
    /// Makes a device for each publication, which goes with it.
    PerPublishDevice,
}

impl Profile {
    /// All of them.
    pub const ALL: [Self; 4] =
        [Self::BusyCheck, Self::ForceTeardown, Self::ExclusivePublish, Self::PerPublishDevice];

    /// As a parameter of a `StorageClass`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::BusyCheck => "busy-check",
            Self::ForceTeardown => "force-teardown",
            Self::ExclusivePublish => "exclusive-publish",
            Self::PerPublishDevice => "per-publish-device",
        }
    }

    /// The profile of a name; anything else is the gentle one.
    pub fn of(name: &str) -> Self {
        Self::ALL.into_iter().find(|profile| profile.name() == name).unwrap_or_default()
    }
}

/// A device on a node, counted from 1.
pub type Device = u64;

/// What is known of one claim on one node.
#[derive(Debug, Default)]
struct Staged {
    profile: Profile,
    /// The device of the staged volume, for drivers that have one for all pods.
    device: Device,
    /// Uid of the pod → its device.
    pods: BTreeMap<String, Device>,
    /// Pods that the kubelet has been given and that were refused: it does not unstage the volume for their sake
    /// (`desiredStateOfWorld.VolumeExists`, reconciler).
    waiting: BTreeSet<String>,
}

#[derive(Debug, Default)]
struct State {
    /// (node, claim as `namespace/name`)
    staged: BTreeMap<(String, String), Staged>,
    /// Devices that guests have open, with the number of guests.
    open: BTreeMap<Device, usize>,
    /// Claim → the nodes that it is attached to.
    attached: BTreeMap<String, BTreeSet<String>>,
    last: Device,
}

/// The volumes on all nodes.
#[derive(Debug, Default)]
pub struct Storage(Mutex<State>);

/// Where a pod uses a claim.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    pub node: &'a str,
    /// `namespace/name`
    pub claim: &'a str,
    /// Uid of the pod.
    pub pod: &'a str,
}

impl Place<'_> {
    fn key(&self) -> (String, String) {
        (self.node.to_owned(), self.claim.to_owned())
    }
}

impl Storage {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Publishes a claim to a pod; why not, in the words of a driver.
    pub fn publish(&self, at: Place<'_>, profile: Profile) -> Result<(), String> {
        let mut state = self.state();
        let other = state
            .staged
            .get(&at.key())
            .and_then(|staged| staged.pods.keys().find(|pod| pod.as_str() != at.pod).cloned());
        if profile == Profile::ExclusivePublish
            && let Some(other) = other
        {
            if let Some(staged) = state.staged.get_mut(&at.key()) {
                staged.waiting.insert(at.pod.to_owned());
            }
            return Err(format!(
                "rpc error: code = FailedPrecondition desc = volume is already published to pod {other} on this node"
            ));
        }
        state.last += 1;
        let fresh = state.last;
        let staged = state.staged.entry(at.key()).or_default();
        staged.profile = profile;
        staged.waiting.remove(at.pod);
        if staged.device == 0 {
            staged.device = fresh;
        }
        let device = if profile == Profile::PerPublishDevice { fresh } else { staged.device };
        staged.pods.entry(at.pod.to_owned()).or_insert(device);
        Ok(())
    }

    /// The device that a pod has of a claim.
    pub fn device(&self, at: Place<'_>) -> Option<Device> {
        self.state().staged.get(&at.key()).and_then(|staged| staged.pods.get(at.pod).copied())
    }

    /// Takes a claim from a pod; the devices that die of it.
    pub fn unpublish(&self, at: Place<'_>) -> Vec<Device> {
        let mut state = self.state();
        let Some(staged) = state.staged.get_mut(&at.key()) else { return Vec::new() };
        let waited = staged.waiting.remove(at.pod);
        let removed = staged.pods.remove(at.pod);
        if removed.is_none() && !waited {
            return Vec::new();
        }
        let device = removed.unwrap_or_default();
        let last = staged.pods.is_empty() && staged.waiting.is_empty();
        let (profile, shared) = (staged.profile, staged.device);
        if profile == Profile::PerPublishDevice {
            if last {
                state.staged.remove(&at.key());
            }
            return vec![device];
        }
        if !last {
            return Vec::new();
        }
        let busy = profile == Profile::BusyCheck && state.open.contains_key(&shared);
        if busy {
            // The kubelet tries again until it is closed.
            return Vec::new();
        }
        state.staged.remove(&at.key());
        vec![shared]
    }

    /// A claim is attached to a node, or no longer.
    pub fn attach(&self, node: &str, claim: &str, attached: bool) {
        let mut state = self.state();
        let nodes = state.attached.entry(claim.to_owned()).or_default();
        if attached {
            nodes.insert(node.to_owned());
        } else {
            nodes.remove(node);
        }
    }

    /// The nodes that a claim is attached to.
    pub fn attached(&self, claim: &str) -> BTreeSet<String> {
        self.state().attached.get(claim).cloned().unwrap_or_default()
    }

    /// Whether a claim is on a node: published, or staged because a guest has it open.
    pub fn is_on(&self, node: &str, claim: &str) -> bool {
        let state = self.state();
        state
            .staged
            .get(&(node.to_owned(), claim.to_owned()))
            .is_some_and(|staged| !staged.pods.is_empty() || state.open.contains_key(&staged.device))
    }

    /// Whether anything is published to a pod on a node, by claims.
    pub fn claims_of(&self, node: &str, pod: &str) -> Vec<String> {
        let state = self.state();
        let has = |((on, _), staged): &(&(String, String), &Staged)| {
            on == node && (staged.pods.contains_key(pod) || staged.waiting.contains(pod))
        };
        state.staged.iter().filter(has).map(|((_, claim), _)| claim.clone()).collect()
    }

    /// Whether there is something behind a device.
    pub fn is_alive(&self, device: Device) -> bool {
        let state = self.state();
        state
            .staged
            .values()
            .any(|staged| staged.pods.values().any(|one| *one == device) || staged.device == device)
    }

    /// A guest opens a device.
    pub fn open(&self, device: Device) {
        *self.state().open.entry(device).or_default() += 1;
    }

    /// A guest closes a device.
    pub fn close(&self, device: Device) {
        let mut state = self.state();
        if let Some(count) = state.open.get_mut(&device) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                state.open.remove(&device);
                // What was refused while it was busy is tried again, and succeeds.
                state.staged.retain(|_, staged| !(staged.pods.is_empty() && staged.device == device));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLAIM: &str = "ns/c";

    fn at(pod: &str) -> Place<'_> {
        Place { node: "n", claim: CLAIM, pod }
    }

    #[test]
    fn what_the_last_pod_leaves_behind_is_the_drivers_choice() {
        for (profile, dies_with_first, dies_with_last) in [
            (Profile::BusyCheck, false, false),
            (Profile::ForceTeardown, false, true),
            (Profile::PerPublishDevice, true, true),
        ] {
            let storage = Storage::default();
            storage.publish(at("old"), profile).unwrap();
            let device = storage.device(at("old")).unwrap();
            storage.open(device);
            storage.publish(at("new"), profile).unwrap();
            assert_eq!(storage.unpublish(at("old")).contains(&device), dies_with_first, "{profile:?}");
            let gone = storage.unpublish(at("new"));
            assert_eq!(!gone.is_empty(), dies_with_last, "{profile:?}");
        }
    }

    #[test]
    fn a_device_that_nobody_has_open_goes_with_every_driver() {
        for profile in Profile::ALL {
            let storage = Storage::default();
            storage.publish(at("pod"), profile).unwrap();
            assert_eq!(storage.claims_of("n", "pod"), [CLAIM]);
            assert_eq!(storage.unpublish(at("pod")).len(), 1, "{profile:?}");
            assert_eq!((storage.device(at("pod")), storage.is_on("n", CLAIM)), (None, false));
        }
    }

    #[test]
    fn an_exclusive_driver_refuses_the_second_pod_of_a_node() {
        let storage = Storage::default();
        storage.publish(at("old"), Profile::ExclusivePublish).unwrap();
        storage.publish(at("old"), Profile::ExclusivePublish).unwrap();
        assert!(storage.publish(at("new"), Profile::ExclusivePublish).unwrap_err().contains("pod old"));
        let device = storage.device(at("old"));
        assert_eq!(
            storage.unpublish(at("old")),
            Vec::<Device>::new(),
            "the kubelet has a pod that waits for it"
        );
        storage.publish(at("new"), Profile::ExclusivePublish).unwrap();
        assert_eq!(storage.device(at("new")), device);
        assert_eq!(storage.unpublish(at("new")).len(), 1);
    }

    #[test]
    fn a_busy_volume_stays_until_it_is_closed() {
        let storage = Storage::default();
        storage.publish(at("a"), Profile::BusyCheck).unwrap();
        let device = storage.device(at("a")).unwrap();
        storage.open(device);
        assert_eq!(storage.unpublish(at("a")), Vec::<Device>::new());
        assert!(storage.is_on("n", CLAIM));
        storage.publish(at("b"), Profile::BusyCheck).unwrap();
        assert_eq!(storage.device(at("b")), Some(device), "the same device as before");
        assert_eq!(storage.unpublish(at("b")), Vec::<Device>::new());
        storage.close(device);
        assert!(!storage.is_on("n", CLAIM));
    }
}
