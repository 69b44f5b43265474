//! `WebSockets` into guests (`pkg/virt-api/rest/streamer.go`, v1.9): binary messages with the
//! subprotocol `plain.kubevirt.io`, and a ping every second.

use std::time::Duration;

use apimachinery::Status;
use bytes::Bytes;
use futures::{SinkExt as _, StreamExt as _};
use http::header::{
    CONNECTION, HeaderMap, HeaderValue, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL,
    SEC_WEBSOCKET_VERSION, UPGRADE,
};
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};
use tokio_util::sync::CancellationToken;

const SUBPROTOCOL: &str = "plain.kubevirt.io";
/// The client has switched within this time.
const PATIENCE: Duration = Duration::from_secs(10);
/// A client that says nothing at all, not even pong, is gone after this time.
const SILENCE: Duration = Duration::from_mins(1);
/// How often the client is asked whether it is there.
const PING: Duration = Duration::from_secs(1);
/// The largest message from a client.
const MESSAGE: usize = 1 << 20;

/// Whether a request is the opening handshake of a `WebSocket` (RFC 6455 section 4.2.1): its key.
///
/// # Errors
/// 400 with what gorilla/websocket says, which virt-api upgrades with.
pub fn key(headers: &HeaderMap) -> Result<&HeaderValue, Status> {
    let lists = |name, token: &str| {
        let values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
        values.flat_map(|value| value.split(',')).any(|one| one.trim().eq_ignore_ascii_case(token))
    };
    let bad = |what: &str| {
        Status::bad_request(format!("websocket: the client is not using the websocket protocol: {what}"))
    };
    if !lists(CONNECTION, "upgrade") {
        return Err(bad("'upgrade' token not found in 'Connection' header"));
    }
    if !lists(UPGRADE, "websocket") {
        return Err(bad("'websocket' token not found in 'Upgrade' header"));
    }
    if headers.get(SEC_WEBSOCKET_VERSION).is_none_or(|version| version != "13") {
        return Err(Status::bad_request(
            "websocket: unsupported version: 13 not found in 'Sec-Websocket-Version' header",
        ));
    }
    headers.get(SEC_WEBSOCKET_KEY).ok_or_else(|| {
        Status::bad_request(
            "websocket: not a websocket handshake: 'Sec-WebSocket-Key' header must be Base64 encoded value of \
             16-byte in length",
        )
    })
}

/// Answers the handshake, and couples the `WebSocket` to the guest once the client has switched.
///
/// # Errors
/// 400 when the request is no handshake.
pub fn open(
    mut request: Request<Incoming>,
    guest: DuplexStream,
    stop: CancellationToken,
) -> Result<Response<Full<Bytes>>, Status> {
    let accept = derive_accept_key(key(request.headers())?.as_bytes());
    let accept = HeaderValue::from_str(&accept).map_err(|error| Status::internal(&error.to_string()))?;
    let offered =
        request.headers().get_all(SEC_WEBSOCKET_PROTOCOL).iter().filter_map(|value| value.to_str().ok());
    let spoken = offered.flat_map(|value| value.split(',')).any(|one| one.trim() == SUBPROTOCOL);
    let client = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        let Ok(Ok(client)) = tokio::time::timeout(PATIENCE, client).await else { return };
        let config = WebSocketConfig::default().max_message_size(Some(MESSAGE)).max_frame_size(Some(MESSAGE));
        let socket = WebSocketStream::from_raw_socket(TokioIo::new(client), Role::Server, Some(config)).await;
        if let Err(error) = couple(socket, guest, stop).await {
            tracing::debug!(%error, "a WebSocket into a guest broke off");
        }
    });
    let mut response = Response::new(Full::default());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(SEC_WEBSOCKET_ACCEPT, accept);
    if spoken {
        headers.insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(SUBPROTOCOL));
    }
    Ok(response)
}

type Socket = WebSocketStream<TokioIo<hyper::upgrade::Upgraded>>;
type Failure = Box<dyn std::error::Error + Send + Sync>;

async fn couple(socket: Socket, guest: DuplexStream, stop: CancellationToken) -> Result<(), Failure> {
    let (mut to_client, mut from_client) = socket.split();
    let (mut from_guest, mut to_guest) = tokio::io::split(guest);
    let mut buffer = vec![0; 32 << 10];
    let mut ping = tokio::time::interval(PING);
    let mut heard = tokio::time::Instant::now();
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => break,
            _ = ping.tick() => {
                if heard.elapsed() > SILENCE {
                    return Err("the client is silent".into());
                }
                to_client.send(Message::Ping(Bytes::from_static(b"keep alive"))).await?;
            }
            message = from_client.next() => {
                heard = tokio::time::Instant::now();
                match message {
                    None | Some(Ok(Message::Close(_))) => break,
                    Some(Ok(Message::Binary(data))) => to_guest.write_all(&data).await?,
                    Some(Ok(Message::Text(text))) => to_guest.write_all(text.as_bytes()).await?,
                    Some(Ok(_)) => {}
                    Some(Err(error)) => return Err(error.into()),
                }
            }
            count = from_guest.read(&mut buffer) => match count? {
                0 => break,
                count => to_client.send(Message::Binary(Bytes::copy_from_slice(&buffer[..count]))).await?,
            },
        }
    }
    to_client.send(Message::Close(None)).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_handshake_is_told_from_other_requests() {
        let full = [
            ("connection", "keep-alive, Upgrade"),
            ("upgrade", "websocket"),
            ("sec-websocket-version", "13"),
            ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
        ];
        for left_out in ["connection", "upgrade", "sec-websocket-version", "sec-websocket-key", "none"] {
            let mut headers = HeaderMap::new();
            for (name, value) in full.iter().filter(|(name, _)| *name != left_out) {
                headers.insert(*name, HeaderValue::from_static(value));
            }
            assert_eq!(key(&headers).is_ok(), left_out == "none", "without {left_out}");
        }
        // The example of RFC 6455 section 1.3.
        assert_eq!(derive_accept_key(b"dGhlIHNhbXBsZSBub25jZQ=="), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }
}
