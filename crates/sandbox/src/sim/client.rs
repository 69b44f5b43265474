//! Requests to the API server on raw JSON: nothing of an object is lost on the way but
//! `metadata.managedFields`, which the server keeps for itself.

use std::sync::Arc;
use std::time::Duration;

use apimachinery::tree::Value;
use http::header::{ACCEPT, CONTENT_TYPE, USER_AGENT};
use http::{HeaderName, HeaderValue, Method, Request};
use http_body_util::BodyExt;
use jiff::Timestamp;
use kube::client::Body;

use super::identity::{Identity, NODE_NAME_EXTRA};
use crate::clock::{Clock, SystemClock};
use crate::network::Network;

/// A request takes at most this long; a watch has its own limit.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);

/// What client-go accepts: virt-api's verbs refuse who reads JSON alone.
const ACCEPTED: &str = "application/json, */*";

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The server answered with a `Status`.
    #[error("{doing}: {message} ({code} {reason})")]
    Refused { doing: String, code: u16, reason: String, message: String },
    /// The server answered with something that is no JSON.
    #[error("{doing}: the answer is no JSON")]
    Garbled { doing: String, source: serde_json::Error },
    /// The request could not be built, for example because a name is no URL segment.
    #[error("{doing}: cannot build the request")]
    Build { doing: String, source: http::Error },
    /// The connection failed.
    #[error("{doing}: cannot reach the API server")]
    Unreachable { doing: String, source: kube::Error },
    /// The answer broke off.
    #[error("{doing}: the answer broke off")]
    BrokenOff { doing: String, source: kube::Error },
    /// No answer in time.
    #[error("{doing}: no answer within {} s", REQUEST_TIMEOUT.as_secs())]
    TimedOut { doing: String },
}

impl ClientError {
    /// The HTTP status code of a refusal; 0 for everything else.
    pub fn code(&self) -> u16 {
        match self {
            Self::Refused { code, .. } => *code,
            _ => 0,
        }
    }

    /// What the server said, or what went wrong on the way.
    pub fn message(&self) -> String {
        match self {
            Self::Refused { message, .. } => message.clone(),
            other => other.to_string(),
        }
    }
}

/// Talks to one API server on behalf of many identities, over one pool of connections, and tells the
/// components their time and how they reach each other.
#[derive(Clone)]
pub struct Client {
    http: kube::Client,
    clock: Arc<dyn Clock>,
    network: Network,
}

impl Client {
    /// A client on this machine, in its time.
    pub fn new(client: kube::Client) -> Self {
        Self::within(client, Arc::new(SystemClock), Network::loopback())
    }

    pub fn within(http: kube::Client, clock: Arc<dyn Clock>, network: Network) -> Self {
        Self { http, clock, network }
    }

    /// What the components' clocks show.
    pub fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// Where components listen.
    pub fn network(&self) -> &Network {
        &self.network
    }

    /// Reads one path. `None`: as the owner of the credentials.
    pub async fn get(&self, who: Option<&Identity>, path: &str) -> Result<Value, ClientError> {
        self.call(who, Method::GET, path, "", Vec::new()).await
    }

    /// Sends a body and returns the answer.
    pub async fn send(
        &self,
        who: Option<&Identity>,
        method: Method,
        path: &str,
        content_type: &'static str,
        body: &Value,
    ) -> Result<Value, ClientError> {
        let body = if body.is_null() { Vec::new() } else { to_text(body) };
        self.call(who, method, path, content_type, body).await
    }

    /// Opens a stream (a watch) and returns its body.
    pub async fn open(&self, path: &str) -> Result<Body, ClientError> {
        let doing = || format!("GET {path}");
        let request = build(None, Method::GET, path, "", Vec::new())
            .map_err(|source| ClientError::Build { doing: doing(), source })?;
        let answer = tokio::time::timeout(REQUEST_TIMEOUT, self.http.send(request))
            .await
            .map_err(|_| ClientError::TimedOut { doing: doing() })?
            .map_err(|source| ClientError::Unreachable { doing: doing(), source })?;
        let (parts, body) = answer.into_parts();
        if parts.status.is_success() {
            return Ok(body);
        }
        let bytes =
            body.collect().await.map_err(|source| ClientError::BrokenOff { doing: doing(), source })?;
        Err(refusal(doing(), parts.status.as_u16(), &bytes.to_bytes()))
    }

    async fn call(
        &self,
        who: Option<&Identity>,
        method: Method,
        path: &str,
        content_type: &'static str,
        body: Vec<u8>,
    ) -> Result<Value, ClientError> {
        let doing = || format!("{method} {path}");
        let request = build(who, method.clone(), path, content_type, body)
            .map_err(|source| ClientError::Build { doing: doing(), source })?;
        let exchange = async {
            let answer = self
                .http
                .send(request)
                .await
                .map_err(|source| ClientError::Unreachable { doing: doing(), source })?;
            let status = answer.status();
            let bytes = answer
                .into_body()
                .collect()
                .await
                .map_err(|source| ClientError::BrokenOff { doing: doing(), source })?
                .to_bytes();
            if !status.is_success() {
                return Err(refusal(doing(), status.as_u16(), &bytes));
            }
            if bytes.is_empty() {
                // Verbs of virt-api answer 202 with nothing.
                return Ok(Value::Null);
            }
            super::lean::parse(&bytes).map_err(|source| ClientError::Garbled { doing: doing(), source })
        };
        tokio::time::timeout(REQUEST_TIMEOUT, exchange)
            .await
            .map_err(|_| ClientError::TimedOut { doing: doing() })?
    }
}

fn to_text(body: &Value) -> Vec<u8> {
    // A tree is always JSON.
    serde_json::to_vec(body).unwrap_or_default()
}

fn build(
    who: Option<&Identity>,
    method: Method,
    path: &str,
    content_type: &'static str,
    body: Vec<u8>,
) -> Result<Request<Body>, http::Error> {
    let mut request = Request::builder().method(method).uri(path).header(ACCEPT, ACCEPTED);
    if !content_type.is_empty() {
        request = request.header(CONTENT_TYPE, content_type);
    }
    if let Some(who) = who {
        request = request.header(USER_AGENT, who.agent).header("Impersonate-User", who.user.as_ref());
        for group in who.groups.iter() {
            request = request.header("Impersonate-Group", *group);
        }
        if let Some(node) = &who.node {
            // The key is percent-encoded, as a header name has no slash.
            let name = format!("impersonate-extra-{}", NODE_NAME_EXTRA.replace('/', "%2f"));
            let value = HeaderValue::from_str(node)?;
            request = request.header(HeaderName::from_bytes(name.as_bytes())?, value);
        }
    }
    request.body(Body::from(body))
}

fn refusal(doing: String, code: u16, body: &[u8]) -> ClientError {
    let status: Value = serde_json::from_slice(body).unwrap_or_default();
    let message = match super::json::text(&status, "/message") {
        "" => String::from_utf8_lossy(&body[..body.len().min(300)]).into_owned(),
        message => message.to_owned(),
    };
    ClientError::Refused { doing, code, reason: super::json::text(&status, "/reason").to_owned(), message }
}
