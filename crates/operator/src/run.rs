//! Everything together, from start to orderly end.
//!
//! ```text
//!  bind ─► certificate, watches, registration (each on its own, retrying) ─► serving
//!  stop ─► /readyz 503 ─► drain ─► take url registration away ─► finish requests ─► end
//! ```

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use features::ClusterFacts;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::clock::{self, Clock};
use crate::config::{Config, RegisterMode, TlsSource};
use crate::export;
use crate::facts::{self, Reader};
use crate::hotplug::{self, Steward};
use crate::kubernetes::{ConnectError, Raw, connect, find};
use crate::lease::{Lease, Terms};
use crate::readiness::Readiness;
use crate::register::{Reach, Registrar};
use crate::resize;
use crate::rest::{RestError, RestServer};
use crate::telemetry::{Exporter, Metrics, MetricsServer, TracesError};
use crate::tls::{self, Files, Outlet, Resolver, Store};
use crate::webhook::{Handler, Parts, Server, ServerError};

/// Between looks at whether the start is over.
const SETTLE: Duration = Duration::from_secs(1);

/// How long the end of the program waits for an API server.
const PATIENCE: Duration = Duration::from_secs(5);

/// Why the operator does not start.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// No client for the cluster.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// No webhook port.
    #[error(transparent)]
    Server(#[from] ServerError),
    /// No metrics port.
    #[error(
        "cannot serve metrics on {address}: {source}; choose another --metrics-bind-address, or 0 for none"
    )]
    Metrics {
        /// Where.
        address: SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
    /// No REST port.
    #[error(transparent)]
    Rest(#[from] RestError),
    /// Traces were asked for and cannot be sent.
    #[error(transparent)]
    Traces(#[from] TracesError),
    /// TLS cannot be set up.
    #[error("cannot set up TLS: {0}")]
    Tls(#[from] rustls::Error),
}

/// A started operator.
pub struct Operator {
    address: SocketAddr,
    metrics_address: Option<SocketAddr>,
    rest_address: Option<SocketAddr>,
    readiness: Arc<Readiness>,
    server: Server,
    background: Vec<JoinHandle<()>>,
    registrar: Option<Arc<Registrar>>,
    /// Ends watches, rotation and registration.
    ending: CancellationToken,
    drain: Duration,
    removes_registration: bool,
}

/// Starts the operator and serves until `shutdown`. The error is why it could not start; what fails
/// later is retried, and told by logs, metrics and `/readyz?verbose`.
pub async fn run(config: Config, shutdown: CancellationToken) -> Result<(), RunError> {
    Operator::start(config).await?.serve(shutdown).await;
    Ok(())
}

impl Operator {
    /// Binds the ports and starts everything; requests are answered from [`Operator::serve`] on.
    pub async fn start(config: Config) -> Result<Self, RunError> {
        for note in &config.notes {
            tracing::warn!(note, "configuration");
        }
        let provider = Arc::new(aws_lc_rs::default_provider());
        // kube asks for the process-wide one; somebody else may have set the same one already.
        let _ = CryptoProvider::install_default(aws_lc_rs::default_provider());
        let (client, namespace) = connect(&config.kubernetes).await?;

        let metrics = Arc::new(Metrics::new(config.telemetry.version()));
        let resolver = Arc::new(Resolver::default());
        let clock = clock::system();
        let readiness = Arc::new(Readiness::new(Arc::clone(&resolver), Arc::clone(&clock)));
        let facts = Arc::new(ArcSwap::from_pointee(ClusterFacts::default()));
        let policies = Arc::new(facts::Policies::default());
        let (exporter, tracer) = match &config.telemetry.otlp_endpoint {
            None => (None, None),
            Some(endpoint) => {
                // Read here and not into the configuration: they may hold a token, and that is printed.
                let headers = std::env::var("OTEL_EXPORTER_OTLP_HEADERS").ok();
                let (provider, clock) = (Arc::clone(&provider), Arc::clone(&clock));
                let version = config.telemetry.version();
                let (exporter, tracer) =
                    Exporter::new(endpoint, headers.as_deref(), version, provider, clock)?;
                (Some(exporter), Some(tracer))
            }
        };
        let steward = config.hotplug.is_on().then(|| {
            let (api, clock) = (Raw::new(client.clone()), Arc::clone(&clock));
            Arc::new(Steward::new(api, clock, Arc::clone(&metrics), config.hotplug.heal))
        });
        let handler = Handler::new(
            &config,
            Parts {
                facts: Arc::clone(&facts),
                policies: Arc::clone(&policies),
                reader: Reader::new(client.clone(), config.kubernetes.read_secrets),
                readiness: Arc::clone(&readiness),
                metrics: Arc::clone(&metrics),
                tracer,
                steward: steward.clone(),
            },
        );
        let tls = tls::server_config(Arc::clone(&resolver), Arc::clone(&provider))?;
        let server = Server::bind(&config, tls, Arc::new(handler)).await?;
        let address = server.address();

        let ending = CancellationToken::new();
        let mut background = facts::spawn(&client, Arc::clone(&facts), &readiness, &ending);
        let election = Election::new(&config, &client, &namespace, &clock);
        if config.resize.enabled {
            let (clock, metrics) = (Arc::clone(&clock), Arc::clone(&metrics));
            let context = resize::context(&client, config.resize.clone(), clock, metrics);
            background.push(election.run("resize", &ending, move |stop| resize::run(context.clone(), stop)));
        }
        if config.exports.enabled {
            let context = export::context(&client, &config.exports, Arc::clone(&clock), Arc::clone(&metrics));
            background.push(election.run("export", &ending, move |stop| export::run(context.clone(), stop)));
        }
        background.extend(facts::spawn_policies(&client, &policies, &ending));
        if let Some(steward) = steward {
            background.push(tokio::spawn(hotplug::follow_denials(Arc::clone(&steward), ending.clone())));
            let heal = move |stop| hotplug::heal(Arc::clone(&steward), stop);
            background.push(election.run("hotplug", &ending, heal));
        }
        if let Some(exporter) = exporter {
            background.push(tokio::spawn(exporter.run(ending.clone())));
        }
        let metrics_address = match config.metrics_address() {
            None => None,
            Some(address) => {
                let failed = |source| RunError::Metrics { address, source };
                let server = MetricsServer::bind(address, Arc::clone(&metrics)).await.map_err(failed)?;
                let bound = server.address().map_err(failed)?;
                background.push(tokio::spawn(server.serve(ending.clone())));
                Some(bound)
            }
        };
        let mut rest_address = None;
        if config.rest.enabled {
            let (cluster, crypto) = (find(&config.kubernetes).await?, Arc::clone(&provider));
            let server = RestServer::bind(&config.rest, cluster, Arc::clone(&resolver), crypto).await?;
            rest_address = Some(server.address());
            background.push(tokio::spawn(server.serve(ending.clone())));
        }
        let reach = reach(&config, address, &namespace);
        let outlet = Outlet::new(resolver, metrics);
        let ca_bundle = outlet.ca_bundle();
        let certificates = Certificates {
            names: names(&config, reach.as_ref(), address.ip()),
            store: store(&config, &client, &namespace),
            outlet,
            readiness: Arc::clone(&readiness),
            provider,
            clock,
            stop: ending.clone(),
        };
        background.push(tokio::spawn(certificates.follow(config.clone())));
        let registrar = reach.map(|reach| {
            Arc::new(
                Registrar::new(Raw::new(client), config.register.clone(), reach)
                    .with_resize(config.resize.enabled)
                    .with_hotplug(config.hotplug)
                    .with_launchers(config.features.vbios_injection.register_plugin.then_some(facts)),
            )
        });
        if let Some(registrar) = registrar.clone() {
            let (readiness, stop) = (Arc::clone(&readiness), ending.clone());
            background.push(tokio::spawn(async move { registrar.keep(ca_bundle, &readiness, &stop).await }));
        }
        tracing::info!(%address, metrics = ?metrics_address, rest = ?rest_address, register = ?config.register.mode, version = config.telemetry.version(), "started");
        Ok(Self {
            address,
            metrics_address,
            rest_address,
            readiness,
            server,
            background,
            registrar,
            ending,
            drain: Duration::from_secs(config.server.drain_seconds),
            removes_registration: config.register.mode == RegisterMode::Url,
        })
    }

    /// Where the webhooks are served.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where `/metrics` is served.
    pub fn metrics_address(&self) -> Option<SocketAddr> {
        self.metrics_address
    }

    /// Where operations on VMs are served over REST.
    pub fn rest_address(&self) -> Option<SocketAddr> {
        self.rest_address
    }

    /// How every part is.
    pub fn readiness(&self) -> Arc<Readiness> {
        Arc::clone(&self.readiness)
    }

    /// Serves until `shutdown`, then ends in order.
    pub async fn serve(self, shutdown: CancellationToken) {
        let Self { server, readiness, background, registrar, ending, drain, removes_registration, .. } = self;
        let stop = CancellationToken::new();
        let serving = tokio::spawn({
            let (stop, shutdown) = (stop.clone(), shutdown.clone());
            async move {
                if let Err(error) = server.serve(stop).await {
                    tracing::error!(%error, "cannot serve webhooks");
                    shutdown.cancel();
                }
            }
        });
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = settle(&readiness) => shutdown.cancelled().await,
        }
        tracing::info!(drain_seconds = drain.as_secs(), "stopping");
        readiness.drain();
        if removes_registration && let Some(registrar) = registrar {
            // Before anything else, so that no API server calls a port that is about to close; but
            // after the loop that would put it back has ended.
            ending.cancel();
            end(background).await;
            let _ = tokio::time::timeout(PATIENCE, registrar.remove()).await;
            // API servers learn of it by a watch.
            tokio::time::sleep(drain.min(Duration::from_secs(1))).await;
        } else {
            tokio::time::sleep(drain).await;
            ending.cancel();
            end(background).await;
        }
        stop.cancel();
        let _ = serving.await;
        tracing::info!("stopped");
    }
}

/// Waits until every part is ready, and then gives back what only the start needed.
async fn settle(readiness: &Readiness) {
    while !readiness.report().ready {
        tokio::time::sleep(SETTLE).await;
    }
    // first watches, first certificate, registration: they end after the first sign of readiness
    tokio::time::sleep(SETTLE).await;
    match footprint::give_back_text() {
        Ok(bytes) => tracing::debug!(bytes, "gave back the text that only the start needed"),
        Err(error) => tracing::debug!(%error, "kept the text that only the start needed"),
    }
}

/// Where reconcilers run: on every replica, or with `--leader-elect` on the one that holds their Lease.
struct Election<'a> {
    leases: Option<Raw>,
    namespace: &'a str,
    clock: &'a Clock,
}

impl<'a> Election<'a> {
    fn new(config: &Config, client: &kube::Client, namespace: &'a str, clock: &'a Clock) -> Self {
        let leases = config.kubernetes.leader_elect.then(|| Raw::new(client.clone()));
        Self { leases, namespace, clock }
    }

    /// Runs a reconciler until `stop`; `name` tells its Lease from those of others.
    fn run<F, W>(&self, name: &str, stop: &CancellationToken, work: W) -> JoinHandle<()>
    where
        F: Future<Output = ()> + Send,
        W: Fn(CancellationToken) -> F + Send + Sync + 'static,
    {
        let stop = stop.clone();
        let Some(leases) = self.leases.clone() else {
            return tokio::spawn(async move { work(stop).await });
        };
        // A pod is known by its name; two programs on one machine by their process as well.
        let host = std::env::var("HOSTNAME").unwrap_or_else(|_| "virt-steward".into());
        let me = format!("{host}_{}", std::process::id());
        let (namespace, name) = (self.namespace.to_owned(), format!("virt-steward-{name}"));
        let lease = Lease::new(leases, namespace, name, me, Terms::default(), Arc::clone(self.clock));
        tokio::spawn(async move { lease.lead(&stop, work).await })
    }
}

/// What the task that sees to the certificate works with.
struct Certificates {
    names: Vec<String>,
    store: Store,
    outlet: Outlet,
    readiness: Arc<Readiness>,
    provider: Arc<CryptoProvider>,
    clock: Clock,
    stop: CancellationToken,
}

impl Certificates {
    async fn follow(self, config: Config) {
        let Self { names, store, outlet, readiness, provider, clock, stop } = self;
        match config.tls_source() {
            TlsSource::SelfSigned => {
                tls::follow_store(store, names, &outlet, &readiness, provider, clock, stop).await;
            }
            TlsSource::Files => {
                let files = Files {
                    certificate: config.cert_file(),
                    key: config.key_file(),
                    ca: config.tls.cert_dir.join("ca.crt"),
                };
                let interval = Duration::from_secs(config.tls.reload_seconds.max(1));
                tls::follow_files(files, &outlet, &readiness, provider, interval, stop).await;
            }
        }
    }
}

/// Waits for tasks that were told to end; one that hangs in a request is left behind.
async fn end(tasks: Vec<JoinHandle<()>>) {
    let aborts: Vec<_> = tasks.iter().map(JoinHandle::abort_handle).collect();
    if tokio::time::timeout(PATIENCE, futures::future::join_all(tasks)).await.is_err() {
        for abort in aborts {
            abort.abort();
        }
    }
}

/// How API servers reach us, when it is us who tell them.
fn reach(config: &Config, address: SocketAddr, namespace: &str) -> Option<Reach> {
    match config.register.mode {
        RegisterMode::None => None,
        RegisterMode::Service => Some(Reach::Service {
            namespace: namespace.to_owned(),
            name: config.register.service_name.clone(),
            port: config.register.service_port,
        }),
        RegisterMode::Url => Some(Reach::Url(config.register.url.clone().unwrap_or_else(|| {
            let ip = if address.ip().is_unspecified() { IpAddr::from([127, 0, 0, 1]) } else { address.ip() };
            format!("https://{}", SocketAddr::new(ip, address.port()))
        }))),
    }
}

/// The names that a self-made certificate has to carry.
fn names(config: &Config, reach: Option<&Reach>, listening: IpAddr) -> Vec<String> {
    let mut names = config.tls.extra_names.clone();
    match reach {
        Some(Reach::Service { namespace, name, .. }) => {
            // An API server verifies `<service>.<namespace>.svc`.
            names.extend([
                format!("{name}.{namespace}.svc"),
                format!("{name}.{namespace}.svc.cluster.local"),
                format!("{name}.{namespace}"),
            ]);
        }
        Some(Reach::Url(url)) => {
            let uri: Option<http::Uri> = url.parse().ok();
            let host = uri.as_ref().and_then(http::Uri::host).unwrap_or("localhost");
            names.push(host.trim_matches(['[', ']']).to_owned());
        }
        None => {}
    }
    names.extend(["localhost".into(), "127.0.0.1".into()]);
    if !listening.is_unspecified() {
        names.push(listening.to_string());
    }
    names.sort();
    names.dedup();
    names
}

/// Replicas behind a Service must serve under one CA; a lone process needs no memory.
fn store(config: &Config, client: &kube::Client, namespace: &str) -> Store {
    match config.register.mode {
        RegisterMode::Url | RegisterMode::None => Store::Memory,
        RegisterMode::Service => Store::Secret {
            api: Raw::new(client.clone()),
            namespace: namespace.to_owned(),
            name: config.tls.secret_name.clone(),
        },
    }
}
