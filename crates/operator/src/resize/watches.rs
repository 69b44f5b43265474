//! What wakes the workers.
//!
//! A worker starts when everything that decides its VM's policy has been listed: a VM whose namespace
//! is not known yet would look switched off, and a resize under way would be taken back.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use futures::StreamExt as _;
use futures::stream::{SelectAll, select_all};
use kube::Api;
use kube::api::{ApiResource, DynamicObject};
use kube::core::GroupVersionKind;
use kube::runtime::watcher::{self, Event};
use kube::runtime::{WatchStreamExt as _, watcher as watch_kind};
use resize::policy::POLICY_NAME;
use serde_json::json;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::owners::Source;
use super::worker::{self, Context, Key};

/// The kinds that are watched.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
enum Kind {
    Vmi,
    Vm,
    Pod,
    Migration,
    Namespace,
    Policy,
    ClusterPolicy,
}

impl Kind {
    /// What a VM's policy comes from.
    const POLICIES: [Self; 4] = [Self::Vm, Self::Namespace, Self::Policy, Self::ClusterPolicy];

    /// The chart's definitions need not be installed.
    const fn may_be_absent(self) -> bool {
        matches!(self, Self::Policy | Self::ClusterPolicy)
    }

    fn resource(self) -> ApiResource {
        let of = |group, version, kind, plural| {
            ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(group, version, kind), plural)
        };
        let ours = |kind, plural| of("vm-feature-manager.io", "v1alpha1", kind, plural);
        let kubevirt = |kind, plural| of("kubevirt.io", "v1", kind, plural);
        match self {
            Self::Vmi => kubevirt("VirtualMachineInstance", "virtualmachineinstances"),
            Self::Vm => kubevirt("VirtualMachine", "virtualmachines"),
            Self::Pod => of("", "v1", "Pod", "pods"),
            Self::Migration => {
                kubevirt("VirtualMachineInstanceMigration", "virtualmachineinstancemigrations")
            }
            Self::Namespace => of("", "v1", "Namespace", "namespaces"),
            Self::Policy => ours(resize::policy::NAMESPACE_KIND, "resizepolicies"),
            Self::ClusterPolicy => ours(resize::policy::CLUSTER_KIND, "clusterresizepolicies"),
        }
    }
}

type Heard = Result<Event<DynamicObject>, watcher::Error>;
type Events = SelectAll<futures::stream::BoxStream<'static, (Kind, Heard)>>;

fn events(client: &kube::Client) -> Events {
    let kinds = Kind::POLICIES.into_iter().chain([Kind::Vmi, Kind::Pod, Kind::Migration]);
    select_all(kinds.map(|kind| {
        let api = Api::<DynamicObject>::all_with(client.clone(), &kind.resource());
        let config = watcher::Config::default();
        let config = if kind == Kind::Pod { config.labels("kubevirt.io=virt-launcher") } else { config };
        watch_kind(api, config).default_backoff().map(move |event| (kind, event)).boxed()
    }))
}

/// Watches until `stop`, with a worker for each VMI that is there.
pub async fn run(context: Context, stop: CancellationToken) {
    let mut events = events(&context.client);
    let mut workers = Workers::new(context);
    loop {
        let (kind, event) = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            event = events.next() => match event {
                Some(event) => event,
                None => return,
            },
        };
        workers.hear(kind, event);
    }
}

struct Workers {
    context: Context,
    /// In order, so that whoever replays an hour finds the same one.
    running: BTreeMap<Key, watch::Sender<()>>,
    /// VMIs that were heard of before everything was listed.
    early: BTreeSet<Key>,
    listed: HashSet<Kind>,
    /// What a list that is being read has had so far.
    listing: HashMap<Kind, HashSet<String>>,
    told: HashSet<Kind>,
}

/// The VMI that an object is about.
fn concerns(kind: Kind, object: &DynamicObject) -> Option<Key> {
    let namespace = object.metadata.namespace.clone()?;
    let name = match kind {
        Kind::Vm | Kind::Vmi => object.metadata.name.clone()?,
        Kind::Pod => object
            .metadata
            .owner_references
            .iter()
            .flatten()
            .find(|owner| owner.kind == "VirtualMachineInstance")
            .map(|owner| owner.name.clone())?,
        Kind::Migration => object.data.pointer("/spec/vmiName")?.as_str()?.to_owned(),
        Kind::Namespace | Kind::Policy | Kind::ClusterPolicy => return None,
    };
    Some(Key { namespace, name })
}

/// What an object says about policies.
fn source(kind: Kind, object: &DynamicObject) -> Option<Source> {
    let name = object.metadata.name.clone()?;
    let namespace = object.metadata.namespace.clone().unwrap_or_default();
    match kind {
        Kind::Vm => Some(Source::Vm(Key { namespace, name })),
        Kind::Namespace => Some(Source::Namespace(name)),
        Kind::Policy if name == POLICY_NAME => Some(Source::Policy(namespace)),
        Kind::ClusterPolicy if name == POLICY_NAME => Some(Source::Cluster),
        _ => None,
    }
}

fn place(object: &DynamicObject) -> String {
    let part = |part: &Option<String>| part.clone().unwrap_or_default();
    format!("{}/{}", part(&object.metadata.namespace), part(&object.metadata.name))
}

impl Workers {
    fn new(context: Context) -> Self {
        let (listed, told) = (HashSet::new(), HashSet::new());
        Self {
            context,
            running: BTreeMap::new(),
            early: BTreeSet::new(),
            listed,
            listing: HashMap::new(),
            told,
        }
    }

    fn hear(&mut self, kind: Kind, event: Heard) {
        match event {
            Ok(Event::Init) => drop(self.listing.insert(kind, HashSet::new())),
            Ok(Event::InitApply(object)) => {
                self.listing.entry(kind).or_default().insert(place(&object));
                self.changed(kind, &object);
            }
            Ok(Event::InitDone) => self.is_listed(kind),
            Ok(Event::Apply(object)) => self.changed(kind, &object),
            Ok(Event::Delete(object)) => self.gone(kind, &object),
            Err(error) if kind.may_be_absent() => {
                if self.told.insert(kind) {
                    tracing::info!(?kind, %error, "policy objects are not watched yet");
                }
                if is_absent(&error) {
                    self.is_listed(kind);
                }
            }
            Err(error) => tracing::warn!(?kind, %error, "watching for resizes; trying again"),
        }
    }

    /// What is not in the list is gone, however long the watch was away.
    fn is_listed(&mut self, kind: Kind) {
        let there = self.listing.remove(&kind).unwrap_or_default();
        if kind == Kind::Vmi {
            self.running.retain(|key, _| there.contains(&key.to_string()));
        }
        if Kind::POLICIES.contains(&kind) {
            self.context.owners.retain(|source| match (kind, source) {
                (Kind::Vm, Source::Vm(key)) => there.contains(&key.to_string()),
                (Kind::Namespace, Source::Namespace(name)) => there.contains(&format!("/{name}")),
                (Kind::Policy, Source::Policy(namespace)) => {
                    there.contains(&format!("{namespace}/{POLICY_NAME}"))
                }
                (Kind::ClusterPolicy, Source::Cluster) => there.contains(&format!("/{POLICY_NAME}")),
                _ => true,
            });
        }
        if self.listed.insert(kind) && self.knows_policies() {
            for key in std::mem::take(&mut self.early) {
                self.start(key);
            }
        }
    }

    fn knows_policies(&self) -> bool {
        Kind::POLICIES.iter().all(|kind| self.listed.contains(kind))
    }

    fn changed(&mut self, kind: Kind, object: &DynamicObject) {
        if let Some(source) = source(kind, object) {
            let said = if kind.may_be_absent() {
                json!({"spec": object.data["spec"]})
            } else {
                json!({"metadata": {"annotations": object.metadata.annotations}})
            };
            self.context.owners.put(source.clone(), said);
            self.wake(&source);
        }
        let Some(key) = concerns(kind, object) else { return };
        if let Some(worker) = self.running.get(&key) {
            worker.send_replace(());
        } else if kind == Kind::Vmi {
            if self.knows_policies() {
                self.start(key);
            } else {
                self.early.insert(key);
            }
        }
    }

    fn start(&mut self, key: Key) {
        let (sender, receiver) = watch::channel(());
        self.running.insert(key.clone(), sender);
        tokio::spawn(worker::run(self.context.clone(), key, receiver));
    }

    /// Wakes the workers of all VMs for which something was said.
    fn wake(&self, source: &Source) {
        for (_, worker) in self.running.iter().filter(|(key, _)| source.is_about(key)) {
            worker.send_replace(());
        }
    }

    fn gone(&mut self, kind: Kind, object: &DynamicObject) {
        if let Some(source) = source(kind, object) {
            self.context.owners.remove(&source);
            self.wake(&source);
        }
        let Some(key) = concerns(kind, object) else { return };
        if kind == Kind::Vmi {
            self.early.remove(&key);
            // Its worker ends with the sender.
            self.running.remove(&key);
        } else if let Some(worker) = self.running.get(&key) {
            worker.send_replace(());
        }
    }
}

/// The kind does not exist, or may not be read: then nobody has written one for us.
fn is_absent(error: &watcher::Error) -> bool {
    let (watcher::Error::InitialListFailed(inner) | watcher::Error::WatchStartFailed(inner)) = error else {
        return false;
    };
    matches!(inner, kube::Error::Api(status) if matches!(status.code, 403 | 404))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(namespace: Option<&str>, name: &str) -> DynamicObject {
        let kind = Kind::Policy.resource();
        let mut object = DynamicObject::new(name, &kind);
        object.metadata.namespace = namespace.map(str::to_owned);
        object
    }

    #[test]
    fn only_the_policy_with_the_one_name_counts() {
        assert_eq!(source(Kind::Policy, &object(Some("n"), "default")), Some(Source::Policy("n".into())));
        assert_eq!(source(Kind::ClusterPolicy, &object(None, "default")), Some(Source::Cluster));
        assert_eq!(source(Kind::Policy, &object(Some("n"), "other")), None);
        assert_eq!(source(Kind::Pod, &object(Some("n"), "default")), None);
    }

    #[test]
    fn a_policy_is_about_the_vms_that_it_covers() {
        let key = Key { namespace: "n".into(), name: "v".into() };
        for (source, expected) in [
            (Source::Vm(key.clone()), true),
            (Source::Vm(Key { name: "w".into(), ..key.clone() }), false),
            (Source::Namespace("n".into()), true),
            (Source::Policy("m".into()), false),
            (Source::Cluster, true),
        ] {
            assert_eq!(source.is_about(&key), expected, "{source:?}");
        }
    }
}
