//! Small helpers over raw JSON: walking without allocating, and RFC 6902 operations.

use json_patch::jsonptr::PointerBuf;
use json_patch::{AddOperation, PatchOperation, RemoveOperation, ReplaceOperation, TestOperation};
use serde_json::Value;

/// A path as unescaped tokens from the root of an object.
pub(crate) type Path = &'static [&'static str];

/// The value at a path; a JSON `null` counts as absent, as it does for Kubernetes.
pub(crate) fn at<'v>(root: &'v Value, path: &[&str]) -> Option<&'v Value> {
    path.iter().try_fold(root, |value, token| value.get(token)).filter(|value| !value.is_null())
}

/// The RFC 6901 pointer of a path.
pub(crate) fn pointer(path: &[&str]) -> PointerBuf {
    let mut text = String::with_capacity(path.iter().map(|token| token.len() + 2).sum());
    for token in path {
        text.push('/');
        for part in token.split_inclusive(['~', '/']) {
            match part.as_bytes().split_last() {
                Some((b'~', _)) => text.extend([&part[..part.len() - 1], "~0"]),
                Some((b'/', _)) => text.extend([&part[..part.len() - 1], "~1"]),
                _ => text.push_str(part),
            }
        }
    }
    // escaped as it is, it cannot be refused
    PointerBuf::parse(text).unwrap_or_default()
}

/// Whether a text is the pointer of a path.
pub(crate) fn is_pointer(text: &str, path: &[&str]) -> bool {
    let mut tokens = text.split('/');
    tokens.next() == Some("")
        && path.iter().all(|expected| {
            tokens.next().is_some_and(|token| {
                token == *expected
                    || (token.contains('~') && token.replace("~1", "/").replace("~0", "~") == *expected)
            })
        })
        && tokens.next().is_none()
}

pub(crate) fn add(path: PointerBuf, value: Value) -> PatchOperation {
    PatchOperation::Add(AddOperation { path, value })
}

pub(crate) fn replace(path: PointerBuf, value: Value) -> PatchOperation {
    PatchOperation::Replace(ReplaceOperation { path, value })
}

pub(crate) fn remove(path: PointerBuf) -> PatchOperation {
    PatchOperation::Remove(RemoveOperation { path })
}

pub(crate) fn test(path: PointerBuf, value: Value) -> PatchOperation {
    PatchOperation::Test(TestOperation { path, value })
}

/// What kind of JSON value this is, for messages.
pub(crate) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "a mapping",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pointer_is_that_of_its_path_only() {
        for path in [&["a"][..], &["a", "b/c", "d~e"], &["", "a"]] {
            assert_eq!(pointer(path), PointerBuf::from_tokens(path.iter().copied()), "{path:?}");
            assert!(is_pointer(pointer(path).as_str(), path), "{path:?}");
            assert!(!is_pointer(pointer(path).as_str(), &["a", "b"]), "{path:?}");
        }
        assert!(!is_pointer("a", &["a"]) && !is_pointer("", &["a"]) && !is_pointer("/a/b", &["a"]));
    }
}
