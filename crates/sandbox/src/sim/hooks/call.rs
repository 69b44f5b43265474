//! One gRPC call as virt-launcher makes it (`pkg/util/net/grpc`, v1.9): a connection of its own
//! over a unix socket, plain HTTP/2, authority `localhost`, a deadline in `grpc-timeout`.

use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message;
use tokio::net::UnixStream;

/// The largest answer (grpc-go's default).
const MAX_MESSAGE: usize = 4 << 20;
/// Bytes before the message in a frame.
const PREFIX: usize = 5;
/// Names of the status codes, by number (grpc-go `codes.Code.String`).
const CODES: [&str; 17] = [
    "OK",
    "Canceled",
    "Unknown",
    "InvalidArgument",
    "DeadlineExceeded",
    "NotFound",
    "AlreadyExists",
    "PermissionDenied",
    "ResourceExhausted",
    "FailedPrecondition",
    "Aborted",
    "OutOfRange",
    "Unimplemented",
    "Internal",
    "Unavailable",
    "DataLoss",
    "Unauthenticated",
];

/// A call that failed, in grpc-go's words.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("rpc error: code = {code} desc = {description}")]
pub struct RpcError {
    /// The name of the status code.
    pub code: &'static str,
    /// What the other side said.
    pub description: String,
}

impl RpcError {
    fn new(code: &'static str, description: impl Into<String>) -> Self {
        Self { code, description: description.into() }
    }
}

/// Connects, or says that it took too long: whatever is wrong with a socket, grpc-go tries until
/// the time is up.
pub async fn dial(socket: &Path, limit: Duration) -> Result<UnixStream, &'static str> {
    let connected = async {
        loop {
            match UnixStream::connect(socket).await {
                Ok(stream) => return stream,
                Err(_) => tokio::time::sleep(limit / 20).await,
            }
        }
    };
    tokio::time::timeout(limit, connected).await.map_err(|_| "context deadline exceeded")
}

/// Calls a method over a new connection.
pub async fn unary<A: Message + Default>(
    stream: UnixStream,
    path: &str,
    message: &impl Message,
    limit: Duration,
) -> Result<A, RpcError> {
    tokio::time::timeout(limit, exchange(stream, path, message, limit))
        .await
        .map_err(|_| RpcError::new("DeadlineExceeded", "context deadline exceeded"))?
}

async fn exchange<A: Message + Default>(
    stream: UnixStream,
    path: &str,
    message: &impl Message,
    limit: Duration,
) -> Result<A, RpcError> {
    let unavailable = |error: hyper::Error| RpcError::new("Unavailable", error.to_string());
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .map_err(unavailable)?;
    let connection = tokio::spawn(connection);
    let request = Request::post(format!("http://localhost{path}"))
        .header("content-type", "application/grpc")
        .header("user-agent", "grpc-go/1.79.3")
        .header("te", "trailers")
        .header("grpc-timeout", format!("{}u", limit.as_micros().min(99_999_999)))
        .body(Full::new(frame(message)))
        .map_err(|error| RpcError::new("Internal", error.to_string()))?;
    let response = sender.send_request(request).await.map_err(unavailable)?;
    let headers = response.headers().clone();
    let body = Limited::new(response.into_body(), MAX_MESSAGE + PREFIX).collect().await;
    connection.abort();
    let body = body.map_err(|error| RpcError::new("ResourceExhausted", error.to_string()))?;
    // an answer without a message has its status in the headers
    let status = body.trailers().cloned().unwrap_or(headers);
    check(&status)?;
    let bytes = body.to_bytes();
    let message = bytes.get(PREFIX..).unwrap_or_default();
    A::decode(message).map_err(|error| RpcError::new("Internal", error.to_string()))
}

fn frame(message: &impl Message) -> Bytes {
    let content = message.encode_to_vec();
    let mut frame = vec![0];
    frame.extend(u32::try_from(content.len()).unwrap_or(u32::MAX).to_be_bytes());
    frame.extend(content);
    frame.into()
}

fn check(status: &HeaderMap) -> Result<(), RpcError> {
    let text = |name: &str| status.get(name).and_then(|value| value.to_str().ok());
    let Some(number) = text("grpc-status").and_then(|number| number.parse::<usize>().ok()) else {
        return Err(RpcError::new("Unknown", "the answer has no status"));
    };
    match CODES.get(number) {
        Some(&"OK") => Ok(()),
        code => {
            let description = decoded(text("grpc-message").unwrap_or_default());
            Err(RpcError::new(code.unwrap_or(&"Unknown"), description))
        }
    }
}

/// A percent-encoded message as text.
fn decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let hex = after.get(..2).and_then(|two| std::str::from_utf8(two).ok());
        let byte = hex.and_then(|hex| u8::from_str_radix(hex, 16).ok()).filter(|_| first == b'%');
        bytes.push(byte.unwrap_or(first));
        rest = if byte.is_some() { after.get(2..).unwrap_or_default() } else { after };
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_read_as_they_were_meant() {
        for (sent, meant) in [("plain", "plain"), ("50%25%0A%E2%86%92", "50%\n→"), ("%", "%"), ("%zz", "%zz")]
        {
            assert_eq!(decoded(sent), meant);
        }
    }
}
