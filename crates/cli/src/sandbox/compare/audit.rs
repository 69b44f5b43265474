//! Counts of writes, from the API server's audit log.

use std::collections::BTreeMap;
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
    /// Writes of the operator for one VM that were in flight at once, at the most; refused ones, too.
    pub most_of_ours: usize,
}

/// When a write came, and when its answer was ready, by the VM that it was for.
type Flights = BTreeMap<String, Vec<(Timestamp, Timestamp)>>;

/// Reads a log and the part of it that was moved aside.
pub fn writes(log: &Path, since: Timestamp) -> Result<Writes> {
    let mut moved = log.as_os_str().to_owned();
    moved.push(".1");
    let (mut writes, mut flights) = (Writes::default(), Flights::new());
    for path in [Path::new(&moved), log] {
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(error) => {
                return Err(error).with_context(|| format!("reading the audit log {}", path.display()));
            }
        };
        for line in text.lines() {
            if let Ok(event) = serde_json::from_str::<Value>(line) {
                count(&event, since, &mut writes);
                if let Some((vm, flight)) = ours(&event) {
                    flights.entry(vm).or_default().push(flight);
                }
            }
        }
    }
    writes.most_of_ours = flights.values().map(|flights| most_at_once(flights)).max().unwrap_or(0);
    Ok(writes)
}

/// A write of the operator's reconciler: for which VM, and from when to when.
fn ours(event: &Value) -> Option<(String, (Timestamp, Timestamp))> {
    if !is_write(event) || !event["requestURI"].as_str()?.contains("fieldManager=virt-steward") {
        return None;
    }
    let about = &event["objectRef"];
    let name = match about["resource"].as_str()? {
        "virtualmachineinstances" => about["name"].as_str()?,
        "events" => event["requestObject"]["involvedObject"]["name"].as_str()?,
        // virt-launcher-NAME-xxxxx
        "pods" => about["name"].as_str()?.strip_prefix("virt-launcher-")?.rsplit_once('-')?.0,
        _ => return None,
    };
    let time = |name: &str| event[name].as_str()?.parse().ok();
    Some((name.to_owned(), (time("requestReceivedTimestamp")?, time("stageTimestamp")?)))
}

/// How many intervals overlap, at the most. One that begins when another ends does not.
fn most_at_once(flights: &[(Timestamp, Timestamp)]) -> usize {
    let at = |time: Timestamp| {
        flights.iter().filter(|(from, to)| *from <= time && (time < *to || *from == time)).count()
    };
    flights.iter().map(|(from, _)| at(*from)).max().unwrap_or(0)
}

fn is_write(event: &Value) -> bool {
    matches!(event["verb"].as_str(), Some("create" | "update" | "patch" | "delete" | "deletecollection"))
}

fn count(event: &Value, since: Timestamp, writes: &mut Writes) {
    let done = event["responseStatus"]["code"].as_u64().is_some_and(|code| code < 300);
    let received: Option<Timestamp> =
        event["requestReceivedTimestamp"].as_str().and_then(|time| time.parse().ok());
    if !is_write(event) || !done || received.is_none_or(|received| received < since) {
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
        assert_eq!((writes.objects, writes.events), (1, 1));
    }

    #[test]
    fn writes_for_one_vm_are_counted_while_they_are_in_flight() {
        let at = |second: i64| Timestamp::from_second(second).unwrap();
        assert_eq!(most_at_once(&[(at(1), at(2)), (at(2), at(3)), (at(5), at(6))]), 1);
        assert_eq!(most_at_once(&[(at(1), at(3)), (at(2), at(4)), (at(2), at(2))]), 3);
        let event = json!({"verb": "patch", "requestURI": "/api/v1/namespaces/d/pods/x/resize?fieldManager=virt-steward",
            "objectRef": {"resource": "pods", "name": "virt-launcher-vm-1-abcde"},
            "requestReceivedTimestamp": "2026-11-01T00:00:01.000000Z", "stageTimestamp": "2026-11-01T00:00:02.000000Z"});
        assert_eq!(ours(&event).unwrap().0, "vm-1");
        let mut theirs = event.clone();
        theirs["requestURI"] = "/api/v1/namespaces/d/pods/x/resize".into();
        assert_eq!(ours(&theirs), None);
    }
}
