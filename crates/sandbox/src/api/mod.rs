//! The Kubernetes API over the store: one request from its head to its answer.
//!
//! ```text
//! authenticate ─► authorize ─► route ─► negotiate ─► decode ─► admit ─► store ─► encode
//! ```

mod admit;
mod aggregate;
mod apply;
mod decode;
mod delete;
mod discovery;
mod events;
mod faults;
mod fields;
mod lifecycle;
mod meta;
mod negotiate;
mod openapi;
mod pod_proxy;
mod present;
mod protobuf;
mod query;
mod read;
mod reply;
mod strategy;
mod subresource;
mod table;
pub(crate) mod target;
mod twice;
mod upgrade;
mod watch;
mod write;

use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use apimachinery::Status;
use apimachinery::tree::json;
use bytes::Bytes;
use futures::FutureExt as _;
use http::request::Parts;
use http::{Method, Request};
use http_body_util::{BodyExt, Limited};
use tokio_util::sync::CancellationToken;

pub use aggregate::authentication;
pub use delete::{FOREGROUND, ORPHAN, Options};
pub use faults::Cut;
pub use openapi::Documents;
pub use reply::{Body, Reply};
pub use strategy::definition::CLEANUP;
pub use strategy::{PV_PROTECTION, PVC_PROTECTION};
pub use subresource::is_ready;

use crate::attributes::{Attributes, User};
use crate::audit;
use crate::clock::{Clock, Ids};
use crate::registry::{Kind, Registry, Verbs};
use crate::store::Store;
use negotiate::Form;
use present::{Include, Presenter};
use query::Query;
use target::Target;

/// The limit of a request's body, as in a real API server (3 MiB).
pub const BODY_MAX: usize = 3 << 20;
/// A body must be there within this time.
const BODY_TIME: Duration = Duration::from_secs(30);

/// The API and everything behind it.
pub struct Api {
    /// The objects.
    pub store: Arc<Store>,
    /// The kinds.
    pub registry: Registry,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Identities.
    pub ids: Ids,
    /// How servers behind `APIServices` are reached.
    pub network: crate::network::Network,
    /// The admission chain.
    pub admission: crate::admission::Admission,
    /// What requests to aggregated APIs come with.
    pub proxy: crate::certs::Identity,
    /// Documents of `/openapi/v2` and `/openapi/v3`.
    pub documents: std::sync::Mutex<Documents>,
    /// What is to go wrong.
    pub faults: Arc<crate::faults::Faults>,
    /// Where requests are written down.
    pub audit: Option<audit::Audit>,
    /// What the server's own controllers have to look at.
    pub work: crate::controllers::Queue,
    /// Ends watches when the server goes down.
    pub shutdown: CancellationToken,
    /// The certificate authority, PEM: pods find it in `kube-root-ca.crt`.
    pub ca: String,
    /// Who may do what.
    pub auth: crate::auth::Auth,
    /// Where kubelets keep the log of a pod, by its uid; nobody: there are no logs.
    pub logs: std::sync::OnceLock<Logs>,
}

/// See [`Api::logs`].
pub type Logs = Box<dyn Fn(&str) -> Option<std::path::PathBuf> + Send + Sync>;

impl std::fmt::Debug for Api {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Api")
    }
}

/// A request for a resource, resolved.
#[derive(Clone, Debug)]
pub struct Call {
    /// Who asks.
    pub user: User,
    /// What kind it is about.
    pub kind: Arc<Kind>,
    /// What the path names.
    pub target: Target,
    /// Options.
    pub query: Query,
    /// The form of the answer.
    pub form: Form,
    /// The body's media type.
    pub content_type: String,
    /// What the client calls itself; the default field manager comes from it.
    pub user_agent: String,
    /// The body.
    pub body: Bytes,
    /// Nothing is written.
    pub dry_run: bool,
    /// What is wrong with the body although it can be read: fields that are there twice.
    pub complaints: Vec<String>,
    /// What the client is told beside the answer.
    pub warnings: Vec<String>,
    /// What the audit log is told beside the request.
    pub annotations: BTreeMap<String, String>,
}

impl Call {
    /// The namespace of the request, if it has one.
    pub fn namespace(&self) -> Option<&str> {
        (self.kind.namespaced && !self.target.namespace.is_empty()).then_some(self.target.namespace.as_str())
    }

    fn presenter(&self, api: &Api) -> Presenter {
        let include = match self.query.get("includeObject") {
            Some("Object") => Include::Object,
            Some("None") => Include::None,
            _ => Include::Metadata,
        };
        Presenter::new(self.kind.clone(), self.form, include, api.clock.now())
    }
}

/// What is known of a request when it has been answered, however it ended.
#[derive(Debug, Default)]
struct Trail {
    attributes: Attributes,
    impersonator: Option<User>,
    object: Option<apimachinery::tree::Value>,
    warnings: Vec<String>,
    annotations: BTreeMap<String, String>,
    /// A fault keeps the answer from its client.
    cut: bool,
    /// A fault kills the client, for so long.
    crash: Option<Duration>,
}

fn header(head: &Parts, name: http::header::HeaderName) -> &str {
    head.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
}

fn attributes(head: &Parts, user: &User, target: Option<&Target>, query: &Query) -> Attributes {
    let user = user.clone();
    let Some(target) = target.cloned() else {
        let verb = head.method.as_str().to_lowercase();
        return Attributes { user, verb, path: head.uri.path().to_owned(), ..Attributes::default() };
    };
    Attributes {
        user,
        verb: verb(&head.method, &target, query).into(),
        group: target.group,
        version: target.version,
        resource: target.resource,
        subresource: target.subresource,
        namespace: target.namespace,
        name: target.name,
        path: String::new(),
        dry_run: query.get("dryRun").is_some(),
    }
}

/// `/apis/<group>/<version>`
fn group_version(path: &str) -> Option<(&str, &str)> {
    let mut parts = path.strip_prefix("/apis/")?.trim_end_matches('/').split('/');
    let found = (parts.next()?, parts.next()?);
    parts.next().is_none().then_some(found)
}

/// The verb of a request for a resource (`RequestInfo`).
fn verb(method: &Method, target: &Target, query: &Query) -> &'static str {
    match *method {
        Method::GET | Method::HEAD if query.watch() => "watch",
        Method::GET | Method::HEAD if target.name.is_empty() => "list",
        Method::GET | Method::HEAD => "get",
        Method::POST => "create",
        Method::PUT => "update",
        Method::PATCH => "patch",
        Method::DELETE if target.name.is_empty() => "deletecollection",
        Method::DELETE => "delete",
        _ => "",
    }
}

impl Api {
    /// Answers one request.
    pub async fn handle<B>(self: Arc<Self>, request: Request<B>, certificate: Option<User>) -> Reply
    where
        B: http_body::Body<Data = Bytes>,
        B::Error: std::error::Error + Send + Sync + 'static,
    {
        let id = self.ids.uid();
        let received = self.clock.now();
        let (head, body) = request.into_parts();
        let mut trail = Trail::default();
        let answer = AssertUnwindSafe(self.answer(&head, body, certificate, &mut trail)).catch_unwind().await;
        let answer = answer.unwrap_or_else(|_| {
            Err(Status::internal("the sandbox failed at this request; its log says more"))
        });
        let failure = answer.as_ref().err().cloned();
        let mut answer = answer.unwrap_or_else(|status| reply::failure(&status));
        reply::warn(&mut answer, &trail.warnings);
        if let Ok(value) = http::HeaderValue::from_str(&id) {
            answer.headers_mut().insert("audit-id", value);
        }
        if let Some(audit) = &self.audit {
            let uri = head.uri.path_and_query().map_or("/", http::uri::PathAndQuery::as_str);
            audit.record(&audit::Event {
                id: &id,
                attributes: &trail.attributes,
                impersonator: trail.impersonator.as_ref(),
                uri,
                user_agent: header(&head, http::header::USER_AGENT),
                source: "127.0.0.1",
                object: trail.object.as_ref(),
                code: answer.status().as_u16(),
                failure: failure.as_ref(),
                annotations: &trail.annotations,
                received,
                answered: self.clock.now(),
            });
        }
        if let Some(down) = trail.crash {
            self.faults.crash(&trail.attributes.user.name, down);
        }
        if trail.cut {
            answer.extensions_mut().insert(Cut);
        }
        answer
    }

    async fn answer<B>(
        self: &Arc<Self>,
        head: &Parts,
        body: B,
        certificate: Option<User>,
        trail: &mut Trail,
    ) -> Result<Reply, Status>
    where
        B: http_body::Body<Data = Bytes>,
        B::Error: std::error::Error + Send + Sync + 'static,
    {
        let path = head.uri.path();
        let (user, impersonator) = self.auth.authenticate(&head.headers, certificate, self.clock.now())?;
        trail.impersonator = impersonator;
        let query = Query::parse(head.uri.query());
        let target = Target::parse(path);
        trail.attributes = attributes(head, &user, target.as_ref(), &query);
        self.auth.authorize(&trail.attributes)?;
        if target.is_some() {
            self.meet_faults(trail).await?;
        }
        let place = target.as_ref().map(|target| (target.group.as_str(), target.version.as_str()));
        let handed_on = place
            .or_else(|| group_version(path))
            .and_then(|(group, version)| self.aggregated(group, version));
        if let Some(service) = handed_on {
            let user = trail.attributes.user.clone();
            let body = self.body(head, body).await?;
            return self.forward(&service, head, body, &user).await;
        }
        let Some(target) = target else {
            if let Some(rest) = path.strip_prefix(faults::PATH) {
                let body = self.body(head, body).await?;
                return self.control_faults(&head.method, rest, &body);
            }
            return self.non_resource(head, path).await;
        };
        if target.group.is_empty() && target.resource == "pods" && target.subresource == "proxy" {
            return self.proxy_pod(head, &target.namespace, &target.name).await;
        }
        let verb = trail.attributes.verb.clone();
        let kinds = self.registry.kinds();
        let Some(kind) = kinds.find(&target.group, &target.version, &target.resource).cloned() else {
            return Err(unknown());
        };
        if !target.subresource.is_empty() && kind.subresource(&target.subresource).is_none() {
            return Err(unknown());
        }
        if head.method == Method::HEAD {
            return Err(not_allowed());
        }
        allowed(&kind, &target, &verb)?;
        let form = negotiate::accept(&head.headers, false)?;
        let body = self.body(head, body).await?;
        if self.audit.is_some() {
            trail.object = serde_json::from_slice(&body).ok();
        }
        let mut call = Call {
            user,
            kind,
            target,
            query,
            form,
            content_type: negotiate::content_type(&head.headers).to_owned(),
            user_agent: header(head, http::header::USER_AGENT).to_owned(),
            body,
            dry_run: false,
            complaints: Vec::new(),
            warnings: Vec::new(),
            annotations: BTreeMap::new(),
        };
        call.warnings.extend(call.kind.definition().and_then(|definition| definition.deprecation.clone()));
        let answer = self.perform(&mut call, &verb).await;
        trail.warnings = call.warnings;
        trail.annotations.extend(call.annotations);
        answer
    }

    async fn perform(self: &Arc<Self>, call: &mut Call, verb: &str) -> Result<Reply, Status> {
        if !call.target.subresource.is_empty()
            && let Some(answer) = self.subresource(call, verb).await
        {
            return answer;
        }
        if call.kind.verbs == Verbs::CreateOnly {
            return self.review(call).await;
        }
        match verb {
            "get" => self.get(call),
            "list" => self.list(call).await,
            "watch" => self.watch(call).await,
            "create" => self.create(call).await,
            "update" => self.update(call).await,
            "patch" => self.patch(call).await,
            "delete" => self.delete(call).await,
            "deletecollection" => self.delete_collection(call).await,
            _ => Err(not_allowed()),
        }
    }

    async fn body<B>(&self, head: &Parts, body: B) -> Result<Bytes, Status>
    where
        B: http_body::Body<Data = Bytes>,
        B::Error: std::error::Error + Send + Sync + 'static,
    {
        if matches!(head.method, Method::GET | Method::HEAD) {
            return Ok(Bytes::new());
        }
        let collected = Box::pin(Limited::new(body, BODY_MAX).collect());
        match tokio::time::timeout(BODY_TIME, collected).await {
            Ok(Ok(body)) => Ok(body.to_bytes()),
            Ok(Err(error)) if error.is::<http_body_util::LengthLimitError>() => {
                let message = format!("Request entity too large: limit is {BODY_MAX}");
                Err(Status::new(413, "RequestEntityTooLarge", message))
            }
            Ok(Err(error)) => Err(Status::bad_request(format!("read request body: {error}"))),
            Err(_) => Err(Status::new(408, "Timeout", "request body was not sent within 30 seconds")),
        }
    }

    async fn non_resource(&self, head: &Parts, path: &str) -> Result<Reply, Status> {
        if !matches!(head.method, Method::GET | Method::HEAD) {
            return Err(not_allowed());
        }
        match path.trim_end_matches('/') {
            "/healthz" | "/readyz" | "/livez" => Ok(reply::text(200, "ok")),
            "/version" => Ok(reply::json(200, &discovery::version())),
            "/openapi/v2" => self.openapi_v2(&head.headers),
            path if path.starts_with("/openapi/v3") => self.openapi(path, &head.headers),
            _ => self.discovery(head, path).await,
        }
    }
}

/// Who the sandbox's own kubeconfig is for.
pub fn admin() -> User {
    User {
        name: "admin".into(),
        uid: "admin".into(),
        groups: vec!["system:masters".into(), "system:authenticated".into()],
        ..User::default()
    }
}

fn allowed(kind: &Kind, target: &Target, verb: &str) -> Result<(), Status> {
    let verbs = match kind.subresource(&target.subresource) {
        Some(subresource) => subresource.verbs.as_slice(),
        None => kind.verbs.names(),
    };
    let shape = match verb {
        "create" => target.name.is_empty() || !target.subresource.is_empty(),
        "update" | "patch" => !target.name.is_empty(),
        _ => true,
    };
    // A namespaced kind is created and deleted in one namespace at a time.
    let placed = !kind.namespaced || !target.namespace.is_empty() || matches!(verb, "get" | "list" | "watch");
    if shape && placed && verbs.contains(&verb) { Ok(()) } else { Err(not_allowed()) }
}

/// `404 the server could not find the requested resource`
pub fn unknown() -> Status {
    let status = Status::new(404, "NotFound", "the server could not find the requested resource");
    Status { details: Some(json!({})), ..status }
}

/// `405`
pub fn not_allowed() -> Status {
    let message = "the server does not allow this method on the requested resource";
    Status { details: Some(json!({})), ..Status::new(405, "MethodNotAllowed", message) }
}
