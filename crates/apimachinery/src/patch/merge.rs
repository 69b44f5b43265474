//! JSON merge patch (RFC 7396).

use serde_json::{Map, Value};

use crate::Status;

/// Applies a merge patch to an object. A patch that is no object is refused as the API refuses it.
pub fn merge_patch(object: &Value, patch: &Value) -> Result<Value, Status> {
    if !patch.is_object() {
        return Err(Status::bad_request("error decoding patch: a merge patch must be a JSON object"));
    }
    let mut patched = object.clone();
    merge(&mut patched, patch);
    Ok(patched)
}

/// RFC 7396 section 2. Recursion is as deep as the patch, which a JSON parser has bounded.
pub fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    let Value::Object(fields) = target else { return };
    for (key, value) in patch {
        if value.is_null() {
            fields.remove(key);
        } else {
            merge(fields.entry(key.as_str()).or_insert(Value::Null), value);
        }
    }
}
