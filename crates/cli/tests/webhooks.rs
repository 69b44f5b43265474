//! The sandbox calls the operator, and both know of each other only what a kubeconfig and a
//! webhook configuration say: HTTPS in both directions.

#![allow(clippy::unwrap_used, reason = "what fails here fails the test")]

mod service;

use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::{Method, StatusCode};
use http_body_util::BodyExt;
use kube::client::Body;
use kube::config::{KubeConfigOptions, Kubeconfig};
use operator::config::RegisterMode;
use operator::readiness::State;
use operator::{Config, Operator};
use sandbox::{Options, Sandbox};
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

const VMS: &str = "/apis/kubevirt.io/v1/namespaces/default/virtualmachines";
const HOOKS: &str = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations";
const NESTED: &str = "vm-feature-manager.io/nested-virt";

/// A sandbox, and a client of it.
struct World {
    sandbox: Sandbox,
    client: kube::Client,
    folder: tempfile::TempDir,
}

impl World {
    async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let kubeconfig_out = Some(folder.path().join("kubeconfig"));
        let sandbox =
            Sandbox::start(Options { nodes: 0, kubeconfig_out, ..Options::default() }).await.unwrap();
        let kubeconfig = Kubeconfig::from_yaml(&sandbox.kubeconfig()).unwrap();
        let options = KubeConfigOptions::default();
        let config = kube::Config::from_custom_kubeconfig(kubeconfig, &options).await.unwrap();
        let world = Self { sandbox, client: kube::Client::try_from(config).unwrap(), folder };
        let labels = json!({"kubernetes.io/arch": "amd64", "cpu-feature.node.kubevirt.io/svm": "true"});
        let node =
            json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "amd-1", "labels": labels}});
        assert_eq!(world.create("/api/v1/nodes", &node).await.0, StatusCode::CREATED);
        world
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        content_type: &str,
        body: &Value,
    ) -> (StatusCode, Value) {
        let request = http::Request::builder().method(method).uri(path).header("content-type", content_type);
        let request = request.body(Body::from(body.to_string().into_bytes())).unwrap();
        let response = self.client.send(request).await.unwrap();
        let status = response.status();
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        (status, serde_json::from_slice(&bytes).unwrap())
    }

    async fn create(&self, path: &str, object: &Value) -> (StatusCode, Value) {
        self.send(Method::POST, path, "application/json", object).await
    }

    async fn merge(&self, path: &str, patch: &Value) -> (StatusCode, Value) {
        self.send(Method::PATCH, path, "application/merge-patch+json", patch).await
    }

    async fn get(&self, path: &str) -> (StatusCode, Value) {
        self.send(Method::GET, path, "application/json", &Value::Null).await
    }

    /// Starts an operator that knows the kubeconfig, and waits until the sandbox calls it.
    async fn operator(&self) -> (CancellationToken, JoinHandle<()>) {
        let mut config = Config::default();
        config.kubernetes.kubeconfig = Some(self.folder.path().join("kubeconfig"));
        config.register.mode = RegisterMode::Url;
        config.server.port = 0;
        config.telemetry.metrics_bind_address = "0".into();
        let operator = Operator::start(config).await.unwrap();
        let readiness = operator.readiness();
        let stop = CancellationToken::new();
        let serving = tokio::spawn(operator.serve(stop.clone()));
        eventually("the operator is registered and ready", async || {
            let report = readiness.report();
            report.ready && report.parts.get("registration") == Some(&State::Ok)
        })
        .await;
        (stop, serving)
    }

    /// Registers a webhook for the creation of VMs.
    async fn register(&self, name: &str, client: Value, policy: &str) {
        let webhook = json!({
            "name": format!("{name}.example.com"), "clientConfig": client, "failurePolicy": policy,
            "sideEffects": "None", "admissionReviewVersions": ["v1"], "timeoutSeconds": 5,
            "rules": [{"apiGroups": ["kubevirt.io"], "apiVersions": ["v1"], "resources": ["virtualmachines"],
                "operations": ["CREATE"]}],
        });
        let configuration = json!({"apiVersion": "admissionregistration.k8s.io/v1",
            "kind": "MutatingWebhookConfiguration", "metadata": {"name": name}, "webhooks": [webhook]});
        assert_eq!(self.create(HOOKS, &configuration).await.0, StatusCode::CREATED);
    }
}

/// Waits until a condition holds; fails after a bound that only a broken program reaches.
async fn eventually(what: &str, condition: impl AsyncFn() -> bool) {
    let end = Instant::now() + Duration::from_secs(30);
    while !condition().await {
        assert!(Instant::now() < end, "it did not come about that {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn vm(name: &str, annotations: &Value) -> Value {
    json!({"apiVersion": "kubevirt.io/v1", "kind": "VirtualMachine",
        "metadata": {"name": name, "annotations": annotations},
        "spec": {"runStrategy": "Halted", "template": {"spec": {"domain": {
            "devices": {}, "memory": {"guest": "1Gi"}}}}}})
}

/// The names of the CPU features of a VM.
fn features(vm: &Value) -> Vec<&str> {
    let features = vm["spec"]["template"]["spec"]["domain"]["cpu"]["features"].as_array();
    features.into_iter().flatten().filter_map(|feature| feature["name"].as_str()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn creations_and_updates_go_through_the_operator() {
    let world = World::start().await;
    let (stop, serving) = world.operator().await;

    let (status, created) = world.create(VMS, &vm("a", &json!({NESTED: "enabled"}))).await;
    assert_eq!(status, StatusCode::CREATED, "{created}");
    assert_eq!(features(&created), ["svm"], "{created}");
    let (_, stored) = world.get(&format!("{VMS}/a")).await;
    assert_eq!(features(&stored), features(&created));

    let (status, updated) =
        world.merge(&format!("{VMS}/a"), &json!({"metadata": {"annotations": {NESTED: null}}})).await;
    assert_eq!(status, StatusCode::OK, "{updated}");
    let domain = &updated["spec"]["template"]["spec"]["domain"];
    assert_eq!((domain.get("cpu"), &domain["memory"]), (None, &json!({"guest": "1Gi"})), "{updated}");
    let annotations = updated["metadata"]["annotations"].to_string();
    assert!(!annotations.contains("vm-feature-manager.io"), "{annotations}");

    let (status, denial) = world.create(VMS, &vm("b", &json!({NESTED: "perhaps"}))).await;
    assert!(status.is_client_error(), "{status} {denial}");
    let message = denial["message"].as_str().unwrap();
    assert!(message.starts_with("admission webhook ") && message.contains("denied the request"), "{message}");
    assert_eq!(world.get(&format!("{VMS}/b")).await.0, StatusCode::NOT_FOUND);

    // an operator that ends takes its registration with it: VMs can be written without it
    stop.cancel();
    serving.await.unwrap();
    let (status, created) = world.create(VMS, &vm("c", &json!({NESTED: "enabled"}))).await;
    assert_eq!((status, features(&created)), (StatusCode::CREATED, vec![]));
    world.sandbox.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dry_run_shows_the_change_and_keeps_nothing() {
    let world = World::start().await;
    let (stop, serving) = world.operator().await;
    let (status, shown) =
        world.create(&format!("{VMS}?dryRun=All"), &vm("a", &json!({NESTED: "true"}))).await;
    assert_eq!((status, features(&shown).len()), (StatusCode::CREATED, 1), "{shown}");
    assert_eq!(world.get(&format!("{VMS}/a")).await.0, StatusCode::NOT_FOUND);
    stop.cancel();
    serving.await.unwrap();
    world.sandbox.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_operator_is_asked_again_when_a_later_webhook_wishes_for_a_feature() {
    let world = World::start().await;
    let (stop, serving) = world.operator().await;
    let wishing = service::start(|request| {
        assert_eq!(request["operation"], "CREATE");
        let wish = json!([{"op": "add", "path": "/metadata/annotations", "value": {NESTED: "enabled"}}]);
        json!({"allowed": true, "patchType": "JSONPatch", "patch": STANDARD.encode(wish.to_string())})
    })
    .await;
    // sorts behind the operator's own configuration, so the operator has been asked before
    world.register("zz-wishes", wishing, "Fail").await;
    // API servers ask again only those whom they have asked before: the VM has to concern us
    eventually("a VM gets the feature that the later webhook wishes for", async || {
        let path = format!("{VMS}?dryRun=All");
        let (status, created) = world.create(&path, &vm("a", &json!({NESTED: "disabled"}))).await;
        assert_eq!(status, StatusCode::CREATED, "{created}");
        features(&created).len() == 1
    })
    .await;
    stop.cancel();
    serving.await.unwrap();
    world.sandbox.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_failure_policy_decides_when_nobody_answers() {
    let world = World::start().await;
    let mut nobody = service::start(|_| json!({"allowed": true})).await;
    // port 1 answers nobody
    nobody["url"] = "https://127.0.0.1:1/".into();
    world.register("nobody", nobody.clone(), "Ignore").await;
    let (status, _) = world.create(VMS, &vm("a", &json!({}))).await;
    assert_eq!(status, StatusCode::CREATED);

    let strict = json!({"webhooks": [{"name": "nobody.example.com", "clientConfig": nobody,
        "failurePolicy": "Fail", "sideEffects": "None", "admissionReviewVersions": ["v1"],
        "rules": [{"apiGroups": ["kubevirt.io"], "apiVersions": ["v1"], "resources": ["virtualmachines"],
            "operations": ["CREATE"]}]}]});
    assert_eq!(world.merge(&format!("{HOOKS}/nobody"), &strict).await.0, StatusCode::OK);
    eventually("the creation of a VM fails", async || {
        let (status, refusal) = world.create(&format!("{VMS}?dryRun=All"), &vm("b", &json!({}))).await;
        let message = refusal["message"].as_str().unwrap_or_default();
        status == StatusCode::INTERNAL_SERVER_ERROR && message.contains("failed calling webhook")
    })
    .await;
    world.sandbox.shutdown().await;
}
