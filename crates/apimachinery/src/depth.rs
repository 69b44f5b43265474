//! How deep objects may be nested: what recursion over them may rely on.

use crate::tree::Value;

/// Objects nested deeper than this are refused wherever they could grow; JSON parsers stop at 128.
pub const MAX_DEPTH: usize = 120;

/// Whether a value is nested deeper than `limit` levels. Does not recurse.
pub fn is_deeper_than(value: &Value, limit: usize) -> bool {
    let mut stack = vec![(value, 0_usize)];
    while let Some((value, depth)) = stack.pop() {
        if depth > limit {
            return true;
        }
        match value {
            Value::Array(list) => stack.extend(list.iter().map(|item| (item, depth + 1))),
            Value::Object(fields) => stack.extend(fields.values().map(|item| (item, depth + 1))),
            _ => {}
        }
    }
    false
}
