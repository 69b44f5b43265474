//! Hook sidecars of launcher pods: real processes of our own sidecar image, asked over real
//! sockets as virt-launcher asks them. There is no container engine in the sandbox, so images are
//! not run; a binary stands for the one image that is known.
//!
//! ```text
//!  pod ready ─► start processes ─► collect ─► define twice ─► Defined ──guest ends──► Shutdown, gone
//!                    │                │            └─ refused: said on the VMI, tried again
//!                    └─ no ConfigMap  └─ panic: the pod fails
//!
//!  define: hook sidecars ─► Plugins (gate Plugins, VEP 190) ─► libvirt
//! ```

mod call;
mod container;
mod domain;
mod manager;
mod plugins;

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use apimachinery::tree::Value;
use kubevirt::{KubeVirtView, feature_gates};
use tokio::process::Child;
use tokio::sync::Notify;

pub use call::RpcError;
pub use manager::{CollectError, Manager, Timing};
pub use plugins::{PluginTiming, apply as apply_plugins};

use super::cache::Cache;
use super::client::{Client, ClientError};
use super::json;
use domain::Round;

/// The key of the `KubeVirt` object.
const KUBEVIRT: &str = "kubevirt/kubevirt";
/// How long virt-handler waits before it asks for a refused domain again.
const RETRY: Duration = Duration::from_secs(1);
/// How long a sidecar may take to end after `Shutdown`.
const GRACE: Duration = Duration::from_secs(5);

/// How far the domain of a pod is.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Stage {
    /// Not yet.
    Waiting,
    /// A volume cannot be mounted; kubelet tries again.
    Unmounted(String),
    /// A sidecar refused the domain, or libvirt did; virt-handler tries again.
    Refused(String),
    /// virt-launcher ended with this text.
    Panicked(String),
    /// The domain is defined, and these are its bytes.
    Defined(Arc<Vec<u8>>),
}

/// The sidecars of all pods.
#[derive(Clone)]
pub struct Hooks(Option<Arc<Shared>>);

struct Shared {
    binary: PathBuf,
    /// Below it every pod has a directory with a short name: paths of sockets have 107 bytes.
    home: tempfile::TempDir,
    next: AtomicU32,
    client: Client,
    kubevirts: Arc<Cache>,
    pods: Mutex<HashMap<String, Arc<Pod>>>,
}

struct Pod {
    home: PathBuf,
    stage: Mutex<Stage>,
    ended: Notify,
    task: Mutex<Option<tokio::task::AbortHandle>>,
}

impl Pod {
    fn stage(&self) -> MutexGuard<'_, Stage> {
        self.stage.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Hooks {
    /// Runs `binary` for containers of our sidecar image; `None`: sidecars are not run, and
    /// launchers do not wait for them.
    pub fn new(binary: Option<PathBuf>, client: &Client, kubevirts: &Arc<Cache>) -> io::Result<Self> {
        let Some(binary) = binary else { return Ok(Self(None)) };
        std::fs::metadata(&binary)?;
        Ok(Self(Some(Arc::new(Shared {
            binary,
            home: tempfile::Builder::new().prefix("vs-").tempdir()?,
            next: AtomicU32::new(0),
            client: client.clone(),
            kubevirts: kubevirts.clone(),
            pods: Mutex::default(),
        }))))
    }

    /// How far the sidecars of a launcher pod are; the first question starts them. `None`: it has
    /// none that can be run.
    pub fn stage(&self, vmi: &Value, pod: &Value) -> Option<Stage> {
        let shared = self.0.as_ref()?;
        if container::sidecars(pod).is_empty() && container::plugins(pod).is_empty() {
            return None;
        }
        let uid = json::uid(pod);
        let mut pods = shared.pods();
        if let Some(known) = pods.get(uid) {
            return Some(known.stage().clone());
        }
        let number = shared.next.fetch_add(1, Ordering::Relaxed);
        let life = Arc::new(Pod {
            home: shared.home.path().join(format!("p{number}")),
            stage: Mutex::new(Stage::Waiting),
            ended: Notify::new(),
            task: Mutex::default(),
        });
        pods.insert(uid.to_owned(), life.clone());
        let task = tokio::spawn(live(shared.clone(), life.clone(), vmi.clone(), pod.clone()));
        *life.task.lock().unwrap_or_else(PoisonError::into_inner) = Some(task.abort_handle());
        Some(Stage::Waiting)
    }

    /// The guest of a pod has ended: its sidecars are told.
    pub fn end(&self, pod_uid: &str) {
        if let Some(pod) = self.0.as_ref().and_then(|shared| shared.pods().get(pod_uid).cloned()) {
            pod.ended.notify_one();
        }
    }

    /// A pod is gone, and its processes and files with it.
    pub fn forget(&self, pod_uid: &str) {
        let Some(pod) = self.0.as_ref().and_then(|shared| shared.pods().remove(pod_uid)) else { return };
        if let Some(task) = pod.task.lock().unwrap_or_else(PoisonError::into_inner).take() {
            task.abort();
        }
        if let Err(error) = std::fs::remove_dir_all(&pod.home)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::debug!(path = %pod.home.display(), %error, "a pod's files stay");
        }
    }

    /// The domain of a pod, and the directory of its files.
    pub fn domain(&self, pod_uid: &str) -> Option<(Arc<Vec<u8>>, PathBuf)> {
        let pod = self.0.as_ref()?.pods().get(pod_uid).cloned()?;
        match &*pod.stage() {
            Stage::Defined(domain) => Some((domain.clone(), pod.home.clone())),
            _ => None,
        }
    }
}

impl Shared {
    fn pods(&self) -> MutexGuard<'_, HashMap<String, Arc<Pod>>> {
        self.pods.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The life of a pod's sidecars.
async fn live(shared: Arc<Shared>, pod: Arc<Pod>, vmi: Value, object: Value) {
    let count = container::sidecars(&object).len();
    let mut children = loop {
        match start(&shared, &pod, &object).await {
            Ok(children) => break children,
            Err(reason) => *pod.stage() = Stage::Unmounted(reason),
        }
        tokio::time::sleep(RETRY).await;
    };
    let collected = Manager::collect(&pod.home.join("hooks"), count, Timing::default()).await;
    let manager = match collected {
        Ok(manager) => manager,
        Err(error) => {
            *pod.stage() = Stage::Panicked(error.to_string());
            return;
        }
    };
    loop {
        match define(&shared, &pod, &manager, &vmi).await {
            Ok(domain) => {
                // for people who look; `virsh dumpxml` is not there
                drop(tokio::fs::write(pod.home.join("domain.xml"), &domain).await);
                *pod.stage() = Stage::Defined(Arc::new(domain));
                break;
            }
            Err(reason) => *pod.stage() = Stage::Refused(reason),
        }
        tokio::time::sleep(RETRY).await;
    }
    pod.ended.notified().await;
    manager.shutdown().await;
    // init containers that restart are told by kubelet, once the others have ended
    for child in children.iter().skip(count) {
        let process =
            child.id().and_then(|id| i32::try_from(id).ok()).and_then(rustix::process::Pid::from_raw);
        if let Some(process) = process {
            // gone already, if this fails
            let _ = rustix::process::kill_process(process, rustix::process::Signal::TERM);
        }
    }
    for child in &mut children {
        // killed when it is dropped
        drop(tokio::time::timeout(GRACE, child.wait()).await);
    }
}

async fn start(shared: &Shared, pod: &Pod, object: &Value) -> Result<Vec<Child>, String> {
    let mut sidecars = container::sidecars(object);
    sidecars.extend(container::plugins(object));
    let mut config_maps = BTreeMap::new();
    for name in sidecars.iter().flat_map(|sidecar| container::config_maps(object, sidecar)) {
        let path = format!("/api/v1/namespaces/{}/configmaps/{name}", json::namespace(object));
        let found = shared.client.get(None, &path).await.map_err(|error: ClientError| {
            format!("MountVolume.SetUp failed for volume \"{name}\" : {}", error.message())
        })?;
        config_maps.insert(name.to_owned(), found);
    }
    sidecars
        .iter()
        .map(|sidecar| {
            container::start(&shared.binary, &pod.home, object, sidecar, &config_maps)
                .map_err(|error| format!("start container {}: {error}", json::text(sidecar, "/name")))
        })
        .collect()
}

/// Defines the domain as often as virt-launcher does, and starts QEMU as far as it opens ROMs.
async fn define(shared: &Shared, pod: &Pod, manager: &Manager, vmi: &Value) -> Result<Vec<u8>, String> {
    let kubevirt = shared.kubevirts.get(KUBEVIRT);
    let takes_plugins = kubevirt.as_deref().is_some_and(|kubevirt| {
        let plain = kubevirt.clone().into();
        feature_gates::is_enabled(KubeVirtView(&plain), feature_gates::PLUGINS)
    });
    // virt-handler sends all Plugins with every VMI
    let plugins = if takes_plugins { plugins_of(shared).await? } else { Vec::new() };
    let text = vmi.to_string();
    let mut defined = Vec::new();
    for round in [Round::First, Round::Second] {
        let xml = domain::xml(vmi, kubevirt.as_deref(), round);
        let hooked =
            manager.on_define_domain(xml, text.as_bytes()).await.map_err(|error| error.to_string())?;
        domain::check(&hooked)?;
        let directory = pod.home.join("plugins");
        defined = plugins::apply(&plugins, vmi, hooked, &directory, PluginTiming::default()).await?;
    }
    for file in domain::roms(&defined) {
        let readable = container::seen_by_compute(&pod.home, &file)
            .is_some_and(|path| std::fs::File::open(path).is_ok());
        if !readable {
            return Err(format!(
                "virError(Code=1, Domain=10, Message='internal error: QEMU unexpectedly closed the monitor: failed to find romfile \"{file}\"')"
            ));
        }
    }
    Ok(defined)
}

async fn plugins_of(shared: &Shared) -> Result<Vec<Value>, String> {
    let listed = shared.client.get(None, "/apis/plugin.kubevirt.io/v1alpha1/plugins").await;
    let listed = listed.map_err(|error| format!("failed to list plugins: {}", error.message()))?;
    Ok(json::list(&listed, "/items").to_vec())
}
