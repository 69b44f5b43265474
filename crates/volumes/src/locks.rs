//! Locks of claims that only one VM may have: a Lease for each, taken in the order of their names, all or none. Whoever cannot
//! have all gives back what it has before it waits, so nobody waits for a claim while it holds one that another waits for.
//!
//! A lock that is not renewed for [`TERM`] is anybody's, and every write is guarded by the `resourceVersion` that was read.

use hotplug::claims::lock_name;
use http::{Method, StatusCode};
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::api::Api;
use crate::{Error, Machine};

/// How long a lock counts without being renewed, in seconds.
pub(crate) const TERM: i64 = 60;

/// Who has a lock that was asked for.
#[derive(Debug, Eq, PartialEq)]
pub(crate) struct Taken {
    pub(crate) claim: String,
    pub(crate) by: String,
}

impl Taken {
    /// In words, for people.
    pub(crate) fn words(&self) -> String {
        format!("claim {} is being moved by {}", self.claim, self.by)
    }
}

/// Locks that are held.
#[derive(Default)]
pub(crate) struct Locks {
    held: Vec<String>,
}

/// Whether a Lease belongs to somebody else still.
pub(crate) fn holder_of(lease: &Value, me: &str, now: Timestamp) -> Option<String> {
    let spec = &lease["spec"];
    let holder = spec["holderIdentity"].as_str().unwrap_or_default();
    if holder.is_empty() || holder == me {
        return None;
    }
    let renewed: Option<Timestamp> = spec["renewTime"].as_str().and_then(|at| at.parse().ok());
    let term = spec["leaseDurationSeconds"].as_i64().unwrap_or(TERM);
    let lives = renewed.is_some_and(|at| now.duration_since(at).as_secs() <= term);
    lives.then(|| holder.to_owned())
}

impl Locks {
    /// Locks that an earlier call may have taken.
    pub(crate) fn of(claims: &[&str]) -> Self {
        Self { held: claims.iter().map(|claim| (*claim).to_owned()).collect() }
    }

    /// Keeps those alive that are still this holder's.
    pub(crate) async fn renew_own(&self, machine: &Machine, me: &str) -> Result<(), Error> {
        for claim in &self.held {
            // Without the right to read Leases there are no locks.
            let lease = machine.api.find(&path(&machine.namespace, &lock_name(claim))).await;
            if lease.is_ok_and(|lease| lease["spec"]["holderIdentity"] == me) {
                acquire(&machine.api, &machine.namespace, claim, me).await?;
            }
        }
        Ok(())
    }

    /// Takes the locks of `claims`, which are in order; holding others is an error of the caller. `Some`: somebody has one.
    pub(crate) async fn take(
        &mut self,
        machine: &Machine,
        me: &str,
        claims: &[&str],
    ) -> Result<Option<Taken>, Error> {
        for claim in claims {
            if self.held.iter().any(|held| held == claim) {
                continue;
            }
            match acquire(&machine.api, &machine.namespace, claim, me).await? {
                Acquired::Mine => self.held.push((*claim).to_owned()),
                // Without the right to keep Leases there are no locks, and the claims themselves are looked at as before.
                Acquired::Forbidden => {}
                Acquired::Taken(by) => {
                    self.release(machine, me).await;
                    return Ok(Some(Taken { claim: (*claim).to_owned(), by }));
                }
            }
        }
        Ok(None)
    }

    /// Keeps the locks alive.
    pub(crate) async fn renew(&self, machine: &Machine, me: &str) -> Result<(), Error> {
        for claim in &self.held {
            acquire(&machine.api, &machine.namespace, claim, me).await?;
        }
        Ok(())
    }

    /// Gives all locks back. What fails runs out by itself.
    pub(crate) async fn release(&mut self, machine: &Machine, me: &str) {
        for claim in self.held.drain(..) {
            let path = path(&machine.namespace, &lock_name(&claim));
            let Ok(lease) = machine.api.find(&path).await else { continue };
            if lease["spec"]["holderIdentity"] != me {
                continue;
            }
            let options = json!({"kind": "DeleteOptions", "apiVersion": "v1", "preconditions": {
                "uid": lease["metadata"]["uid"], "resourceVersion": lease["metadata"]["resourceVersion"]}});
            let _ = machine.api.send(Method::DELETE, &path, "application/json", &options).await;
        }
    }
}

enum Acquired {
    Mine,
    Taken(String),
    Forbidden,
}

fn path(namespace: &str, name: &str) -> String {
    format!("/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases/{name}")
}

async fn acquire(api: &Api, namespace: &str, claim: &str, me: &str) -> Result<Acquired, Error> {
    let name = lock_name(claim);
    let path = path(namespace, &name);
    let (collection, _) = path.rsplit_once('/').unwrap_or((path.as_str(), ""));
    let now = Timestamp::now();
    let at = now.strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string();
    let spec = json!({"holderIdentity": me, "leaseDurationSeconds": TERM, "renewTime": at});
    let found = match api.find(&path).await {
        Err(Error::Api { code: 403, .. }) => return Ok(Acquired::Forbidden),
        other => other?,
    };
    let doing = format!("locking claim {namespace}/{claim}");
    let reply = if found.is_null() {
        let lease = json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "spec": spec,
            "metadata": {"name": name, "namespace": namespace,
                "labels": {"app.kubernetes.io/managed-by": "virt-steward"},
                "annotations": {"vm-feature-manager.io/claim": claim}}});
        api.send(Method::POST, collection, "application/json", &lease).await?
    } else {
        if let Some(by) = holder_of(&found, me, now) {
            return Ok(Acquired::Taken(by));
        }
        let patch =
            json!({"metadata": {"resourceVersion": found["metadata"]["resourceVersion"]}, "spec": spec});
        api.send(Method::PATCH, &path, "application/merge-patch+json", &patch).await?
    };
    match reply.status {
        StatusCode::FORBIDDEN => Ok(Acquired::Forbidden),
        // Somebody else was faster by a moment, or has given it back in this moment.
        StatusCode::CONFLICT | StatusCode::NOT_FOUND => Ok(Acquired::Taken("somebody else".into())),
        _ => reply.object(&doing).map(|_| Acquired::Mine),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_is_anothers_as_long_as_it_is_renewed() {
        let now: Timestamp = "2026-01-01T00:01:00Z".parse().unwrap();
        let lease = |holder: &str, renewed: &str| json!({"spec": {"holderIdentity": holder, "leaseDurationSeconds": 60, "renewTime": renewed}});
        for (lease, holder) in [
            (lease("other", "2026-01-01T00:00:30.000000Z"), Some("other")),
            (lease("other", "2025-12-31T23:59:59.000000Z"), None),
            (lease("me", "2026-01-01T00:00:30.000000Z"), None),
            (lease("", "2026-01-01T00:00:30.000000Z"), None),
            (lease("other", "not a time"), None),
            (json!({}), None),
        ] {
            assert_eq!(holder_of(&lease, "me", now).as_deref(), holder, "{lease}");
        }
    }
}
