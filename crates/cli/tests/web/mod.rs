//! A plain HTTP server that takes `PUT` from whoever knows its secret.

#![allow(dead_code, reason = "each test program uses its part of it")]
#![allow(clippy::unwrap_used, reason = "a helper of tests: whatever fails here fails the test")]

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;

/// What it wants to see.
pub const AUTHORIZATION: &str = "Bearer of-this-test";

/// What it was sent, by path.
#[derive(Clone, Default)]
pub struct Files(Arc<Mutex<BTreeMap<String, Bytes>>>);

impl Files {
    /// Serves until the test ends; answers the files and the URL.
    pub async fn start() -> (Self, String) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let files = Self::default();
        let all = files.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let files = all.clone();
                let service = hyper::service::service_fn(move |request| {
                    let files = files.clone();
                    async move { Ok::<_, Infallible>(files.answer(request).await) }
                });
                let http = hyper::server::conn::http1::Builder::new();
                tokio::spawn(http.serve_connection(TokioIo::new(stream), service));
            }
        });
        (files, url)
    }

    /// Everything that is there.
    pub fn all(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Bytes>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn answer(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let (parts, body) = request.into_parts();
        let status = |status: StatusCode| {
            let mut response = Response::new(Full::default());
            *response.status_mut() = status;
            response
        };
        if parts.headers.get("authorization").is_none_or(|value| value != AUTHORIZATION) {
            return status(StatusCode::FORBIDDEN);
        }
        let path = parts.uri.path().to_owned();
        if parts.method == Method::PUT {
            let Ok(body) = body.collect().await else { return status(StatusCode::BAD_REQUEST) };
            self.all().insert(path, body.to_bytes());
            return status(StatusCode::CREATED);
        }
        let Some(length) = self.all().get(&path).map(Bytes::len) else {
            return status(StatusCode::NOT_FOUND);
        };
        let mut head = status(StatusCode::OK);
        head.headers_mut().insert("content-length", length.into());
        head
    }
}
