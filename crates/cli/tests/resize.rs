//! In-place resize from end to end: operator, agents and a simulated KubeVirt with launchers on real
//! unix sockets, who know of each other only what they see of the API and the sockets.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // helpers of tests fail as tests do

use std::path::PathBuf;
use std::time::{Duration, Instant};

use agent::{Agent, Settings};
use http::{Method, Request};
use operator::Operator;
use operator::config::{Config, RegisterMode, Tls, TlsSource};
use sandbox::sim::{SimConfig, Simulation, connect};
use sandbox::{Options, Sandbox};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

/// Nothing here takes longer, even on a busy machine.
const BOUND: Duration = Duration::from_mins(2);
const VMS: &str = "/apis/kubevirt.io/v1/namespaces/default/virtualmachines";
const VMIS: &str = "/apis/kubevirt.io/v1/namespaces/default/virtualmachineinstances";
const MIGRATIONS: &str = "/apis/kubevirt.io/v1/namespaces/default/virtualmachineinstancemigrations";

struct Stage {
    client: kube::Client,
    kubeconfig: PathBuf,
    root: PathBuf,
    _simulation: Simulation,
    _sandbox: Sandbox,
    _dir: tempfile::TempDir,
    stop: CancellationToken,
}

impl Drop for Stage {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Stage {
    async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let kubeconfig = dir.path().join("kubeconfig");
        let options = Options { kubeconfig_out: Some(kubeconfig.clone()), ..Options::default() };
        let sandbox = Sandbox::start(options).await.unwrap();
        let client = connect(&sandbox.kubeconfig()).await.unwrap();
        let root = dir.path().join("kubelet");
        let config = SimConfig { nodes: 2, kubelet_root: Some(root.clone()), ..SimConfig::default() };
        let simulation = Simulation::start(client.clone(), config).await.unwrap();
        Self {
            client,
            kubeconfig,
            root,
            _simulation: simulation,
            _sandbox: sandbox,
            _dir: dir,
            stop: CancellationToken::new(),
        }
    }

    /// The operator with in-place resize, and an agent on each node.
    async fn with_steward(self) -> Self {
        let mut config = Config::default();
        config.kubernetes.kubeconfig = Some(self.kubeconfig.clone());
        config.kubernetes.namespace = Some("default".into());
        config.server.port = 0;
        config.server.bind_address = Some([127, 0, 0, 1].into());
        config.server.drain_seconds = 0;
        config.telemetry.metrics_bind_address = "127.0.0.1:0".into();
        config.register.mode = RegisterMode::Url;
        config.tls = Tls { source: Some(TlsSource::SelfSigned), ..Tls::default() };
        config.resize.enabled = true;
        config.resize.fallback = resize::Fallback::Revert;
        let operator = Operator::start(config).await.unwrap();
        tokio::spawn(operator.serve(self.stop.clone()));
        let nodes = self.get("/api/v1/nodes").await;
        for node in nodes["items"].as_array().unwrap() {
            let settings = Settings {
                node: node["metadata"]["name"].as_str().unwrap().to_owned(),
                pods: self.root.join("pods"),
            };
            tokio::spawn(Agent::new(self.client.clone(), settings).run(self.stop.clone()));
        }
        let webhook =
            "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/00-virt-steward-resize";
        self.wait(webhook, "registered", |found| {
            found["webhooks"][0]["clientConfig"]["caBundle"].is_string()
        })
        .await;
        self
    }

    async fn send(&self, method: Method, path: &str, body: &Value) -> Result<Value, kube::Error> {
        let kind = if method == Method::PATCH { "application/merge-patch+json" } else { "application/json" };
        let request = Request::builder().method(method).uri(path).header("content-type", kind);
        let body = if body.is_null() { Vec::new() } else { body.to_string().into_bytes() };
        self.client.request(request.body(body).unwrap()).await
    }

    async fn get(&self, path: &str) -> Value {
        self.send(Method::GET, path, &Value::Null).await.unwrap_or_default()
    }

    async fn patch(&self, path: &str, body: Value) {
        self.send(Method::PATCH, path, &body).await.unwrap();
    }

    /// Waits until a condition holds of what is at a path.
    async fn wait(&self, path: &str, what: &str, holds: impl Fn(&Value) -> bool) -> Value {
        let begun = Instant::now();
        loop {
            let found = self.get(path).await;
            if holds(&found) {
                return found;
            }
            assert!(begun.elapsed() < BOUND, "{path} is not {what}: {found:#}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// A VM of two sockets and 1 GiB that runs, and whose launcher answers.
    async fn vm(&self, name: &str, in_place: bool) -> Value {
        let policy = if in_place { "Enabled" } else { "Disabled" };
        let vm = json!({"apiVersion": "kubevirt.io/v1", "kind": "VirtualMachine",
            "metadata": {"name": name, "namespace": "default",
                "annotations": {"vm-feature-manager.io/in-place-resize": policy}},
            "spec": {"runStrategy": "Always", "template": {"spec": {
                "domain": {"cpu": {"sockets": 2, "cores": 1, "threads": 1}, "memory": {"guest": "1Gi"},
                    "devices": {"disks": [{"name": "root", "disk": {"bus": "virtio"}}],
                        "interfaces": [{"name": "default", "masquerade": {}}]}},
                "networks": [{"name": "default", "pod": {}}], "terminationGracePeriodSeconds": 5,
                "volumes": [{"name": "root", "containerDisk": {"image": "registry.example/fedora:41"}}]}}}});
        self.send(Method::POST, VMS, &vm).await.unwrap();
        let path = format!("{VMIS}/{name}");
        self.wait(&path, "Running and migratable", |vmi| {
            let stamped = vmi["metadata"]["annotations"].get("vm-feature-manager.io/resize-policy").is_some();
            vmi["status"]["phase"] == "Running"
                && stamped == in_place
                && condition(vmi, "LiveMigratable").is_some()
        })
        .await
    }

    async fn grow(&self, name: &str, sockets: u32, guest: &str) {
        let domain = json!({"cpu": {"sockets": sockets}, "memory": {"guest": guest}});
        self.patch(&format!("{VMS}/{name}"), json!({"spec": {"template": {"spec": {"domain": domain}}}}))
            .await;
    }

    async fn launchers(&self, name: &str) -> Vec<Value> {
        let pods = self.get("/api/v1/namespaces/default/pods").await;
        let mine = |pod: &&Value| {
            pod["metadata"]["ownerReferences"][0]["name"] == name && pod["status"]["phase"] == "Running"
        };
        pods["items"].as_array().unwrap().iter().filter(mine).cloned().collect()
    }

    async fn migrations(&self) -> usize {
        self.get(MIGRATIONS).await["items"].as_array().map_or(0, Vec::len)
    }
}

fn condition<'a>(object: &'a Value, kind: &str) -> Option<&'a Value> {
    object["status"]["conditions"].as_array()?.iter().find(|one| one["type"] == kind)
}

fn annotation(object: &Value, name: &str) -> Option<Value> {
    let text = object["metadata"]["annotations"].get(format!("vm-feature-manager.io/{name}"))?.as_str()?;
    serde_json::from_str(text).ok()
}

/// The guest has it, the VMI says it, and nothing is left of the way.
fn is_grown(vmi: &Value) -> bool {
    vmi["spec"]["domain"]["cpu"]["sockets"] == 4
        && vmi["status"]["currentCPUTopology"]["sockets"] == 4
        && vmi["spec"]["domain"]["memory"]["guest"] == "2Gi"
        && vmi["status"]["memory"]["guestRequested"] == "2Gi"
        && annotation(vmi, "resize-state").is_none()
}

fn compute(pod: &Value) -> &Value {
    let containers = pod["spec"]["containers"].as_array().unwrap();
    &containers.iter().find(|container| container["name"] == "compute").unwrap()["resources"]["requests"]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_vm_grows_in_its_own_pod_without_a_migration() {
    let stage = Stage::start().await.with_steward().await;
    stage.vm("db", true).await;
    let before = stage.launchers("db").await;
    stage.grow("db", 4, "2Gi").await;
    let vmi = stage.wait(&format!("{VMIS}/db"), "grown", is_grown).await;
    let after = stage.launchers("db").await;
    assert_eq!(after.len(), 1);
    assert_eq!(before[0]["metadata"]["uid"], after[0]["metadata"]["uid"], "the same launcher");
    // What virt-controller renders for this size, recorded: 400m and 2360Mi.
    assert_eq!(
        (&compute(&after[0])["cpu"], &compute(&after[0])["memory"]),
        (&json!("400m"), &json!("2360Mi"))
    );
    assert_eq!(stage.migrations().await, 0);
    assert!(condition(&vmi, "HotVCPUChange").is_none() && condition(&vmi, "HotMemoryChange").is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_node_cannot_do_is_put_back_and_said() {
    let stage = Stage::start().await.with_steward().await;
    stage.vm("db", true).await;
    let pod = stage.launchers("db").await.remove(0);
    let node = format!("/api/v1/nodes/{}", pod["spec"]["nodeName"].as_str().unwrap());
    let fault = json!({"metadata": {"annotations": {"sandbox.vm-feature-manager.io/resize": "Infeasible"}}});
    stage.patch(&node, fault).await;
    stage.grow("db", 4, "2Gi").await;
    let path = format!("{VMIS}/db");
    let vmi = stage
        .wait(&path, "given up", |vmi| {
            annotation(vmi, "resize-state").is_some_and(|state| state["phase"] == "Stopped")
        })
        .await;
    let state = annotation(&vmi, "resize-state").unwrap();
    assert_eq!(state["reason"]["cause"], "Infeasible");
    assert_eq!(vmi["spec"]["domain"]["cpu"]["sockets"], 2, "held");
    let after = stage.launchers("db").await.remove(0);
    assert_eq!(compute(&after), compute(&pod), "nothing is kept");
    assert_eq!(stage.migrations().await, 0);
}

/// Stock and ours side by side.
#[tokio::test(flavor = "multi_thread")]
async fn kubevirt_migrates_for_it_and_we_do_not() {
    let stage = Stage::start().await.with_steward().await;
    let count = 4;
    for number in 0..count {
        stage.vm(&format!("stock-{number}"), false).await;
        stage.vm(&format!("ours-{number}"), true).await;
    }
    for number in 0..count {
        stage.grow(&format!("stock-{number}"), 4, "2Gi").await;
        stage.grow(&format!("ours-{number}"), 4, "2Gi").await;
    }
    for number in 0..count {
        stage.wait(&format!("{VMIS}/ours-{number}"), "grown", is_grown).await;
        stage.wait(&format!("{VMIS}/stock-{number}"), "grown", is_grown).await;
    }
    let migrations = stage.get(MIGRATIONS).await;
    let migrated: Vec<&str> = migrations["items"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|one| one["spec"]["vmiName"].as_str())
        .collect();
    assert!(migrated.iter().all(|name| name.starts_with("stock-")), "{migrated:?}");
    assert!(migrated.len() >= count, "{migrated:?}");
    println!("{count} resizes each: {} migrations by KubeVirt alone, 0 in place", migrated.len());
}
