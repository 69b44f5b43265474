//! What is done without being asked: a nudge when a denial has ended by time alone, the age of the
//! oldest denial for the alert, and the pods that KubeVirt leaves behind.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use hotplug::annotations::NUDGE;
use hotplug::heal::{self, Blocked};
use hotplug::view::{AttachmentPod, Instance, Launcher, PodPhase, rfc3339};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::observe::{ClaimRead, classes, unmountable};
use super::{Steward, Unreadable};
use crate::kubernetes::RawError;

/// How often it is looked.
const INTERVAL: Duration = Duration::from_secs(10);

/// Denials that are remembered at the most.
const MOST: usize = 1024;

/// After so long without another attempt a denial is nobody's any more, in seconds. virt-controller
/// tries again after 1000 s at the latest.
const FORGET: i64 = 1200;

/// Denials of this replica.
#[derive(Default)]
pub(super) struct Denied(BTreeMap<String, Entry>);

#[derive(Clone)]
struct Entry {
    namespace: String,
    pod: String,
    since: i64,
}

impl Denied {
    pub(super) fn note(&mut self, namespace: &str, pod: &AttachmentPod<'_>, since: i64) {
        if self.0.len() < MOST || self.0.contains_key(pod.uid) {
            let entry = Entry { namespace: namespace.to_owned(), pod: pod.name.to_owned(), since };
            self.0.insert(pod.uid.to_owned(), entry);
        }
    }

    pub(super) fn forget(&mut self, uid: &str) {
        self.0.remove(uid);
    }
}

/// Whether it is time to look once more; `false`: it is over.
async fn once_more(stop: &CancellationToken) -> bool {
    tokio::select! {
        () = stop.cancelled() => false,
        () = tokio::time::sleep(INTERVAL) => true,
    }
}

/// Follows the denials of this replica until `stop`. Each replica remembers its own, so all of them do this.
pub async fn follow_denials(steward: Arc<Steward>, stop: CancellationToken) {
    while once_more(&stop).await {
        steward.look_again().await;
    }
}

/// Heals until `stop`, when that is switched on. One replica is enough.
pub async fn heal(steward: Arc<Steward>, stop: CancellationToken) {
    while once_more(&stop).await {
        if steward.heals
            && let Err(error) = steward.heal().await
        {
            tracing::warn!(%error, "attachment pods could not be looked through");
        }
    }
}

impl Steward {
    /// Denials whose reason has passed without anything that virt-controller notices: the VMI is
    /// changed by an annotation, and it looks again.
    pub async fn look_again(&self) {
        let now = self.now();
        let entries: Vec<(String, Entry)> =
            self.denied.lock().0.iter().map(|(uid, entry)| (uid.clone(), entry.clone())).collect();
        let oldest = entries.iter().map(|(_, entry)| entry.since).min();
        self.metrics.hotplug_oldest_denial(oldest.map_or(0, |since| now.saturating_sub(since)));
        for (uid, entry) in entries {
            let path = format!("/api/v1/namespaces/{}/pods/{}", entry.namespace, entry.pod);
            let pod = match self.api.get(&path).await {
                Ok(pod) if pod["metadata"]["uid"] == uid.as_str() => pod,
                Ok(_) => Value::Null,
                Err(error) if error.code() == Some(404) => Value::Null,
                Err(_) => continue,
            };
            let review = json!({"request": {
                "operation": "DELETE", "resource": {"resource": "pods"}, "namespace": entry.namespace,
                "name": entry.pod, "oldObject": pod, "dryRun": true, "userInfo": {"username": "virt-steward"},
            }});
            let over = now.saturating_sub(entry.since) > FORGET;
            let allowed = pod.is_null() || self.would_allow(&review).await;
            if allowed && !pod.is_null() {
                self.nudge(&entry, &pod).await;
            }
            if allowed || over {
                self.denied.lock().forget(&uid);
            }
        }
    }

    async fn would_allow(&self, review: &Value) -> bool {
        let Some(ask) = super::Ask::read(super::GUARD, review) else { return false };
        let decided = tokio::time::timeout(INTERVAL, self.decide(&ask)).await;
        matches!(decided, Ok(Ok(answer)) if answer.is_allowed())
    }

    async fn nudge(&self, entry: &Entry, pod: &Value) {
        let Some(view) = AttachmentPod::read(pod) else { return };
        let path = format!("/api/v1/namespaces/{}/pods/{}", entry.namespace, view.launcher_name);
        let Ok(launcher) = self.api.get(&path).await else { return };
        let vmi = Launcher::read(&launcher).instance_name;
        if vmi.is_empty() {
            return;
        }
        let path =
            format!("/apis/kubevirt.io/v1/namespaces/{}/virtualmachineinstances/{vmi}", entry.namespace);
        let patch = json!({"metadata": {"annotations": {NUDGE: rfc3339(self.now())}}});
        match self.api.merge(&path, &patch).await {
            Ok(_) => tracing::info!(
                namespace = entry.namespace,
                vmi,
                pod = entry.pod,
                "nudged: a denied delete may go on"
            ),
            Err(error) => tracing::warn!(namespace = entry.namespace, vmi, %error, "could not be nudged"),
        }
    }

    /// Deletes what KubeVirt leaves behind. The API server asks the guard about each, so nothing
    /// goes that a guest needs.
    async fn heal(&self) -> Result<(), RawError> {
        let list = self.api.get("/api/v1/pods?labelSelector=kubevirt.io%3Dhotplug-disk").await?;
        let all = list["items"].as_array().map_or(&[][..], Vec::as_slice);
        let mut launchers: BTreeMap<(&str, &str), Vec<&Value>> = BTreeMap::new();
        for pod in all {
            let Some(view) = AttachmentPod::read(pod) else { continue };
            let namespace = pod["metadata"]["namespace"].as_str().unwrap_or_default();
            launchers.entry((namespace, view.launcher_name)).or_default().push(pod);
        }
        for ((namespace, launcher), pods) in launchers {
            let views: Vec<AttachmentPod<'_>> =
                pods.iter().filter_map(|pod| AttachmentPod::read(pod)).collect();
            let suspicious = views.len() > 1 || views.iter().any(|pod| pod.phase.is_final());
            if suspicious {
                self.heal_one(namespace, launcher, &views).await?;
            }
        }
        Ok(())
    }

    /// The claims of pods, as far as their classes have opt-ins, where one waits beside another.
    async fn blocking_claims(
        &self,
        namespace: &str,
        pods: &[AttachmentPod<'_>],
    ) -> Result<Vec<ClaimRead>, Unreadable> {
        if pods.len() < 2 || !pods.iter().any(|pod| pod.phase == PodPhase::Pending) {
            return Ok(Vec::new());
        }
        let names: BTreeSet<&str> =
            pods.iter().flat_map(|pod| pod.volumes.iter().map(|volume| volume.claim)).collect();
        self.claims(namespace, names.into_iter()).await
    }

    async fn heal_one(
        &self,
        namespace: &str,
        launcher: &str,
        pods: &[AttachmentPod<'_>],
    ) -> Result<(), RawError> {
        let core = format!("/api/v1/namespaces/{namespace}/pods");
        let launcher = match self.api.get(&format!("{core}/{launcher}")).await {
            Ok(launcher) => launcher,
            Err(error) if error.code() == Some(404) => return Ok(()),
            Err(error) => return Err(error),
        };
        let launcher = Launcher::read(&launcher);
        let path = format!(
            "/apis/kubevirt.io/v1/namespaces/{namespace}/virtualmachineinstances/{}",
            launcher.instance_name
        );
        let vmi = match self.api.get(&path).await {
            Ok(vmi) => vmi,
            Err(error) if error.code() == Some(404) => return Ok(()),
            Err(error) => return Err(error),
        };
        let instance = Instance::read(&vmi);
        if instance.uid != launcher.instance {
            return Ok(());
        }
        // Without them everything else is healed as well.
        let claims: Vec<ClaimRead> = self.blocking_claims(namespace, pods).await.unwrap_or_default();
        let exclusive = claims.iter().any(|claim| claim.class.exclusive_publish);
        let events = if exclusive {
            let path =
                format!("/api/v1/namespaces/{namespace}/events?fieldSelector=type%3DWarning&limit=500");
            self.api.get(&path).await?
        } else {
            Value::Null
        };
        let blocked = Blocked {
            classes: classes(&claims),
            unmountable: pods.iter().flat_map(|pod| unmountable(&events, pod, &claims)).collect(),
        };
        for (name, ailment) in heal::decide(&instance, &launcher, pods, &blocked, &self.limits, self.now()) {
            let Some(pod) = pods.iter().find(|pod| pod.name == name) else { continue };
            match self.api.delete(&format!("{core}/{name}"), json!({"uid": pod.uid})).await {
                Ok(_) => tracing::info!(namespace, pod = name, ?ailment, "attachment pod deleted"),
                Err(error) if matches!(error.code(), Some(403 | 404 | 409)) => {
                    tracing::info!(namespace, pod = name, ?ailment, %error, "attachment pod stays");
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}
