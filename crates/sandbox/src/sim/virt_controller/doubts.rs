//! What client-go's expectations are for: a pod that was asked for and that the caches do not show may be there all
//! the same, because no answer came, or because another virt-controller asked before it died.

use std::collections::HashSet;
use std::sync::atomic::Ordering;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use apimachinery::tree::Value;
use tokio::time::Instant;

use super::Caches;
use crate::sim::client::ClientError;
use crate::sim::identity::Identity;
use crate::sim::json::{self, list};
use crate::sim::resource::PODS;
use crate::sim::write::Writer;

/// How long one that takes over looks twice before it makes a pod.
const CAREFUL: Duration = Duration::from_secs(10);

/// The owners of pods that may be there.
pub struct Doubts {
    about: Mutex<HashSet<String>>,
    /// Until then everything is doubtful: the caches may not show what another one wrote last before it died.
    careful_until: Instant,
}

impl Doubts {
    /// Of one that has just started.
    pub fn new(caches: &Caches) -> Self {
        let careful = if caches.restarts.load(Ordering::SeqCst) == 0 { Duration::ZERO } else { CAREFUL };
        Self { about: Mutex::default(), careful_until: Instant::now() + careful }
    }

    fn about(&self) -> MutexGuard<'_, HashSet<String>> {
        self.about.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// No answer came to a pod's creation for the owner with this uid.
    pub fn add(&self, uid: &str) {
        self.about().insert(uid.to_owned());
    }

    /// The launcher pod with a label and for the owner with this uid, straight from the API server, if there is a
    /// doubt about it. The pods' cache knows of it afterwards.
    pub async fn settle(
        &self,
        uid: &str,
        (namespace, label, value): (&str, &str, &str),
        (writer, caches, who): (&Writer, &Caches, &Identity),
        is_it: impl Fn(&Value) -> bool,
    ) -> Result<Option<Value>, ClientError> {
        if !self.about().remove(uid) && Instant::now() >= self.careful_until {
            return Ok(None);
        }
        let pods = PODS.path(namespace, "", "");
        let path = format!("{pods}?labelSelector={}%3D{value}", label.replace('/', "%2F"));
        let found = match writer.client.get(Some(who), &path).await {
            Ok(found) => found,
            Err(error) => {
                self.add(uid);
                return Err(error);
            }
        };
        let launcher = |pod: &&Value| json::label(pod, "kubevirt.io") == "virt-launcher" && is_it(pod);
        let Some(mut pod) = list(&found, "/items").iter().find(launcher).cloned() else { return Ok(None) };
        pod["apiVersion"] = "v1".into();
        pod["kind"] = "Pod".into();
        caches.pods.observe(pod.clone());
        Ok(Some(pod))
    }
}
