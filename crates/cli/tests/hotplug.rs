//! The guard and the gate against a real API over HTTPS: the sandbox calls the operator's webhooks,
//! the operator reads the sandbox. Objects are written as KubeVirt would write them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // helpers of tests fail as tests do

use std::time::Duration;

use http::{Method, StatusCode};
use http_body_util::BodyExt;
use kube::config::{KubeConfigOptions, Kubeconfig};
use operator::Operator;
use operator::config::{Config, Hotplug, RegisterMode};
use operator::readiness::State;
use sandbox::{Options, Sandbox};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

const PODS: &str = "/api/v1/namespaces/default/pods";
const VMIS: &str = "/apis/kubevirt.io/v1/namespaces/default/virtualmachineinstances";

struct Cluster {
    sandbox: Sandbox,
    client: kube::Client,
    stops: Vec<(CancellationToken, tokio::task::JoinHandle<()>)>,
    config: Config,
    _dir: tempfile::TempDir,
}

impl Cluster {
    async fn start(hotplug: Hotplug) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let kubeconfig = dir.path().join("kubeconfig");
        let options = Options { kubeconfig_out: Some(kubeconfig.clone()), nodes: 0, ..Options::default() };
        let sandbox = Sandbox::start(options).await.unwrap();
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let file = Kubeconfig::read_from(&kubeconfig).unwrap();
        let options = KubeConfigOptions::default();
        let mut found = kube::Config::from_custom_kubeconfig(file, &options).await.unwrap();
        // 429 is an answer that is looked for here
        found.default_retry = false;
        let client = kube::Client::try_from(found).unwrap();
        let mut config = Config::default();
        config.kubernetes.kubeconfig = Some(kubeconfig);
        config.server.port = 0;
        config.server.bind_address = Some([127, 0, 0, 1].into());
        config.server.drain_seconds = 0;
        config.telemetry.metrics_bind_address = "127.0.0.1:0".into();
        config.register.mode = RegisterMode::Url;
        config.hotplug = hotplug;
        let mut cluster = Self { sandbox, client, stops: Vec::new(), config, _dir: dir };
        cluster.operator().await;
        cluster
    }

    /// Starts an operator, and waits until the API server calls it.
    async fn operator(&mut self) -> std::net::SocketAddr {
        let operator = Operator::start(self.config.clone()).await.unwrap();
        let (address, readiness, stop) = (operator.address(), operator.readiness(), CancellationToken::new());
        let metrics = operator.metrics_address().unwrap();
        let serving = tokio::spawn({
            let stop = stop.clone();
            async move {
                operator.serve(stop).await;
            }
        });
        self.stops.push((stop, serving));
        for _ in 0..1200 {
            if readiness.report().parts.get("registration") == Some(&State::Ok) {
                let _ = address;
                return metrics;
            }
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
        panic!("not registered: {:?}", readiness.report());
    }

    async fn send(&self, method: Method, path: &str, kind: &str, body: &Value) -> (StatusCode, Value) {
        let request = http::Request::builder()
            .method(method)
            .uri(path)
            .header("content-type", kind)
            .body(kube::client::Body::from(body.to_string().into_bytes()))
            .unwrap();
        let response = self.client.send(request).await.unwrap();
        let status = response.status();
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        (status, serde_json::from_slice(&bytes).unwrap_or_default())
    }

    async fn create(&self, collection: &str, object: &Value) -> Value {
        let (status, answer) = self.send(Method::POST, collection, "application/json", object).await;
        assert!(status.is_success(), "{answer}");
        answer
    }

    async fn patch(&self, path: &str, patch: &Value) -> (StatusCode, Value) {
        self.send(Method::PATCH, path, "application/merge-patch+json", patch).await
    }

    async fn delete(&self, path: &str) -> (StatusCode, Value) {
        let options = json!({"kind": "DeleteOptions", "apiVersion": "v1", "gracePeriodSeconds": 0});
        self.send(Method::DELETE, path, "application/json", &options).await
    }

    async fn evict(&self, name: &str) -> (StatusCode, Value) {
        let eviction = json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name, "namespace": "default"}});
        self.send(Method::POST, &format!("{PODS}/{name}/eviction"), "application/json", &eviction).await
    }

    /// A node, a VMI `vm` with volume `a` in its guest, its launcher, and attachment pods.
    async fn populate(&self, attachment_pods: &[(&str, &[&str])]) {
        let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1"}});
        self.create("/api/v1/nodes", &node).await;
        let ready = json!({"status": {"conditions": [{"type": "Ready", "status": "True"}]}});
        self.patch("/api/v1/nodes/n1/status", &ready).await;
        let vmi = self
            .create(
                VMIS,
                &json!({
                    "apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstance", "metadata": {"name": "vm"},
                    "spec": {"domain": {"devices": {}}, "volumes": [volume("a")]},
                }),
            )
            .await;
        let launcher = self
            .create(
                PODS,
                &json!({
                    "apiVersion": "v1", "kind": "Pod",
                    "metadata": {
                        "name": "virt-launcher-vm",
                        "labels": {"kubevirt.io": "virt-launcher", "kubevirt.io/created-by": vmi["metadata"]["uid"]},
                        "ownerReferences": [{"apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstance",
                            "name": "vm", "uid": vmi["metadata"]["uid"], "controller": true}],
                    },
                    "spec": {"nodeName": "n1", "containers": [{"name": "compute", "image": "x"}]},
                }),
            )
            .await;
        self.running("virt-launcher-vm", "compute", true).await;
        let mut first = String::new();
        for (name, volumes) in attachment_pods {
            let pod = self.create(PODS, &attachment_pod(name, volumes, &launcher)).await;
            if first.is_empty() {
                pod["metadata"]["uid"].as_str().unwrap().clone_into(&mut first);
            }
            self.running(name, "hotplug-disk", true).await;
        }
        let status = json!({"status": {"phase": "Running", "nodeName": "n1", "volumeStatus": [
            {"name": "a", "phase": "Ready", "target": "sda", "hotplugVolume": {"attachPodUID": first}}]}});
        let (code, answer) = self.patch(&format!("{VMIS}/vm/status"), &status).await;
        if code.is_success() {
            assert_eq!(answer["status"]["phase"], "Running");
        } else {
            // a kind without a status subresource
            let (code, answer) = self.patch(&format!("{VMIS}/vm"), &status).await;
            assert!(code.is_success(), "{answer}");
        }
    }

    async fn running(&self, pod: &str, container: &str, ready: bool) {
        let status = json!({"status": {"phase": "Running", "containerStatuses": [
            {"name": container, "ready": ready, "restartCount": 0, "image": "x", "imageID": "x"}]}});
        let (code, answer) = self.patch(&format!("{PODS}/{pod}/status"), &status).await;
        assert!(code.is_success(), "{answer}");
    }

    async fn end(self) {
        for (stop, serving) in self.stops {
            stop.cancel();
            tokio::time::timeout(Duration::from_secs(30), serving).await.unwrap().unwrap();
        }
        self.sandbox.shutdown().await;
    }
}

fn volume(name: &str) -> Value {
    json!({"name": name, "persistentVolumeClaim": {"claimName": format!("pvc-{name}"), "hotpluggable": true}})
}

fn attachment_pod(name: &str, volumes: &[&str], launcher: &Value) -> Value {
    let listed: Vec<Value> = volumes
        .iter()
        .map(|name| json!({"name": name, "persistentVolumeClaim": {"claimName": format!("pvc-{name}")}}))
        .collect();
    let devices: Vec<Value> =
        volumes.iter().map(|name| json!({"name": name, "devicePath": format!("/path/{name}")})).collect();
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": name, "labels": {"kubevirt.io": "hotplug-disk"},
            "ownerReferences": [{"apiVersion": "v1", "kind": "Pod", "name": "virt-launcher-vm",
                "uid": launcher["metadata"]["uid"], "controller": true}],
        },
        "spec": {
            "nodeName": "n1", "terminationGracePeriodSeconds": 0, "volumes": listed,
            "containers": [{"name": "hotplug-disk", "image": "x", "volumeDevices": devices}],
        },
    })
}

const GUARD: Hotplug = Hotplug { guard: true, gate: true, heal: false };

fn message(answer: &Value) -> &str {
    answer["message"].as_str().unwrap_or_default()
}

#[tokio::test]
async fn a_pod_that_a_guest_needs_stays_until_another_one_is_ready() {
    let cluster = Cluster::start(GUARD).await;
    cluster.populate(&[("hp-volume-old", &["a"]), ("hp-volume-new", &["a", "b"])]).await;
    let old = format!("{PODS}/hp-volume-old");
    cluster.running("hp-volume-new", "hotplug-disk", false).await;
    let (code, answer) = cluster.delete(&old).await;
    assert_eq!(code, StatusCode::FORBIDDEN, "{answer}");
    assert!(message(&answer).contains("pod hp-volume-new runs and is not ready"), "{answer}");
    assert!(message(&answer).contains("Denied since "), "{answer}");
    assert_eq!(answer.pointer("/details/retryAfterSeconds"), None);
    let (code, answer) = cluster.evict("hp-volume-old").await;
    assert_eq!(code, StatusCode::TOO_MANY_REQUESTS, "{answer}");
    assert!(message(&answer).contains("volume \"a\""), "{answer}");
    let (_, events) = cluster
        .send(Method::GET, "/api/v1/namespaces/default/events", "application/json", &Value::Null)
        .await;
    let told =
        events["items"].as_array().unwrap().iter().any(|event| event["reason"] == "HotplugGuardDenied");
    assert!(told, "{events}");
    cluster.running("hp-volume-new", "hotplug-disk", true).await;
    let (code, answer) = cluster.delete(&old).await;
    assert_eq!(code, StatusCode::OK, "{answer}");
    // now it is the last one
    let (code, _) = cluster.delete(&format!("{PODS}/hp-volume-new")).await;
    assert_eq!(code, StatusCode::FORBIDDEN);
    cluster.end().await;
}

/// Two replicas are asked at the same time about two pods that cover each other: one may go.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_replicas_never_let_both_pods_go() {
    let mut cluster = Cluster::start(GUARD).await;
    cluster.operator().await;
    cluster.populate(&[("hp-volume-x", &["a"]), ("hp-volume-y", &["a"])]).await;
    let dry = |name: &str| format!("{PODS}/{name}");
    let (x, y) = (dry("hp-volume-x"), dry("hp-volume-y"));
    let ((one, _), (other, _)) = tokio::join!(cluster.delete(&x), cluster.delete(&y));
    let allowed = [one, other].iter().filter(|code| code.is_success()).count();
    assert_eq!(allowed, 1, "{one} {other}");
    cluster.end().await;
}

#[tokio::test]
async fn break_glass_and_the_end_of_a_vm_pass() {
    let cluster = Cluster::start(GUARD).await;
    cluster.populate(&[("hp-volume-x", &["a"])]).await;
    let pod = format!("{PODS}/hp-volume-x");
    assert_eq!(cluster.delete(&pod).await.0, StatusCode::FORBIDDEN);
    // a dry run is judged as well, and leaves no trace
    let dry =
        cluster.send(Method::DELETE, &format!("{pod}?dryRun=All"), "application/json", &json!({})).await;
    assert_eq!(dry.0, StatusCode::FORBIDDEN, "{}", dry.1);
    let glass = json!({"metadata": {"annotations": {"vm-feature-manager.io/hotplug-break-glass": "true"}}});
    cluster.patch(&pod, &glass).await;
    assert_eq!(cluster.delete(&pod).await.0, StatusCode::OK);
    cluster.end().await;
}

#[tokio::test]
async fn volumes_of_a_vmi_change_one_set_at_a_time() {
    let cluster = Cluster::start(GUARD).await;
    cluster.populate(&[("hp-volume-x", &["a"])]).await;
    let vmi = format!("{VMIS}/vm");
    cluster.running("hp-volume-x", "hotplug-disk", false).await;
    let two = json!({"spec": {"volumes": [volume("a"), volume("b")]}});
    let (code, answer) = cluster.patch(&vmi, &two).await;
    assert_eq!(code, StatusCode::FORBIDDEN, "{answer}");
    assert!(message(&answer).contains("attachment pod hp-volume-x is not ready"), "{answer}");
    // anything else about the VMI goes on
    let (code, answer) = cluster.patch(&vmi, &json!({"metadata": {"labels": {"x": "y"}}})).await;
    assert!(code.is_success(), "{answer}");
    cluster.running("hp-volume-x", "hotplug-disk", true).await;
    let (code, answer) = cluster.patch(&vmi, &two).await;
    assert!(code.is_success(), "{answer}");
    let (code, answer) =
        cluster.patch(&vmi, &json!({"spec": {"volumes": [volume("a"), volume("b"), volume("c")]}})).await;
    assert_eq!(code, StatusCode::FORBIDDEN, "{answer}");
    cluster.end().await;
}

/// With the operator gone and its webhooks left behind, controllers still get everything away.
#[tokio::test]
async fn a_dead_guard_holds_up_no_controller() {
    let mut cluster = Cluster::start(GUARD).await;
    cluster.populate(&[("hp-volume-x", &["a"])]).await;
    let path =
        "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations/00-virt-steward-hotplug";
    let (_, mut left) = cluster.send(Method::GET, path, "application/json", &Value::Null).await;
    let (stop, serving) = cluster.stops.remove(0);
    stop.cancel();
    serving.await.unwrap();
    for field in ["resourceVersion", "uid", "creationTimestamp", "managedFields", "generation"] {
        left["metadata"].as_object_mut().unwrap().remove(field);
    }
    cluster.create(path.rsplit_once('/').unwrap().0, &left).await;
    // somebody else: nobody answers, so the request fails
    let (code, _) = cluster.delete(&format!("{PODS}/hp-volume-x")).await;
    assert!(code.is_server_error(), "{code}");
    // an ended pod is not asked about
    let failed = json!({"status": {"phase": "Failed"}});
    cluster.patch(&format!("{PODS}/hp-volume-x/status"), &failed).await;
    let (code, answer) = cluster.delete(&format!("{PODS}/hp-volume-x")).await;
    assert_eq!(code, StatusCode::OK, "{answer}");
    cluster.end().await;
}
