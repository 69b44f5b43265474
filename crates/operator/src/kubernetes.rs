//! The cluster: how it is found, and requests in raw JSON (objects are never squeezed through
//! structs that drop what they do not know).

use std::path::PathBuf;

use kube::config::{KubeConfigOptions, Kubeconfig};
use serde_json::Value;
use serde_json::value::RawValue;

use crate::config::Kubernetes;

/// The field manager of everything that we apply.
pub const MANAGER: &str = "virt-steward";

/// Why there is no client.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The kubeconfig file that was named is missing or broken.
    #[error("cannot use the kubeconfig {}: {source}", path.display())]
    Kubeconfig {
        /// Which one.
        path: PathBuf,
        /// What is wrong.
        source: kube::config::KubeconfigError,
    },
    /// A context was named that the kubeconfig does not have.
    #[error("cannot use context {context}: {source}")]
    Context {
        /// Which one.
        context: String,
        /// What is wrong.
        source: kube::config::KubeconfigError,
    },
    /// Neither a kubeconfig nor a pod's account.
    #[error("no cluster to work for: {0}; give --kubeconfig, set KUBECONFIG or run in a pod")]
    Infer(kube::config::InferConfigError),
    /// The configuration makes no client.
    #[error("cannot make a client for the cluster: {0}")]
    Client(kube::Error),
}

/// How the cluster that is configured is reached.
pub async fn find(config: &Kubernetes) -> Result<kube::Config, ConnectError> {
    let options = KubeConfigOptions { context: config.context.clone(), ..KubeConfigOptions::default() };
    Ok(match (&config.kubeconfig, &config.context) {
        (Some(path), _) => {
            let broken = |source| ConnectError::Kubeconfig { path: path.clone(), source };
            let file = Kubeconfig::read_from(path).map_err(broken)?;
            kube::Config::from_custom_kubeconfig(file, &options).await.map_err(broken)?
        }
        (None, Some(context)) => kube::Config::from_kubeconfig(&options)
            .await
            .map_err(|source| ConnectError::Context { context: context.clone(), source })?,
        (None, None) => kube::Config::infer().await.map_err(ConnectError::Infer)?,
    })
}

/// A client for the cluster that is configured, and the namespace that it gives us.
pub async fn connect(config: &Kubernetes) -> Result<(kube::Client, String), ConnectError> {
    let found = find(config).await?;
    let namespace = config.namespace.clone().unwrap_or_else(|| match found.default_namespace.as_str() {
        // What a kubeconfig without a namespace says; nobody installs the operator there.
        "default" | "" => "virt-steward".into(),
        namespace => namespace.to_owned(),
    });
    let client = kube::Client::try_from(found).map_err(ConnectError::Client)?;
    Ok((client, namespace))
}

/// A request that failed.
#[derive(Debug, thiserror::Error)]
pub enum RawError {
    /// The API server said no.
    #[error("{message} (HTTP {code})")]
    Refused {
        /// HTTP status.
        code: u16,
        /// Its words.
        message: String,
    },
    /// It was not reached, or did not speak JSON.
    #[error("the API server did not answer: {0}")]
    Away(String),
}

impl RawError {
    /// The HTTP status, when there was an answer.
    pub fn code(&self) -> Option<u16> {
        match self {
            Self::Refused { code, .. } => Some(*code),
            Self::Away(_) => None,
        }
    }
}

impl From<kube::Error> for RawError {
    fn from(error: kube::Error) -> Self {
        match error {
            kube::Error::Api(status) => Self::Refused { code: status.code, message: status.message.clone() },
            other => Self::Away(chain(&other)),
        }
    }
}

/// An error with its causes: "client error (Connect): Connection refused" instead of the first half.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}

/// Requests by path, in raw JSON.
#[derive(Clone)]
pub struct Raw(kube::Client);

impl Raw {
    /// Requests through `client`.
    pub fn new(client: kube::Client) -> Self {
        Self(client)
    }

    /// GET
    pub async fn get(&self, path: &str) -> Result<Value, RawError> {
        self.send(http::Request::get(path), None, "").await
    }

    /// GET of a list: its items whose text `concerns` says yes to. The others are skipped over and never become objects, which
    /// is most of the work where a list is long and few are looked for.
    pub async fn items(&self, path: &str, concerns: impl Fn(&str) -> bool) -> Result<Vec<Value>, RawError> {
        #[derive(serde::Deserialize)]
        struct List {
            #[serde(default)]
            items: Option<Vec<Box<RawValue>>>,
        }
        let away = |error: &dyn std::fmt::Display| RawError::Away(error.to_string());
        let request = http::Request::get(path).body(Vec::new()).map_err(|error| away(&error))?;
        let list = self.0.request::<List>(request).await?;
        let kept = list.items.unwrap_or_default();
        kept.iter()
            .filter(|item| concerns(item.get()))
            .map(|item| serde_json::from_str(item.get()).map_err(|error| away(&error)))
            .collect()
    }

    /// POST to a collection.
    pub async fn create(&self, path: &str, object: &Value) -> Result<Value, RawError> {
        let path = format!("{path}?fieldManager={MANAGER}");
        self.send(http::Request::post(path), Some(object), "application/json").await
    }

    /// PATCH with a merge patch; a `metadata.resourceVersion` in it guards it.
    pub async fn merge(&self, path: &str, patch: &Value) -> Result<Value, RawError> {
        let path = format!("{path}?fieldManager={MANAGER}");
        self.send(http::Request::patch(path), Some(patch), "application/merge-patch+json").await
    }

    /// PATCH with a strategic merge patch, which knows lists by their keys.
    pub async fn strategic(&self, path: &str, patch: &Value) -> Result<Value, RawError> {
        let path = format!("{path}?fieldManager={MANAGER}");
        self.send(http::Request::patch(path), Some(patch), "application/strategic-merge-patch+json").await
    }

    /// PATCH by server-side apply, taking over fields that others own.
    pub async fn apply(&self, path: &str, object: &Value) -> Result<Value, RawError> {
        let path = format!("{path}?fieldManager={MANAGER}&force=true");
        self.send(http::Request::patch(path), Some(object), "application/apply-patch+yaml").await
    }

    /// DELETE of the very object that was read: `preconditions` hold its uid and resourceVersion.
    pub async fn delete(&self, path: &str, preconditions: Value) -> Result<Value, RawError> {
        let options =
            serde_json::json!({"apiVersion": "v1", "kind": "DeleteOptions", "preconditions": preconditions});
        self.send(http::Request::delete(path), Some(&options), "application/json").await
    }

    /// DELETE of an object by its name; what it owns goes after it.
    pub async fn delete_in_background(&self, path: &str) -> Result<Value, RawError> {
        let options = serde_json::json!({"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": "Background"});
        self.send(http::Request::delete(path), Some(&options), "application/json").await
    }

    async fn send(
        &self,
        request: http::request::Builder,
        body: Option<&Value>,
        content_type: &str,
    ) -> Result<Value, RawError> {
        let away = |error: &dyn std::fmt::Display| RawError::Away(error.to_string());
        let request = if content_type.is_empty() {
            request
        } else {
            request.header(http::header::CONTENT_TYPE, content_type)
        };
        let bytes = match body {
            Some(body) => serde_json::to_vec(body).map_err(|error| away(&error))?,
            None => Vec::new(),
        };
        let request = request.body(bytes).map_err(|error| away(&error))?;
        Ok(self.0.request::<Value>(request).await?)
    }
}
