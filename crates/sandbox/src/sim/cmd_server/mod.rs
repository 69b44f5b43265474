//! The command sockets of launchers: real gRPC servers on real unix sockets below a directory that
//! looks like kubelet's, with `KubeVirt`'s own messages (`cmd-server/server.go`, v1.9).
//!
//! ```text
//!  <root>/pods/<pod uid>/volumes/kubernetes.io~empty-dir/sockets/launcher-sock
//!         Running launcher pod ─► listening ─► pod ends, or a request kills the launcher ─► gone
//! ```
//!
//! A launcher checks hardly anything. What kills the real one kills this one, and its guest.

mod devices;
mod domain;
mod service;

#[allow(missing_docs, unreachable_pub, clippy::all, clippy::pedantic, reason = "generated")]
#[rustfmt::skip]
#[path = "../../generated/kubevirt.cmd.v1.rs"]
mod v1;

use std::collections::HashMap;
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::net::UnixListener;
use tokio_util::sync::CancellationToken;

use super::cache::Cache;
use super::client::Client;
use super::hotplug::Hotplug;
use super::json::{self, label, text};
use super::launcher::Launchers;

/// How often guests follow what was asked of virtio-mem, and by how much each time, bytes.
const DRIVER: (Duration, i64) = (Duration::from_millis(50), 256 << 20);

/// What every launcher works with.
pub struct Shared {
    pub client: Client,
    pub launchers: Arc<Launchers>,
    pub hotplug: Arc<Hotplug>,
    pub vmis: Arc<Cache>,
    pub seed: u64,
}

/// The launchers' sockets.
pub struct CmdServers {
    root: PathBuf,
    shared: Arc<Shared>,
    serving: Mutex<HashMap<String, CancellationToken>>,
    stop: CancellationToken,
}

impl CmdServers {
    /// Serves the launcher of every running launcher pod below `root`.
    pub fn start(root: &Path, pods: &Arc<Cache>, shared: Shared, stop: &CancellationToken) {
        let servers = Arc::new(Self {
            root: root.to_owned(),
            shared: Arc::new(shared),
            serving: Mutex::default(),
            stop: stop.clone(),
        });
        pods.on_change(move |change| {
            let pod = change.object();
            if label(pod, "kubevirt.io") != "virt-launcher" {
                return;
            }
            let runs = change.new.is_some() && text(pod, "/status/phase") == "Running";
            if runs { servers.serve(json::uid(pod), json::key(pod)) } else { servers.end(json::uid(pod)) }
        });
    }

    fn directory(&self, pod_uid: &str) -> PathBuf {
        self.root.join("pods").join(pod_uid)
    }

    fn serve(self: &Arc<Self>, pod_uid: &str, pod: String) {
        let mut serving = self.serving.lock().unwrap_or_else(PoisonError::into_inner);
        if serving.contains_key(pod_uid) {
            return;
        }
        let sockets = self.directory(pod_uid).join("volumes/kubernetes.io~empty-dir/sockets");
        let listener = match listen(&sockets) {
            Ok(listener) => listener,
            Err(error) => {
                tracing::warn!(pod = pod_uid, %error, "no command socket for a launcher");
                return;
            }
        };
        let stop = self.stop.child_token();
        serving.insert(pod_uid.to_owned(), stop.clone());
        let launcher = service::Launcher {
            shared: self.shared.clone(),
            pod: (pod_uid.to_owned(), pod),
            stop: stop.clone(),
        };
        tokio::spawn(service::accept(listener, launcher, stop.clone()));
        tokio::spawn(drive(self.shared.launchers.clone(), pod_uid.to_owned(), stop));
    }

    fn end(&self, pod_uid: &str) {
        let stop = self.serving.lock().unwrap_or_else(PoisonError::into_inner).remove(pod_uid);
        if let Some(stop) = stop {
            stop.cancel();
            // kubelet removes the pod's volumes.
            let _ = std::fs::remove_dir_all(self.directory(pod_uid));
        }
    }
}

/// Listens on a path that may be longer than `sun_path`.
fn listen(sockets: &Path) -> std::io::Result<UnixListener> {
    std::fs::create_dir_all(sockets)?;
    let directory = std::fs::File::open(sockets)?;
    UnixListener::bind(format!("/proc/self/fd/{}/launcher-sock", directory.as_raw_fd()))
}

/// The guest's virtio-mem driver.
async fn drive(launchers: Arc<Launchers>, pod_uid: String, stop: CancellationToken) {
    let (every, step) = DRIVER;
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = tokio::time::sleep(every) => {}
        }
        let moves = launchers.guest(&pod_uid, |guest| !guest.paused && guest.machine.follow(step));
        if moves == Some(true) {
            // Memory changes are events, unlike those of vCPUs.
            launchers.change_guest(&pod_uid, |_| ());
        }
    }
}
