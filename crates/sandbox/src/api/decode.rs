//! Bodies → objects of the kind that the path names.

use apimachinery::Status;
use apimachinery::apply::sealed;
use apimachinery::tree::{Map, Value};

use super::negotiate::unsupported_media_type;
use super::{Call, events, protobuf, twice};
use crate::registry::{Kind, join};

/// Reads JSON or YAML.
///
/// # Errors
/// 400 for what cannot be parsed, 415 for other media types.
pub fn parse(content_type: &str, body: &[u8]) -> Result<Value, Status> {
    match content_type {
        "" | "application/json" | "text/json" => json(body),
        "application/yaml" | "application/apply-patch+yaml" => yaml(body),
        "application/vnd.kubernetes.protobuf" => protobuf::decode(body),
        _ => Err(unsupported_media_type()),
    }
}

/// As [`parse`], with what is wrong with a body that can be read.
///
/// # Errors
/// As [`parse`].
fn parse_and_complain(content_type: &str, body: &[u8]) -> Result<(Value, Vec<String>), Status> {
    match content_type {
        "" | "application/json" | "text/json" => twice::json(body).map_err(|error| no_json(&error)),
        "application/yaml" => {
            Ok((yaml(body)?, std::str::from_utf8(body).ok().and_then(twice::yaml).into_iter().collect()))
        }
        _ => Ok((parse(content_type, body)?, Vec::new())),
    }
}

fn no_json(error: &serde_json::Error) -> Status {
    Status::bad_request(format!("couldn't get version/kind; json parse error: {error}"))
}

fn json(body: &[u8]) -> Result<Value, Status> {
    serde_json::from_slice(body).map_err(|error| no_json(&error))
}

fn yaml(body: &[u8]) -> Result<Value, Status> {
    if body.first() == Some(&b'{') {
        return json(body);
    }
    let wrong = |error: String| Status::bad_request(format!("error decoding YAML: {error}"));
    let text = std::str::from_utf8(body).map_err(|error| wrong(error.to_string()))?;
    // Of a key that is there twice the last counts.
    let options = serde_saphyr::options! {
        duplicate_keys: serde_saphyr::options::DuplicateKeyPolicy::LastWins,
    };
    serde_saphyr::from_str_with_options(text, options).map_err(|error| wrong(error.to_string()))
}

/// Reads the body of a create or update, and notes what is wrong with it.
///
/// # Errors
/// As [`object`].
pub fn written(call: &mut Call) -> Result<Value, Status> {
    if call.body.is_empty() {
        return object(call);
    }
    let (mut object, complaints) = parse_and_complain(&call.content_type, &call.body)?;
    call.complaints = complaints;
    check_kind(&mut object, &call.kind)?;
    Ok(object)
}

/// Reads a patch, and what is wrong with it all the same.
///
/// # Errors
/// 400 when it cannot be read.
pub fn patch(media: &str, body: &[u8]) -> Result<(Value, Vec<String>), Status> {
    let read = match media {
        "application/json-patch+json" => twice::json_patch(body),
        _ => twice::json(body),
    };
    read.map_err(|error| no_json(&error))
}

/// Reads the body of a create.
///
/// # Errors
/// 400 for bodies that are no object of the kind.
pub fn object(call: &Call) -> Result<Value, Status> {
    if call.body.is_empty() {
        return Err(Status::bad_request("the request has no body"));
    }
    let mut object = parse(&call.content_type, &call.body)?;
    check_kind(&mut object, &call.kind)?;
    Ok(object)
}

/// Checks apiVersion and kind, fills them in where a real server does, and brings the object into
/// the version that it is stored in.
///
/// # Errors
/// 400
pub fn check_kind(object: &mut Value, kind: &Kind) -> Result<(), Status> {
    let (given_kind, given_version) = {
        let text = |key: &str| object.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
        (text("kind"), text("apiVersion"))
    };
    let Some(root) = object.as_object_mut() else {
        return Err(Status::bad_request("json: cannot unmarshal the body into an object"));
    };
    let custom = kind.definition().is_some();
    if custom && given_kind.is_empty() {
        return Err(missing("Kind", root));
    }
    if custom && given_version.is_empty() {
        return Err(missing("apiVersion", root));
    }
    if !given_version.is_empty() && given_version != kind.api_version() {
        return Err(Status::bad_request(format!(
            "the API version in the data ({given_version}) does not match the expected API version ({})",
            kind.api_version()
        )));
    }
    if !given_kind.is_empty() && given_kind != kind.kind {
        return Err(wrong_kind(kind, &given_kind));
    }
    root.insert("kind".into(), kind.kind.clone().into());
    root.insert("apiVersion".into(), join(&kind.group, &kind.storage_version).into());
    let metadata = root.entry("metadata").or_insert_with(|| Value::Object(Map::new()));
    if metadata.is_null() {
        *metadata = Value::Object(Map::new());
    }
    if !metadata.is_object() {
        return Err(Status::bad_request(format!(
            "{} in version {:?} cannot be handled as a {}: json: cannot unmarshal metadata",
            kind.kind, kind.version, kind.kind
        )));
    }
    sealed::distrust(object, None);
    if kind.group == "events.k8s.io" {
        *object = events::to_core(object);
    }
    Ok(())
}

fn missing(what: &str, root: &Map) -> Status {
    let text = serde_json::to_string(root).unwrap_or_default();
    Status::bad_request(format!("Object '{what}' is missing in '{text}'"))
}

fn wrong_kind(kind: &Kind, given: &str) -> Status {
    if kind.definition().is_some() {
        return Status::bad_request(format!(
            "the kind in the data ({given}) does not match the expected kind ({})",
            kind.kind
        ));
    }
    let internal =
        if kind.group.is_empty() { "core" } else { kind.group.split('.').next().unwrap_or_default() };
    Status::bad_request(format!(
        "{given} in version \"{version}\" cannot be handled as a {expected}: converting ({version}.{given}) to ({internal}.{expected}): unknown conversion",
        version = kind.version,
        expected = kind.kind,
    ))
}
