//! get and list.

use std::sync::Arc;
use std::time::Duration;

use apimachinery::tree::{Value, json};
use apimachinery::{Cause, Status};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;

use super::negotiate::Form;
use super::present::{Presenter, partial};
use super::query::invalid_options;
use super::reply::{self, Reply};
use super::{Api, Call, table};
use crate::store::{Error, Stored};

/// A response above this goes out piece by piece.
const WHOLE: usize = 256 << 10;
/// Size of a piece.
const PIECE: usize = 64 << 10;
/// How long a list waits for a version that is yet to come.
pub const FUTURE: Duration = Duration::from_secs(3);

impl Api {
    /// One object, as it is stored.
    ///
    /// # Errors
    /// 404
    pub fn stored(&self, call: &Call) -> Result<Arc<Stored>, Status> {
        let namespace = if call.kind.namespaced { call.target.namespace.as_str() } else { "" };
        let stored = self.store.read(&call.kind.storage, namespace, &call.target.name);
        stored.ok_or_else(|| Status::not_found(&call.kind.group, &call.kind.plural, &call.target.name))
    }

    /// `GET …/name`
    ///
    /// # Errors
    /// 404
    pub fn get(&self, call: &Call) -> Result<Reply, Status> {
        let stored = self.stored(call)?;
        let presenter = call.presenter(self);
        if call.form == Form::Json {
            return Ok(reply::json_bytes(200, presenter.bytes(&stored.wire())));
        }
        Ok(present_value(&presenter, 200, &presenter.value(&stored)))
    }

    /// `GET` of a collection.
    ///
    /// # Errors
    /// 400 for bad options, 410 for versions and pages that are gone, 504 for versions to come.
    pub async fn list(&self, call: &Call) -> Result<Reply, Status> {
        let selection = call.query.selection(&call.kind)?;
        if call.query.get("sendInitialEvents").is_some() {
            let message = "Forbidden: sendInitialEvents is forbidden for list";
            return Err(invalid_options("ListOptions", "sendInitialEvents", "FieldValueForbidden", message));
        }
        if let Some(seconds) = call.query.get("timeoutSeconds").filter(|text| text.parse::<i64>().is_err()) {
            let message = format!("strconv.ParseInt: parsing {seconds:?}: invalid syntax");
            return Err(Status::bad_request(message));
        }
        let page = Page::of(call)?;
        if page.after.is_some()
            && page.exact.is_some()
            && self.faults.is_gone(&super::admit::attributes(call, "list"))
        {
            return Ok(page.inconsistent());
        }
        let (version, all) = match self.objects_at(call, &page).await {
            Err(status) if status.code == 410 && page.after.is_some() => return Ok(page.inconsistent()),
            found => found?,
        };
        let everything = selection.is_everything();
        let mut chosen: Vec<Arc<Stored>> = Vec::new();
        let mut left = 0_usize;
        let limit = page.limit.unwrap_or(usize::MAX);
        for stored in all.iter().filter(|stored| page.wants(stored)) {
            if !everything && !selection.matches(stored.header()) {
                continue;
            }
            if chosen.len() < limit {
                chosen.push(stored.clone());
            } else {
                left += 1;
            }
        }
        let mut metadata = json!({"resourceVersion": version.to_string()});
        if let Some(last) = chosen.last().filter(|_| left > 0) {
            metadata["continue"] = token(version, last).into();
            if everything {
                metadata["remainingItemCount"] = left.into();
            }
            let kept: Arc<[Arc<Stored>]> = all.into();
            self.store.keep(&call.kind.storage, version, kept);
        }
        Ok(list_reply(call.presenter(self), &metadata, chosen))
    }

    async fn objects_at(&self, call: &Call, page: &Page) -> Result<(u64, Vec<Arc<Stored>>), Status> {
        let storage = &call.kind.storage;
        let namespace = call.namespace();
        let in_namespace =
            |stored: &&Arc<Stored>| namespace.is_none_or(|name| *stored.header().namespace == *name);
        if let Some(exact) = page.exact {
            self.reached(exact).await?;
            let all = self.store.at(storage, exact).map_err(|error| expired_list(&error))?;
            return Ok((exact, all.iter().filter(in_namespace).cloned().collect()));
        }
        if let Some(at_least) = page.at_least {
            self.reached(at_least).await?;
        }
        Ok(self.store.select(storage, namespace))
    }

    /// Waits a little for a version that is yet to come.
    ///
    /// # Errors
    /// 504 when it does not.
    pub async fn reached(&self, version: u64) -> Result<(), Status> {
        let mut changes = self.store.changes();
        let wait = changes.wait_for(|now| *now >= version);
        if tokio::time::timeout(FUTURE, wait).await.is_ok() {
            return Ok(());
        }
        Err(too_large(version, self.store.version()))
    }
}

/// `504 Timeout: Too large resource version`
pub fn too_large(asked: u64, current: u64) -> Status {
    let message = format!("Timeout: Too large resource version: {asked}, current: {current}");
    Status {
        details: Some(json!({"retryAfterSeconds": 1})),
        causes: vec![Cause {
            reason: "ResourceVersionTooLarge".into(),
            message: "Too large resource version".into(),
            ..Cause::default()
        }],
        ..Status::new(504, "Timeout", message)
    }
}

fn expired_list(error: &Error) -> Status {
    match error {
        Error::Expired { .. } => {
            Status::new(410, "Expired", "The resourceVersion for the provided list is too old.")
        }
        other => Status::internal(&other.to_string()),
    }
}

/// Who pages too slowly can go on with what is there by then (`handleCompactedErrorForPaging`).
const INCONSISTENT: &str = "The provided continue parameter is too old to display a consistent list result. You can start a \
    new list without the continue parameter, or use the continue token in this response to retrieve the remainder of the \
    results. Continuing with the provided token results in an inconsistent list - objects that were created, modified, or \
    deleted between the time the first chunk was returned and now may show up in the list.";

/// Which part of a collection, and as of when.
#[derive(Debug, Default)]
struct Page {
    limit: Option<usize>,
    exact: Option<u64>,
    at_least: Option<u64>,
    after: Option<(String, String)>,
}

impl Page {
    fn of(call: &Call) -> Result<Self, Status> {
        let query = &call.query;
        let limit = query.get("limit").map(|text| {
            let wrong = || Status::bad_request(format!("strconv.ParseInt: parsing {text:?}: invalid syntax"));
            text.parse::<i64>().map_err(|_| wrong())
        });
        // What is below nothing is no limit.
        let limit = limit.transpose()?.and_then(|limit| usize::try_from(limit).ok());
        let version = query.get("resourceVersion");
        let matching = query.get("resourceVersionMatch");
        let forbid = |message: &str| {
            super::query::invalid_options(
                "ListOptions",
                "resourceVersionMatch",
                "FieldValueForbidden",
                message,
            )
        };
        if matching.is_some() && version.is_none() {
            return Err(forbid(
                "Forbidden: resourceVersionMatch is forbidden unless resourceVersion is provided",
            ));
        }
        if let Some(token) = query.get("continue") {
            if matching.is_some() {
                return Err(forbid("Forbidden: resourceVersionMatch is forbidden when continue is provided"));
            }
            if version.is_some_and(|version| version != "0") {
                return Err(Status::bad_request(
                    "specifying resource version is not allowed when using continue",
                ));
            }
            let (version, after) = read_token(token)?;
            return Ok(Self {
                limit: limit.filter(|limit| *limit > 0),
                exact: u64::try_from(version).ok(),
                after: Some(after),
                at_least: None,
            });
        }
        let number = version.map(str::parse::<u64>);
        let number = number.transpose().map_err(|_| {
            Status::bad_request(format!("invalid resource version: {:?}", version.unwrap_or_default()))
        })?;
        let mut page = Self { limit: limit.filter(|limit| *limit > 0), ..Self::default() };
        match (matching, number) {
            (Some("Exact"), Some(0)) => {
                return Err(forbid(
                    "Forbidden: resourceVersionMatch \"Exact\" is forbidden for resourceVersion \"0\"",
                ));
            }
            (Some("Exact"), number) => page.exact = number,
            (None | Some("NotOlderThan"), Some(0)) => page.limit = None,
            (None | Some("NotOlderThan"), number) => page.at_least = number,
            (Some(other), _) => {
                let message =
                    format!("Unsupported value: {other:?}: supported values: \"Exact\", \"NotOlderThan\"");
                return Err(super::query::invalid_options(
                    "ListOptions",
                    "resourceVersionMatch",
                    "FieldValueNotSupported",
                    &message,
                ));
            }
        }
        Ok(page)
    }

    /// The version of this page is gone, and this is how to go on without it.
    fn inconsistent(&self) -> Reply {
        let (namespace, name) = self.after.clone().unwrap_or_default();
        let mut status = Status::new(410, "Expired", INCONSISTENT).to_json();
        status["metadata"]["continue"] = encode(-1, &namespace, &name).into();
        reply::json(410, &status)
    }

    fn wants(&self, stored: &Stored) -> bool {
        let header = stored.header();
        let key = (&*header.namespace, &*header.name);
        self.after.as_ref().is_none_or(|(namespace, name)| key > (namespace.as_str(), name.as_str()))
    }
}

fn token(version: u64, last: &Stored) -> String {
    let header = last.header();
    encode(i64::try_from(version).unwrap_or(i64::MAX), &header.namespace, &header.name)
}

/// A version of -1 stands for whatever there is when somebody comes with the token.
fn encode(version: i64, namespace: &str, name: &str) -> String {
    let start = format!("{namespace}/{name}\u{0}");
    URL_SAFE_NO_PAD.encode(json!({"v": "meta.k8s.io/v1", "rv": version, "start": start}).to_string())
}

fn read_token(token: &str) -> Result<(i64, (String, String)), Status> {
    let invalid = || Status::bad_request("continue key is not valid: no value could be read from it");
    let bytes = URL_SAFE_NO_PAD.decode(token.trim_end_matches('=')).map_err(|_| invalid())?;
    let token: Value = serde_json::from_slice(&bytes).map_err(|_| invalid())?;
    let start = token["start"].as_str().ok_or_else(invalid)?.trim_end_matches('\0').to_owned();
    let (namespace, name) = start.split_once('/').unwrap_or(("", &start));
    let version =
        token["rv"].as_i64().filter(|version| *version > 0 || *version == -1).ok_or_else(invalid)?;
    Ok((version, (namespace.into(), name.into())))
}

/// An object in the form asked for.
pub fn present_value(presenter: &Presenter, code: u16, object: &Value) -> Reply {
    let value = presenter.single(object, true);
    if presenter.form == Form::Yaml {
        return yaml(code, &value);
    }
    reply::json(code, &value)
}

fn yaml(code: u16, value: &Value) -> Reply {
    let text = serde_saphyr::to_string(value).unwrap_or_default();
    reply::reply(code, http::HeaderValue::from_static("application/yaml"), reply::whole(text))
}

/// A list in the form asked for.
pub fn list_reply(presenter: Presenter, metadata: &Value, objects: Vec<Arc<Stored>>) -> Reply {
    let values = || objects.iter().map(|stored| presenter.value(stored)).collect::<Vec<_>>();
    match presenter.form {
        Form::Table => return reply::json(200, &table::table(&presenter, &values(), metadata, true)),
        Form::Metadata => {
            let items: Vec<Value> = values().iter().map(partial).collect();
            let list = json!({"kind": "PartialObjectMetadataList", "apiVersion": "meta.k8s.io/v1",
                "metadata": metadata, "items": items});
            return reply::json(200, &list);
        }
        Form::Yaml => {
            let list = json!({"kind": presenter.kind.list_kind, "apiVersion": presenter.kind.api_version(),
                "metadata": metadata, "items": values()});
            return yaml(200, &list);
        }
        Form::Json | Form::Discovery(_) => {}
    }
    let total: usize = objects.iter().map(|stored| stored.size()).sum();
    let head = format!(
        "{{\"kind\":{},\"apiVersion\":{},\"metadata\":{metadata},\"items\":[",
        json!(presenter.kind.list_kind),
        json!(presenter.kind.api_version())
    );
    let mut pieces =
        Pieces { presenter, objects: objects.into_iter(), head: Some(head), first: true, done: false };
    if total < WHOLE {
        let whole: Vec<u8> = pieces.flat_map(|piece| piece.to_vec()).collect();
        return reply::json_bytes(200, whole);
    }
    reply::json_stream(futures::stream::poll_fn(move |_| std::task::Poll::Ready(pieces.next())))
}

/// A list, encoded as it is read.
struct Pieces {
    presenter: Presenter,
    objects: std::vec::IntoIter<Arc<Stored>>,
    head: Option<String>,
    first: bool,
    done: bool,
}

impl Iterator for Pieces {
    type Item = Bytes;

    fn next(&mut self) -> Option<Bytes> {
        if self.done {
            return None;
        }
        let mut piece = self.head.take().unwrap_or_default().into_bytes();
        while piece.len() < PIECE {
            let Some(stored) = self.objects.next() else {
                self.done = true;
                piece.extend_from_slice(b"]}\n");
                break;
            };
            if !std::mem::take(&mut self.first) {
                piece.push(b',');
            }
            self.presenter.item(&stored, &mut piece);
        }
        Some(piece.into())
    }
}
