//! Namespaces: what every one has, and how one is emptied
//! (`pkg/controller/namespace/deletion`, Kubernetes 1.36: pods first, KEP-5080). Definitions are
//! emptied the same way.

use std::collections::BTreeMap;
use std::sync::Arc;

use apimachinery::Status;
use apimachinery::tree::{Value, json};

use crate::api::Api;
use crate::clock::seconds;
use crate::registry::{Kind, Verbs};

const USER: &str = "system:serviceaccount:kube-system:namespace-controller";
const ACCOUNTS: &str = "system:serviceaccount:kube-system:service-account-controller";

/// Brings a namespace one step on. True: nothing is left to do.
pub async fn reconcile(api: &Arc<Api>, name: &str) -> bool {
    let Some(stored) = api.store.read("namespaces.", "", name) else { return true };
    if stored.header().terminating { empty(api, name).await } else { furnish(api, name).await }
}

/// The default service account and the bundle of the cluster's CA.
async fn furnish(api: &Arc<Api>, namespace: &str) -> bool {
    let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}});
    let bundle = json!({"apiVersion": "v1", "kind": "ConfigMap", "data": {"ca.crt": api.ca},
        "metadata": {"name": "kube-root-ca.crt", "annotations": {"kubernetes.io/description":
            "Contains a CA bundle that can be used to verify the kube-apiserver when using internal endpoints such as the internal service IP or kubernetes.default.svc. No other usage is guaranteed across distributions of Kubernetes clusters."}}});
    let mut done = true;
    for (resource, object) in [("serviceaccounts", account), ("configmaps", bundle)] {
        let name = object["metadata"]["name"].as_str().unwrap_or_default();
        if api.store.read(&format!("{resource}."), namespace, name).is_some() {
            continue;
        }
        let Ok(call) = api.internal("", resource, namespace, "") else { continue };
        let mut call = api.call_as(ACCOUNTS, call.kind, namespace, "");
        done &= match api.create_object(&mut call, object, "CreateOptions").await {
            Ok(_) => true,
            Err(status) => matches!(status.code, 403 | 404 | 409),
        };
    }
    done
}

/// Deletes everything in a namespace, pods first, and lets the namespace go.
async fn empty(api: &Arc<Api>, name: &str) -> bool {
    let kinds = api.registry.kinds();
    let mut collections: Vec<&Arc<Kind>> = Vec::new();
    for kind in kinds.iter().filter(|kind| kind.namespaced && kind.verbs == Verbs::All) {
        if !collections.iter().any(|there| there.storage == kind.storage) {
            collections.push(kind);
        }
    }
    collections.sort_by_key(|kind| !kind.is("", "pods"));
    let mut left = Left::default();
    for kind in collections {
        if api.store.select(&kind.storage, Some(name)).1.is_empty() {
            continue;
        }
        let mut call = api.call_as(USER, kind.clone(), name, "");
        match api.delete_collection(&mut call).await {
            // Nobody looks at what is left where a deletion was refused.
            Err(status) => left.failures.push(status.message),
            Ok(_) => left.count(api, kind, name),
        }
        if kind.is("", "pods") && !left.is_nothing() {
            break;
        }
    }
    if left.is_nothing() {
        return finalize(api, name).is_ok();
    }
    report(api, name, &left);
    false
}

/// What is left in a namespace, and why (`allGVRDeletionMetadata`).
#[derive(Default)]
struct Left {
    resources: BTreeMap<String, usize>,
    finalizers: BTreeMap<String, usize>,
    failures: Vec<String>,
}

impl Left {
    fn is_nothing(&self) -> bool {
        self.resources.is_empty() && self.failures.is_empty()
    }

    fn count(&mut self, api: &Api, kind: &Kind, namespace: &str) {
        let (_, objects) = api.store.select(&kind.storage, Some(namespace));
        if objects.is_empty() {
            return;
        }
        self.resources.insert(format!("{}.{}", kind.plural, kind.group), objects.len());
        let mut held = false;
        for object in &objects {
            let object = object.value();
            for finalizer in object["metadata"]["finalizers"].as_array().into_iter().flatten() {
                *self.finalizers.entry(finalizer.as_str().unwrap_or_default().to_owned()).or_default() += 1;
                held = true;
            }
        }
        // Pods take the time that they are given.
        if !held && !kind.is("", "pods") {
            let (group, version, plural) = (&kind.group, &kind.version, &kind.plural);
            self.failures.push(format!(
                "unexpected items still remain in namespace: {namespace} for gvr: {group}/{version}, Resource={plural}"
            ));
        }
    }

    /// A message about all of them, sorted.
    fn message(intro: &str, counts: &BTreeMap<String, usize>, between: &str) -> String {
        let all = counts.iter().map(|(name, count)| format!("{name} {between} {count} resource instances"));
        format!("{intro}: {}", all.collect::<Vec<_>>().join(", "))
    }
}

fn finalize(api: &Arc<Api>, name: &str) -> Result<(), Status> {
    let call = api.internal("", "namespaces", "", name)?;
    match api.change_system(&call, &|current| {
        let mut namespace = current.clone();
        if let Some(finalizers) = namespace["spec"]["finalizers"].as_array_mut() {
            finalizers.retain(|finalizer| finalizer != "kubernetes");
        }
        Ok(namespace)
    }) {
        Err(status) if status.code != 404 => Err(status),
        _ => Ok(()),
    }
}

fn report(api: &Arc<Api>, name: &str, left: &Left) {
    let now = seconds(api.clock.now());
    let condition = |kind: &str, bad: bool, reasons: (&str, &str), message: String| {
        let (status, reason) = if bad { ("True", reasons.0) } else { ("False", reasons.1) };
        json!({"type": kind, "status": status, "reason": reason, "message": message, "lastTransitionTime": now})
    };
    let mut failures = left.failures.clone();
    failures.sort();
    let failed = if failures.is_empty() {
        "All content successfully deleted, may be waiting on finalization".to_owned()
    } else {
        let (count, all) = (failures.len(), failures.join(", "));
        format!("Failed to delete all resource types, {count} remaining: {all}")
    };
    let remaining = if left.resources.is_empty() {
        "All content successfully removed".to_owned()
    } else {
        Left::message("Some resources are remaining", &left.resources, "has")
    };
    let finalizers = if left.finalizers.is_empty() {
        "All content-preserving finalizers finished".to_owned()
    } else {
        Left::message("Some content in the namespace has finalizers remaining", &left.finalizers, "in")
    };
    let conditions = json!([
        condition(
            "NamespaceDeletionDiscoveryFailure",
            false,
            ("", "ResourcesDiscovered"),
            "All resources successfully discovered".into()
        ),
        condition(
            "NamespaceDeletionGroupVersionParsingFailure",
            false,
            ("", "ParsedGroupVersions"),
            "All legacy kube types successfully parsed".into()
        ),
        condition(
            "NamespaceDeletionContentFailure",
            !left.failures.is_empty(),
            ("ContentDeletionFailed", "ContentDeleted"),
            failed
        ),
        condition(
            "NamespaceContentRemaining",
            !left.resources.is_empty(),
            ("SomeResourcesRemain", "ContentRemoved"),
            remaining
        ),
        condition(
            "NamespaceFinalizersRemaining",
            !left.finalizers.is_empty(),
            ("SomeFinalizersRemain", "ContentHasNoFinalizers"),
            finalizers
        ),
    ]);
    let Ok(call) = api.internal("", "namespaces", "", name) else { return };
    let result = api.change_system(&call, &|current| {
        let mut namespace = current.clone();
        if !same(&namespace["status"]["conditions"], &conditions) {
            namespace["status"]["conditions"] = conditions.clone();
        }
        Ok(namespace)
    });
    if let Err(status) = result {
        tracing::debug!(%status, namespace = name, "conditions were not written");
    }
}

/// Equal but for the times.
fn same(there: &Value, wanted: &Value) -> bool {
    let strip = |conditions: &Value| -> Vec<[Value; 4]> {
        let conditions = conditions.as_array().into_iter().flatten();
        conditions.map(|one| ["type", "status", "reason", "message"].map(|key| one[key].clone())).collect()
    };
    strip(there) == strip(wanted)
}

/// Deletes all objects of a definition that is on its way out, then lets it go.
pub async fn definition(api: &Arc<Api>, name: &str) -> bool {
    const STORAGE: &str = "customresourcedefinitions.apiextensions.k8s.io";
    if api.store.read(STORAGE, "", name).is_none_or(|stored| !stored.header().terminating) {
        return true;
    }
    let kinds = api.registry.kinds();
    let kind = kinds.iter().find(|kind| kind.definition().is_some_and(|definition| definition.name == name));
    if let Some(kind) = kind {
        let mut call = api.call_as(USER, kind.clone(), "", "");
        let deleted = api.delete_collection(&mut call).await;
        if deleted.is_err() || !api.store.select(&kind.storage, None).1.is_empty() {
            return false;
        }
    }
    let Ok(call) = api.internal("apiextensions.k8s.io", "customresourcedefinitions", "", name) else {
        return true;
    };
    let result = api.change_system(&call, &|current| {
        let mut definition = current.clone();
        if let Some(finalizers) = definition["metadata"]["finalizers"].as_array_mut() {
            finalizers.retain(|finalizer| finalizer != crate::api::CLEANUP);
        }
        Ok(definition)
    });
    result.is_ok()
}
