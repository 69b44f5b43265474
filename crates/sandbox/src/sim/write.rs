//! Writes as plain data: what a decision wants done, before anybody does it.

use std::sync::Arc;

use apimachinery::tree::{Value, json};
use http::Method;

use super::cache::Cache;
use super::client::{Client, ClientError};
use super::identity::Identity;
use super::json;
use super::resource::Resource;

/// How an object is written.
#[derive(Clone, Debug, PartialEq)]
pub enum Op {
    Create(Value),
    /// The whole object, guarded by its resourceVersion.
    Update(Value),
    /// RFC 6902
    JsonPatch(Value),
    /// RFC 7386
    MergePatch(Value),
    StrategicPatch(Value),
    /// With `DeleteOptions`, or null.
    Delete(Value),
}

/// One request to the API server.
#[derive(Clone, Debug, PartialEq)]
pub struct Write {
    pub resource: &'static Resource,
    pub namespace: String,
    /// Empty for a create.
    pub name: String,
    pub subresource: &'static str,
    pub op: Op,
}

impl Write {
    /// A write to an object that is there.
    pub fn to(resource: &'static Resource, object: &Value, subresource: &'static str, op: Op) -> Self {
        let (namespace, name) = (json::namespace(object).to_owned(), json::name(object).to_owned());
        Self { resource, namespace, name, subresource, op }
    }

    pub fn create(resource: &'static Resource, object: Value) -> Self {
        let namespace = json::namespace(&object).to_owned();
        Self { resource, namespace, name: String::new(), subresource: "", op: Op::Create(object) }
    }

    /// `test` and `replace` of one value, as `KubeVirt`'s patch builder writes them.
    pub fn test_and_replace(path: &str, old: &Value, new: &Value) -> [Value; 2] {
        [
            json!({"op": "test", "path": path, "value": old}),
            json!({"op": "replace", "path": path, "value": new}),
        ]
    }

    /// Carries the write out and returns the answer.
    pub async fn send(&self, client: &Client, who: &Identity) -> Result<Value, ClientError> {
        self.send_as(client, who, false).await
    }

    /// The same; with `dry_run` the API server only says what would become of it.
    pub async fn send_as(
        &self,
        client: &Client,
        who: &Identity,
        dry_run: bool,
    ) -> Result<Value, ClientError> {
        let (method, content_type, body) = match &self.op {
            Op::Create(body) => (Method::POST, "application/json", body),
            Op::Update(body) => (Method::PUT, "application/json", body),
            Op::JsonPatch(body) => (Method::PATCH, "application/json-patch+json", body),
            Op::MergePatch(body) => (Method::PATCH, "application/merge-patch+json", body),
            Op::StrategicPatch(body) => (Method::PATCH, "application/strategic-merge-patch+json", body),
            Op::Delete(body) => (Method::DELETE, "application/json", body),
        };
        let mut path = self.resource.path(&self.namespace, &self.name, self.subresource);
        if dry_run {
            path.push_str("?dryRun=All");
        }
        client.send(Some(who), method, &path, content_type, body).await
    }
}

/// A client that writes as one identity and lets the shared caches see the answers.
#[derive(Clone)]
pub struct Writer {
    pub client: Client,
    pub caches: Arc<[Arc<Cache>]>,
}

impl Writer {
    /// Carries a write out; the answer is in the cache when this returns.
    pub async fn write(&self, who: &Identity, write: &Write) -> Result<Arc<Value>, ClientError> {
        let answer = Arc::new(write.send(&self.client, who).await?);
        let is_object = !json::uid(&answer).is_empty() && answer["kind"] == write.resource.kind;
        // A deletion that has to wait leaves the object there; what is gone must not come back.
        if is_object
            && (!matches!(write.op, Op::Delete(_)) || json::is_deleting(&answer))
            && let Some(cache) = self.caches.iter().find(|cache| cache.resource() == write.resource)
        {
            cache.observe(answer.clone());
        }
        Ok(answer)
    }
}
