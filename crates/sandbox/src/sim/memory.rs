//! A client over a network in memory.

use std::task::{Context, Poll};

use apimachinery::tree::Value;
use http::header::{AUTHORIZATION, HeaderValue};
use http::{Request, Response, Uri, uri};
use hyper::body::Incoming;
use hyper_util::client::legacy::{Client as HttpClient, Error as HttpError};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use kube::client::Body;

use crate::network::{Connector, Network};

type Failure = Box<dyn std::error::Error + Send + Sync>;
type Answer = Result<Response<Incoming>, Failure>;

/// A client with the first server and token of a kubeconfig.
pub fn client(network: &Network, kubeconfig: &str) -> Result<kube::Client, Failure> {
    let parsed: Value = serde_saphyr::from_str(kubeconfig)?;
    let text = |pointer: &str| {
        let found = parsed.pointer(pointer).and_then(Value::as_str);
        found.ok_or_else(|| format!("the kubeconfig has no {pointer}"))
    };
    let (_, address) = text("/clusters/0/cluster/server")?.split_once("://").ok_or("the server is no URL")?;
    let server = format!("http://{address}").parse()?;
    let mut token = HeaderValue::try_from(format!("Bearer {}", text("/users/0/user/token")?))?;
    token.set_sensitive(true);
    let http = HttpClient::builder(TokioExecutor::new())
        .pool_timer(TokioTimer::new())
        .timer(TokioTimer::new())
        .build(Connector(network.clone()));
    Ok(kube::Client::new(Authorized { http, server, token }, "default"))
}

/// Sends requests to one server, with a token.
struct Authorized {
    http: HttpClient<Connector, Body>,
    server: Uri,
    token: HeaderValue,
}

impl Authorized {
    fn at_server(&self, asked: &Uri) -> Result<Uri, http::Error> {
        let mut parts = uri::Parts::default();
        parts.scheme = self.server.scheme().cloned();
        parts.authority = self.server.authority().cloned();
        parts.path_and_query = asked.path_and_query().cloned();
        Ok(Uri::from_parts(parts)?)
    }
}

impl tower_service::Service<Request<Body>> for Authorized {
    type Response = Response<Incoming>;
    type Error = Failure;
    type Future = futures::future::BoxFuture<'static, Answer>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let uri = self.at_server(request.uri());
        // Who sends a token of its own is somebody else.
        request.headers_mut().entry(AUTHORIZATION).or_insert_with(|| self.token.clone());
        let http = self.http.clone();
        Box::pin(async move {
            *request.uri_mut() = uri?;
            http.request(request).await.map_err(|error: HttpError| error.into())
        })
    }
}
