//! Are two answers the same but for what differs from run to run?

use serde_json::{Map, Value};

/// Fields whose values depend on time and identity; that they are there is compared.
const VARYING: [&str; 12] = [
    "uid",
    "resourceVersion",
    "creationTimestamp",
    "deletionTimestamp",
    "time",
    "lastTransitionTime",
    "continue",
    "description",
    "gitVersion",
    "gitCommit",
    "goVersion",
    "compiler",
];
/// Fields that are not compared.
const IGNORED: [&str; 3] = ["storageVersionHash", "serverAddressByClientCIDRs", "hash"];

/// Writes down every difference.
pub fn shape(name: &str, recorded: &Value, ours: &Value, wrong: &mut Vec<String>) {
    match name {
        // More or fewer kinds are served; those that are, look the same.
        "discovery-03-apis" => subset("groups", recorded, ours, wrong),
        "discovery-04-core-v1" => subset("resources", recorded, ours, wrong),
        _ if recorded["kind"] == "Status" => status(recorded, ours, wrong),
        _ => values("", recorded, ours, wrong),
    }
}

/// What we list is as recorded; what is not served here is named.
const NOT_SERVED: [&str; 5] =
    ["componentstatuses", "nodes/proxy", "pods/proxy", "services/proxy", "autoscaling"];

fn subset(key: &str, recorded: &Value, ours: &Value, wrong: &mut Vec<String>) {
    let own = ours[key].as_array().unwrap();
    for one in recorded[key].as_array().unwrap() {
        let name = one["name"].as_str().unwrap();
        let here = own.iter().find(|own| own["name"] == name);
        match here {
            Some(_) if NOT_SERVED.contains(&name) => {}
            Some(here) => values(name, one, here, wrong),
            None if NOT_SERVED.contains(&name) || key == "groups" => {}
            None => wrong.push(format!("{name} is not served")),
        }
    }
}

fn status(recorded: &Value, ours: &Value, wrong: &mut Vec<String>) {
    for key in ["kind", "apiVersion", "status", "reason", "code"] {
        if recorded[key] != ours[key] {
            wrong.push(format!("{key} is {} instead of {}", ours[key], recorded[key]));
        }
    }
    let (a, b) = (plain(&recorded["message"]), plain(&ours["message"]));
    if a != b {
        wrong.push(format!("message is {b:?} instead of {a:?}"));
    }
    values("details", &recorded["details"], &ours["details"], wrong);
}

/// A message without ids, numbers and differences between Go structs.
fn plain(value: &Value) -> String {
    let text = value.as_str().unwrap_or_default();
    let text = text.split_once("\n@@").map_or(text, |(text, _)| text);
    let text = text.split_once("\n- ").map_or(text, |(text, _)| text);
    let words = text.split(' ').map(|word| {
        let hex = word.chars().filter(|c| c.is_ascii_hexdigit() || *c == '-').count() >= 36;
        let long = word.chars().filter(char::is_ascii_digit).count() >= 4;
        if hex || long { "N" } else { word }
    });
    words.collect::<Vec<_>>().join(" ")
}

/// Keys of owner references in managedFields hold uids.
fn without_uids(map: &Map<String, Value>) -> Map<String, Value> {
    let plain = |key: &String| if key.starts_with("k:{\"uid\"") { "k:{uid}".to_owned() } else { key.clone() };
    map.iter().map(|(key, value)| (plain(key), value.clone())).collect()
}

fn values(path: &str, recorded: &Value, ours: &Value, wrong: &mut Vec<String>) {
    match (recorded, ours) {
        (Value::Object(a), Value::Object(b)) => {
            let (a, b) = (&without_uids(a), &without_uids(b));
            let keys = a.keys().chain(b.keys().filter(|key| !a.contains_key(*key)));
            for key in keys.filter(|key| !IGNORED.contains(&key.as_str())) {
                let inner = format!("{path}.{key}");
                match (a.get(key), b.get(key)) {
                    (Some(_), None) => wrong.push(format!("{inner} is missing")),
                    (None, Some(extra)) => wrong.push(format!("{inner} is {extra}, which is too much")),
                    (Some(a), Some(b)) if VARYING.contains(&key.as_str()) => {
                        if a.is_null() != b.is_null() {
                            wrong.push(format!("{inner} is {b} instead of {a}"));
                        }
                    }
                    (Some(a), Some(b)) if key == "message" => {
                        if plain(a) != plain(b) {
                            wrong.push(format!("{inner} is {b} instead of {a}"));
                        }
                    }
                    (Some(a), Some(b)) => values(&inner, a, b, wrong),
                    (None, None) => {}
                }
            }
        }
        // Ordered by time, which is a matter of chance here.
        (Value::Array(a), Value::Array(b)) if path.ends_with(".managedFields") => {
            let sorted = |entries: &[Value]| {
                let key =
                    |entry: &Value| ["manager", "operation", "subresource"].map(|key| entry[key].to_string());
                let mut entries = entries.to_vec();
                entries.sort_by_key(key);
                Value::from(entries)
            };
            values(&format!("{path}(sorted)"), &sorted(a), &sorted(b), wrong);
        }
        (Value::Array(a), Value::Array(b)) => {
            if a.len() != b.len() {
                wrong.push(format!("{path} has {} entries instead of {}: {ours}", b.len(), a.len()));
                return;
            }
            for (index, (a, b)) in a.iter().zip(b).enumerate() {
                values(&format!("{path}[{index}]"), a, b, wrong);
            }
        }
        (a, b)
            if path.contains(".cells[")
                || path.rsplit('.').next() == Some("name")
                    && a.as_str().is_some_and(|name| name.starts_with("gen-")) =>
        {
            let same = a.is_string() == b.is_string();
            wrong.extend((!same).then(|| format!("{path} is {b} instead of {a}")));
        }
        // A uid is also a key in managedFields and a value in owner references.
        (a, b) if a != b && plain(a) != plain(b) => wrong.push(format!("{path} is {b} instead of {a}")),
        _ => {}
    }
}
