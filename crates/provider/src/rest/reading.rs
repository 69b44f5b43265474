//! Lists and watches, which go out while they come in.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use axum::body::{Body, Bytes};
use axum::extract::{FromRequest, Query, Request, State};
use axum::http::header::CONTENT_TYPE;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use futures::stream::{self, Stream, StreamExt as _};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::problem::Problem;
use super::routes::{Route, ask, read};
use super::{Caller, MAX_BODY, Service};
use crate::cluster::UsageByVm;
use crate::select::{Selection, SortBy, sort};
use crate::view::VmSummary;
use crate::{Error, Kind};

/// What is served here.
pub(super) const ROUTES: &[Route] = &[
    ask("/kubevirt/vms/list", "listVms", "List VMs; the answer is streamed", "ListRequest", "VmList", || {
        post(list)
    }),
    Route {
        query: &[("namespace", "string"), ("allNamespaces", "boolean"), ("labelSelector", "string")],
        kind: "text/event-stream",
        ..read("/kubevirt/vms/watch", "watchVms", "Follow VMs as server-sent events", "Change", || get(watch))
    },
];

/// How long a body may take to come.
const BODY_TIME: Duration = Duration::from_secs(30);

/// A JSON body; an empty one reads as an empty object.
pub(super) struct Json<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Json<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        let doing = format!("reading the body of `{}`", request.uri().path());
        let wrong = |wrong: String, remedy: &str| {
            Problem::from(Error::new(Kind::InvalidArgument, doing.clone(), wrong, remedy))
        };
        let json = request.headers().get(CONTENT_TYPE).is_some_and(|kind| {
            kind.to_str()
                .is_ok_and(|kind| kind.trim_start().to_ascii_lowercase().starts_with("application/json"))
        });
        // what says that it is too large is not waited for
        let announced = axum::body::HttpBody::size_hint(request.body()).lower();
        if announced > MAX_BODY as u64 {
            return Err(wrong(format!("it has {announced} bytes"), "send at most 2 MiB"));
        }
        let bytes = tokio::time::timeout(BODY_TIME, Bytes::from_request(request, state))
            .await
            .map_err(|_| wrong("it does not come to its end".into(), "send it within 30 seconds"))?
            .map_err(|error| wrong(error.body_text(), "send at most 2 MiB"))?;
        if bytes.iter().all(u8::is_ascii_whitespace) {
            return serde_json::from_str("{}")
                .map(Self)
                .map_err(|error| wrong(error.to_string(), "send what /openapi.json asks for"));
        }
        // a page of another site can send anything but this without being asked first
        if !json {
            return Err(wrong(
                "it is not `application/json`".into(),
                "send `Content-Type: application/json`",
            ));
        }
        serde_json::from_slice(&bytes)
            .map(Self)
            .map_err(|error| wrong(error.to_string(), "send what /openapi.json asks for"))
    }
}

/// What `POST /kubevirt/vms/list` takes.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct ListRequest {
    namespace: Option<String>,
    all_namespaces: bool,
    label_selector: Option<String>,
    name: Option<String>,
    status: Vec<String>,
    node: Option<String>,
    usage: bool,
    sort_by: Option<SortBy>,
}

impl ListRequest {
    fn selection(self, provider: &crate::Provider) -> Selection {
        let namespace = self.namespace.unwrap_or_else(|| provider.default_namespace().to_owned());
        Selection {
            namespace: (!self.all_namespaces).then_some(namespace),
            label_selector: self.label_selector,
            name: self.name,
            status: self.status,
            node: self.node,
        }
    }
}

type Pages = Pin<Box<dyn Stream<Item = Result<Vec<VmSummary>, Error>> + Send>>;

/// `POST /kubevirt/vms/list`. The first page is read before the status goes out; what breaks later ends
/// the answer before its closing bracket, so it cannot be taken for a whole one.
pub(super) async fn list(
    State(service): State<Arc<Service>>,
    Extension(caller): Extension<Caller>,
    Json(request): Json<ListRequest>,
) -> Result<Response, Problem> {
    let (by, with_usage) = (request.sort_by, request.usage);
    let selection = request.selection(&caller.provider);
    let prometheus = service.config.prometheus.as_ref();
    let namespace = selection.namespace.clone();
    let used = async {
        if with_usage {
            caller.provider.usage_by_vm(namespace.as_deref(), prometheus).await
        } else {
            Ok(UsageByVm::default())
        }
    };
    let listed = async {
        let pages: Pages = match by {
            Some(by) => {
                let mut all = caller.provider.list_all(selection).await?;
                sort(&mut all, by);
                Box::pin(stream::once(async { Ok(all) }))
            }
            None => Box::pin(caller.provider.list(selection).await?),
        };
        Ok::<_, Error>(pages)
    };
    let (pages, usage) = futures::join!(listed, used);
    let (pages, mut usage) = (pages?, usage?);
    let mut first = true;
    let items = pages.map(move |page| {
        let mut text = String::new();
        for mut vm in page? {
            usage.give(&mut vm);
            if !first {
                text.push(',');
            }
            first = false;
            let vm = serde_json::to_string(&vm)
                .map_err(|error| Error::refused("writing a list", 500, "", &error.to_string()))?;
            text.push_str(&vm);
        }
        Ok::<_, Error>(text)
    });
    let whole = stream::once(async { Ok("{\"items\":[".to_owned()) })
        .chain(items)
        .chain(stream::once(async { Ok("]}".to_owned()) }));
    // after an error nothing more may be sent, the closing bracket least of all
    let until_error = whole.scan(false, |failed, part| {
        let next = if *failed { None } else { Some(part) };
        *failed |= matches!(next, Some(Err(_)));
        futures::future::ready(next)
    });
    Ok(([(CONTENT_TYPE, "application/json")], Body::from_stream(until_error)).into_response())
}

/// What `GET /kubevirt/vms/watch` takes.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct WatchQuery {
    namespace: Option<String>,
    all_namespaces: bool,
    label_selector: Option<String>,
}

/// `GET /kubevirt/vms/watch`: an event for each VM, then for each change, until the API server ends it.
pub(super) async fn watch(
    State(service): State<Arc<Service>>,
    Extension(caller): Extension<Caller>,
    query: Result<Query<WatchQuery>, axum::extract::rejection::QueryRejection>,
) -> Result<Response, Problem> {
    let doing = "following VMs";
    let Query(query) = query.map_err(|error| {
        let remedy = "send what /openapi.json asks for";
        Error::new(Kind::InvalidArgument, doing, error.body_text(), remedy)
    })?;
    let watcher = service.watchers.clone().try_acquire_owned().map_err(|_| {
        Error::new(
            Kind::TooManyRequests,
            doing,
            "too many callers follow VMs",
            "wait a little, then try again",
        )
    })?;
    let request = ListRequest {
        namespace: query.namespace,
        all_namespaces: query.all_namespaces,
        label_selector: query.label_selector,
        ..ListRequest::default()
    };
    let changes = caller.provider.watch(request.selection(&caller.provider)).await?;
    let events = changes.map(move |change| {
        // held as long as somebody listens
        let _watcher = &watcher;
        let event = match change {
            Ok(change) => Event::default().event("change").json_data(&change),
            Err(error) => Event::default().event("problem").json_data(
                serde_json::json!({"code": error.kind, "detail": error.wrong, "remedy": error.remedy}),
            ),
        };
        Ok::<_, Infallible>(event.unwrap_or_default())
    });
    Ok(Sse::new(events).keep_alive(KeepAlive::new().interval(Duration::from_secs(15))).into_response())
}
