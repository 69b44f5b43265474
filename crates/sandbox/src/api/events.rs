//! Events are stored as `v1`; `events.k8s.io/v1` is the same object with other names
//! (`pkg/apis/events/v1/conversion.go`).

use apimachinery::tree::{Map, Value};

/// `v1` name, `events.k8s.io/v1` name
const RENAMED: [(&str, &str); 6] = [
    ("involvedObject", "regarding"),
    ("message", "note"),
    ("reportingComponent", "reportingController"),
    ("source", "deprecatedSource"),
    ("firstTimestamp", "deprecatedFirstTimestamp"),
    ("lastTimestamp", "deprecatedLastTimestamp"),
];
const COUNT: (&str, &str) = ("count", "deprecatedCount");

fn rename(
    object: &Value,
    api_version: &str,
    name: impl Fn((&'static str, &'static str)) -> (&'static str, &'static str),
) -> Value {
    let mut out: Map = object.as_object().cloned().unwrap_or_default();
    for pair in RENAMED.into_iter().chain([COUNT]) {
        let (from, to) = name(pair);
        if let Some(value) = out.remove(from) {
            out.insert(to.into(), value);
        }
    }
    out.insert("apiVersion".into(), api_version.into());
    Value::Object(out)
}

/// `v1` → `events.k8s.io/v1`
pub fn to_events_group(object: &Value) -> Value {
    rename(object, "events.k8s.io/v1", |pair| pair)
}

/// `events.k8s.io/v1` → `v1`
pub fn to_core(object: &Value) -> Value {
    rename(object, "v1", |(core, own)| (own, core))
}

#[cfg(test)]
mod tests {
    use apimachinery::tree::json;

    use super::*;

    #[test]
    fn conversion_goes_there_and_back() {
        let event = json!({"apiVersion": "v1", "kind": "Event", "metadata": {"name": "a"}, "count": 2,
            "involvedObject": {"kind": "Pod"}, "message": "m", "reportingComponent": "c", "source": {},
            "unknown": 1});
        let there = to_events_group(&event);
        assert_eq!(there["regarding"]["kind"], "Pod");
        assert_eq!(there["note"], "m");
        assert_eq!(to_core(&there), event);
    }
}
