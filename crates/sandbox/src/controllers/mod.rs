//! The parts of kube-controller-manager without which an API server leaves loose ends: garbage
//! collection, namespace deletion, default service accounts, disruption budgets, definitions.
//!
//! Writes queue what has to be looked at; one task works the queue. A step that fails is tried
//! again later; a step that is no longer needed does nothing.

mod claims;
mod disruption;
mod garbage;
mod namespaces;
mod quotas;
mod services;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use apimachinery::tree::Value;
use tokio::sync::mpsc;

use crate::api::Api;
use crate::registry::Kind;
use crate::store::{Location, Stored};

/// Something that a write left to do.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Work {
    /// An owner is gone: what becomes of its dependents?
    OwnerGone(Box<str>),
    /// An object names owners: are they there?
    Owned(Location),
    /// An object waits for its dependents (`foregroundDeletion`, `orphan`).
    Waiting(Location),
    /// A namespace is new or on its way out.
    Namespace(Box<str>),
    /// A definition is on its way out.
    Definition(Box<str>),
    /// Pods or budgets of a namespace changed.
    Budgets(Box<str>),
    /// An `APIService` is new or changed.
    Service(Box<str>),
    /// What quotas count changed in a namespace.
    Quotas(Box<str>),
    /// A claim of a namespace is on its way out, or a pod has gone.
    Claims(Box<str>),
    /// A volume is on its way out.
    Volume(Box<str>),
}

/// Hands work to the controllers.
#[derive(Clone, Debug)]
pub struct Queue(mpsc::UnboundedSender<Work>);

/// The end of a [`Queue`] that [`run`] reads.
pub type Backlog = mpsc::UnboundedReceiver<Work>;

/// Pause before a failed step is tried again.
const RETRY: Duration = Duration::from_millis(200);
/// Work that arrives within this time is done once.
const GATHER: Duration = Duration::from_millis(5);

impl Queue {
    /// A queue and its end.
    pub fn new() -> (Self, Backlog) {
        let (sender, receiver) = mpsc::unbounded_channel();
        (Self(sender), receiver)
    }

    fn push(&self, work: Work) {
        // The receiver lives as long as the server; after that nothing needs doing.
        let _ = self.0.send(work);
    }

    /// Looks at a write.
    pub fn written(&self, kind: &Kind, stored: &Stored) {
        let header = stored.header();
        let location = || Location {
            kind: kind.storage.clone(),
            key: crate::store::object_key(&header.namespace, &header.name).into(),
        };
        if !header.owners.is_empty() {
            self.push(Work::Owned(location()));
        }
        match (kind.group.as_str(), kind.plural.as_str()) {
            ("", "namespaces") => self.push(Work::Namespace(header.name.clone())),
            ("apiregistration.k8s.io", "apiservices") => self.push(Work::Service(header.name.clone())),
            ("", "persistentvolumeclaims") if header.terminating => {
                self.push(Work::Claims(header.namespace.clone()));
            }
            ("", "persistentvolumes") if header.terminating => self.push(Work::Volume(header.name.clone())),
            ("apiextensions.k8s.io", "customresourcedefinitions") if header.terminating => {
                self.push(Work::Definition(header.name.clone()));
            }
            ("", "pods") | ("policy", "poddisruptionbudgets") => {
                self.push(Work::Budgets(header.namespace.clone()));
            }
            _ => {}
        }
        self.counted(kind, stored);
        if header.terminating && waits_for_dependents(&stored.value()) {
            self.push(Work::Waiting(location()));
        }
    }

    /// Looks at a removal.
    pub fn removed(&self, kind: &Kind, stored: &Stored) {
        let header = stored.header();
        self.push(Work::OwnerGone(header.uid.clone()));
        if kind.is("", "pods") {
            self.push(Work::Budgets(header.namespace.clone()));
            self.push(Work::Claims(header.namespace.clone()));
        }
        self.counted(kind, stored);
    }

    /// Quotas count objects of any kind, and what pods and claims ask for.
    fn counted(&self, kind: &Kind, stored: &Stored) {
        if kind.namespaced && !matches!(kind.plural.as_str(), "events" | "leases") {
            self.push(Work::Quotas(stored.header().namespace.clone()));
        }
    }
}

fn waits_for_dependents(object: &Value) -> bool {
    let mut finalizers = object["metadata"]["finalizers"].as_array().into_iter().flatten();
    finalizers.any(|finalizer| finalizer == crate::api::FOREGROUND || finalizer == crate::api::ORPHAN)
}

/// Works the queue until the server goes down.
pub async fn run(api: Arc<Api>, mut backlog: Backlog) {
    let mut due: BTreeSet<Work> = BTreeSet::new();
    loop {
        tokio::select! {
            biased;
            () = api.shutdown.cancelled() => return,
            first = backlog.recv() => match first {
                Some(first) => due.insert(first),
                None => return,
            },
        };
        tokio::time::sleep(GATHER).await;
        while let Ok(more) = backlog.try_recv() {
            due.insert(more);
        }
        for work in std::mem::take(&mut due) {
            let done = match &work {
                Work::OwnerGone(uid) => garbage::owner_gone(&api, uid).await,
                Work::Owned(location) => garbage::owned(&api, location).await,
                Work::Waiting(location) => garbage::waiting(&api, location).await,
                Work::Namespace(name) => namespaces::reconcile(&api, name).await,
                Work::Definition(name) => namespaces::definition(&api, name).await,
                Work::Budgets(namespace) => disruption::reconcile(&api, namespace),
                Work::Service(name) => {
                    // It asks over the network, and nobody else waits for that.
                    tokio::spawn(services::watch(api.clone(), name.clone()));
                    true
                }
                Work::Quotas(namespace) => quotas::reconcile(&api, namespace),
                Work::Claims(namespace) => claims::reconcile(&api, namespace),
                Work::Volume(name) => claims::volume(&api, name),
            };
            if !done {
                let (queue, stop) = (api.work.clone(), api.shutdown.clone());
                tokio::spawn(async move {
                    tokio::select! {
                        biased;
                        () = stop.cancelled() => {}
                        () = tokio::time::sleep(RETRY) => queue.push(work),
                    }
                });
            }
        }
    }
}
