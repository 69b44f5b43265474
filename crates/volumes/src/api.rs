//! Requests on raw JSON.

use http::header::CONTENT_TYPE;
use http::{HeaderName, HeaderValue, Method, Request, StatusCode};
use http_body_util::{BodyExt, Limited};
use kube::Client;
use kube::client::Body;
use serde_json::Value;

use crate::Error;

/// The largest answer that is read, bytes.
const MOST: usize = 64 << 20;

/// An answer.
pub(crate) struct Reply {
    pub(crate) status: StatusCode,
    pub(crate) body: Value,
}

impl Reply {
    /// The object; a refusal is an error of what was being done.
    pub(crate) fn object(self, doing: &str) -> Result<Value, Error> {
        if self.status.is_success() {
            return Ok(self.body);
        }
        let wrong = self.body["message"].as_str().unwrap_or("the API server gave no reason").to_owned();
        Err(Error::Api { doing: doing.to_owned(), wrong, code: self.status.as_u16() })
    }
}

#[derive(Clone)]
pub(crate) struct Api {
    client: Client,
    headers: Vec<(HeaderName, HeaderValue)>,
}

impl Api {
    pub(crate) fn new(client: Client) -> Self {
        Self { client, headers: Vec::new() }
    }

    pub(crate) fn with_headers(self, headers: Vec<(HeaderName, HeaderValue)>) -> Self {
        Self { headers, ..self }
    }

    /// Sends a body; null: none.
    pub(crate) async fn send(
        &self,
        method: Method,
        path: &str,
        content_type: &str,
        body: &Value,
    ) -> Result<Reply, Error> {
        let doing = format!("{method} {path}");
        let failed = |wrong: String| Error::Api { doing: doing.clone(), wrong, code: 0 };
        let body = if body.is_null() { Vec::new() } else { body.to_string().into_bytes() };
        let mut request =
            Request::builder().method(method.clone()).uri(path).header(CONTENT_TYPE, content_type);
        for (name, value) in &self.headers {
            request = request.header(name, value);
        }
        let request = request.body(Body::from(body)).map_err(|error| failed(error.to_string()))?;
        let answer = self.client.send(request).await.map_err(|error| failed(error.to_string()))?;
        let status = answer.status();
        let bytes = Limited::new(answer.into_body(), MOST)
            .collect()
            .await
            .map_err(|error| failed(format!("the answer broke off: {error}")))?
            .to_bytes();
        // Verbs of virt-api answer 202 with nothing.
        let body = if bytes.is_empty() { Ok(Value::Null) } else { serde_json::from_slice(&bytes) };
        let body = match body {
            Ok(body) => body,
            Err(_) if !status.is_success() => Value::Null,
            Err(error) => return Err(failed(format!("the answer is no JSON: {error}"))),
        };
        Ok(Reply { status, body })
    }

    /// An object, or null when it is not there.
    pub(crate) async fn find(&self, path: &str) -> Result<Value, Error> {
        let reply = self.send(Method::GET, path, "application/json", &Value::Null).await?;
        if reply.status == StatusCode::NOT_FOUND {
            return Ok(Value::Null);
        }
        reply.object(&format!("reading {path}"))
    }

    /// The items of a list; none when the kind is not there.
    pub(crate) async fn items(&self, path: &str) -> Result<Vec<Value>, Error> {
        let mut list = self.find(path).await?;
        Ok(match list["items"].take() {
            Value::Array(items) => items,
            _ => Vec::new(),
        })
    }
}
