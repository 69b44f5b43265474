//! Ways into a guest: serial console, screen, ports. The API server upgrades the connection to a
//! `WebSocket` with the subprotocol `plain.kubevirt.io` (`pkg/virt-api/rest/streamer.go`, v1.9).

use std::time::Duration;

use bytes::Bytes;
use futures::{SinkExt as _, StreamExt as _};
use http::header::{
    CONNECTION, HeaderValue, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION, UPGRADE,
};
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Limited};
use hyper_util::rt::TokioIo;
use kube::client::Body;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::time::Instant;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::client::generate_key;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};

use super::Provider;
use super::request::refusal;
use crate::view::list;
use crate::{Error, Kind, VmId};

/// The subprotocol of virt-api.
pub const SUBPROTOCOL: &str = "plain.kubevirt.io";

/// The largest message that is taken from a guest, bytes.
const MESSAGE: usize = 1 << 20;

/// The largest screenshot, bytes.
const SCREENSHOT: usize = 32 << 20;

/// Where a connection leads.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Channel {
    /// The serial console.
    Console,
    /// The screen, as RFB.
    Vnc,
    /// A TCP port of the guest.
    Port(u16),
}

impl Channel {
    /// The subresource of the instance.
    pub fn subresource(self) -> String {
        match self {
            Self::Console => "console".into(),
            Self::Vnc => "vnc".into(),
            Self::Port(port) => format!("portforward/{port}/tcp"),
        }
    }

    fn doing(self, vm: &VmId) -> String {
        match self {
            Self::Console => format!("opening the console of VM `{vm}`"),
            Self::Vnc => format!("opening the screen of VM `{vm}`"),
            Self::Port(port) => format!("connecting to port {port} of VM `{vm}`"),
        }
    }
}

/// A subresource of an instance.
pub(super) fn subresource(vm: &VmId, name: &str) -> String {
    let (namespace, vm) = (vm.namespace(), vm.name());
    format!("/apis/subresources.kubevirt.io/v1/namespaces/{namespace}/virtualmachineinstances/{vm}/{name}")
}

/// A connection into a guest.
pub struct Tunnel {
    socket: WebSocketStream<TokioIo<hyper::upgrade::Upgraded>>,
    doing: String,
}

impl std::fmt::Debug for Tunnel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tunnel").field("doing", &self.doing).finish_non_exhaustive()
    }
}

impl Tunnel {
    /// Couples the guest to a reader and a writer, until the guest ends it, or until the reader has ended and
    /// the guest has been silent for `linger`: a `WebSocket` cannot be closed one way only.
    pub async fn couple(
        self,
        mut reader: impl AsyncRead + Unpin,
        mut writer: impl AsyncWrite + Unpin,
        linger: Duration,
    ) -> Result<(), Error> {
        let Self { socket, doing } = self;
        let broken = |why: String| Error::new(Kind::Cluster, &doing, why, "connect again");
        let (mut to_guest, mut from_guest) = socket.split();
        let mut buffer = vec![0; 32 << 10];
        let mut ended = false;
        let mut heard = Instant::now();
        loop {
            tokio::select! {
                () = tokio::time::sleep_until(heard + linger), if ended => {
                    // what comes after the goodbye is nobody's any more
                    let _ = to_guest.send(Message::Close(None)).await;
                    return Ok(());
                }
                message = from_guest.next() => match message {
                    None | Some(Ok(Message::Close(_))) => return Ok(()),
                    Some(Ok(Message::Binary(data))) => {
                        heard = Instant::now();
                        writer.write_all(&data).await.map_err(|error| broken(error.to_string()))?;
                        writer.flush().await.map_err(|error| broken(error.to_string()))?;
                    }
                    Some(Ok(Message::Text(text))) => {
                        writer.write_all(text.as_bytes()).await.map_err(|error| broken(error.to_string()))?;
                    }
                    // pings are answered by the library
                    Some(Ok(_)) => {}
                    Some(Err(error)) => return Err(broken(format!("the connection broke off: {error}"))),
                },
                count = reader.read(&mut buffer), if !ended => {
                    let count = count.map_err(|error| broken(error.to_string()))?;
                    if count == 0 {
                        (ended, heard) = (true, Instant::now());
                        continue;
                    }
                    let data = Bytes::copy_from_slice(buffer.get(..count).unwrap_or_default());
                    let sent = to_guest.send(Message::Binary(data)).await;
                    sent.map_err(|error| broken(format!("the connection broke off: {error}")))?;
                }
            }
        }
    }
}

impl Provider {
    /// Opens a way into a guest.
    pub async fn open(&self, vm: &VmId, channel: Channel) -> Result<Tunnel, Error> {
        let doing = channel.doing(vm);
        let key = HeaderValue::try_from(generate_key())
            .map_err(|error| Error::refused(&doing, 500, "", &error.to_string()))?;
        let response = self.upgrade(vm, channel, &key, Some(&HeaderValue::from_static(SUBPROTOCOL))).await?;
        let upgraded = hyper::upgrade::on(response)
            .await
            .map_err(|error| Error::refused(&doing, 502, "", &format!("it was not upgraded: {error}")))?;
        let config = WebSocketConfig::default().max_message_size(Some(MESSAGE)).max_frame_size(Some(MESSAGE));
        let socket = WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Client, Some(config));
        Ok(Tunnel { socket: socket.await, doing })
    }

    /// The handshake with somebody else's key: the answer is 101, and its connection can be taken over.
    pub(crate) async fn upgrade(
        &self,
        vm: &VmId,
        channel: Channel,
        key: &HeaderValue,
        protocols: Option<&HeaderValue>,
    ) -> Result<Response<Body>, Error> {
        let doing = channel.doing(vm);
        let instance = self.running_instance(vm, &doing).await?;
        if matches!(channel, Channel::Port(_)) && list(&instance, "/status/interfaces").is_empty() {
            let remedy = "add one: `virt-steward nic add`";
            return Err(Error::new(Kind::WrongState, doing, "the VM has no network interface", remedy));
        }
        let mut request = Request::get(subresource(vm, &channel.subresource()))
            .header(CONNECTION, HeaderValue::from_static("Upgrade"))
            .header(UPGRADE, HeaderValue::from_static("websocket"))
            .header(SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"))
            .header(SEC_WEBSOCKET_KEY, key);
        if let Some(protocols) = protocols {
            request = request.header(SEC_WEBSOCKET_PROTOCOL, protocols);
        }
        let response = self.dispatch(request, Bytes::new(), &doing).await?;
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            return Ok(response);
        }
        let status = response.status().as_u16();
        let body = Limited::new(response.into_body(), MESSAGE).collect().await;
        let bytes = body.map(http_body_util::Collected::to_bytes).unwrap_or_default();
        Err(refusal(&doing, status, &bytes))
    }

    /// What is on the screen, as PNG.
    pub async fn screenshot(&self, vm: &VmId) -> Result<Bytes, Error> {
        let doing = format!("taking a picture of the screen of VM `{vm}`");
        self.running_instance(vm, &doing).await?;
        let path = subresource(vm, "vnc/screenshot");
        let response = self.send(http::Method::GET, &path, None, &doing).await?;
        let status = response.status();
        let body = Limited::new(response.into_body(), SCREENSHOT).collect().await;
        let lost = |why: String| Error::refused(&doing, 502, "", &format!("the answer broke off: {why}"));
        let bytes = body.map_err(|error| lost(error.to_string()))?.to_bytes();
        if status.is_success() { Ok(bytes) } else { Err(refusal(&doing, status.as_u16(), &bytes)) }
    }
}
