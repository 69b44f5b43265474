//! The webhook server over HTTPS.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // helpers of tests fail as tests do

mod common;

use std::time::Duration;

use bytes::Bytes;
use common::{Start, get, pair_valid, post, post_as, provider, review_of, vm};
use http::Request;
use http_body_util::Full;
use operator::readiness::State;
use operator::tls::Identity;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

#[tokio::test]
async fn an_untouched_vm_is_allowed_without_a_patch() {
    let server = Start::default().run().await;
    for path in ["/mutate", "/validate"] {
        let answer = server.review(path, &review_of(&vm(&json!({})))).await;
        assert_eq!(
            answer,
            json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
                "response": {"uid": "705ab4f5-6393-11e8-b7cc-42010a800002", "allowed": true}})
        );
    }
}

/// Defect 25: v1beta1 was announced and answered as v1.
#[tokio::test]
async fn defect_25_v1beta1_is_answered_as_v1beta1() {
    let server = Start::default().run().await;
    let mut review = review_of(&vm(&json!({})));
    review["apiVersion"] = json!("admission.k8s.io/v1beta1");
    assert_eq!(server.review("/mutate", &review).await["apiVersion"], "admission.k8s.io/v1beta1");
}

#[tokio::test]
async fn other_kinds_operations_and_subresources_are_allowed_untouched() {
    let server = Start::default().run().await;
    let asking = vm(&json!({"vm-feature-manager.io/nested-virt": "no such value"}));
    for (pointer, value) in [
        ("/request/kind/kind", json!("VirtualMachineInstance")),
        ("/request/kind/group", json!("example.com")),
        ("/request/operation", json!("DELETE")),
        ("/request/operation", json!("CONNECT")),
        ("/request/subResource", json!("status")),
        ("/request/object", json!(null)),
    ] {
        let mut review = review_of(&asking);
        review["request"]["subResource"] = json!("");
        *review.pointer_mut(pointer).unwrap() = value;
        let response = &server.review("/mutate", &review).await["response"];
        assert_eq!(response["allowed"], true, "{pointer}");
        assert!(response.get("patch").is_none(), "{pointer}");
    }
}

/// Defect 26: no body limit, no content-type check; and every other way to send something wrong.
#[tokio::test]
async fn defect_26_wrong_requests_get_the_right_status_and_a_message() {
    let server = Start::default().run().await;
    let good = review_of(&vm(&json!({}))).to_string();
    let deep = format!("{}{}", "[".repeat(5000), "]".repeat(5000));
    let deep_vm = good.replace("\"runStrategy\":\"Always\"", &format!("\"vm-feature-manager.io\":{deep}"));
    assert_ne!(deep_vm, good);
    let cases = [
        (post_as("/mutate", None, good.clone()), 415, "content type"),
        (post_as("/mutate", Some("text/plain"), good.clone()), 415, "text/plain"),
        (post_as("/mutate", Some("application/jsonx"), good.clone()), 415, "application/jsonx"),
        (post("/mutate", vec![b' '; (3 << 20) + 1]), 413, "3145728"),
        (post("/mutate", ""), 400, "not a valid AdmissionReview"),
        (post("/mutate", "{"), 400, "not a valid AdmissionReview"),
        (post("/mutate", vec![0xff, 0xfe]), 400, "not a valid AdmissionReview"),
        (post("/mutate", deep), 400, "not a valid AdmissionReview"),
        (post("/mutate", deep_vm), 400, "recursion limit"),
        (post("/mutate", r#"{"kind":"Pod","apiVersion":"v1"}"#), 400, "Pod"),
        (post("/mutate", r#"{"kind":"AdmissionReview","apiVersion":"admission.k8s.io/v2"}"#), 400, "v2"),
        (
            post("/mutate", r#"{"kind":"AdmissionReview","apiVersion":"admission.k8s.io/v1"}"#),
            400,
            "no request",
        ),
        (
            post("/mutate", r#"{"kind":"AdmissionReview","apiVersion":"admission.k8s.io/v1","request":{}}"#),
            400,
            "uid",
        ),
        (post("/validate", "{"), 400, "not a valid AdmissionReview"),
        (get("/mutate"), 405, "POST"),
        (post("/healthz", ""), 405, "GET"),
        (get("/nothing"), 404, "/mutate"),
    ];
    for (request, status, says) in cases {
        let what = format!("{} {}", request.method(), request.uri());
        let answer = server.send(request).await;
        let text = String::from_utf8_lossy(answer.body()).into_owned();
        assert_eq!(answer.status().as_u16(), status, "{what}: {text}");
        assert!(text.contains(says), "{what}: {text}");
    }
    let with_charset = post_as("/mutate", Some("Application/JSON; charset=utf-8"), good);
    assert_eq!(server.send(with_charset).await.status(), 200);
}

#[tokio::test]
async fn a_body_over_the_limit_is_refused_when_it_does_not_announce_its_length() {
    let mut start = Start::default();
    start.config.server.max_body_bytes = 1000;
    let server = start.run().await;
    let mut stream = server.connect("http/1.1").await;
    let head = "POST /mutate HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(format!("5dc\r\n{}\r\n0\r\n\r\n", " ".repeat(1500)).as_bytes()).await.unwrap();
    assert!(first_line(&mut stream).await.starts_with("HTTP/1.1 413"));
}

#[tokio::test]
async fn a_body_that_never_comes_is_given_up() {
    let mut start = Start::default();
    start.config.server.read_timeout_seconds = 1;
    let server = start.run().await;
    let mut stream = server.connect("http/1.1").await;
    let head =
        "POST /mutate HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: 10\r\n\r\n{";
    stream.write_all(head.as_bytes()).await.unwrap();
    assert!(first_line(&mut stream).await.starts_with("HTTP/1.1 408"));
}

#[tokio::test]
async fn a_client_that_says_nothing_is_let_go() {
    let mut start = Start::default();
    start.config.server.read_timeout_seconds = 1;
    start.config.server.idle_timeout_seconds = 1;
    let server = start.run().await;
    // No TLS handshake at all.
    let mut silent = tokio::net::TcpStream::connect(server.address).await.unwrap();
    // A handshake and half a request line.
    let mut halfway = server.connect("http/1.1").await;
    halfway.write_all(b"POST /mut").await.unwrap();
    let mut rest = Vec::new();
    // Either an orderly end or a reset: in both cases the connection is gone.
    let _ = tokio::time::timeout(Duration::from_secs(20), silent.read_to_end(&mut rest)).await.unwrap();
    let _ = tokio::time::timeout(Duration::from_secs(20), halfway.read_to_end(&mut rest)).await.unwrap();
}

#[tokio::test]
async fn requests_beyond_the_limit_wait_and_then_get_503() {
    let mut start = Start::default();
    start.config.server.max_concurrent_requests = 1;
    start.config.server.read_timeout_seconds = 1;
    let server = start.run().await;
    // Three clients that never send their body: one place, so one reads in vain, the next one
    // gets the place when it is given up, and the last one has waited for too long by then.
    let head =
        "POST /mutate HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: 10\r\n\r\n{";
    let mut clients = Vec::new();
    for _ in 0..3 {
        let mut client = server.connect("http/1.1").await;
        client.write_all(head.as_bytes()).await.unwrap();
        clients.push(client);
    }
    let mut statuses = Vec::new();
    for client in &mut clients {
        statuses.push(first_line(client).await[9..12].to_owned());
    }
    statuses.sort();
    assert_eq!(statuses, ["408", "408", "503"]);
    let answer = server.send(post("/mutate", review_of(&vm(&json!({}))).to_string())).await;
    assert_eq!(answer.status(), 200, "the place is free again");
}

#[tokio::test]
async fn h2_and_http_1_are_both_served() {
    let server = Start::default().run().await;
    let review = || post("/mutate", review_of(&vm(&json!({}))).to_string());
    let (one, two) = (server.send(review()).await, server.send_h2(review()).await);
    assert_eq!((one.status().as_u16(), two.status().as_u16()), (200, 200));
    assert_eq!(one.body(), two.body());
    assert_eq!(two.version(), http::Version::HTTP_2);
}

/// Defect 27, first half: readiness checks the validity of what is served.
#[tokio::test]
async fn defect_27_unready_while_the_certificate_is_not_valid() {
    let server = Start::default().run().await;
    assert_eq!(server.get("/readyz").await, (200, "ok\n".into()));
    for (from, to, says) in [(2000, 2026, "expired"), (2027, 2100, "not valid before")] {
        let pair = pair_valid(from, to);
        let identity =
            Identity::from_pem(pair.certificate.as_bytes(), pair.key.as_bytes(), &provider()).unwrap();
        assert!(matches!(server.readiness.report().parts["certificate"], State::Ok));
        let good = server.resolver.served().unwrap();
        server.resolver.serve(identity);
        let report = server.readiness.report();
        assert!(!report.ready);
        assert!(report.text(false).contains(says), "{report:?}");
        let good = Identity { key: good.key.clone(), not_before: good.not_before, not_after: good.not_after };
        server.resolver.serve(good);
    }
    assert_eq!(server.get("/healthz").await.0, 200);
}

#[tokio::test]
async fn readyz_names_what_is_degraded_and_what_is_not_ready() {
    let server = Start::default().run().await;
    server.readiness.set("nodes", State::Degraded("cannot be listed".into()));
    assert_eq!(server.get("/readyz").await, (200, "ok\n".into()));
    let (status, text) = server.get("/readyz?verbose").await;
    assert_eq!(status, 200);
    assert!(
        text.contains("[!]nodes degraded: cannot be listed") && text.contains("[+]certificate ok"),
        "{text}"
    );
    server.readiness.set("nodes", State::Unready("first list".into()));
    let (status, text) = server.get("/readyz").await;
    assert_eq!(status, 503);
    assert!(text.contains("first list"), "{text}");
}

#[tokio::test]
async fn a_stop_finishes_the_request_in_flight_and_takes_no_more() {
    let server = Start::default().run().await;
    let body = review_of(&vm(&json!({}))).to_string();
    let mut stream = server.connect("http/1.1").await;
    let head = format!(
        "POST /mutate HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\nexpect: 100-continue\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    // 100 Continue says that the handler has begun to read the body.
    assert!(first_line(&mut stream).await.starts_with("HTTP/1.1 100"));
    server.readiness.drain();
    assert!(!server.readiness.report().ready);
    server.stop.cancel();
    common::eventually("no new connections", async || {
        tokio::net::TcpStream::connect(server.address).await.is_err()
    })
    .await;
    stream.write_all(body.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.contains("HTTP/1.1 200") && answer.contains("\"allowed\":true"), "{answer}");
    tokio::time::timeout(Duration::from_secs(10), server.task).await.unwrap().unwrap();
}

#[tokio::test]
async fn every_request_is_counted() {
    let server = Start::default().run().await;
    server.review("/mutate", &review_of(&vm(&json!({})))).await;
    server.send(post("/mutate", "{")).await;
    let text = server.metrics.text().unwrap();
    for line in [
        "webhook_requests_total{feature=\"all\",result=\"allowed\"} 1",
        "webhook_requests_total{feature=\"all\",result=\"error\"} 1",
        "webhook_duration_seconds_count{feature=\"all\"} 2",
        "virt_steward_build_info{version=\"test\"} 1",
    ] {
        assert!(text.contains(line), "{line} is not in\n{text}");
    }
}

#[tokio::test]
async fn arbitrary_bytes_always_get_a_valid_answer() {
    let server = Start::default().run().await;
    let io = hyper_util::rt::TokioIo::new(server.connect("http/1.1").await);
    let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.unwrap();
    tokio::spawn(connection);
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let strategy = common_bytes();
    for _ in 0..300 {
        let body = proptest::strategy::ValueTree::current(
            &proptest::strategy::Strategy::new_tree(&strategy, &mut runner).unwrap(),
        );
        let request: Request<Full<Bytes>> = post("/mutate", body.clone());
        sender.ready().await.unwrap();
        let answer = sender.send_request(request).await.unwrap();
        let status = answer.status().as_u16();
        let bytes = http_body_util::BodyExt::collect(answer.into_body()).await.unwrap().to_bytes();
        let shown = String::from_utf8_lossy(&body);
        match status {
            200 => {
                let value: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
                assert!(value["response"]["allowed"].is_boolean(), "{shown}");
            }
            400 => assert!(!bytes.is_empty(), "{shown}"),
            other => panic!("{other} for {shown}"),
        }
    }
}

/// Noise, and reviews with noise in the places that are parsed.
fn common_bytes() -> impl proptest::strategy::Strategy<Value = Vec<u8>> {
    use proptest::prelude::*;
    let leaf = prop_oneof![
        Just(json!(null)),
        any::<bool>().prop_map(|v| json!(v)),
        any::<i64>().prop_map(|v| json!(v)),
        "\\PC{0,12}".prop_map(|v| json!(v)),
        Just(json!("enabled")),
        Just(json!("{\"devices\":[\"0000:00:02.0\"]}")),
    ];
    let value = leaf.prop_recursive(4, 32, 5, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..5).prop_map(|v| json!(v)),
            prop::collection::btree_map(
                prop_oneof![
                    Just("metadata".to_owned()),
                    Just("annotations".to_owned()),
                    Just("vm-feature-manager.io/nested-virt".to_owned()),
                    Just("vm-feature-manager.io/pci-passthrough".to_owned()),
                    Just("vm-feature-manager.io/gpu-device-plugin".to_owned()),
                    Just("vm-feature-manager.io/vbios-injection".to_owned()),
                    Just("spec".to_owned()),
                    Just("template".to_owned()),
                    Just("domain".to_owned()),
                    "[a-z]{1,8}",
                ],
                inner,
                0..6
            )
            .prop_map(|v| json!(v)),
        ]
    });
    prop_oneof![
        prop::collection::vec(any::<u8>(), 0..200),
        value.clone().prop_map(|v| v.to_string().into_bytes()),
        (value.clone(), value.clone()).prop_map(|(object, old)| {
            let mut review = review_of(&object);
            review["request"]["name"] = json!("a");
            review["request"]["oldObject"] = old;
            review.to_string().into_bytes()
        }),
        value.prop_map(|metadata| {
            let mut vm = vm(&json!({"vm-feature-manager.io/nested-virt": "enabled"}));
            vm["metadata"]["annotations"]["vm-feature-manager.io/pci-passthrough"] =
                json!(metadata.to_string());
            vm["spec"]["template"]["spec"]["domain"]["devices"] = metadata;
            review_of(&vm).to_string().into_bytes()
        }),
    ]
}

async fn first_line(stream: &mut (impl AsyncReadExt + Unpin)) -> String {
    let mut line = Vec::new();
    let read = async {
        while !line.ends_with(b"\r\n\r\n") {
            line.push(stream.read_u8().await.unwrap());
        }
    };
    tokio::time::timeout(Duration::from_secs(20), read).await.expect("no answer");
    String::from_utf8(line).unwrap()
}
