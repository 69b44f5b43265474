//! The document as a page that can be browsed and tried. It is one file, loads nothing from elsewhere and
//! keeps a token only as long as it is open.

use axum::http::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, X_CONTENT_TYPE_OPTIONS};
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;

use super::routes::{Route, read};

/// What is served here.
pub(super) const ROUTES: &[Route] = &[Route {
    open: true,
    kind: "text/html",
    ..read("/", "page", "This document as a page, to look around and to try it", "Any", || get(serve))
}];

/// `GET /`
pub(super) async fn serve() -> Response {
    // the hashes would change with every edit; the page has no content of others in it
    let policy = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'; \
                  form-action 'none'; frame-ancestors 'none'; base-uri 'none'";
    let headers = [
        (CONTENT_TYPE, "text/html; charset=utf-8"),
        (CONTENT_SECURITY_POLICY, policy),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (CACHE_CONTROL, "no-cache"),
    ];
    (headers, include_str!("page.html")).into_response()
}
