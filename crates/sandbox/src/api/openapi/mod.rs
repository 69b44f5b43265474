//! `/openapi/v3` and `/openapi/v2`: what can be done with the objects of each kind, and what fields they have. kubectl
//! asks the one for `explain`, server-side field validation and the patches of `apply`, the other for what it checks
//! by itself, as the items of a `List`.

mod gnostic;
mod operations;
mod schemas;
mod v2;
mod wire;

use std::collections::HashMap;
use std::fmt::Write as _;
use std::sync::{Arc, PoisonError};

use apimachinery::Status;
use apimachinery::tree::{Map, Value, json};
use aws_lc_rs::digest;
use bytes::Bytes;
use http::HeaderMap;
use http::header::{ACCEPT, ETAG, HeaderValue, IF_NONE_MATCH, VARY};

use super::reply::{self, Reply};
use super::{Api, unknown};
use crate::registry::{Kind, Kinds, join};

const JSON: &str = "application/json";
/// What the protobuf form of version 2 is called; older clients write an `@` in it.
const PROTOBUF: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";
const PROTOBUF_BEFORE: &str = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf";

impl Api {
    /// The index of version 3, or the document of one group and version.
    ///
    /// # Errors
    /// 404
    pub fn openapi(&self, path: &str, headers: &HeaderMap) -> Result<Reply, Status> {
        let kinds = self.registry.kinds();
        let path = path.strip_prefix("/openapi/v3").unwrap_or_default().trim_matches('/');
        if path.is_empty() {
            return Ok(reply::json(200, &index(&kinds)));
        }
        let (group, version) = match path.split('/').collect::<Vec<_>>().as_slice() {
            ["api", version] => (String::new(), (*version).to_owned()),
            ["apis", group, version] => ((*group).to_owned(), (*version).to_owned()),
            _ => return Err(unknown()),
        };
        let of_group: Vec<_> =
            kinds.iter().filter(|kind| kind.group == group && kind.version == version).collect();
        if of_group.is_empty() {
            return Err(unknown());
        }
        let document = self.document(path, kinds.generation, || {
            let json = document(&of_group).to_string();
            Document { etag: etag(&json), bytes: json.into() }
        });
        Ok(answer(headers, JSON, document))
    }

    /// Everything in one document of version 2, as JSON or in protobuf.
    ///
    /// # Errors
    /// 406
    pub fn openapi_v2(&self, headers: &HeaderMap) -> Result<Reply, Status> {
        let media = accepted(headers).ok_or_else(|| {
            let message = format!("only the following media types are accepted: {JSON}, {PROTOBUF}");
            Status::new(406, "NotAcceptable", message)
        })?;
        let kinds = self.registry.kinds();
        let document = self.document(media, kinds.generation, || {
            let all: Vec<_> = kinds.iter().collect();
            let swagger = v2::swagger(&document(&all));
            let json = swagger.to_string();
            // One tag for both forms: `Vary` keeps them apart.
            let etag = etag(&json);
            let bytes = if media == PROTOBUF { wire::encode(&swagger).into() } else { json.into() };
            Document { bytes, etag }
        });
        Ok(answer(headers, media, document))
    }

    fn document(&self, name: &str, generation: u64, make: impl FnOnce() -> Document) -> Document {
        self.documents.lock().unwrap_or_else(PoisonError::into_inner).of(name, generation, make)
    }
}

/// A document as it is sent.
#[derive(Clone, Debug)]
struct Document {
    bytes: Bytes,
    etag: String,
}

/// Documents that have been asked for; they change only when kinds come or go.
#[derive(Debug, Default)]
pub struct Documents {
    generation: u64,
    by_name: HashMap<String, Document>,
}

impl Documents {
    /// A document of the kinds of a generation; made when it is asked for first.
    fn of(&mut self, name: &str, generation: u64, make: impl FnOnce() -> Document) -> Document {
        if self.generation != generation {
            *self = Self { generation, by_name: HashMap::new() };
        }
        self.by_name.entry(name.to_owned()).or_insert_with(make).clone()
    }
}

/// The tag that a real server gives a document (kube-openapi `computeETag`).
fn etag(json: &str) -> String {
    let mut tag = String::from('"');
    for byte in digest::digest(&digest::SHA512, json.as_bytes()).as_ref() {
        let _ = write!(tag, "{byte:02X}");
    }
    tag + "\""
}

/// The document, or `304` for a client that has it.
fn answer(headers: &HeaderMap, media: &'static str, document: Document) -> Reply {
    let known = headers.get(IF_NONE_MATCH).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let tags = known.split(',').map(|tag| tag.trim().trim_start_matches("W/"));
    let has_it = tags.into_iter().any(|tag| tag == "*" || tag == document.etag);
    let (code, body) = if has_it { (304, Bytes::new()) } else { (200, document.bytes) };
    let mut answer = reply::reply(code, HeaderValue::from_static(media), reply::whole(body));
    if let Ok(tag) = HeaderValue::from_str(&document.etag) {
        answer.headers_mut().insert(ETAG, tag);
    }
    answer.headers_mut().insert(VARY, HeaderValue::from_static("Accept"));
    answer
}

/// The form of version 2 that a client likes best of those that are there.
fn accepted(headers: &HeaderMap) -> Option<&'static str> {
    let values: Vec<&str> = headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok()).collect();
    let all = values.join(",");
    if all.trim().is_empty() {
        return Some(JSON);
    }
    let mut ranges: Vec<(f32, &'static str)> = all
        .split(',')
        .filter_map(|range| {
            let mut parts = range.split(';').map(str::trim);
            let media = match parts.next()? {
                JSON | "application/*" | "*/*" => JSON,
                PROTOBUF | PROTOBUF_BEFORE => PROTOBUF,
                _ => return None,
            };
            let quality = parts.find_map(|part| part.strip_prefix("q=")).and_then(|q| q.parse().ok());
            Some((quality.unwrap_or(1.0), media))
        })
        .collect();
    ranges.sort_by(|a, b| b.0.total_cmp(&a.0));
    ranges.first().map(|(_, media)| *media)
}

fn index(kinds: &Kinds) -> Value {
    let mut paths = Map::new();
    for kind in kinds.iter() {
        let path = if kind.group.is_empty() {
            format!("api/{}", kind.version)
        } else {
            format!("apis/{}/{}", kind.group, kind.version)
        };
        let url = format!("/openapi/v3/{path}?hash={:016X}", kinds.generation);
        paths.set(path, json!({"serverRelativeURL": url}));
    }
    json!({"paths": paths})
}

/// The document of some kinds, in version 3.
fn document(kinds: &[&Arc<Kind>]) -> Value {
    let mut paths = Map::new();
    let mut schemas = schemas::of_every_group();
    for kind in kinds {
        paths.extend(operations::paths(kind));
        schemas.extend(schemas::of(kind));
    }
    json!({"openapi": "3.0.0", "info": {"title": "Kubernetes", "version": "v1.36.2"}, "paths": paths,
        "components": {"schemas": schemas}})
}

/// `/apis/apps/v1`
fn root(kind: &Kind) -> String {
    let parent = if kind.group.is_empty() { "/api" } else { "/apis" };
    format!("{parent}/{}", join(&kind.group, &kind.version))
}

#[cfg(test)]
mod tests;
