//! An operator of our own to measure: a child process with fixed facts.
//!
//! ```text
//! this process: Sandbox with two nodes and a KubeVirt ◄── watches ── child: virt-steward operator
//!               load ────────────────── HTTPS ─────────────────────►
//! ```
//!
//! The child is the program itself, started as an administrator would start it, so its CPU time
//! and memory are those of the service alone.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use ::sandbox::{Options, Sandbox};
use anyhow::{Context, Result};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::Method;

use super::connection::{Target, Trust};
use crate::cluster::Cluster;
use crate::documents;
use crate::problem::Problem;
use crate::sandbox::demo;

/// How long the child may take until it serves.
const PATIENCE: Duration = Duration::from_secs(30);

/// How often it is asked meanwhile.
const INTERVAL: Duration = Duration::from_millis(50);

/// From ready to idle: soon after its start the operator gives back memory that only that needed.
const SETTLING: Duration = Duration::from_secs(3);

const NODES: &str = include_str!("../../../../examples/cluster/nodes.yaml");

/// A running child and the cluster that it works for.
pub struct Operator {
    child: Child,
    sandbox: Sandbox,
    /// The cluster that it works for.
    pub cluster: Cluster,
    /// Where it serves, for the report.
    pub url: String,
    /// Where it serves, with the authority that it registered.
    pub target: Target,
}

impl Operator {
    /// Starts a sandbox and an operator for it, and waits until it serves.
    pub async fn start() -> Result<Self> {
        Self::start_with(demo::CONFIG).await
    }

    /// The same, with another configuration.
    pub async fn start_with(configuration: &str) -> Result<Self> {
        let folder = tempfile::tempdir().context("making a temporary directory")?;
        let kubeconfig = folder.path().join("kubeconfig");
        let config = folder.path().join("operator.yaml");
        std::fs::write(&config, configuration).context("writing the operator's configuration")?;
        let options =
            Options { nodes: 0, vms: 0, kubeconfig_out: Some(kubeconfig.clone()), ..Options::default() };
        let sandbox = Sandbox::start(options).await.context("starting the sandbox")?;
        let cluster = Cluster::connect(Some(&kubeconfig), None).await?;
        for node in documents::parse(NODES, "cluster/nodes.yaml")? {
            let reply = cluster.send(Method::POST, "/api/v1/nodes", "application/json", &node).await?;
            reply.object("creating a Node")?;
        }
        demo::prepare(&cluster).await?;
        let program = std::env::current_exe().context("finding the program itself")?;
        let mut child = Command::new(program)
            .arg("operator")
            .args(["--register", "url", "--port", "0", "--metrics-bind-address", "0"])
            .arg("--config")
            .arg(&config)
            .arg("--kubeconfig")
            .arg(&kubeconfig)
            .stdin(Stdio::null())
            // its log is part of its work, but nobody reads it here
            .stderr(Stdio::null())
            .spawn()
            .context("starting the operator")?;
        match wait(&mut child, &cluster).await {
            Ok((url, target)) => {
                tokio::time::sleep(SETTLING).await;
                Ok(Self { child, sandbox, cluster, url, target })
            }
            Err(error) => {
                end(&mut child);
                sandbox.shutdown().await;
                Err(error)
            }
        }
    }

    /// The process to measure.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Ends the child, then the sandbox.
    pub async fn end(mut self) {
        end(&mut self.child);
        self.sandbox.shutdown().await;
    }
}

/// Kills a child and takes leave of it. It keeps nothing, so it need not be asked.
fn end(child: &mut Child) {
    // both fail only when it has ended by itself
    let _ = child.kill();
    let _ = child.wait();
}

/// Waits until the operator has registered itself and says that it is ready.
async fn wait(child: &mut Child, cluster: &Cluster) -> Result<(String, Target)> {
    let limit = Instant::now() + PATIENCE;
    loop {
        if let Some((url, authority)) = registration(cluster).await {
            let target = Target::resolve(&url, &Trust::Pem(&authority), false).await?;
            if target.ready().await {
                return Ok((url, target));
            }
        }
        let ended = child.try_wait().context("watching the operator")?;
        if ended.is_some() || Instant::now() > limit {
            let wrong =
                ended.map_or("it did not get ready in time".into(), |status| format!("it ended: {status}"));
            let remedy = "start `virt-steward operator` by hand, read its log, and measure it with `--url`";
            return Err(Problem::new("starting the operator to measure", wrong, remedy).into());
        }
        tokio::time::sleep(INTERVAL).await;
    }
}

/// The URL and certificate authority under which API servers would call it.
async fn registration(cluster: &Cluster) -> Option<(String, Vec<u8>)> {
    let path = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations";
    let list = cluster.get(path).await.ok()?;
    let client = &list["items"][0]["webhooks"][0]["clientConfig"];
    let authority = STANDARD.decode(client["caBundle"].as_str()?).ok()?;
    Some((client["url"].as_str()?.to_owned(), authority))
}
