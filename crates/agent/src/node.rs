//! The VMIs of one node: a worker each, so that a VM has one thing done to it at a time.
//!
//! ```text
//!  watch ─► worker of the VMI: order ─► connect ─► GetDomain ─► call ─► GetDomain ─► report
//!              ▲                                                                    │
//!              └── changed, or a second later while the guest still follows ◄───────┘
//! ```

use std::collections::HashMap;
use std::path::PathBuf;
use std::time::Duration;

use futures::StreamExt as _;
use kube::Client;
use kube::api::{ApiResource, DynamicObject};
use kube::core::GroupVersionKind;
use kube::runtime::watcher::{self, Event};
use kube::runtime::{WatchStreamExt as _, watcher as watch_kind};
use resize::ledger::{REPORT, Report};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::complete::CompleteVmi;
use crate::launcher::{Launcher, LauncherError};
use crate::socket;
use crate::task::{self, is_moving, order, plan};

/// How often a guest that follows a task is looked at. There is no event for a vCPU change.
const LOOK: Duration = Duration::from_secs(1);
/// After a failure, for the launcher to come or libvirt to be free.
const AGAIN: Duration = Duration::from_secs(2);
/// The longest words of a launcher that are passed on, characters.
const WORDS: usize = 300;

/// Where the agent works.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The name of its node.
    pub node: String,
    /// kubelet's directory of pods, `/var/lib/kubelet/pods`, wherever it is mounted.
    pub pods: PathBuf,
}

/// The agent of one node.
pub struct Agent {
    client: Client,
    settings: Settings,
    workers: HashMap<String, watch::Sender<Value>>,
}

impl std::fmt::Debug for Agent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Agent").field("settings", &self.settings).finish_non_exhaustive()
    }
}

impl Agent {
    /// An agent that does nothing before [`Agent::run`].
    pub fn new(client: Client, settings: Settings) -> Self {
        Self { client, settings, workers: HashMap::new() }
    }

    /// Serves the VMIs of the node until it is told to stop.
    pub async fn run(mut self, stop: CancellationToken) {
        let kind = GroupVersionKind::gvk("kubevirt.io", "v1", "VirtualMachineInstance");
        let resource = ApiResource::from_gvk_with_plural(&kind, "virtualmachineinstances");
        let api = kube::Api::<DynamicObject>::all_with(self.client.clone(), &resource);
        let config =
            watcher::Config::default().labels(&format!("kubevirt.io/nodeName={}", self.settings.node));
        let mut events = std::pin::pin!(watch_kind(api, config).default_backoff());
        tracing::info!(node = self.settings.node, pods = %self.settings.pods.display(), "serving the VMIs of this node");
        loop {
            let event = tokio::select! {
                biased;
                () = stop.cancelled() => return,
                event = events.next() => event,
            };
            match event {
                Some(Ok(Event::Apply(object) | Event::InitApply(object))) => self.changed(object),
                Some(Ok(Event::Delete(object))) => {
                    self.workers.remove(&object.metadata.uid.unwrap_or_default());
                }
                Some(Ok(Event::Init | Event::InitDone)) => {}
                Some(Err(error)) => tracing::warn!(%error, "watching VMIs; trying again"),
                None => return,
            }
        }
    }

    fn changed(&mut self, object: DynamicObject) {
        let Some(uid) = object.metadata.uid.clone() else { return };
        let Ok(vmi) = serde_json::to_value(object) else { return };
        if let Some(worker) = self.workers.get(&uid) {
            worker.send_replace(vmi);
            return;
        }
        let (sender, receiver) = watch::channel(vmi);
        self.workers.insert(uid, sender);
        let worker = Worker { client: self.client.clone(), settings: self.settings.clone(), seen: receiver };
        tokio::spawn(worker.run());
    }
}

struct Worker {
    client: Client,
    settings: Settings,
    seen: watch::Receiver<Value>,
}

/// What came of attending to a VMI.
enum Next {
    /// Nothing to do before it changes.
    Change,
    /// To be looked at again soon.
    Soon(Duration),
}

impl Worker {
    /// Ends when the VMI is gone.
    async fn run(mut self) {
        loop {
            let seen = self.seen.borrow_and_update().clone();
            let next = self.attend(&seen).await;
            let changed = match next {
                Next::Change => self.seen.changed().await,
                Next::Soon(wait) => tokio::time::timeout(wait, self.seen.changed()).await.unwrap_or(Ok(())),
            };
            if changed.is_err() {
                return;
            }
        }
    }

    async fn attend(&self, seen: &Value) -> Next {
        match order(seen, &self.settings.node) {
            Ok(None) | Err(task::Refused::OtherNode) => return Next::Change,
            Err(refused) => {
                tracing::warn!(vmi = name(seen), reason = %refused, "not served");
                return Next::Change;
            }
            Ok(Some(_)) => {}
        }
        // What is sent is what the API server has now, not what a watch once said.
        let path = path(seen);
        let live: Value = match self.get(&path).await {
            Ok(live) => live,
            Err(error) => {
                tracing::warn!(vmi = name(seen), %error, "reading the VMI");
                return Next::Soon(AGAIN);
            }
        };
        let Ok(Some(ledger)) = order(&live, &self.settings.node) else { return Next::Change };
        let task = ledger.task_now();
        let (found, moving) = match self.serve(&live, &ledger.pod, task).await {
            Ok(served) => served,
            Err(error) => {
                tracing::warn!(vmi = name(seen), %error, "serving the launcher");
                return Next::Soon(AGAIN);
            }
        };
        let report = Report { pod: ledger.pod, task, ..found };
        let written = resize::ledger::read::<Report>(&live, REPORT).ok().flatten();
        if written.as_ref() != Some(&report)
            && let Err(error) = self.report(&path, &live, &report).await
        {
            tracing::warn!(vmi = name(seen), %error, "reporting the guest");
            return Next::Soon(AGAIN);
        }
        if moving || report.trouble.is_some() { Next::Soon(LOOK) } else { Next::Change }
    }

    /// Carries a task out as far as the guest is ready for it, and says what the guest has then and
    /// whether it still moves.
    async fn serve(
        &self,
        vmi: &Value,
        pod: &str,
        task: Option<resize::Size>,
    ) -> Result<(Report, bool), Box<dyn std::error::Error + Send + Sync>> {
        let complete = CompleteVmi::new(vmi.clone())?;
        let sockets = socket::sockets(&self.settings.pods, pod).ok_or(LauncherError::NoDomain)?;
        let launcher = Launcher::connect(&sockets, complete.clone()).await?;
        let mut trouble = None;
        let mut guest = launcher.guest().await?;
        // Memory, then vCPUs: two calls at most.
        for _ in 0..2 {
            let Some(call) = plan(&complete, task, &guest) else { break };
            tracing::info!(vmi = name(vmi), ?call, "calling the launcher");
            if let Err(error) = launcher.make(call).await {
                // libvirt is busy, or the guest cannot: it is asked again, and others are told.
                trouble = Some(error.to_string().chars().take(WORDS).collect());
                break;
            }
            guest = launcher.guest().await?;
        }
        let moving = is_moving(&complete, task, &guest);
        let resize::view::Guest { vcpus, requested, current } = guest;
        Ok((Report { pod: pod.to_owned(), task, vcpus, requested, current, trouble }, moving))
    }

    async fn get(&self, path: &str) -> kube::Result<Value> {
        let request = http::Request::get(path).body(Vec::new()).map_err(kube::Error::HttpError)?;
        self.client.request(request).await
    }

    async fn report(&self, path: &str, vmi: &Value, report: &Report) -> kube::Result<()> {
        let text = serde_json::to_string(report).map_err(kube::Error::SerdeError)?;
        // With the uid: a VMI of the same name that came after it is another one.
        let patch = json!({"metadata": {"uid": vmi["metadata"]["uid"], "annotations": {REPORT: text}}});
        let request = http::Request::patch(path)
            .header(http::header::CONTENT_TYPE, "application/merge-patch+json")
            .body(patch.to_string().into_bytes())
            .map_err(kube::Error::HttpError)?;
        self.client.request::<Value>(request).await.map(|_| ())
    }
}

fn name(vmi: &Value) -> String {
    let text = |pointer: &str| vmi.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
    format!("{}/{}", text("/metadata/namespace"), text("/metadata/name"))
}

fn path(vmi: &Value) -> String {
    let text = |pointer: &str| vmi.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
    format!(
        "/apis/kubevirt.io/v1/namespaces/{}/virtualmachineinstances/{}",
        text("/metadata/namespace"),
        text("/metadata/name")
    )
}
