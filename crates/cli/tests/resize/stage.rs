//! A cluster with VMs, and everybody who works on them.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use agent::{Agent, CompleteVmi, Launcher, Settings};
use http::{Method, Request};
use kube::config::Kubeconfig;
use operator::Operator;
use operator::config::{Config, RegisterMode, Tls, TlsSource};
use resize::Fallback;
use resize::checkup::{RIGHTS, Who};
use resize::view::Guest;
use sandbox::sim::connect;
use sandbox::{Options, Sandbox};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

/// Nothing here takes longer, even on a busy machine.
const BOUND: Duration = Duration::from_mins(3);
pub const VMS: &str = "/apis/kubevirt.io/v1/namespaces/default/virtualmachines";
pub const VMIS: &str = "/apis/kubevirt.io/v1/namespaces/default/virtualmachineinstances";
pub const MIGRATIONS: &str = "/apis/kubevirt.io/v1/namespaces/default/virtualmachineinstancemigrations";
const WEBHOOK: &str =
    "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/00-virt-steward-resize";

pub struct Stage {
    pub client: kube::Client,
    pub sandbox: Sandbox,
    pub kubeconfig: PathBuf,
    root: PathBuf,
    dir: tempfile::TempDir,
    stop: CancellationToken,
}

impl Drop for Stage {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// How the operator is set up.
pub struct Setup {
    pub fallback: Fallback,
    pub declare_memory: bool,
    pub deadline: u32,
}

impl Default for Setup {
    fn default() -> Self {
        Self { fallback: Fallback::Revert, declare_memory: false, deadline: 300 }
    }
}

/// An operator in a runtime of its own, so that it can be killed between any two writes.
pub struct Steward(Option<tokio::runtime::Runtime>);

impl Steward {
    /// Everything of it stops where it stands.
    pub fn kill(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

impl Drop for Steward {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Stage {
    pub async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (kubeconfig, root) = (dir.path().join("kubeconfig"), dir.path().join("kubelet"));
        let options = Options {
            kubeconfig_out: Some(kubeconfig.clone()),
            nodes: 2,
            kubelet_root: Some(root.clone()),
            ..Options::default()
        };
        let sandbox = Sandbox::start(options).await.unwrap();
        let client = connect(&sandbox.kubeconfig()).await.unwrap();
        let stage = Self { client, sandbox, kubeconfig, root, dir, stop: CancellationToken::new() };
        stage.account("operator", Who::Operator).await;
        stage.account("agent", Who::Agent).await;
        stage
    }

    /// The operator with in-place resize, and an agent on each node.
    pub async fn with_steward(setup: Setup) -> (Self, Steward) {
        let stage = Self::start().await;
        let steward = stage.steward(&setup).await;
        stage.agents().await;
        (stage, steward)
    }

    /// An account with the rights that the checkup asks for, and a kubeconfig with its token.
    async fn account(&self, name: &str, who: Who) {
        let core = "/api/v1/namespaces/default/serviceaccounts";
        let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name}});
        self.send(Method::POST, core, &account).await.unwrap();
        let reading = ["get", "list", "watch"];
        let mut rules: Vec<Value> = RIGHTS
            .iter()
            .filter(|right| right.who == who)
            .map(|right| {
                let verbs = if reading.contains(&right.verb) { json!(reading) } else { json!([right.verb]) };
                json!({"apiGroups": [right.group], "resources": [right.resource], "verbs": verbs})
            })
            .collect();
        if who == Who::Operator {
            // The registration, which the chart does in a cluster.
            rules.push(json!({"apiGroups": ["admissionregistration.k8s.io"],
                "resources": ["mutatingwebhookconfigurations", "validatingwebhookconfigurations"],
                "verbs": ["get", "create", "patch", "delete"]}));
            rules.push(json!({"apiGroups": ["subresources.kubevirt.io"],
                "resources": ["virtualmachines/expand-spec"], "verbs": ["get"]}));
        }
        let rbac = "/apis/rbac.authorization.k8s.io/v1";
        let (version, kind) = ("rbac.authorization.k8s.io/v1", "ClusterRole");
        let role = json!({"apiVersion": version, "kind": kind, "metadata": {"name": name}, "rules": rules});
        self.send(Method::POST, &format!("{rbac}/clusterroles"), &role).await.unwrap();
        let binding = json!({"apiVersion": version, "kind": "ClusterRoleBinding", "metadata": {"name": name},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": name},
            "subjects": [{"kind": "ServiceAccount", "namespace": "default", "name": name}]});
        self.send(Method::POST, &format!("{rbac}/clusterrolebindings"), &binding).await.unwrap();
        let ask = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}});
        let token = self.send(Method::POST, &format!("{core}/{name}/token"), &ask).await.unwrap();
        let mut file =
            serde_json::to_value(Kubeconfig::from_yaml(&self.sandbox.kubeconfig()).unwrap()).unwrap();
        file["users"][0]["user"] = json!({"token": token["status"]["token"]});
        std::fs::write(self.credentials(name), file.to_string()).unwrap();
    }

    fn credentials(&self, name: &str) -> PathBuf {
        self.dir.path().join(format!("{name}.kubeconfig"))
    }

    /// An operator that runs and is registered.
    pub async fn steward(&self, setup: &Setup) -> Steward {
        let before = self.get(WEBHOOK).await["webhooks"][0]["clientConfig"].clone();
        let steward = self.steward_unseen(setup);
        self.wait(WEBHOOK, "registered", |found| {
            let config = &found["webhooks"][0]["clientConfig"];
            config["caBundle"].is_string() && *config != before
        })
        .await;
        steward
    }

    /// An operator, without a look at what becomes of it.
    pub fn steward_unseen(&self, setup: &Setup) -> Steward {
        let mut config = Config::default();
        config.kubernetes.kubeconfig = Some(self.credentials("operator"));
        config.kubernetes.namespace = Some("default".into());
        config.server.port = 0;
        config.server.bind_address = Some([127, 0, 0, 1].into());
        config.server.drain_seconds = 0;
        config.telemetry.metrics_bind_address = "0".into();
        config.register.mode = RegisterMode::Url;
        config.tls = Tls { source: Some(TlsSource::SelfSigned), ..Tls::default() };
        config.resize.enabled = true;
        config.resize.fallback = setup.fallback;
        config.resize.declare_memory = setup.declare_memory;
        config.resize.deadline_seconds = setup.deadline;
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.spawn(async move {
            loop {
                // Without an API server a pod is started again.
                match Operator::start(config.clone()).await {
                    Ok(operator) => return operator.serve(CancellationToken::new()).await,
                    Err(_) => tokio::time::sleep(Duration::from_millis(200)).await,
                }
            }
        });
        Steward(Some(runtime))
    }

    /// An agent on each node; they end with what is given back, or with the stage.
    pub async fn agents(&self) -> CancellationToken {
        let stop = self.stop.child_token();
        let file = std::fs::read_to_string(self.credentials("agent")).unwrap();
        let client = connect(&file).await.unwrap();
        for node in self.get("/api/v1/nodes").await["items"].as_array().unwrap() {
            let node = node["metadata"]["name"].as_str().unwrap().to_owned();
            let settings = Settings { node, pods: self.pods_dir() };
            tokio::spawn(Agent::new(client.clone(), settings).run(stop.clone()));
        }
        stop
    }

    fn pods_dir(&self) -> PathBuf {
        self.root.join("pods")
    }

    pub async fn send(&self, method: Method, path: &str, body: &Value) -> Result<Value, kube::Error> {
        let kind = if method == Method::PATCH { "application/merge-patch+json" } else { "application/json" };
        let request = Request::builder().method(method).uri(path).header("content-type", kind);
        let body = if body.is_null() { Vec::new() } else { body.to_string().into_bytes() };
        self.client.request(request.body(body).unwrap()).await
    }

    pub async fn get(&self, path: &str) -> Value {
        self.send(Method::GET, path, &Value::Null).await.unwrap_or_default()
    }

    pub async fn create(&self, path: &str, body: Value) -> Value {
        self.send(Method::POST, path, &body).await.unwrap()
    }

    pub async fn patch(&self, path: &str, body: Value) {
        self.send(Method::PATCH, path, &body).await.unwrap();
    }

    /// Waits until a condition holds of what is at a path.
    pub async fn wait(&self, path: &str, what: &str, holds: impl Fn(&Value) -> bool) -> Value {
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
    pub async fn vm(&self, name: &str, policy: Option<&str>) -> Value {
        self.vm_with(name, policy, json!({}), true).await
    }

    /// One with something else in its domain, or one that cannot migrate.
    pub async fn vm_with(
        &self,
        name: &str,
        policy: Option<&str>,
        resources: Value,
        migratable: bool,
    ) -> Value {
        let mut vm = vm_object(name, &resources, migratable);
        if let Some(policy) = policy {
            vm["metadata"]["annotations"]["vm-feature-manager.io/in-place-resize"] = policy.into();
        }
        self.create(VMS, vm).await;
        let path = format!("{VMIS}/{name}");
        self.wait(&path, "Running, and looked at", |vmi| {
            let stamped = vmi["metadata"]["annotations"].get("vm-feature-manager.io/resize-policy").is_some();
            vmi["status"]["phase"] == "Running"
                && (policy != Some("Enabled") || stamped)
                && condition(vmi, "LiveMigratable").is_some_and(|one| (one["status"] == "True") == migratable)
        })
        .await
    }

    pub async fn grow(&self, name: &str, sockets: u32, guest: &str) {
        let domain = json!({"cpu": {"sockets": sockets}, "memory": {"guest": guest}});
        self.patch(&format!("{VMS}/{name}"), json!({"spec": {"template": {"spec": {"domain": domain}}}}))
            .await;
    }

    pub async fn wait_vmi(&self, name: &str, what: &str, holds: impl Fn(&Value) -> bool) -> Value {
        self.wait(&format!("{VMIS}/{name}"), what, holds).await
    }

    /// Waits until the reconciler has written a phase.
    pub async fn wait_phase(&self, name: &str, phase: &str) -> Value {
        let vmi = self
            .wait_vmi(name, phase, |vmi| {
                annotation(vmi, "resize-state").is_some_and(|state| state["phase"] == phase)
            })
            .await;
        annotation(&vmi, "resize-state").unwrap()
    }

    pub async fn launchers(&self, name: &str) -> Vec<Value> {
        let pods = self.get("/api/v1/namespaces/default/pods").await;
        pods["items"].as_array().unwrap().iter().filter(|pod| is_launcher_of(pod, name)).cloned().collect()
    }

    pub async fn migrations(&self) -> usize {
        self.get(MIGRATIONS).await["items"].as_array().map_or(0, Vec::len)
    }

    /// Moves a VM, and waits until it is there.
    pub async fn migrate(&self, name: &str) {
        let migration = json!({"apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstanceMigration",
            "metadata": {"generateName": "move-"}, "spec": {"vmiName": name}});
        let made = self.create(MIGRATIONS, migration).await;
        let path = format!("{MIGRATIONS}/{}", made["metadata"]["name"].as_str().unwrap());
        self.wait(&path, "over", |one| one["status"]["phase"] == "Succeeded").await;
    }

    /// A connection to the launcher of a VM, made as an agent makes it.
    pub async fn launcher(&self, vmi: &Value, pod: &Value) -> Option<Launcher> {
        let vmi = CompleteVmi::new(vmi.clone()).ok()?;
        let sockets = agent::sockets(&self.pods_dir(), pod["metadata"]["uid"].as_str()?)?;
        Launcher::connect(Path::new(&sockets), vmi).await.ok()
    }

    /// What the guest of a VM has.
    pub async fn guest(&self, name: &str) -> Option<Guest> {
        let vmi = self.get(&format!("{VMIS}/{name}")).await;
        for pod in self.launchers(name).await {
            if let Some(guest) = guest_in(&self.pods_dir(), &vmi, &pod).await {
                return Some(guest);
            }
        }
        None
    }

    /// The reasons of all Events of a VMI, by name.
    pub async fn events(&self, name: &str) -> Vec<String> {
        let events = self.get("/api/v1/namespaces/default/events").await;
        let about = |event: &&Value| {
            event["involvedObject"]["name"] == name && event["source"]["component"] == "virt-steward"
        };
        let all = events["items"].as_array().unwrap().iter().filter(about);
        let mut reasons: Vec<String> =
            all.map(|event| event["reason"].as_str().unwrap().to_owned()).collect();
        reasons.sort();
        reasons
    }
}

/// A VM of two sockets and 1 GiB.
pub fn vm_object(name: &str, resources: &Value, migratable: bool) -> Value {
    let mut network = json!({"name": "default"});
    network[if migratable { "masquerade" } else { "bridge" }] = json!({});
    json!({"apiVersion": "kubevirt.io/v1", "kind": "VirtualMachine",
        "metadata": {"name": name, "namespace": "default", "annotations": {}},
        "spec": {"runStrategy": "Always", "template": {"spec": {
            "domain": {"cpu": {"sockets": 2, "cores": 1, "threads": 1}, "memory": {"guest": "1Gi"},
                "resources": resources,
                "devices": {"disks": [{"name": "root", "disk": {"bus": "virtio"}}], "interfaces": [network]}},
            "networks": [{"name": "default", "pod": {}}], "terminationGracePeriodSeconds": 5,
            "volumes": [{"name": "root", "containerDisk": {"image": "registry.example/fedora:41"}}]}}}})
}

/// What the guest in a launcher pod has, asked as an agent asks.
pub async fn guest_in(pods_dir: &Path, vmi: &Value, pod: &Value) -> Option<Guest> {
    let vmi = CompleteVmi::new(vmi.clone()).ok()?;
    let sockets = agent::sockets(pods_dir, pod["metadata"]["uid"].as_str()?)?;
    Launcher::connect(Path::new(&sockets), vmi).await.ok()?.guest().await.ok()
}

/// Whether a pod is a launcher of a VM that runs.
pub fn is_launcher_of(pod: &Value, name: &str) -> bool {
    pod["metadata"]["ownerReferences"][0]["name"] == name && pod["status"]["phase"] == "Running"
}

pub fn condition<'a>(object: &'a Value, kind: &str) -> Option<&'a Value> {
    object["status"]["conditions"].as_array()?.iter().find(|one| one["type"] == kind)
}

pub fn annotation(object: &Value, name: &str) -> Option<Value> {
    let text = object["metadata"]["annotations"].get(format!("vm-feature-manager.io/{name}"))?.as_str()?;
    serde_json::from_str(text).ok()
}

/// Spec and status say a size, and nothing is left of the way there.
pub fn has_size(vmi: &Value, sockets: u32, guest: &str) -> bool {
    vmi["spec"]["domain"]["cpu"]["sockets"] == sockets
        && vmi["status"]["currentCPUTopology"]["sockets"] == sockets
        && vmi["spec"]["domain"]["memory"]["guest"] == guest
        && vmi["status"]["memory"]["guestRequested"] == guest
        && annotation(vmi, "resize-state").is_none()
}

/// Four sockets and 2 GiB.
pub fn is_grown(vmi: &Value) -> bool {
    has_size(vmi, 4, "2Gi")
}

pub fn resources(pod: &Value) -> &Value {
    let containers = pod["spec"]["containers"].as_array().unwrap();
    &containers.iter().find(|container| container["name"] == "compute").unwrap()["resources"]
}

/// CPU and memory that the launcher requests.
pub fn requests(pod: &Value) -> (String, String) {
    amounts(&resources(pod)["requests"])
}

/// CPU and memory that kubelet has given it.
pub fn allocated(pod: &Value) -> (String, String) {
    let statuses = pod["status"]["containerStatuses"].as_array().unwrap();
    let compute = statuses.iter().find(|status| status["name"] == "compute").unwrap();
    amounts(&compute["allocatedResources"])
}

fn amounts(list: &Value) -> (String, String) {
    let text = |name: &str| list[name].as_str().unwrap_or_default().to_owned();
    (text("cpu"), text("memory"))
}

pub fn asks(cpu: &str, memory: &str) -> (String, String) {
    (cpu.to_owned(), memory.to_owned())
}
