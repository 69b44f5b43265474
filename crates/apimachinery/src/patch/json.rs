//! JSON patch (RFC 6902) with the limits and answers of the API server
//! (`apiserver/pkg/endpoints/handlers/patch.go`, 1.33).

use ::json_patch::{PatchOperation, patch_unsafe};
use serde_json::Value;

use crate::Status;
use crate::depth::{MAX_DEPTH, is_deeper_than};

/// More operations than this in one patch are refused.
pub const MAX_OPERATIONS: usize = 10_000;
/// What the `copy` operations of one patch may add together, in bytes: copies can double an object each.
const MAX_COPIED: usize = 3 * 1024 * 1024;

/// Applies a JSON patch to an object: all operations, or an error.
///
/// # Errors
/// 400 when the body is no list of objects; 413 for too many operations; 422 when an operation is malformed
/// or fails (a real API server tells no more about it).
pub fn json_patch(object: &Value, patch: &Value) -> Result<Value, Status> {
    let Some(list) = patch.as_array().filter(|list| list.iter().all(Value::is_object)) else {
        return Err(Status::bad_request("error decoding patch: a JSON patch must be a list of operations"));
    };
    if list.len() > MAX_OPERATIONS {
        let message = format!(
            "Request entity too large: The allowed maximum operations in a JSON patch is {MAX_OPERATIONS}, got {}",
            list.len()
        );
        return Err(Status::new(413, "RequestEntityTooLarge", message));
    }
    let mut patched = object.clone();
    let mut copied = 0;
    for operation in list {
        let Some(operation) = lenient(&patched, operation) else { continue };
        let operation: PatchOperation = serde_json::from_value(operation).map_err(|_| failed())?;
        if let PatchOperation::Copy(copy) = &operation {
            let source = patched.pointer(copy.from.as_str()).ok_or_else(failed)?;
            copied += size_up_to(source, MAX_COPIED - copied).ok_or_else(failed)?;
        }
        patch_unsafe(&mut patched, std::slice::from_ref(&operation)).map_err(|_| failed())?;
    }
    // `copy` and `add` can nest deeper than any parser would read back
    if is_deeper_than(&patched, MAX_DEPTH) { Err(failed()) } else { Ok(patched) }
}

/// The operation in the words of RFC 6902, where the API server's library (evanphx/json-patch v4)
/// asks for less: `replace` also sets a key that an object does not have, and `test` for null holds
/// when it does not have it (`None`: nothing is left to do). `KubeVirt` relies on both when it adds
/// its finalizer to an object without any.
fn lenient(object: &Value, operation: &Value) -> Option<Value> {
    let kind = operation["op"].as_str();
    let absent =
        operation["path"].as_str().and_then(|path| path.rsplit_once('/')).is_some_and(|(parent, key)| {
            let key = key.replace("~1", "/").replace("~0", "~");
            object.pointer(parent).and_then(Value::as_object).is_some_and(|fields| !fields.contains_key(&key))
        });
    match kind {
        Some("test") if absent && operation.get("value").is_some_and(Value::is_null) => None,
        Some("replace") if absent => {
            let mut add = operation.clone();
            add["op"] = "add".into();
            Some(add)
        }
        _ => Some(operation.clone()),
    }
}

fn failed() -> Status {
    let mut status =
        Status::new(422, "Invalid", "the server rejected our request due to an error in our request");
    status.details = Some(serde_json::json!({}));
    status
}

/// Roughly how many bytes a value takes as JSON; `None` when more than `limit`.
fn size_up_to(value: &Value, limit: usize) -> Option<usize> {
    let mut total = 0_usize;
    let mut stack = vec![value];
    while let Some(value) = stack.pop() {
        total += match value {
            Value::String(text) => text.len() + 2,
            Value::Array(list) => {
                stack.extend(list);
                list.len() + 2
            }
            Value::Object(fields) => {
                stack.extend(fields.values());
                2 + fields.keys().map(|key| key.len() + 4).sum::<usize>()
            }
            _ => 5,
        };
        if total > limit {
            return None;
        }
    }
    Some(total)
}
