//! A group that another server serves, behind an `APIService`, over real TLS.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may fail this way")]

use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use http_body_util::{BodyExt as _, Full};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use kube::config::{KubeConfigOptions, Kubeconfig};
use sandbox::{Options, Sandbox};
use serde_json::{Value, json};
use tokio_rustls::TlsAcceptor;

/// Answers discovery, and everything else with who asked for what.
async fn answer(
    request: http::Request<hyper::body::Incoming>,
) -> Result<http::Response<Full<bytes::Bytes>>, std::convert::Infallible> {
    let path = request.uri().path().to_owned();
    let body = if path == "/apis/things.example.com/v1" {
        json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": "things.example.com/v1", "resources": [
            {"name": "things/start", "singularName": "", "namespaced": true, "kind": "", "verbs": ["update"]}]})
    } else {
        let header = |name: &str| request.headers().get(name).map(|value| value.to_str().unwrap().to_owned());
        json!({"path": path, "user": header("x-remote-user"), "authorization": header("authorization")})
    };
    let mut response = http::Response::new(Full::new(body.to_string().into()));
    response.headers_mut().insert("content-type", http::HeaderValue::from_static("application/json"));
    Ok(response)
}

/// A server for `things.default.svc`: its port and the certificate to trust.
async fn backend() -> (u16, String) {
    let certified = rcgen::generate_simple_self_signed(["things.default.svc".to_owned()]).unwrap();
    let key = rustls_pki_types::PrivateKeyDer::try_from(certified.signing_key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certified.cert.der().clone()], key)
        .unwrap();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let tls = TlsAcceptor::from(Arc::new(config));
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let tls = tls.clone();
            tokio::spawn(async move {
                let Ok(stream) = tls.accept(stream).await else { return };
                let server = hyper::server::conn::http1::Builder::new();
                let _ = server.serve_connection(TokioIo::new(stream), service_fn(answer)).await;
            });
        }
    });
    (port, certified.cert.pem())
}

async fn send(client: &kube::Client, method: &str, path: &str, accept: &str, body: &Value) -> (u16, Value) {
    let request = http::Request::builder().method(method).uri(path).header("accept", accept);
    let request =
        request.header("content-type", "application/json").body(body.to_string().into_bytes().into());
    let response = client.send(request.unwrap()).await.unwrap();
    let code = response.status().as_u16();
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    (code, serde_json::from_slice(&bytes).unwrap_or_default())
}

#[tokio::test]
async fn requests_are_handed_on_with_the_users_name() {
    let sandbox = Sandbox::start(Options::default()).await.unwrap();
    let kubeconfig = Kubeconfig::from_yaml(&sandbox.kubeconfig()).unwrap();
    let mut config =
        kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.unwrap();
    config.default_retry = false;
    let client = kube::Client::try_from(config).unwrap();
    let (port, pem) = backend().await;
    let plain = "application/json";

    let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "things"},
        "spec": {"ports": [{"port": 443, "targetPort": port}]}});
    assert_eq!(send(&client, "POST", "/api/v1/namespaces/default/services", plain, &service).await.0, 201);
    let slice = json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": "things", "labels": {"kubernetes.io/service-name": "things"}},
        "endpoints": [{"addresses": ["127.0.0.1"]}], "ports": [{"name": "", "port": port, "protocol": "TCP"}]});
    let slices = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices";
    assert_eq!(send(&client, "POST", slices, plain, &slice).await.0, 201);
    let bundle = base64::engine::general_purpose::STANDARD.encode(pem);
    let registration = json!({"apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService",
        "metadata": {"name": "v1.things.example.com"},
        "spec": {"group": "things.example.com", "version": "v1", "caBundle": bundle,
            "groupPriorityMinimum": 1000, "versionPriority": 15,
            "service": {"namespace": "default", "name": "things", "port": 443}}});
    let services = "/apis/apiregistration.k8s.io/v1/apiservices";
    let (code, made) = send(&client, "POST", services, plain, &registration).await;
    assert_eq!(code, 201, "{made}");

    let path = "/apis/things.example.com/v1/namespaces/default/things/a/start";
    let (code, seen) = send(&client, "PUT", path, plain, &json!({})).await;
    assert_eq!(code, 200, "{seen}");
    assert_eq!(
        (&seen["path"], &seen["user"], &seen["authorization"]),
        (&json!(path), &json!("admin"), &Value::Null)
    );

    let aggregated = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
    let (_, groups) = send(&client, "GET", "/apis", aggregated, &json!({})).await;
    let found = groups["items"]
        .as_array()
        .unwrap()
        .iter()
        .find(|item| item["metadata"]["name"] == "things.example.com");
    assert_eq!(found.unwrap()["versions"][0]["resources"][0]["subresources"][0]["subresource"], "start");

    let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
    loop {
        let (_, service) =
            send(&client, "GET", &format!("{services}/v1.things.example.com"), plain, &json!({})).await;
        if service["status"]["conditions"][0]["status"] == "True" {
            break;
        }
        assert!(tokio::time::Instant::now() < deadline, "{service}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    sandbox.shutdown().await;
}
