//! An HTTP server of one disk that misbehaves as a seed says.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use export::source::http::{Access, Directory, Secret};
use futures::StreamExt as _;
use http::{Method, Request, Response, StatusCode};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::Dice;

pub type Body = BoxBody<Bytes, std::io::Error>;

/// The server, and who knows how to reach it.
pub struct Server {
    address: std::net::SocketAddr,
    disk: Vec<u8>,
    dice: Dice,
    /// Of a hundred requests, so many fail.
    pub percent: AtomicU64,
    /// Requests that failed.
    pub faults: AtomicU64,
    /// The token is this number: a swap makes another one.
    generation: AtomicU64,
    end: CancellationToken,
}

pub fn full(status: StatusCode, body: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(Full::new(body.into()).map_err(|never| match never {}).boxed());
    *response.status_mut() = status;
    response
}

/// A body that breaks off after some bytes.
pub fn cut(status: StatusCode, data: Bytes, length: usize) -> Response<Body> {
    let parts: Vec<std::io::Result<Frame<Bytes>>> =
        vec![Ok(Frame::data(data)), Err(std::io::ErrorKind::ConnectionReset.into())];
    let body = StreamBody::new(futures::stream::iter(parts).then(|part| async {
        tokio::task::yield_now().await;
        part
    }));
    let mut response = Response::new(BodyExt::boxed(body));
    *response.status_mut() = status;
    response.headers_mut().insert("content-length", length.into());
    response
}

/// Serves requests with a function until the test ends.
pub async fn serve<F, R>(answer: F) -> std::net::SocketAddr
where
    F: Fn(Request<Incoming>) -> R + Clone + Send + Sync + 'static,
    R: Future<Output = Response<Body>> + Send,
{
    serve_until(CancellationToken::new(), answer).await
}

/// The same until somebody ends it, in the middle of what it says.
async fn serve_until<F, R>(end: CancellationToken, answer: F) -> std::net::SocketAddr
where
    F: Fn(Request<Incoming>) -> R + Clone + Send + Sync + 'static,
    R: Future<Output = Response<Body>> + Send,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Some(Ok((stream, _))) = end.run_until_cancelled(listener.accept()).await {
            let (answer, end) = (answer.clone(), end.clone());
            let service = service_fn(move |request| {
                let answer = answer.clone();
                async move { Ok::<_, std::convert::Infallible>(answer(request).await) }
            });
            let http = hyper::server::conn::http1::Builder::new();
            let connection = http.serve_connection(TokioIo::new(stream), service);
            tokio::spawn(async move {
                let _ = end.run_until_cancelled(connection).await;
            });
        }
    });
    address
}

impl Server {
    pub async fn start(disk: Vec<u8>, seed: u64, percent: u64) -> Arc<Self> {
        let shared: Arc<std::sync::OnceLock<Arc<Self>>> = Arc::default();
        let late = shared.clone();
        let end = CancellationToken::new();
        let address =
            serve_until(end.clone(), move |request| {
                let server = late.get().cloned();
                async move {
                    server.map_or_else(|| full(StatusCode::SERVICE_UNAVAILABLE, ""), |s| s.answer(&request))
                }
            })
            .await;
        let server = Arc::new(Self {
            address,
            disk,
            dice: Dice::new(seed),
            percent: AtomicU64::new(percent),
            faults: AtomicU64::new(0),
            generation: AtomicU64::new(1),
            end,
        });
        let _ = shared.set(server.clone());
        server
    }

    /// The process is killed: connections break, and nobody listens any more.
    pub fn die(&self) {
        self.end.cancel();
    }

    fn answer(&self, request: &Request<Incoming>) -> Response<Body> {
        let token = request.headers().get("x-kubevirt-export-token").and_then(|value| value.to_str().ok());
        if token != Some(&self.generation.load(Ordering::SeqCst).to_string()) {
            return full(StatusCode::UNAUTHORIZED, "");
        }
        let size = self.disk.len();
        if request.method() == Method::HEAD {
            let mut head = full(StatusCode::OK, "");
            head.headers_mut().insert("content-length", size.into());
            return head;
        }
        let range = request.headers().get("range").unwrap().to_str().unwrap();
        let (start, last) = range.strip_prefix("bytes=").unwrap().split_once('-').unwrap();
        let (start, end) = (start.parse::<usize>().unwrap(), last.parse::<usize>().unwrap() + 1);
        let data = |start: usize, end: usize| Bytes::copy_from_slice(&self.disk[start..end]);
        let stated = |mut response: Response<Body>, end: usize| {
            let text = format!("bytes {start}-{}/{size}", end - 1);
            response.headers_mut().insert("content-range", text.parse().unwrap());
            response
        };
        let half = start + (end - start) / 2;
        let fails = self.dice.below(100) < self.percent.load(Ordering::SeqCst);
        self.faults.fetch_add(u64::from(fails), Ordering::SeqCst);
        match (fails, self.dice.below(5)) {
            // the connection is cut in the middle
            (true, 0) => stated(cut(StatusCode::PARTIAL_CONTENT, data(start, half), end - start), end),
            (true, 1) => full(StatusCode::SERVICE_UNAVAILABLE, "the exporter pod is not there"),
            // fewer bytes than were asked for, and the server says so
            (true, 2) => stated(full(StatusCode::PARTIAL_CONTENT, data(start, half)), half),
            // fewer bytes, and the server claims that it is all
            (true, 3) => stated(full(StatusCode::PARTIAL_CONTENT, data(start, half)), end),
            // the pod is replaced, and the token with it
            (true, _) => {
                self.generation.fetch_add(1, Ordering::SeqCst);
                full(StatusCode::UNAUTHORIZED, "")
            }
            (false, _) => stated(full(StatusCode::PARTIAL_CONTENT, data(start, end)), end),
        }
    }
}

#[async_trait]
impl Directory for Server {
    async fn access(&self, _volume: &str) -> export::Result<Access> {
        let token = Secret(self.generation.load(Ordering::SeqCst).to_string());
        let url = format!("http://{}/disk.img", self.address);
        Ok(Access { url, ca: String::new(), headers: vec![("x-kubevirt-export-token".into(), token)] })
    }
}
