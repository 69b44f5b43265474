//! What wakes the workers.

use std::collections::HashMap;

use futures::StreamExt as _;
use futures::stream::{SelectAll, select_all};
use kube::Api;
use kube::api::{ApiResource, DynamicObject};
use kube::core::GroupVersionKind;
use kube::runtime::watcher::{self, Event};
use kube::runtime::{WatchStreamExt as _, watcher as watch_kind};
use serde_json::json;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::worker::{self, Context, Key};

/// The kinds that are watched.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Kind {
    Vmi,
    Vm,
    Pod,
    Migration,
    Namespace,
}

type Heard = Result<Event<DynamicObject>, watcher::Error>;
type Events = SelectAll<futures::stream::BoxStream<'static, (Kind, Heard)>>;

fn events(client: &kube::Client) -> Events {
    let kubevirt = |kind: &str, plural: &str| {
        ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk("kubevirt.io", "v1", kind), plural)
    };
    let core = |kind: &str, plural: &str| {
        ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk("", "v1", kind), plural)
    };
    let launchers = watcher::Config::default().labels("kubevirt.io=virt-launcher");
    let all = watcher::Config::default();
    select_all(
        [
            (Kind::Namespace, core("Namespace", "namespaces"), all.clone()),
            (Kind::Vm, kubevirt("VirtualMachine", "virtualmachines"), all.clone()),
            (Kind::Vmi, kubevirt("VirtualMachineInstance", "virtualmachineinstances"), all.clone()),
            (Kind::Pod, core("Pod", "pods"), launchers),
            (
                Kind::Migration,
                kubevirt("VirtualMachineInstanceMigration", "virtualmachineinstancemigrations"),
                all,
            ),
        ]
        .map(|(kind, resource, config)| {
            let api = Api::<DynamicObject>::all_with(client.clone(), &resource);
            watch_kind(api, config).default_backoff().map(move |event| (kind, event)).boxed()
        }),
    )
}

/// Watches until `stop`, with a worker for each VMI that is there.
pub async fn run(context: Context, stop: CancellationToken) {
    let mut events = events(&context.client);
    let mut workers = Workers { context, running: HashMap::new() };
    loop {
        let (kind, event) = tokio::select! {
            () = stop.cancelled() => return,
            event = events.next() => match event {
                Some(event) => event,
                None => return,
            },
        };
        match event {
            Ok(Event::Apply(object) | Event::InitApply(object)) => workers.changed(kind, &object),
            Ok(Event::Delete(object)) => workers.gone(kind, &object),
            Ok(Event::Init | Event::InitDone) => {}
            Err(error) => tracing::warn!(?kind, %error, "watching for resizes; trying again"),
        }
    }
}

struct Workers {
    context: Context,
    running: HashMap<Key, watch::Sender<()>>,
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
        Kind::Namespace => return None,
    };
    Some(Key { namespace, name })
}

impl Workers {
    fn changed(&mut self, kind: Kind, object: &DynamicObject) {
        let key = concerns(kind, object);
        if matches!(kind, Kind::Vm | Kind::Namespace) {
            let name = match &key {
                Some(key) => key.to_string(),
                None => object.metadata.name.clone().unwrap_or_default(),
            };
            let annotations = json!({"metadata": {"annotations": object.metadata.annotations}});
            self.context.owners.write().insert(name, annotations);
        }
        if kind == Kind::Namespace {
            let name = object.metadata.name.clone().unwrap_or_default();
            for (_, worker) in self.running.iter().filter(|(key, _)| key.namespace == name) {
                worker.send_replace(());
            }
        }
        let Some(key) = key else { return };
        if let Some(worker) = self.running.get(&key) {
            worker.send_replace(());
        } else if kind == Kind::Vmi {
            let (sender, receiver) = watch::channel(());
            self.running.insert(key.clone(), sender);
            tokio::spawn(worker::run(self.context.clone(), key, receiver));
        }
    }

    fn gone(&mut self, kind: Kind, object: &DynamicObject) {
        let Some(key) = concerns(kind, object) else { return };
        match kind {
            // Its worker ends with the sender.
            Kind::Vmi => drop(self.running.remove(&key)),
            Kind::Vm => drop(self.context.owners.write().remove(&key.to_string())),
            _ => {
                if let Some(worker) = self.running.get(&key) {
                    worker.send_replace(());
                }
            }
        }
    }
}
