//! The thin shell over the Kubernetes API: one method per operation, each of them observe, decide, act.
//!
//! Reads may be sent again by whoever asks; a write is sent once. The client's own retries, which would
//! send a POST again after 503 or 504, are switched off by [`connect`].

mod capabilities;
mod delete;
mod jobs;
mod lifecycle;
mod list;
mod migrations;
mod objects;
mod request;
mod snapshots;
mod usage;
mod waiting;
mod watch;

use http::HeaderValue;

pub use lifecycle::Done;
pub use list::LIST_PAGE;
pub use migrations::MigrateTo;
pub use watch::Change;

use crate::{Error, Kind};

/// A cluster, with the identity that every request is made under.
#[derive(Clone)]
pub struct Provider {
    client: kube::Client,
    bearer: Option<HeaderValue>,
}

impl std::fmt::Debug for Provider {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Provider").field("own_token", &self.bearer.is_some()).finish_non_exhaustive()
    }
}

/// A client that sends each request once. kube sends again after 429, 503 and 504 by default, also what
/// is not idempotent (kube-client 5, `Config::default_retry`).
pub fn connect(mut config: kube::Config) -> Result<Provider, Error> {
    config.default_retry = false;
    let client = kube::Client::try_from(config).map_err(|error| {
        let remedy = "check `kubectl cluster-info`, or name a file with `--kubeconfig`";
        Error::new(Kind::Cluster, "connecting to the cluster", error.to_string(), remedy)
    })?;
    Ok(Provider { client, bearer: None })
}

/// The same without any identity: requests carry only what [`Provider::with_bearer`] adds.
pub fn connect_without_identity(mut config: kube::Config) -> Result<Provider, Error> {
    config.auth_info = kube::config::AuthInfo::default();
    connect(config)
}

impl Provider {
    /// The same cluster under a caller's own token.
    pub fn with_bearer(&self, token: &str) -> Result<Self, Error> {
        let mut header = HeaderValue::try_from(format!("Bearer {token}")).map_err(|_| {
            let wrong = "it has characters that no token has";
            Error::new(Kind::Unauthenticated, "reading the bearer token", wrong, "send a valid token")
        })?;
        header.set_sensitive(true);
        Ok(Self { client: self.client.clone(), bearer: Some(header) })
    }

    /// The namespace of the kubeconfig's context, or the service account's.
    pub fn default_namespace(&self) -> &str {
        self.client.default_namespace()
    }
}
