//! Requests about the objects of one namespace, as raw JSON.

use http::{Method, Request};
use serde_json::Value;

use crate::{Error, Result};

/// A client for one namespace.
#[derive(Clone)]
pub(super) struct Objects {
    client: kube::Client,
    pub namespace: String,
}

impl Objects {
    pub fn new(client: kube::Client, namespace: &str) -> Self {
        Self { client, namespace: namespace.into() }
    }

    /// The path of an object of a group such as `/apis/snapshot.kubevirt.io/v1beta1` or `/api/v1`; without a name,
    /// of all.
    pub fn path(&self, group: &str, resource: &str, name: &str) -> String {
        let path = format!("{group}/namespaces/{}/{resource}", self.namespace);
        if name.is_empty() { path } else { format!("{path}/{name}") }
    }

    pub async fn send(&self, method: Method, path: &str, body: &Value) -> kube::Result<Value> {
        let body = if body.is_null() { Vec::new() } else { body.to_string().into_bytes() };
        let request = Request::builder().method(method).uri(path);
        let request = request.header(http::header::CONTENT_TYPE, "application/json").body(body);
        self.client.request(request.map_err(kube::Error::HttpError)?).await
    }

    /// An object, `what` for messages; `None`: it is not there.
    pub async fn get(&self, path: &str, what: &str) -> Result<Option<Value>> {
        match self.send(Method::GET, path, &Value::Null).await {
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(None),
            other => other.map(Some).map_err(failed("reading", what)),
        }
    }

    /// Whether it was created now; otherwise it is there already.
    pub async fn create(&self, path: &str, what: &str, object: &Value) -> Result<bool> {
        match self.send(Method::POST, path, object).await {
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(false),
            other => other.map(|_| true).map_err(failed("creating", what)),
        }
    }

    /// Deletes an object; what is gone already is no error.
    pub async fn delete(&self, path: &str, what: &str) -> Result<()> {
        match self.send(Method::DELETE, path, &Value::Null).await {
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
            other => other.map(|_| ()).map_err(failed("deleting", what)),
        }
    }
}

/// The error of a request that was refused.
pub(super) fn failed(doing: &str, what: &str) -> impl Fn(kube::Error) -> Error + use<> {
    let doing = format!("{doing} {what}");
    move |source| Error::Api { doing: doing.clone(), source: Box::new(source) }
}
