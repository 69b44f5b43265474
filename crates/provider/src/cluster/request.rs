//! Requests in raw JSON.

use bytes::Bytes;
use http::header::{ACCEPT, CONTENT_TYPE};
use http::request::Builder;
use http::{Method, Request, Response};
use http_body_util::{BodyExt as _, Limited};
use kube::client::Body;
use serde_json::Value;

use super::Provider;
use crate::view::text;
use crate::{Error, Kind};

/// The largest answer that is read, bytes.
const MAX_ANSWER: usize = 64 << 20;

/// What is accepted, as client-go says it: virt-api's verbs name no type that they answer with, and refuse who
/// accepts JSON alone (406).
const ACCEPTED: &str = "application/json, */*";

impl Provider {
    /// Reads an object or a page of a list.
    pub(super) async fn get(&self, path: &str, doing: &str) -> Result<Value, Error> {
        value(&self.exchange(Method::GET, path, None, doing).await?, doing)
    }

    /// Reads an answer of a known form, without a tree of values in between.
    pub(super) async fn get_as<T: serde::de::DeserializeOwned>(
        &self,
        path: &str,
        doing: &str,
    ) -> Result<T, Error> {
        let bytes = self.exchange(Method::GET, path, None, doing).await?;
        serde_json::from_slice(&bytes).map_err(|error| broken(doing, &error.to_string()))
    }

    /// Reads an object that may not be there.
    pub(super) async fn find(&self, path: &str, doing: &str) -> Result<Option<Value>, Error> {
        match self.get(path, doing).await {
            Ok(object) => Ok(Some(object)),
            Err(error) if error.kind == Kind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Sends a write, once.
    pub(super) async fn write(
        &self,
        method: Method,
        path: &str,
        content_type: &str,
        body: &Value,
        doing: &str,
    ) -> Result<Value, Error> {
        value(&self.exchange(method, path, Some((content_type, body)), doing).await?, doing)
    }

    /// Creates an object, once.
    pub(super) async fn create(&self, path: &str, object: &Value, doing: &str) -> Result<Value, Error> {
        self.write(Method::POST, path, "application/json", object, doing).await
    }

    async fn exchange(
        &self,
        method: Method,
        path: &str,
        body: Option<(&str, &Value)>,
        doing: &str,
    ) -> Result<Bytes, Error> {
        let response = self.send(method, path, body, doing).await?;
        let status = response.status();
        let limited = Limited::new(response.into_body(), MAX_ANSWER).collect().await;
        let bytes = limited.map_err(|error| broken(doing, &error.to_string()))?.to_bytes();
        if status.is_success() { Ok(bytes) } else { Err(refusal(doing, status.as_u16(), &bytes)) }
    }

    /// Sends a request; the answer may be a refusal.
    pub(super) async fn send(
        &self,
        method: Method,
        path: &str,
        body: Option<(&str, &Value)>,
        doing: &str,
    ) -> Result<Response<Body>, Error> {
        let request = Request::builder().method(method).uri(path).header(ACCEPT, ACCEPTED);
        match body {
            Some((content_type, value)) => {
                let request = request.header(CONTENT_TYPE, content_type);
                self.dispatch(request, Bytes::from(value.to_string()), doing).await
            }
            None => self.dispatch(request, Bytes::new(), doing).await,
        }
    }

    /// Sends what has been put together, under the caller's identity.
    pub(super) async fn dispatch(
        &self,
        mut request: Builder,
        body: Bytes,
        doing: &str,
    ) -> Result<Response<Body>, Error> {
        for (name, value) in &self.identity {
            request = request.header(name, value);
        }
        let request = request.body(Body::from(body));
        let failed = |why: String| {
            let remedy = "check that the API server runs: `kubectl cluster-info`";
            Error::new(Kind::Cluster, doing, why, remedy)
        };
        let request = request.map_err(|error| failed(error.to_string()))?;
        self.client.send(request).await.map_err(|error| failed(chain(&error)))
    }
}

/// An answer as it is; empty ones are null.
fn value(bytes: &Bytes, doing: &str) -> Result<Value, Error> {
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return Ok(Value::Null);
    }
    serde_json::from_slice(bytes).map_err(|error| broken(doing, &error.to_string()))
}

fn broken(doing: &str, why: &str) -> Error {
    Error::refused(doing, 502, "", &format!("the answer broke off: {why}"))
}

/// What the API server says against it: a `Status`, or plain text; or Prometheus, which has a form of its own.
pub(super) fn refusal(doing: &str, code: u16, body: &[u8]) -> Error {
    match serde_json::from_slice::<Value>(body) {
        Ok(status) if status.is_object() => {
            let message =
                [text(&status, "/message"), text(&status, "/error")].into_iter().find(|one| !one.is_empty());
            Error::refused(doing, code, text(&status, "/reason"), message.unwrap_or_default())
        }
        Ok(Value::String(message)) => Error::refused(doing, code, "", &message),
        _ => {
            let message: String = String::from_utf8_lossy(body).trim().chars().take(500).collect();
            Error::refused(doing, code, "", &message)
        }
    }
}

/// An error with its causes, in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.ends_with(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}

/// Percent-encodes everything that is not unreserved (RFC 3986, section 2.3).
pub(super) fn encode(text: &str) -> String {
    use std::fmt::Write as _;
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(byte.into());
        } else {
            // writing to a String cannot fail
            let _ = write!(encoded, "%{byte:02X}");
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_are_encoded() {
        assert_eq!(encode("app in (a,b),c!=d"), "app%20in%20%28a%2Cb%29%2Cc%21%3Dd");
        assert_eq!(encode("ü"), "%C3%BC");
    }

    #[test]
    fn refusals_are_read_in_every_form() {
        let status = br#"{"kind": "Status", "reason": "NotFound", "message": "no such VM"}"#;
        assert_eq!(refusal("x", 404, status).wrong, "no such VM");
        let prometheus = br#"{"status": "error", "errorType": "bad_data", "error": "no such function"}"#;
        assert_eq!(refusal("x", 400, prometheus).wrong, "no such function");
        assert_eq!(refusal("x", 500, b"\"plain\"").wrong, "plain");
        assert_eq!(refusal("x", 503, b"upstream\n").wrong, "upstream");
        assert_eq!(refusal("x", 503, b"").wrong, "the API server gave no reason");
    }
}
