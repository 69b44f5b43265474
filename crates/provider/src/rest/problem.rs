//! Errors as `application/problem+json` (RFC 9457), with the stable codes of [`crate::Kind`].

use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use serde_json::json;

use crate::Error;

/// An error on its way to the caller.
pub(super) struct Problem(Error);

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        Self(error)
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let Error { kind, doing, wrong, remedy } = self.0;
        let status = kind.status();
        let body = json!({"type": format!("urn:virt-steward:problem:{}", kind.code()), "code": kind.code(),
            "title": doing, "status": status.as_u16(), "detail": wrong, "remedy": remedy});
        (status, [(CONTENT_TYPE, "application/problem+json")], body.to_string()).into_response()
    }
}
