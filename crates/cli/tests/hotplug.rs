//! The guard and the gate against a real API over HTTPS: the sandbox calls the operator's webhooks,
//! the operator reads the sandbox. Objects are written as KubeVirt would write them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // helpers of tests fail as tests do

use std::io::Write;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http::{Method, StatusCode};
use http_body_util::BodyExt;
use kube::config::{KubeConfigOptions, Kubeconfig};
use operator::Operator;
use operator::config::{Config, Hotplug, RegisterMode};
use operator::hotplug::{GUARD as GUARD_PATH, Steward};
use operator::kubernetes::Raw;
use operator::readiness::State;
use operator::telemetry::Metrics;
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
        self.populate_as("virt-launcher-vm", attachment_pods).await;
    }

    /// The same with a launcher of this name.
    async fn populate_as(&self, launcher_name: &str, attachment_pods: &[(&str, &[&str])]) {
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
                        "name": launcher_name,
                        "labels": {"kubevirt.io": "virt-launcher", "kubevirt.io/created-by": vmi["metadata"]["uid"]},
                        "ownerReferences": [{"apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstance",
                            "name": "vm", "uid": vmi["metadata"]["uid"], "controller": true}],
                    },
                    "spec": {"nodeName": "n1", "containers": [{"name": "compute", "image": "x"}]},
                }),
            )
            .await;
        self.running(launcher_name, "compute", true).await;
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
            "ownerReferences": [{"apiVersion": "v1", "kind": "Pod", "name": launcher["metadata"]["name"],
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

/// Lines of the log, as long as the guard lives.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Lines {
    /// Those of the audit log with a text.
    fn audit(&self, text: &str) -> usize {
        let all = String::from_utf8(self.0.lock().unwrap().clone()).unwrap();
        all.lines().filter(|line| line.contains("audit") && line.contains(text)).count()
    }
}

/// A DELETE as an API server asks about it.
fn review(pod: &Value, user: &str) -> Value {
    json!({"request": {"uid": "u", "operation": "DELETE", "resource": {"group": "", "version": "v1", "resource": "pods"},
        "namespace": "default", "name": pod["metadata"]["name"], "oldObject": pod, "userInfo": {"username": user},
        "options": {"gracePeriodSeconds": 0}}})
}

const NOTHING: Hotplug = Hotplug { guard: false, gate: false, heal: false };
const LIMIT: Duration = Duration::from_mins(1);

impl Cluster {
    /// The guard without the webhook around it, with a clock of its own.
    fn steward(&self, metrics: &Arc<Metrics>) -> (Steward, Arc<AtomicI64>) {
        let now = Arc::new(AtomicI64::new(jiff::Timestamp::now().as_second()));
        let clock = Arc::clone(&now);
        let clock: operator::Clock =
            Arc::new(move || jiff::Timestamp::from_second(clock.load(Ordering::SeqCst)).unwrap());
        (Steward::new(Raw::new(self.client.clone()), clock, Arc::clone(metrics), false), now)
    }

    async fn get(&self, path: &str) -> Value {
        let (code, answer) = self.send(Method::GET, path, "application/json", &Value::Null).await;
        assert!(code.is_success(), "{answer}");
        answer
    }
}

/// Whoever breaks the glass, and for what: a pod, its VM or its namespace; a delete, an eviction or a forced launcher.
#[tokio::test]
async fn each_use_of_the_break_glass_annotation_is_in_the_audit_log() {
    let cluster = Cluster::start(NOTHING).await;
    cluster.populate(&[("hp-volume-x", &["a"])]).await;
    let metrics = Arc::new(Metrics::new("test"));
    let (steward, _) = cluster.steward(&metrics);
    let lines = Lines::default();
    let writer = lines.clone();
    let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
    let _logging = tracing::subscriber::set_default(subscriber);
    let path = format!("{PODS}/hp-volume-x");
    let glass =
        |on: Value| json!({"metadata": {"annotations": {"vm-feature-manager.io/hotplug-break-glass": on}}});
    let pod = cluster.get(&path).await;
    let denied = steward.answer(GUARD_PATH, &review(&pod, "bob"), LIMIT).await;
    assert!(!denied.is_allowed());
    assert_eq!(lines.audit(""), 0, "a denial breaks nothing");
    for (used, object) in
        [path.as_str(), &format!("{VMIS}/vm"), "/api/v1/namespaces/default"].iter().enumerate()
    {
        let (code, answer) = cluster.patch(object, &glass("true".into())).await;
        assert!(code.is_success(), "{answer}");
        let pod = cluster.get(&path).await;
        let answer = steward.answer(GUARD_PATH, &review(&pod, "alice"), LIMIT).await;
        assert_eq!((answer.is_allowed(), answer.reason), (true, "break-glass"), "{object}");
        assert_eq!(lines.audit("alice"), used + 1, "{object}");
        cluster.patch(object, &glass(Value::Null)).await;
    }
    assert_eq!(lines.audit("default/hp-volume-x"), 3);
    // An eviction, and a launcher that is forced away from under a filesystem volume.
    cluster.patch(&path, &glass("true".into())).await;
    let eviction = json!({"request": {"uid": "u", "operation": "CREATE", "subResource": "eviction", "namespace": "default",
        "resource": {"group": "", "version": "v1", "resource": "pods"}, "name": "hp-volume-x", "userInfo": {"username": "drain"},
        "object": {"metadata": {"name": "hp-volume-x"}}}});
    assert!(steward.answer(GUARD_PATH, &eviction, LIMIT).await.is_allowed());
    assert_eq!(lines.audit("drain"), 1);
    let launcher = cluster.get(&format!("{PODS}/virt-launcher-vm")).await;
    let mut mounts = cluster.get(&path).await;
    mounts["metadata"] = json!({"name": "hp-volume-fs", "labels": {"kubevirt.io": "hotplug-disk"},
        "ownerReferences": mounts["metadata"]["ownerReferences"]});
    mounts["spec"]["containers"] =
        json!([{"name": "hotplug-disk", "image": "x", "volumeMounts": [{"name": "a", "mountPath": "/a"}]}]);
    cluster.create(PODS, &mounts).await;
    let denied = steward.answer(GUARD_PATH, &review(&launcher, "bob"), LIMIT).await;
    assert!(denied.denial.is_some_and(|text| text.contains("would take filesystem volumes a from under")));
    cluster.patch(&format!("{VMIS}/vm"), &glass("true".into())).await;
    assert!(steward.answer(GUARD_PATH, &review(&launcher, "carol"), LIMIT).await.is_allowed());
    assert_eq!((lines.audit("carol"), lines.audit("bob")), (1, 0));
    let text = metrics.text().unwrap();
    assert!(text.contains("reason=\"break-glass\""), "{text}");
    cluster.end().await;
}

/// A client that counts what is asked through it; the first `together` requests wait for each other.
#[derive(Clone)]
struct Counting {
    client: kube::Client,
    asked: Arc<Mutex<Vec<String>>>,
    together: Arc<tokio::sync::Barrier>,
    free: Arc<AtomicI64>,
}

impl tower_service::Service<http::Request<kube::client::Body>> for Counting {
    type Response = http::Response<kube::client::Body>;
    type Error = kube::Error;
    type Future = futures::future::BoxFuture<'static, Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, _: &mut std::task::Context<'_>) -> std::task::Poll<Result<(), Self::Error>> {
        std::task::Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<kube::client::Body>) -> Self::Future {
        let Self { client, asked, together, free } = self.clone();
        asked.lock().unwrap().push(format!("{} {}", request.method(), request.uri()));
        Box::pin(async move {
            if free.fetch_sub(1, Ordering::SeqCst) > 0 {
                together.wait().await;
            }
            client.send(request).await
        })
    }
}

/// All that a verdict is made of is read at once, in six requests; what is kept of it is one more. Reads that waited for each
/// other would wait for ever here.
#[tokio::test]
async fn a_verdict_is_six_reads_at_once_and_one_write() {
    let cluster = Cluster::start(NOTHING).await;
    let launcher = "virt-launcher-vm-x7k2p";
    cluster.populate_as(launcher, &[("hp-volume-x", &["a"]), ("hp-volume-y", &["a"])]).await;
    let x = cluster.get(&format!("{PODS}/hp-volume-x")).await;
    let y = cluster.get(&format!("{PODS}/hp-volume-y")).await;
    let counting = Counting {
        client: cluster.client.clone(),
        asked: Arc::default(),
        together: Arc::new(tokio::sync::Barrier::new(6)),
        free: Arc::new(AtomicI64::new(0)),
    };
    let metrics = Arc::new(Metrics::new("test"));
    let raw = Raw::new(kube::Client::new(counting.clone(), "default"));
    let steward = Steward::new(raw, Arc::new(jiff::Timestamp::now), metrics, false);
    // The classes of storage are read every half a minute, not for each verdict.
    let mut dry = review(&x, "bob");
    dry["request"]["dryRun"] = true.into();
    assert!(steward.answer(GUARD_PATH, &dry, LIMIT).await.is_allowed());
    for (pod, allowed, more) in
        [(&x, true, &["POST leases"][..]), (&y, false, &["PATCH leases", "POST events"]), (&y, false, &[])]
    {
        counting.asked.lock().unwrap().clear();
        counting.free.store(6, Ordering::SeqCst);
        let answer = steward.answer(GUARD_PATH, &review(pod, "bob"), LIMIT).await;
        assert_eq!(answer.is_allowed(), allowed, "{:?}", answer.denial);
        let asked = counting.asked.lock().unwrap().clone();
        let (mut reads, writes): (Vec<_>, Vec<_>) = asked.iter().partition(|one| one.starts_with("GET"));
        reads.sort();
        let uid = x["metadata"]["ownerReferences"][0]["uid"].as_str().unwrap();
        let expected = [
            "/api/v1/namespaces/default".into(),
            format!("/api/v1/namespaces/default/pods/{launcher}"),
            "/api/v1/namespaces/default/pods?labelSelector=kubevirt.io%3Dhotplug-disk&fieldSelector=spec.nodeName%3Dn1"
                .into(),
            "/api/v1/nodes/n1".into(),
            format!("/apis/coordination.k8s.io/v1/namespaces/default/leases/hotplug-{uid}"),
            format!("{VMIS}/vm"),
        ];
        assert_eq!(reads, expected.map(|path: String| format!("GET {path}")).iter().collect::<Vec<_>>());
        assert_eq!(writes.len(), more.len(), "{writes:#?}");
        for expected in more {
            let (verb, kind) = expected.split_once(' ').unwrap();
            let found = writes.iter().any(|write| write.starts_with(verb) && write.contains(kind));
            assert!(found, "{expected}: {writes:#?}");
        }
    }
    cluster.end().await;
}

/// A delete that was allowed and never came counts for 90 s. What was denied meanwhile may go then, and nothing in the cluster
/// changes: virt-controller is told by a change of the VMI. The age of the denial is a metric until it has ended.
#[tokio::test]
async fn virt_controller_is_nudged_when_a_denial_ends_by_time_alone() {
    let cluster = Cluster::start(NOTHING).await;
    cluster.populate(&[("hp-volume-x", &["a"]), ("hp-volume-y", &["a"])]).await;
    let metrics = Arc::new(Metrics::new("test"));
    let (steward, now) = cluster.steward(&metrics);
    let (x, y) = (
        cluster.get(&format!("{PODS}/hp-volume-x")).await,
        cluster.get(&format!("{PODS}/hp-volume-y")).await,
    );
    assert!(steward.answer(GUARD_PATH, &review(&y, "bob"), LIMIT).await.is_allowed());
    let denied = steward.answer(GUARD_PATH, &review(&x, "virt-controller"), LIMIT).await;
    assert!(denied.denial.is_some_and(|text| text.contains("pod hp-volume-y is being deleted as well")));
    let nudged = |vmi: &Value| vmi["metadata"]["annotations"]["vm-feature-manager.io/hotplug-nudge"].clone();
    let age = || {
        let text = metrics.text().unwrap();
        text.lines().find(|line| line.starts_with("hotplug_oldest_denial_seconds")).unwrap().to_owned()
    };
    now.fetch_add(60, Ordering::SeqCst);
    steward.look_again().await;
    assert_eq!(nudged(&cluster.get(&format!("{VMIS}/vm")).await), Value::Null, "it is denied still");
    assert!(age().ends_with(" 60"), "{}", age());
    now.fetch_add(31, Ordering::SeqCst);
    steward.look_again().await;
    assert!(age().ends_with(" 91"), "{}", age());
    let at = hotplug::view::rfc3339(now.load(Ordering::SeqCst));
    let vmi = cluster.get(&format!("{VMIS}/vm")).await;
    assert_eq!(nudged(&vmi), at.as_str());
    // Once: the denial is forgotten, and so is its age.
    now.fetch_add(10, Ordering::SeqCst);
    steward.look_again().await;
    assert!(age().ends_with(" 0"), "{}", age());
    assert_eq!(
        cluster.get(&format!("{VMIS}/vm")).await["metadata"]["resourceVersion"],
        vmi["metadata"]["resourceVersion"]
    );
    assert!(steward.answer(GUARD_PATH, &review(&x, "virt-controller"), LIMIT).await.is_allowed());
    cluster.end().await;
}
