//! Live reads of the ConfigMaps and Secrets that a VM names. Nothing read here is ever logged.

use features::{Lookup, Need};
use serde_json::Value;

/// Reads single objects.
#[derive(Clone)]
pub struct Reader {
    client: Option<kube::Client>,
    secrets: bool,
}

impl Reader {
    /// Reads with `client`; Secrets only when `secrets` is set.
    pub fn new(client: kube::Client, secrets: bool) -> Self {
        Self { client: Some(client), secrets }
    }

    /// Reads nothing, because there is no cluster.
    pub fn offline() -> Self {
        Self { client: None, secrets: false }
    }

    /// One GET. The caller sets the deadline.
    pub async fn read(&self, namespace: &str, need: &Need) -> Lookup {
        if matches!(need, Need::Secret(_)) && !self.secrets {
            return Lookup::Failed(
                "reading Secrets is switched off (kubernetes.readSecrets); put the features into annotations"
                    .into(),
            );
        }
        let Some(client) = &self.client else {
            return Lookup::Failed("there is no connection to a cluster".into());
        };
        if let Some(name) = std::iter::once(namespace).chain(need.names()).find(|name| !is_name(name)) {
            return Lookup::Failed(format!("\"{name}\" is not the name of an object"));
        }
        let path = need.path(namespace);
        let request = match http::Request::get(path).body(Vec::new()) {
            Ok(request) => request,
            Err(error) => return Lookup::Failed(error.to_string()),
        };
        match client.request::<Value>(request).await {
            Ok(object) => Lookup::Found(object),
            Err(kube::Error::Api(status)) if status.code == 404 => Lookup::NotFound,
            Err(kube::Error::Api(status)) => Lookup::Failed(status.message.clone()),
            Err(error) => Lookup::Failed(format!("the API server did not answer: {error}")),
        }
    }
}

/// Characters of an RFC 1123 subdomain: what may go into a path as it is.
fn is_name(text: &str) -> bool {
    (1..=253).contains(&text.len())
        && !text.starts_with('.')
        && text
            .bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'.'))
}
