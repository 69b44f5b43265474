//! The operator against a real API over HTTPS: the sandbox. They meet as in a cluster, through a
//! kubeconfig and nothing else.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // helpers of tests fail as tests do

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use kube::api::{Api, ApiResource, DeleteParams, DynamicObject, Patch, PatchParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::GroupVersionKind;
use operator::config::{Config, RegisterMode, TlsSource};
use operator::readiness::{Readiness, State};
use operator::{Operator, config::Tls};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use sandbox::{Options, Sandbox};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

const MUTATING: &str = "MutatingWebhookConfiguration";

/// A sandbox, its kubeconfig on disk, and a client for it.
struct Cluster {
    sandbox: Sandbox,
    client: kube::Client,
    kubeconfig: PathBuf,
    _dir: tempfile::TempDir,
}

impl Cluster {
    async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let kubeconfig = dir.path().join("kubeconfig");
        let options = Options { kubeconfig_out: Some(kubeconfig.clone()), nodes: 0, ..Options::default() };
        let sandbox = Sandbox::start(options).await.unwrap();
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let file = Kubeconfig::read_from(&kubeconfig).unwrap();
        let config = kube::Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await.unwrap();
        let client = kube::Client::try_from(config).unwrap();
        Self { sandbox, client, kubeconfig, _dir: dir }
    }

    fn kind(&self, group: &str, version: &str, kind: &str, plural: &str) -> Api<DynamicObject> {
        let gvk = GroupVersionKind::gvk(group, version, kind);
        Api::all_with(self.client.clone(), &ApiResource::from_gvk_with_plural(&gvk, plural))
    }

    fn configurations(&self, kind: &str) -> Api<DynamicObject> {
        let plural = format!("{}s", kind.to_lowercase());
        self.kind("admissionregistration.k8s.io", "v1", kind, &plural)
    }

    async fn configuration(&self, kind: &str) -> Option<Value> {
        let object = self.configurations(kind).get_opt("00-virt-steward").await.unwrap()?;
        Some(serde_json::to_value(object).unwrap())
    }

    async fn node(&self, name: &str, feature: &str) {
        let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": {
            "kubernetes.io/arch": "amd64", "kubernetes.io/hostname": name, "kubevirt.io/schedulable": "true",
            format!("cpu-feature.node.kubevirt.io/{feature}"): "true"}}});
        create(&self.kind("", "v1", "Node", "nodes"), node).await;
    }

    fn config(&self, mode: RegisterMode) -> Config {
        let mut config = Config::default();
        config.kubernetes.kubeconfig = Some(self.kubeconfig.clone());
        config.kubernetes.namespace = Some("default".into());
        config.server.port = 0;
        config.server.bind_address = Some([127, 0, 0, 1].into());
        config.server.drain_seconds = 0;
        config.telemetry.metrics_bind_address = "127.0.0.1:0".into();
        config.register.mode = mode;
        config.tls = Tls { source: Some(TlsSource::SelfSigned), ..Tls::default() };
        config
    }
}

async fn create(api: &Api<DynamicObject>, object: Value) {
    api.create(&PostParams::default(), &serde_json::from_value(object).unwrap()).await.unwrap();
}

struct Running {
    address: std::net::SocketAddr,
    readiness: Arc<Readiness>,
    stop: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

async fn run(config: Config) -> Running {
    let operator = Operator::start(config).await.unwrap();
    let (address, readiness, stop) = (operator.address(), operator.readiness(), CancellationToken::new());
    let task = tokio::spawn(operator.serve(stop.clone()));
    Running { address, readiness, stop, task }
}

impl Running {
    async fn is(&self, part: &str, wanted: State) {
        let what = format!("{part} is {wanted:?}");
        eventually(&what, async || self.readiness.report().parts.get(part) == Some(&wanted)).await;
    }

    async fn end(self) {
        self.stop.cancel();
        tokio::time::timeout(Duration::from_secs(30), self.task).await.unwrap().unwrap();
    }
}

async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    for _ in 0..1200 {
        if holds().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    panic!("did not happen within 30 s: {what}");
}

/// Asks `url` as an API server would, trusting `ca_bundle` alone.
async fn ask(address: std::net::SocketAddr, ca_bundle: &str, vm: &Value) -> Result<Value, String> {
    let pem = base64_decode(ca_bundle);
    let mut roots = rustls::RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&pem) {
        roots.add(certificate.unwrap()).unwrap();
    }
    let tls = rustls::ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    let stream = tokio::net::TcpStream::connect(address).await.map_err(|error| error.to_string())?;
    let stream = tokio_rustls::TlsConnector::from(Arc::new(tls))
        .connect(ServerName::try_from("127.0.0.1").unwrap(), stream)
        .await
        .map_err(|error| error.to_string())?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| error.to_string())?;
    tokio::spawn(connection);
    let review = json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": {
        "uid": "1", "kind": {"group": "kubevirt.io", "version": "v1", "kind": "VirtualMachine"},
        "operation": "CREATE", "namespace": "default", "name": "vm", "object": vm}});
    let request = http::Request::post("/mutate")
        .header("host", "127.0.0.1")
        .header("content-type", "application/json")
        .body(Full::new(bytes_of(&review)))
        .unwrap();
    let answer = sender.send_request(request).await.map_err(|error| error.to_string())?;
    let body = answer.into_body().collect().await.unwrap().to_bytes();
    let mut response = serde_json::from_slice::<Value>(&body).unwrap()["response"].take();
    if let Some(patch) = response["patch"].as_str() {
        response["patch"] = serde_json::from_slice(&base64_decode(patch)).unwrap();
    }
    Ok(response)
}

fn bytes_of(value: &Value) -> hyper::body::Bytes {
    value.to_string().into()
}

fn base64_decode(text: &str) -> Vec<u8> {
    // The alphabet of RFC 4648 without a crate for it.
    let mut bits = (0_u32, 0_u32);
    let mut out = Vec::new();
    for byte in text.bytes().filter(|byte| *byte != b'=') {
        let value = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            other => panic!("{other} is not base64"),
        };
        bits = ((bits.0 << 6) | u32::from(value), bits.1 + 6);
        if bits.1 >= 8 {
            bits.1 -= 8;
            out.push(u8::try_from((bits.0 >> bits.1) & 0xff).unwrap());
        }
    }
    out
}

fn vm(annotations: &Value) -> Value {
    json!({"apiVersion": "kubevirt.io/v1", "kind": "VirtualMachine",
        "metadata": {"name": "vm", "namespace": "default", "annotations": annotations},
        "spec": {"runStrategy": "Halted", "template": {"spec": {"domain": {"devices": {}}}}}})
}

fn nested() -> Value {
    vm(&json!({"vm-feature-manager.io/nested-virt": "enabled"}))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn decides_by_what_watches_have_seen() {
    let cluster = Cluster::start().await;
    cluster.node("amd", "svm").await;
    let running = run(cluster.config(RegisterMode::Url)).await;
    for part in ["nodes", "certificate store", "registration"] {
        running.is(part, State::Ok).await;
    }
    let bundle = async || {
        cluster.configuration(MUTATING).await.unwrap()["webhooks"][0]["clientConfig"]["caBundle"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    let answer = ask(running.address, &bundle().await, &nested()).await.unwrap();
    assert_eq!(answer["allowed"], true, "{answer}");
    assert!(answer["patch"].to_string().contains("svm"), "{answer}");

    // The cluster changes under it.
    cluster.kind("", "v1", "Node", "nodes").delete("amd", &DeleteParams::default()).await.unwrap();
    cluster.node("intel", "vmx").await;
    eventually("the new node decides", async || {
        let answer = ask(running.address, &bundle().await, &nested()).await.unwrap();
        answer["patch"].to_string().contains("vmx") && !answer["patch"].to_string().contains("svm")
    })
    .await;
    running.end().await;
    cluster.sandbox.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn registers_repairs_drift_and_takes_a_url_away_at_the_end() {
    let cluster = Cluster::start().await;
    let running = run(cluster.config(RegisterMode::Url)).await;
    running.is("registration", State::Ok).await;
    let object = cluster.configuration(MUTATING).await.unwrap();
    let webhook = &object["webhooks"][0];
    assert_eq!(webhook["clientConfig"]["url"], format!("https://{}/mutate", running.address));
    assert_eq!(webhook["reinvocationPolicy"], "IfNeeded");
    assert!(cluster.configuration("ValidatingWebhookConfiguration").await.is_some());

    let wrong = json!([{"op": "replace", "path": "/webhooks/0/clientConfig/caBundle", "value": "bm90IGEgY2VydGlmaWNhdGU="}]);
    let patch: Patch<Value> = Patch::Json(serde_json::from_value(wrong).unwrap());
    cluster.configurations(MUTATING).patch("00-virt-steward", &PatchParams::default(), &patch).await.unwrap();
    eventually("the CA bundle is put right", async || {
        cluster.configuration(MUTATING).await.unwrap()["webhooks"][0]["clientConfig"]["caBundle"]
            == webhook["clientConfig"]["caBundle"]
    })
    .await;

    running.end().await;
    assert_eq!(cluster.configuration(MUTATING).await, None);
    assert_eq!(cluster.configuration("ValidatingWebhookConfiguration").await, None);
    cluster.sandbox.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_configuration_that_points_elsewhere_stays() {
    let cluster = Cluster::start().await;
    let running = run(cluster.config(RegisterMode::Url)).await;
    running.is("registration", State::Ok).await;
    running.stop.cancel();
    // Another process takes the name over while we stop, or before; either way it is not ours.
    tokio::time::timeout(Duration::from_secs(30), running.task).await.unwrap().unwrap();
    let other = run(cluster.config(RegisterMode::Url)).await;
    other.is("registration", State::Ok).await;
    let third = run(cluster.config(RegisterMode::Url)).await;
    third.is("registration", State::Ok).await;
    eventually("the third one is registered", async || {
        let url =
            cluster.configuration(MUTATING).await.unwrap()["webhooks"][0]["clientConfig"]["url"].clone();
        url == format!("https://{}/mutate", third.address)
    })
    .await;
    other.end().await;
    let url = cluster.configuration(MUTATING).await.unwrap()["webhooks"][0]["clientConfig"]["url"].clone();
    assert_eq!(url, format!("https://{}/mutate", third.address));
    third.end().await;
    cluster.sandbox.shutdown().await;
}

/// Replicas behind a Service share one CA and one leaf; the Secret outlives them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_share_certificates_through_a_secret() {
    let cluster = Cluster::start().await;
    let first = run(cluster.config(RegisterMode::Service)).await;
    let second = run(cluster.config(RegisterMode::Service)).await;
    for running in [&first, &second] {
        running.is("certificate store", State::Ok).await;
        running.is("registration", State::Ok).await;
    }
    let object = cluster.configuration(MUTATING).await.unwrap();
    let client_config = &object["webhooks"][0]["clientConfig"];
    assert_eq!(client_config["service"]["namespace"], "default");
    let bundle = client_config["caBundle"].as_str().unwrap();
    for running in [&first, &second] {
        ask(running.address, bundle, &vm(&json!({}))).await.unwrap();
    }
    first.end().await;
    second.end().await;
    // A Service stays registered: other replicas, or the next start, serve it under the same CA.
    assert!(cluster.configuration(MUTATING).await.is_some());
    let third = run(cluster.config(RegisterMode::Service)).await;
    third.is("certificate store", State::Ok).await;
    ask(third.address, bundle, &vm(&json!({}))).await.unwrap();
    third.end().await;
    cluster.sandbox.shutdown().await;
}

/// cert-manager's injector owns the CA of objects that carry its annotation.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_injected_ca_bundle_is_left_alone() {
    let cluster = Cluster::start().await;
    let injected = json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": MUTATING,
        "metadata": {"name": "00-virt-steward", "annotations": {"cert-manager.io/inject-ca-from": "default/x"}},
        "webhooks": [{"name": "mutate.vm-feature-manager.io", "admissionReviewVersions": ["v1"],
            "sideEffects": "None", "clientConfig": {"caBundle": "Y2VydC1tYW5hZ2Vy",
                "service": {"namespace": "default", "name": "x"}}}]});
    create(&cluster.configurations(MUTATING), injected).await;
    let running = run(cluster.config(RegisterMode::Service)).await;
    running.is("registration", State::Ok).await;
    let object = cluster.configuration(MUTATING).await.unwrap();
    assert_eq!(object["webhooks"][0]["clientConfig"]["caBundle"], "Y2VydC1tYW5hZ2Vy");
    assert_eq!(object["webhooks"][0]["clientConfig"]["service"]["name"], "virt-steward-webhook");
    running.end().await;
    cluster.sandbox.shutdown().await;
}

/// Harvester's add-on installed after we started: its kinds are found without a restart.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kinds_that_appear_later_are_found() {
    let cluster = Cluster::start().await;
    cluster.node("a", "svm").await;
    let running = run(cluster.config(RegisterMode::Url)).await;
    for part in ["nodes", "registration", "pcidevices", "pcideviceclaims"] {
        running.is(part, State::Ok).await;
    }
    let object = cluster.configuration(MUTATING).await.unwrap();
    let bundle = object["webhooks"][0]["clientConfig"]["caBundle"].as_str().unwrap();
    let wish = vm(&json!({"vm-feature-manager.io/pci-passthrough": "0000:01:00.0"}));
    assert_eq!(ask(running.address, bundle, &wish).await.unwrap()["allowed"], false);

    let group = "devices.harvesterhci.io";
    for (kind, plural) in [("PCIDevice", "pcidevices"), ("PCIDeviceClaim", "pcideviceclaims")] {
        let schema =
            json!({"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}});
        let definition = json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
            "metadata": {"name": format!("{plural}.{group}")},
            "spec": {"group": group, "scope": "Cluster",
                "names": {"kind": kind, "plural": plural, "singular": kind.to_lowercase(), "listKind": format!("{kind}List")},
                "versions": [{"name": "v1beta1", "served": true, "storage": true, "schema": schema}]}});
        let definitions = cluster.kind(
            "apiextensions.k8s.io",
            "v1",
            "CustomResourceDefinition",
            "customresourcedefinitions",
        );
        create(&definitions, definition).await;
        let status = json!({"address": "0000:01:00.0", "nodeName": "a", "resourceName": "intel.com/NIC",
            "passthroughEnabled": true});
        let object = json!({"apiVersion": format!("{group}/v1beta1"), "kind": kind,
            "metadata": {"name": "a-000001000"}, "status": status});
        let api = cluster.kind(group, "v1beta1", kind, plural);
        eventually("the kind is served", async || {
            api.create(&PostParams::default(), &serde_json::from_value(object.clone()).unwrap()).await.is_ok()
        })
        .await;
    }
    let kubevirt = json!({"apiVersion": "kubevirt.io/v1", "kind": "KubeVirt",
        "metadata": {"name": "kubevirt", "namespace": "kubevirt"},
        "spec": {"configuration": {"developerConfiguration": {"featureGates": ["HostDevices"]},
            "permittedHostDevices": {"pciHostDevices": [{"pciVendorSelector": "8086:1533",
                "resourceName": "intel.com/NIC", "externalResourceProvider": true}]}}}});
    let gvk = GroupVersionKind::gvk("kubevirt.io", "v1", "KubeVirt");
    let kubevirts = Api::namespaced_with(
        cluster.client.clone(),
        "kubevirt",
        &ApiResource::from_gvk_with_plural(&gvk, "kubevirts"),
    );
    create(&kubevirts, kubevirt).await;
    eventually("the device is resolved", async || {
        let answer = ask(running.address, bundle, &wish).await.unwrap();
        answer["patch"].to_string().contains("intel.com/NIC")
    })
    .await;
    running.end().await;
    cluster.sandbox.shutdown().await;
}

/// Starts and serves with the API away, says so, and catches up when it comes back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn serves_untouched_vms_while_the_api_is_away() {
    let cluster = Cluster::start().await;
    let config = cluster.config(RegisterMode::None);
    cluster.sandbox.shutdown().await;
    let running = run(config).await;
    eventually("nodes are degraded", async || {
        matches!(running.readiness.report().parts.get("nodes"), Some(State::Degraded(_)))
    })
    .await;
    eventually("ready all the same", async || running.readiness.report().ready).await;
    running.end().await;
}
