//! An embedded Kubernetes API and a simulated KubeVirt behind it.
//!
//! ```no_run
//! # async fn demo() -> Result<(), sandbox::Error> {
//! let sandbox = sandbox::Sandbox::start(sandbox::Options::default()).await?;
//! println!("{}", sandbox.kubeconfig());
//! sandbox.shutdown().await;
//! # Ok(())
//! # }
//! ```

pub mod admission;
pub mod api;
pub mod attributes;
pub mod audit;
pub mod auth;
mod bootstrap;
pub mod certs;
pub mod clock;
pub mod controllers;
pub mod faults;
pub mod network;
pub mod objects;
mod packing;
pub mod registry;
pub mod server;
pub mod sim;
pub mod simulation;
pub mod store;

use std::path::PathBuf;
use std::sync::Arc;

use tokio_util::sync::CancellationToken;

pub use simulation::{Simulation, World};

use crate::api::Api;
use crate::clock::{Clock, Ids, SystemClock};
use crate::faults::{Faults, SkewedClock};
use crate::network::Network;
use crate::registry::Registry;
use crate::server::Server;
use crate::store::Store;

/// How a sandbox is set up.
#[derive(Clone, Debug)]
pub struct Options {
    /// The port on 127.0.0.1; 0: any that is free.
    pub port: u16,
    /// Write the administrator's kubeconfig here (readable by the owner only).
    pub kubeconfig_out: Option<PathBuf>,
    /// Decides every id and everything else that is random.
    pub seed: u64,
    /// Simulated nodes; 0: the API alone, without `KubeVirt`'s components.
    pub nodes: usize,
    /// Virtual machines that are there from the start, when there are nodes.
    pub vms: usize,
    /// A directory (or a file) with `CustomResourceDefinitions` to serve in place of the built-in
    /// compact ones of the same name.
    pub crds: Option<PathBuf>,
    /// Append an `audit.k8s.io/v1` event for every request to this file.
    pub audit_log: Option<PathBuf>,
    /// The program `virt-steward-hook`, run for the sidecars of launcher pods that have its image.
    pub hook_binary: Option<PathBuf>,
    /// The program virt-steward, run in pods of Jobs that have its image.
    pub program_binary: Option<PathBuf>,
    /// Where launchers have their command sockets, as below kubelet's directory; nothing: they have
    /// none.
    pub kubelet_root: Option<PathBuf>,
    /// The release of `KubeVirt` that is simulated.
    pub release: sim::Release,
    /// Where the kernel's files of simulated nodes are written, a root for each; nothing: nowhere.
    pub host_roots: Option<PathBuf>,
    /// What goes wrong once everything stands.
    pub faults: Vec<faults::Fault>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            port: 0,
            kubeconfig_out: None,
            seed: 1,
            nodes: 0,
            vms: 0,
            crds: None,
            audit_log: None,
            hook_binary: None,
            program_binary: None,
            kubelet_root: None,
            release: sim::Release::default(),
            host_roots: None,
            faults: Vec::new(),
        }
    }
}

/// The sandbox could not be started.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No certificates.
    #[error(transparent)]
    Certificate(#[from] certs::Error),
    /// No server.
    #[error(transparent)]
    Server(#[from] server::Error),
    /// The kubeconfig could not be written.
    #[error("write kubeconfig to {}", path.display())]
    Kubeconfig {
        /// Where to.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A file of definitions could not be read.
    #[error("read CustomResourceDefinitions from {}: {reason}", path.display())]
    Definitions {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// The audit log could not be opened.
    #[error(transparent)]
    Audit(#[from] audit::Error),
    /// What every cluster has could not be made.
    #[error("set up the cluster: {0}")]
    Bootstrap(String),
    /// The simulated nodes and `KubeVirt` could not be started.
    #[error(transparent)]
    Simulation(#[from] sim::SimError),
}

/// A running sandbox.
#[derive(Debug)]
pub struct Sandbox {
    server: Server,
    kubeconfig: String,
    api: Arc<Api>,
    simulation: Option<Arc<sim::Simulation>>,
    network: Network,
}

/// Where a sandbox runs.
#[derive(Clone)]
pub struct Surroundings {
    /// What the API server's clock and those of the simulated components show.
    pub clock: Arc<dyn Clock>,
    /// How its parts reach each other, and webhooks and aggregated APIs of others.
    pub network: Network,
    /// Write every request down here, beside or without a file.
    pub audit: Option<(audit::Level, audit::Log)>,
}

impl Default for Surroundings {
    /// On this machine, in its time. What is simulated lives in this process, and reaches the API server
    /// in memory.
    fn default() -> Self {
        Self { clock: Arc::new(SystemClock), network: Network::shortcut(), audit: None }
    }
}

impl std::fmt::Debug for Surroundings {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Surroundings").field("network", &self.network).finish_non_exhaustive()
    }
}

/// Connections in memory need no TLS.
fn url(network: &Network, address: std::net::SocketAddr) -> String {
    let scheme = if network.is_memory() { "http" } else { "https" };
    format!("{scheme}://{address}")
}

impl Sandbox {
    /// Starts the API on 127.0.0.1, and the simulation when nodes are asked for.
    ///
    /// # Errors
    /// [`Error`] says what failed.
    pub async fn start(options: Options) -> Result<Self, Error> {
        Self::start_within(options, Surroundings::default()).await
    }

    /// The same, in a time and on a network of its own.
    ///
    /// # Errors
    /// [`Error`] says what failed.
    pub async fn start_within(options: Options, surroundings: Surroundings) -> Result<Self, Error> {
        let Surroundings { clock, network, audit: log } = surroundings;
        let authority = network.authority(0)?;
        let ids = Ids::new(options.seed);
        let admin_token = format!("{:016x}{:016x}", secret()?, secret()?);
        let audit = match &options.audit_log {
            // The task ends by itself when the API is dropped.
            Some(path) => Some(audit::Audit::to_file(path, audit::Level::Request).await?.0),
            None => log.map(|(level, log)| audit::Audit::to_log(level, log)),
        };
        let store = Arc::new(Store::new());
        let (work, backlog) = controllers::Queue::new();
        let make_uid = {
            let ids = ids.clone();
            Arc::new(move || ids.uid())
        };
        let faults = Faults::new(options.seed, clock.clone());
        let admission =
            admission::Admission::within(store.clone(), make_uid, Some(faults.clone()), network.clone());
        let auth = auth::Auth::new(store.clone(), admin_token.clone(), api::admin())
            .map_err(|error| Error::Bootstrap(error.to_string()))?;
        let api = Arc::new(Api {
            store,
            registry: Registry::new(),
            clock: Arc::new(SkewedClock(faults.clone())),
            faults: faults.clone(),
            ids,
            network: network.clone(),
            shutdown: CancellationToken::new(),
            auth,
            ca: authority.pem(),
            admission,
            audit,
            documents: std::sync::Mutex::default(),
            proxy: authority.client("front-proxy-client", &[])?,
            work,
            logs: std::sync::OnceLock::new(),
        });
        tokio::spawn(controllers::run(api.clone(), backlog));
        bootstrap::fill(&api, &options)?;
        let server = Server::start(api.clone(), &authority, &network, options.port).await?;
        let url = url(&network, server.address);
        let client = authority.client("admin", &["system:masters"])?;
        let kubeconfig = certs::kubeconfig(&url, &authority.pem(), &client, &admin_token);
        if let Some(path) = &options.kubeconfig_out {
            write_private(path, &kubeconfig)
                .map_err(|source| Error::Kubeconfig { path: path.clone(), source })?;
        }
        match simulate(&kubeconfig, &options, clock, &network).await {
            Ok(simulation) => {
                let simulation = simulation.map(Arc::new);
                if let Some(simulation) = &simulation {
                    let programs = simulation.programs();
                    let _ = api.logs.set(Box::new(move |pod| programs.log(pod)));
                    tokio::spawn(restart_the_dead(faults.crashes(), Arc::downgrade(simulation)));
                }
                for fault in options.faults {
                    faults.add(fault).map_err(|error| Error::Bootstrap(error.to_string()))?;
                }
                Ok(Self { server, kubeconfig, api, simulation, network })
            }
            Err(error) => {
                server.shutdown().await;
                Err(error.into())
            }
        }
    }

    /// `https://127.0.0.1:port`
    pub fn url(&self) -> String {
        url(&self.network, self.server.address)
    }

    /// A client of the administrator, over the sandbox's own network.
    ///
    /// # Errors
    /// When the client cannot be set up.
    pub async fn client(&self) -> Result<kube::Client, sim::SimError> {
        sim::connect_over(&self.network, &self.kubeconfig).await
    }

    /// The administrator's kubeconfig.
    pub fn kubeconfig(&self) -> String {
        self.kubeconfig.clone()
    }

    /// The API itself, for what runs in the same process.
    pub fn api(&self) -> Arc<Api> {
        self.api.clone()
    }

    /// The simulated nodes and `KubeVirt`, if there are any.
    pub fn simulation(&self) -> Option<&sim::Simulation> {
        self.simulation.as_deref()
    }

    /// Ends the simulation and watches, finishes requests in flight, closes the port.
    pub async fn shutdown(self) {
        drop(self.simulation);
        self.server.shutdown().await;
    }
}

/// Tells the simulation which of its components a fault has killed.
async fn restart_the_dead(
    mut crashes: tokio::sync::broadcast::Receiver<String>,
    simulation: std::sync::Weak<sim::Simulation>,
) {
    use tokio::sync::broadcast::error::RecvError;
    loop {
        match crashes.recv().await {
            Ok(user) => match simulation.upgrade() {
                Some(simulation) => simulation.restart(&user),
                None => return,
            },
            Err(RecvError::Lagged(_)) => {}
            Err(RecvError::Closed) => return,
        }
    }
}

/// Starts the simulation when nodes are asked for.
async fn simulate(
    kubeconfig: &str,
    options: &Options,
    clock: Arc<dyn Clock>,
    network: &Network,
) -> Result<Option<sim::Simulation>, sim::SimError> {
    if options.nodes == 0 {
        return Ok(None);
    }
    let client = sim::connect_over(network, kubeconfig).await?;
    let mut config = sim::SimConfig::sized(options);
    config.program = options
        .program_binary
        .clone()
        .map(|binary| sim::Program { binary, kubeconfig: kubeconfig.to_owned() });
    Ok(Some(sim::Simulation::start_within(client, clock, network.clone(), config).await?))
}

/// A credential must not follow from the seed.
fn secret() -> Result<u64, Error> {
    let mut bytes = [0_u8; 8];
    rustls::crypto::aws_lc_rs::default_provider()
        .secure_random
        .fill(&mut bytes)
        .map_err(|_| Error::Bootstrap("no randomness for the administrator's token".into()))?;
    Ok(u64::from_be_bytes(bytes))
}

fn write_private(path: &std::path::Path, text: &str) -> std::io::Result<()> {
    use std::io::Write as _;
    use std::os::unix::fs::OpenOptionsExt as _;
    let mut file =
        std::fs::OpenOptions::new().create(true).write(true).truncate(true).mode(0o600).open(path)?;
    file.write_all(text.as_bytes())
}
