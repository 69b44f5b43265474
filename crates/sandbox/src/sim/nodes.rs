//! Simulated nodes beside somebody else's control plane: kubelets, device plugins, virt-handlers and the guests in
//! their launchers, and nothing else. Scheduler, virt-controller and virt-api are the other cluster's; so are the
//! accounts, which requests impersonate.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::batch::programs::Programs;
use super::cache::Cache;
use super::client::Client;
use super::cmd_server::{CmdServers, Shared};
use super::events::Recorder;
use super::handler_calls::HandlerCalls;
use super::handler_server::{self, Credentials, HandlerServer};
use super::hooks::Hooks;
use super::hotplug::Hotplug;
use super::kubelet::Kubelet;
use super::launcher::Launchers;
use super::storage::disks::Disks;
use super::virt_handler::VirtHandler;
use super::write::Writer;
use super::{SimConfig, SimError, device_plugins, json, node, resource};
use crate::sim::identity::KUBEVIRT_NAMESPACE;

/// The first lists are there within this time.
const PATIENCE: Duration = Duration::from_mins(1);

/// Running nodes; they stop when this is dropped. Their objects stay, as those of machines that are
/// switched off do.
pub struct Nodes {
    launchers: Arc<Launchers>,
    names: Vec<String>,
    /// What guests write into claims.
    files: tempfile::TempDir,
    stop: CancellationToken,
}

impl std::fmt::Debug for Nodes {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Nodes").field("names", &self.names).finish_non_exhaustive()
    }
}

impl Drop for Nodes {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Nodes {
    /// Registers the nodes of `config` and runs what is bound to them. `client` needs the rights to impersonate
    /// `system:node:…` and virt-handler's account, and to read nodes, pods, VMIs and the `KubeVirt` object.
    ///
    /// # Errors
    /// The cluster has no `KubeVirt`, has a node of the same name that is not simulated, or refuses.
    pub async fn start(client: kube::Client, config: SimConfig) -> Result<Self, SimError> {
        let client = Client::new(client);
        client.get(None, "/apis/kubevirt.io/v1").await?;
        let names: Vec<String> = (0..config.nodes).map(node::name).collect();
        for name in &names {
            not_taken(&client, name).await?;
        }
        let stop = CancellationToken::new();
        let launchers = Arc::new(Launchers::default());
        // Dropped on a failure below, which ends what was started by then.
        let files = tempfile::tempdir().map_err(|error| SimError::Setup(error.into()))?;
        let nodes = Self { launchers: launchers.clone(), names: names.clone(), files, stop: stop.clone() };
        let (vmis, pods) = (
            Cache::new(&resource::VMIS, |vmi| json::text(vmi, "/status/nodeName")),
            Cache::new(&resource::PODS, json::controller_uid),
        );
        let kubevirts = Cache::new(&resource::KUBEVIRTS, |_| "");
        let (claims, classes) =
            (Cache::new(&resource::CLAIMS, |_| ""), Cache::new(&resource::STORAGE_CLASSES, |_| ""));
        let objects = Cache::new(&resource::NODES, |_| "");
        let hooks = Hooks::new(config.hook_binary.clone(), &client, &kubevirts)
            .map_err(|error| SimError::Setup(error.into()))?;
        let all: Arc<[_]> =
            [vmis.clone(), pods.clone(), kubevirts.clone(), objects.clone(), claims.clone(), classes.clone()]
                .into();
        for cache in all.iter() {
            tokio::spawn(cache.clone().run(client.clone(), stop.clone()));
        }
        for cache in all.iter() {
            let late = |_| SimError::Setup(format!("{} cannot be listed", cache.resource().plural).into());
            tokio::time::timeout(PATIENCE, cache.synced()).await.map_err(late)?;
        }
        let writer = Writer { client: client.clone(), caches: all };
        let recorder = Recorder::start(&client, &stop);
        let hardware = (config.nodes, config.devices_per_node);
        device_plugins::start(hardware, writer.clone(), (&objects, &kubevirts), &stop);
        let disks = Arc::new(Disks::new(nodes.files.path().to_path_buf(), config.seed));
        let hotplug = Hotplug::new((config.release, config.timing), (&claims, &classes, &disks), &launchers);
        if let Some(root) = &config.kubelet_root {
            let shared = Shared {
                client: client.clone(),
                launchers: launchers.clone(),
                hotplug: hotplug.clone(),
                vmis: vmis.clone(),
                seed: config.seed,
            };
            CmdServers::start(root, &pods, shared, &stop);
        }
        let kubelet = Kubelet::start(
            &config,
            writer.clone(),
            recorder.clone(),
            (&pods, &objects),
            (&launchers, &hotplug, &Programs::default()),
            &stop,
        );
        let guests = (&launchers, &hooks, &hotplug);
        let address = config.handler_address;
        VirtHandler::start(names.clone(), writer, recorder.clone(), (&vmis, &pods), guests, &stop);
        kubelet.keep_nodes(config, stop.clone()).await?;
        if let Some(address) = address {
            let credentials = Credentials::read(&client).await?;
            let calls = HandlerCalls::new(launchers.clone(), recorder);
            let server = HandlerServer { calls, vmis, client: client.clone(), stop };
            server.serve(address, credentials).await?;
            handlers(&client, &names).await?;
        }
        Ok(nodes)
    }

    /// The names of the nodes.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// Ends the guest of a VMI on these nodes as if it had shut down by itself, or had crashed. False: none runs.
    pub fn end_guest(&self, namespace: &str, name: &str, crashed: bool) -> bool {
        let pod = self.launchers.of_vmi(&json::join_key(namespace, name));
        if let Some(pod) = &pod {
            self.launchers.end(pod, crashed);
        }
        pod.is_some()
    }
}

/// Gives every node a virt-handler, unless a `DaemonSet` does.
async fn handlers(client: &Client, names: &[String]) -> Result<(), SimError> {
    let daemons = resource::DAEMON_SETS.path(KUBEVIRT_NAMESPACE, "virt-handler", "");
    match client.get(None, &daemons).await {
        Ok(_) => return Ok(()),
        Err(error) if error.code() == 404 => {}
        Err(error) => return Err(error.into()),
    }
    let path = resource::PODS.path(KUBEVIRT_NAMESPACE, "", "");
    for name in names {
        let pod = handler_server::pod(name);
        match client.send(None, http::Method::POST, &path, "application/json", &pod).await {
            Err(error) if error.code() != 409 => return Err(error.into()),
            _ => {}
        }
    }
    Ok(())
}

/// A node of this name is absent or one of ours: a real one is never taken over.
async fn not_taken(client: &Client, name: &str) -> Result<(), SimError> {
    let path = resource::NODES.path("", name, "");
    match client.get(None, &path).await {
        Ok(node) if json::text(&node, "/spec/providerID").starts_with("sandbox://") => Ok(()),
        Ok(_) => Err(SimError::Setup(format!("the cluster has a node {name} that is not simulated").into())),
        Err(error) if error.code() == 404 => Ok(()),
        Err(error) => Err(error.into()),
    }
}
