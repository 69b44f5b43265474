//! A simulated `KubeVirt` on simulated nodes, as ordinary clients of an API server: scheduler,
//! kubelets, virt-controller, virt-handlers, and virt-api's admission.
//!
//! Each component observes through shared watch caches, decides with a pure function over plain
//! data, and acts with the same requests, in the same order and under the same user, as the real
//! one (recorded of `KubeVirt` v1.9 on Kubernetes 1.36). They know nothing of the API server that
//! they talk to, so they also run against a real one.
//!
//! ```text
//!  VirtualMachine ─virt-controller─► VMI ─virt-controller─► launcher pod
//!                                     ▲                        │ scheduler, kubelet
//!                                     └────virt-handler────────┘
//! ```

mod backup;
mod batch;
mod bootstrap;
mod cache;
mod client;
mod cluster;
mod cmd_server;
mod device_plugins;
mod dra;
mod events;
pub mod export;
mod guest;
mod handler_calls;
mod handler_server;
pub mod hooks;
pub mod hotplug;
mod https;
mod identity;
mod instancetype;
mod json;
mod kubelet;
mod launcher;
mod lean;
mod live_migration;
mod memory;
mod metrics;
mod node;
pub mod node_lifecycle;
mod nodes;
mod plugin_policies;
mod queue;
mod requests;
mod resource;
mod scheduler;
mod storage;
mod sysfs;
pub mod user_roles;
mod version;
mod virt_api;
mod virt_controller;
mod virt_handler;
mod write;

#[cfg(test)]
mod tests;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kube::config::{KubeConfigOptions, Kubeconfig};
use tokio_util::sync::CancellationToken;

use crate::clock::{Clock, SystemClock};
use crate::network::Network;
pub use batch::programs::Program;
use batch::programs::Programs;
use cache::Cache;
use client::{Client, ClientError};
use events::Recorder;
use handler_calls::HandlerCalls;
use hooks::Hooks;
use identity::Identity;
use kubelet::Kubelet;
use launcher::Launchers;
pub use metrics::ADDRESS as POD_ADDRESS;
use metrics::Metrics;
pub use nodes::Nodes;
pub use version::Release;
use virt_api::VirtApi;
use virt_controller::{Caches, VirtController};
use virt_handler::VirtHandler;
use write::Writer;

/// Nodes have room for so many VMs more than the sandbox starts with.
const ROOM: u32 = 50;

/// The CPU vendor of simulated nodes.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum CpuVendor {
    /// Every node is an Intel machine (nested virtualisation is `vmx`).
    #[default]
    Intel,
    /// Every node is an AMD machine (`svm`).
    Amd,
    /// Both, as the seed draws it.
    Mixed,
}

/// A passthrough device that the cluster permits.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Device {
    /// For example `nvidia.com/TU104GL_Tesla_T4`.
    pub resource: String,
    /// `vendor:product` in hexadecimal, for example `10DE:1EB8`.
    pub selector: String,
}

/// How the simulated cluster looks.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct SimConfig {
    /// How many nodes there are.
    pub nodes: u32,
    /// How many VMs are made at the start, named `vm-1` and so on in the namespace `default`.
    pub vms: u32,
    /// Decides everything that is random: placement among equals, jitter, ids of what nodes report.
    pub seed: u64,
    /// What the nodes are.
    pub cpu_vendor: CpuVendor,
    /// The nodes offer nested virtualisation.
    pub nested_virt: bool,
    /// CPUs of each node.
    pub node_cpus: u32,
    /// Memory of each node in GiB.
    pub node_memory_gib: u32,
    /// How many pods each node takes.
    pub node_pods: u32,
    /// The release of `KubeVirt` that is simulated.
    pub release: Release,
    /// Feature gates in the `KubeVirt` object, beside those that are on anyway.
    pub feature_gates: Vec<String>,
    /// Devices that the `KubeVirt` object permits at first.
    pub devices: Vec<Device>,
    /// How many of each permitted device every node has.
    pub devices_per_node: u32,
    /// Where launchers have their command sockets, as below kubelet's directory; nothing: they have
    /// none.
    pub kubelet_root: Option<std::path::PathBuf>,
    /// Where a virt-api that is not simulated reaches the virt-handlers of these nodes; nothing: nowhere.
    pub handler_address: Option<std::net::SocketAddr>,
    /// How long things about volumes take.
    pub timing: hotplug::Timing,
    /// How long is waited for nodes that are not heard of.
    pub node_times: node_lifecycle::Times,
    /// What runs in pods of Jobs with virt-steward's own image; without it they stay Running.
    pub program: Option<Program>,
    /// Where the kernel's files of the nodes are written, a root for each; nothing: nowhere.
    pub host_roots: Option<std::path::PathBuf>,
    /// The program that stands for our sidecar image; without it sidecars are not run.
    pub hook_binary: Option<std::path::PathBuf>,
}

impl Default for SimConfig {
    fn default() -> Self {
        let device =
            |resource: &str, selector: &str| Device { resource: resource.into(), selector: selector.into() };
        Self {
            nodes: 3,
            vms: 0,
            seed: 1,
            cpu_vendor: CpuVendor::Intel,
            nested_virt: true,
            node_cpus: 128,
            node_memory_gib: 2048,
            node_pods: 600,
            release: Release::default(),
            feature_gates: vec!["HostDevices".into(), "Sidecar".into()],
            devices: vec![
                device("nvidia.com/TU104GL_Tesla_T4", "10DE:1EB8"),
                device("intel.com/ETHERNET_CONTROLLER_X710", "8086:1572"),
            ],
            devices_per_node: 8,
            kubelet_root: None,
            handler_address: None,
            timing: hotplug::Timing::default(),
            node_times: node_lifecycle::Times::default(),
            program: None,
            host_roots: None,
            hook_binary: None,
        }
    }
}

impl SimConfig {
    /// The default cluster in the size that a sandbox is asked for, with room for all its VMs.
    pub fn sized(options: &crate::Options) -> Self {
        let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
        let default = Self::default();
        let nodes = count(options.nodes).max(1);
        let needed = count(options.vms).div_ceil(nodes).saturating_add(ROOM);
        let grown = |have: u32, per_vm: u32| have.max(needed.saturating_mul(per_vm));
        Self {
            nodes,
            vms: count(options.vms),
            seed: options.seed,
            release: options.release,
            node_pods: grown(default.node_pods, 1),
            node_cpus: grown(default.node_cpus, 1),
            node_memory_gib: grown(default.node_memory_gib, 3),
            hook_binary: options.hook_binary.clone(),
            kubelet_root: options.kubelet_root.clone(),
            host_roots: options.host_roots.clone(),
            ..default
        }
    }
}

/// A client with the credentials of a kubeconfig.
///
/// # Errors
/// When the kubeconfig says nothing that a client could use.
pub async fn connect(kubeconfig: &str) -> Result<kube::Client, SimError> {
    let setup = |error: Box<dyn std::error::Error + Send + Sync>| SimError::Setup(error);
    let parsed = Kubeconfig::from_yaml(kubeconfig).map_err(|error| setup(error.into()))?;
    let config = kube::Config::from_custom_kubeconfig(parsed, &KubeConfigOptions::default())
        .await
        .map_err(|error| setup(error.into()))?;
    kube::Client::try_from(config).map_err(|error| setup(error.into()))
}

/// The same over a network of this process, where HTTP is spoken in memory and without TLS, and only the
/// token of the kubeconfig counts.
///
/// # Errors
/// When the kubeconfig says nothing that a client could use.
pub async fn connect_over(network: &Network, kubeconfig: &str) -> Result<kube::Client, SimError> {
    if !network.is_internal() {
        return connect(kubeconfig).await;
    }
    memory::client(network, kubeconfig).map_err(SimError::Setup)
}

/// The simulation could not be started.
#[derive(Debug, thiserror::Error)]
pub enum SimError {
    /// The API server refused, or was not reached.
    #[error("set up the simulated cluster")]
    Setup(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The webhook server of the simulated virt-api did not start.
    #[error("start the simulated virt-api")]
    VirtApi(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl From<ClientError> for SimError {
    fn from(error: ClientError) -> Self {
        Self::Setup(Box::new(error))
    }
}

/// A running simulation; it ends when it is dropped.
pub struct Simulation {
    launchers: Arc<Launchers>,
    exports: Option<export::Exports>,
    hotplug: Arc<hotplug::Hotplug>,
    /// The disks that were exported; gone with the simulation.
    disks: tempfile::TempDir,
    hooks: Hooks,
    programs: Programs,
    stop: CancellationToken,
    /// Starts a virt-controller; none before everything is set up.
    controller: Mutex<Option<Replaceable>>,
}

/// A component that can die and be started again.
struct Replaceable {
    stop: CancellationToken,
    start: Box<dyn Fn(&CancellationToken) + Send>,
    restarts: Arc<std::sync::atomic::AtomicU32>,
}

impl std::fmt::Debug for Simulation {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Simulation").finish_non_exhaustive()
    }
}

impl Drop for Simulation {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Simulation {
    /// Sets the cluster up, starts every component, and makes the VMs of `config`. `client` needs
    /// the rights of a cluster administrator, to impersonate above all. Returns when the components
    /// run; the VMs become Running after that.
    ///
    /// # Errors
    /// [`SimError`] says what the API server refused.
    pub async fn start(client: kube::Client, config: SimConfig) -> Result<Self, SimError> {
        Self::start_within(client, Arc::new(SystemClock), Network::loopback(), config).await
    }

    /// The same, in another time and on another network than the machine's.
    ///
    /// # Errors
    /// [`SimError`] says what the API server refused.
    pub async fn start_within(
        client: kube::Client,
        clock: Arc<dyn Clock>,
        network: Network,
        config: SimConfig,
    ) -> Result<Self, SimError> {
        let client = Client::within(client, clock, network);
        let stop = CancellationToken::new();
        let kubevirts = Cache::new(&resource::KUBEVIRTS, |_| "");
        let hooks = Hooks::new(config.hook_binary.clone(), &client, &kubevirts)
            .map_err(|error| SimError::Setup(error.into()))?;
        // Dropped on a failure below, which ends what was started by then.
        let directory = tempfile::tempdir().map_err(|error| SimError::Setup(error.into()))?;
        let launchers = Arc::new(Launchers::default());
        let disks = Arc::new(storage::disks::Disks::new(directory.path().to_path_buf(), config.seed));
        let storage = storage::StorageCaches::new();
        let volumes = hotplug::Hotplug::new(
            (config.release, config.timing),
            (&storage.claims, &storage.classes, &disks),
            &launchers,
        );
        let programs = Programs::new(config.program.clone(), &client, directory.path().to_path_buf())
            .map_err(|error| SimError::Setup(error.into()))?;
        let mut simulation = Self {
            launchers,
            hooks,
            programs,
            exports: None,
            hotplug: volumes.clone(),
            disks: directory,
            stop: stop.clone(),
            controller: Mutex::default(),
        };
        if let Some(root) = &config.host_roots {
            sysfs::write(root, &config).map_err(|error| SimError::Setup(error.into()))?;
        }
        bootstrap::cluster(&client, &config).await?;
        let clones = if config.release.serves_clone_v1beta1() {
            &resource::CLONES
        } else {
            &resource::CLONES_V1ALPHA1
        };
        let caches = Caches {
            vms: Cache::new(&resource::VMS, |_| ""),
            vmis: Cache::new(&resource::VMIS, |vmi| json::text(vmi, "/status/nodeName")),
            pods: Cache::new(&resource::PODS, json::controller_uid),
            kubevirts,
            migrations: Cache::new(&resource::MIGRATIONS, |one| json::text(one, "/spec/vmiName")),
            policies: Cache::new(&resource::MIGRATION_POLICIES, |_| ""),
            nodes: Cache::new(&resource::NODES, |_| ""),
            namespaces: Cache::new(&resource::NAMESPACES, |_| ""),
            snapshots: Cache::new(&resource::SNAPSHOTS, |one| json::text(one, "/spec/source/name")),
            contents: Cache::new(&resource::SNAPSHOT_CONTENTS, |_| ""),
            restores: Cache::new(&resource::RESTORES, |one| json::text(one, "/spec/target/name")),
            clones: Cache::new(clones, |_| virt_controller::clone::ALL),
            template_requests: Cache::new(&resource::TEMPLATE_REQUESTS, |_| ""),
            storage: storage.clone(),
            restarts: Arc::default(),
            settings: Arc::default(),
            heartbeat: config.node_times.heartbeat,
        };
        let leases = Cache::new(&resource::LEASES, |_| "");
        let nodes = caches.nodes.clone();
        let nodes_seen = nodes.clone();
        let all: Arc<[_]> = vec![
            nodes.clone(),
            leases.clone(),
            caches.migrations.clone(),
            caches.policies.clone(),
            caches.namespaces.clone(),
            caches.kubevirts.clone(),
            caches.vms.clone(),
            caches.vmis.clone(),
            caches.pods.clone(),
            caches.snapshots.clone(),
            caches.contents.clone(),
            caches.restores.clone(),
            caches.clones.clone(),
        ]
        .into_iter()
        // A cache of what is not served is never complete.
        .chain(config.release.serves_templates().then(|| caches.template_requests.clone()))
        .chain(caches.storage.all())
        .collect();
        for cache in all.iter() {
            tokio::spawn(cache.clone().run(client.clone(), stop.clone()));
        }
        // Who decides on half a picture makes things twice.
        for cache in all.iter() {
            cache.synced().await;
        }
        let writer = Writer { client: client.clone(), caches: all.clone() };
        let recorder = Recorder::start(&client, &stop);
        let launchers = &simulation.launchers.clone();
        storage::start(&writer, &recorder, (&caches.storage, &caches.pods), &disks, &stop);
        scheduler::Scheduler::start(
            config.seed,
            writer.clone(),
            recorder.clone(),
            &caches.pods,
            &nodes,
            &stop,
        );
        let cluster = (&nodes, &leases, &caches.pods);
        node_lifecycle::start(&writer, &recorder, cluster, config.node_times, &stop);
        let hardware = (config.nodes, config.devices_per_node);
        device_plugins::start(hardware, writer.clone(), (&nodes, &caches.kubevirts), &stop);
        dra::start(writer.clone(), &caches.pods, &stop);
        let kubelet = Kubelet::start(
            &config,
            writer.clone(),
            recorder.clone(),
            (&caches.pods, &nodes),
            (launchers, &volumes, &simulation.programs),
            &stop,
        );
        hotplug::storage_classes::Volumes::start(
            writer.clone(),
            (&storage.claims, &storage.classes, &caches.pods),
            &volumes,
            &stop,
        );
        batch::start(writer.clone(), &caches.pods, &stop);
        if let Some(root) = &config.kubelet_root {
            let shared = cmd_server::Shared {
                client: client.clone(),
                launchers: launchers.clone(),
                hotplug: volumes.clone(),
                vmis: caches.vmis.clone(),
                seed: config.seed,
            };
            cmd_server::CmdServers::start(root, &caches.pods, shared, &stop);
        }
        let names = (0..config.nodes).map(node::name).collect();
        let seen = (&caches.vmis, &caches.pods);
        let guests = (launchers, &simulation.hooks, &volumes);
        VirtHandler::start(names, writer.clone(), recorder.clone(), seen, guests, &stop);
        let controller = {
            let (seed, writer, recorder, caches) =
                (config.seed, writer.clone(), recorder.clone(), caches.clone());
            Replaceable {
                restarts: caches.restarts.clone(),
                stop: stop.child_token(),
                start: Box::new(move |stop| {
                    VirtController::start(seed, writer.clone(), recorder.clone(), (&caches, &volumes), stop);
                }),
            }
        };
        (controller.start)(&controller.stop);
        *simulation.controller() = Some(controller);
        let sources =
            backup::Sources { vms: &caches.vms, vmis: &caches.vmis, disks: &disks, release: config.release };
        let guests = backup::Backups::start(writer.clone(), recorder.clone(), &sources, &stop);
        simulation.exports = Some(export::start(writer.clone(), &sources, guests, &stop).await?);
        let nodes = HandlerCalls::new(launchers.clone(), recorder.clone());
        VirtApi::start(&client, &caches.kubevirts, config.release, nodes, &stop).await?;
        kubelet.keep_nodes(config.clone(), stop.clone()).await?;
        dra::publish(&client, &config).await?;
        let measured = (&caches.vmis, &caches.pods, &nodes_seen);
        let names: Vec<String> = (0..config.nodes).map(node::name).collect();
        Metrics::start(&client, measured, (config.seed, config.release), &names, &stop).await?;
        bootstrap::virtual_machines(&client, &config).await?;
        Ok(simulation)
    }

    /// The libvirt domain of a VMI whose sidecars were run, as it was defined last, and the directory
    /// with the files of its pod.
    pub fn domain(&self, namespace: &str, name: &str) -> Option<(Arc<Vec<u8>>, std::path::PathBuf)> {
        self.hooks.domain(&self.launchers.of_vmi(&json::join_key(namespace, name))?)
    }

    /// The export server, and its faults.
    pub fn exports(&self) -> Option<&export::Exports> {
        self.exports.as_ref()
    }

    /// What became of hotplugged volumes: devices that died under guests, and disks that were unplugged although they
    /// were wanted.
    pub fn volumes(&self) -> &hotplug::Hotplug {
        &self.hotplug
    }

    /// Where the disks that were exported lie, as `NAMESPACE_CLAIM`.
    pub fn disks(&self) -> &std::path::Path {
        self.disks.path()
    }

    /// The directory that stands for a claim which pods of Jobs mount.
    pub fn claim(&self, namespace: &str, claim: &str) -> Option<std::path::PathBuf> {
        self.programs.claim(namespace, claim)
    }

    /// The processes of pods.
    pub(crate) fn programs(&self) -> Programs {
        self.programs.clone()
    }

    fn controller(&self) -> MutexGuard<'_, Option<Replaceable>> {
        self.controller.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The component that acts as `user` dies where it stands, between two writes if need be, and another
    /// one starts with nothing but what the API shows. Only virt-controller has a state to lose; the
    /// others look at everything anew anyway.
    pub fn restart(&self, user: &str) {
        if *user != *Identity::virt_controller().user {
            return;
        }
        if let Some(controller) = self.controller().as_mut() {
            controller.stop.cancel();
            controller.restarts.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
            controller.stop = self.stop.child_token();
            (controller.start)(&controller.stop);
        }
    }

    /// Ends the guest of a VMI as if it had shut down by itself (`crashed` false) or had crashed.
    /// False: no guest of that VMI runs.
    pub fn end_guest(&self, namespace: &str, name: &str, crashed: bool) -> bool {
        match self.launchers.of_vmi(&json::join_key(namespace, name)) {
            Some(pod) => {
                self.launchers.end(&pod, crashed);
                true
            }
            None => false,
        }
    }
}
