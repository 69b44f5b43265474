//! The metadata that the server owns, and what a write may change.

use apimachinery::tree::{Map, Value};
use apimachinery::validation;
use apimachinery::{FieldError, Status};

use super::{Api, Call};
use crate::clock::seconds;
use crate::registry::Kind;

/// The longest prefix of a generated name (`names.maxGeneratedNameLength`: 63 - 5).
const PREFIX_MAX: usize = 58;

/// Reads `metadata.<key>` as text.
pub fn text<'a>(object: &'a Value, key: &str) -> &'a str {
    object["metadata"][key].as_str().unwrap_or_default()
}

/// The metadata map; made when it is not there.
pub fn metadata(object: &mut Value) -> &mut Map {
    let metadata = &mut object["metadata"];
    if !metadata.is_object() {
        *metadata = Value::Object(Map::new());
    }
    match metadata {
        Value::Object(map) => map,
        _ => unreachable!("made an object above"),
    }
}

/// Is the object being deleted?
pub fn terminating(object: &Value) -> bool {
    !object["metadata"]["deletionTimestamp"].is_null()
}

/// Does anything hold the object back from going away?
pub fn has_finalizers(object: &Value) -> bool {
    object["metadata"]["finalizers"].as_array().is_some_and(|finalizers| !finalizers.is_empty())
}

/// Places the object where the path says.
///
/// # Errors
/// 400 when it says itself that it belongs elsewhere.
pub fn place(object: &mut Value, call: &Call) -> Result<(), Status> {
    let named = text(object, "namespace").to_owned();
    if !call.kind.namespaced {
        metadata(object).remove("namespace");
        return Ok(());
    }
    if !named.is_empty() && named != call.target.namespace {
        let message = "the namespace of the provided object does not match the namespace sent on the request";
        return Err(Status::bad_request(message));
    }
    metadata(object).insert("namespace".into(), call.target.namespace.clone().into());
    Ok(())
}

impl Api {
    /// Gives a new object its name and what else the server decides.
    ///
    /// # Errors
    /// 400 when the client set a resourceVersion.
    pub fn name_and_stamp(&self, object: &mut Value, call: &Call) -> Result<(), Status> {
        if !matches!(text(object, "resourceVersion"), "" | "0") {
            return Err(Status::bad_request("resourceVersion should not be set on objects to be created"));
        }
        let prefix = text(object, "generateName").to_owned();
        if text(object, "name").is_empty() && !prefix.is_empty() {
            let prefix: String = prefix.chars().take(PREFIX_MAX).collect();
            metadata(object).insert("name".into(), format!("{prefix}{}", self.ids.suffix()).into());
        }
        let generation = super::strategy::counts_generations(&call.kind);
        let (now, uid) = (seconds(self.clock.now()), self.ids.uid());
        let metadata = metadata(object);
        for key in
            ["resourceVersion", "deletionTimestamp", "deletionGracePeriodSeconds", "selfLink", "generation"]
        {
            metadata.remove(key);
        }
        metadata.insert("uid".into(), uid.into());
        metadata.insert("creationTimestamp".into(), now.into());
        if generation {
            metadata.insert("generation".into(), 1.into());
        }
        metadata.retain(|_, value| !value.is_null());
        Ok(())
    }
}

/// Restores what only the server writes.
pub fn keep_server_fields(new: &mut Value, current: &Value) {
    for key in [
        "uid",
        "creationTimestamp",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "generation",
        "selfLink",
        "generateName",
        "resourceVersion",
        "name",
    ] {
        let value = &current["metadata"][key];
        if value.is_null() {
            metadata(new).remove(key);
        } else {
            metadata(new).insert(key.into(), value.clone());
        }
    }
    metadata(new).retain(|_, value| !value.is_null());
}

/// Checks what a write did to the metadata.
pub fn validate(new: &Value, current: Option<&Value>, kind: &Kind) -> Vec<FieldError> {
    let empty = Map::new();
    let metadata = new["metadata"].as_object().unwrap_or(&empty);
    let mut errors = validation::object_meta(metadata, kind.name_rule);
    if kind.definition().is_none() && kind.group != "apiextensions.k8s.io" {
        errors.extend(validation::standard_finalizers(metadata.get("finalizers")));
    }
    let Some(current) = current.filter(|current| terminating(current)) else { return errors };
    let list = |object: &Value| -> Vec<String> {
        let finalizers = object["metadata"]["finalizers"].as_array().into_iter().flatten();
        finalizers.filter_map(Value::as_str).map(str::to_owned).collect()
    };
    let there = list(current);
    let added: Vec<String> = list(new).into_iter().filter(|finalizer| !there.contains(finalizer)).collect();
    if !added.is_empty() {
        let quoted: Vec<String> = added.iter().map(|finalizer| format!("{finalizer:?}")).collect();
        let message = format!(
            "no new finalizers can be added if the object is being deleted, found new finalizers []string{{{}}}",
            quoted.join(", ")
        );
        // The real server reports it twice: by ValidateObjectMetaUpdate and by the kind's own check.
        errors.push(FieldError::forbidden("metadata.finalizers", message.clone()));
        errors.push(FieldError::forbidden("metadata.finalizers", message));
    }
    errors
}
