//! One line per write: who asked for what, and what came of it. No body and no token is written.

use axum::extract::Request;
use axum::http::{HeaderValue, Method, StatusCode};
use axum::middleware::Next;
use axum::response::Response;

use super::Caller;

/// The id of a request, beside its [`Caller`].
#[derive(Clone)]
pub(super) struct RequestId(pub HeaderValue);

/// What is written down about a write. One whose caller went away is written down as well: it may have been done.
struct Record {
    method: Method,
    path: String,
    id: String,
    who: String,
    status: Option<StatusCode>,
}

impl Drop for Record {
    fn drop(&mut self) {
        let Self { method, path, id, who, status } = self;
        match status.map(|status| status.as_u16()) {
            Some(status) => {
                tracing::info!(target: "audit", %method, path, who, request = id, status, "write");
            }
            None => {
                tracing::info!(target: "audit", %method, path, who, request = id, "write, abandoned by its caller");
            }
        }
    }
}

/// Stands before every operation that writes or leads into a guest.
pub(super) async fn record(request: Request, next: Next) -> Response {
    let extensions = request.extensions();
    let id = extensions.get::<RequestId>().and_then(|id| id.0.to_str().ok()).unwrap_or_default();
    let who = extensions.get::<Caller>().map(|caller| caller.name.clone()).unwrap_or_default();
    let mut record = Record {
        method: request.method().clone(),
        path: request.uri().path().to_owned(),
        id: id.to_owned(),
        who,
        status: None,
    };
    let response = next.run(request).await;
    record.status = Some(response.status());
    response
}
