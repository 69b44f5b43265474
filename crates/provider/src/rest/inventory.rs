//! What there is beside VMs: nodes, migrations, instance types, preferences, usage.

use std::sync::Arc;

use axum::Extension;
use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use axum::routing::get;
use serde::Deserialize;
use serde_json::{Value, json};

use super::bodies::At;
use super::handlers::{Answer, PlaceQuery, items, json_of, place, unread};
use super::routes::{Route, look, read};
use super::{Caller, Service};
use crate::VmId;
use crate::usage::Source;

/// What is served here.
pub(super) const ROUTES: &[Route] = &[
    Route {
        query: &[("namespace", "string"), ("allNamespaces", "boolean"), ("source", "string")],
        ..read(
            "/kubevirt/usage",
            "usage",
            "What VMs use, from the best source there is",
            "UsageReport",
            || get(usage),
        )
    },
    look("/kubevirt/migrations", "listMigrations", "Migrations", "MigrationList", || get(migrations)),
    read(
        "/kubevirt/migrations/{namespace}/{name}",
        "getMigration",
        "A migration, and how much of the memory has gone over",
        "Migration",
        || get(migration),
    ),
    read("/kubevirt/nodes", "listNodes", "Nodes and what runs on them", "NodeList", || get(nodes)),
    read("/kubevirt/nodes/{name}", "getNode", "A node, its features and its VMs", "NodeDetail", || get(node)),
    look("/kubevirt/instancetypes", "listInstancetypes", "Instance types", "InstancetypeList", || {
        get(instancetypes)
    }),
    look("/kubevirt/preferences", "listPreferences", "Preferences", "PreferenceList", || get(preferences)),
    read(
        "/kubevirt/instancetypes/{namespace}/{name}",
        "getInstancetype",
        "The instance type that a VM of the namespace means by a name",
        "Instancetype",
        || get(instancetype),
    ),
    read(
        "/kubevirt/preferences/{namespace}/{name}",
        "getPreference",
        "The preference that a VM of the namespace means by a name",
        "Preference",
        || get(preference),
    ),
];

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
