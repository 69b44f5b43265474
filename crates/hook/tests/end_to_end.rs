//! From the annotation to the ROM in the domain: the operator admits a VM over HTTPS, the simulated
//! KubeVirt makes its pod, and its launcher runs this program as a process over its real socket.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may fail this way")]

mod common;

use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use base64::Engine as _;
use common::rom_for;
use http::{Method, Request};
use kube::config::{KubeConfigOptions, Kubeconfig};
use operator::Operator;
use operator::config::{Config, RegisterMode, Tls, TlsSource};
use operator::readiness::State;
use sandbox::{Options, Sandbox};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

const PATIENCE: Duration = Duration::from_mins(1);
const NAMESPACE: &str = "/apis/kubevirt.io/v1/namespaces/default";
const VBIOS: &str = "vm-feature-manager.io/vbios-injection";
const PASSTHROUGH: &str = "vm-feature-manager.io/pci-passthrough";
const GPU: &str = "nvidia.com/TU104GL_Tesla_T4";
const NIC: &str = "intel.com/ETHERNET_CONTROLLER_X710";

struct Cluster {
    sandbox: Sandbox,
    client: kube::Client,
    stop: CancellationToken,
    operator: tokio::task::JoinHandle<()>,
}

/// The ROM of a device as the sandbox has it.
fn gpu_rom(mark: u8) -> Vec<u8> {
    rom_for(0x10de, 0x1eb8, mark)
}

impl Cluster {
    async fn start() -> Self {
        Self::start_with(&["HostDevices", "Sidecar"], false).await
    }

    /// With these feature gates, and our Plugin if asked for.
    async fn start_with(gates: &[&str], register_plugin: bool) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let kubeconfig = directory.path().join("kubeconfig");
        let options = Options {
            kubeconfig_out: Some(kubeconfig.clone()),
            nodes: 1,
            hook_binary: Some(env!("CARGO_BIN_EXE_virt-steward-hook").into()),
            ..Options::default()
        };
        let sandbox = Sandbox::start(options).await.unwrap();
        drop(rustls::crypto::aws_lc_rs::default_provider().install_default());
        let file = Kubeconfig::read_from(&kubeconfig).unwrap();
        let config = kube::Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await.unwrap();
        let client = kube::Client::try_from(config).unwrap();
        let path = "/apis/kubevirt.io/v1/namespaces/kubevirt/kubevirts/kubevirt";
        let gates = json!({"spec": {"configuration": {"developerConfiguration": {"featureGates": gates}}}});
        let request = Request::patch(path).header("content-type", "application/merge-patch+json");
        client.request::<Value>(request.body(gates.to_string().into_bytes()).unwrap()).await.unwrap();
        let mut config = Config::default();
        config.features.vbios_injection.register_plugin = register_plugin;
        config.kubernetes.kubeconfig = Some(kubeconfig);
        config.kubernetes.namespace = Some("default".into());
        config.server.port = 0;
        config.server.bind_address = Some([127, 0, 0, 1].into());
        config.server.drain_seconds = 0;
        config.telemetry.metrics_bind_address = "127.0.0.1:0".into();
        config.register.mode = RegisterMode::Url;
        config.tls = Tls { source: Some(TlsSource::SelfSigned), ..Tls::default() };
        config.features.vbios_injection.hook_image = "registry.example/virt-steward-hook:0.1.0".into();
        let operator = Operator::start(config).await.unwrap();
        let (readiness, stop) = (operator.readiness(), CancellationToken::new());
        let operator = tokio::spawn(operator.serve(stop.clone()));
        eventually("the operator is registered", async || {
            let report = readiness.report();
            (report.ready && report.parts.get("registration") == Some(&State::Ok)).then_some(())
        })
        .await;
        Self { sandbox, client, stop, operator }
    }

    async fn call(&self, method: Method, path: &str, body: Value) -> Result<Value, kube::Error> {
        let request = Request::builder().method(method).uri(path).header("content-type", "application/json");
        let body = if body.is_null() { Vec::new() } else { body.to_string().into_bytes() };
        self.client.request(request.body(body).unwrap()).await
    }

    async fn rom(&self, name: &str, content: &[u8]) {
        let encoded = base64::engine::general_purpose::STANDARD.encode(content);
        let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name},
            "binaryData": {"rom": encoded}});
        self.call(Method::POST, "/api/v1/namespaces/default/configmaps", map).await.unwrap();
    }

    async fn vm(&self, name: &str, annotations: Value) -> Value {
        self.try_vm(name, annotations).await.unwrap()
    }

    async fn try_vm(&self, name: &str, annotations: Value) -> Result<Value, kube::Error> {
        let vm = json!({"apiVersion": "kubevirt.io/v1", "kind": "VirtualMachine",
            "metadata": {"name": name, "annotations": annotations},
            "spec": {"runStrategy": "Always", "template": {"spec": {"domain": {
                "memory": {"guest": "1Gi"}, "devices": {}}}}}});
        self.call(Method::POST, &format!("{NAMESPACE}/virtualmachines"), vm).await
    }

    async fn vmi(&self, name: &str) -> Option<Value> {
        self.call(Method::GET, &format!("{NAMESPACE}/virtualmachineinstances/{name}"), Value::Null).await.ok()
    }

    async fn end(self) {
        self.stop.cancel();
        self.operator.await.unwrap();
        self.sandbox.shutdown().await;
    }
}

async fn eventually<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let seen = async {
        loop {
            if let Some(seen) = look().await {
                return seen;
            }
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
    };
    let seen = tokio::time::timeout(PATIENCE, seen).await;
    assert!(seen.is_ok(), "did not happen: {what}");
    seen.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_annotation_becomes_roms_in_the_domain_and_files_that_qemu_reads() {
    let cluster = Cluster::start().await;
    cluster.rom("vbios", &gpu_rom(1)).await;
    cluster.rom("gop", &rom_for(0x8086, 0x1572, 2)).await;
    let devices = json!([{"address": GPU, "name": "igpu"}, {"address": NIC, "name": "igpu-audio"}]);
    let roms = json!({"igpu": "vbios", "igpu-audio": "gop"});
    cluster.vm("gaming", json!({PASSTHROUGH: devices.to_string(), VBIOS: roms.to_string()})).await;
    let (domain, home) = eventually("the domain is defined", async || {
        cluster.sandbox.simulation().unwrap().domain("default", "gaming")
    })
    .await;
    let domain = String::from_utf8(domain.to_vec()).unwrap();
    for (container, alias, content) in [
        ("hook-sidecar-0", "ua-hostdevice-igpu-audio", rom_for(0x8086, 0x1572, 2)),
        ("hook-sidecar-1", "ua-hostdevice-igpu", gpu_rom(1)),
    ] {
        let file = format!("{container}/vbios/{alias}.rom");
        let rom = format!("<rom bar='on' file='/var/run/kubevirt-hooks/{file}'/></hostdev>");
        assert!(domain.contains(&rom), "{rom} in {domain}");
        let path = home.join("hooks").join(file);
        assert_eq!(std::fs::read(&path).unwrap(), content);
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o444);
    }
    let running = async || cluster.vmi("gaming").await.filter(|vmi| vmi["status"]["phase"] == "Running");
    eventually("the VM runs", running).await;
    // the guest ends, and the sidecars with it
    let log = home.join("hooks/hook-sidecar-0/virt-steward-hook-sidecar-0.sock");
    assert!(log.exists());
    assert!(cluster.sandbox.simulation().unwrap().end_guest("default", "gaming", false));
    eventually("the sidecar has ended", async || (!log.exists()).then_some(())).await;
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_sidecar_refuses_is_said_on_the_vmi() {
    let cluster = Cluster::start().await;
    // its header is sound, which is all that admission reads; its checksum is not
    let mut damaged = gpu_rom(1);
    damaged[0x150] ^= 0xff;
    cluster.rom("vbios", &damaged).await;
    cluster.vm("broken", json!({PASSTHROUGH: GPU, VBIOS: "vbios"})).await;
    let said = eventually("the VMI says why", async || {
        let vmi = cluster.vmi("broken").await?;
        let conditions = vmi["status"]["conditions"].as_array()?.clone();
        let condition = conditions.into_iter().find(|one| one["type"] == "Synchronized")?;
        Some(condition["message"].as_str().unwrap().to_owned())
    })
    .await;
    assert!(said.contains("code = FailedPrecondition") && said.contains("checksum"), "{said}");
    assert_ne!(cluster.vmi("broken").await.unwrap()["status"]["phase"], "Running");
    cluster.end().await;
}

/// KubeVirt takes no hook sidecars here: our webhook adds the container, and virt-launcher asks it for the
/// Plugin that the operator has registered.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_by_plugin_where_kubevirt_takes_plugins() {
    let cluster = Cluster::start_with(&["HostDevices", "Plugins"], true).await;
    let plugin = "/apis/plugin.kubevirt.io/v1alpha1/plugins/virt-steward";
    eventually("the Plugin is registered", async || {
        cluster.call(Method::GET, plugin, Value::Null).await.ok()
    })
    .await;
    cluster.rom("vbios", &gpu_rom(1)).await;
    let devices = json!([{"address": GPU, "name": "igpu"}]);
    let annotations = json!({PASSTHROUGH: devices.to_string(), VBIOS: json!({"igpu": "vbios"}).to_string()});
    // until the operator has seen its Plugin it says that there is none
    let vm = eventually("the VM is admitted", async || {
        match cluster.try_vm("gaming", annotations.clone()).await {
            Ok(vm) => Some(vm),
            Err(error) => {
                assert!(error.to_string().contains("the Plugin `virt-steward` is not there"), "{error}");
                None
            }
        }
    })
    .await;
    let template = &vm["spec"]["template"]["metadata"]["annotations"];
    assert!(template["hooks.kubevirt.io/hookSidecars"].is_null(), "{template}");
    let (domain, home) = eventually("the domain is defined", async || {
        cluster.sandbox.simulation().unwrap().domain("default", "gaming")
    })
    .await;
    let domain = String::from_utf8(domain.to_vec()).unwrap();
    let file = "virt-steward/vbios/ua-hostdevice-igpu.rom";
    let rom = format!("<rom bar='on' file='/var/run/kubevirt-plugin/{file}'/></hostdev>");
    assert!(domain.contains(&rom), "{rom} in {domain}");
    let path = home.join("plugins").join(file);
    assert_eq!(std::fs::read(&path).unwrap(), gpu_rom(1));
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o444);
    let running = async || cluster.vmi("gaming").await.filter(|vmi| vmi["status"]["phase"] == "Running");
    eventually("the VM runs", running).await;
    let pods = cluster.call(Method::GET, "/api/v1/namespaces/default/pods", Value::Null).await.unwrap();
    let added = &pods["items"][0]["spec"]["initContainers"];
    let added = added.as_array().unwrap().iter().find(|one| one["name"] == "virt-steward-hook").unwrap();
    assert_eq!(
        (added["restartPolicy"].as_str(), added["image"].as_str()),
        (Some("Always"), Some("registry.example/virt-steward-hook:0.1.0"))
    );
    // nobody tells a Plugin of the end of the guest; kubelet ends its container
    let socket = home.join("plugins/virt-steward/virt-steward.sock");
    assert!(socket.exists());
    assert!(cluster.sandbox.simulation().unwrap().end_guest("default", "gaming", false));
    eventually("the sidecar has ended", async || (!socket.exists()).then_some(())).await;
    // what is registered at a URL goes with its process
    let client = cluster.client.clone();
    cluster.stop.cancel();
    cluster.operator.await.unwrap();
    let request = Request::get(plugin).body(Vec::new()).unwrap();
    assert!(client.request::<Value>(request).await.is_err(), "the Plugin is gone");
    cluster.sandbox.shutdown().await;
}

/// A Plugin of somebody else is enough for KubeVirt to drop what hook sidecars write, so it is said at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rom_that_kubevirt_would_drop_is_refused() {
    let cluster = Cluster::start_with(&["HostDevices", "Sidecar", "Plugins"], false).await;
    let other = json!({"apiVersion": "plugin.kubevirt.io/v1alpha1", "kind": "Plugin", "metadata": {"name": "other"},
        "spec": {"domainHooks": [{"cel": {"expression": "Domain{}"}}]}});
    cluster.call(Method::POST, "/apis/plugin.kubevirt.io/v1alpha1/plugins", other).await.unwrap();
    cluster.rom("vbios", &gpu_rom(1)).await;
    let mut number = 0;
    eventually("the VM is refused", async || {
        number += 1;
        let refused =
            cluster.try_vm(&format!("vm-{number}"), json!({PASSTHROUGH: GPU, VBIOS: "vbios"})).await.err()?;
        assert!(refused.to_string().contains("while a Plugin exists (there is `other`)"), "{refused}");
        Some(())
    })
    .await;
    cluster.end().await;
}
