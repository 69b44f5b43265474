//! JSON merge patch (RFC 7396).

use crate::tree::{Map, Value};

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
    if patch.values().any(Value::is_null) {
        fields.retain(|key, _| !patch.get(key).is_some_and(Value::is_null));
    }
    // All at once: one by one each would move those behind it.
    let mut added = Vec::new();
    for (key, value) in patch.iter().filter(|(_, value)| !value.is_null()) {
        if let Some(there) = fields.get_mut(key) {
            merge(there, value);
        } else {
            let mut new = Value::Null;
            merge(&mut new, value);
            added.push((key.clone(), new));
        }
    }
    fields.extend(added);
}
