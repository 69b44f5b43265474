//! One launcher's answers.

use std::sync::Arc;

use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use launcher_api::CMD_VERSION;
use launcher_api::info::cmd_info_server::{CmdInfo, CmdInfoServer};
use launcher_api::info::{CmdInfoRequest, CmdInfoResponse};
use launcher_api::v1::cmd_server::{Cmd, CmdServer};
use launcher_api::v1::{DomainResponse, EmptyRequest, Response, VmiRequest};
use serde_json::Value;
use tokio::net::UnixListener;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Status};
use tower_service::Service as _;

use crate::sim::guest::machine::{Answer, Machine};
use crate::sim::launcher::Launchers;

/// The process in one launcher pod.
#[derive(Clone)]
pub struct Launcher {
    launchers: Arc<Launchers>,
    pod_uid: String,
    stop: CancellationToken,
}

/// Serves the socket until the launcher is gone.
pub async fn accept(listener: UnixListener, launcher: Launcher, stop: CancellationToken) {
    loop {
        let accepted = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let Ok((stream, _)) = accepted else { return };
        let (info, commands) = (CmdInfoServer::new(launcher.clone()), CmdServer::new(launcher.clone()));
        let service = service_fn(move |request: http::Request<hyper::body::Incoming>| {
            let (mut info, mut commands) = (info.clone(), commands.clone());
            async move {
                if request.uri().path().starts_with("/kubevirt.cmd.info.CmdInfo/") {
                    info.call(request).await
                } else {
                    commands.call(request).await
                }
            }
        });
        let stop = stop.clone();
        tokio::spawn(async move {
            let connection = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                .serve_connection(TokioIo::new(stream), service);
            tokio::select! {
                biased;
                // The process has died: its connections are reset.
                () = stop.cancelled() => {}
                _ = connection => {}
            }
        });
    }
}

impl Launcher {
    pub fn new(launchers: Arc<Launchers>, pod_uid: String, stop: CancellationToken) -> Self {
        Self { launchers, pod_uid, stop }
    }

    /// A nil pointer in the launcher: exit status 2, and no more guest.
    fn panic(&self) -> Status {
        self.launchers.end(&self.pod_uid, true);
        self.stop.cancel();
        Status::unavailable("the launcher is gone")
    }

    fn sync(
        &self,
        request: VmiRequest,
        what: &str,
        act: impl FnOnce(&mut Machine, &Value) -> Answer,
    ) -> Result<tonic::Response<Response>, Status> {
        // getVMIFromRequest dereferences the field.
        let Some(vmi) = request.vmi else { return Err(self.panic()) };
        let answer = match serde_json::from_slice::<Value>(&vmi.vmi_json) {
            Err(_) => Answer::Failure("No valid vmi object present in command server request".into()),
            Ok(vmi) => self
                .launchers
                .guest(&self.pod_uid, |guest| act(&mut guest.machine, &vmi))
                .unwrap_or_else(|| {
                    Answer::Failure(format!(
                        "failed to update {what}: virError(Code=42, Domain=10, Message='Domain not found')"
                    ))
                }),
        };
        let (success, message) = match answer {
            Answer::Success => (true, String::new()),
            Answer::Failure(message) => (false, message),
            Answer::Panic => return Err(self.panic()),
        };
        Ok(tonic::Response::new(Response { success, message }))
    }
}

fn yes() -> Response {
    Response { success: true, message: String::new() }
}

#[tonic::async_trait]
impl CmdInfo for Launcher {
    async fn info(&self, _: Request<CmdInfoRequest>) -> Result<tonic::Response<CmdInfoResponse>, Status> {
        Ok(tonic::Response::new(CmdInfoResponse { supported_cmd_versions: vec![CMD_VERSION] }))
    }
}

#[tonic::async_trait]
impl Cmd for Launcher {
    async fn ping(&self, _: Request<EmptyRequest>) -> Result<tonic::Response<Response>, Status> {
        Ok(tonic::Response::new(yes()))
    }

    async fn get_domain(&self, _: Request<EmptyRequest>) -> Result<tonic::Response<DomainResponse>, Status> {
        let domain =
            self.launchers.guest(&self.pod_uid, |guest| guest.machine.describe(guest.paused).to_string());
        // Before the domain exists: success, and nothing.
        Ok(tonic::Response::new(DomainResponse { response: Some(yes()), domain: domain.unwrap_or_default() }))
    }

    async fn sync_virtual_machine_cp_us(
        &self,
        request: Request<VmiRequest>,
    ) -> Result<tonic::Response<Response>, Status> {
        self.sync(request.into_inner(), "vCPUs", Machine::sync_cpus)
    }

    async fn sync_virtual_machine_memory(
        &self,
        request: Request<VmiRequest>,
    ) -> Result<tonic::Response<Response>, Status> {
        self.sync(request.into_inner(), "Guest Memory", Machine::sync_memory)
    }
}
