//! HTTPS to one webhook: a pool of connections that stay open (HTTP/1.1, or HTTP/2 when the server offers it),
//! verified against the `caBundle` alone. Roots of the machine are not trusted.

use std::error::Error as _;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use apimachinery::tree::Value;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::Uri;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::client::legacy::{Client as HttpClient, Error as HttpError};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::pki_types::{CertificateDer, ServerName, pem::PemObject as _};
use rustls::{ClientConfig, RootCertStore};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::service::{self, Service};
use crate::faults::{WebhookEnd, WebhookFate};
use crate::network::{Link, Network};
use crate::objects::Objects;

/// Answers larger than this are refused: a review's object is at most 3 MiB, and so is a patch.
const ANSWER_MAX: usize = 8 * 1024 * 1024;
/// Connections that wait for the next request.
const IDLE_MAX: usize = 32;
const IDLE_TIMEOUT: Duration = Duration::from_secs(90);

/// Where a webhook is, as its `clientConfig` says.
#[derive(Clone, Debug, Eq, PartialEq)]
enum Target {
    Url(String),
    Service(Service, String),
}

/// One webhook's connections.
#[derive(Debug)]
pub struct Client {
    config: Value,
    url: String,
    http: HttpClient<Connector, Full<Bytes>>,
}

impl Client {
    /// Reads `clientConfig`.
    ///
    /// # Errors
    /// What is wrong with it: no url and no service, an url that is not https, a `caBundle` that holds no certificate.
    pub fn new(config: &Value, objects: &Arc<dyn Objects>, network: &Network) -> Result<Self, String> {
        let target = target(config)?;
        let (url, service) = match target {
            Target::Url(url) => (url, None),
            Target::Service(service, path) => {
                (format!("https://{}:{}{path}", service.host(), service.port), Some(service))
            }
        };
        let uri: Uri = url.parse().map_err(|e| format!("invalid webhook url {url:?}: {e}"))?;
        if uri.scheme_str() != Some("https") || uri.host().is_none() {
            return Err(format!("invalid webhook url {url:?}: it must be https://host/…"));
        }
        let connector = Connector {
            objects: Arc::clone(objects),
            network: network.clone(),
            service,
            tls: TlsConnector::from(Arc::new(tls(config)?)),
        };
        let http = HttpClient::builder(TokioExecutor::new())
            .pool_idle_timeout(IDLE_TIMEOUT)
            .pool_max_idle_per_host(IDLE_MAX)
            .pool_timer(TokioTimer::new())
            .timer(TokioTimer::new())
            .build(connector);
        Ok(Self { config: config.clone(), url, http })
    }

    /// Whether this client was made from the same `clientConfig`.
    pub fn is_for(&self, config: &Value) -> bool {
        &self.config == config
    }

    /// Sends a review and returns the body of a 2xx answer.
    ///
    /// # Errors
    /// The text after `failed to call webhook: `.
    pub async fn call(
        &self,
        body: Vec<u8>,
        timeout: Duration,
        asked: u64,
        fate: WebhookFate,
    ) -> Result<Bytes, String> {
        let separator = if self.url.contains('?') { '&' } else { '?' };
        let url = format!("{}{separator}timeout={asked}s", self.url);
        let exchange = async {
            if !fate.delay.is_zero() {
                tokio::time::sleep(fate.delay).await;
            }
            match fate.end {
                Some(WebhookEnd::Down) => {
                    let host = self.url.trim_start_matches("https://").split('/').next().unwrap_or_default();
                    Err(format!("Post {url:?}: dial tcp {host}: connect: connection refused"))
                }
                Some(WebhookEnd::Garbage) => Ok(Bytes::from_static(b"<html>it works!</html>")),
                None => self.exchange(&url, body).await,
            }
        };
        match tokio::time::timeout(timeout, exchange).await {
            Ok(result) => result,
            Err(_) => Err(format!("Post {url:?}: context deadline exceeded")),
        }
    }

    async fn exchange(&self, url: &str, body: Vec<u8>) -> Result<Bytes, String> {
        let request = http::Request::post(url)
            .header("content-type", "application/json")
            .header("accept", "application/json, */*")
            .header("user-agent", "kube-apiserver-admission")
            .body(Full::new(Bytes::from(body)))
            .map_err(|e| format!("Post {url:?}: {e}"))?;
        let response =
            self.http.request(request).await.map_err(|e| format!("Post {url:?}: {}", cause(&e)))?;
        let status = response.status();
        let body = Limited::new(response.into_body(), ANSWER_MAX).collect().await;
        let body = body
            .map_err(|e| format!("Post {url:?}: read answer of at most {ANSWER_MAX} bytes: {e}"))?
            .to_bytes();
        // what client-go takes for an answer
        if (200..=206).contains(&status.as_u16()) { Ok(body) } else { Err(refusal(status.as_u16(), &body)) }
    }
}

fn target(config: &Value) -> Result<Target, String> {
    let service = &config["service"];
    match (config["url"].as_str(), service.is_object()) {
        (Some(url), false) => Ok(Target::Url(url.to_owned())),
        (None, true) => {
            let text = |field: &str| service[field].as_str().unwrap_or_default().to_owned();
            let path = match text("path") {
                path if path.is_empty() || path.starts_with('/') => path,
                path => format!("/{path}"),
            };
            let port = service["port"].as_u64().and_then(|port| u16::try_from(port).ok()).unwrap_or(443);
            let path = if path.is_empty() { "/".to_owned() } else { path };
            Ok(Target::Service(Service { namespace: text("namespace"), name: text("name"), port }, path))
        }
        _ => Err("webhook configuration must have either service or url".into()),
    }
}

fn tls(config: &Value) -> Result<ClientConfig, String> {
    let mut roots = RootCertStore::empty();
    if let Some(bundle) = config["caBundle"].as_str().filter(|bundle| !bundle.is_empty()) {
        let pem = STANDARD.decode(bundle).map_err(|e| format!("caBundle is no base64: {e}"))?;
        for certificate in CertificateDer::pem_slice_iter(&pem) {
            let certificate = certificate.map_err(|e| format!("unable to load root certificates: {e}"))?;
            roots.add(certificate).map_err(|e| format!("unable to load root certificates: {e}"))?;
        }
        if roots.is_empty() {
            return Err("unable to load root certificates: unable to parse bytes as PEM block".into());
        }
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| format!("choose TLS versions: {e}"))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

/// What client-go says about an answer that is no 2xx (`apierrors.NewGenericServerResponse`).
fn refusal(code: u16, body: &[u8]) -> String {
    if let Ok(status) = serde_json::from_slice::<Value>(body)
        && status["kind"] == "Status"
        && let Some(message) = status["message"].as_str()
    {
        return message.to_owned();
    }
    let text: String = String::from_utf8_lossy(body).trim().chars().take(2048).collect();
    match code {
        400 => "the server rejected our request for an unknown reason".into(),
        401 => "the server has asked for the client to provide credentials".into(),
        403 => format!("forbidden: {text}"),
        404 => "the server could not find the requested resource".into(),
        405 => "the server does not allow this method on the requested resource".into(),
        406 => "the server was unable to respond with a content type that the client supports".into(),
        409 => "the server reported a conflict".into(),
        413 => format!("Request entity too large: {text}"),
        415 => "the body of the request was in an unknown format - accepted media types include: ".into(),
        422 => "the server rejected our request due to an error in our request".into(),
        429 => "the server has received too many requests and has asked us to try again later".into(),
        503 => "the server is currently unable to handle the request".into(),
        504 => "the server was unable to return a response in the time allotted, but may still be processing the request".into(),
        code if code >= 500 => format!("an error on the server ({text:?}) has prevented the request from succeeding"),
        code => format!("the server responded with the status code {code} but did not return more information"),
    }
}

/// The innermost error in Go's words where users search for them.
fn cause(error: &HttpError) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        text = inner.to_string();
        source = inner.source();
    }
    if error.is_connect() { text } else { format!("{error}: {text}") }
}

/// Opens connections: resolves a Service through its endpoints, then TLS.
#[derive(Clone)]
struct Connector {
    objects: Arc<dyn Objects>,
    network: Network,
    service: Option<Service>,
    tls: TlsConnector,
}

impl std::fmt::Debug for Connector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connector").field("service", &self.service).finish_non_exhaustive()
    }
}

impl Connector {
    async fn connect(self, uri: Uri) -> io::Result<Stream> {
        let host = uri.host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
        let (address, port) = match &self.service {
            Some(service) => service::resolve(self.objects.as_ref(), service).map_err(io::Error::other)?,
            None => (host.clone(), uri.port_u16().unwrap_or(443)),
        };
        let stream = self.network.connect(&address, port).await.map_err(|e| dial(&address, port, &e))?;
        let name = ServerName::try_from(host).map_err(io::Error::other)?;
        let stream = self.tls.connect(name, stream).await.map_err(|e| handshake(&e))?;
        Ok(Stream(TokioIo::new(stream)))
    }
}

fn dial(address: &str, port: u16, error: &io::Error) -> io::Error {
    let why = match error.kind() {
        io::ErrorKind::ConnectionRefused => "connect: connection refused".to_owned(),
        _ => error.to_string(),
    };
    io::Error::new(error.kind(), format!("dial tcp {address}:{port}: {why}"))
}

fn handshake(error: &io::Error) -> io::Error {
    use rustls::CertificateError as Certificate;
    let why = match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        Some(rustls::Error::InvalidCertificate(Certificate::UnknownIssuer | Certificate::BadSignature)) => {
            "tls: failed to verify certificate: x509: certificate signed by unknown authority".to_owned()
        }
        Some(rustls::Error::InvalidCertificate(
            Certificate::Expired
            | Certificate::ExpiredContext { .. }
            | Certificate::NotValidYet
            | Certificate::NotValidYetContext { .. },
        )) => {
            "tls: failed to verify certificate: x509: certificate has expired or is not yet valid".to_owned()
        }
        Some(rustls::Error::InvalidCertificate(Certificate::NotValidForNameContext {
            expected,
            presented,
        })) => {
            let presented = presented.join(", ");
            format!(
                "tls: failed to verify certificate: x509: certificate is valid for {presented}, not {}",
                expected.to_str()
            )
        }
        _ if error.kind() == io::ErrorKind::UnexpectedEof => "EOF".to_owned(),
        _ => format!("tls: {error}"),
    };
    io::Error::other(why)
}

impl tower_service::Service<Uri> for Connector {
    type Response = Stream;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Stream>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        Box::pin(self.clone().connect(uri))
    }
}

/// A TLS connection that tells the pool whether it speaks HTTP/2.
struct Stream(TokioIo<TlsStream<Link>>);

impl Connection for Stream {
    fn connected(&self) -> Connected {
        let (_, session) = self.0.inner().get_ref();
        let connected = Connected::new();
        if session.alpn_protocol() == Some(b"h2") { connected.negotiated_h2() } else { connected }
    }
}

impl hyper::rt::Read for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: hyper::rt::ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl hyper::rt::Write for Stream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
