//! Reading what a cluster can do.

use kubevirt::{KubeVirtView, feature_gates};
use serde_json::{Value, json};

use super::Provider;
use crate::capability::{ASKED, Capabilities, Facts, Right, decide, groups};
use crate::view::list;
use crate::{Error, Kind, identity};

impl Provider {
    /// What the cluster can do, and what the caller may do in a namespace. What the caller may not read
    /// is named in `missing` and fails nothing else.
    pub async fn capabilities(&self, namespace: &str) -> Result<Capabilities, Error> {
        identity::label("namespace", namespace)?;
        let doing = "reading the cluster's capabilities";
        let (version, apis) = futures::join!(self.get("/version", doing), self.get("/apis", doing));
        let (version, apis) = (version?, apis?);
        let (kubevirts, cdi, storage_classes, snapshot_classes, nodes, ingresses, routes, allowed) = futures::join!(
            self.several("KubeVirt objects", "/apis/kubevirt.io/v1/kubevirts"),
            self.several("CDI objects", "/apis/cdi.kubevirt.io/v1beta1/cdis"),
            self.several("storage classes", "/apis/storage.k8s.io/v1/storageclasses"),
            self.several("snapshot classes", "/apis/snapshot.storage.k8s.io/v1/volumesnapshotclasses"),
            self.several("nodes", "/api/v1/nodes"),
            self.several("ingresses", "/apis/networking.k8s.io/v1/ingresses"),
            self.several("routes", "/apis/route.openshift.io/v1/routes"),
            futures::future::join_all(ASKED.iter().map(|right| self.may(namespace, right))),
        );
        let mut missing = Vec::new();
        let mut note = |found: Result<Option<Vec<Value>>, String>| {
            found.unwrap_or_else(|why| {
                missing.push(why);
                None
            })
        };
        let kubevirts = note(kubevirts);
        let (cdi, storage_classes) = (note(cdi), note(storage_classes));
        let (snapshot_classes, nodes) = (note(snapshot_classes), note(nodes));
        let ways_in = [note(ingresses), note(routes)].into_iter().flatten().flatten().collect();
        Ok(decide(Facts {
            version,
            groups: groups(&apis),
            kubevirt: kubevirts.and_then(|all| all.into_iter().next()),
            cdi,
            storage_classes,
            snapshot_classes,
            nodes,
            ways_in,
            allowed,
            missing,
        }))
    }

    /// Whether a gate is on, by KubeVirt's own rule. Who may not read the KubeVirt object is told by
    /// KubeVirt itself.
    pub(super) async fn require_gate(&self, gate: &str, doing: &str) -> Result<(), Error> {
        match self.kubevirt_object().await {
            Some(kubevirt) if !feature_gates::is_enabled(KubeVirtView(&kubevirt), gate) => {
                Err(gate_is_off(gate, doing))
            }
            _ => Ok(()),
        }
    }

    /// All objects of a kind, `None` when the cluster does not know the kind, or why not.
    pub(super) async fn several(&self, what: &str, path: &str) -> Result<Option<Vec<Value>>, String> {
        match self.get(path, what).await {
            Ok(found) => Ok(Some(list(&found, "/items").to_vec())),
            Err(error) if error.kind == Kind::NotFound => Ok(None),
            Err(error) => Err(format!("{what}: {}", error.wrong)),
        }
    }

    /// Asks the API server whether the caller may do something. The review is not stored.
    async fn may(&self, namespace: &str, right: &Right) -> Option<bool> {
        let (_, verb, group, resource, subresource) = right;
        let review = json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview",
            "spec": {"resourceAttributes": {"namespace": namespace, "verb": verb, "group": group,
                "resource": resource, "subresource": subresource}}});
        let path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
        let answer = self.create(path, &review, "asking what you may do").await.ok()?;
        answer.pointer("/status/allowed").and_then(Value::as_bool)
    }
}

/// A gate that something needs.
pub(super) fn gate_is_off(gate: &str, doing: &str) -> Error {
    let wrong = format!("the feature gate `{gate}` is off in KubeVirt");
    let remedy = format!(
        "have `{gate}` added to spec.configuration.developerConfiguration.featureGates, and taken out of \
         disabledFeatureGates"
    );
    Error::new(Kind::MissingCapability, doing, wrong, remedy)
}
