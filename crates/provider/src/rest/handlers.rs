//! What only reads.

use std::sync::Arc;

use axum::Extension;
use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use axum::routing::get;
use serde::Deserialize;
use serde_json::{Value, json};

use super::problem::Problem;
use super::routes::{Route, look, read};
use super::{Caller, Service};
use crate::{Error, Kind, VmId};

/// What is served here.
pub(super) const ROUTES: &[Route] = &[
    Route { open: true, ..read("/health", "health", "Whether the service runs", "Health", || get(health)) },
    read("/status", "status", "What the service is and which cluster it speaks to", "Status", || get(status)),
    look(
        "/capabilities",
        "capabilities",
        "What the cluster can do, and what the caller may do",
        "Capabilities",
        || get(capabilities),
    ),
    read("/kubevirt/vms/{namespace}/{name}", "getVm", "Everything about a VM", "VmDetail", || get(describe)),
    read(
        "/kubevirt/vms/{namespace}/{name}/snapshots",
        "listSnapshots",
        "Snapshots of a VM",
        "SnapshotList",
        || get(snapshots),
    ),
];

pub(super) type Answer = Result<Json<Value>, Problem>;

/// `GET /health`: the process serves. Whether the cluster does is `/status`.
pub(super) async fn health() -> Json<Value> {
    Json(json!({"status": "ok"}))
}

/// `GET /status`
pub(super) async fn status(
    State(service): State<Arc<Service>>,
    Extension(caller): Extension<Caller>,
) -> Answer {
    let version = caller.provider.version().await?;
    Ok(Json(
        json!({"program": concat!("virt-steward ", env!("CARGO_PKG_VERSION")), "started": service.started,
        "kubernetes": version, "namespace": caller.provider.default_namespace()}),
    ))
}

/// A namespace in the query.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct Place {
    namespace: Option<String>,
    all_namespaces: bool,
}

impl Place {
    /// The namespace that was asked for, or the default; none for all.
    pub(super) fn of(self, caller: &Caller) -> Option<String> {
        let namespace = self.namespace.unwrap_or_else(|| caller.provider.default_namespace().to_owned());
        (!self.all_namespaces).then_some(namespace)
    }
}

pub(super) type PlaceQuery = Result<Query<Place>, QueryRejection>;

/// A query that cannot be read.
#[allow(clippy::needless_pass_by_value, reason = "it is what `map_err` hands over")]
pub(super) fn unread(error: QueryRejection) -> Error {
    let remedy = "send what /openapi.json asks for";
    Error::new(Kind::InvalidArgument, "reading the query", error.body_text(), remedy)
}

pub(super) fn place(query: PlaceQuery) -> Result<Place, Error> {
    query.map(|Query(place)| place).map_err(unread)
}

/// A list.
pub(super) fn items(all: &[impl serde::Serialize]) -> Answer {
    json_of(&json!({"items": all}))
}

/// `GET /capabilities`
pub(super) async fn capabilities(Extension(caller): Extension<Caller>, query: PlaceQuery) -> Answer {
    let namespace = place(query)?.namespace;
    let namespace = namespace.as_deref().unwrap_or_else(|| caller.provider.default_namespace());
    json_of(&caller.provider.capabilities(namespace).await?)
}

/// `GET /kubevirt/vms/{namespace}/{name}`
pub(super) async fn describe(
    Extension(caller): Extension<Caller>,
    Path((namespace, name)): Path<(String, String)>,
) -> Answer {
    json_of(&caller.provider.describe(&VmId::new(&namespace, &name)?).await?)
}

/// `GET /kubevirt/vms/{namespace}/{name}/snapshots`
pub(super) async fn snapshots(
    Extension(caller): Extension<Caller>,
    Path((namespace, name)): Path<(String, String)>,
) -> Answer {
    let vm = VmId::new(&namespace, &name)?;
    caller.provider.vm_object(&vm, &format!("listing snapshots of VM `{vm}`")).await?;
    let items = caller.provider.snapshots(Some(vm.namespace()), Some(vm.name())).await?;
    Ok(Json(json!({"items": items})))
}

/// An answer as JSON.
pub(super) fn json_of(answer: &impl serde::Serialize) -> Answer {
    let value = serde_json::to_value(answer)
        .map_err(|error| Error::refused("writing an answer", 500, "", &error.to_string()))?;
    Ok(Json(value))
}
