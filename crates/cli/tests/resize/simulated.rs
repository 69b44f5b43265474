//! Random lives of a whole cluster in virtual time: API server, simulated KubeVirt, the reconciler and
//! the webhook that ship, and the agents that ship, on one thread whose clock jumps over every wait. So
//! a thousand of them fit in minutes, with faults that take as long as they take in a cluster: kubelets
//! that keep a resize waiting for minutes, deadlines, and retries.
//!
//! What is drawn from the seed: what happens, when, and how long each message takes. Agents reach
//! launchers over real unix sockets, so the order within one moment is the kernel's.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use agent::{Agent, Settings};
use arc_swap::ArcSwap;
use futures::future::BoxFuture;
use http::header::{HeaderName, HeaderValue};
use http::{Method, Request, Response};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use jiff::SignedDuration;
use kube::client::Body;
use operator::config::{Config, RegisterMode};
use operator::facts::{Policies, Reader};
use operator::kubernetes::Raw;
use operator::readiness::Readiness;
use operator::register::{Reach, Registrar};
use operator::telemetry::Metrics;
use operator::tls::Resolver;
use operator::webhook::{Handler, Parts};
use resize::Fallback;
use resize::quantity::bytes;
use sandbox::network::Listener;
use sandbox::{Options, Simulation, World};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use super::stage::{MIGRATIONS, VMIS, VMS, annotation, guest_in, is_launcher_of, vm_object};
use super::storm::{Dice, FAULT, SIZES, Seen};

/// Things that happen in one life.
const EVENTS: usize = 24;
/// Virtual time until VMs run, and until everything has settled after the last event. A resize that a
/// node called infeasible is tried again after five minutes.
const START: Duration = Duration::from_mins(5);
const CALM: Duration = Duration::from_mins(30);
const OPERATOR: &str = "system:serviceaccount:default:operator";
const AGENT: &str = "system:serviceaccount:default:agent";
const QUOTAS: &str = "/api/v1/namespaces/default/resourcequotas";
const PODS: &str = "/api/v1/namespaces/default/pods";
const NAMES: [&str; 4] = ["v0", "v1", "v2", "stuck"];

/// `RESIZE_LIVES=FIRST..LAST` tries other seeds.
#[test]
fn random_lives_of_a_cluster_in_virtual_time_end_in_agreement() {
    let chosen = std::env::var("RESIZE_LIVES").ok();
    let (first, last): (u64, u64) = chosen
        .as_deref()
        .and_then(|range| range.split_once(".."))
        .map_or((1, 2), |(first, last)| (first.parse().unwrap(), last.parse().unwrap()));
    let (next, begun) = (AtomicU64::new(first), Instant::now());
    let live_some = || {
        let (mut total, mut wrong) = (Life::default(), Vec::new());
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed > last {
                return (total, wrong);
            }
            match live(seed) {
                Ok(life) => total.add(&life),
                Err(what) => {
                    println!("{what}\n");
                    wrong.push(what);
                }
            }
        }
    };
    let results: Vec<(Life, Vec<String>)> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..2).map(|_| scope.spawn(live_some)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let (mut total, mut wrong) = (Life::default(), Vec::new());
    for (life, failures) in results {
        total.add(&life);
        wrong.extend(failures);
    }
    println!("{total:?} in {:.0} s", begun.elapsed().as_secs_f64());
    assert!(wrong.is_empty(), "{} lives went wrong, the first one:\n{}", wrong.len(), wrong[0]);
    assert!(total.resized > 0 && total.killed > 0 && total.faults > 0, "nothing happened: {total:?}");
}

/// What one life, or many, had.
#[derive(Debug, Default)]
struct Life {
    lives: u64,
    /// Seconds of virtual time.
    seconds: u64,
    /// VMs that ended with another size than at the start.
    resized: u64,
    deleted: u64,
    migrations: u64,
    killed: u64,
    quotas: u64,
    /// Requests that were hit, 1000 in a life at the most.
    faults: u64,
}

impl Life {
    fn add(&mut self, other: &Self) {
        self.lives += other.lives;
        self.seconds += other.seconds;
        self.resized += other.resized;
        self.deleted += other.deleted;
        self.migrations += other.migrations;
        self.killed += other.killed;
        self.quotas += other.quotas;
        self.faults += other.faults;
    }
}

fn live(seed: u64) -> Result<Life, String> {
    let root = tempfile::tempdir().unwrap();
    let options =
        Options { seed, nodes: 3, kubelet_root: Some(root.path().to_owned()), ..Options::default() };
    let lived =
        Simulation::of(options).run(async |world| Cluster::new(world, root.path(), seed).live().await);
    lived.map_err(|error| format!("seed {seed}: {error}"))?.map_err(|what| format!("seed {seed}: {what}"))
}

/// A client with an account of its own, whose requests stop where they stand when its life ends.
#[derive(Clone)]
struct Mortal {
    client: kube::Client,
    user: &'static str,
    life: CancellationToken,
}

impl tower_service::Service<Request<Body>> for Mortal {
    type Response = Response<Body>;
    type Error = kube::Error;
    type Future = BoxFuture<'static, Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let Self { client, user, life } = self.clone();
        let impersonate = HeaderName::from_static("impersonate-user");
        // What is written as virt-controller stays so.
        if !request.headers().contains_key(&impersonate) {
            request.headers_mut().insert(impersonate, HeaderValue::from_static(user));
            let group = HeaderName::from_static("impersonate-group");
            request.headers_mut().insert(group, HeaderValue::from_static("system:masters"));
        }
        Box::pin(async move {
            tokio::select! {
                biased;
                () = life.cancelled() => std::future::pending().await,
                answer = client.send(request) => answer,
            }
        })
    }
}

fn mortal(world: &World, user: &'static str, life: &CancellationToken) -> kube::Client {
    kube::Client::new(Mortal { client: world.client(), user, life: life.clone() }, "default")
}

/// A process that can be killed between any two writes.
struct Process {
    life: CancellationToken,
    tasks: Vec<JoinHandle<()>>,
}

impl Process {
    fn kill(&mut self) {
        self.life.cancel();
        self.tasks.drain(..).for_each(|task| task.abort());
    }
}

struct Cluster<'a> {
    world: &'a World,
    root: PathBuf,
    dice: Dice,
    fallback: Fallback,
    operator: Process,
    agents: Process,
    /// What has happened, for whoever has to find out why.
    told: Vec<String>,
    /// The most that the quota may ever have counted, while there is one.
    bound: Option<u64>,
    life: Life,
}

impl<'a> Cluster<'a> {
    fn new(world: &'a World, root: &Path, seed: u64) -> Self {
        let mut dice = Dice(seed);
        let fallback = dice.of(&[Fallback::Wait, Fallback::Migrate, Fallback::Revert]);
        let nobody = || Process { life: CancellationToken::new(), tasks: Vec::new() };
        Self {
            world,
            root: root.to_owned(),
            dice,
            fallback,
            operator: nobody(),
            agents: nobody(),
            told: vec![format!("seed {seed}, {fallback:?}")],
            bound: None,
            life: Life { lives: 1, ..Life::default() },
        }
    }

    async fn get(&self, path: &str) -> Value {
        self.world.get(path).await.unwrap_or_default()
    }

    async fn send(&self, method: Method, path: &str, body: Value) -> Result<Value, kube::Error> {
        let kind = if method == Method::PATCH { "application/merge-patch+json" } else { "application/json" };
        let request = Request::builder().method(method).uri(path).header("content-type", kind);
        self.world.send(request.body(body).unwrap()).await
    }

    /// Reconciler, webhook and registration, as the program starts them.
    async fn start_operator(&mut self) {
        let (world, life) = (self.world, CancellationToken::new());
        let mut config = Config::default();
        config.register.mode = RegisterMode::Url;
        config.resize.enabled = true;
        config.resize.fallback = self.fallback;
        config.resize.declare_memory = true;
        config.resize.deadline_seconds = 20;
        let (start, at) = (world.now(), tokio::time::Instant::now());
        let clock: operator::Clock =
            Arc::new(move || start + SignedDuration::try_from(at.elapsed()).unwrap_or_default());
        let client = mortal(world, OPERATOR, &life);
        let metrics = Arc::new(Metrics::new("simulated"));
        let readiness = Arc::new(Readiness::new(Arc::new(Resolver::default()), Arc::clone(&clock)));
        let handler = Handler::new(
            &config,
            Parts {
                facts: Arc::new(ArcSwap::default()),
                policies: Arc::new(Policies::default()),
                reader: Reader::new(client.clone(), false),
                readiness: Arc::clone(&readiness),
                metrics: Arc::clone(&metrics),
                tracer: None,
                steward: None,
            },
        );
        let listener = world.network().listen(0).await.unwrap();
        let url = format!("https://{}", listener.address().unwrap());
        let authority = world.network().authority(77).unwrap();
        let registrar = Registrar::new(Raw::new(client.clone()), config.register.clone(), Reach::Url(url));
        let registrar = registrar.with_resize(true);
        let (bundle, acceptor) = (watch::Sender::new(Some(authority.pem())), acceptor(&authority));
        let stop = life.clone();
        let context = operator::resize::context(&client, config.resize.clone(), clock, metrics);
        self.operator = Process {
            life: life.clone(),
            tasks: vec![
                tokio::spawn(serve(listener, acceptor, Arc::new(handler))),
                tokio::spawn(async move { registrar.keep(bundle.subscribe(), &readiness, &stop).await }),
                tokio::spawn(operator::resize::run(context, life)),
            ],
        };
    }

    fn start_agents(&mut self) {
        let life = CancellationToken::new();
        let client = mortal(self.world, AGENT, &life);
        let tasks = ["node01", "node02", "node03"].map(|node| {
            let settings = Settings { node: node.to_owned(), pods: self.pods_dir() };
            tokio::spawn(Agent::new(client.clone(), settings).run(life.clone()))
        });
        self.agents = Process { life, tasks: tasks.into() };
    }

    fn pods_dir(&self) -> PathBuf {
        self.root.join("pods")
    }

    async fn live(mut self) -> Result<Life, String> {
        let lived = self.storm().await;
        self.operator.kill();
        self.agents.kill();
        lived.map_err(|what| format!("{what}\n{}", self.told.join("\n")))?;
        self.life.seconds = self.world.elapsed().as_secs();
        let audit = self.world.audit();
        let mut hasher = std::hash::DefaultHasher::new();
        std::hash::Hasher::write(&mut hasher, &audit);
        let (lines, digest) =
            (audit.split(|byte| *byte == b'\n').count(), std::hash::Hasher::finish(&hasher));
        println!("{}: {lines} requests, audit {digest:016x}", self.told[0]);
        self.life.faults = u64::try_from(self.world.sandbox().api().faults.log().len()).unwrap_or(u64::MAX);
        Ok(self.life)
    }

    async fn storm(&mut self) -> Result<(), String> {
        self.start_operator().await;
        self.start_agents();
        for name in NAMES {
            let mut vm = vm_object(name, &json!({}), name != "stuck");
            vm["metadata"]["annotations"]["vm-feature-manager.io/in-place-resize"] = "Enabled".into();
            self.send(Method::POST, VMS, vm).await.map_err(|error| format!("no VM {name}: {error}"))?;
        }
        for name in NAMES {
            let path = format!("{VMIS}/{name}");
            let stamped = async || {
                let vmi = self.get(&path).await;
                vmi["status"]["phase"] == "Running" && annotation(&vmi, "resize-policy").is_some()
            };
            self.world.until(name, START, stamped).await.map_err(|error| error.to_string())?;
        }
        for _ in 0..EVENTS {
            self.event().await;
            let pause = Duration::from_millis(self.dice.below(4000));
            self.world.pass(pause).await;
            self.within_quota().await?;
        }
        self.told.push("calm".into());
        self.world.sandbox().api().faults.clear(None);
        self.kubelets("").await;
        self.within_quota().await?;
        let _ = self.send(Method::DELETE, &format!("{QUOTAS}/q"), Value::Null).await;
        let calm = self.world.elapsed();
        for name in NAMES {
            while let Some(wrong) = self.disagreement(name).await {
                if self.world.elapsed().saturating_sub(calm) > CALM {
                    let vmi = self.get(&format!("{VMIS}/{name}")).await;
                    let vm = self.get(&format!("{VMS}/{name}")).await;
                    let (annotations, status) = (&vmi["metadata"]["annotations"], &vm["status"]);
                    return Err(format!(
                        "{name}: {wrong}\n{annotations:#}\n{}\n{status:#}",
                        vmi["spec"]["domain"]
                    ));
                }
                self.world.pass(Duration::from_secs(1)).await;
            }
            let vmi = self.get(&format!("{VMIS}/{name}")).await;
            let size = resize::view::spec_size(&vmi);
            self.life.resized += u64::from(!vmi.is_null() && (size.sockets, size.guest >> 30) != (2, 1));
        }
        Ok(())
    }

    async fn disagreement(&self, name: &str) -> Option<String> {
        let (vmi, pods) = (self.get(&format!("{VMIS}/{name}")).await, self.get(PODS).await);
        let pods = pods["items"].as_array().cloned().unwrap_or_default();
        let launchers: Vec<Value> = pods.into_iter().filter(|pod| is_launcher_of(pod, name)).collect();
        let mut guest = None;
        for pod in &launchers {
            guest = match guest {
                None => guest_in(&self.pods_dir(), &vmi, pod).await,
                found => found,
            };
        }
        let vm = self.get(&format!("{VMS}/{name}")).await;
        Seen { vm, vmi, launchers, migrations: self.get(MIGRATIONS).await, guest }.disagreement(name)
    }

    /// What the quota counts is never more than it may.
    async fn within_quota(&self) -> Result<(), String> {
        let Some(bound) = self.bound else { return Ok(()) };
        let quota = self.get(&format!("{QUOTAS}/q")).await;
        match bytes(&quota["status"]["used"]["requests.memory"]) {
            Some(used) if used > bound => Err(format!("{used} bytes are used of a quota of {bound}")),
            _ => Ok(()),
        }
    }

    async fn event(&mut self) {
        let name = self.dice.of(&NAMES);
        match self.dice.below(14) {
            0..=4 => {
                let (sockets, gib) = self.dice.of(&SIZES);
                self.told.push(format!("{name} wants {sockets}/{gib}"));
                let domain = json!({"cpu": {"sockets": sockets}, "memory": {"guest": format!("{gib}Gi")}});
                let change = json!({"spec": {"template": {"spec": {"domain": domain}}}});
                let _ = self.send(Method::PATCH, &format!("{VMS}/{name}"), change).await;
            }
            5 | 6 => {
                self.told.push("the operator is killed".into());
                self.life.killed += 1;
                self.operator.kill();
                self.world.pass(Duration::from_millis(self.dice.below(8000))).await;
                self.start_operator().await;
            }
            7 => {
                self.told.push("the agents are gone for a while".into());
                self.agents.kill();
                self.world.pass(Duration::from_millis(self.dice.below(30_000))).await;
                self.start_agents();
            }
            8 => {
                let fault = self.dice.of(&["Defer", "Infeasible", "Error", "Slow", ""]);
                self.told.push(format!("kubelets: {fault}"));
                self.kubelets(fault).await;
            }
            9 | 10 => self.fault(),
            11 => {
                self.told.push(format!("{name} is moved"));
                let migration = json!({"apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstanceMigration",
                    "metadata": {"generateName": "move-"}, "spec": {"vmiName": name}});
                self.life.migrations +=
                    u64::from(self.send(Method::POST, MIGRATIONS, migration).await.is_ok());
            }
            12 => self.quota().await,
            _ => {
                self.told.push("v2 is deleted".into());
                let deleted = self.send(Method::DELETE, &format!("{VMS}/v2"), Value::Null).await;
                self.life.deleted += u64::from(deleted.is_ok());
            }
        }
    }

    fn fault(&mut self) {
        let fault = self.dice.of(&[
            "error:code=500,rate=0.3,times=20,user=system:serviceaccount:default:*",
            "error:code=409,rate=0.5,times=20,user=system:serviceaccount:default:*",
            "lost-answer:rate=0.4,times=10,user=system:serviceaccount:default:*",
            "crash:rate=0.5,times=4,down=900,user=system:serviceaccount:default:*",
            "partition:for=15,user=system:serviceaccount:default:operator",
            "watch-drop:events=2,rate=0.5,times=6,user=system:serviceaccount:default:*",
            "watch-lag:ms=3000,for=20",
            "latency:ms=50,jitter=2000,for=20,user=system:serviceaccount:default:*",
            "webhook-down:webhook=resize*,for=15",
            "error:code=500,rate=0.1,for=10",
        ]);
        self.told.push(fault.to_owned());
        self.world.sandbox().api().faults.add(fault.parse().unwrap()).unwrap();
    }

    async fn kubelets(&self, fault: &str) {
        for node in ["node01", "node02", "node03"] {
            let fault = if fault.is_empty() { Value::Null } else { fault.into() };
            let patch = json!({"metadata": {"annotations": {FAULT: fault}}});
            let _ = self.send(Method::PATCH, &format!("/api/v1/nodes/{node}"), patch).await;
        }
    }

    /// A quota that all VMs share, with room for a little more than there is; or the end of it.
    async fn quota(&mut self) {
        if self.bound.take().is_some() {
            let gone = self.send(Method::DELETE, &format!("{QUOTAS}/q"), Value::Null).await;
            self.told.push(format!("no quota any more, {}", gone.is_ok()));
            return;
        }
        let pods = self.get(PODS).await;
        let used: u64 = pods["items"].as_array().into_iter().flatten().map(memory).sum();
        let hard = used + self.dice.below(4) * (512 << 20);
        let quota = json!({"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "q"},
            "spec": {"hard": {"requests.memory": hard.to_string()}}});
        let made = self.send(Method::POST, QUOTAS, quota).await;
        self.told.push(format!("a quota of {hard} bytes, {}", made.is_ok()));
        if made.is_err() {
            return;
        }
        self.life.quotas += 1;
        // A pod may have been made meanwhile, which then counts as well.
        let path = format!("{QUOTAS}/q");
        let counted = async || bytes(&self.get(&path).await["status"]["used"]["requests.memory"]).is_some();
        if self.world.until("the quota is counted", START, counted).await.is_ok() {
            let first = bytes(&self.get(&path).await["status"]["used"]["requests.memory"]).unwrap_or(0);
            self.bound = Some(first.max(hard));
        }
    }
}

/// What a pod that has not ended requests.
fn memory(pod: &Value) -> u64 {
    if matches!(pod["status"]["phase"].as_str(), Some("Succeeded" | "Failed")) {
        return 0;
    }
    let containers = pod["spec"]["containers"].as_array().into_iter().flatten();
    containers.filter_map(|one| bytes(&one["resources"]["requests"]["memory"])).sum()
}

fn acceptor(authority: &sandbox::certs::Authority) -> TlsAcceptor {
    let (certificate, key) = authority.serving("virt-steward", &["127.0.0.1"]).unwrap().der();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .unwrap();
    TlsAcceptor::from(Arc::new(config))
}

/// The webhook port, in memory.
async fn serve(mut listener: Listener, acceptor: TlsAcceptor, handler: Arc<Handler>) {
    // Its connections end with it.
    let mut connections = tokio::task::JoinSet::new();
    loop {
        let Ok(link) = listener.accept().await else { return };
        let (acceptor, handler) = (acceptor.clone(), Arc::clone(&handler));
        connections.spawn(async move {
            let Ok(stream) = acceptor.accept(link).await else { return };
            let service = service_fn(move |request: Request<hyper::body::Incoming>| {
                let handler = Arc::clone(&handler);
                async move { Ok::<_, std::convert::Infallible>(handler.handle(request).await) }
            });
            let server = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
            // A peer that breaks off has its reasons.
            let _ = server.serve_connection(TokioIo::new(stream), service).await;
        });
    }
}
