//! Sends spans to an OTLP/HTTP collector, in batches, and gives up on what cannot be sent.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderName, HeaderValue};
use http::uri::Scheme;
use http::{HeaderMap, Request, Uri};
use http_body_util::{BodyExt, Full, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use rustls::crypto::CryptoProvider;
use rustls::{ClientConfig, RootCertStore};
use serde_json::Value;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::traces::{QUEUE, Tracer, message};
use crate::clock::Clock;

/// How long spans gather.
const GATHER: Duration = Duration::from_secs(2);
/// How long a collector may take for a batch.
const PATIENCE: Duration = Duration::from_secs(10);
/// Of a collector's answer, only an error's beginning is of interest.
const ANSWER: usize = 4096;

/// Why traces cannot be sent at all.
#[derive(Debug, thiserror::Error)]
pub enum TracesError {
    /// The endpoint is not a URL.
    #[error("the OTLP endpoint is not a URL: {0}")]
    Endpoint(#[from] http::uri::InvalidUri),
    /// `OTEL_EXPORTER_OTLP_HEADERS` is not `key=value,…`; the text is not shown, it may hold a token.
    #[error("OTEL_EXPORTER_OTLP_HEADERS: entry {0} is not key=value")]
    Headers(usize),
    /// No trust store for an https collector.
    #[error("no trust store for the OTLP collector: {0}; install one, or name it with SSL_CERT_FILE")]
    Roots(std::io::Error),
    /// TLS cannot be set up.
    #[error("cannot set up TLS for the OTLP collector: {0}")]
    Tls(#[from] rustls::Error),
}

/// Empties the queue of a [`Tracer`].
pub struct Exporter {
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    uri: Uri,
    headers: HeaderMap,
    version: String,
    spans: mpsc::Receiver<Vec<Value>>,
}

impl Exporter {
    /// An exporter to the collector at `endpoint` (its base URL) and the tracer that feeds it.
    /// `headers` as in `OTEL_EXPORTER_OTLP_HEADERS`: `key=value,key=value`.
    pub fn new(
        endpoint: &str,
        headers: Option<&str>,
        version: &str,
        provider: Arc<CryptoProvider>,
        clock: Clock,
    ) -> Result<(Self, Tracer), TracesError> {
        let uri: Uri = format!("{}/v1/traces", endpoint.trim_end_matches('/')).parse()?;
        let headers = read_headers(headers.unwrap_or_default())?;
        let builder = HttpsConnectorBuilder::new();
        let connector = if uri.scheme() == Some(&Scheme::HTTPS) {
            let roots = builder.with_provider_and_native_roots(CryptoProvider::clone(&provider));
            roots.map_err(TracesError::Roots)?
        } else {
            // a collector beside us in plain HTTP needs no trust store, and a small image may have none
            let tls = ClientConfig::builder_with_provider(Arc::clone(&provider))
                .with_safe_default_protocol_versions()?
                .with_root_certificates(RootCertStore::empty())
                .with_no_client_auth();
            builder.with_tls_config(tls)
        };
        let connector = connector.https_or_http().enable_http1().build();
        let client = Client::builder(TokioExecutor::new()).build(connector);
        let (tracer, spans) = Tracer::new(provider, clock);
        Ok((Self { client, uri, headers, version: version.to_owned(), spans }, tracer))
    }

    /// Sends until `stop`, and then once more what is left.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut batch = Vec::new();
        let mut reachable = true;
        while !stop.is_cancelled() {
            tokio::select! {
                () = stop.cancelled() => {}
                received = self.spans.recv_many(&mut batch, QUEUE) => {
                    if received == 0 {
                        return;
                    }
                    tokio::select! {
                        () = stop.cancelled() => {}
                        () = tokio::time::sleep(GATHER) => {}
                    }
                }
            }
            while let Ok(more) = self.spans.try_recv() {
                batch.push(more);
            }
            if batch.is_empty() {
                continue;
            }
            let spans: Vec<Value> = batch.drain(..).flatten().collect();
            match (self.send(&spans).await, reachable) {
                (Ok(()), false) => {
                    tracing::info!("traces are sent again");
                    reachable = true;
                }
                (Err(error), true) => {
                    tracing::warn!(endpoint = %self.uri, error, "traces cannot be sent and are dropped");
                    reachable = false;
                }
                _ => {}
            }
        }
    }

    async fn send(&self, spans: &[Value]) -> Result<(), String> {
        let body = message(&self.version, spans).to_string();
        let mut request = Request::post(self.uri.clone())
            .header(CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(body)))
            .map_err(|error| error.to_string())?;
        request.headers_mut().extend(self.headers.clone());
        let exchange = async {
            let answer =
                self.client.request(request).await.map_err(|error| crate::kubernetes::chain(&error))?;
            let status = answer.status();
            let body = Limited::new(answer.into_body(), ANSWER).collect().await;
            if status.is_success() {
                return Ok(());
            }
            let text = body.map(|body| String::from_utf8_lossy(&body.to_bytes()).into_owned());
            Err(format!("HTTP {status}: {}", text.unwrap_or_default()))
        };
        tokio::time::timeout(PATIENCE, exchange)
            .await
            .unwrap_or_else(|_| Err(format!("no answer within {} s", PATIENCE.as_secs())))
    }
}

fn read_headers(text: &str) -> Result<HeaderMap, TracesError> {
    let mut headers = HeaderMap::new();
    for (at, entry) in text.split(',').filter(|entry| !entry.trim().is_empty()).enumerate() {
        let pair = entry.split_once('=').and_then(|(key, value)| {
            let key: HeaderName = key.trim().parse().ok()?;
            let mut value: HeaderValue = value.trim().parse().ok()?;
            value.set_sensitive(true);
            Some((key, value))
        });
        let (key, value) = pair.ok_or(TracesError::Headers(at + 1))?;
        headers.insert(key, value);
    }
    Ok(headers)
}
