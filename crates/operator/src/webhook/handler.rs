//! HTTP requests of the webhook port: which path, which method, how much, how long.

use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use bytes::Bytes;
use features::{ClusterFacts, Relevant};
use http::header::{ALLOW, CONTENT_LENGTH, CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::Body;
use serde::de::IgnoredAny;
use serde_json::Value;
use tokio::sync::{Semaphore, SemaphorePermit};

use super::decide::{DecideError, Decision, answer, decide, guarded};
use super::police::police;
use super::relevance::may_ask;
use super::review::{self, AdmissionRequest, ReviewError};
use super::tell;
use crate::config::Config;
use crate::facts::{Policies, Reader};
use crate::hotplug::{self, Steward};
use crate::readiness::Readiness;
use crate::telemetry::{Metrics, Parent, Tracer};

/// Where launcher pods are sent, for the way of Plugins.
pub const LAUNCHER: &str = "/launcher";

/// What the handler works with: all of it shared, none of it locked for long.
pub struct Parts {
    /// What the cluster has.
    pub facts: Arc<ArcSwap<ClusterFacts>>,
    /// What VMs may use.
    pub policies: Arc<Policies>,
    /// How ConfigMaps and Secrets are read.
    pub reader: Reader,
    /// Whether we are fit to serve.
    pub readiness: Arc<Readiness>,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// Where spans go; `None`: nowhere.
    pub tracer: Option<Tracer>,
    /// The guard and the gate of hotplugged volumes; `None`: switched off.
    pub steward: Option<Arc<Steward>>,
}

/// Answers every request on the webhook port.
pub struct Handler {
    features: features::Config,
    max_body: usize,
    read_timeout: Duration,
    request_timeout: Duration,
    /// In-place resize is on.
    resizes: bool,
    permits: Semaphore,
    parts: Parts,
}

/// Why an admission request is answered with an HTTP error.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error("{0} must be sent with POST")]
    Method(&'static str),
    #[error("content type {0:?} is not accepted; send application/json")]
    ContentType(String),
    #[error("the body is larger than {0} bytes")]
    TooLarge(usize),
    #[error("the body did not arrive within {} s", .0.as_secs())]
    TooSlow(Duration),
    #[error("the body could not be read: {0}")]
    Broken(String),
    #[error("too many requests are being decided; try again")]
    Busy,
    #[error(transparent)]
    Review(#[from] ReviewError),
    #[error(transparent)]
    Decide(#[from] DecideError),
}

impl Refusal {
    fn status(&self) -> StatusCode {
        match self {
            Self::Method(_) => StatusCode::METHOD_NOT_ALLOWED,
            Self::ContentType(_) => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::TooLarge(_) => StatusCode::PAYLOAD_TOO_LARGE,
            Self::TooSlow(_) => StatusCode::REQUEST_TIMEOUT,
            Self::Busy => StatusCode::SERVICE_UNAVAILABLE,
            Self::Broken(_) | Self::Review(_) => StatusCode::BAD_REQUEST,
            Self::Decide(DecideError::Panic { .. } | DecideError::Write { .. }) => {
                StatusCode::INTERNAL_SERVER_ERROR
            }
        }
    }

    fn response(&self) -> Response<Full<Bytes>> {
        let mut response = text(self.status(), self.to_string());
        match self {
            Self::Method(_) => response.headers_mut().insert(ALLOW, HeaderValue::from_static("POST")),
            Self::Busy => response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1")),
            _ => None,
        };
        response
    }
}

impl Handler {
    /// A handler with the limits of `config`.
    pub fn new(config: &Config, parts: Parts) -> Self {
        Self {
            features: config.features.clone(),
            max_body: config.server.max_body_bytes,
            read_timeout: config.server.read_timeout(),
            request_timeout: config.server.request_timeout(),
            resizes: config.resize.enabled,
            permits: Semaphore::new(config.server.max_concurrent_requests),
            parts,
        }
    }

    /// Answers one request; there is an answer to everything.
    pub async fn handle<B>(&self, request: Request<B>) -> Response<Full<Bytes>>
    where
        B: Body<Data = Bytes> + Send,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let (head, body) = request.into_parts();
        match head.uri.path() {
            "/mutate" => self.admission("/mutate", &head, body).await,
            "/validate" => self.admission("/validate", &head, body).await,
            crate::resize::PATH if self.resizes => self.resize(&head, body).await,
            LAUNCHER => self.admission(LAUNCHER, &head, body).await,
            "/guard" => self.hotplug(hotplug::GUARD, &head, body).await,
            "/gate" => self.hotplug(hotplug::GATE, &head, body).await,
            "/mounts" => self.hotplug(hotplug::MOUNTS, &head, body).await,
            path @ ("/healthz" | "/livez" | "/readyz") => {
                if !matches!(head.method, Method::GET | Method::HEAD) {
                    let mut response = text(StatusCode::METHOD_NOT_ALLOWED, format!("{path} answers GET"));
                    response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
                    return response;
                }
                if path != "/readyz" {
                    return text(StatusCode::OK, "ok".into());
                }
                let report = self.parts.readiness.report();
                let verbose = head.uri.query().is_some_and(|query| {
                    query.split('&').any(|pair| pair == "verbose" || pair.starts_with("verbose="))
                });
                let status = if report.ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
                text(status, report.text(verbose))
            }
            _ => text(
                StatusCode::NOT_FOUND,
                "not found; there are /mutate, /validate, /launcher, /healthz and /readyz".into(),
            ),
        }
    }

    /// virt-controller's patches of sockets and guest memory.
    async fn resize<B>(&self, head: &http::request::Parts, body: B) -> Response<Full<Bytes>>
    where
        B: Body<Data = Bytes> + Send,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let begun = Instant::now();
        let path = crate::resize::PATH;
        let reviewed = match self.received(path, &head.method, &head.headers, body).await {
            Ok((_permit, body)) => self.ruled(&body, begun),
            Err(refusal) => Err(refusal),
        };
        reviewed.unwrap_or_else(|refusal| {
            tracing::warn!(path, status = refusal.status().as_u16(), error = %refusal, "request refused");
            refusal.response()
        })
    }

    fn ruled(&self, body: &[u8], begun: Instant) -> Result<Response<Full<Bytes>>, Refusal> {
        let (version, request) = review::parse::<Value>(review::text(body)?)?;
        let (held, answer) = crate::resize::review(&request);
        let written = review::write(version, &request.uid, &answer)
            .map_err(|source| DecideError::Write { uid: request.uid.to_string(), source })?;
        self.parts.metrics.request("resize", held.name(), begun.elapsed());
        tracing::debug!(vmi = %request.name, namespace = %request.namespace, ruling = held.name(), "resize");
        let mut response = Response::new(Full::new(Bytes::from(written)));
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        Ok(response)
    }

    /// The webhooks of hotplugged volumes.
    async fn hotplug<B>(
        &self,
        path: &'static str,
        head: &http::request::Parts,
        body: B,
    ) -> Response<Full<Bytes>>
    where
        B: Body<Data = Bytes> + Send,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let Some(steward) = &self.parts.steward else {
            return text(
                StatusCode::NOT_FOUND,
                format!("{path} is switched off (hotplug.guard, hotplug.gate)"),
            );
        };
        let begun = Instant::now();
        let received = self.received(path, &head.method, &head.headers, body).await;
        let (_permit, body) = match received {
            Ok(received) => received,
            Err(refusal) => return refusal.response(),
        };
        let asked: Value = match serde_json::from_slice(&body) {
            Ok(asked) => asked,
            Err(error) => return Refusal::Review(ReviewError::Malformed(error)).response(),
        };
        if asked["request"]["uid"].as_str().is_none() {
            return Refusal::Review(ReviewError::NoRequest).response();
        }
        let limit = limit(head.uri.query(), self.request_timeout);
        let answer = steward.answer(path, &asked, limit).await;
        self.parts.metrics.request(
            "hotplug",
            if answer.is_allowed() { "allowed" } else { "denied" },
            begun.elapsed(),
        );
        let mut response = Response::new(Full::new(Bytes::from(answer.review(&asked).to_string())));
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        response
    }

    async fn admission<B>(
        &self,
        path: &'static str,
        head: &http::request::Parts,
        body: B,
    ) -> Response<Full<Bytes>>
    where
        B: Body<Data = Bytes> + Send,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let begun = Instant::now();
        let answered = match self.received(path, &head.method, &head.headers, body).await {
            Ok((_permit, body)) => {
                let parent = self.parts.tracer.as_ref().and_then(|_| Parent::from_headers(&head.headers));
                let limit = limit(head.uri.query(), self.request_timeout);
                self.review(path, &body, begun, limit, parent).await
            }
            Err(refusal) => Err(refusal),
        };
        answered.unwrap_or_else(|refusal| {
            let status = refusal.status();
            self.parts.metrics.request("all", "error", begun.elapsed());
            if status.is_server_error() {
                tracing::error!(path, status = status.as_u16(), error = %refusal, "request failed");
            } else {
                tracing::warn!(path, status = status.as_u16(), error = %refusal, "request refused");
            }
            refusal.response()
        })
    }

    /// The body, once a place among the requests being decided is free: bodies are held in memory,
    /// so the place comes first.
    async fn received<B>(
        &self,
        path: &'static str,
        method: &Method,
        headers: &HeaderMap,
        body: B,
    ) -> Result<(SemaphorePermit<'_>, Bytes), Refusal>
    where
        B: Body<Data = Bytes> + Send,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        if method != Method::POST {
            return Err(Refusal::Method(path));
        }
        let content_type = headers.get(CONTENT_TYPE).map_or(&b""[..], HeaderValue::as_bytes);
        if !is_json(content_type) {
            return Err(Refusal::ContentType(String::from_utf8_lossy(content_type).into_owned()));
        }
        let announced = headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
        if announced.is_some_and(|length: u64| length > self.max_body as u64) {
            // Closed while the peer still sends, the connection would be reset and the answer lost.
            let _ = tokio::time::timeout(self.read_timeout, discard(body, 2 * self.max_body)).await;
            return Err(Refusal::TooLarge(self.max_body));
        }
        let permit = match self.permits.try_acquire() {
            Ok(permit) => permit,
            Err(_) => tokio::time::timeout(self.read_timeout, self.permits.acquire())
                .await
                .ok()
                .and_then(Result::ok)
                .ok_or(Refusal::Busy)?,
        };
        let limited = std::pin::pin!(Limited::new(body, self.max_body).collect());
        let collected = tokio::time::timeout(self.read_timeout, limited)
            .await
            .map_err(|_| Refusal::TooSlow(self.read_timeout))?
            .map_err(|error| {
                if error.is::<LengthLimitError>() {
                    Refusal::TooLarge(self.max_body)
                } else {
                    Refusal::Broken(error.to_string())
                }
            })?;
        Ok((permit, collected.to_bytes()))
    }

    async fn review(
        &self,
        path: &'static str,
        body: &[u8],
        begun: Instant,
        limit: Duration,
        parent: Option<Parent>,
    ) -> Result<Response<Full<Bytes>>, Refusal> {
        let text = review::text(body)?;
        if path == "/validate" {
            let (version, request) = review::parse::<Value>(text)?;
            let availability = self.features.availability;
            let decision = police(&request, &self.parts.policies, &self.parts.facts.load(), availability)?;
            return self.answer(path, version, &request, &decision, begun, parent);
        }
        if path == LAUNCHER {
            let (version, request) = review::parse::<Value>(text)?;
            let pod = request
                .object
                .as_ref()
                .filter(|_| request.kind.kind == "Pod" && request.operation == "CREATE");
            let decided =
                pod.map(|pod| guarded(&request.uid, || features::launcher::admit(pod, &self.features)));
            let decision = Decision { verdict: decided.transpose()?, observed: None };
            return self.answer(path, version, &request, &decision, begun, parent);
        }
        if !may_ask(text) {
            let (version, request) = review::parse::<IgnoredAny>(text)?;
            return self.answer(path, version, &request, &Decision::untouched(), begun, parent);
        }
        let (version, request) = review::parse::<Relevant>(text)?;
        let cluster = self.parts.facts.load_full();
        let decision = decide(&request, &cluster, &self.features, &self.parts.reader, limit).await?;
        self.answer(path, version, &request, &decision, begun, parent)
    }

    fn answer<O>(
        &self,
        path: &'static str,
        version: &'static str,
        request: &AdmissionRequest<'_, O>,
        decision: &Decision,
        begun: Instant,
        parent: Option<Parent>,
    ) -> Result<Response<Full<Bytes>>, Refusal> {
        let answer = answer(&request.uid, decision)?;
        let written = review::write(version, &request.uid, &answer)
            .map_err(|source| DecideError::Write { uid: request.uid.to_string(), source })?;
        tell::decided(path, request, decision, begun, parent, &self.parts);
        let mut response = Response::new(Full::new(Bytes::from(written)));
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        Ok(response)
    }
}

/// Reads and forgets up to `limit` bytes of a body.
async fn discard<B>(body: B, limit: usize)
where
    B: Body<Data = Bytes>,
{
    let mut body = std::pin::pin!(body);
    let mut left = limit;
    while let Some(Ok(frame)) = body.frame().await {
        let read = frame.data_ref().map_or(0, Bytes::len);
        let Some(rest) = left.checked_sub(read) else { return };
        left = rest;
    }
}

/// How long reads may take: as configured, and less than what the API server grants, which it says
/// as `?timeout=10s` (`k8s.io/apiserver pkg/admission/plugin/webhook`); the rest is for the answer.
fn limit(query: Option<&str>, configured: Duration) -> Duration {
    let granted = query
        .unwrap_or_default()
        .split('&')
        .find_map(|pair| pair.strip_prefix("timeout=")?.strip_suffix('s')?.parse().ok())
        .map(Duration::from_secs);
    granted.map_or(configured, |granted| configured.min(granted.saturating_mul(4) / 5))
}

/// `application/json`, with or without parameters, in any case (RFC 9110, 8.3.1).
fn is_json(content_type: &[u8]) -> bool {
    let essence = content_type.split(|byte| *byte == b';').next().unwrap_or_default();
    essence.trim_ascii().eq_ignore_ascii_case(b"application/json")
}

fn text(status: StatusCode, mut message: String) -> Response<Full<Bytes>> {
    message.push('\n');
    let mut response = Response::new(Full::new(Bytes::from(message)));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_end_before_the_api_server_gives_up() {
        let configured = Duration::from_secs(8);
        for (query, millis) in [
            (None, 8000),
            (Some("timeout=10s"), 8000),
            (Some("dryRun=All&timeout=5s"), 4000),
            (Some("timeout=1s"), 800),
            (Some("timeout=soon"), 8000),
            (Some("timeout=99999999999999999999s"), 8000),
            (Some("timeout=18446744073709551615s"), 8000),
        ] {
            assert_eq!(limit(query, configured), Duration::from_millis(millis), "{query:?}");
        }
    }

    #[test]
    fn content_types() {
        for (text, want) in [
            ("application/json", true),
            ("Application/JSON ; charset=utf-8", true),
            ("application/json-patch+json", false),
            ("", false),
        ] {
            assert_eq!(is_json(text.as_bytes()), want, "{text}");
        }
    }
}
