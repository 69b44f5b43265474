//! A launcher behind its socket: the handshake, and the few calls that are made.

use std::future::Future;
use std::io;
use std::path::Path;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use http::{Request, Response, Uri};
use hyper::body::Incoming;
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::{TokioExecutor, TokioIo};
use launcher_api::info::CmdInfoRequest;
use launcher_api::info::cmd_info_client::CmdInfoClient;
use launcher_api::v1::cmd_client::CmdClient;
use launcher_api::v1::{EmptyRequest, Vmi, VmiRequest};
use launcher_api::{CMD_VERSION, MAX_MESSAGE};
use resize::view::{self, Guest};
use serde_json::Value;
use tonic::Status;
use tonic::body::Body;

use crate::complete::CompleteVmi;
use crate::socket;
use crate::task::Call;

/// How long a call may take; virt-handler gives 20 s as well (`cmd-client`, v1.9).
const CALL: Duration = Duration::from_secs(20);
/// How long a connection and the handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(5);

/// What went wrong with a launcher.
#[derive(Debug, thiserror::Error)]
pub enum LauncherError {
    /// There is nobody at the socket.
    #[error("connect to the launcher: {0}")]
    Connect(io::Error),
    /// It speaks no version that we speak.
    #[error("the launcher speaks versions {0:?} of its command socket, and we speak {CMD_VERSION}")]
    Version(Vec<u32>),
    /// The call failed as such.
    #[error("{call}: {}", status.message())]
    Call {
        /// Which one.
        call: &'static str,
        /// What gRPC says.
        status: Box<Status>,
    },
    /// The launcher said no.
    #[error("{call}: {message}")]
    Refused {
        /// Which one.
        call: &'static str,
        /// Its words.
        message: String,
    },
    /// No answer in time.
    #[error("{call}: no answer within {} s", CALL.as_secs())]
    Slow {
        /// Which one.
        call: &'static str,
    },
    /// The domain belongs to another VMI.
    #[error("the domain in this launcher has the uid {found}, not {expected}: nothing was sent to it")]
    OtherVmi {
        /// Of the domain.
        found: String,
        /// Of the VMI.
        expected: String,
    },
    /// There is no domain, or what was said of it cannot be read.
    #[error("the launcher has no running domain")]
    NoDomain,
}

/// An open connection to one launcher that holds the domain of one VMI.
#[derive(Debug)]
pub struct Launcher {
    channel: Channel,
    vmi: CompleteVmi,
}

impl Launcher {
    /// Connects, agrees on a version, and makes sure that the domain is that VMI's.
    ///
    /// # Errors
    /// Whatever keeps it from being spoken to.
    pub async fn connect(sockets: &Path, vmi: CompleteVmi) -> Result<Self, LauncherError> {
        let opened = tokio::time::timeout(HANDSHAKE, Channel::open(sockets)).await;
        let channel =
            opened.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())).map_err(LauncherError::Connect)?;
        let mut info = CmdInfoClient::with_origin(channel.clone(), origin());
        let versions =
            timely("Info", info.info(CmdInfoRequest {})).await?.into_inner().supported_cmd_versions;
        if !versions.contains(&CMD_VERSION) {
            return Err(LauncherError::Version(versions));
        }
        let launcher = Self { channel, vmi };
        let answer = timely("Ping", launcher.commands().ping(EmptyRequest {})).await?.into_inner();
        succeeded("Ping", answer.success, answer.message)?;
        Ok(launcher)
    }

    fn commands(&self) -> CmdClient<Channel> {
        CmdClient::with_origin(self.channel.clone(), origin())
            .max_decoding_message_size(MAX_MESSAGE)
            .max_encoding_message_size(MAX_MESSAGE)
    }

    /// What the guest has. The uid in the domain is compared each time: a launcher itself does not
    /// check it, and takes a request for any VMI of that name.
    ///
    /// # Errors
    /// No running domain, or another VMI's.
    pub async fn guest(&self) -> Result<Guest, LauncherError> {
        let reply = timely("GetDomain", self.commands().get_domain(EmptyRequest {})).await?.into_inner();
        let answer = reply.response.unwrap_or_default();
        succeeded("GetDomain", answer.success, answer.message)?;
        let domain: Value = serde_json::from_str(&reply.domain).map_err(|_| LauncherError::NoDomain)?;
        let found = domain.pointer("/Spec/Metadata/KubeVirt/UID").and_then(Value::as_str).unwrap_or_default();
        if found != self.vmi.uid() {
            return Err(LauncherError::OtherVmi { found: found.into(), expected: self.vmi.uid().into() });
        }
        view::guest(&domain, self.vmi.boot_memory()).ok_or(LauncherError::NoDomain)
    }

    /// Makes one call. Success means that libvirt has taken it, not that the guest has.
    ///
    /// # Errors
    /// The launcher's own words.
    pub async fn make(&self, call: Call) -> Result<(), LauncherError> {
        let request = |size| VmiRequest { vmi: Some(Vmi { vmi_json: self.vmi.at(size) }) };
        let (name, answer) = match call {
            Call::Memory(size) => {
                let name = "SyncVirtualMachineMemory";
                (name, timely(name, self.commands().sync_virtual_machine_memory(request(size))).await?)
            }
            Call::Cpus(size) => {
                let name = "SyncVirtualMachineCPUs";
                (name, timely(name, self.commands().sync_virtual_machine_cp_us(request(size))).await?)
            }
        };
        let answer = answer.into_inner();
        succeeded(name, answer.success, answer.message)
    }
}

/// Launchers accept any authority; KubeVirt's own client says `localhost`.
fn origin() -> Uri {
    Uri::from_static("http://localhost")
}

async fn timely<T>(
    call: &'static str,
    answer: impl Future<Output = Result<T, Status>>,
) -> Result<T, LauncherError> {
    match tokio::time::timeout(CALL, answer).await {
        Ok(answer) => answer.map_err(|status| LauncherError::Call { call, status: Box::new(status) }),
        Err(_) => Err(LauncherError::Slow { call }),
    }
}

/// A failure has the gRPC status OK, no success, and a message.
fn succeeded(call: &'static str, success: bool, message: String) -> Result<(), LauncherError> {
    if success { Ok(()) } else { Err(LauncherError::Refused { call, message }) }
}

/// HTTP/2 over a unix socket, without the rest of a transport.
#[derive(Clone, Debug)]
struct Channel(SendRequest<Body>);

impl Channel {
    async fn open(sockets: &Path) -> io::Result<Self> {
        let stream = TokioIo::new(socket::connect(sockets).await?);
        let (sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), stream)
            .await
            .map_err(io::Error::other)?;
        // Ends when the last sender is dropped, or the launcher goes.
        tokio::spawn(async move {
            let _ = connection.await;
        });
        Ok(Self(sender))
    }
}

impl tower_service::Service<Request<Body>> for Channel {
    type Response = Response<Incoming>;
    type Error = hyper::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        Box::pin(self.0.send_request(request))
    }
}
