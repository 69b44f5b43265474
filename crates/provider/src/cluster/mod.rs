//! The thin shell over the Kubernetes API: one method per operation, each of them observe, decide, act.
//!
//! Reads may be sent again by whoever asks; a write is sent once. The client's own retries, which would
//! send a POST again after 503 or 504, are switched off by [`connect`].

mod capabilities;
mod delete;
mod devices;
mod exports;
mod guest;
mod identity;
mod instancetypes;
mod jobs;
mod lifecycle;
mod list;
mod migrations;
mod networks;
mod nodes;
mod objects;
mod request;
mod slim;
mod snapshots;
mod streams;
mod templates;
mod transfer;
mod usage;
mod volumes;
mod waiting;
mod watch;

use http::header::AUTHORIZATION;
use http::{HeaderName, HeaderValue};

pub use exports::ExportWish;
pub use lifecycle::Done;
pub use list::LIST_PAGE;
pub use migrations::MigrateTo;
pub use nodes::NodeDetail;
pub use snapshots::Underway;
pub use streams::{Channel, SUBPROTOCOL, Tunnel};
pub use templates::{Parameters, random};
pub use usage::{Prometheus, UsageByVm};
pub use volumes::{Attach, Changed, Expansion, VolumeChange, failure as volume_failure};
pub use watch::Change;

use crate::identity::User;
use crate::{Error, Kind};

/// A cluster, with the identity that every request is made under.
#[derive(Clone)]
pub struct Provider {
    client: kube::Client,
    /// Headers that say who asks, beside the client's own identity.
    identity: Vec<(HeaderName, HeaderValue)>,
}

impl Provider {
    /// The client itself, for what makes its own requests: without the identity of another.
    pub fn client(&self) -> kube::Client {
        self.client.clone()
    }
}

impl std::fmt::Debug for Provider {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Provider").field("for_another", &!self.identity.is_empty()).finish_non_exhaustive()
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
    Ok(Provider { client, identity: Vec::new() })
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
        Ok(Self { client: self.client.clone(), identity: vec![(AUTHORIZATION, header)] })
    }

    /// The same cluster as another user, whom the client's own identity may impersonate.
    pub fn as_user(&self, who: &User) -> Result<Self, Error> {
        let header = |name: &'static str, text: &str| {
            let value = HeaderValue::try_from(text).map_err(|_| {
                let wrong = "the name has characters that no header carries";
                Error::new(Kind::Unauthenticated, "acting for another user", wrong, "rename the user")
            })?;
            Ok((HeaderName::from_static(name), value))
        };
        if who.name.is_empty() {
            let wrong = "the user has no name";
            return Err(Error::new(Kind::Unauthenticated, "acting for another user", wrong, "log in again"));
        }
        let mut identity = vec![header("impersonate-user", &who.name)?];
        if let Some(uid) = &who.uid {
            identity.push(header("impersonate-uid", uid)?);
        }
        for group in &who.groups {
            identity.push(header("impersonate-group", group)?);
        }
        Ok(Self { client: self.client.clone(), identity })
    }

    /// The namespace of the kubeconfig's context, or the service account's.
    pub fn default_namespace(&self) -> &str {
        self.client.default_namespace()
    }
}
