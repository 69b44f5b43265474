//! Decisions as an API server sees them, and the reads that they need.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // helpers of tests fail as tests do

mod common;

use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use common::{Running, Start, review_of, vm};
use features::{ClusterFacts, ErrorMode, Node, Source};
use http_body_util::Full;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use operator::facts::Reader;
use serde_json::{Value, json};
use tokio::net::TcpListener;

/// A cluster of one node that offers `svm`, with every feature gate open.
fn facts() -> ClusterFacts {
    let labels = [
        ("kubernetes.io/arch", "amd64"),
        ("kubevirt.io/schedulable", "true"),
        ("cpu-feature.node.kubevirt.io/svm", "true"),
    ];
    let labels = labels.into_iter().map(|(k, v)| (k.to_owned(), v.to_owned())).collect();
    ClusterFacts {
        nodes: Some(vec![Node { name: "a".into(), labels, ..Node::default() }]),
        kubevirt: Some(json!({"spec": {"configuration": {"developerConfiguration":
            {"featureGates": ["HostDevices", "Sidecar"]}}}})),
        ..ClusterFacts::default()
    }
}

/// The object after the patch in `answer`.
fn patched(object: &Value, answer: &Value) -> Value {
    let patch = STANDARD.decode(answer["response"]["patch"].as_str().expect("a patch")).unwrap();
    let patch: json_patch::Patch = serde_json::from_slice(&patch).unwrap();
    let mut object = object.clone();
    json_patch::patch(&mut object, &patch).expect("the patch applies");
    object
}

#[tokio::test]
async fn a_wish_becomes_a_patch_that_applies() {
    let server = Start { facts: facts(), ..Start::default() }.run().await;
    let object = vm(&json!({"vm-feature-manager.io/nested-virt": "enabled"}));
    let answer = server.review("/mutate", &review_of(&object)).await;
    assert_eq!(answer["response"]["patchType"], "JSONPatch");
    let after = patched(&object, &answer);
    let features = &after["spec"]["template"]["spec"]["domain"]["cpu"]["features"];
    assert_eq!(features, &json!([{"name": "svm", "policy": "require"}]));
    let text = server.metrics.text().unwrap();
    let line = "webhook_requests_total{feature=\"nested-virt\",result=\"applied\"} 1";
    assert!(text.contains(line), "{text}");
    // A second time, as with reinvocation: nothing to add.
    let again = server.review("/mutate", &review_of(&after)).await;
    assert!(again["response"].get("patch").is_none(), "{again}");
}

/// Defect 2: a VM without annotations could not be patched, and its request failed with 500.
#[tokio::test]
async fn defect_2_a_vm_without_annotations_is_patched() {
    let mut start = Start { facts: facts(), ..Start::default() };
    start.config.features.source = Source::Labels;
    let server = start.run().await;
    let mut object = vm(&json!(null));
    object["metadata"].as_object_mut().unwrap().remove("annotations");
    object["metadata"]["labels"] = json!({"vm-feature-manager.io/nested-virt": "enabled"});
    let answer = server.review("/mutate", &review_of(&object)).await;
    let after = patched(&object, &answer);
    assert!(after["metadata"]["annotations"]["vm-feature-manager.io/nested-virt-applied"].is_string());
}

/// An API server makes a denial without a status HTTP 400.
#[tokio::test]
async fn a_denial_carries_code_reason_and_message() {
    let server = Start { facts: facts(), ..Start::default() }.run().await;
    let object = vm(&json!({"vm-feature-manager.io/nested-virt": "perhaps"}));
    let answer = server.review("/mutate", &review_of(&object)).await;
    let response = &answer["response"];
    assert_eq!(response["allowed"], false);
    assert_eq!(
        (&response["status"]["code"], &response["status"]["reason"]),
        (&json!(403), &json!("Forbidden"))
    );
    assert!(response["status"]["message"].as_str().unwrap().contains("perhaps"), "{response}");
    assert!(response.get("patch").is_none());
    let text = server.metrics.text().unwrap();
    assert!(text.contains("feature_errors_total{feature=\"nested-virt\",error_mode=\"reject\"} 1"), "{text}");
}

#[tokio::test]
async fn allow_and_log_warns_and_patches_the_rest() {
    let mut start = Start { facts: facts(), ..Start::default() };
    start.config.features.error_handling = ErrorMode::AllowAndLog;
    let server = start.run().await;
    let object = vm(&json!({"vm-feature-manager.io/nested-virt": "enabled",
        "vm-feature-manager.io/gpu-device-plugin": "not a resource name"}));
    let answer = server.review("/mutate", &review_of(&object)).await;
    assert_eq!(answer["response"]["allowed"], true);
    assert!(!answer["response"]["warnings"].as_array().unwrap().is_empty());
    let after = patched(&object, &answer);
    assert!(after["metadata"]["annotations"]["vm-feature-manager.io/gpu-device-plugin-error"].is_string());
    assert!(after["spec"]["template"]["spec"]["domain"]["cpu"]["features"].is_array());
}

/// Defect 24: VMs under deletion were held up by a feature that fails.
#[tokio::test]
async fn defect_24_a_vm_under_deletion_passes() {
    let server = Start { facts: facts(), ..Start::default() }.run().await;
    let mut object = vm(&json!({"vm-feature-manager.io/nested-virt": "perhaps"}));
    object["metadata"]["deletionTimestamp"] = json!("2026-06-01T00:00:00Z");
    let mut review = review_of(&object);
    review["request"]["operation"] = json!("UPDATE");
    review["request"]["oldObject"] = object;
    assert_eq!(server.review("/mutate", &review).await["response"]["allowed"], true);
}

/// An API server for reads alone: `answer` says what each path gives; `None` never answers.
async fn api(answer: fn(&str) -> Option<(u16, Value)>) -> kube::Client {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let uri: http::Uri = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let service = service_fn(move |request: http::Request<hyper::body::Incoming>| async move {
                let Some((code, body)) = answer(request.uri().path()) else {
                    return std::future::pending().await;
                };
                let body = Full::new(Bytes::from(body.to_string()));
                http::Response::builder().status(code).body(body)
            });
            tokio::spawn(
                hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service),
            );
        }
    });
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    kube::Client::try_from(kube::Config::new(uri)).unwrap()
}

fn status(code: u16, message: &str) -> (u16, Value) {
    let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": message, "reason": "Forbidden", "code": code});
    (code, status)
}

/// Starts with a client for `client`, Secrets allowed or not.
async fn with_reader(client: kube::Client, secrets: bool) -> Running {
    let mut start = Start { facts: facts(), reader: Reader::new(client, secrets), ..Start::default() };
    start.config.server.request_timeout_seconds = 1;
    start.config.features.vbios_injection.hook_image = "registry.example/hook:1".into();
    start.run().await
}

fn from_secret() -> Value {
    let mut object = vm(&json!({}));
    object["spec"]["template"]["spec"]["volumes"] =
        json!([{"name": "ci", "cloudInitNoCloud": {"secretRef": {"name": "user-data"}}}]);
    object
}

#[tokio::test]
async fn a_secret_is_read_only_when_that_is_allowed() {
    fn answer(path: &str) -> Option<(u16, Value)> {
        if path != "/api/v1/namespaces/default/secrets/user-data" {
            return None;
        }
        let user_data = STANDARD.encode("#cloud-config\nx_kubevirt_features:\n  nested_virt: true\n");
        Some((
            200,
            json!({"kind": "Secret", "apiVersion": "v1", "metadata": {"name": "user-data"},
            "data": {"userData": user_data}}),
        ))
    }
    let client = api(answer).await;
    let server = with_reader(client.clone(), true).await;
    let object = from_secret();
    let answer = server.review("/mutate", &review_of(&object)).await;
    let after = patched(&object, &answer);
    assert_eq!(after["spec"]["template"]["spec"]["domain"]["cpu"]["features"][0]["name"], "svm");

    let server = with_reader(client, false).await;
    let answer = server.review("/mutate", &review_of(&object)).await;
    assert!(answer["response"].get("patch").is_none(), "{answer}");
}

#[tokio::test]
async fn what_cannot_be_read_is_said_in_time() {
    type Answer = fn(&str) -> Option<(u16, Value)>;
    let cases: [(Answer, &str); 3] = [
        (|_| Some(status(404, "configmaps \"rom\" not found")), "rom"),
        (|_| Some(status(403, "configmaps \"rom\" is forbidden: no")), "forbidden"),
        (|_| None, "no answer within 1 s"),
    ];
    for (answer, says) in cases {
        let server = with_reader(api(answer).await, false).await;
        let mut object = vm(&json!({"vm-feature-manager.io/vbios-injection": "rom"}));
        object["spec"]["template"]["spec"]["domain"]["devices"] =
            json!({"hostDevices": [{"name": "igpu", "deviceName": "amd.com/IGPU"}]});
        let begun = Instant::now();
        let answer = server.review("/mutate", &review_of(&object)).await;
        assert!(begun.elapsed() < Duration::from_secs(8), "{says}");
        let message = answer["response"]["status"]["message"].as_str().unwrap_or_default();
        assert!(message.contains(says), "{says}: {answer}");
    }
}
