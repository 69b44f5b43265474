//! Admission: what may rewrite or refuse a write before it is stored, as kube-apiserver 1.36 does it.
//!
//! ```text
//! decoded request ─► mutate: built-in plugins ─► mutating webhooks ─┐ changed something: both once more,
//!                      ▲                                            │ webhooks only with reinvocationPolicy IfNeeded
//!                      └────────────────────────────────────────────┘
//!                 ─► schema, strategy (the API server's own)
//!                 ─► validate: built-in plugins ─► policies ─► validating webhooks ─► quota ─► stored
//! ```

mod cache;
mod matcher;
mod notes;
mod plugins;
mod policy;
mod rules;
mod webhook;

pub(crate) use webhook::service;

use std::sync::Arc;
use std::time::Duration;

use apimachinery::Status;
use apimachinery::tree::Value;
use tokio::time::Instant;

use crate::attributes::Attributes;
use crate::faults::Faults;
use crate::network::Network;
use crate::objects::Objects;

use plugins::Plugins;
use policy::Policies;
use webhook::{Passes, Webhooks};

pub use notes::Notes;
pub use plugins::{Reservation, usage as quota_status};

/// How long a request may take altogether (`--request-timeout` of a real API server).
pub const REQUEST_TIMEOUT: Duration = Duration::from_mins(1);

/// What a request does to its object (`admission.k8s.io/v1 Operation`).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Operation {
    /// Also POST on a subresource that creates something, for example `pods/eviction`.
    Create,
    /// PUT and every patch of an object that exists.
    Update,
    /// Also once for each object of a deletecollection.
    Delete,
    /// `pods/exec`, `pods/portforward`, `services/proxy` and the like.
    Connect,
}

impl Operation {
    /// As reviews and rules spell it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Create => "CREATE",
            Self::Update => "UPDATE",
            Self::Delete => "DELETE",
            Self::Connect => "CONNECT",
        }
    }
}

/// One request that is to be admitted.
#[derive(Clone, Debug)]
pub struct Request<'a> {
    /// Who wants what.
    pub attributes: &'a Attributes,
    /// What it does.
    pub operation: Operation,
    /// The stored object: on update and delete.
    pub old: Option<&'a Value>,
    /// `CreateOptions`, `UpdateOptions`, `PatchOptions` or `DeleteOptions`, with kind and apiVersion.
    pub options: &'a Value,
    /// When the whole request times out: usually its start and [`REQUEST_TIMEOUT`].
    pub deadline: Instant,
}

/// What a request is about, without who asks.
#[derive(Clone, Copy, Debug)]
#[expect(clippy::struct_field_names, reason = "the word of the API for the plural")]
pub(crate) struct Resource<'a> {
    pub group: &'a str,
    pub version: &'a str,
    pub resource: &'a str,
    pub subresource: &'a str,
    /// For a namespace's own requests its name, as in a real API server.
    pub namespace: &'a str,
    pub name: &'a str,
}

impl Resource<'_> {
    fn is_namespace(&self) -> bool {
        self.group.is_empty() && self.resource == "namespaces"
    }

    fn is_cluster_scoped(&self) -> bool {
        self.namespace.is_empty() || self.is_namespace()
    }
}

impl<'a> Request<'a> {
    /// What the request is about; creates take the name from the object.
    pub(crate) fn resource(&self, object: &'a Value) -> Resource<'a> {
        let attributes = self.attributes;
        let name = match attributes.name.as_str() {
            "" => object["metadata"]["name"].as_str().unwrap_or_default(),
            name => name,
        };
        let mut resource = Resource {
            group: &attributes.group,
            version: &attributes.version,
            resource: &attributes.resource,
            subresource: &attributes.subresource,
            namespace: &attributes.namespace,
            name,
        };
        if resource.is_namespace() {
            resource.namespace = name;
        }
        resource
    }

    /// 403 for this request: `pods "a" is forbidden: …`.
    pub(crate) fn forbidden(&self, object: &Value, why: &str) -> Status {
        let resource = self.resource(object);
        let qualified = qualified(resource.group, resource.resource);
        let message = match resource.name {
            "" => format!("{qualified} is forbidden: {why}"),
            name => format!("{qualified} {} is forbidden: {why}", apimachinery::field_error::quote(name)),
        };
        Status::new(403, "Forbidden", message).about(resource.group, resource.resource, resource.name)
    }
}

fn qualified(group: &str, resource: &str) -> String {
    if group.is_empty() { resource.to_owned() } else { format!("{resource}.{group}") }
}

/// Makes the unique ids that reviews carry.
pub type MakeUid = dyn Fn() -> String + Send + Sync;

/// The admission chain of one API server. What it compiles from stored configurations it keeps until they change.
pub struct Admission {
    plugins: Plugins,
    policies: Policies,
    webhooks: Webhooks,
}

impl std::fmt::Debug for Admission {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Admission")
    }
}

impl Admission {
    /// The chain over a store.
    pub fn new(objects: Arc<dyn Objects>, make_uid: Arc<MakeUid>) -> Self {
        Self::within(objects, make_uid, None, Network::loopback())
    }

    /// The chain over a store, in which questions to webhooks can fail and go over this network.
    pub fn within(
        objects: Arc<dyn Objects>,
        make_uid: Arc<MakeUid>,
        faults: Option<Arc<Faults>>,
        network: Network,
    ) -> Self {
        Self {
            plugins: Plugins::new(Arc::clone(&objects), Arc::clone(&make_uid)),
            policies: Policies::new(Arc::clone(&objects)),
            webhooks: Webhooks::new(objects, make_uid, faults, network),
        }
    }

    /// Runs the mutating half and returns the object to store, and whether it may differ from what it was given. On
    /// delete and connect without a body `object` is null.
    /// Warnings in `notes` go to the client whatever the result.
    ///
    /// # Errors
    /// The answer for the client when a plugin or webhook refuses, or cannot be asked and must be.
    pub async fn mutate(
        &self,
        request: &Request<'_>,
        mut object: Value,
        notes: &mut Notes,
    ) -> Result<(Value, bool), Status> {
        let mut passes = Passes::default();
        self.plugins.mutate(request, &mut object)?;
        // the built-in plugins fill in what new objects lack
        let mut changed = request.operation == Operation::Create;
        if self.webhooks.mutate(request, &mut object, &mut passes, notes).await? {
            self.plugins.mutate(request, &mut object)?;
            passes.again(&object);
            self.webhooks.mutate(request, &mut object, &mut passes, notes).await?;
            changed = true;
        }
        Ok((object, changed))
    }

    /// Runs the validating half on what would be stored. Keep what it returns until the write is done: it holds the
    /// namespace's quota.
    ///
    /// # Errors
    /// The answer for the client when a plugin, policy or webhook refuses, or cannot be asked and must be.
    pub async fn validate(
        &self,
        request: &Request<'_>,
        object: &Value,
        notes: &mut Notes,
    ) -> Result<Reservation, Status> {
        self.plugins.validate(request, object)?;
        self.policies.validate(request, object, notes)?;
        self.webhooks.validate(request, object, notes).await?;
        self.plugins.reserve(request, object).await
    }
}
