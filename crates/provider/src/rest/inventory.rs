//! What there is beside VMs: nodes, migrations, instance types, preferences, usage.

use std::sync::Arc;

use axum::Extension;
use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use serde::Deserialize;
use serde_json::{Value, json};

use super::bodies::At;
use super::handlers::{Answer, PlaceQuery, items, json_of, place, unread};
use super::{Caller, Service};
use crate::VmId;
use crate::usage::Source;

/// `GET /kubevirt/migrations`
pub(super) async fn migrations(Extension(caller): Extension<Caller>, query: PlaceQuery) -> Answer {
    let place = place(query)?.of(&caller);
    items(&caller.provider.migrations(place.as_deref()).await?)
}

/// `GET /kubevirt/migrations/{namespace}/{name}`
pub(super) async fn migration(Extension(caller): Extension<Caller>, Path(at): At) -> Answer {
    json_of(&caller.provider.migration(&VmId::new(&at.0, &at.1)?).await?)
}

/// `GET /kubevirt/nodes`
pub(super) async fn nodes(Extension(caller): Extension<Caller>) -> Answer {
    items(&caller.provider.nodes().await?)
}

/// `GET /kubevirt/nodes/{name}`
pub(super) async fn node(Extension(caller): Extension<Caller>, Path(name): Path<String>) -> Answer {
    json_of(&caller.provider.node(&name).await?)
}

/// `GET /kubevirt/instancetypes`
pub(super) async fn instancetypes(Extension(caller): Extension<Caller>, query: PlaceQuery) -> Answer {
    let place = place(query)?.of(&caller);
    items(&caller.provider.instancetypes(place.as_deref()).await?)
}

/// `GET /kubevirt/preferences`
pub(super) async fn preferences(Extension(caller): Extension<Caller>, query: PlaceQuery) -> Answer {
    let place = place(query)?.of(&caller);
    items(&caller.provider.preferences(place.as_deref()).await?)
}

/// `GET /kubevirt/instancetypes/{namespace}/{name}`
pub(super) async fn instancetype(Extension(caller): Extension<Caller>, Path(at): At) -> Answer {
    json_of(&caller.provider.instancetype(&VmId::new(&at.0, &at.1)?).await?)
}

/// `GET /kubevirt/preferences/{namespace}/{name}`
pub(super) async fn preference(Extension(caller): Extension<Caller>, Path(at): At) -> Answer {
    json_of(&caller.provider.preference(&VmId::new(&at.0, &at.1)?).await?)
}

/// What `GET /kubevirt/usage` takes.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct UsageQuery {
    namespace: Option<String>,
    all_namespaces: bool,
    source: Option<String>,
}

/// `GET /kubevirt/usage`
pub(super) async fn usage(
    State(service): State<Arc<Service>>,
    Extension(caller): Extension<Caller>,
    query: Result<Query<UsageQuery>, QueryRejection>,
) -> Answer {
    let Query(query) = query.map_err(unread)?;
    let source = match query.source.as_deref() {
        None => None,
        Some(name) => Some(Source::parse(name)?),
    };
    let namespace = query.namespace.unwrap_or_else(|| caller.provider.default_namespace().to_owned());
    let namespace = (!query.all_namespaces).then_some(namespace.as_str());
    let prometheus = service.config.prometheus.as_ref();
    let report = caller.provider.usage(namespace, prometheus, source).await?;
    let items: Vec<Value> = report.items.iter().map(|one| json!(one)).collect();
    Ok(Json(json!({"source": report.source, "items": items, "notes": report.notes})))
}
