//! The socket: made when everything else is ready, answered until the VM has shut down.
//!
//! ```text
//!  bind ─► answering ──Shutdown or SIGTERM──► finish what is under way ─► remove the socket
//! ```

use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;

use crate::grpc::server;
use crate::service::Sidecar;

/// Connections at the same time; virt-launcher makes one per call.
const MAX_CONNECTIONS: usize = 16;
/// How long the last answers may take to leave.
const GRACE: Duration = Duration::from_millis(500);
/// How long another sidecar has to answer before its socket counts as left over.
const ALIVE: Duration = Duration::from_secs(1);

/// The sidecar cannot serve.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// Two sidecars would share a name.
    #[error("listen on {}: another sidecar of the pod does", .0.display())]
    Taken(PathBuf),
    /// The socket could not be made.
    #[error("listen on {}: {source}", path.display())]
    Listen {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Connections cannot be taken any more.
    #[error("accept a connection: {0}")]
    Accept(#[source] io::Error),
}

/// Makes the socket. One that a container before us left is replaced.
pub async fn listen(path: &Path) -> Result<UnixListener, ServeError> {
    let fail = |source| ServeError::Listen { path: path.to_owned(), source };
    if let Ok(Ok(_)) = tokio::time::timeout(ALIVE, UnixStream::connect(path)).await {
        return Err(ServeError::Taken(path.to_owned()));
    }
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(fail(error)),
        _ => {}
    }
    let listener = UnixListener::bind(path).map_err(fail)?;
    // virt-launcher runs as user 107, and so do we unless the cluster runs launchers as root; the
    // directory belongs to this pod alone
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o666)).map_err(fail)?;
    Ok(listener)
}

/// Answers until `Shutdown` was answered or `stop` is ready.
pub async fn serve(
    listener: UnixListener,
    sidecar: Arc<Sidecar>,
    stop: impl Future<Output = ()>,
) -> Result<(), ServeError> {
    let connections = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut stop = std::pin::pin!(stop);
    loop {
        let next = async {
            // the semaphore is never closed
            let permit = connections.clone().acquire_owned().await.ok();
            listener.accept().await.map(|(stream, _)| (permit, stream))
        };
        let (permit, stream) = tokio::select! {
            accepted = next => accepted.map_err(ServeError::Accept)?,
            () = sidecar.ended.notified() => break,
            () = &mut stop => break,
        };
        let sidecar = sidecar.clone();
        tokio::spawn(async move {
            if let Err(error) = server::connection(stream, sidecar).await {
                eprintln!("virt-steward-hook: connection: {error}");
            }
            drop(permit);
        });
    }
    let all = u32::try_from(MAX_CONNECTIONS).unwrap_or(u32::MAX);
    // peers that do not close are left behind
    drop(tokio::time::timeout(GRACE, connections.acquire_many(all)).await);
    Ok(())
}
