//! Garbage collection (`pkg/controller/garbagecollector`, Kubernetes 1.36): background, foreground
//! and orphaning deletion along `ownerReferences`.

use std::sync::Arc;

use apimachinery::tree::Value;

use crate::api::{Api, Call, FOREGROUND, ORPHAN, Options};
use crate::store::{Location, Stored};

const USER: &str = "system:serviceaccount:kube-system:generic-garbage-collector";

fn references(object: &Value) -> impl Iterator<Item = &Value> {
    object["metadata"]["ownerReferences"].as_array().into_iter().flatten()
}

fn call(api: &Api, location: &Location) -> Option<Call> {
    let kinds = api.registry.kinds();
    let kind = kinds.by_storage(&location.kind)?;
    let (namespace, name) = location.key.split_once('\0')?;
    Some(api.call_as(USER, kind.clone(), namespace, name))
}

/// Decides about everything that names `uid` as its owner. True: nothing is left to do.
pub async fn owner_gone(api: &Arc<Api>, uid: &str) -> bool {
    let mut done = true;
    for (location, _) in api.store.dependents(uid) {
        done &= owned(api, &location).await;
    }
    done
}

/// Deletes an object whose owners are all gone; takes the gone ones out when some are left.
pub async fn owned(api: &Arc<Api>, location: &Location) -> bool {
    let Some((mut call, stored)) = find(api, location) else { return true };
    let exists = |uid: &str| {
        api.store.by_uid(uid).is_some_and(|(place, owner)| {
            // An owner in another namespace does not count.
            let namespace = &owner.header().namespace;
            place.kind != location.kind
                || place.key != location.key
                    && (namespace.is_empty() || *namespace == stored.header().namespace)
        })
    };
    // The object itself is only read when something has to be done about it.
    if stored.header().owners.iter().all(|uid| exists(uid)) {
        return true;
    }
    let object = stored.value();
    let there = |reference: &&Value| reference["uid"].as_str().is_some_and(exists);
    let (live, gone): (Vec<&Value>, Vec<&Value>) = references(&object).partition(there);
    if gone.is_empty() {
        return true;
    }
    if live.is_empty() {
        if stored.header().terminating {
            return true;
        }
        let options = Options {
            uid: Some(stored.header().uid.to_string()),
            propagation: Some(policy(&object).into()),
            ..Options::default()
        };
        return settled(api.delete_object(&mut call, &options).await.map(|_| ()));
    }
    let kept: Vec<Value> = live.into_iter().cloned().collect();
    let make = |current: &Value| {
        let mut object = current.clone();
        object["metadata"]["ownerReferences"] = kept.clone().into();
        Ok(object)
    };
    settled(api.change(&mut call, &make).await.map(|_| ()))
}

/// Dependents go the way that their own finalizers say, in the background otherwise.
fn policy(object: &Value) -> &'static str {
    let mut finalizers = object["metadata"]["finalizers"].as_array().into_iter().flatten();
    let found = finalizers.find_map(|finalizer| match finalizer.as_str() {
        Some(FOREGROUND) => Some("Foreground"),
        Some(ORPHAN) => Some("Orphan"),
        _ => None,
    });
    found.unwrap_or("Background")
}

/// Deletes or lets go the dependents of an object that waits for them, then lets it go itself.
pub async fn waiting(api: &Arc<Api>, location: &Location) -> bool {
    let Some((mut own, stored)) = find(api, location) else { return true };
    let object = stored.value();
    let finalizers: Vec<&str> =
        object["metadata"]["finalizers"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let uid = stored.header().uid.clone();
    let finalizer = if finalizers.contains(&ORPHAN) { ORPHAN } else { FOREGROUND };
    if !finalizers.contains(&finalizer) {
        return true;
    }
    let mut blocked = false;
    for (place, dependent) in api.store.dependents(&uid) {
        let Some(mut call) = call(api, &place) else { continue };
        if finalizer == ORPHAN {
            blocked |= !orphan(api, &mut call, &uid).await;
            continue;
        }
        let value = dependent.value();
        let blocks = references(&value)
            .any(|reference| reference["uid"] == *uid && reference["blockOwnerDeletion"] == true);
        let only_owner = references(&value).all(|reference| reference["uid"] == *uid);
        if !only_owner {
            blocked |= !orphan(api, &mut call, &uid).await;
            continue;
        }
        if !dependent.header().terminating {
            let own_dependents = !api.store.dependents(&dependent.header().uid).is_empty();
            let policy = if own_dependents { "Foreground" } else { "Background" };
            let options = Options { propagation: Some(policy.into()), ..Options::default() };
            settled(api.delete_object(&mut call, &options).await.map(|_| ()));
        }
        blocked |= blocks && api.store.by_uid(&dependent.header().uid).is_some();
    }
    if blocked {
        return false;
    }
    let make = |current: &Value| {
        let mut object = current.clone();
        if let Some(finalizers) = object["metadata"]["finalizers"].as_array_mut() {
            finalizers.retain(|there| there != finalizer);
        }
        Ok(object)
    };
    settled(api.change(&mut own, &make).await.map(|_| ()))
}

async fn orphan(api: &Arc<Api>, call: &mut Call, uid: &str) -> bool {
    let make = |current: &Value| {
        let mut object = current.clone();
        if let Some(references) = object["metadata"]["ownerReferences"].as_array_mut() {
            references.retain(|reference| reference["uid"] != uid);
        }
        Ok(object)
    };
    settled(api.change(call, &make).await.map(|_| ()))
}

fn find(api: &Api, location: &Location) -> Option<(Call, Arc<Stored>)> {
    let call = call(api, location)?;
    let stored = api.stored(&call).ok()?;
    Some((call, stored))
}

fn settled(result: Result<(), apimachinery::Status>) -> bool {
    match result {
        Ok(()) => true,
        Err(status) if status.code == 404 => true,
        Err(status) => {
            tracing::debug!(%status, "garbage collection has to wait");
            false
        }
    }
}
