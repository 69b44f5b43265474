//! JSON patch (RFC 6902) with the limits and answers of the API server
//! (`apiserver/pkg/endpoints/handlers/patch.go`, 1.33).

use crate::tree::Value;

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
    apply_operations(&mut patched, list).map_err(|_| failed())?;
    // `copy` and `add` can nest deeper than any parser would read back
    if is_deeper_than(&patched, MAX_DEPTH) { Err(failed()) } else { Ok(patched) }
}

/// Applies the operations of a JSON patch in their order. After an error those before it have been applied.
///
/// # Errors
/// The first operation that is malformed or does not apply, in words.
pub fn apply_operations(object: &mut Value, operations: &[Value]) -> Result<(), String> {
    let mut copied = 0;
    for operation in operations {
        apply(object, operation, &mut copied).ok_or_else(|| {
            let said = |key: &str| operation[key].as_str().unwrap_or_default().to_owned();
            format!("{} operation does not apply: {:?}", said("op"), said("path"))
        })?;
    }
    Ok(())
}

/// One operation of RFC 6902; `None` when it is malformed or fails.
///
/// The API server's library (evanphx/json-patch v4) asks for less than the RFC: `replace` also sets a key that an
/// object does not have, and `test` for null holds when it does not have it. `KubeVirt` relies on both when it
/// adds its finalizer to an object without any.
fn apply(object: &mut Value, operation: &Value, copied: &mut usize) -> Option<()> {
    let path = pointer(&operation["path"])?;
    let value = || operation.get("value").cloned();
    match operation["op"].as_str()? {
        "add" => add(object, path, value()?),
        "remove" => remove(object, path).map(drop),
        "replace" if is_free(object, path) => add(object, path, value()?),
        "replace" => {
            *object.pointer_mut(path)? = value()?;
            Some(())
        }
        "move" => {
            let from = pointer(&operation["from"])?;
            if path.strip_prefix(from).is_some_and(|below| below.starts_with('/')) {
                return None;
            }
            let moved = remove(object, from)?;
            add(object, path, moved)
        }
        "copy" => {
            let source = object.pointer(pointer(&operation["from"])?)?.clone();
            *copied += size_up_to(&source, MAX_COPIED - *copied)?;
            add(object, path, source)
        }
        "test" => {
            let wanted = value()?;
            let holds = match object.pointer(path) {
                Some(there) => *there == wanted,
                None => wanted.is_null() && is_free(object, path),
            };
            holds.then_some(())
        }
        _ => None,
    }
}

/// A JSON pointer (RFC 6901): empty, or beginning with a slash, with `~0` and `~1` as its only escapes.
fn pointer(value: &Value) -> Option<&str> {
    let path = value.as_str()?;
    let escaped = path.split('~').skip(1).all(|rest| rest.starts_with(['0', '1']));
    (escaped && (path.is_empty() || path.starts_with('/'))).then_some(path)
}

/// The pointer to what holds the last token, and that token.
fn parent(path: &str) -> Option<(&str, String)> {
    let (parent, token) = path.rsplit_once('/')?;
    Some((parent, token.replace("~1", "/").replace("~0", "~")))
}

/// Whether the path is a key that an object could have and does not.
fn is_free(object: &Value, path: &str) -> bool {
    parent(path).is_some_and(|(parent, key)| {
        object.pointer(parent).and_then(Value::as_object).is_some_and(|fields| !fields.contains_key(&key))
    })
}

/// A place in a list, or right behind it.
fn place(token: &str, length: usize) -> Option<usize> {
    let digits = token == "0" || !token.starts_with(['0', '+']);
    if token == "-" { Some(length) } else { token.parse().ok().filter(|at| digits && *at <= length) }
}

fn add(object: &mut Value, path: &str, value: Value) -> Option<()> {
    let Some((parent, token)) = parent(path) else {
        *object = value;
        return Some(());
    };
    match object.pointer_mut(parent)? {
        Value::Object(fields) => {
            fields.set(token, value);
        }
        Value::Array(list) => list.insert(place(&token, list.len())?, value),
        _ => return None,
    }
    Some(())
}

fn remove(object: &mut Value, path: &str) -> Option<Value> {
    let (parent, token) = parent(path)?;
    match object.pointer_mut(parent)? {
        Value::Object(fields) => fields.remove(&token),
        Value::Array(list) => {
            let at = place(&token, list.len()).filter(|at| *at < list.len())?;
            Some(list.remove(at))
        }
        _ => None,
    }
}

fn failed() -> Status {
    let mut status =
        Status::new(422, "Invalid", "the server rejected our request due to an error in our request");
    status.details = Some(crate::tree::json!({}));
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
