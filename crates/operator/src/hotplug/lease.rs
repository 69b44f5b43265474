//! The record of one launcher, in an annotation of a Lease beside it. The Lease belongs to the
//! launcher pod and goes with it. A Lease and not the pod: a right to change pods would be a right
//! to run any image.

use hotplug::annotations::RECORD;
use hotplug::record::Record;
use serde_json::{Value, json};

use super::observe::{Unreadable, find};
use crate::kubernetes::Raw;

/// A record as it was read.
pub(super) struct Stored {
    pub(super) record: Record,
    version: Option<String>,
    collection: String,
    name: String,
    owner: Value,
}

impl Stored {
    /// Reads the record of a launcher pod.
    pub(super) async fn read(api: &Raw, namespace: &str, launcher: (&str, &str)) -> Result<Self, Unreadable> {
        let (launcher, uid) = launcher;
        let collection = format!("/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases");
        let name = format!("hotplug-{uid}");
        let owner = json!({"apiVersion": "v1", "kind": "Pod", "name": launcher, "uid": uid});
        let empty = |version| Self {
            record: Record::default(),
            version,
            collection: collection.clone(),
            name: name.clone(),
            owner: owner.clone(),
        };
        match find(api, &format!("{collection}/{name}")).await? {
            Value::Null => Ok(empty(None)),
            lease => {
                let metadata = &lease["metadata"];
                let text = metadata["annotations"][RECORD].as_str().unwrap_or_default();
                let version = metadata["resourceVersion"].as_str().map(str::to_owned);
                Ok(Self { record: Record::parse(text), ..empty(version) })
            }
        }
    }

    /// Writes it, unless somebody else has written meanwhile: `false`.
    pub(super) async fn write(&self, api: &Raw, record: &Record) -> Result<bool, Unreadable> {
        let annotations = json!({RECORD: record.text()});
        let written = if let Some(version) = &self.version {
            let patch = json!({"metadata": {"resourceVersion": version, "annotations": annotations}});
            api.merge(&format!("{}/{}", self.collection, self.name), &patch).await
        } else {
            let lease = json!({
                "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
                "metadata": {
                    "name": self.name, "annotations": annotations, "ownerReferences": [self.owner],
                    "labels": {"app.kubernetes.io/managed-by": "virt-steward"},
                },
            });
            api.create(&self.collection, &lease).await
        };
        match written {
            Ok(_) => Ok(true),
            // Changed, created or gone since it was read.
            Err(error) if matches!(error.code(), Some(404 | 409)) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}
