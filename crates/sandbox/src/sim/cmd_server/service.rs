//! One launcher's answers.

use std::sync::Arc;

use apimachinery::tree::Value;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use jiff::{SignedDuration, Timestamp};
use launcher_api::CMD_VERSION;
use launcher_api::info::cmd_info_server::{CmdInfo, CmdInfoServer};
use launcher_api::info::{CmdInfoRequest, CmdInfoResponse};
use tokio::net::UnixListener;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Status};
use tower_service::Service as _;

use super::v1::cmd_server::{Cmd, CmdServer};
use super::v1::{
    DomainResponse, DomainStatsResponse, EmptyRequest, FreezeRequest, GuestFilesystemsResponse,
    GuestInfoResponse, GuestUserListResponse, MemoryDumpRequest, QemuVersionResponse, Response,
    ScreenshotResponse, Vmi, VmiRequest,
};
use super::{Shared, domain};
use crate::sim::guest::machine::{Answer, Machine, not_found};
use crate::sim::guest::{self, Guest, agent, screen};
use crate::sim::json;
use crate::sim::metrics::Load;

/// As recorded.
const QEMU: &str = "QEMU 10.0.13";

type Answered<T> = Result<tonic::Response<T>, Status>;

/// The process in one launcher pod.
#[derive(Clone)]
pub struct Launcher {
    pub shared: Arc<Shared>,
    /// uid and key of the pod.
    pub pod: (String, String),
    pub stop: CancellationToken,
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

fn yes() -> Response {
    Response { success: true, message: String::new() }
}

fn no(message: impl Into<String>) -> Response {
    Response { success: false, message: message.into() }
}

impl Launcher {
    fn uid(&self) -> &str {
        &self.pod.0
    }

    fn now(&self) -> Timestamp {
        self.shared.client.now()
    }

    /// A nil pointer in the launcher: exit status 2, and no more guest.
    fn panic(&self) -> Status {
        self.shared.launchers.end(self.uid(), true);
        self.stop.cancel();
        Status::unavailable("the launcher is gone")
    }

    /// The VMI of a request (`getVMIFromRequest`, which dereferences the field).
    fn vmi(&self, vmi: Option<Vmi>) -> Result<Result<Value, Response>, Status> {
        let Some(vmi) = vmi else { return Err(self.panic()) };
        let parsed = serde_json::from_slice::<Value>(&vmi.vmi_json).ok().filter(Value::is_object);
        Ok(parsed.ok_or_else(|| no("No valid vmi object present in command server request")))
    }

    /// Works with the guest of the domain that a request names; `None`: there is no such domain.
    fn with<R>(&self, vmi: &Value, act: impl FnOnce(&mut Guest) -> R) -> Option<R> {
        let named = format!("{}_{}", json::namespace(vmi), json::name(vmi));
        let launchers = &self.shared.launchers;
        let is_it = launchers.guest(self.uid(), |guest| guest.machine.domain == named)?;
        if is_it { launchers.change_guest(self.uid(), act) } else { None }
    }

    /// A change of vCPUs or memory.
    fn plug(
        &self,
        request: VmiRequest,
        what: &str,
        act: impl FnOnce(&mut Machine, &Value) -> Answer,
    ) -> Answered<Response> {
        let vmi = match self.vmi(request.vmi)? {
            Ok(vmi) => vmi,
            Err(refusal) => return Ok(tonic::Response::new(refusal)),
        };
        let answer = self.shared.launchers.guest(self.uid(), |guest| act(&mut guest.machine, &vmi));
        let answer = answer.unwrap_or_else(|| {
            Answer::Failure(format!(
                "failed to update {what}: virError(Code=42, Domain=10, Message='Domain not found')"
            ))
        });
        Ok(tonic::Response::new(match answer {
            Answer::Success => yes(),
            Answer::Failure(message) => no(message),
            Answer::Panic => return Err(self.panic()),
        }))
    }

    /// An order to the guest; `absent` is what is said when there is no such domain.
    fn order(
        &self,
        vmi: Option<Vmi>,
        absent: impl FnOnce(&Value) -> Response,
        act: impl FnOnce(&mut Guest, &Value) -> Response,
    ) -> Answered<Response> {
        let answer = match self.vmi(vmi)? {
            Ok(vmi) => self.with(&vmi, |guest| act(guest, &vmi)).unwrap_or_else(|| absent(&vmi)),
            Err(refusal) => refusal,
        };
        Ok(tonic::Response::new(answer))
    }

    /// Ends the domain of a request. One that is not there is gone already.
    fn end(&self, request: VmiRequest, crashed: impl FnOnce(&Value) -> bool) -> Answered<Response> {
        let answer = match self.vmi(request.vmi)? {
            Ok(vmi) => {
                if self.with(&vmi, |_| ()).is_some() {
                    self.shared.launchers.end(self.uid(), crashed(&vmi));
                }
                yes()
            }
            Err(refusal) => refusal,
        };
        Ok(tonic::Response::new(answer))
    }

    /// The VMI whose guest runs here, and something about the guest; `None`: none runs.
    fn look<R>(&self, look: impl FnOnce(&Value, &Guest) -> R) -> Option<R> {
        let key = self.shared.launchers.vmi_of(self.uid())?;
        let vmi = self.shared.vmis.get(&key).unwrap_or_default();
        self.shared.launchers.guest(self.uid(), |guest| look(&vmi, guest))
    }
}

/// A raw error of libvirt (`FormatLibvirtError`).
fn unknown_domain(vmi: &Value) -> Response {
    no(not_found(vmi).replacen("virError", "LibvirtError", 1))
}

/// ACPI was there to ask the guest with, and so a guest that had to be destroyed has failed (`vm.go`,
/// `setVmPhaseForStatusReason`).
fn has_acpi(vmi: &Value) -> bool {
    vmi.pointer("/spec/domain/features/acpi/enabled") != Some(&Value::Bool(false))
}

#[tonic::async_trait]
impl CmdInfo for Launcher {
    async fn info(&self, _: Request<CmdInfoRequest>) -> Answered<CmdInfoResponse> {
        Ok(tonic::Response::new(CmdInfoResponse { supported_cmd_versions: vec![CMD_VERSION] }))
    }
}

#[tonic::async_trait]
impl Cmd for Launcher {
    async fn ping(&self, _: Request<EmptyRequest>) -> Answered<Response> {
        Ok(tonic::Response::new(yes()))
    }

    async fn get_qemu_version(&self, _: Request<EmptyRequest>) -> Answered<QemuVersionResponse> {
        Ok(tonic::Response::new(QemuVersionResponse { response: Some(yes()), version: QEMU.into() }))
    }

    async fn get_domain(&self, _: Request<EmptyRequest>) -> Answered<DomainResponse> {
        let now = self.now();
        let domain = self.look(|vmi, guest| domain::describe(vmi, guest, now).to_string());
        // Before the domain exists: success, and nothing.
        Ok(tonic::Response::new(DomainResponse { response: Some(yes()), domain: domain.unwrap_or_default() }))
    }

    async fn get_domain_stats(&self, _: Request<EmptyRequest>) -> Answered<DomainStatsResponse> {
        let now = self.now();
        let stats = self.look(|vmi, guest| {
            let load = Load::of(vmi, self.shared.seed, now);
            domain::statistics(vmi, guest, load.as_ref()).to_string()
        });
        let domain_stats = stats.unwrap_or_else(|| "null".to_owned());
        Ok(tonic::Response::new(DomainStatsResponse { response: Some(yes()), domain_stats }))
    }

    async fn get_guest_info(&self, _: Request<EmptyRequest>) -> Answered<GuestInfoResponse> {
        let now = self.now();
        let said = self.look(|vmi, guest| agent::information(vmi, guest.frozen(now).is_some()).to_string());
        let guest_info_response = said.unwrap_or_default();
        Ok(tonic::Response::new(GuestInfoResponse { response: Some(yes()), guest_info_response }))
    }

    async fn get_users(&self, _: Request<EmptyRequest>) -> Answered<GuestUserListResponse> {
        let guest_user_list_response = agent::users()["items"].to_string();
        Ok(tonic::Response::new(GuestUserListResponse { response: Some(yes()), guest_user_list_response }))
    }

    async fn get_filesystems(&self, _: Request<EmptyRequest>) -> Answered<GuestFilesystemsResponse> {
        let said = self.look(|vmi, _| agent::file_systems(vmi)["items"].to_string());
        let guest_filesystems_response = said.unwrap_or_else(|| "[]".to_owned());
        Ok(tonic::Response::new(GuestFilesystemsResponse {
            response: Some(yes()),
            guest_filesystems_response,
        }))
    }

    async fn get_screenshot(&self, request: Request<VmiRequest>) -> Answered<ScreenshotResponse> {
        let taken = match self.vmi(request.into_inner().vmi)? {
            Ok(vmi) => match self.with(&vmi, |guest| screen::png(guest.paused)) {
                Some(image) => image.map_err(|error| no(error.to_string())),
                None => Err(unknown_domain(&vmi)),
            },
            Err(refusal) => Err(refusal),
        };
        let answer = match taken {
            Ok(data) => ScreenshotResponse { response: Some(yes()), mime: "image/png".into(), data },
            Err(refusal) => {
                ScreenshotResponse { response: Some(refusal), mime: String::new(), data: Vec::new() }
            }
        };
        Ok(tonic::Response::new(answer))
    }

    /// Defines and starts a domain that is not there. One that is there stays as it is: nothing that was plugged is
    /// taken back.
    async fn sync_virtual_machine(&self, request: Request<VmiRequest>) -> Answered<Response> {
        let answer = match self.vmi(request.into_inner().vmi)? {
            Ok(vmi) => {
                let (uid, pod) = &self.pod;
                self.shared.launchers.define(uid, pod, &json::key(&vmi), || Guest::of(&vmi));
                yes()
            }
            Err(refusal) => refusal,
        };
        Ok(tonic::Response::new(answer))
    }

    async fn sync_virtual_machine_cp_us(&self, request: Request<VmiRequest>) -> Answered<Response> {
        self.plug(request.into_inner(), "vCPUs", Machine::sync_cpus)
    }

    async fn sync_virtual_machine_memory(&self, request: Request<VmiRequest>) -> Answered<Response> {
        self.plug(request.into_inner(), "Guest Memory", Machine::sync_memory)
    }

    async fn pause_virtual_machine(&self, request: Request<VmiRequest>) -> Answered<Response> {
        self.order(
            request.into_inner().vmi,
            |_| no("Domain not found."),
            |guest, _| {
                guest.paused = true;
                yes()
            },
        )
    }

    async fn unpause_virtual_machine(&self, request: Request<VmiRequest>) -> Answered<Response> {
        self.order(
            request.into_inner().vmi,
            |_| no("Domain not found."),
            |guest, _| {
                guest.paused = false;
                yes()
            },
        )
    }

    async fn freeze_virtual_machine(&self, request: Request<FreezeRequest>) -> Answered<Response> {
        let request = request.into_inner();
        let seconds = i64::from(request.unfreeze_timeout_seconds);
        let until = self.now().saturating_add(SignedDuration::from_secs(seconds)).unwrap_or(Timestamp::MAX);
        self.order(request.vmi, unknown_domain, |guest, vmi| {
            if let Some(why) = guest::refused_freeze(vmi) {
                return no(why);
            }
            guest.freeze(until);
            yes()
        })
    }

    async fn unfreeze_virtual_machine(&self, request: Request<VmiRequest>) -> Answered<Response> {
        self.order(request.into_inner().vmi, unknown_domain, |guest, _| {
            guest.thaw();
            yes()
        })
    }

    async fn reset_virtual_machine(&self, request: Request<VmiRequest>) -> Answered<Response> {
        self.order(request.into_inner().vmi, unknown_domain, |guest, _| {
            guest.reset();
            yes()
        })
    }

    async fn soft_reboot_virtual_machine(&self, request: Request<VmiRequest>) -> Answered<Response> {
        self.order(request.into_inner().vmi, unknown_domain, |guest, vmi| {
            if guest::manner(vmi) == "no-agent" && !has_acpi(vmi) {
                return no("VMI neither have the agent connected nor the ACPI feature enabled");
            }
            guest.reset();
            yes()
        })
    }

    async fn shutdown_virtual_machine(&self, request: Request<VmiRequest>) -> Answered<Response> {
        self.end(request.into_inner(), |_| false)
    }

    async fn kill_virtual_machine(&self, request: Request<VmiRequest>) -> Answered<Response> {
        self.end(request.into_inner(), has_acpi)
    }

    async fn virtual_machine_memory_dump(&self, request: Request<MemoryDumpRequest>) -> Answered<Response> {
        let request = request.into_inner();
        let answer = match self.vmi(request.vmi)? {
            Ok(vmi) => {
                // `…/hotplug-disks/VOLUME/FILE`; what becomes of it is in the domain's metadata.
                let mut parts = request.dump_path.rsplit('/');
                if let (Some(file), Some(volume)) = (parts.next(), parts.next()) {
                    let dump = (volume, file);
                    self.shared.hotplug.dump_into(json::namespace(&vmi), dump, self.uid(), self.now());
                }
                yes()
            }
            Err(refusal) => refusal,
        };
        Ok(tonic::Response::new(answer))
    }
}
