//! A webhook server over real TLS that behaves as a test tells it.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use apimachinery::tree::{Value, json};
use base64::Engine as _;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

/// What the server does with a review.
#[allow(dead_code, reason = "each test program uses a part of it")]
pub enum Reply {
    /// A well-formed answer with the right uid; this is its `response`.
    Response(Value),
    /// Any bytes with any status.
    Raw(u16, Vec<u8>),
    /// Never answers.
    Hang,
}

type Behaviour = dyn Fn(&Value) -> Reply + Send + Sync;

/// A running server; it stops with the test's runtime.
pub struct Server {
    pub port: u16,
    pub ca_bundle: String,
    pub connections: Arc<AtomicUsize>,
    pub reviews: Arc<Mutex<Vec<Value>>>,
    pub versions: Arc<Mutex<Vec<http::Version>>>,
}

impl Server {
    /// Serves on 127.0.0.1 with a certificate for `name`, offering these protocols.
    pub async fn start(
        name: &str,
        alpn: &[&str],
        behave: impl Fn(&Value) -> Reply + Send + Sync + 'static,
    ) -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let key = KeyPair::generate().unwrap();
        let leaf = CertificateParams::new(vec![name.to_owned()]).unwrap().signed_by(&key, &ca).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut tls = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(
                vec![leaf.der().clone()],
                PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der())),
            )
            .unwrap();
        tls.alpn_protocols = alpn.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = Self {
            port: listener.local_addr().unwrap().port(),
            ca_bundle: base64::engine::general_purpose::STANDARD.encode(ca.pem()),
            connections: Arc::default(),
            reviews: Arc::default(),
            versions: Arc::default(),
        };
        let (connections, reviews, versions) =
            (Arc::clone(&server.connections), Arc::clone(&server.reviews), Arc::clone(&server.versions));
        let behave: Arc<Behaviour> = Arc::new(behave);
        let acceptor = TlsAcceptor::from(Arc::new(tls));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, behave) = (acceptor.clone(), Arc::clone(&behave));
                let (connections, reviews, versions) =
                    (Arc::clone(&connections), Arc::clone(&reviews), Arc::clone(&versions));
                tokio::spawn(async move {
                    let Ok(stream) = acceptor.accept(stream).await else { return };
                    connections.fetch_add(1, Ordering::SeqCst);
                    let service = service_fn(move |request| {
                        versions.lock().unwrap().push(http::Request::version(&request));
                        answer(request, Arc::clone(&behave), Arc::clone(&reviews))
                    });
                    let _ = Builder::new(TokioExecutor::new())
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
        });
        server
    }

    /// `clientConfig` with an url.
    pub fn client_config(&self) -> Value {
        json!({"url": format!("https://localhost:{}/check", self.port), "caBundle": self.ca_bundle})
    }
}

async fn answer(
    request: http::Request<Incoming>,
    behave: Arc<Behaviour>,
    reviews: Arc<Mutex<Vec<Value>>>,
) -> Result<http::Response<Full<Bytes>>, hyper::Error> {
    let body = request.into_body().collect().await?.to_bytes();
    let review: Value = serde_json::from_slice(&body).unwrap();
    reviews.lock().unwrap().push(review.clone());
    let (code, body) = match behave(&review["request"]) {
        Reply::Response(mut response) => {
            response["uid"] = review["request"]["uid"].clone();
            let answer =
                json!({"apiVersion": review["apiVersion"], "kind": "AdmissionReview", "response": response});
            (200, answer.to_string().into_bytes())
        }
        Reply::Raw(code, body) => (code, body),
        Reply::Hang => std::future::pending().await,
    };
    Ok(http::Response::builder().status(code).body(Full::new(Bytes::from(body))).unwrap())
}
