//! A claim that pods use outlives its deletion until they are gone (`pkg/controller/volume/pvcprotection`, Kubernetes
//! 1.36). A pod counts from when it has a node, and for as long as it is there: one that has ended, too. So does a volume
//! that is bound (`pkg/controller/volume/pvprotection`).

use std::collections::HashSet;
use std::sync::Arc;

use apimachinery::tree::{Value, json};

use crate::api::{Api, PV_PROTECTION, PVC_PROTECTION};

/// Lets the claims of a namespace go that are deleted and not used. True: nothing is left to do.
pub fn reconcile(api: &Arc<Api>, namespace: &str) -> bool {
    let (_, claims) = api.store.select("persistentvolumeclaims.", Some(namespace));
    let going: Vec<_> = claims.into_iter().filter(|claim| claim.header().terminating).collect();
    if going.is_empty() {
        return true;
    }
    let (_, pods) = api.store.select("pods.", Some(namespace));
    let pods: Vec<Arc<Value>> = pods.iter().map(|stored| stored.value()).collect();
    let used: HashSet<&str> = pods.iter().flat_map(|pod| claims_of(pod)).collect();
    let mut done = true;
    for claim in going.iter().filter(|claim| !used.contains(&*claim.header().name)) {
        let Ok(call) = api.internal("", "persistentvolumeclaims", namespace, &claim.header().name) else {
            continue;
        };
        let written = api.change_system(&call, &|current| Ok(without(current, PVC_PROTECTION)));
        done &= written.is_ok() || written.is_err_and(|status| status.code == 404);
    }
    done
}

fn claims_of(pod: &Value) -> impl Iterator<Item = &str> {
    let placed = pod["spec"]["nodeName"].as_str().is_some_and(|node| !node.is_empty());
    let volumes = pod["spec"]["volumes"].as_array().filter(|_| placed);
    volumes.into_iter().flatten().filter_map(|volume| volume["persistentVolumeClaim"]["claimName"].as_str())
}

/// Lets a volume go that is deleted and not bound. True: nothing is left to do.
pub fn volume(api: &Arc<Api>, name: &str) -> bool {
    let Some(stored) = api.store.read("persistentvolumes.", "", name) else { return true };
    // Whoever unbinds it writes to it, and it is looked at again.
    if !stored.header().terminating || stored.value()["status"]["phase"] == "Bound" {
        return true;
    }
    let Ok(call) = api.internal("", "persistentvolumes", "", name) else { return true };
    let written = api.change_system(&call, &|current| Ok(without(current, PV_PROTECTION)));
    written.is_ok() || written.is_err_and(|status| status.code == 404)
}

fn without(object: &Value, finalizer: &str) -> Value {
    let mut object = object.clone();
    let finalizers = object["metadata"]["finalizers"].as_array().into_iter().flatten();
    let left: Vec<Value> = finalizers.filter(|one| *one != finalizer).cloned().collect();
    match object["metadata"].as_object_mut() {
        Some(metadata) if left.is_empty() => {
            metadata.remove("finalizers");
        }
        Some(metadata) => {
            metadata.insert("finalizers".into(), json!(left));
        }
        None => {}
    }
    object
}
