//! Counts of writes, from the API server's audit log.

use std::path::Path;

use anyhow::{Context, Result};
use jiff::Timestamp;
use serde_json::Value;

/// What a log has from a time on.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Writes {
    /// All but Events, Leases, nodes and access reviews.
    pub objects: usize,
    /// Events.
    pub events: usize,
}

/// Reads a log and the part of it that was moved aside.
pub fn writes(log: &Path, since: Timestamp) -> Result<Writes> {
    let mut moved = log.as_os_str().to_owned();
    moved.push(".1");
    let mut writes = Writes::default();
    for path in [Path::new(&moved), log] {
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error).with_context(|| format!("reading the audit log {}", path.display())),
        };
        for line in text.lines() {
            if let Ok(event) = serde_json::from_str::<Value>(line) {
                count(&event, since, &mut writes);
            }
        }
    }
    Ok(writes)
}

fn count(event: &Value, since: Timestamp, writes: &mut Writes) {
    let writes_something =
        matches!(event["verb"].as_str(), Some("create" | "update" | "patch" | "delete" | "deletecollection"));
    let done = event["responseStatus"]["code"].as_u64().is_some_and(|code| code < 300);
    let received: Option<Timestamp> =
        event["requestReceivedTimestamp"].as_str().and_then(|time| time.parse().ok());
    if !writes_something || !done || received.is_none_or(|received| received < since) {
        return;
    }
    match event["objectRef"]["resource"].as_str().unwrap_or_default() {
        "events" => writes.events += 1,
        "leases" | "nodes" | "subjectaccessreviews" | "selfsubjectaccessreviews" | "tokenreviews" => {}
        _ => writes.objects += 1,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_was_carried_out_since_then_counts_once() {
        let since: Timestamp = "2026-11-01T00:00:00Z".parse().unwrap();
        let event = |verb: &str, resource: &str, code: u16, time: &str| {
            json!({"verb": verb, "objectRef": {"resource": resource}, "responseStatus": {"code": code},
                "requestReceivedTimestamp": time})
        };
        let (before, after) = ("2026-10-31T23:59:59.000000Z", "2026-11-01T00:00:01.000000Z");
        let mut writes = Writes::default();
        for (verb, resource, code, time) in [
            ("patch", "pods", 200, after),
            ("create", "events", 201, after),
            ("patch", "pods", 200, before),
            ("patch", "pods", 409, after),
            ("get", "pods", 200, after),
            ("update", "leases", 200, after),
        ] {
            count(&event(verb, resource, code, time), since, &mut writes);
        }
        assert_eq!(writes, Writes { objects: 1, events: 1 });
    }
}
