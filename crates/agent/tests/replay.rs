//! The agent against a launcher that answers as a recorded one did: real gRPC over a real unix
//! socket. What was recorded of a real virt-launcher is not part of the repository:
//! `GOLDEN_LAUNCHER` names its directory (`../shared/golden/launcher` beside the workspace
//! otherwise); without it the answers below, taken from it, are all there is.
#![allow(clippy::unwrap_used, clippy::panic, reason = "what fails here fails the test")]

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use agent::{Call, CompleteVmi, Launcher, LauncherError, plan};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use launcher_api::info::cmd_info_server::{CmdInfo, CmdInfoServer};
use launcher_api::info::{CmdInfoRequest, CmdInfoResponse};
use launcher_api::v1::cmd_server::{Cmd, CmdServer};
use launcher_api::v1::{DomainResponse, EmptyRequest, Response, VmiRequest};
use resize::Size;
use resize::quantity::bytes;
use resize::view::Guest;
use serde_json::{Value, json};
use tokio::net::UnixListener;
use tonic::{Request, Status};
use tower_service::Service as _;

const UID: &str = "0a1b2c3d-1111-4222-8333-444455556666";
const GI: u64 = 1 << 30;
const CPUS: &str = "SyncVirtualMachineCPUs";
const MEMORY: &str = "SyncVirtualMachineMemory";

/// A launcher with its lines learnt by heart.
#[derive(Clone, Default)]
struct Player {
    versions: Vec<u32>,
    /// What `GetDomain` says, one after the other; the last one for ever.
    domains: Arc<Mutex<VecDeque<Value>>>,
    /// What a `Sync…` call says: nothing is a success.
    words: Arc<Mutex<VecDeque<String>>>,
    /// Calls with the VMI that they carried.
    heard: Arc<Mutex<Vec<(&'static str, Value)>>>,
}

impl Player {
    fn new(domains: impl IntoIterator<Item = Value>) -> Self {
        let domains = Arc::new(Mutex::new(domains.into_iter().collect()));
        Self { versions: vec![1], domains, ..Self::default() }
    }

    fn sync(&self, call: &'static str, request: VmiRequest) -> tonic::Response<Response> {
        // A launcher dies of a request without one.
        let vmi = serde_json::from_slice(&request.vmi.unwrap().vmi_json).unwrap();
        self.heard.lock().unwrap().push((call, vmi));
        let message = self.words.lock().unwrap().pop_front().unwrap_or_default();
        tonic::Response::new(Response { success: message.is_empty(), message })
    }

    /// Plays on a socket in a directory, which is there as long as what is given back.
    fn play(&self) -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(directory.path().join("launcher-sock")).unwrap();
        let player = self.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (info, commands) = (CmdInfoServer::new(player.clone()), CmdServer::new(player.clone()));
                let service = service_fn(move |request: http::Request<hyper::body::Incoming>| {
                    let (mut info, mut commands) = (info.clone(), commands.clone());
                    async move {
                        if request.uri().path().contains("CmdInfo") {
                            info.call(request).await
                        } else {
                            commands.call(request).await
                        }
                    }
                });
                let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                tokio::spawn(server.serve_connection(TokioIo::new(stream), service));
            }
        });
        directory
    }
}

#[tonic::async_trait]
impl CmdInfo for Player {
    async fn info(&self, _: Request<CmdInfoRequest>) -> Result<tonic::Response<CmdInfoResponse>, Status> {
        Ok(tonic::Response::new(CmdInfoResponse { supported_cmd_versions: self.versions.clone() }))
    }
}

#[tonic::async_trait]
impl Cmd for Player {
    async fn ping(&self, _: Request<EmptyRequest>) -> Result<tonic::Response<Response>, Status> {
        Ok(tonic::Response::new(Response { success: true, message: String::new() }))
    }

    async fn get_domain(&self, _: Request<EmptyRequest>) -> Result<tonic::Response<DomainResponse>, Status> {
        let mut domains = self.domains.lock().unwrap();
        let domain = if domains.len() > 1 { domains.pop_front() } else { domains.front().cloned() };
        let response = Some(Response { success: true, message: String::new() });
        let domain = domain.map(|domain| domain.to_string()).unwrap_or_default();
        Ok(tonic::Response::new(DomainResponse { response, domain }))
    }

    async fn sync_virtual_machine_cp_us(
        &self,
        request: Request<VmiRequest>,
    ) -> Result<tonic::Response<Response>, Status> {
        Ok(self.sync(CPUS, request.into_inner()))
    }

    async fn sync_virtual_machine_memory(
        &self,
        request: Request<VmiRequest>,
    ) -> Result<tonic::Response<Response>, Status> {
        Ok(self.sync(MEMORY, request.into_inner()))
    }
}

/// The recorded VM: one socket of four, 1 GiB of four.
fn recorded_vmi() -> Value {
    json!({
        "metadata": {"name": "labvm", "namespace": "lab", "uid": UID},
        "spec": {"domain": {"cpu": {"sockets": 1, "cores": 1, "threads": 1, "maxSockets": 4},
            "memory": {"guest": "1Gi", "maxGuest": "4Gi"}}},
        "status": {"memory": {"guestAtBoot": "1Gi", "guestCurrent": "1Gi", "guestRequested": "1Gi"}},
    })
}

fn sized(mut vmi: Value, size: Size) -> Value {
    vmi["spec"]["domain"]["cpu"]["sockets"] = size.sockets.into();
    vmi["spec"]["domain"]["memory"]["guest"] = size.guest.to_string().into();
    vmi
}

fn complete() -> CompleteVmi {
    CompleteVmi::new(recorded_vmi()).unwrap()
}

/// What `GetDomain` says of it, in the parts that are looked at. Memory in MiB beyond the first GiB.
fn domain(uid: &str, vcpus: usize, requested: u64, current: u64) -> Value {
    let kib = |mib: u64| json!({"Value": mib << 10, "Unit": "KiB"});
    let all: Vec<Value> = (0..4)
        .map(|id| json!({"ID": id, "Enabled": if id < vcpus { "yes" } else { "no" }, "Hotpluggable": "yes"}))
        .collect();
    json!({"Status": {"Status": "Running"}, "Spec": {"Metadata": {"KubeVirt": {"UID": uid}},
        // libvirt 11.3 counts this up at every guest reset: it must not be looked at.
        "CurrentMemory": kib(8 << 10), "VCPU": {"CPUs": 4}, "VCPUs": {"VCPU": all},
        "Devices": {"Memory": {"Target": {"Size": kib(3072), "Requested": kib(requested), "Current": kib(current)}}}}})
}

#[tokio::test]
async fn a_launcher_of_another_version_is_sent_nothing() {
    let player = Player { versions: vec![2, 3], ..Player::new([domain(UID, 1, 0, 0)]) };
    let sockets = player.play();
    let error = Launcher::connect(sockets.path(), complete()).await.unwrap_err();
    assert!(matches!(&error, LauncherError::Version(versions) if *versions == [2, 3]), "{error}");
    assert!(player.heard.lock().unwrap().is_empty());
}

/// A launcher takes a request for any VMI of the domain's name, so the uid has to be compared here.
#[tokio::test]
async fn a_domain_with_another_uid_is_named_before_anything_is_sent() {
    let sockets = Player::new([domain("another", 1, 0, 0)]).play();
    let launcher = Launcher::connect(sockets.path(), complete()).await.unwrap();
    let error = launcher.guest().await.unwrap_err();
    assert!(error.to_string().contains("has the uid another, not 0a1b2c3d"), "{error}");
    let sockets = Player::new([]).play();
    let launcher = Launcher::connect(sockets.path(), complete()).await.unwrap();
    assert!(matches!(launcher.guest().await, Err(LauncherError::NoDomain)), "before the domain is there");
}

/// "Success" is libvirt's; the guest follows, or does not.
#[tokio::test]
async fn done_is_what_the_guest_has_and_not_what_the_launcher_says() {
    let player = Player::new([
        domain(UID, 1, 0, 0),
        domain(UID, 1, 1024, 0),
        domain(UID, 1, 1024, 640),
        domain(UID, 1, 1024, 1024),
        domain(UID, 3, 1024, 1024),
    ]);
    let sockets = player.play();
    let (launcher, vmi) = (Launcher::connect(sockets.path(), complete()).await.unwrap(), complete());
    let task = Size { sockets: 3, guest: 2 * GI };
    let mut calls = Vec::new();
    for _ in 0..5 {
        let guest = launcher.guest().await.unwrap();
        let call = plan(&vmi, Some(task), &guest);
        if let Some(call) = call {
            launcher.make(call).await.unwrap();
        }
        calls.push((guest.vcpus, guest.current >> 20, call));
    }
    assert_eq!(
        calls,
        [
            (1, 1024, Some(Call::Memory(task))),
            (1, 1024, None),
            (1, 1664, None),
            (1, 2048, Some(Call::Cpus(task))),
            (3, 2048, None),
        ]
    );
    for (_, sent) in player.heard.lock().unwrap().iter() {
        assert_eq!(*sent, sized(recorded_vmi(), task), "the whole VMI, and nothing else changed");
    }
}

fn recordings() -> Option<PathBuf> {
    let named = std::env::var_os("GOLDEN_LAUNCHER").map(PathBuf::from);
    let usual = concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared/golden/launcher");
    let found = named.or_else(|| Some(Path::new(usual).into())).filter(|path| path.join("grpc").is_dir());
    if found.is_none() {
        eprintln!("SKIPPED: no recordings of a launcher here; set GOLDEN_LAUNCHER to their directory");
    }
    found
}

/// Every recorded exchange, in order, with the name of its file.
fn recorded(directory: &Path) -> Vec<(String, Value)> {
    let mut paths: Vec<PathBuf> = std::fs::read_dir(directory.join("grpc"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|end| end == "json"))
        .collect();
    paths.sort();
    let name = |path: &Path| path.file_name().unwrap().to_string_lossy().into_owned();
    paths.iter().map(|path| (name(path), read(path))).collect()
}

fn read(path: &Path) -> Value {
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

/// A recorded domain is read as it was.
async fn replay_domain(name: &str, said: &Value) {
    let sockets = Player::new([said.clone()]).play();
    let guest = Launcher::connect(sockets.path(), complete()).await.unwrap().guest().await.unwrap();
    let target = &said["Spec"]["Devices"]["Memory"]["Target"];
    let plugged = |field: &str| GI + (target[field]["Value"].as_u64().unwrap() << 10);
    let vcpus = said["Spec"]["VCPUs"]["VCPU"].as_array().unwrap();
    let enabled = vcpus.iter().filter(|vcpu| vcpu["Enabled"] == "yes").count();
    let vcpus = u32::try_from(enabled).unwrap();
    let expected = Guest { vcpus, requested: plugged("Requested"), current: plugged("Current") };
    assert_eq!(guest, expected, "{name}");
}

/// A recorded plug is sent as it was, and its answer comes back; true: it was a refusal.
async fn replay_plug(name: &str, method: &str, sent: &Value, words: &str) -> bool {
    let size = Size {
        sockets: u32::try_from(sent["spec"]["domain"]["cpu"]["sockets"].as_u64().unwrap()).unwrap(),
        guest: bytes(&sent["spec"]["domain"]["memory"]["guest"]).unwrap(),
    };
    let call = if method == CPUS { Call::Cpus(size) } else { Call::Memory(size) };
    let player = Player::new([domain(UID, 1, 0, 0)]);
    player.words.lock().unwrap().push_back(words.to_owned());
    let sockets = player.play();
    let vmi = CompleteVmi::new(sent.clone()).unwrap();
    let made = Launcher::connect(sockets.path(), vmi).await.unwrap().make(call).await;
    let (called, carried) = player.heard.lock().unwrap().pop().unwrap();
    // But for how amounts are written.
    assert_eq!((called, carried), (method, sized(sent.clone(), size)), "{name}");
    match made {
        Ok(()) => false,
        Err(LauncherError::Refused { message, .. }) => {
            assert_eq!(message, words, "{name}");
            true
        }
        Err(other) => panic!("{name}: {other}"),
    }
}

#[tokio::test]
async fn recorded_exchanges_are_sent_and_understood() {
    let Some(directory) = recordings() else { return };
    let (mut domains, mut plugs, mut refusals) = (0, 0, 0);
    for (name, exchange) in recorded(&directory) {
        let method = exchange["method"].as_str().unwrap_or_default().rsplit('/').next().unwrap_or_default();
        let sent = &exchange["request"]["vmi"]["vmiJson (decoded)"];
        if method == "GetDomain" {
            replay_domain(&name, &exchange["response"]["domain (decoded)"]).await;
            domains += 1;
        } else if [CPUS, MEMORY].contains(&method) && sent.is_object() {
            let words = exchange["response"]["message"].as_str().unwrap_or_default();
            refusals += usize::from(replay_plug(&name, method, sent, words).await);
            plugs += 1;
        }
    }
    println!("{domains} domains, {plugs} plugs, {refusals} of them refused");
    assert!(domains >= 6 && plugs >= 11 && refusals >= 6, "{domains} {plugs} {refusals}");
}

/// Requests that killed a real launcher cannot be made: there is no VMI to make them of.
#[test]
fn what_killed_a_launcher_cannot_be_made() {
    let Some(directory) = recordings() else { return };
    let exchange = read(&directory.join("grpc/crash/SyncVirtualMachineMemory-without-maxGuest.json"));
    let vmi = exchange["request"]["vmi"]["vmiJson (decoded)"].clone();
    assert!(vmi.is_object(), "{exchange}");
    let error = CompleteVmi::new(vmi).unwrap_err();
    assert_eq!(error.field, "/spec/domain/memory/maxGuest");
}
