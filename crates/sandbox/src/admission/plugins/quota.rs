//! `ResourceQuota`: counts of objects, and what pods and claims ask for together (`pkg/quota/v1`, Kubernetes 1.36).
//!
//! Usage is computed from the store while a namespace's lock is held, and the lock is kept until the write is done: two
//! requests can never both take what is left for one. Namespaces without quotas have no lock.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use apimachinery::Status;
use apimachinery::tree::{Text, Value, json};
use tokio::sync::{Mutex as AsyncMutex, OwnedMutexGuard};

use super::limits::total;
use super::{ByNamespace, by_namespace, containers};
use crate::admission::cache::Cached;
use crate::admission::matcher::items;
use crate::admission::{Operation, Request};
use crate::objects::Objects;
use apimachinery::quantity::Quantity;

/// What is kept while an admitted object is written: drop it when the write has succeeded or failed.
#[derive(Debug, Default)]
#[must_use = "quota holds only while this is kept until the write is done"]
pub struct Reservation {
    _lock: Option<OwnedMutexGuard<()>>,
}

/// Amounts by the names that quotas give them.
type Usage = BTreeMap<String, Quantity>;

/// All quotas of a cluster.
pub(super) struct Quotas {
    objects: Arc<dyn Objects>,
    specified: Cached<ByNamespace>,
    locks: Mutex<HashMap<String, Arc<AsyncMutex<()>>>>,
}

impl Quotas {
    pub(super) fn new(objects: Arc<dyn Objects>) -> Self {
        Self { objects, specified: Cached::default(), locks: Mutex::default() }
    }

    /// Refuses a request that asks for more than is left.
    pub(super) async fn reserve(&self, request: &Request<'_>, object: &Value) -> Result<Reservation, Status> {
        let namespace = &request.attributes.namespace;
        let revision = self.objects.revision("", "resourcequotas");
        let quotas = self.specified.at([revision], |_| by_namespace(self.objects.as_ref(), "resourcequotas"));
        let Some(quotas) = quotas.1.get(namespace).filter(|_| is_counted(request)) else {
            return Ok(Reservation::default());
        };
        let lock = Arc::clone(
            self.locks.lock().unwrap_or_else(PoisonError::into_inner).entry(namespace.clone()).or_default(),
        );
        let lock = lock.lock_owned().await;
        let (group, resource) = (&request.attributes.group, &request.attributes.resource);
        let mut wrong = Vec::new();
        for quota in quotas.iter().filter(|quota| in_scope(quota, resource, object)) {
            if request.operation == Operation::Create {
                named(quota, resource, object).map_err(|why| request.forbidden(object, &why))?;
            }
            let before = request.old.map(|old| of_object(group, resource, old)).unwrap_or_default();
            let after = of_object(group, resource, object);
            wrong.extend(exceeded(self.objects.as_ref(), quota, &before, &after));
        }
        if let Some(why) = wrong.first() {
            return Err(request.forbidden(object, why));
        }
        Ok(Reservation { _lock: Some(lock) })
    }
}

fn is_counted(request: &Request<'_>) -> bool {
    let attributes = request.attributes;
    let (resource, subresource) = (attributes.resource.as_str(), attributes.subresource.as_str());
    match request.operation {
        Operation::Create => subresource.is_empty(),
        Operation::Update if attributes.group.is_empty() => matches!(
            (resource, subresource),
            ("pods", "" | "resize") | ("persistentvolumeclaims" | "services", "")
        ),
        _ => false,
    }
}

/// Where a write takes more than is left of a quota.
fn exceeded(objects: &dyn Objects, quota: &Value, before: &Usage, after: &Usage) -> Option<String> {
    let hard = quota["spec"]["hard"].as_object()?;
    let zero = Quantity::default();
    let delta = |name: &str| *after.get(name).unwrap_or(&zero) - *before.get(name).unwrap_or(&zero);
    if !hard.keys().any(|name| delta(canonical(name)).is_positive()) {
        return None;
    }
    let used = used(objects, quota);
    let (mut requested, mut current, mut limited) = (Vec::new(), Vec::new(), Vec::new());
    for (name, limit) in hard {
        let (Some(limit), delta) = (Quantity::parse(limit), delta(canonical(name))) else { continue };
        let used = *used.get(name.as_str()).unwrap_or(&zero);
        if delta.is_positive() && used + delta > limit {
            requested.push(format!("{name}={delta}"));
            current.push(format!("{name}={used}"));
            limited.push(format!("{name}={limit}"));
        }
    }
    if requested.is_empty() {
        return None;
    }
    let name = quota["metadata"]["name"].as_str().unwrap_or_default();
    let (requested, current, limited) = (requested.join(","), current.join(","), limited.join(","));
    Some(format!("exceeded quota: {name}, requested: {requested}, used: {current}, limited: {limited}"))
}

/// Containers must name what a quota limits.
fn named(quota: &Value, resource: &str, pod: &Value) -> Result<(), String> {
    const COMPUTE: [&str; 6] =
        ["cpu", "memory", "requests.cpu", "requests.memory", "limits.cpu", "limits.memory"];
    if resource != "pods" {
        return Ok(());
    }
    let hard = quota["spec"]["hard"].as_object().into_iter().flatten();
    let mut missing = Vec::new();
    for name in hard.map(|(name, _)| name.as_str()).filter(|name| COMPUTE.contains(name)) {
        let (list, amount) = canonical(name).split_once('.').unwrap_or(("requests", name));
        let lacking = containers(pod).filter(|container| container["resources"][list].get(amount).is_none());
        let lacking: Vec<&str> = lacking.filter_map(|container| container["name"].as_str()).collect();
        if !lacking.is_empty() {
            missing.push(format!("{name} for: {}", lacking.join(",")));
        }
    }
    if missing.is_empty() {
        return Ok(());
    }
    let name = quota["metadata"]["name"].as_str().unwrap_or_default();
    Err(format!("failed quota: {name}: must specify {}", missing.join("; ")))
}

/// The `status` of a quota: `hard` as specified, `used` as the store has it.
pub fn usage(objects: &dyn Objects, quota: &Value) -> Value {
    let used = used(objects, quota);
    let used: BTreeMap<&String, String> =
        used.iter().map(|(name, amount)| (name, amount.to_string())).collect();
    json!({"hard": quota["spec"]["hard"], "used": used})
}

fn used(objects: &dyn Objects, quota: &Value) -> Usage {
    let namespace = &quota["metadata"]["namespace"];
    let hard: Vec<&str> = quota["spec"]["hard"]
        .as_object()
        .map(|hard| hard.keys().map(Text::as_str).collect())
        .unwrap_or_default();
    let mut kinds: Vec<(String, String)> = hard.iter().map(|name| kind_of(name)).collect();
    kinds.sort_unstable();
    kinds.dedup();
    let mut total = Usage::new();
    for (group, resource) in kinds {
        for object in objects.list(&group, &resource) {
            if &object["metadata"]["namespace"] != namespace || !in_scope(quota, &resource, &object) {
                continue;
            }
            for (name, amount) in of_object(&group, &resource, &object) {
                let sum = total.entry(name).or_default();
                *sum = *sum + amount;
            }
        }
    }
    let of = |name: &str| (name.to_owned(), total.get(canonical(name)).copied().unwrap_or_default());
    hard.into_iter().map(of).collect()
}

/// `cpu` and `memory` are short for requests.
fn canonical(name: &str) -> &str {
    match name {
        "cpu" => "requests.cpu",
        "memory" => "requests.memory",
        "ephemeral-storage" => "requests.ephemeral-storage",
        name => name,
    }
}

/// The kind of objects that a name in `hard` is about.
fn kind_of(name: &str) -> (String, String) {
    if let Some(counted) = name.strip_prefix("count/") {
        let (resource, group) = counted.split_once('.').unwrap_or((counted, ""));
        return (group.into(), resource.into());
    }
    let resource = match name {
        "configmaps"
        | "secrets"
        | "services"
        | "persistentvolumeclaims"
        | "replicationcontrollers"
        | "resourcequotas" => name,
        "services.nodeports" | "services.loadbalancers" => "services",
        name if name == "requests.storage" || name.contains(".storageclass.storage.k8s.io/") => {
            "persistentvolumeclaims"
        }
        _ => "pods",
    };
    (String::new(), resource.into())
}

/// What one object takes.
fn of_object(group: &str, resource: &str, object: &Value) -> Usage {
    let mut usage = Usage::new();
    let one = Quantity::count(1);
    let counted =
        if group.is_empty() { format!("count/{resource}") } else { format!("count/{resource}.{group}") };
    usage.insert(counted, one);
    if !group.is_empty() {
        return usage;
    }
    match resource {
        "pods" => {
            // a pod that has ended takes no node's resources, but is still an object
            if matches!(object["status"]["phase"].as_str(), Some("Succeeded" | "Failed")) {
                return usage;
            }
            for list in ["requests", "limits"] {
                usage.extend(
                    total(object, list).into_iter().map(|(name, amount)| (format!("{list}.{name}"), amount)),
                );
            }
        }
        "persistentvolumeclaims" => {
            let storage =
                Quantity::parse(&object["spec"]["resources"]["requests"]["storage"]).unwrap_or_default();
            if let Some(class) = object["spec"]["storageClassName"].as_str() {
                let of_class = format!("{class}.storageclass.storage.k8s.io");
                usage.insert(format!("{of_class}/requests.storage"), storage);
                usage.insert(format!("{of_class}/persistentvolumeclaims"), one);
            }
            usage.insert("requests.storage".into(), storage);
        }
        "services" => {
            let balanced = object["spec"]["type"] == "LoadBalancer";
            let ports = items(&object["spec"]["ports"]).count();
            if balanced {
                usage.insert("services.loadbalancers".into(), one);
            }
            if balanced || object["spec"]["type"] == "NodePort" {
                usage.insert("services.nodeports".into(), Quantity::count(ports));
            }
        }
        _ => {}
    }
    usage.insert(resource.to_owned(), one);
    usage
}

/// Quotas with scopes count only pods that are in all of them.
fn in_scope(quota: &Value, resource: &str, object: &Value) -> bool {
    let scopes = items(&quota["spec"]["scopes"]).filter_map(Value::as_str);
    let selected = items(&quota["spec"]["scopeSelector"]["matchExpressions"]);
    let mut plain = scopes
        .map(|scope| (scope, &Value::Null))
        .chain(selected.map(|e| (e["scopeName"].as_str().unwrap_or_default(), e)));
    plain.all(|(scope, expression)| resource == "pods" && pod_is(scope, expression, object))
}

fn pod_is(scope: &str, expression: &Value, pod: &Value) -> bool {
    let limited = pod["spec"]["activeDeadlineSeconds"].as_i64().is_some();
    let best_effort = || total(pod, "requests").is_empty() && total(pod, "limits").is_empty();
    match scope {
        "Terminating" => limited,
        "NotTerminating" => !limited,
        "BestEffort" => best_effort(),
        "NotBestEffort" => !best_effort(),
        "PriorityClass" => {
            let class = pod["spec"]["priorityClassName"].as_str().unwrap_or_default();
            let listed = items(&expression["values"]).any(|value| value == class);
            match expression["operator"].as_str() {
                Some("In") => listed,
                Some("NotIn") => !listed,
                Some("DoesNotExist") => class.is_empty(),
                _ => !class.is_empty(),
            }
        }
        _ => false,
    }
}
