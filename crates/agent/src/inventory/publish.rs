//! Publishing: written when it changed, and now and then in case somebody else changed it.

use std::time::{Duration, Instant};

use http::Request;
use kube::Client;
use kubevirt::inventory::{COLLECTION, Host};
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use super::{Roots, read};

/// Between two looks; devices change when somebody binds one to another driver.
const LOOK: Duration = Duration::from_secs(30);
/// Published again after so long, whatever it says.
const AGAIN: Duration = Duration::from_mins(10);
/// Whose fields they are.
const MANAGER: &str = "virt-steward-agent";

/// An inventory could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// The kernel's files.
    #[error("read the devices below {}: {source}", root.display())]
    Read {
        /// `/sys`
        root: std::path::PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The API server.
    #[error("{verb} {what}: {source}")]
    Api {
        /// What was done.
        verb: &'static str,
        /// To what.
        what: String,
        /// Why it failed.
        source: Box<kube::Error>,
    },
}

/// Publishes the inventory of one node.
#[derive(Clone)]
pub struct Publisher {
    client: Client,
    node: String,
    roots: Roots,
}

impl std::fmt::Debug for Publisher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Publisher")
            .field("node", &self.node)
            .field("roots", &self.roots)
            .finish_non_exhaustive()
    }
}

impl Publisher {
    /// A publisher for a node of this name.
    pub fn new(client: Client, node: impl Into<String>, roots: Roots) -> Self {
        Self { client, node: node.into(), roots }
    }

    /// Publishes until it is told to stop; what fails is tried again.
    pub async fn run(self, stop: CancellationToken) {
        let mut last: Option<(Host, Instant)> = None;
        loop {
            let published = async {
                let host = self.look().await?;
                let is_fresh =
                    last.as_ref().is_some_and(|(known, at)| *known == host && at.elapsed() < AGAIN);
                if !is_fresh {
                    self.write(&host).await?;
                    tracing::info!(node = self.node, devices = host.pci_devices.len(), "inventory published");
                    last = Some((host, Instant::now()));
                }
                Ok::<(), PublishError>(())
            };
            tokio::select! {
                () = stop.cancelled() => return,
                done = published => if let Err(error) = done {
                    tracing::warn!(node = self.node, %error, "the inventory is not published");
                },
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(LOOK) => {}
            }
        }
    }

    /// Publishes once.
    ///
    /// # Errors
    /// [`PublishError`]
    pub async fn once(&self) -> Result<Host, PublishError> {
        let host = self.look().await?;
        self.write(&host).await?;
        Ok(host)
    }

    async fn look(&self) -> Result<Host, PublishError> {
        let (node, roots) = (self.node.clone(), self.roots.clone());
        let root = roots.sys.clone();
        let read = tokio::task::spawn_blocking(move || read(&node, &roots)).await;
        read.unwrap_or_else(|error| Err(std::io::Error::other(error)))
            .map_err(|source| PublishError::Read { root, source })
    }

    /// One apply: an API server that has the same already writes nothing.
    async fn write(&self, host: &Host) -> Result<(), PublishError> {
        let node: Value = self.call("read", format!("/api/v1/nodes/{}", self.node), None).await?;
        let uid = node["metadata"]["uid"].as_str().unwrap_or_default();
        let path = format!("{COLLECTION}/{}?fieldManager={MANAGER}&force=true", self.node);
        self.call("apply", path, Some(host.to_object(uid))).await.map(drop)
    }

    async fn call(
        &self,
        verb: &'static str,
        path: String,
        body: Option<Value>,
    ) -> Result<Value, PublishError> {
        let failed = |source| PublishError::Api { verb, what: path.clone(), source: Box::new(source) };
        let request = match &body {
            None => Request::get(&path).body(Vec::new()),
            Some(body) => Request::patch(&path)
                .header("content-type", "application/apply-patch+yaml")
                .body(body.to_string().into_bytes()),
        };
        let request = request.map_err(|error| failed(kube::Error::HttpError(error)))?;
        self.client.request(request).await.map_err(failed)
    }
}
