//! Errors as `application/problem+json` (RFC 9457), with the stable codes of [`crate::Kind`].

use axum::body::to_bytes;
use axum::extract::Request;
use axum::http::StatusCode;
use axum::http::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderValue};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use serde_json::json;

use crate::{Error, Kind};

const PROBLEM: HeaderValue = HeaderValue::from_static("application/problem+json");

/// The longest that the router has to say, bytes.
const LONGEST: usize = 4096;

/// An error on its way to the caller.
pub(super) struct Problem(Error);

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        Self(error)
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = self.0.kind.status();
        (status, [(CONTENT_TYPE, PROBLEM)], body(&self.0, status)).into_response()
    }
}

fn body(error: &Error, status: StatusCode) -> String {
    let code = error.kind.code();
    json!({"type": format!("urn:virt-steward:problem:{code}"), "code": code, "title": error.doing,
        "status": status.as_u16(), "detail": error.wrong, "remedy": error.remedy})
    .to_string()
}

/// Gives what the router itself refuses, such as a method that a path does not have, the form of all other errors.
pub(super) async fn in_one_form(request: Request, next: Next) -> Response {
    let doing = format!("serving {} `{}`", request.method(), request.uri().path());
    let response = next.run(request).await;
    let status = response.status();
    let is_error = status.is_client_error() || status.is_server_error();
    if !is_error || response.headers().get(CONTENT_TYPE) == Some(&PROBLEM) {
        return response;
    }
    let (mut parts, said) = response.into_parts();
    let said = to_bytes(said, LONGEST).await.unwrap_or_default();
    let wrong = match (status, String::from_utf8_lossy(&said).trim()) {
        (StatusCode::METHOD_NOT_ALLOWED, _) => "the path has no such method".to_owned(),
        (_, "") => status.canonical_reason().unwrap_or("it was refused").to_lowercase(),
        (_, text) => text.to_owned(),
    };
    let kind = if status.is_client_error() { Kind::InvalidArgument } else { Kind::Cluster };
    let error = Error::new(kind, doing, wrong, "see /openapi.json for what there is");
    parts.headers.remove(CONTENT_LENGTH);
    parts.headers.insert(CONTENT_TYPE, PROBLEM);
    Response::from_parts(parts, body(&error, status).into())
}
