//! The simulated virt-api: its admission webhooks, served over HTTPS and registered under the
//! names, rules and order of the real ones (`kubevirt` manifests v1.9), and the API
//! `subresources.kubevirt.io` behind a Service and an `APIService`.

mod backups;
mod exports;
mod instancetypes;
mod migrations;
pub mod mutate;
pub(super) mod registration;
mod spec_rules;
mod storage;
pub(super) mod subresources;
mod typed;
pub(super) mod validate;

use std::sync::{Arc, PoisonError, RwLock};

use apimachinery::tree::{Value, json};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use jiff::Timestamp;
use tokio_util::sync::CancellationToken;

use super::SimError;
use super::cache::Cache;
use super::client::Client;
use super::cluster::ClusterConfig;
use super::handler_calls::HandlerCalls;
use super::https::{self, Answer, Component};
use super::identity::Identity;
use super::json;
use super::resource::{
    BACKUPS, MIGRATIONS, PODS, RESTORES, Resource, SNAPSHOT_CONTENTS, SNAPSHOTS, VMIS, VMS,
};
use super::version::Release;
use migrations::{Eviction, Lookups};
use subresources::Subresources;

/// The users whose changes of VMIs virt-api trusts (`kubeVirtServiceAccounts`).
pub const KUBEVIRT_USERS: [&str; 4] = [
    "system:serviceaccount:kubevirt:kubevirt-controller",
    "system:serviceaccount:kubevirt:kubevirt-handler",
    "system:serviceaccount:kubevirt:kubevirt-apiserver",
    "system:serviceaccount:kubevirt:kubevirt-synchronization-controller",
];

/// A review may be this large: two objects of etcd's limit, and JSON around them.
const REVIEW_LIMIT: usize = 8 << 20;

/// The server.
pub struct VirtApi {
    config: RwLock<Arc<ClusterConfig>>,
    subresources: Subresources,
    client: Client,
    who: Identity,
}

impl VirtApi {
    /// Serves on 127.0.0.1 and registers the webhooks and the API.
    pub async fn start(
        client: &Client,
        kubevirts: &Arc<Cache>,
        release: Release,
        nodes: HandlerCalls,
        stop: &CancellationToken,
    ) -> Result<(), SimError> {
        let failed = |error: Box<dyn std::error::Error + Send + Sync>| SimError::VirtApi(error);
        let authority = client.network().authority(1).map_err(|error| failed(error.into()))?;
        let front = registration::front_proxy(client).await?;
        let hosts = ["localhost", "127.0.0.1", registration::HOST];
        let tls = https::acceptor(&authority, &front, "virt-api", &hosts).map_err(failed)?;
        let listener = client.network().listen(0).await.map_err(|error| failed(error.into()))?;
        let address = listener.address().map_err(|error| failed(error.into()))?;
        let server = Arc::new(Self {
            config: RwLock::default(),
            subresources: Subresources::new(client.clone(), nodes, stop.clone()),
            client: client.clone(),
            who: Identity::virt_api(),
        });
        let on_config = server.clone();
        kubevirts.on_change(move |change| {
            let config = Arc::new(ClusterConfig::of(change.new.map_or(&Value::Null, AsRef::as_ref)));
            *on_config.config.write().unwrap_or_else(PoisonError::into_inner) = config;
        });
        tokio::spawn(https::serve(server, listener, tls, front, stop.clone()));
        registration::webhooks(client, address, &authority.pem(), release).await?;
        registration::api(client, address, &authority.pem()).await
    }

    async fn review(&self, request: Request<Incoming>) -> Answer {
        let plain = |status: StatusCode, message: &'static str| {
            let mut response = Response::new(Full::from(message));
            *response.status_mut() = status;
            response
        };
        let path = request.uri().path().to_owned();
        if request.method() != Method::POST {
            return plain(StatusCode::METHOD_NOT_ALLOWED, "only POST");
        }
        let body = match Limited::new(request.into_body(), REVIEW_LIMIT).collect().await {
            Ok(body) => body.to_bytes(),
            Err(_) => return plain(StatusCode::PAYLOAD_TOO_LARGE, "the review is too large or broke off"),
        };
        let Ok(review) = crate::sim::lean::parse(&body) else {
            return plain(StatusCode::BAD_REQUEST, "the body is no AdmissionReview");
        };
        if !review["request"].is_object() {
            return plain(StatusCode::BAD_REQUEST, "the AdmissionReview has no request");
        }
        let config = self.config.read().unwrap_or_else(PoisonError::into_inner).clone();
        let request = &review["request"];
        let decided = match path.as_str() {
            "/migration-validate-create" => {
                Some(migrations::create(request, &self.lookups(request, false).await))
            }
            "/pod-eviction-validate" => Some(self.evict(request, &config).await),
            "/virtualmachinerestores-validate" => {
                Some(storage::restore(request, &self.restore_lookups(request).await, &config))
            }
            "/virtualmachinebackups-validate" => {
                let path = BACKUPS.path(json::text(request, "/namespace"), "", "");
                let others = self.client.get(Some(&self.who), &path).await.unwrap_or_default();
                Some(backups::backup(request, json::list(&others, "/items"), &config))
            }
            "/virtualmachines-mutate" => Some(self.complete_vm(request, &config).await),
            "/virtualmachines-validate" => Some(self.judge_vm(request, &config).await),
            path => review_of(path, request, &config, self.client.now()),
        };
        let Some(mut response) = decided else {
            return plain(StatusCode::NOT_FOUND, "no such webhook");
        };
        response["uid"] = review["request"]["uid"].clone();
        let answer =
            json!({"apiVersion": review["apiVersion"], "kind": "AdmissionReview", "response": response});
        let mut response = Response::new(Full::from(answer.to_string()));
        response
            .headers_mut()
            .insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static("application/json"));
        response
    }
}

impl Component for VirtApi {
    const NAME: &str = "virt-api";

    /// Webhooks are for anybody who can reach the port, as in the real one; the API is for the API
    /// server's proxy, which says whom it asks for.
    async fn answer(self: Arc<Self>, request: Request<Incoming>, trusted: bool) -> Answer {
        let path = request.uri().path();
        if request.method() == Method::POST && !path.starts_with("/apis/") {
            return self.review(request).await;
        }
        if !trusted && path != "/healthz" {
            let mut response = Response::new(Full::from("only the API server's proxy is served"));
            *response.status_mut() = StatusCode::UNAUTHORIZED;
            return response;
        }
        let config = self.config.read().unwrap_or_else(PoisonError::into_inner).clone();
        self.subresources.answer(request, &config).await
    }
}

impl VirtApi {
    async fn complete_vm(&self, request: &Value, config: &ClusterConfig) -> Value {
        if let Some(refusal) = typed::refused(&request["object"]) {
            return refusal;
        }
        match instancetypes::prepare(&self.client, &self.who, request).await {
            Ok(vm) => patched(mutate::virtual_machine(request, vm, config)),
            Err(refusal) => refusal,
        }
    }

    async fn judge_vm(&self, request: &Value, config: &ClusterConfig) -> Value {
        match instancetypes::laid_over(&self.client, &self.who, &request["object"], config).await {
            Ok(vm) => {
                let (mut causes, warnings) = validate::virtual_machine(request, &vm, config);
                causes.extend(storage::busy(request));
                judged(&causes, warnings)
            }
            Err(causes) => judged(&causes, Vec::new()),
        }
    }

    /// Intercepts an eviction, and marks the VMI that has to go.
    async fn evict(&self, request: &Value, config: &ClusterConfig) -> Value {
        let lookups = self.lookups(request, true).await;
        match migrations::evict(request, &lookups, config) {
            Eviction::Pass => Eviction::response(None),
            Eviction::Deny(message) => Eviction::response(Some(&message)),
            Eviction::Mark(write, message) => {
                let marked = write
                    .send_as(&self.client, &self.who, migrations::is_dry_run(request))
                    .await
                    .map(|_| message);
                let message = marked.unwrap_or_else(|error| {
                    format!("kubevirt failed marking the vmi for eviction: {}", error.message())
                });
                Eviction::response(Some(&message))
            }
        }
    }

    /// What the webhook about restores has to know.
    async fn restore_lookups(&self, request: &Value) -> storage::Lookups {
        let namespace = json::text(request, "/namespace");
        let read = async |resource: &Resource, name: &str| {
            let path = resource.path(namespace, name, "");
            if name.is_empty() { None } else { self.client.get(Some(&self.who), &path).await.ok() }
        };
        if json::text(request, "/operation") != "CREATE" {
            return storage::Lookups::default();
        }
        let spec = &request["object"]["spec"];
        let snapshot = read(&SNAPSHOTS, json::text(spec, "/virtualMachineSnapshotName")).await;
        let content = snapshot
            .as_ref()
            .map(|one| json::text(one, "/status/virtualMachineSnapshotContentName").to_owned());
        let content = read(&SNAPSHOT_CONTENTS, &content.unwrap_or_default()).await;
        let target = read(&VMS, json::text(spec, "/target/name")).await;
        let list =
            self.client.get(Some(&self.who), &RESTORES.path(namespace, "", "")).await.unwrap_or_default();
        storage::Lookups { snapshot, content, target, restores: json::list(&list, "/items").to_vec() }
    }

    /// What a webhook about a migration, or about an eviction, has to know. What is not there, or cannot
    /// be read, is absent.
    async fn lookups(&self, request: &Value, eviction: bool) -> Lookups {
        let namespace = json::text(request, "/namespace");
        let read = async |resource: &Resource, name: &str| {
            let path = resource.path(namespace, name, "");
            if name.is_empty() { None } else { self.client.get(Some(&self.who), &path).await.ok() }
        };
        if !eviction {
            let path = MIGRATIONS.path(namespace, "", "");
            let list = self.client.get(Some(&self.who), &path).await.unwrap_or_default();
            let vmi = read(&VMIS, json::text(request, "/object/spec/vmiName")).await;
            return Lookups { vmi, pod: None, migrations: json::list(&list, "/items").to_vec() };
        }
        let pod = read(&PODS, json::text(request, "/name")).await;
        let mut launcher = pod.clone();
        if let Some(pod) = pod.as_ref().filter(|pod| json::label(pod, "kubevirt.io") == "hotplug-disk") {
            launcher = read(&PODS, json::text(pod, "/metadata/ownerReferences/0/name")).await;
        }
        let domain = launcher.as_ref().and_then(|pod| json::annotation(pod, "kubevirt.io/domain"));
        let vmi = read(&VMIS, domain.unwrap_or_default()).await;
        Lookups { vmi, pod, migrations: Vec::new() }
    }
}

/// The response of a mutating webhook.
fn patched(operations: Option<Vec<Value>>) -> Value {
    let Some(operations) = operations else { return json!({"allowed": true}) };
    let patch = BASE64_STANDARD.encode(Value::from(operations).to_string());
    json!({"allowed": true, "patchType": "JSONPatch", "patch": patch})
}

/// The response of a validating webhook.
fn judged(causes: &[validate::Cause], warnings: Vec<String>) -> Value {
    let mut response = if causes.is_empty() {
        json!({"allowed": true})
    } else {
        json!({"allowed": false, "status": validate::refusal(causes)})
    };
    if !warnings.is_empty() {
        response["warnings"] = warnings.into();
    }
    response
}

/// The response to one review; `None`: no such webhook.
fn review_of(path: &str, request: &Value, config: &ClusterConfig, now: Timestamp) -> Option<Value> {
    Some(match path {
        "/migration-mutate-create" => patched(Some(migrations::complete(request))),
        "/migration-validate-update" => migrations::update(request),
        "/vm-clone-mutate-create" => patched(storage::complete_clone(request)),
        "/vm-clone-validate-create" => storage::clone(request, config),
        "/virtualmachinebackuptrackers-validate" => backups::tracker(request, config),
        "/virtualmachineexports-validate" => exports::export(request, config),
        "/virtualmachinesnapshots-validate" => storage::snapshot(request, config),
        "/virtualmachineinstances-mutate" => patched(mutate::instance(request, config, now)),
        "/virtualmachineinstances-validate-create" => {
            judged(&validate::instance_create(request, config), Vec::new())
        }
        "/virtualmachineinstances-validate-update" => {
            judged(&validate::instance_update(request, config), Vec::new())
        }
        _ => return None,
    })
}
