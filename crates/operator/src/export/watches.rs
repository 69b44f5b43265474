//! What wakes the workers: `VMExportJobs`, and the Jobs that carry our label.

use std::collections::HashMap;

use export::job::{GROUP, LABEL_JOB, PLURAL, VERSION};
use futures::StreamExt as _;
use futures::stream::select_all;
use kube::Api;
use kube::api::{ApiResource, DynamicObject};
use kube::core::GroupVersionKind;
use kube::runtime::watcher::{self, Event};
use kube::runtime::{WatchStreamExt as _, watcher as watch_kind};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{Context, Key, work};

/// Watches until `stop`, with a worker for each `VMExportJob` that is there.
pub(super) async fn run(context: Context, stop: CancellationToken) {
    let own =
        ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(GROUP, VERSION, "VMExportJob"), PLURAL);
    let jobs = ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk("batch", "v1", "Job"), "jobs");
    let labelled = watcher::Config::default().labels(LABEL_JOB);
    let mut events = select_all([(true, own, watcher::Config::default()), (false, jobs, labelled)].map(
        |(own, resource, config)| {
            let api = Api::<DynamicObject>::all_with(context.client.clone(), &resource);
            watch_kind(api, config).default_backoff().map(move |event| (own, event)).boxed()
        },
    ));
    let mut running: HashMap<Key, watch::Sender<()>> = HashMap::new();
    loop {
        let (own, event) = tokio::select! {
            () = stop.cancelled() => return,
            event = events.next() => match event {
                Some(event) => event,
                None => return,
            },
        };
        match event {
            Ok(Event::Apply(object) | Event::InitApply(object)) => {
                let Some(key) = concerns(own, &object) else { continue };
                if let Some(worker) = running.get(&key) {
                    worker.send_replace(());
                } else if own {
                    let (sender, receiver) = watch::channel(());
                    running.insert(key.clone(), sender);
                    tokio::spawn(work(context.clone(), key, receiver));
                }
            }
            Ok(Event::Delete(object)) => {
                let Some(key) = concerns(own, &object) else { continue };
                if own {
                    // Its worker ends with the sender.
                    running.remove(&key);
                } else if let Some(worker) = running.get(&key) {
                    worker.send_replace(());
                }
            }
            Ok(Event::Init | Event::InitDone) => {}
            Err(error) => tracing::warn!(own, %error, "watching for export jobs; trying again"),
        }
    }
}

fn concerns(own: bool, object: &DynamicObject) -> Option<Key> {
    let namespace = object.metadata.namespace.clone()?;
    let name = if own {
        object.metadata.name.clone()?
    } else {
        let owners = object.metadata.owner_references.iter().flatten();
        owners.clone().find(|owner| owner.kind == "VMExportJob").map(|owner| owner.name.clone())?
    };
    Some(Key { namespace, name })
}
