//! Policies, their exceptions, and what VMs have: watched, so that a decision reads nothing.
//!
//! VMs are watched only while some policy counts over a namespace: in a large cluster they are by
//! far the most objects.

use std::sync::Arc;
use std::time::Duration;

use features::policy::{API_VERSION, PolicyFacts};
use futures::StreamExt;
use kube::api::{ApiResource, DynamicObject};
use kube::core::GroupVersionKind;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client, ResourceExt};
use parking_lot::RwLock;
use serde_json::Value;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// Kinds of policies and their plurals.
const KINDS: [(&str, &str); 3] = [
    ("FeaturePolicy", "featurepolicies"),
    ("ClusterFeaturePolicy", "clusterfeaturepolicies"),
    ("FeaturePolicyException", "featurepolicyexceptions"),
];
/// Kinds of instancetypes and their plurals.
const TYPES: [(&str, &str); 2] = [
    ("VirtualMachineInstancetype", "virtualmachineinstancetypes"),
    ("VirtualMachineClusterInstancetype", "virtualmachineclusterinstancetypes"),
];
/// The version of instancetypes that is watched.
const TYPES_VERSION: &str = "instancetype.kubevirt.io/v1beta1";
/// How often it is looked whether VMs have to be counted, beside changes of policies.
const RECHECK: Duration = Duration::from_mins(1);

/// What is known about policies; empty until the first list, and where the kinds do not exist.
#[derive(Debug, Default)]
pub struct Policies {
    facts: RwLock<PolicyFacts>,
    changed: Notify,
}

impl Policies {
    /// Asks something of what is known.
    pub fn read<R>(&self, ask: impl FnOnce(&PolicyFacts) -> R) -> R {
        ask(&self.facts.read())
    }

    /// Takes in a policy or an exception; one that cannot be read is logged and not in force.
    pub fn add(&self, object: &Value) {
        if let Err(error) = self.facts.write().add(object) {
            tracing::error!(%error, "policy");
        }
        self.changed.notify_waiters();
    }

    fn remove(&self, kind: &str, key: &str) {
        let mut facts = self.facts.write();
        match kind {
            "FeaturePolicyException" => drop(facts.exceptions.remove(key)),
            _ => drop(facts.policies.remove(key)),
        }
        drop(facts);
        self.changed.notify_waiters();
    }
}

/// Follows policies until `stop`.
pub fn spawn(client: &Client, policies: &Arc<Policies>, stop: &CancellationToken) -> Vec<JoinHandle<()>> {
    let mut tasks: Vec<_> = KINDS
        .into_iter()
        .map(|(kind, plural)| {
            let (client, policies, stop) = (client.clone(), Arc::clone(policies), stop.clone());
            tokio::spawn(async move {
                tokio::select! {
                    () = stop.cancelled() => {}
                    () = follow_policies(client, kind, plural, &policies) => {}
                }
            })
        })
        .collect();
    tasks.extend(TYPES.into_iter().map(|(kind, plural)| {
        let (client, policies, stop) = (client.clone(), Arc::clone(policies), stop.clone());
        tokio::spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = follow_types(client, kind, plural, &policies) => {}
            }
        })
    }));
    let (client, policies, stop) = (client.clone(), Arc::clone(policies), stop.clone());
    tasks.push(tokio::spawn(async move {
        tokio::select! {
            () = stop.cancelled() => {}
            () = follow_machines(client, &policies) => {}
        }
    }));
    tasks
}

fn objects(client: Client, api_version: &str, kind: &str, plural: &str) -> (Api<DynamicObject>, ApiResource) {
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    let resource = ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(group, version, kind), plural);
    (Api::all_with(client, &resource), resource)
}

fn key(object: &DynamicObject) -> String {
    match object.namespace() {
        Some(namespace) => format!("{namespace}/{}", object.name_any()),
        None => object.name_any(),
    }
}

/// An object as the API server has it, with its kind, which items of a list do not carry.
fn whole(object: &DynamicObject, api_version: &str, kind: &str) -> Value {
    let mut value = object.data.clone();
    value["apiVersion"] = api_version.into();
    value["kind"] = kind.into();
    value["metadata"] =
        serde_json::json!({"name": object.metadata.name, "namespace": object.metadata.namespace});
    value
}

async fn follow_policies(client: Client, kind: &str, plural: &str, policies: &Policies) {
    let (api, resource) = objects(client, API_VERSION, kind, plural);
    let mut events = watcher(api, watcher::Config::default()).default_backoff().boxed();
    let mut listed: Vec<Value> = Vec::new();
    let whole = |object: &DynamicObject| whole(object, API_VERSION, kind);
    let mut is_told = false;
    while let Some(event) = events.next().await {
        match event {
            Ok(Event::Init) => listed.clear(),
            Ok(Event::InitApply(object)) => listed.push(whole(&object)),
            Ok(Event::InitDone) => {
                let mut facts = policies.facts.write();
                match kind {
                    "FeaturePolicyException" => facts.exceptions.clear(),
                    "FeaturePolicy" => facts.policies.retain(|_, policy| policy.namespace.is_none()),
                    _ => facts.policies.retain(|_, policy| policy.namespace.is_some()),
                }
                drop(facts);
                listed.drain(..).for_each(|object| policies.add(&object));
            }
            Ok(Event::Apply(object)) => {
                // one that becomes unreadable must not stay in force as it was
                policies.remove(kind, &key(&object));
                policies.add(&whole(&object));
            }
            Ok(Event::Delete(object)) => policies.remove(kind, &key(&object)),
            // where the chart's definitions are not installed there are no policies
            Err(error) => {
                if !is_told {
                    tracing::info!(kind = %resource.kind, %error, "policies are not watched yet");
                    is_told = true;
                }
            }
        }
    }
}

/// Follows what instancetypes give, while a policy is about devices.
async fn follow_types(client: Client, kind: &str, plural: &str, policies: &Policies) {
    let add = |object: &DynamicObject| policies.add(&whole(object, TYPES_VERSION, kind));
    let is_own = |key: &str| key.contains('/') == (kind == "VirtualMachineInstancetype");
    loop {
        while !policies.read(PolicyFacts::minds_devices) {
            let _ = tokio::time::timeout(RECHECK, policies.changed.notified()).await;
        }
        let (api, _) = objects(client.clone(), TYPES_VERSION, kind, plural);
        let mut events = watcher(api, watcher::Config::default()).default_backoff().boxed();
        let mut listed: Vec<DynamicObject> = Vec::new();
        while policies.read(PolicyFacts::minds_devices) {
            let Ok(event) = tokio::time::timeout(RECHECK, events.next()).await else { continue };
            match event {
                None => break,
                Some(Err(error)) => tracing::debug!(kind, %error, "instancetypes are not counted"),
                Some(Ok(Event::Init)) => listed.clear(),
                Some(Ok(Event::InitApply(object))) => listed.push(object),
                Some(Ok(Event::InitDone)) => {
                    policies.facts.write().instancetypes.retain(|key, _| !is_own(key));
                    listed.drain(..).for_each(|object| add(&object));
                }
                Some(Ok(Event::Apply(object))) => add(&object),
                Some(Ok(Event::Delete(object))) => {
                    policies.facts.write().instancetypes.remove(&key(&object));
                }
            }
        }
        policies.facts.write().instancetypes.retain(|key, _| !is_own(key));
    }
}

/// Counts the devices of VMs while a policy wants it.
async fn follow_machines(client: Client, policies: &Policies) {
    loop {
        while !policies.read(PolicyFacts::counts_namespaces) {
            let _ = tokio::time::timeout(RECHECK, policies.changed.notified()).await;
        }
        let (api, _) = objects(client.clone(), "kubevirt.io/v1", "VirtualMachine", "virtualmachines");
        let mut events = watcher(api, watcher::Config::default()).default_backoff().boxed();
        let mut fresh = PolicyFacts::default();
        while policies.read(PolicyFacts::counts_namespaces) {
            let Ok(event) = tokio::time::timeout(RECHECK, events.next()).await else { continue };
            let place = |object: &DynamicObject| (object.namespace().unwrap_or_default(), object.name_any());
            match event {
                None => break,
                Some(Err(error)) => tracing::warn!(%error, "VirtualMachines are not counted"),
                Some(Ok(Event::Init)) => fresh = PolicyFacts::default(),
                Some(Ok(Event::InitApply(object))) => {
                    let (namespace, name) = place(&object);
                    fresh.count(&namespace, &name, &object.data);
                }
                Some(Ok(Event::InitDone)) => {
                    policies.facts.write().usage = std::mem::take(&mut fresh.usage);
                }
                Some(Ok(Event::Apply(object))) => {
                    let (namespace, name) = place(&object);
                    policies.facts.write().count(&namespace, &name, &object.data);
                }
                Some(Ok(Event::Delete(object))) => {
                    let (namespace, name) = place(&object);
                    policies.facts.write().forget(&namespace, &name);
                }
            }
        }
        policies.facts.write().usage.clear();
    }
}
