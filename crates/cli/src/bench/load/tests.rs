//! The load tool against a small HTTPS service of known behaviour.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use rustls::ServerConfig;
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::super::connection::Trust;
use super::*;

/// How the service answers.
#[derive(Clone, Copy, PartialEq)]
enum Behaviour {
    Patch,
    Deny,
    Fail,
    /// Allows, after a while.
    Slow(Duration),
    /// Closes the connection after each answer.
    Close,
}

async fn service(behaviour: Behaviour) -> Target {
    let key = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let private = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.signing_key.serialize_der()));
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![key.cert.der().clone()], private)
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let Ok(stream) = acceptor.accept(socket).await else { return };
                let service = service_fn(move |request| answer(behaviour, request));
                let _ = hyper::server::conn::http1::Builder::new()
                    .keep_alive(behaviour != Behaviour::Close)
                    .serve_connection(TokioIo::new(stream), service)
                    .await;
            });
        }
    });
    Target::resolve(&format!("https://127.0.0.1:{port}/mutate"), &Trust::Anyone, false).await.unwrap()
}

async fn answer(
    behaviour: Behaviour,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    assert_eq!(request.uri().path(), "/mutate");
    let body = request.into_body().collect().await.unwrap().to_bytes();
    let review: Value = serde_json::from_slice(&body).unwrap();
    let mut response = json!({"uid": review["request"]["uid"], "allowed": behaviour != Behaviour::Deny});
    if let Behaviour::Slow(time) = behaviour {
        tokio::time::sleep(time).await;
    }
    if behaviour == Behaviour::Patch {
        response["patch"] = "W10=".into();
    }
    let status = if behaviour == Behaviour::Fail { 503 } else { 200 };
    let body = Full::new(Bytes::from(json!({ "response": response }).to_string()));
    Ok(Response::builder().status(status).body(body).unwrap())
}

fn plan(rate: Option<u32>, connections: usize, max_requests: u64) -> Plan {
    let minute = Duration::from_mins(1);
    Plan { rate, connections, duration: minute, max_requests, timeout: minute }
}

fn review() -> Review {
    Review::of_creation(&json!({"metadata": {"name": "a"}}), "default")
}

#[tokio::test(flavor = "multi_thread")]
async fn both_loops_send_what_was_asked_for_and_count_verdicts() {
    for rate in [None, Some(10_000)] {
        let patched = run(plan(rate, 3, 100), &service(Behaviour::Patch).await, &review()).await.unwrap();
        assert_eq!((patched.patched, patched.unchanged, patched.denied), (100, 0, 0));
        assert_eq!(patched.latencies.len(), 100);
        assert!(patched.errors.is_empty(), "{:?}", patched.errors);
        let denied = run(plan(rate, 3, 10), &service(Behaviour::Deny).await, &review()).await.unwrap();
        assert_eq!(denied.denied, 10);
    }
}

/// Each answer takes 5 ms, but a request is due each millisecond on the one connection: the
/// hundredth is due at 99 ms and cannot be answered before 500 ms.
#[tokio::test(flavor = "multi_thread")]
async fn waiting_for_a_slow_service_is_part_of_the_latency() {
    let slow = service(Behaviour::Slow(Duration::from_millis(5))).await;
    let open = run(plan(Some(1000), 1, 100), &slow, &review()).await.unwrap();
    assert_eq!(open.latencies.len(), 100);
    assert!(open.latencies.max() >= Duration::from_millis(400), "{:?}", open.latencies.max());
    assert!(open.elapsed >= Duration::from_millis(500));
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_are_counted_by_kind_and_connections_reopened() {
    let failing = run(plan(None, 2, 6), &service(Behaviour::Fail).await, &review()).await.unwrap();
    assert_eq!(failing.errors, [("HTTP status 503".to_owned(), 6)].into());
    assert_eq!(failing.latencies.len(), 0);

    let closing = run(plan(None, 1, 6), &service(Behaviour::Close).await, &review()).await.unwrap();
    let failed: u64 = closing.errors.values().sum();
    assert_eq!(closing.unchanged + failed, 6);
    assert!(closing.unchanged >= 2, "{:?}", closing.errors);
}

#[tokio::test]
async fn other_machines_and_plain_http_are_refused() {
    for (url, expected) in [
        ("https://192.0.2.1/mutate", "is another machine"),
        ("http://127.0.0.1/mutate", "not an https URL"),
        ("127.0.0.1", "not an https URL"),
    ] {
        let Err(error) = Target::resolve(url, &Trust::Anyone, false).await else {
            panic!("{url} was accepted")
        };
        assert!(error.to_string().contains(expected), "{error}");
    }
    assert!(Target::resolve("https://192.0.2.1/mutate", &Trust::Anyone, true).await.is_ok());
}
