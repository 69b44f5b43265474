//! The processes inside launcher pods: one guest each. virt-handler and kubelet of a node meet
//! here, as they meet on a real node over the launcher's socket and the container runtime.
//!
//! ```text
//!  (none) ──define──► Running ──power_off / crash / shut_down──► Off ──acknowledge──► Gone
//!                        └──────hand_over (to another pod)──────► Moved ──acknowledge──► Gone
//! ```
//!
//! A launcher waits with its exit until virt-handler has seen the end of the domain
//! (`virt-launcher`'s final shutdown notification), so that the VMI learns how its guest ended.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock};

use super::guest::Guest;

/// The domain inside a launcher pod.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Domain {
    Running,
    /// Ended, and virt-handler has not written it down yet.
    Off {
        crashed: bool,
    },
    /// It runs in another pod now, and the migration is not completed yet.
    Moved,
    /// Ended and written down: the launcher exits.
    Gone {
        crashed: bool,
    },
}

type Listener = Box<dyn Fn(&Launcher) + Send + Sync>;

/// Whose launcher it is.
#[derive(Clone, Debug)]
pub struct Launcher {
    /// Key of the pod.
    pub pod: String,
    /// Key of the VMI.
    pub vmi: String,
    pub domain: Domain,
    pub guest: Guest,
}

/// All launchers of all simulated nodes, by pod uid.
#[derive(Default)]
pub struct Launchers {
    running: Mutex<BTreeMap<String, Launcher>>,
    listeners: RwLock<Vec<Listener>>,
}

impl Launchers {
    fn running(&self) -> MutexGuard<'_, BTreeMap<String, Launcher>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Calls a function whenever a domain changes.
    pub fn on_change(&self, listener: impl Fn(&Launcher) + Send + Sync + 'static) {
        self.listeners.write().unwrap_or_else(PoisonError::into_inner).push(Box::new(listener));
    }

    pub fn domain(&self, pod_uid: &str) -> Option<Domain> {
        self.running().get(pod_uid).map(|launcher| launcher.domain)
    }

    /// Defines and starts a domain, or takes over one that runs already.
    pub fn define(&self, pod_uid: &str, pod: &str, vmi: &str, guest: impl FnOnce() -> Guest) {
        let mut running = self.running();
        running.entry(pod_uid.to_owned()).or_insert_with(|| Launcher {
            pod: pod.to_owned(),
            vmi: vmi.to_owned(),
            domain: Domain::Running,
            guest: guest(),
        });
    }

    /// Looks at, or works with, the guest of a running domain; `None`: there is none.
    pub fn guest<R>(&self, pod_uid: &str, act: impl FnOnce(&mut Guest) -> R) -> Option<R> {
        let mut running = self.running();
        let launcher = running.get_mut(pod_uid).filter(|launcher| launcher.domain == Domain::Running)?;
        Some(act(&mut launcher.guest))
    }

    /// The same, when virt-handler has to hear of it.
    pub fn change_guest<R>(&self, pod_uid: &str, act: impl FnOnce(&mut Guest) -> R) -> Option<R> {
        let result = self.guest(pod_uid, act)?;
        let changed = self.running().get(pod_uid).cloned();
        if let Some(launcher) = changed {
            self.tell(&launcher);
        }
        Some(result)
    }

    /// The guest ends: by itself, because it was asked to, or by force.
    pub fn end(&self, pod_uid: &str, crashed: bool) {
        self.change(pod_uid, |domain| match domain {
            Domain::Running => Domain::Off { crashed },
            ended => ended,
        });
    }

    /// virt-handler has written down how the domain ended.
    pub fn acknowledge(&self, pod_uid: &str) {
        self.change(pod_uid, |domain| match domain {
            Domain::Off { crashed } => Domain::Gone { crashed },
            Domain::Moved => Domain::Gone { crashed: false },
            other => other,
        });
    }

    /// Moves a running guest from one pod to another. False: none runs in the first pod.
    pub fn hand_over(&self, from: &str, to: &str, to_pod: &str) -> bool {
        let (left, arrived) = {
            let mut running = self.running();
            let Some(source) = running.get_mut(from).filter(|launcher| launcher.domain == Domain::Running)
            else {
                return false;
            };
            source.domain = Domain::Moved;
            let left = source.clone();
            let arrived = Launcher { pod: to_pod.to_owned(), domain: Domain::Running, ..left.clone() };
            running.insert(to.to_owned(), arrived.clone());
            (left, arrived)
        };
        self.tell(&left);
        self.tell(&arrived);
        true
    }

    /// A launcher that waited for a guest that does not come exits.
    pub fn dismiss(&self, pod_uid: &str, pod: &str, vmi: &str) {
        let dismissed = Launcher {
            pod: pod.to_owned(),
            vmi: vmi.to_owned(),
            domain: Domain::Gone { crashed: false },
            guest: Guest::default(),
        };
        if self.running().contains_key(pod_uid) {
            return;
        }
        self.running().insert(pod_uid.to_owned(), dismissed.clone());
        self.tell(&dismissed);
    }

    /// The pod is gone.
    pub fn forget(&self, pod_uid: &str) {
        self.running().remove(pod_uid);
    }

    /// The key of the VMI whose guest runs in a pod.
    pub fn vmi_of(&self, pod_uid: &str) -> Option<String> {
        let running = self.running();
        let launcher = running.get(pod_uid).filter(|launcher| launcher.domain == Domain::Running)?;
        Some(launcher.vmi.clone())
    }

    /// The uid of the pod whose domain serves a VMI.
    pub fn of_vmi(&self, vmi: &str) -> Option<String> {
        self.running()
            .iter()
            .find(|(_, launcher)| launcher.vmi == vmi && launcher.domain == Domain::Running)
            .map(|(uid, _)| uid.clone())
    }

    fn change(&self, pod_uid: &str, next: impl Fn(Domain) -> Domain) {
        let changed = {
            let mut running = self.running();
            let Some(launcher) = running.get_mut(pod_uid) else { return };
            let domain = next(launcher.domain);
            if domain == launcher.domain {
                return;
            }
            launcher.domain = domain;
            launcher.clone()
        };
        self.tell(&changed);
    }

    fn tell(&self, launcher: &Launcher) {
        for listener in self.listeners.read().unwrap_or_else(PoisonError::into_inner).iter() {
            listener(launcher);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn a_guest_moves_with_all_that_it_is() {
        let launchers = Launchers::default();
        launchers.define("a", "ns/a", "ns/vm", || {
            Guest::of(&apimachinery::tree::json!({"spec": {"startStrategy": "Paused"}}))
        });
        assert!(!launchers.hand_over("b", "a", "ns/a"), "nothing runs there");
        assert!(launchers.hand_over("a", "b", "ns/b"));
        assert_eq!(
            (launchers.domain("a"), launchers.domain("b")),
            (Some(Domain::Moved), Some(Domain::Running))
        );
        assert_eq!(launchers.guest("b", |guest| guest.paused), Some(true));
        assert_eq!(launchers.of_vmi("ns/vm").as_deref(), Some("b"));
        launchers.acknowledge("a");
        assert_eq!(launchers.domain("a"), Some(Domain::Gone { crashed: false }));
        launchers.dismiss("c", "ns/c", "ns/vm");
        assert_eq!(launchers.domain("c"), Some(Domain::Gone { crashed: false }));
    }

    #[test]
    fn a_domain_ends_once_and_its_end_is_acknowledged_once() {
        let launchers = Launchers::default();
        let heard = Arc::new(AtomicUsize::new(0));
        let count = heard.clone();
        launchers.on_change(move |_| {
            count.fetch_add(1, Ordering::SeqCst);
        });
        launchers.define("uid", "ns/pod", "ns/vm", Guest::default);
        launchers.acknowledge("uid");
        assert_eq!(launchers.domain("uid"), Some(Domain::Running), "nothing to acknowledge");
        launchers.end("uid", true);
        launchers.end("uid", false);
        assert_eq!(launchers.domain("uid"), Some(Domain::Off { crashed: true }), "the first end counts");
        assert_eq!(launchers.of_vmi("ns/vm"), None);
        launchers.acknowledge("uid");
        assert_eq!(launchers.domain("uid"), Some(Domain::Gone { crashed: true }));
        assert_eq!(heard.load(Ordering::SeqCst), 2);
    }
}
