//! A simulated cluster with guests that do I/O, the operator beside it, and the program as people call it.

#![allow(dead_code, reason = "each test program uses its part of it")]
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a helper of tests: whatever fails here fails the test"
)]

use std::path::PathBuf;
use std::time::Duration;

use http::Method;
use http_body_util::BodyExt;
use kube::config::{KubeConfigOptions, Kubeconfig};
use operator::Operator;
use operator::config::{Config, Hotplug, RegisterMode};
use operator::readiness::State;
use sandbox::sim::{SimConfig, Simulation, connect};
use sandbox::{Options, Sandbox};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

/// No condition of these tests takes longer, even on a busy machine.
const BOUND: Duration = Duration::from_secs(150);

pub const PODS: &str = "/api/v1/namespaces/default/pods";
pub const VMS: &str = "/apis/kubevirt.io/v1/namespaces/default/virtualmachines";
pub const VMIS: &str = "/apis/kubevirt.io/v1/namespaces/default/virtualmachineinstances";
pub const MIGRATIONS: &str = "/apis/kubevirt.io/v1/namespaces/default/virtualmachineinstancemigrations";
pub const CLAIMS: &str = "/api/v1/namespaces/default/persistentvolumeclaims";
const ATTACHMENTS: &str = "labelSelector=kubevirt.io%3Dhotplug-disk";

pub struct Cluster {
    pub sandbox: Sandbox,
    pub simulation: Simulation,
    client: kube::Client,
    kubeconfig: PathBuf,
    operators: Vec<(CancellationToken, tokio::task::JoinHandle<()>)>,
    process: Option<tokio::process::Child>,
    pub metrics: Option<std::net::SocketAddr>,
    _dir: tempfile::TempDir,
}

pub struct Run {
    pub status: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Cluster {
    pub async fn start(config: SimConfig) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let kubeconfig = dir.path().join("kubeconfig");
        let options = Options {
            kubeconfig_out: Some(kubeconfig.clone()),
            nodes: 0,
            release: config.release,
            ..Options::default()
        };
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let sandbox = Sandbox::start(options).await.unwrap();
        let simulation =
            Simulation::start(connect(&sandbox.kubeconfig()).await.unwrap(), config).await.unwrap();
        let file = Kubeconfig::read_from(&kubeconfig).unwrap();
        let mut found =
            kube::Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await.unwrap();
        // 429 is an answer that is looked for here
        found.default_retry = false;
        let client = kube::Client::try_from(found).unwrap();
        Self {
            sandbox,
            simulation,
            client,
            kubeconfig,
            operators: Vec::new(),
            process: None,
            metrics: None,
            _dir: dir,
        }
    }

    pub fn kubeconfig(&self) -> &std::path::Path {
        &self.kubeconfig
    }

    /// Starts an operator with all that it does about volumes, and waits until the API server calls it.
    pub async fn operate(&mut self) {
        let mut config = Config::default();
        config.kubernetes.kubeconfig = Some(self.kubeconfig.clone());
        config.server.port = 0;
        config.server.bind_address = Some([127, 0, 0, 1].into());
        config.server.drain_seconds = 0;
        config.telemetry.metrics_bind_address = "127.0.0.1:0".into();
        config.register.mode = RegisterMode::Url;
        config.hotplug = Hotplug { guard: true, gate: true, heal: true };
        let operator = Operator::start(config).await.unwrap();
        self.metrics = operator.metrics_address();
        let (readiness, stop) = (operator.readiness(), CancellationToken::new());
        let serving = tokio::spawn({
            let stop = stop.clone();
            async move {
                operator.serve(stop).await;
            }
        });
        self.operators.push((stop, serving));
        for _ in 0..4000 {
            if readiness.report().parts.get("registration") == Some(&State::Ok) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
        panic!("not registered: {:?}", readiness.report());
    }

    /// Starts an operator as a process of its own, and waits until the API server calls it.
    pub async fn operate_process(&mut self) {
        let before = self.registered().await;
        let config = self.kubeconfig.with_file_name("operator.yaml");
        std::fs::write(&config, "hotplug: {guard: true, gate: true, heal: true}\n").unwrap();
        let child = tokio::process::Command::new(env!("CARGO_BIN_EXE_virt-steward"))
            .args(["operator", "--register", "url", "--port", "0", "--metrics-bind-address", "0"])
            .arg("--config")
            .arg(&config)
            .arg("--kubeconfig")
            .arg(&self.kubeconfig)
            .env_remove("KUBECONFIG")
            .stderr(std::process::Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        self.process = Some(child);
        for _ in 0..6000 {
            let now = self.registered().await;
            if now.is_some() && now != before {
                return;
            }
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
        panic!("not registered");
    }

    /// Where the guard is called.
    async fn registered(&self) -> Option<String> {
        let path =
            "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations/00-virt-steward-hotplug";
        let found = self.get(path).await?;
        found["webhooks"][0]["clientConfig"]["url"].as_str().map(str::to_owned)
    }

    /// The library that the REST service uses, with the rights of an administrator.
    pub async fn provider(&self) -> provider::Provider {
        let file = Kubeconfig::read_from(&self.kubeconfig).unwrap();
        let found = kube::Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await.unwrap();
        provider::cluster::connect(found).unwrap()
    }

    /// The operator dies where it stands (`SIGKILL`); its webhooks stay registered.
    pub async fn kill_operator(&mut self) {
        let mut process = self.process.take().unwrap();
        process.kill().await.unwrap();
    }

    pub async fn send(&self, method: Method, path: &str, kind: &str, body: &Value) -> (u16, Value) {
        let body = if body.is_null() { Vec::new() } else { body.to_string().into_bytes() };
        let request = http::Request::builder()
            .method(method)
            .uri(path)
            .header("content-type", kind)
            .body(kube::client::Body::from(body))
            .unwrap();
        let response = self.client.send(request).await.unwrap();
        let status = response.status().as_u16();
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        (status, serde_json::from_slice(&bytes).unwrap_or_default())
    }

    pub async fn get(&self, path: &str) -> Option<Value> {
        let (code, answer) = self.send(Method::GET, path, "application/json", &Value::Null).await;
        (code != 404).then_some(answer)
    }

    pub async fn create(&self, collection: &str, object: &Value) -> Value {
        let (code, answer) = self.send(Method::POST, collection, "application/json", object).await;
        assert!(code < 300, "{answer}");
        answer
    }

    pub async fn merge(&self, path: &str, patch: &Value) -> (u16, Value) {
        self.send(Method::PATCH, path, "application/merge-patch+json", patch).await
    }

    pub async fn delete(&self, path: &str) -> (u16, Value) {
        self.send(Method::DELETE, path, "application/json", &Value::Null).await
    }

    pub async fn evict(&self, pod: &str) -> (u16, Value) {
        let eviction = json!({"apiVersion": "policy/v1", "kind": "Eviction",
            "metadata": {"name": pod, "namespace": "default"}});
        self.send(Method::POST, &format!("{PODS}/{pod}/eviction"), "application/json", &eviction).await
    }

    pub async fn wait(&self, path: &str, what: &str, holds: impl Fn(Option<&Value>) -> bool) -> Value {
        let mut last = None;
        let waited = tokio::time::timeout(BOUND, async {
            loop {
                last = self.get(path).await;
                if holds(last.as_ref()) {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(25)).await;
            }
        });
        let in_time = waited.await.is_ok();
        assert!(in_time, "{path} never was {what}: {last:#?}");
        last.unwrap_or_default()
    }

    /// A claim that binds by itself.
    pub async fn claim(&self, name: &str, class: &str, mode: &str, access: &str) {
        let claim = json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim",
            "metadata": {"name": name, "namespace": "default"},
            "spec": {"storageClassName": class, "accessModes": [access], "volumeMode": mode,
                "resources": {"requests": {"storage": "1Gi"}}}});
        self.create(CLAIMS, &claim).await;
        let bound = |claim: Option<&Value>| claim.is_some_and(|claim| claim["status"]["phase"] == "Bound");
        self.wait(&format!("{CLAIMS}/{name}"), "bound", bound).await;
    }

    pub async fn opt_in(&self, class: &str, annotation: &str) {
        let patch = json!({"metadata": {"annotations": {annotation: "true"}}});
        let (code, answer) =
            self.merge(&format!("/apis/storage.k8s.io/v1/storageclasses/{class}"), &patch).await;
        assert!(code < 300, "{answer}");
    }

    /// A running VM.
    pub async fn vm(&self, name: &str, node: Option<&str>) {
        let mut vm = vm(name);
        if let Some(node) = node {
            vm["spec"]["template"]["spec"]["nodeSelector"] = json!({"kubernetes.io/hostname": node});
        }
        self.started(&vm).await;
    }

    /// A VM without an empty drive: what releases take that lack the gate `DeclarativeHotplugVolumes`.
    pub async fn vm_without_drive(&self, name: &str) {
        let mut vm = vm(name);
        let disks = vm["spec"]["template"]["spec"]["domain"]["devices"]["disks"].as_array_mut().unwrap();
        disks.retain(|disk| disk["name"] != "cd");
        self.started(&vm).await;
    }

    /// Creates a VM, and waits until it runs.
    pub async fn started(&self, vm: &Value) {
        self.create(VMS, vm).await;
        let name = name_of(vm);
        let ready = |vm: Option<&Value>| vm.is_some_and(|vm| vm["status"]["ready"] == true);
        self.wait(&format!("{VMS}/{name}"), "ready", ready).await;
    }

    /// Declares the volumes of a VM, as GitOps would.
    pub async fn declare(&self, name: &str, volumes: &[&str]) {
        let (code, answer) = self.merge(&format!("{VMS}/{name}"), &with_volumes(volumes)).await;
        assert!(code < 300, "{answer}");
    }

    /// Waits until the guest has exactly these volumes, from one attachment pod.
    pub async fn settle(&self, name: &str, volumes: &[&str]) -> Value {
        let there = |vmi: Option<&Value>| vmi.is_some_and(|vmi| ready(vmi, volumes));
        let vmi = self.wait(&format!("{VMIS}/{name}"), &format!("{volumes:?}"), there).await;
        self.wait_for_pods(usize::from(!volumes.is_empty())).await;
        vmi
    }

    pub async fn wait_for_pods(&self, count: usize) -> Vec<Value> {
        let path = format!("{PODS}?{ATTACHMENTS}");
        let is = |list: Option<&Value>| list.is_some_and(|list| items(list).len() == count);
        items(&self.wait(&path, &format!("{count} attachment pods"), is).await).to_vec()
    }

    pub async fn attachments(&self) -> Vec<Value> {
        items(&self.get(&format!("{PODS}?{ATTACHMENTS}")).await.unwrap()).to_vec()
    }

    /// No guest has lost a volume, for ever or for a moment.
    pub fn is_unharmed(&self) {
        assert_eq!(self.simulation.volumes().io_errors(), []);
        assert_eq!(self.simulation.volumes().unplugged(), []);
    }

    /// Runs the program.
    pub async fn run(&self, line: &str) -> Run {
        let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_virt-steward"));
        command.args(line.split_whitespace()).arg("--kubeconfig").arg(&self.kubeconfig);
        let output = command.env_remove("KUBECONFIG").output().await.unwrap();
        Run {
            status: output.status.code().unwrap(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }

    /// What must succeed.
    pub async fn ok(&self, line: &str) -> Run {
        let run = self.run(line).await;
        assert_eq!(run.status, 0, "{line}\n{}\n{}", run.stdout, run.stderr);
        run
    }

    /// Samples of a metric, as they stand in the exposition.
    pub async fn metric(&self, name: &str) -> Vec<String> {
        let address = self.metrics.unwrap();
        let text = tokio::task::spawn_blocking(move || {
            use std::io::{Read, Write};
            let mut stream = std::net::TcpStream::connect(address).unwrap();
            stream.write_all(b"GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").unwrap();
            let mut text = String::new();
            stream.read_to_string(&mut text).unwrap();
            text
        });
        text.await.unwrap().lines().filter(|line| line.starts_with(name)).map(str::to_owned).collect()
    }

    pub async fn stop(self) {
        for (stop, serving) in self.operators {
            stop.cancel();
            let _ = tokio::time::timeout(Duration::from_mins(1), serving).await;
        }
        drop(self.simulation);
        self.sandbox.shutdown().await;
    }
}

pub fn items(list: &Value) -> &[Value] {
    list["items"].as_array().map_or(&[], Vec::as_slice)
}

pub fn name_of(object: &Value) -> String {
    object["metadata"]["name"].as_str().unwrap_or_default().to_owned()
}

pub fn vm(name: &str) -> Value {
    json!({
        "apiVersion": "kubevirt.io/v1", "kind": "VirtualMachine", "metadata": {"name": name, "namespace": "default"},
        "spec": {"runStrategy": "Always", "template": {"metadata": {"labels": {"app": name}}, "spec": {
            "evictionStrategy": "LiveMigrate", "terminationGracePeriodSeconds": 5,
            "domain": {"cpu": {"cores": 1}, "memory": {"guest": "256Mi"},
                "devices": {"disks": [{"name": "root", "disk": {"bus": "virtio"}}, {"name": "cd", "cdrom": {"bus": "sata"}}],
                    "interfaces": [{"name": "default", "masquerade": {}}]}},
            "networks": [{"name": "default", "pod": {}}],
            "volumes": [{"name": "root", "containerDisk": {"image": "registry.example/fedora:41"}}]}}},
    })
}

fn with_volumes(names: &[&str]) -> Value {
    let template = &vm("x")["spec"]["template"]["spec"];
    let mut volumes = template["volumes"].as_array().unwrap().clone();
    let mut disks = template["domain"]["devices"]["disks"].as_array().unwrap().clone();
    for name in names {
        volumes
            .push(json!({"name": name, "persistentVolumeClaim": {"claimName": name, "hotpluggable": true}}));
        disks.push(json!({"name": name, "disk": {"bus": "scsi"}}));
    }
    json!({"spec": {"template": {"spec": {"volumes": volumes, "domain": {"devices": {"disks": disks}}}}}})
}

fn ready(vmi: &Value, volumes: &[&str]) -> bool {
    let all = vmi["status"]["volumeStatus"].as_array().map_or(&[][..], Vec::as_slice);
    let hotplugged: Vec<&Value> = all.iter().filter(|one| one["hotplugVolume"].is_object()).collect();
    let is = |name: &str| {
        hotplugged.iter().any(|one| one["name"] == *name && one["phase"] == "Ready" && one["target"] != "")
    };
    hotplugged.len() == volumes.len() && volumes.iter().all(|name| is(name))
}
