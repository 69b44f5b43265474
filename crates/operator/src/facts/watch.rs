//! The watches that keep the facts true.
//!
//! ```text
//!                                list           watch
//!                       Listing ────────► Synced ───────► Change ─► one writer ─► ArcSwap
//!    404: no such kind │   ▲                 │ error: degraded, and again with backoff
//!                      ▼   ├─────────────────┘
//!                     Absent (asked for again after a while)
//! ```

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use features::ClusterFacts;
use futures::StreamExt;
use kube::api::{ApiResource, DynamicObject};
use kube::core::GroupVersionKind;
use kube::runtime::watcher::{self, Event};
use kube::runtime::{WatchStreamExt, watcher as watch_kind};
use kube::{Api, Client, Resource};
use kubevirt::inventory::{API_VERSION, KIND};
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::index::{Change, Index};
use super::project;
use crate::kubernetes::chain;
use crate::readiness::{Readiness, State};

/// How often a kind that is not there is asked for again.
const ABSENT: Duration = Duration::from_secs(10);
/// For so long after the start we are not ready while a first list is under way; then we serve with
/// what there is, because a VM that asks for nothing needs no facts.
const PATIENCE: Duration = Duration::from_secs(15);
/// Changes on their way to the writer. Watches wait when it is full.
const QUEUE: usize = 256;

/// One watched kind.
struct Source<K: Resource> {
    part: &'static str,
    api: Api<K>,
    /// What it means when the kind is not there.
    absent: Absence,
}

/// What the absence of a kind means.
enum Absence {
    /// Nothing: an add-on that this cluster does not have.
    Fine,
    /// Features answer poorly, for the reason given.
    Degraded(&'static str),
}

/// Starts all watches; they end with `stop`.
pub fn spawn(
    client: &Client,
    facts: Arc<ArcSwap<ClusterFacts>>,
    readiness: &Arc<Readiness>,
    stop: &CancellationToken,
) -> Vec<tokio::task::JoinHandle<()>> {
    let (changes, received) = mpsc::channel(QUEUE);
    let nodes =
        Source { part: "nodes", api: Api::<project::NodeView>::all(client.clone()), absent: Absence::Fine };
    let kubevirt_kind = kind("kubevirt.io", "v1", "KubeVirt", "kubevirts");
    let kubevirts = Source {
        part: "kubevirt",
        api: Api::<DynamicObject>::all_with(client.clone(), &kubevirt_kind),
        absent: Absence::Degraded(
            "KubeVirt is not installed; features cannot be checked against its configuration",
        ),
    };
    let harvester = |part, kind_name, plural| Source {
        part,
        api: Api::<DynamicObject>::all_with(
            client.clone(),
            &kind("devices.harvesterhci.io", "v1beta1", kind_name, plural),
        ),
        absent: Absence::Fine,
    };
    let devices = harvester("pcidevices", "PCIDevice", "pcidevices");
    let claims = harvester("pcideviceclaims", "PCIDeviceClaim", "pcideviceclaims");
    let absent_is_fine = |part, resource: &ApiResource| Source {
        part,
        api: Api::<DynamicObject>::all_with(client.clone(), resource),
        absent: Absence::Fine,
    };
    let (group, version) = API_VERSION.split_once('/').unwrap_or_default();
    let hosts = absent_is_fine("nodeinventories", &kind(group, version, KIND, "nodeinventories"));
    let plugins = absent_is_fine("plugins", &kind("plugin.kubevirt.io", "v1alpha1", "Plugin", "plugins"));
    let follower = Follower { changes, readiness: Arc::clone(readiness) };

    let tasks = [
        tokio::spawn(write(received, facts)),
        tokio::spawn(follower.clone().run(
            nodes,
            || Change::Nodes(Vec::new()),
            |all| Change::Nodes(all.into_iter().map(project::node).collect()),
            |view| Change::Node(project::node(view)),
            |view| Change::NodeGone(project::node(view).name),
        )),
        tokio::spawn({
            let (listed, one) = (kubevirt_kind.clone(), kubevirt_kind);
            follower.clone().run(
                kubevirts,
                || Change::KubeVirts(None),
                move |all| {
                    let all = all.into_iter().map(|o| (project::key(&o), project::kubevirt(o, &listed)));
                    Change::KubeVirts(Some(all.collect()))
                },
                move |object| Change::KubeVirt(project::key(&object), project::kubevirt(object, &one)),
                |object| Change::KubeVirtGone(project::key(&object)),
            )
        }),
        tokio::spawn(follower.clone().run(
            devices,
            || Change::Devices(None),
            |all| Change::Devices(Some(all.iter().map(project::device).collect())),
            |object| Change::Device(project::device(&object)),
            |object| Change::DeviceGone(project::key(&object)),
        )),
        tokio::spawn(follower.clone().run(
            hosts,
            || Change::Hosts(None),
            |all| Change::Hosts(Some(all.iter().map(project::host).collect())),
            |object| Change::Host(project::host(&object)),
            |object| Change::HostGone(project::key(&object)),
        )),
        tokio::spawn(follower.clone().run(
            plugins,
            || Change::Plugins(None),
            |all| Change::Plugins(Some(all.iter().map(project::key).collect())),
            |object| Change::Plugin(project::key(&object)),
            |object| Change::PluginGone(project::key(&object)),
        )),
        tokio::spawn(follower.run(
            claims,
            || Change::Claims(BTreeMap::new()),
            |all| Change::Claims(all.iter().map(|o| (project::key(o), project::claim(o))).collect()),
            |object| Change::Claim(project::key(&object), project::claim(&object)),
            |object| Change::ClaimGone(project::key(&object)),
        )),
    ];
    tasks
        .into_iter()
        .map(|task| {
            let stop = stop.clone();
            tokio::spawn(async move {
                let abort = task.abort_handle();
                tokio::select! {
                    () = stop.cancelled() => abort.abort(),
                    _ = task => {}
                }
            })
        })
        .collect()
}

fn kind(group: &str, version: &str, kind: &str, plural: &str) -> ApiResource {
    ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(group, version, kind), plural)
}

/// The one writer: takes what has gathered, and publishes once.
async fn write(mut received: mpsc::Receiver<Change>, facts: Arc<ArcSwap<ClusterFacts>>) {
    let mut index = Index::default();
    let mut batch = Vec::new();
    while received.recv_many(&mut batch, QUEUE).await > 0 {
        let current = facts.load_full();
        let mut next: Option<ClusterFacts> = None;
        for change in batch.drain(..) {
            if index.is_news(next.as_ref().unwrap_or(&current), &change) {
                index.apply(next.get_or_insert_with(|| ClusterFacts::clone(&current)), change);
            }
        }
        if let Some(next) = next {
            facts.store(Arc::new(next));
        }
    }
}

#[derive(Clone)]
struct Follower {
    changes: mpsc::Sender<Change>,
    readiness: Arc<Readiness>,
}

impl Follower {
    /// Follows one kind for ever. `none` is said when it is not served, `all` after a list, `one`
    /// and `gone` for single objects.
    async fn run<K>(
        self,
        source: Source<K>,
        none: impl Fn() -> Change,
        all: impl Fn(Vec<K>) -> Change,
        one: impl Fn(K) -> Change,
        gone: impl Fn(K) -> Change,
    ) where
        K: Resource + Clone + DeserializeOwned + std::fmt::Debug + Send + 'static,
    {
        self.readiness.set(source.part, State::Unready("the first list is under way".into()));
        let impatient = tokio::spawn({
            let (readiness, part) = (Arc::clone(&self.readiness), source.part);
            async move {
                tokio::time::sleep(PATIENCE).await;
                readiness.set(
                    part,
                    State::Degraded("the API server has not answered yet; features that need it fail".into()),
                );
            }
        });
        loop {
            let mut buffer = Vec::new();
            let config = watcher::Config::default();
            let mut events = std::pin::pin!(watch_kind(source.api.clone(), config).default_backoff());
            while let Some(event) = events.next().await {
                let change = match event {
                    Ok(Event::Init) => {
                        buffer.clear();
                        continue;
                    }
                    Ok(Event::InitApply(object)) => {
                        buffer.push(object);
                        continue;
                    }
                    Ok(Event::InitDone) => {
                        impatient.abort();
                        self.readiness.set(source.part, State::Ok);
                        all(std::mem::take(&mut buffer))
                    }
                    Ok(Event::Apply(object)) => one(object),
                    Ok(Event::Delete(object)) => gone(object),
                    Err(error) => {
                        impatient.abort();
                        if is_not_found(&error) {
                            break;
                        }
                        let reason = format!(
                            "cannot be watched ({}); features decide by what was seen last",
                            chain(&error)
                        );
                        self.readiness.set(source.part, State::Degraded(reason));
                        continue;
                    }
                };
                if self.changes.send(change).await.is_err() {
                    return;
                }
            }
            self.absent(&source, none()).await;
            tokio::time::sleep(ABSENT).await;
        }
    }

    async fn absent<K: Resource>(&self, source: &Source<K>, none: Change) {
        // The receiver lives as long as the program.
        let _ = self.changes.send(none).await;
        let state = match source.absent {
            Absence::Fine => State::Ok,
            Absence::Degraded(reason) => State::Degraded(reason.into()),
        };
        self.readiness.set(source.part, state);
    }
}

/// There is no such kind: its CRD was never there, or was deleted.
fn is_not_found(error: &watcher::Error) -> bool {
    match error {
        watcher::Error::InitialListFailed(kube::Error::Api(status))
        | watcher::Error::WatchStartFailed(kube::Error::Api(status)) => status.code == 404,
        _ => false,
    }
}
