//! `subresources.kubevirt.io`: what people do with VMs beside writing objects
//! (`pkg/virt-api/rest`, v1.9). A request is read, the objects that it names are fetched, a pure
//! function decides, and its writes or the call to the node follow.

mod acceptable;
mod discovery;
pub(in crate::sim) mod guest;
mod lifecycle;
mod memory_dump;
mod object_graph;
mod refusal;
mod sev;
pub(in crate::sim) mod streams;
pub mod templates;
mod volumes;

use apimachinery::Status;
use apimachinery::tree::{Value, json};
use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use jiff::Timestamp;
use tokio_util::sync::CancellationToken;

pub use discovery::{GROUP, VERSIONS};

use crate::clock::Ids;
use crate::sim::client::{Client, ClientError};
use crate::sim::cluster::ClusterConfig;
use crate::sim::handler_calls::{HandlerCalls, Order, Question, Stream};
use crate::sim::identity::Identity;
use crate::sim::instancetype::Finder;
use crate::sim::json::{self, list, text};
use crate::sim::resource::{CLAIMS, NODES, PODS, Resource, TEMPLATES, VMIS, VMS};
use crate::sim::write::{Op, Write};
use lifecycle::{Plan, Seen};
use volumes::Change;

/// A body may be this large: an object of etcd's limit, with JSON around it.
const BODY: usize = 3 << 20;

type Answer = Response<Full<Bytes>>;

/// Serves the subresources.
pub struct Subresources {
    client: Client,
    who: Identity,
    nodes: HandlerCalls,
    /// Draws values of templates.
    dice: Ids,
    stop: CancellationToken,
}

/// How a request ends that does not succeed.
enum Failure {
    /// A `Status` object with its code.
    Status(Status),
    /// go-restful's `WriteError`: the message as plain text.
    Plain(u16, String),
}

impl From<Status> for Failure {
    fn from(status: Status) -> Self {
        Self::Status(status)
    }
}

type Result<T, E = Failure> = std::result::Result<T, E>;

fn empty(code: StatusCode) -> Answer {
    let mut answer = Response::new(Full::default());
    *answer.status_mut() = code;
    answer
}

fn typed(content_type: &'static str, body: impl Into<Bytes>) -> Answer {
    let mut answer = Response::new(Full::new(body.into()));
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    answer
}

fn entity(value: &Value) -> Answer {
    typed("application/json", value.to_string())
}

fn refused(failure: Failure) -> Answer {
    match failure {
        Failure::Status(status) => {
            let mut answer = entity(&status.to_json());
            *answer.status_mut() =
                StatusCode::from_u16(status.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
            answer
        }
        Failure::Plain(code, message) => {
            let mut answer = typed("text/plain; charset=utf-8", message);
            *answer.status_mut() = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
            answer
        }
    }
}

fn nothing_there() -> Failure {
    Failure::Plain(404, "404: Page Not Found".into())
}

/// A write that the API server refused, as virt-api passes it on.
fn unable(error: &ClientError) -> Status {
    Status::internal(&error.message())
}

impl Subresources {
    pub fn new(client: Client, nodes: HandlerCalls, stop: CancellationToken) -> Self {
        let dice = Ids::new(0x7e3b);
        Self { client, who: Identity::virt_api(), nodes, dice, stop }
    }

    /// Answers one request.
    pub async fn answer(&self, request: Request<Incoming>, config: &ClusterConfig) -> Answer {
        self.dispatch(request, config).await.unwrap_or_else(refused)
    }

    async fn dispatch(&self, request: Request<Incoming>, config: &ClusterConfig) -> Result<Answer> {
        let path = request.uri().path().trim_end_matches('/').to_owned();
        let parts: Vec<&str> = path.split('/').skip(1).collect();
        match parts.as_slice() {
            [] => Ok(entity(&discovery::roots())),
            ["healthz"] => self.healthz().await,
            ["apis"] => Ok(entity(&discovery::groups())),
            ["openapi", "v2"] => Ok(entity(&json!({"swagger": "2.0",
                "info": {"title": "KubeVirt API", "version": "v1.0.0"}, "paths": {}}))),
            ["apis", group] if *group == GROUP => Ok(entity(&discovery::group())),
            ["apis", group, version, rest @ ..] if *group == GROUP && VERSIONS.contains(version) => {
                acceptable::check(request.method(), rest, request.headers())?;
                match rest {
                    [] => Ok(entity(&discovery::resources(version))),
                    ["version"] => Ok(entity(&discovery::version(config.release.tag()))),
                    ["guestfs"] => Ok(entity(&discovery::guestfs(config.release.tag()))),
                    ["healthz"] => self.healthz().await,
                    [
                        verb @ ("start-cluster-profiler" | "stop-cluster-profiler" | "dump-cluster-profiler"),
                    ] if request.method() == Method::GET => Err(profile(verb, config)),
                    ["namespaces", namespace, "expand-vm-spec"] if request.method() == Method::PUT => {
                        self.expand_given(request, config, namespace).await
                    }
                    ["namespaces", namespace, "virtualmachines", name, verb @ ..] => {
                        self.of_vm(request, config, (namespace, name), verb).await
                    }
                    ["namespaces", namespace, "virtualmachineinstances", name, verb @ ..] => {
                        self.of_vmi(request, config, (namespace, name), verb).await
                    }
                    _ => Err(nothing_there()),
                }
            }
            ["apis", group] if *group == templates::GROUP => Ok(entity(&discovery::template_group())),
            ["apis", group, version, rest @ ..]
                if *group == templates::GROUP && templates::VERSIONS.contains(version) =>
            {
                match rest {
                    [] => Ok(entity(&discovery::template_resources(version))),
                    [
                        "namespaces",
                        namespace,
                        "virtualmachinetemplates",
                        name,
                        verb @ ("process" | "create"),
                    ] if request.method() == Method::POST => {
                        self.of_template(request, (namespace, name), version, *verb == "create").await
                    }
                    _ => Err(nothing_there()),
                }
            }
            _ => Err(nothing_there()),
        }
    }

    /// Fills a template in, and makes the VM when that is asked for: in the template's namespace and as
    /// ourselves, so that who may use templates need not be allowed to make other VMs.
    async fn of_template(
        &self,
        request: Request<Incoming>,
        at: (&str, &str),
        version: &str,
        create: bool,
    ) -> Result<Answer> {
        let who = Identity::template_api();
        let given = templates::parameters(&body(request).await?)?;
        let path = TEMPLATES.path(at.0, at.1, "");
        let template = self.client.get(Some(&who), &path).await.map_err(|error| {
            Status::internal(&format!("error getting VirtualMachineTemplate: {}", error.message()))
        })?;
        let (mut vm, message) = templates::process(at.1, &template, &given, &self.dice)?;
        if create {
            let named = json::namespace(&vm).to_owned();
            let namespace = if named.is_empty() { at.0 } else { &named };
            let path = VMS.path(namespace, "", "");
            let made = self.client.send(Some(&who), Method::POST, &path, "application/json", &vm).await;
            vm = made.map_err(|error| {
                let code = match error.code() {
                    0 => 500,
                    code => code,
                };
                Status::new(code, "", error.message())
            })?;
        }
        Ok(entity(&templates::answer(version, at, &vm, message)))
    }

    async fn healthz(&self) -> Result<Answer> {
        let (code, about) = match self.client.get(None, "/version").await {
            Ok(version) => (StatusCode::OK, json!({"connectivity": "ok", "version": version})),
            Err(error) => (
                StatusCode::INTERNAL_SERVER_ERROR,
                json!({"connectivity": "failed", "error": error.message()}),
            ),
        };
        let mut answer = entity(&json!({"apiserver": about}));
        *answer.status_mut() = code;
        Ok(answer)
    }

    fn finder(&self) -> Finder<'_> {
        Finder { client: &self.client, who: &self.who }
    }

    /// Expands a VM that need not be there.
    async fn expand_given(
        &self,
        request: Request<Incoming>,
        config: &ClusterConfig,
        namespace: &str,
    ) -> Result<Answer> {
        let mut vm = body(request).await?;
        if !vm.pointer("/spec/template").is_some_and(Value::is_object) {
            return Err(Status::bad_request("Object is not a valid VirtualMachine").into());
        }
        let named = json::namespace(&vm);
        if !named.is_empty() && named != namespace {
            return Err(Status::bad_request(format!("VM namespace must be empty or {namespace}")).into());
        }
        json::put(&mut vm, &["metadata", "namespace"], namespace);
        let expanded = self.finder().expand(&vm, config).await;
        Ok(entity(&expanded.map_err(|error| Status::bad_request(error.to_string()))?))
    }

    async fn of_vm(
        &self,
        request: Request<Incoming>,
        config: &ClusterConfig,
        at: (&str, &str),
        verb: &[&str],
    ) -> Result<Answer> {
        let (namespace, name) = at;
        match (request.method().clone(), verb) {
            (Method::PUT, [verb @ ("start" | "stop" | "restart" | "migrate")]) => {
                let options = body(request).await?;
                let vm = self.vm(at).await?;
                let vmi = self.find(&VMIS, at, "vmi").await?;
                let seen = Seen { vm: &vm, vmi: vmi.as_ref() };
                let plan = match *verb {
                    "start" => lifecycle::start(&seen, &options),
                    "stop" => lifecycle::stop(&seen, &options),
                    "restart" => lifecycle::restart(&seen, &options),
                    _ => lifecycle::migrate(&seen, &options),
                }?;
                self.carry_out(&plan, &options, name).await?;
                Ok(empty(StatusCode::ACCEPTED))
            }
            (Method::PUT, [verb @ ("addvolume" | "removevolume")]) => {
                let change = change_of(verb);
                let options = volumes::checked(change, &body(request).await?, config)?;
                let write = volumes::of_vm(&self.vm(at).await?, change, &options, config)?;
                self.change_volumes(&write, &options, "vm").await
            }
            (Method::PUT, ["memorydump"]) => self.dump_memory(&body(request).await?, config, at).await,
            (Method::PUT, ["removememorydump"]) => {
                let write = memory_dump::removal(&self.vm(at).await?)?;
                self.write_status(&write).await
            }
            (Method::PUT, ["evacuate", "cancel"]) => {
                let vm = self.vm(at).await?;
                if vm["status"]["created"] != true {
                    return Err(refusal::vm_conflict(name, "VMI is not started").into());
                }
                self.cancel_evacuation(request, at).await
            }
            (Method::GET, ["portforward", port @ ..]) => {
                let vm = self.vm(at).await?;
                if vm["status"]["created"] != true {
                    return Err(refusal::vm_conflict(name, "VMI is not started").into());
                }
                self.forward_port(request, at, port).await
            }
            (Method::GET, ["expand-spec"]) => {
                let expanded = self.finder().expand(&self.vm(at).await?, config).await;
                Ok(entity(&expanded.map_err(|error| Status::internal(&error.to_string()))?))
            }
            (Method::GET, ["objectgraph"]) => {
                graphs(config)?;
                let vm = self.vm(at).await?;
                let options = body(request).await?;
                let pods = self.launchers(namespace).await?;
                let launcher = object_graph::launcher(list(&pods, "/items"), name);
                Ok(entity(&object_graph::of_vm(&vm, launcher, &options)))
            }
            (_, [_, ..]) => {
                tracing::debug!(namespace, name, ?verb, "virt-api does not serve this");
                Err(nothing_there())
            }
            (_, []) => Err(nothing_there()),
        }
    }

    async fn of_vmi(
        &self,
        request: Request<Incoming>,
        config: &ClusterConfig,
        at: (&str, &str),
        verb: &[&str],
    ) -> Result<Answer> {
        let now = self.client.now();
        match (request.method().clone(), verb) {
            (
                Method::PUT,
                [verb @ ("pause" | "unpause" | "softreboot" | "reset" | "freeze" | "unfreeze")],
            ) => {
                let options = body(request).await?;
                self.order(verb, &options, at, now).await
            }
            (Method::GET, [verb @ ("guestosinfo" | "userlist" | "filesystemlist")]) => {
                self.ask(verb, at, now).await
            }
            (Method::PUT, [verb @ ("addvolume" | "removevolume")]) => {
                let change = change_of(verb);
                let options = volumes::checked(change, &body(request).await?, config)?;
                let write = volumes::of_vmi(&self.vmi(at).await?, change, &options, config)?;
                self.change_volumes(&write, &options, "vmi").await
            }
            (Method::PUT, ["evacuate", "cancel"]) => self.cancel_evacuation(request, at).await,
            (Method::GET, ["console"]) => self.connect(request, at, Stream::Console).await,
            (Method::GET, ["vnc"]) => self.connect(request, at, Stream::Vnc).await,
            (Method::GET, ["usbredir"]) => self.connect(request, at, Stream::UsbRedirection).await,
            (Method::GET, ["portforward", port @ ..]) => self.forward_port(request, at, port).await,
            (Method::GET, ["vnc", "screenshot"]) => {
                let vmi = self.vmi(at).await.map_err(as_plain_500)?;
                guest::may_see(&vmi).map_err(|status| Failure::Plain(500, status.message))?;
                let png = self.nodes.screenshot(&vmi).map_err(|message| Failure::Plain(500, message))?;
                Ok(typed("image/png", png))
            }
            (Method::GET, ["objectgraph"]) => {
                graphs(config)?;
                let vmi = self.vmi(at).await?;
                let options = body(request).await?;
                let pods = self.launchers(at.0).await?;
                let launcher = object_graph::launcher(list(&pods, "/items"), at.1);
                Ok(entity(&object_graph::of_vmi(&vmi, launcher, &options)))
            }
            (Method::GET, ["vsock"]) => {
                let query = request.uri().query().unwrap_or_default();
                let port = query.split('&').find_map(|pair| pair.strip_prefix("port="));
                let port = port.and_then(|port| port.parse().ok());
                self.connect(request, at, Stream::Vsock(port)).await
            }
            (_, ["sev", verb]) => self.attest(request, config, at, verb).await,
            (Method::PUT, [verb @ ("backup" | "redefine-checkpoint")]) => {
                guest::may_back_up(&self.vmi(at).await?, verb)?;
                // virt-controller asks launchers without this call; guests know of no other way.
                Err(Status::internal(
                    "unexpected return code 500 (500 Internal Server Error), message: \
                    server error. command VirtualMachineBackup failed: create a VirtualMachineBackup",
                )
                .into())
            }
            _ => Err(nothing_there()),
        }
    }

    async fn dump_memory(&self, options: &Value, config: &ClusterConfig, at: (&str, &str)) -> Result<Answer> {
        memory_dump::served(config)?;
        let vm = self.vm(at).await?;
        let name = memory_dump::claim_of(&vm, options)?;
        let vmi = self.vmi(at).await?;
        memory_dump::may_dump(&vmi)?;
        let claim = self.find(&CLAIMS, (at.0, name), "pvc").await?;
        let claim = claim.ok_or_else(|| Status::not_found("kubevirt.io", "persistentvolumeclaim", name))?;
        memory_dump::fits(&vmi, &claim)?;
        self.write_status(&memory_dump::request(&vm, name)?).await
    }

    async fn write_status(&self, write: &Write) -> Result<Answer> {
        self.write(write, &Value::Null).await.map_err(|error| match error.code() {
            422 if !error.message().contains("due to an error in our request") => {
                Status::new(422, "Invalid", error.message())
            }
            _ => Status::internal(&format!("unable to patch vm status: {}", error.message())),
        })?;
        Ok(empty(StatusCode::ACCEPTED))
    }

    /// The launcher pods of a namespace.
    async fn launchers(&self, namespace: &str) -> Result<Value> {
        let path = format!("{}?labelSelector=kubevirt.io%3Dvirt-launcher", PODS.path(namespace, "", ""));
        Ok(self.client.get(Some(&self.who), &path).await.map_err(|error| unable(&error))?)
    }

    /// Attestation of an encrypted guest.
    async fn attest(
        &self,
        request: Request<Incoming>,
        config: &ClusterConfig,
        at: (&str, &str),
        verb: &str,
    ) -> Result<Answer> {
        if !config.gate("WorkloadEncryptionSEV") {
            let message = "'WorkloadEncryptionSEV' feature gate is not enabled";
            return Err(Status::bad_request(message).into());
        }
        match (request.method().clone(), verb) {
            (Method::GET, "fetchcertchain") => sev::may_fetch(&self.vmi(at).await?)?,
            (Method::GET, "querylaunchmeasurement") | (Method::PUT, "injectlaunchsecret") => {
                sev::may_attest(&self.vmi(at).await?)?;
            }
            (Method::PUT, "setupsession") => {
                let options = body(request).await?;
                sev::checked(&options)?;
                let write = sev::set_up(&self.vmi(at).await?, &options)?;
                self.write(&write, &options).await.map_err(|error| unable(&error))?;
                return Ok(empty(StatusCode::ACCEPTED));
            }
            _ => return Err(nothing_there()),
        }
        Err(Status::internal(
            "unexpected return code 500 (500 Internal Server Error), message: SEV is not available",
        )
        .into())
    }

    /// An order to the guest: pause and the like.
    async fn order(&self, verb: &str, options: &Value, at: (&str, &str), now: Timestamp) -> Result<Answer> {
        let (order, bad) = match verb {
            "pause" => (Order::Pause, None),
            "unpause" => (Order::Unpause, None),
            "softreboot" => (Order::SoftReboot, None),
            "reset" => (Order::Reset, None),
            "unfreeze" => (Order::Unfreeze, None),
            _ => match guest::thaw_after(options) {
                Ok(time) => (Order::Freeze(time), None),
                Err(message) => (Order::Freeze(std::time::Duration::ZERO), Some(message)),
            },
        };
        let vm = if order == Order::Unpause { self.find(&VMS, at, "vm").await? } else { None };
        let vmi = self.vmi(at).await?;
        guest::may_order(&vmi, vm.as_ref(), order)?;
        if options["dryRun"][0] == "All" {
            return Ok(empty(StatusCode::OK));
        }
        let failed = |code: &str, message: &str| {
            Status::internal(&format!("unexpected return code {code}, message: {message}"))
        };
        if let Some(message) = bad {
            return Err(failed("400 (400 Bad Request)", &message).into());
        }
        self.nodes
            .order(&vmi, order, now)
            .map_err(|message| failed("500 (500 Internal Server Error)", &message))?;
        Ok(empty(StatusCode::OK))
    }

    /// A question to the guest's agent. Refusals are plain text with 500, whatever they are about.
    async fn ask(&self, verb: &str, at: (&str, &str), now: Timestamp) -> Result<Answer> {
        let vmi = self.vmi(at).await.map_err(as_plain_500)?;
        let plain = |message: String| Failure::Plain(500, message);
        guest::may_ask(&vmi).map_err(|status| plain(status.message))?;
        let question = match verb {
            "guestosinfo" => Question::System,
            "userlist" => Question::Users,
            _ => Question::FileSystems,
        };
        self.nodes.ask(&vmi, question, now).map(|answer| entity(&answer)).map_err(plain)
    }

    async fn connect(&self, request: Request<Incoming>, at: (&str, &str), stream: Stream) -> Result<Answer> {
        let vmi = self.vmi(at).await?;
        guest::may_connect(&vmi, stream)?;
        // The handshake is looked at before the guest is disturbed.
        streams::key(request.headers())?;
        let guest = self.nodes.connect(&vmi, stream).map_err(|message| Status::internal(&message))?;
        Ok(streams::open(request, guest, self.stop.clone())?)
    }

    async fn forward_port(
        &self,
        request: Request<Incoming>,
        at: (&str, &str),
        port: &[&str],
    ) -> Result<Answer> {
        let number = match port {
            [number] | [number, "tcp" | "udp"] => number.parse().ok(),
            _ => None,
        };
        let number = number.ok_or_else(|| Status::bad_request("port must be a number from 1 to 65535"))?;
        self.connect(request, at, Stream::Port(number)).await
    }

    /// Takes the mark of an eviction off a VMI.
    async fn cancel_evacuation(&self, request: Request<Incoming>, at: (&str, &str)) -> Result<Answer> {
        let vmi = self.vmi(at).await?;
        let marked = text(&vmi, "/status/evacuationNodeName");
        let node = if marked.is_empty() { text(&vmi, "/status/nodeName") } else { marked };
        let taint = "kubevirt.io/drain";
        let node = self
            .client
            .get(Some(&self.who), &NODES.path("", node, ""))
            .await
            .map_err(|error| unable(&error))?;
        let drained = list(&node, "/spec/taints")
            .iter()
            .any(|one| one["key"] == taint && one["effect"] == "NoSchedule");
        if drained {
            let name = json::name(&node);
            let message = format!("Node \"{name}\" has NodeDrainTaintKey \"{taint}:NoSchedule\"");
            return Err(Status::bad_request(message).into());
        }
        if marked.is_empty() {
            return Ok(empty(StatusCode::OK));
        }
        let options = body(request).await?;
        let path = "/status/evacuationNodeName";
        let patch = json!([{"op": "test", "path": path, "value": text(&options, "/evacuationNodeName")},
            {"op": "remove", "path": path}]);
        let write = Write::to(&VMIS, &vmi, "", Op::JsonPatch(patch));
        self.write(&write, &options).await.map_err(|error| unable(&error))?;
        Ok(empty(StatusCode::OK))
    }

    async fn change_volumes(&self, write: &Write, options: &Value, what: &str) -> Result<Answer> {
        self.write(write, options).await.map_err(|error| match error.code() {
            // What admission refuses is passed on in its own words.
            422 if !error.message().contains("due to an error in our request") => {
                Status { code: 422, reason: "Invalid".into(), ..Status::new(422, "Invalid", error.message()) }
            }
            _ => Status::internal(&format!("unable to patch {what}: {}", error.message())),
        })?;
        Ok(empty(StatusCode::ACCEPTED))
    }

    async fn carry_out(&self, plan: &Plan, options: &Value, name: &str) -> Result<(), Status> {
        for (index, write) in plan.writes.iter().enumerate() {
            let Err(error) = self.write(write, options).await else { continue };
            if let Some(undo) = plan.undo.as_ref().filter(|_| index > 0)
                && let Err(error) = self.write(undo, options).await
            {
                tracing::debug!(%error, "the grace period of a VMI stays changed");
            }
            let message = error.message();
            return Err(if message.contains("jsonpatch test operation does not apply") {
                refusal::vm_conflict(name, &message)
            } else {
                unable(&error)
            });
        }
        Ok(())
    }

    /// A write under virt-api's name, for show when the options say so.
    async fn write(&self, write: &Write, options: &Value) -> Result<Value, ClientError> {
        write.send_as(&self.client, &self.who, options["dryRun"][0] == "All").await
    }

    async fn vm(&self, at: (&str, &str)) -> Result<Value> {
        self.find(&VMS, at, "vm").await?.ok_or_else(|| refusal::no_vm(at.1).into())
    }

    async fn vmi(&self, at: (&str, &str)) -> Result<Value> {
        self.find(&VMIS, at, "vmi").await?.ok_or_else(|| refusal::no_vmi(at.1).into())
    }

    async fn find(&self, resource: &Resource, at: (&str, &str), what: &str) -> Result<Option<Value>> {
        match self.client.get(Some(&self.who), &resource.path(at.0, at.1, "")).await {
            Ok(object) => Ok(Some(object)),
            Err(error) if error.code() == 404 => Ok(None),
            Err(error) => {
                let message = format!("unable to retrieve {what} [{}]: {}", at.1, error.message());
                Err(Status::internal(&message).into())
            }
        }
    }
}

fn change_of(verb: &str) -> Change {
    if verb == "addvolume" { Change::Add } else { Change::Remove }
}

fn graphs(config: &ClusterConfig) -> Result<()> {
    if config.gate("ObjectGraph") {
        return Ok(());
    }
    let message = "ObjectGraph feature gate not enabled: Unable to return object graph.";
    Err(Status::bad_request(message).into())
}

/// The answer to a request about profiles: components that are simulated have none.
fn profile(verb: &str, config: &ClusterConfig) -> Failure {
    if config.gate("ClusterProfiler") {
        return Failure::Plain(500, "Internal error, no component pods found".into());
    }
    let what = match verb {
        "dump-cluster-profiler" => "dump profiler results",
        "stop-cluster-profiler" => "stop profiler",
        _ => "start profiler",
    };
    Failure::Plain(403, format!("Unable to {what}. \"ClusterProfiler\" feature gate must be enabled"))
}

fn as_plain_500(failure: Failure) -> Failure {
    match failure {
        Failure::Status(status) => Failure::Plain(500, status.message),
        plain @ Failure::Plain(..) => plain,
    }
}

/// The body as JSON or YAML; an empty one as an empty object.
async fn body(request: Request<Incoming>) -> Result<Value> {
    let bad =
        |why: String| Status::bad_request(format!("Can not unmarshal Request body to struct, error: {why}"));
    let collected = Limited::new(request.into_body(), BODY).collect().await;
    let bytes = collected.map_err(|error| bad(error.to_string()))?.to_bytes();
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return Ok(json!({}));
    }
    let parsed = serde_json::from_slice::<Value>(&bytes).or_else(|error| {
        let text = std::str::from_utf8(&bytes).map_err(|error| bad(error.to_string()))?;
        serde_saphyr::from_str::<Value>(text).map_err(|_| bad(error.to_string()))
    })?;
    if parsed.is_object() || parsed.is_null() {
        return Ok(if parsed.is_null() { json!({}) } else { parsed });
    }
    Err(bad("the body is no object".into()).into())
}
