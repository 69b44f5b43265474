//! virt-launcher's side of hook sidecars (`pkg/hooks/manager.go`, v1.9), over real sockets.
//!
//! ```text
//!  collect: poll the directory ─► dial each file ─► Info ─► newest common version ─► all there
//!  define:  OnDefineDomain, one sidecar after the other, the answer of one to the next
//!  end:     Shutdown to those that know it
//! ```
//!
//! A failure while collecting ends the real virt-launcher with a panic, and with it the pod; the
//! texts here are those of the panics.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hook_api::callbacks::{OnDefineDomainParams, OnDefineDomainResult, ShutdownParams, ShutdownResult};
use hook_api::info::{InfoParams, InfoResult};
use hook_api::{INFO_PATH, ON_DEFINE_DOMAIN, SHUTDOWN, V1ALPHA1, V1ALPHA2, V1ALPHA3, callback_path};
use tokio::time::Instant;

use super::call::{RpcError, dial, unary};

/// The versions that virt-launcher knows, the newest first.
const VERSIONS: [&str; 3] = [V1ALPHA3, V1ALPHA2, V1ALPHA1];

/// How long things may take.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// Between two looks at the directory.
    pub poll: Duration,
    /// For a connection.
    pub dial: Duration,
    /// For the answer to `Info`.
    pub info: Duration,
    /// Until all sidecars are there (`--qemu-timeout`).
    pub collect: Duration,
    /// For the answer to a callback.
    pub call: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            poll: Duration::from_millis(300),
            dial: Duration::from_secs(2),
            info: Duration::from_secs(1),
            collect: Duration::from_mins(4),
            call: Duration::from_mins(1),
        }
    }
}

/// What ends virt-launcher while it collects its sidecars.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum CollectError {
    /// `Info` failed.
    #[error(transparent)]
    Info(#[from] RpcError),
    /// The sidecar speaks no version that virt-launcher knows.
    #[error(
        "Hook sidecar does not expose a supported version. Exposed versions: [{}], supported versions: [{}]",
        .0.join(" "), VERSIONS.join(" ")
    )]
    Version(Vec<String>),
    /// Not all sidecars came.
    #[error("Failed to collect all expected sidecar hook sockets within given timeout")]
    Timeout,
}

#[derive(Clone, Debug)]
struct Sidecar {
    socket: PathBuf,
    version: &'static str,
    points: Vec<String>,
}

/// The sidecars of one launcher, in the order in which they were found.
#[derive(Clone, Debug, Default)]
pub struct Manager {
    sidecars: Vec<Sidecar>,
    timing: Timing,
}

impl Manager {
    /// Waits for `count` sidecars below a directory. They are told apart by the base names of their
    /// sockets, so of two with the same name one is never found.
    pub async fn collect(directory: &Path, count: usize, timing: Timing) -> Result<Self, CollectError> {
        let deadline = Instant::now() + timing.collect;
        let mut found: BTreeSet<String> = BTreeSet::new();
        let mut manager = Self { sidecars: Vec::new(), timing };
        while manager.sidecars.len() < count {
            for socket in candidates(directory) {
                let name =
                    socket.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
                if manager.sidecars.len() == count || found.contains(&name) {
                    continue;
                }
                // what cannot be connected to might not be ready yet
                let Ok(stream) = dial(&socket, timing.dial).await else { continue };
                let info: InfoResult = unary(stream, INFO_PATH, &InfoParams {}, timing.info).await?;
                manager.sidecars.push(sidecar(socket, info)?);
                found.insert(name);
            }
            if manager.sidecars.len() < count {
                if Instant::now() >= deadline {
                    return Err(CollectError::Timeout);
                }
                tokio::time::sleep(timing.poll).await;
            }
        }
        Ok(manager)
    }

    /// The domain after every sidecar that wants to see it.
    pub async fn on_define_domain(&self, domain: String, vmi: &[u8]) -> Result<Vec<u8>, RpcError> {
        let mut domain_xml = domain.into_bytes();
        for sidecar in self.wanting(ON_DEFINE_DOMAIN) {
            let asked = OnDefineDomainParams { domain_xml, vmi: vmi.to_vec() };
            let path = callback_path(sidecar.version, ON_DEFINE_DOMAIN);
            let answer: OnDefineDomainResult = self.call(sidecar, &path, &asked).await?;
            domain_xml = answer.domain_xml;
        }
        Ok(domain_xml)
    }

    /// Tells every sidecar that knows the word that the guest has ended. Who does not answer is
    /// passed over.
    pub async fn shutdown(&self) {
        for sidecar in self.wanting(SHUTDOWN).filter(|sidecar| sidecar.version == V1ALPHA3) {
            let path = callback_path(sidecar.version, SHUTDOWN);
            let answer: Result<ShutdownResult, _> = self.call(sidecar, &path, &ShutdownParams {}).await;
            if let Err(error) = answer {
                tracing::debug!(socket = %sidecar.socket.display(), %error, "a sidecar does not hear of the end");
            }
        }
    }

    fn wanting<'a>(&'a self, point: &'a str) -> impl Iterator<Item = &'a Sidecar> {
        self.sidecars.iter().filter(move |sidecar| sidecar.points.iter().any(|one| one == point))
    }

    async fn call<A: prost::Message + Default>(
        &self,
        sidecar: &Sidecar,
        path: &str,
        message: &impl prost::Message,
    ) -> Result<A, RpcError> {
        let stream = dial(&sidecar.socket, self.timing.dial)
            .await
            .map_err(|reason| RpcError { code: "Unavailable", description: reason.to_owned() })?;
        unary(stream, path, message, self.timing.call).await
    }
}

/// Every file in a subdirectory, in order of name. Since v1.6 each sidecar has a directory of its
/// own; files at the top are not looked at, and neither are directories below.
fn candidates(directory: &Path) -> Vec<PathBuf> {
    let entries = |directory: &Path| {
        let mut paths: Vec<PathBuf> = std::fs::read_dir(directory)
            .into_iter()
            .flatten()
            .filter_map(|entry| Some(entry.ok()?.path()))
            .collect();
        paths.sort();
        paths
    };
    let own = entries(directory).into_iter().filter(|path| path.is_dir());
    own.flat_map(|own| entries(&own)).filter(|path| !path.is_dir()).collect()
}

fn sidecar(socket: PathBuf, info: InfoResult) -> Result<Sidecar, CollectError> {
    let version = VERSIONS.into_iter().find(|version| info.versions.iter().any(|other| other == version));
    let Some(version) = version else { return Err(CollectError::Version(info.versions)) };
    let points = info.hook_points.into_iter().map(|point| point.name).collect();
    Ok(Sidecar { socket, version, points })
}
