//! One line per write: who asked for what, and what came of it. No body and no token is written.

use axum::extract::Request;
use axum::http::{HeaderValue, Method, StatusCode};

/// What is written down about a request, when it may change something.
pub(super) struct Record(Option<(Method, String, HeaderValue, String)>);

impl Record {
    /// Remembers a request before it is served.
    pub(super) fn of(request: &Request, id: &HeaderValue, who: &str) -> Self {
        let path = request.uri().path();
        let reads = request.method() == Method::GET
            || ["/list", "/query", "/process"].iter().any(|end| path.ends_with(end));
        Self((!reads).then(|| (request.method().clone(), path.to_owned(), id.clone(), who.to_owned())))
    }

    /// Writes the line.
    pub(super) fn write(self, status: StatusCode) {
        if let Some((method, path, id, who)) = self.0 {
            let id = id.to_str().unwrap_or_default();
            tracing::info!(target: "audit", %method, path, who, request = id, status = status.as_u16(), "write");
        }
    }
}
