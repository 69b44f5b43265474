//! Reading raw objects: the few fields that many decisions need, and conditions.

use std::time::Duration;

use apimachinery::tree::{List, Map, Value, json};
use jiff::Timestamp;

/// What is at a pointer of plain names: [`Value::pointer`] without its escapes, and without the two
/// strings that it makes for each name.
fn at<'a>(object: &'a Value, pointer: &str) -> Option<&'a Value> {
    pointer.split('/').skip(1).try_fold(object, |at, name| match at {
        Value::Object(fields) => fields.get(name),
        Value::Array(items) => items.get(name.parse::<usize>().ok()?),
        _ => None,
    })
}

/// The string at an RFC 6901 pointer of plain names; empty when it is absent or no string.
pub fn text<'a>(object: &'a Value, pointer: &str) -> &'a str {
    at(object, pointer).and_then(Value::as_str).unwrap_or_default()
}

/// The integer at a pointer; 0 when it is absent.
pub fn integer(object: &Value, pointer: &str) -> i64 {
    at(object, pointer).and_then(Value::as_i64).unwrap_or_default()
}

/// The list at a pointer; empty when it is absent.
pub fn list<'a>(object: &'a Value, pointer: &str) -> &'a [Value] {
    at(object, pointer).and_then(Value::as_array).map_or(&[], List::as_slice)
}

/// The map at a pointer.
pub fn map<'a>(object: &'a Value, pointer: &str) -> Option<&'a Map> {
    at(object, pointer).and_then(Value::as_object)
}

pub fn name(object: &Value) -> &str {
    text(object, "/metadata/name")
}

pub fn namespace(object: &Value) -> &str {
    text(object, "/metadata/namespace")
}

pub fn uid(object: &Value) -> &str {
    text(object, "/metadata/uid")
}

/// `namespace/name`, or `name` for cluster-scoped objects: the key of caches and queues.
pub fn key(object: &Value) -> String {
    join_key(namespace(object), name(object))
}

/// See [`key`].
pub fn join_key(namespace: &str, name: &str) -> String {
    if namespace.is_empty() { name.into() } else { format!("{namespace}/{name}") }
}

/// A label's value; empty when it is absent.
pub fn label<'a>(object: &'a Value, key: &str) -> &'a str {
    map(object, "/metadata/labels").and_then(|labels| labels.get(key)).and_then(Value::as_str).unwrap_or("")
}

/// An annotation's value.
pub fn annotation<'a>(object: &'a Value, key: &str) -> Option<&'a str> {
    map(object, "/metadata/annotations").and_then(|all| all.get(key)).and_then(Value::as_str)
}

/// `metadata.deletionTimestamp` is set.
pub fn is_deleting(object: &Value) -> bool {
    at(object, "/metadata/deletionTimestamp").is_some_and(|at| !at.is_null())
}

pub fn finalizers(object: &Value) -> Vec<&str> {
    list(object, "/metadata/finalizers").iter().filter_map(Value::as_str).collect()
}

/// The uid of the controller that owns the object; empty when there is none.
pub fn controller_uid(object: &Value) -> &str {
    list(object, "/metadata/ownerReferences")
        .iter()
        .find(|owner| owner["controller"] == true)
        .map_or("", |owner| text(owner, "/uid"))
}

/// The value at a path of keys, with parents made as objects where they are missing.
pub fn slot<'a>(object: &'a mut Value, path: &[&str]) -> &'a mut Value {
    let mut at = object;
    for key in path {
        if !at.is_object() {
            *at = json!({});
        }
        at = &mut at[*key];
    }
    at
}

/// Sets a value, with parents made where they are missing.
pub fn put(object: &mut Value, path: &[&str], value: impl Into<Value>) {
    *slot(object, path) = value.into();
}

/// Removes a key of an object, if it is there.
pub fn remove(object: &mut Value, path: &[&str]) {
    let Some((last, parents)) = path.split_last() else { return };
    let mut at = object;
    for key in parents {
        match at.get_mut(*key) {
            Some(next) => at = next,
            None => return,
        }
    }
    if let Some(map) = at.as_object_mut() {
        map.remove(last);
    }
}

/// RFC 3339 with seconds, as `metav1.Time` is written.
pub fn time(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// RFC 3339 with microseconds, as `metav1.MicroTime` is written.
pub fn micro_time(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string()
}

/// The condition of a type in a list at a pointer.
pub fn condition<'a>(object: &'a Value, pointer: &str, kind: &str) -> Option<&'a Value> {
    list(object, pointer).iter().find(|condition| condition["type"] == kind)
}

/// The condition of a type under `/status/conditions` has this status.
pub fn has_condition(object: &Value, kind: &str, status: &str) -> bool {
    condition(object, "/status/conditions", kind).is_some_and(|condition| condition["status"] == status)
}

/// A condition in the field order of `KubeVirt`'s types.
pub fn new_condition(kind: &str, status: &str, reason: &str, message: &str, now: Timestamp) -> Value {
    let mut condition = json!({"type": kind, "status": status, "lastProbeTime": time(now),
        "lastTransitionTime": time(now)});
    for (key, value) in [("reason", reason), ("message", message)] {
        if !value.is_empty() {
            condition[key] = value.into();
        }
    }
    condition
}

/// Puts a condition into a list: an existing one of the same type stays as it is unless status,
/// reason or message differ (`UpdateCondition` of `KubeVirt`'s condition managers).
pub fn update_condition(conditions: &mut Vec<Value>, wanted: Value) {
    let Some(existing) = conditions.iter_mut().find(|have| have["type"] == wanted["type"]) else {
        conditions.push(wanted);
        return;
    };
    let same = |key: &str| text(existing, &format!("/{key}")) == text(&wanted, &format!("/{key}"));
    if !(same("status") && same("reason") && same("message")) {
        *existing = wanted;
    }
}

/// Removes the condition of a type.
pub fn remove_condition(conditions: &mut Vec<Value>, kind: &str) {
    conditions.retain(|condition| condition["type"] != kind);
}

/// A duration as Go writes it: `5m0s`, `1h`, `1.5s`, `300ms`.
pub fn go_duration(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut total = 0.0;
    if rest == "0" {
        return Some(Duration::ZERO);
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !(c.is_ascii_digit() || c == '.'))?;
        let (number, tail) = rest.split_at(digits);
        let unit_end = tail.find(|c: char| c.is_ascii_digit()).unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit_end);
        let seconds = match unit {
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            "us" | "µs" => 1e-6,
            "ns" => 1e-9,
            _ => return None,
        };
        total += number.parse::<f64>().ok()? * seconds;
        rest = tail;
    }
    Duration::try_from_secs_f64(total).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_condition_is_replaced_only_when_it_says_something_else() {
        let old = json!({"type": "Ready", "status": "False", "reason": "A", "lastTransitionTime": "then"});
        let later = Timestamp::UNIX_EPOCH;
        for (status, reason, replaced) in [("False", "A", false), ("False", "B", true), ("True", "", true)] {
            let mut conditions = vec![old.clone()];
            update_condition(&mut conditions, new_condition("Ready", status, reason, "", later));
            assert_eq!(conditions[0] != old, replaced, "{status} {reason}");
            assert_eq!(conditions.len(), 1);
        }
    }

    #[test]
    fn parents_are_made_and_removal_of_the_absent_is_nothing() {
        let mut object = json!({});
        put(&mut object, &["status", "memory", "guest"], "1Gi");
        remove(&mut object, &["status", "absent", "x"]);
        assert_eq!(object, json!({"status": {"memory": {"guest": "1Gi"}}}));
        remove(&mut object, &["status", "memory"]);
        assert_eq!(object, json!({"status": {}}));
    }
}
