//! The built-in plugins that matter to virtual machines, in the order of a real API server:
//! `NamespaceLifecycle`, `ServiceAccount`, `LimitRanger`, `Priority`; `ResourceQuota` comes last of all.

mod limits;
mod namespace;
mod priority;
mod quota;
mod service_account;

use std::collections::HashMap;
use std::sync::Arc;

use apimachinery::Status;
use apimachinery::tree::{Map, Value};

use super::cache::Cached;
use super::{MakeUid, Operation, Request};
use crate::objects::Objects;

pub use quota::{Reservation, usage};

/// Objects of a kind by namespace.
type ByNamespace = HashMap<String, Vec<Arc<Value>>>;

/// The built-in plugins.
pub(super) struct Plugins {
    objects: Arc<dyn Objects>,
    make_uid: Arc<MakeUid>,
    limit_ranges: Cached<ByNamespace>,
    quotas: quota::Quotas,
}

impl Plugins {
    pub(super) fn new(objects: Arc<dyn Objects>, make_uid: Arc<MakeUid>) -> Self {
        let quotas = quota::Quotas::new(Arc::clone(&objects));
        Self { objects, make_uid, limit_ranges: Cached::default(), quotas }
    }

    /// Fills in what the cluster decides. Runs again after webhooks changed the object: each plugin adds only what is
    /// not there.
    pub(super) fn mutate(&self, request: &Request<'_>, object: &mut Value) -> Result<(), Status> {
        namespace::admit(self.objects.as_ref(), request, object)?;
        if is_new_pod(request) {
            service_account::add(self.objects.as_ref(), self.make_uid.as_ref(), request, object)?;
            limits::add_defaults(&self.limit_ranges(&request.attributes.namespace), object);
            priority::add(self.objects.as_ref(), request, object)?;
        }
        Ok(())
    }

    /// Refuses what the limits of its namespace do not allow.
    pub(super) fn validate(&self, request: &Request<'_>, object: &Value) -> Result<(), Status> {
        if !limits::concern(request) {
            return Ok(());
        }
        limits::check(&self.limit_ranges(&request.attributes.namespace), request, object)
    }

    /// Refuses what is over quota; see [`Reservation`].
    pub(super) async fn reserve(&self, request: &Request<'_>, object: &Value) -> Result<Reservation, Status> {
        self.quotas.reserve(request, object).await
    }

    fn limit_ranges(&self, namespace: &str) -> Vec<Arc<Value>> {
        let revision = self.objects.revision("", "limitranges");
        let cached = self.limit_ranges.at([revision], |_| by_namespace(self.objects.as_ref(), "limitranges"));
        cached.1.get(namespace).cloned().unwrap_or_default()
    }
}

fn by_namespace(objects: &dyn Objects, resource: &str) -> ByNamespace {
    let mut out = ByNamespace::new();
    for object in objects.list("", resource) {
        let namespace = object["metadata"]["namespace"].as_str().unwrap_or_default().to_owned();
        out.entry(namespace).or_default().push(object);
    }
    out
}

fn is_new_pod(request: &Request<'_>) -> bool {
    let attributes = request.attributes;
    request.operation == Operation::Create
        && attributes.group.is_empty()
        && attributes.resource == "pods"
        && attributes.subresource.is_empty()
}

/// The containers of a pod, those that prepare it first.
fn containers(pod: &Value) -> impl Iterator<Item = &Value> {
    ["initContainers", "containers"]
        .into_iter()
        .flat_map(|list| pod["spec"][list].as_array().into_iter().flatten())
}

/// Runs over the containers of a pod.
fn each_container(pod: &mut Value, mut change: impl FnMut(&str, &mut Value)) {
    for (list, word) in [("initContainers", "init container"), ("containers", "container")] {
        for container in
            pod["spec"][list].as_array_mut().into_iter().flatten().filter(|item| item.is_object())
        {
            change(word, container);
        }
    }
}

/// Sets a field of a field …, making objects on the way; leaves what is no object alone.
fn put(target: &mut Value, path: &[&str], value: Value) {
    let mut place = target;
    for key in path {
        if place.is_null() {
            *place = Value::Object(Map::new());
        }
        let Some(fields) = place.as_object_mut() else { return };
        place = fields.entry(*key).or_insert(Value::Null);
    }
    *place = value;
}
