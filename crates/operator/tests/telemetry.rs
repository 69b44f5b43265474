//! Metrics and traces over real sockets.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // helpers of tests fail as tests do

mod common;

use std::sync::Arc;
use std::time::Duration;

use common::{Start, post, provider, review_of, vm};
use http_body_util::{BodyExt, Empty, Full};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use jiff::Timestamp;
use operator::telemetry::{Exporter, Metrics, MetricsServer};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

#[tokio::test]
async fn metrics_are_served_as_openmetrics() {
    let metrics = Arc::new(Metrics::new("1.2.3"));
    metrics.request("nested-virt", "applied", Duration::from_micros(40));
    metrics.feature_error("pci-passthrough", "strip-label");
    let server = MetricsServer::bind("127.0.0.1:0".parse().unwrap(), metrics).await.unwrap();
    let (address, stop) = (server.address().unwrap(), CancellationToken::new());
    let task = tokio::spawn(server.serve(stop.clone()));
    let io = TokioIo::new(TcpStream::connect(address).await.unwrap());
    let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.unwrap();
    tokio::spawn(connection);
    let mut get = async |path: &str| {
        let request =
            http::Request::get(path).header("host", "a").body(Empty::<bytes::Bytes>::new()).unwrap();
        let answer = sender.send_request(request).await.unwrap();
        let (head, body) = answer.into_parts();
        (head, String::from_utf8(body.collect().await.unwrap().to_bytes().to_vec()).unwrap())
    };
    let (head, text) = get("/metrics").await;
    assert_eq!(head.headers["content-type"], "application/openmetrics-text; version=1.0.0; charset=utf-8");
    for line in [
        "# TYPE webhook_requests counter",
        "webhook_requests_total{feature=\"nested-virt\",result=\"applied\"} 1",
        "webhook_duration_seconds_bucket{le=\"0.00005\",feature=\"nested-virt\"} 1",
        "feature_errors_total{feature=\"pci-passthrough\",error_mode=\"strip-label\"} 1",
        "virt_steward_build_info{version=\"1.2.3\"} 1",
    ] {
        assert!(text.contains(line), "{line} is not in\n{text}");
    }
    assert!(text.ends_with("# EOF\n"), "{text}");
    assert_eq!(get("/").await.0.status, 404);
    stop.cancel();
    task.await.unwrap();
}

/// A collector that hands on what it is sent.
async fn collector() -> (String, mpsc::UnboundedReceiver<(http::request::Parts, Value)>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}/", listener.local_addr().unwrap());
    let (send, received) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let send = send.clone();
            let service = service_fn(move |request: http::Request<hyper::body::Incoming>| {
                let send = send.clone();
                async move {
                    let (head, body) = request.into_parts();
                    let body = body.collect().await.unwrap().to_bytes();
                    send.send((head, serde_json::from_slice(&body).unwrap())).unwrap();
                    Ok::<_, std::convert::Infallible>(http::Response::new(Full::new(bytes::Bytes::from(
                        "{}",
                    ))))
                }
            });
            tokio::spawn(
                hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service),
            );
        }
    });
    (endpoint, received)
}

#[tokio::test]
async fn spans_arrive_at_a_collector_under_the_api_servers_span() {
    let (endpoint, mut received) = collector().await;
    let now: Timestamp = "2026-06-01T00:00:00Z".parse().unwrap();
    let (exporter, tracer) =
        Exporter::new(&endpoint, Some("x-token=secret"), "1.2.3", provider(), Arc::new(move || now)).unwrap();
    let stop = CancellationToken::new();
    let running = tokio::spawn(exporter.run(stop.clone()));
    let server = Start { tracer: Some(tracer), ..Start::default() }.run().await;

    let asking = vm(&json!({"vm-feature-manager.io/nested-virt": "enabled"}));
    let mut request = post("/mutate", review_of(&asking).to_string());
    let parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    request.headers_mut().insert("traceparent", parent.parse().unwrap());
    assert_eq!(server.send(request).await.status(), 200);
    // A parent that is not sampled is not sent.
    let mut request = post("/mutate", review_of(&asking).to_string());
    request.headers_mut().insert("traceparent", parent.replace("-01", "-00").parse().unwrap());
    server.send(request).await;
    // Stopping sends what has gathered.
    stop.cancel();
    running.await.unwrap();

    let (head, body) = received.recv().await.unwrap();
    assert_eq!((head.method.as_str(), head.uri.path()), ("POST", "/v1/traces"));
    assert_eq!(
        (&head.headers["content-type"], &head.headers["x-token"]),
        (&"application/json".parse().unwrap(), &"secret".parse().unwrap())
    );
    let spans = body["resourceSpans"][0]["scopeSpans"][0]["spans"].as_array().unwrap();
    assert_eq!(spans.len(), 2, "{body:#}");
    let (whole, decide) = (&spans[0], &spans[1]);
    assert_eq!(whole["traceId"], "0af7651916cd43dd8448eb211c80319c");
    assert_eq!(whole["parentSpanId"], "b7ad6b7169203331");
    assert_eq!((&whole["name"], &whole["kind"]), (&json!("/mutate"), &json!(2)));
    assert_eq!((&decide["name"], &decide["parentSpanId"]), (&json!("decide"), &whole["spanId"]));
    assert_eq!(decide["events"][0]["name"], "nested-virt");
    let nanos = |span: &Value, field: &str| span[field].as_str().unwrap().parse::<u64>().unwrap();
    assert!(nanos(whole, "startTimeUnixNano") <= nanos(decide, "startTimeUnixNano"));
    assert!(nanos(decide, "endTimeUnixNano") <= 1_780_272_000_000_000_000);
    assert!(received.try_recv().is_err());
}

#[test]
fn broken_headers_are_refused_without_being_shown() {
    let clock: operator::Clock = Arc::new(Timestamp::now);
    let Err(error) = Exporter::new("http://127.0.0.1:1", Some("a=b,topsecret"), "1", provider(), clock)
    else {
        panic!("accepted");
    };
    let text = error.to_string();
    assert!(text.contains("entry 2") && !text.contains("topsecret"), "{text}");
}
