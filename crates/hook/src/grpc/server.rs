//! One connection after the other, one call per stream.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, RecvStream};
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use tokio::io::{AsyncRead, AsyncWrite};

use super::frame::{self, MAX_REQUEST};
use super::{Code, Status};

const CONTENT: HeaderValue = HeaderValue::from_static("application/grpc");
/// Calls at the same time on one connection; virt-launcher makes one.
const MAX_STREAMS: u32 = 8;
const MAX_HEADERS: u32 = 16 << 10;
const WINDOW: u32 = 1 << 20;
/// A request that has not arrived by then is given up; virt-launcher waits 1 to 60 s itself.
const ARRIVAL: Duration = Duration::from_secs(30);

/// What answers calls: a path and a message in, a frame out.
pub trait Service: Send + Sync + 'static {
    /// Answers one call.
    fn call(&self, path: &str, message: &[u8]) -> Result<Vec<u8>, Status>;
    /// An answer was sent.
    fn answered(&self, path: &str);
}

/// Serves one connection until its peer closes it.
pub async fn connection<S: Service>(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    service: Arc<S>,
) -> Result<(), h2::Error> {
    let mut connection = h2::server::Builder::new()
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(MAX_HEADERS)
        .initial_window_size(WINDOW)
        .initial_connection_window_size(WINDOW)
        .handshake::<_, Bytes>(stream)
        .await?;
    while let Some(accepted) = connection.accept().await {
        let (request, respond) = accepted?;
        tokio::spawn(exchange(request, respond, service.clone()));
    }
    Ok(())
}

/// One call. A peer that goes away in the middle of it is no error of ours.
async fn exchange<S: Service>(
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
    service: Arc<S>,
) {
    let path = request.uri().path().to_owned();
    if !is_grpc(&request) {
        let mut response = Response::new(());
        *response.status_mut() = StatusCode::UNSUPPORTED_MEDIA_TYPE;
        drop(respond.send_response(response, true));
        return;
    }
    let body = tokio::time::timeout(ARRIVAL, body(request.into_body())).await;
    let answer = match body {
        Err(_) => return respond.send_reset(Reason::CANCEL),
        Ok(None) => Err(Status::new(Code::ResourceExhausted, "the request is too large or broke off")),
        Ok(Some(body)) => frame::decode(&body).and_then(|message| service.call(&path, message)),
    };
    if send(&mut respond, answer).is_ok() {
        service.answered(&path);
    }
}

fn is_grpc(request: &Request<RecvStream>) -> bool {
    let kind = request.headers().get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
    request.method() == Method::POST && kind.is_some_and(|kind| kind.starts_with("application/grpc"))
}

/// The whole body; nothing when it is too large or breaks off.
async fn body(mut stream: RecvStream) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    while let Some(chunk) = stream.data().await {
        let chunk = chunk.ok()?;
        stream.flow_control().release_capacity(chunk.len()).ok()?;
        if body.len() + chunk.len() > MAX_REQUEST {
            return None;
        }
        body.extend_from_slice(&chunk);
    }
    Some(body)
}

fn send(respond: &mut SendResponse<Bytes>, answer: Result<Vec<u8>, Status>) -> Result<(), h2::Error> {
    let mut response = Response::new(());
    response.headers_mut().insert(CONTENT_TYPE, CONTENT);
    match answer {
        Ok(frame) => {
            let mut stream = respond.send_response(response, false)?;
            stream.send_data(Bytes::from(frame), false)?;
            let mut trailers = HeaderMap::new();
            trailers.insert("grpc-status", HeaderValue::from_static("0"));
            stream.send_trailers(trailers)
        }
        Err(status) => {
            let headers = response.headers_mut();
            headers.insert("grpc-status", HeaderValue::from(status.code as u16));
            let message = HeaderValue::from_str(&status.header());
            headers.insert("grpc-message", message.unwrap_or(HeaderValue::from_static("")));
            respond.send_response(response, true).map(drop)
        }
    }
}
