//! What a write to one kind means for the server itself, and requests that the server makes.

use std::sync::Arc;

use apimachinery::Status;
use apimachinery::tree::Value;
use bytes::Bytes;

use super::negotiate::Form;
use super::query::Query;
use super::target::Target;
use super::{Api, Call, strategy, unknown};
use crate::attributes::User;
use crate::registry::Kind;
use crate::store::Stored;

impl Api {
    /// Called after every write.
    pub fn after_write(&self, kind: &Kind, stored: &Stored) {
        if kind.is("apiextensions.k8s.io", "customresourcedefinitions")
            && let Err(error) = self.registry.define(&stored.value())
        {
            tracing::warn!(%error, "a CustomResourceDefinition is not served");
        }
        self.work.written(kind, stored);
    }

    /// Called after every removal.
    pub fn after_removal(&self, kind: &Kind, stored: &Stored) {
        if kind.is("apiextensions.k8s.io", "customresourcedefinitions") {
            self.registry.undefine(&stored.header().name);
        }
        self.work.removed(kind, stored);
    }

    /// A new object with its defaults and what the server decides, without identity.
    pub fn furnished(&self, kind: &Kind, mut object: Value, now: &str) -> Value {
        strategy::fill_defaults(kind, &mut object);
        strategy::prepare_create(kind, &mut object, now);
        if strategy::counts_generations(kind) {
            object["metadata"]["generation"] = 1.into();
        }
        object
    }

    /// A request that comes from the server itself, under the name of a controller.
    pub fn call_as(&self, user: &str, kind: Arc<Kind>, namespace: &str, name: &str) -> Call {
        let mut groups = vec!["system:authenticated".to_owned()];
        if user.starts_with("system:serviceaccount:") {
            groups.extend(["system:serviceaccounts".into(), "system:serviceaccounts:kube-system".into()]);
        }
        let target = Target {
            group: kind.group.clone(),
            version: kind.version.clone(),
            resource: kind.plural.clone(),
            namespace: namespace.into(),
            name: name.into(),
            subresource: String::new(),
        };
        Call {
            user: User { name: user.into(), groups, ..User::default() },
            kind,
            target,
            query: Query::default(),
            form: Form::Json,
            content_type: "application/merge-patch+json".into(),
            user_agent: user.rsplit(':').next().unwrap_or_default().into(),
            body: Bytes::new(),
            dry_run: false,
            complaints: Vec::new(),
            warnings: Vec::new(),
            annotations: std::collections::BTreeMap::new(),
        }
    }

    /// A request of the API server itself about a built-in kind.
    ///
    /// # Errors
    /// 404 when there is no such kind.
    pub fn internal(&self, group: &str, resource: &str, namespace: &str, name: &str) -> Result<Call, Status> {
        let kinds = self.registry.kinds();
        let kind = kinds.iter().find(|kind| kind.is(group, resource)).ok_or_else(unknown)?;
        Ok(self.call_as("system:apiserver", kind.clone(), namespace, name))
    }
}
