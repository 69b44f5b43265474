//! A webhook server on a real socket, and a client to talk to it.
#![allow(dead_code)] // each test program uses its own part

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use features::ClusterFacts;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use jiff::Timestamp;
use operator::config::Config;
use operator::facts::{Policies, Reader};
use operator::readiness::Readiness;
use operator::telemetry::{Metrics, Tracer};
use operator::tls::{Identity, Resolver, server_config};
use operator::webhook::{Handler, Parts, Server};
use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_util::sync::CancellationToken;

pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

/// A self-signed certificate for 127.0.0.1 and its key, as PEM.
pub struct Pair {
    pub certificate: String,
    pub key: String,
    pub der: CertificateDer<'static>,
}

/// Valid from and to, as years.
pub fn pair_valid(from: i32, to: i32) -> Pair {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    let mut params = CertificateParams::new(vec!["127.0.0.1".into(), "localhost".into()]).unwrap();
    params.not_before = rcgen::date_time_ymd(from, 1, 1);
    params.not_after = rcgen::date_time_ymd(to, 1, 1);
    let certificate = params.self_signed(&key).unwrap();
    Pair { certificate: certificate.pem(), key: key.serialize_pem(), der: certificate.der().clone() }
}

pub fn pair() -> Pair {
    pair_valid(2000, 2100)
}

/// A running server.
pub struct Running {
    pub address: SocketAddr,
    pub resolver: Arc<Resolver>,
    pub readiness: Arc<Readiness>,
    pub facts: Arc<ArcSwap<ClusterFacts>>,
    pub metrics: Arc<Metrics>,
    pub stop: CancellationToken,
    pub task: JoinHandle<()>,
    pub root: CertificateDer<'static>,
}

/// Starts a server with the facts and clock given.
pub struct Start {
    pub config: Config,
    pub facts: ClusterFacts,
    pub policies: Arc<Policies>,
    pub reader: Reader,
    pub now: Timestamp,
    pub pair: Pair,
    pub tracer: Option<Tracer>,
}

impl Default for Start {
    fn default() -> Self {
        let mut config = Config::default();
        config.server.port = 0;
        config.server.bind_address = Some([127, 0, 0, 1].into());
        Self {
            config,
            facts: ClusterFacts::default(),
            policies: Arc::default(),
            reader: Reader::offline(),
            now: "2026-06-01T00:00:00Z".parse().unwrap(),
            pair: pair(),
            tracer: None,
        }
    }
}

impl Start {
    pub async fn run(self) -> Running {
        let Self { config, facts, policies, reader, now, pair, tracer } = self;
        let resolver = Arc::new(Resolver::default());
        resolver.serve(
            Identity::from_pem(pair.certificate.as_bytes(), pair.key.as_bytes(), &provider()).unwrap(),
        );
        let readiness = Arc::new(Readiness::new(resolver.clone(), Arc::new(move || now)));
        let facts = Arc::new(ArcSwap::from_pointee(facts));
        let metrics = Arc::new(Metrics::new("test"));
        let parts = Parts {
            facts: facts.clone(),
            policies,
            reader,
            readiness: readiness.clone(),
            metrics: metrics.clone(),
            tracer,
            steward: None,
        };
        let handler = Arc::new(Handler::new(&config, parts));
        let tls = server_config(resolver.clone(), provider()).unwrap();
        let server = Server::bind(&config, tls, handler).await.unwrap();
        let (address, stop) = (server.address(), CancellationToken::new());
        let task = tokio::spawn({
            let stop = stop.clone();
            async move { server.serve(stop).await.unwrap() }
        });
        Running { address, resolver, readiness, facts, metrics, stop, task, root: pair.der }
    }
}

impl Running {
    /// A TLS connection that offers `protocol` ("h2", "http/1.1") and trusts `root`.
    pub async fn connect_trusting(
        &self,
        protocol: &str,
        root: &CertificateDer<'static>,
    ) -> std::io::Result<TlsStream<TcpStream>> {
        let mut roots = RootCertStore::empty();
        roots.add(root.clone()).unwrap();
        let mut config = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![protocol.as_bytes().to_vec()];
        let stream = TcpStream::connect(self.address).await?;
        let name = ServerName::try_from("127.0.0.1").unwrap();
        TlsConnector::from(Arc::new(config)).connect(name, stream).await
    }

    pub async fn connect(&self, protocol: &str) -> TlsStream<TcpStream> {
        self.connect_trusting(protocol, &self.root).await.unwrap()
    }

    /// Sends one request over HTTP/1.1 and reads the whole answer.
    pub async fn send(&self, request: Request<Full<Bytes>>) -> Response<Bytes> {
        let io = TokioIo::new(self.connect("http/1.1").await);
        let (mut sender, connection) = http1::handshake(io).await.unwrap();
        let driver = tokio::spawn(connection);
        let answer = whole(sender.send_request(request).await.unwrap()).await;
        driver.abort();
        answer
    }

    /// The same over h2.
    pub async fn send_h2(&self, request: Request<Full<Bytes>>) -> Response<Bytes> {
        let io = TokioIo::new(self.connect("h2").await);
        let (mut sender, connection) = http2::handshake(TokioExecutor::new(), io).await.unwrap();
        let driver = tokio::spawn(connection);
        let answer = whole(sender.send_request(request).await.unwrap()).await;
        driver.abort();
        answer
    }

    pub async fn get(&self, path: &str) -> (u16, String) {
        let answer = self.send(get(path)).await;
        (answer.status().as_u16(), String::from_utf8(answer.into_body().to_vec()).unwrap())
    }

    /// Sends an `AdmissionReview` and reads the answer as JSON.
    pub async fn review(&self, path: &str, review: &Value) -> Value {
        let answer = self.send(post(path, review.to_string())).await;
        assert_eq!(answer.status(), 200, "{:?}", answer.body());
        assert_eq!(answer.headers()["content-type"], "application/json");
        serde_json::from_slice(answer.body()).unwrap()
    }
}

async fn whole(response: Response<hyper::body::Incoming>) -> Response<Bytes> {
    let (head, body) = response.into_parts();
    Response::from_parts(head, body.collect().await.unwrap().to_bytes())
}

pub fn get(path: &str) -> Request<Full<Bytes>> {
    Request::get(format!("https://127.0.0.1{path}"))
        .header("host", "127.0.0.1")
        .body(Full::default())
        .unwrap()
}

pub fn post(path: &str, body: impl Into<Bytes>) -> Request<Full<Bytes>> {
    post_as(path, Some("application/json"), body)
}

pub fn post_as(path: &str, content_type: Option<&str>, body: impl Into<Bytes>) -> Request<Full<Bytes>> {
    let mut request = Request::post(format!("https://127.0.0.1{path}")).header("host", "127.0.0.1");
    if let Some(content_type) = content_type {
        request = request.header("content-type", content_type);
    }
    request.body(Full::new(body.into())).unwrap()
}

/// A review of the `CREATE` of `object`.
pub fn review_of(object: &Value) -> Value {
    json!({
        "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
        "request": {
            "uid": "705ab4f5-6393-11e8-b7cc-42010a800002",
            "kind": {"group": "kubevirt.io", "version": "v1", "kind": "VirtualMachine"},
            "resource": {"group": "kubevirt.io", "version": "v1", "resource": "virtualmachines"},
            "name": object["metadata"]["name"], "namespace": "default", "operation": "CREATE",
            "userInfo": {"username": "admin"}, "object": object, "oldObject": null, "dryRun": false,
            "options": {"apiVersion": "meta.k8s.io/v1", "kind": "CreateOptions"}
        }
    })
}

/// A small VM with the annotations given.
pub fn vm(annotations: &Value) -> Value {
    json!({
        "apiVersion": "kubevirt.io/v1", "kind": "VirtualMachine",
        "metadata": {"name": "web", "namespace": "default", "annotations": annotations},
        "spec": {"runStrategy": "Always", "template": {"spec": {
            "domain": {"devices": {}, "memory": {"guest": "1Gi"}}}}}
    })
}

/// Waits for a condition, with a generous bound.
pub async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    for _ in 0..600 {
        if holds().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    panic!("did not happen within 15 s: {what}");
}
